//! A graph that was recorded once computes whatever step its plan was written for last.

use crate::driver::Driver;
use crate::layer::{Case, Results, bits, families, upload};
use crate::{Outcome, expect};
use grouped_attention::{
    Append, Backend, Extent, Mask, MaskKind, Planning, ReadRows, Rope, RopeScaling, RopeStyle,
    Status, Step, Update,
};
use grouped_attention_cuda::{CudaBackend, CudaCache};
use std::error::Error;

const CAPACITY: Extent =
    Extent { sequences: 4, total_q: 12, max_q_len: 4, max_kv_len: 6000, writes: 12 };

/// Tokens of the cache, all of them filled.
const TOKENS: usize = 8000;

/// Steps of every kind within the capacity: one long, many, padded, none, trees.
fn steps(case: &Case) -> Result<Vec<Step>, Box<dyn Error>> {
    let tree = [-1, 0, 0, 1];
    let drafts: Vec<i32> = [tree, tree].concat();
    let tree = Mask::new(MaskKind::Tree(&drafts), [4, 4])?;
    Ok(vec![
        case.step(&[(1, 6000)], 0, Mask::Causal)?.appending()?,
        case.step(&[(1, 64), (4, 65), (4, 700), (3, 1000)], 3, Mask::Causal)?.appending()?,
        case.step(&[(4, 900), (4, 20)], 1, tree)?.appending()?,
        case.step(&[(2, 513), (0, 0), (0, 0)], 20, Mask::Full)?,
        case.step(&[], 0, Mask::Causal)?,
        case.step(&[(3, 1), (2, 0)], 7, Mask::Causal)?,
        case.step(&[(1, 6000)], 0, Mask::Full)?.appending()?,
    ])
}

fn both_modes() -> Result<impl Iterator<Item = Case>, Box<dyn Error>> {
    Ok(families()?.into_iter().flat_map(|case| [case.clone(), case.batch_invariant()]))
}

fn filled(engine: &CudaBackend, case: &Case) -> Result<CudaCache, Box<dyn Error>> {
    case.filled(engine, TOKENS.div_ceil(case.page_size), &[(0, TOKENS)], 0, 9)
}

pub(crate) fn graph(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new(engine.ordinal())?;
    let stream = driver.stream()?;
    // SAFETY: the stream is never destroyed.
    let engine = &unsafe { engine.on_stream(stream) };
    for case in both_modes()? {
        let width = case.problem.rotated_width();
        let rope = Rope::new(RopeStyle::Interleaved, width, 10_000.0, RopeScaling::None)?;
        let problem = case.problem.clone().rotating(rope)?;
        let mut cache = filled(engine, &case)?;
        let q = upload(engine, &case.queries(CAPACITY.total_q)?)?;
        let rows = case.rows(CAPACITY.writes, 1)?;
        let (first, second) = (upload(engine, &rows[0])?, upload(engine, &rows[1])?);
        let mut replayed = Results::new(engine, &problem, CAPACITY.total_q)?;
        let mut direct = Results::new(engine, &problem, CAPACITY.total_q)?;

        let steps = steps(&case)?;
        let mut plan = engine.plan(Planning::replayed(&problem, &steps[3], CAPACITY)?)?;
        let graph = driver.record(stream, || {
            let append = Append::rotating(&plan, &mut cache, &first, Some(&second))?;
            engine.append(append)?;
            replayed.attend(engine, &mut plan, &q, &cache)
        })?;

        for (index, step) in steps.iter().enumerate() {
            engine.update(Update::new(&mut plan, step)?)?;
            let slots: Vec<_> = step.writes().iter().map(|write| write.slot).collect();
            graph.launch()?;
            let written = engine.read_rows(ReadRows::new(&cache, &slots)?)?;
            let append = Append::rotating(&plan, &mut cache, &first, Some(&second))?;
            engine.append(append)?;
            direct.attend(engine, &mut plan, &q, &cache)?;
            let again = engine.read_rows(ReadRows::new(&cache, &slots)?)?;
            expect(written == again, format!("{case}, step {index}: other rows were appended"))?;
            let same = bits(engine, &replayed.o)? == bits(engine, &direct.o)?
                && bits(engine, &replayed.lse)? == bits(engine, &direct.lse)?;
            expect(same, format!("{case}, step {index}: the graph gives other bits"))?;
        }
    }
    Ok(())
}

/// Lengths written on the device and scheduled there give the bits of a host's update.
pub(crate) fn device_schedule(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new(engine.ordinal())?;
    for case in both_modes()? {
        let problem = &case.problem;
        let cache = filled(engine, &case)?;
        let q = upload(engine, &case.queries(CAPACITY.total_q)?)?;
        let mut by_host = Results::new(engine, problem, CAPACITY.total_q)?;
        let mut by_device = Results::new(engine, problem, CAPACITY.total_q)?;
        let steps = [
            case.step(&[(1, 6000)], 0, Mask::Full)?,
            case.step(&[(1, 64), (4, 65), (4, 700), (3, 1000)], 3, Mask::Full)?,
            case.step(&[(2, 513), (0, 0), (1, 3000)], 20, Mask::Full)?,
        ];
        let mut plan = engine.plan(Planning::replayed(problem, &steps[1], CAPACITY)?)?;
        for (index, step) in steps.iter().enumerate() {
            engine.update(Update::new(&mut plan, step)?)?;
            by_host.attend(engine, &mut plan, &q, &cache)?;
            // The schedule of no work at all, then this step's again from the lengths.
            let tables = plan.device_tables();
            driver.write(engine, tables.q_starts, &[0; CAPACITY.sequences + 1])?;
            engine.reschedule(&mut plan)?;
            let mut starts: Vec<i32> =
                step.spans().iter().map(|span| span.q_start as i32).collect();
            starts.resize(CAPACITY.sequences + 1, step.total_q() as i32);
            driver.write(engine, tables.q_starts, &starts)?;
            engine.reschedule(&mut plan)?;
            by_device.attend(engine, &mut plan, &q, &cache)?;
            let status = engine.status(&plan)?;
            expect(status == Status::Ok, format!("{case}, step {index} has a status"))?;
            let same = by_host.bits(engine)? == by_device.bits(engine)?;
            expect(same, format!("{case}, step {index}: the device's schedule gives other bits"))?;
        }
    }
    Ok(())
}
