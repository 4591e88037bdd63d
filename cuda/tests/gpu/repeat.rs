//! The same question has the same answer: again, far away in memory, from other threads.

use crate::layer::{PAGE_SIZE, Results, fill, gla, queries, step};
use crate::{Outcome, expect};
use grouped_attention::{Backend, CacheLayout, Dtype, Geometry, Mask, Planning, Problem};
use grouped_attention_cuda::CudaBackend;

/// Long enough to be cut into many parts, short ones beside it.
const LENS: [(usize, usize); 4] = [(1, 5000), (3, 130), (0, 40), (2, 0)];

type Bits = [Vec<u64>; 2];

/// Plans, attends, and gives the bits.
fn once(
    engine: &CudaBackend,
    problem: &Problem,
    pages: usize,
    first_page: u32,
) -> Result<Bits, Box<dyn std::error::Error>> {
    let layout = CacheLayout::new(*problem.geometry(), problem.dtype(), PAGE_SIZE, pages)?;
    let mut cache = engine.create_cache(layout)?;
    fill(engine, problem, &mut cache, &LENS, first_page, 5)?;
    let step = step(&LENS, first_page, Mask::Causal)?;
    let mut plan = engine.plan(Planning::new(problem, &step))?;
    let q = queries(engine, problem, step.total_q())?;
    let mut results = Results::new(engine, problem, step.total_q())?;
    results.attend(engine, &mut plan, &q, &cache)?;
    results.bits(engine)
}

pub(crate) fn three_runs(engine: &CudaBackend) -> Outcome {
    for problem in [gla()?, gla()?.batch_invariant(), gla()?.f32_output()] {
        let first = once(engine, &problem, 400, 0)?;
        for run in 2..=3 {
            expect(once(engine, &problem, 400, 0)? == first, format!("run {run} differs"))?;
        }
    }
    Ok(())
}

/// Pages that begin past 2^31 elements hold rows as well as the first ones do.
pub(crate) fn far_rows(engine: &CudaBackend) -> Outcome {
    for geometry in [Geometry::mla(16, 512, 64)?, Geometry::gqa(8, 2, 128)?] {
        let problem = Problem::new(geometry, Dtype::Bf16, 0.0625)?;
        let far = ((1_usize << 31) / (geometry.row().parts()[0] * PAGE_SIZE) + 1) as u32;
        let near = once(engine, &problem, 400, 0)?;
        let there = once(engine, &problem, far as usize + 400, far)?;
        expect(near == there, format!("{geometry}: bits differ past 2^31 elements"))?;
    }
    Ok(())
}

/// Clones of one engine serve many threads at once, whose calls interleave on one stream.
pub(crate) fn threads(engine: &CudaBackend) -> Outcome {
    let problem = gla()?;
    let expected = once(engine, &problem, 400, 0)?;
    let found: Vec<Result<Bits, String>> = std::thread::scope(|scope| {
        let run = || once(&engine.clone(), &problem, 400, 0).map_err(|error| error.to_string());
        let handles: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, _>| {
            handle.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        };
        handles.into_iter().map(join).collect()
    });
    for bits in found {
        expect(bits? == expected, "a thread got other bits")?;
    }
    Ok(())
}
