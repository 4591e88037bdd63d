//! A graph that was recorded once computes whatever step its plan was written for last.

use crate::driver::Driver;
use crate::layer::{PAGE_SIZE, Results, bits, fill, gla, queries, random, step, upload};
use crate::{Outcome, expect};
use grouped_attention::{
    Append, Backend, CacheLayout, Extent, Mask, MaskKind, Planning, ReadRows, Rope, RopeScaling,
    RopeStyle, Status, Step, Update,
};
use grouped_attention_cuda::CudaBackend;
use std::error::Error;

const CAPACITY: Extent =
    Extent { sequences: 4, total_q: 12, max_q_len: 4, max_kv_len: 6000, writes: 12 };

/// Steps of every kind within the capacity: one long, many, padded, none, trees.
fn steps() -> Result<Vec<Step>, Box<dyn Error>> {
    let tree = [-1, 0, 0, 1];
    let drafts: Vec<i32> = [tree, tree].concat();
    let tree = Mask::new(MaskKind::Tree(&drafts), [4, 4])?;
    Ok(vec![
        step(&[(1, 6000)], 0, Mask::Causal)?.appending()?,
        step(&[(1, 64), (4, 65), (4, 700), (3, 1000)], 3, Mask::Causal)?.appending()?,
        step(&[(4, 900), (4, 20)], 1, tree)?.appending()?,
        step(&[(2, 513), (0, 0), (0, 0)], 20, Mask::Full)?,
        step(&[], 0, Mask::Causal)?,
        step(&[(3, 1), (2, 0)], 7, Mask::Causal)?,
        step(&[(1, 6000)], 0, Mask::Full)?.appending()?,
    ])
}

pub(crate) fn graph(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new()?;
    let stream = driver.stream()?;
    // SAFETY: the stream is never destroyed.
    let engine = &unsafe { engine.on_stream(stream) };
    let rope = Rope::new(RopeStyle::Interleaved, 32, 10_000.0, RopeScaling::None)?;
    for problem in [gla()?.rotating(rope.clone())?, gla()?.rotating(rope)?.batch_invariant()] {
        let layout = CacheLayout::new(*problem.geometry(), problem.dtype(), PAGE_SIZE, 500)?;
        let mut cache = engine.create_cache(layout)?;
        fill(engine, &problem, &mut cache, &[(0, 500 * PAGE_SIZE)], 0, 9)?;
        let q = queries(engine, &problem, CAPACITY.total_q)?;
        let first = upload(engine, &random(problem.dtype(), &[CAPACITY.writes, 2, 64], 1)?)?;
        let second = upload(engine, &random(problem.dtype(), &[CAPACITY.writes, 32], 2)?)?;
        let mut replayed = Results::new(engine, &problem, CAPACITY.total_q)?;
        let mut direct = Results::new(engine, &problem, CAPACITY.total_q)?;

        let steps = steps()?;
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
            expect(written == again, format!("step {index}: other rows were appended"))?;
            let same = bits(engine, &replayed.o)? == bits(engine, &direct.o)?
                && bits(engine, &replayed.lse)? == bits(engine, &direct.lse)?;
            expect(same, format!("step {index}: the graph gives other bits"))?;
        }
    }
    Ok(())
}

/// Lengths written on the device and scheduled there give the bits of a host's update.
pub(crate) fn device_schedule(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new()?;
    for problem in [gla()?, gla()?.batch_invariant()] {
        let layout = CacheLayout::new(*problem.geometry(), problem.dtype(), PAGE_SIZE, 500)?;
        let mut cache = engine.create_cache(layout)?;
        fill(engine, &problem, &mut cache, &[(0, 500 * PAGE_SIZE)], 0, 9)?;
        let q = queries(engine, &problem, CAPACITY.total_q)?;
        let mut by_host = Results::new(engine, &problem, CAPACITY.total_q)?;
        let mut by_device = Results::new(engine, &problem, CAPACITY.total_q)?;
        let steps = [
            step(&[(1, 6000)], 0, Mask::Full)?,
            step(&[(1, 64), (4, 65), (4, 700), (3, 1000)], 3, Mask::Full)?,
            step(&[(2, 513), (0, 0), (1, 3000)], 20, Mask::Full)?,
        ];
        let mut plan = engine.plan(Planning::replayed(&problem, &steps[1], CAPACITY)?)?;
        for (index, step) in steps.iter().enumerate() {
            engine.update(Update::new(&mut plan, step)?)?;
            by_host.attend(engine, &mut plan, &q, &cache)?;
            // The schedule of no work at all, then this step's again from the lengths.
            let tables = plan.device_tables();
            driver.write(tables.q_starts, &[0; CAPACITY.sequences + 1])?;
            engine.reschedule(&mut plan)?;
            let mut starts: Vec<i32> =
                step.spans().iter().map(|span| span.q_start as i32).collect();
            starts.resize(CAPACITY.sequences + 1, step.total_q() as i32);
            driver.write(tables.q_starts, &starts)?;
            engine.reschedule(&mut plan)?;
            by_device.attend(engine, &mut plan, &q, &cache)?;
            expect(engine.status(&plan)? == Status::Ok, format!("step {index} has a status"))?;
            let same = by_host.bits(engine)? == by_device.bits(engine)?;
            expect(same, format!("step {index}: the device's schedule gives other bits"))?;
        }
    }
    Ok(())
}
