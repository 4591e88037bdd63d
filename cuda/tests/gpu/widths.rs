//! Widths of a wide tied row other than MLA's, against the reference: a key of a part of the state, rope keys
//! longer than 64, none, and nothing but one. [S-2.4] [S-3.2]

use crate::layer::{Case, Results, upload};
use crate::{Outcome, expect};
use grouped_attention::{
    Backend, Dtype, Geometry, HostTensor, Mask, Planning, Problem, ReferenceCache, Step, attend,
};
use grouped_attention_cuda::CudaBackend;

/// (n, r) of states of 512.
const WIDTHS: [(usize, usize); 5] = [(448, 64), (448, 128), (512, 128), (512, 0), (0, 64)];
/// Cut into parts; two tiles of rows; one position past a page; padding alone; nothing.
const LENS: [(usize, usize); 5] = [(3, 1000), (2, 200), (3, 65), (0, 30), (2, 0)];
const QUERIES: usize = 10;

pub(crate) fn wide(engine: &CudaBackend) -> Outcome {
    for (n, r) in WIDTHS {
        let geometry = Geometry::tied(32, 1, 512, n, r)?;
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let scale = 2.0 / (geometry.width_k() as f64).sqrt();
            let problem = Problem::new(geometry, dtype, scale)?;
            // Whole boxes, and rows one by one.
            for page_size in [64, 16] {
                compare(engine, &Case { problem: problem.clone(), page_size })?;
            }
        }
    }
    Ok(())
}

fn compare(engine: &CudaBackend, case: &Case) -> Outcome {
    let problem = &case.problem;
    let (pages, step) = (case.pages(&LENS), case.step(&LENS, 0, Mask::Causal)?);
    let tokens = LENS.iter().map(|(_, kv_len)| kv_len).sum();
    let (rows, queries) = (case.rows(tokens, 5)?, case.queries(QUERIES)?);
    let mut cache = case.cache(engine, pages)?;
    case.fill(engine, &mut cache, &LENS, 0, &rows)?;
    let mut plan = engine.plan(Planning::new(problem, &step))?;
    let mut results = Results::new(engine, problem, QUERIES)?;
    results.attend(engine, &mut plan, &upload(engine, &queries)?, &cache)?;

    let mut exact = ReferenceCache::new(case.layout(pages)?);
    write(&mut exact, &step, &rows);
    let want = attend(problem, &step, &queries.to_f64(), &exact);
    let o = engine.download(&results.o)?.to_f64();
    let lse = engine.download(&results.lse)?.to_f64();
    let allowed = 2.0 * problem.dtype().unit_roundoff() + 1e-5;
    let rows = o.chunks(512).zip(want.o.chunks(512)).zip(lse.iter().zip(&want.rows));
    for (row, ((o, want), (lse, stats))) in rows.enumerate() {
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let wrong = norm(&mut o.iter().zip(want).map(|(o, want)| o - want));
        let right = wrong <= allowed * norm(&mut want.iter().copied())
            && (*lse == stats.lse || (lse - stats.lse).abs() <= 1e-4);
        let (query, head) = (row / 32, row % 32);
        let what = format!("{case}, {}: query {query}, head {head}", problem.dtype());
        expect(right, format!("{what} is off by {wrong:e}, its lse by {:e}", lse - stats.lse))?;
    }
    Ok(())
}

/// The rows of all sequences into the reference's cache.
fn write(cache: &mut ReferenceCache, step: &Step, rows: &[HostTensor; 2]) {
    let values = [rows[0].to_f64(), rows[1].to_f64()];
    let slots: Vec<_> = (step.spans().iter())
        .flat_map(|span| (0..span.kv_len).map(|position| step.slot(span, position)))
        .collect();
    for (row, &slot) in slots.iter().enumerate() {
        let [first, second] = [0, 1].map(|part| {
            let width = values[part].len() / slots.len();
            &values[part][row * width..][..width]
        });
        cache.write(slot, first, second);
    }
}
