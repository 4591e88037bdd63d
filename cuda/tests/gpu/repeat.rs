//! The same question has the same answer: again, far away in memory, from other threads.

use crate::layer::{Case, Results, families, upload};
use crate::{Outcome, expect};
use grouped_attention::{Backend, Mask, PageId, Planning, Sequence, Step};
use grouped_attention_cuda::CudaBackend;
use std::error::Error;

/// Long enough to be cut into many parts, short ones beside it.
const LENS: [(usize, usize); 4] = [(1, 5000), (3, 130), (0, 40), (2, 0)];

pub(crate) type Bits = [Vec<u64>; 2];

/// Plans, attends, and gives the bits.
pub(crate) fn once(
    engine: &CudaBackend,
    case: &Case,
    first_page: u32,
) -> Result<Bits, Box<dyn Error>> {
    let pages = first_page as usize + case.pages(&LENS);
    let cache = case.filled(engine, pages, &LENS, first_page, 5)?;
    let step = case.step(&LENS, first_page, Mask::Causal)?;
    let mut plan = engine.plan(Planning::new(&case.problem, &step))?;
    let q = upload(engine, &case.queries(step.total_q())?)?;
    let mut results = Results::new(engine, &case.problem, step.total_q())?;
    results.attend(engine, &mut plan, &q, &cache)?;
    results.bits(engine)
}

pub(crate) fn three_runs(engine: &CudaBackend) -> Outcome {
    let mut cases = families()?;
    cases.extend(families()?.into_iter().map(Case::batch_invariant));
    let Case { problem, page_size } = cases[0].clone();
    cases.push(Case { problem: problem.f32_output(), page_size });
    for case in &cases {
        let first = once(engine, case, 0)?;
        for run in 2..=3 {
            expect(once(engine, case, 0)? == first, format!("{case}: run {run} differs"))?;
        }
    }
    Ok(())
}

/// Pages that begin past 2^31 elements hold rows as well as the first ones do.
pub(crate) fn far_rows(engine: &CudaBackend) -> Outcome {
    for case in families()? {
        let page = case.problem.geometry().row().parts()[0] * case.page_size;
        let far = ((1_usize << 31) / page + 1) as u32;
        let near = once(engine, &case, 0)?;
        let there = once(engine, &case, far)?;
        expect(near == there, format!("{case}: bits differ past 2^31 elements"))?;
    }
    Ok(())
}

/// How rows of many parts are merged depends on how many of them there are, but no bit does.
// [S-3.21]
pub(crate) fn among_long_ones(engine: &CudaBackend) -> Outcome {
    // More parts than a warp merges, of kernels that cut at 8192 tokens.
    const TOKENS: [(usize, usize); 9] = {
        let mut lens = [(1, 8192); 9];
        lens[8] = (1, 64);
        lens
    };
    for case in families()?.into_iter().filter(|case| case.page_size == 64) {
        let cache = case.filled(engine, case.pages(&TOKENS), &TOKENS, 0, 5)?;
        let case = case.batch_invariant();
        let pages: Vec<PageId> = (0..case.pages(&TOKENS) as u32).map(PageId).collect();
        let kv_len = pages.len() * case.page_size;
        let first_query = |sequences: usize| -> Result<Bits, Box<dyn Error>> {
            let equal = vec![Sequence { q_len: 1, kv_len, pages: &pages }; sequences];
            let step = Step::new(case.page_size, &equal, Mask::Causal)?;
            let mut plan = engine.plan(Planning::new(&case.problem, &step))?;
            let q = upload(engine, &case.queries(sequences)?)?;
            let mut results = Results::new(engine, &case.problem, sequences)?;
            results.attend(engine, &mut plan, &q, &cache)?;
            let bits = results.bits(engine)?;
            Ok(bits.map(|rows| rows[..rows.len() / sequences].to_vec()))
        };
        let same = first_query(1)? == first_query(4)?;
        expect(same, format!("{case}: a long sequence has other bits among others"))?;
    }
    Ok(())
}

/// A cache without pages, of which every sequence is empty.
pub(crate) fn no_pages(engine: &CudaBackend) -> Outcome {
    for case in families()? {
        let (cache, step) = (case.cache(engine, 0)?, case.step(&[(2, 0)], 0, Mask::Causal)?);
        let q = upload(engine, &case.queries(2)?)?;
        let mut results = Results::new(engine, &case.problem, 2)?;
        let mut plan = engine.plan(Planning::new(&case.problem, &step))?;
        results.attend(engine, &mut plan, &q, &cache)?;
        let [o, lse] = results.bits(engine)?;
        let empty = f64::NEG_INFINITY.to_bits();
        let right = o.iter().all(|&x| x == 0) && lse.iter().all(|&x| x == empty);
        expect(right, format!("{case}: rows that see nothing are not empty"))?;
    }
    Ok(())
}

/// Clones of one engine serve many threads at once, whose calls interleave on one stream.
pub(crate) fn threads(engine: &CudaBackend) -> Outcome {
    for case in families()? {
        let expected = once(engine, &case, 0)?;
        let engines: Vec<CudaBackend> = (0..4).map(|_| engine.clone()).collect();
        for bits in at_once(&engines, &case) {
            expect(bits? == expected, format!("{case}: a thread got other bits"))?;
        }
    }
    Ok(())
}

/// [`once`] in a thread for each engine.
pub(crate) fn at_once(engines: &[CudaBackend], case: &Case) -> Vec<Result<Bits, String>> {
    std::thread::scope(|scope| {
        let run = |engine| move || once(engine, case, 0).map_err(|error| error.to_string());
        let handles: Vec<_> = engines.iter().map(|engine| scope.spawn(run(engine))).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, _>| {
            handle.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        };
        handles.into_iter().map(join).collect()
    })
}
