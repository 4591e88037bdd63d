//! Rows whose scores are -inf: not empty, for they see something, and NaN unless one score is more.
//! [S-3.14] [S-3.18] [S-7.20]

use crate::layer::{Case, Results, families, upload};
use crate::{Outcome, expect};
use grouped_attention::{Backend, HostTensor, Mask, Planning, Row};
use grouped_attention_cuda::CudaBackend;
use std::error::Error;

/// Cut into parts; whole; one position that the last query alone sees; none.
const LENS: [(usize, usize); 4] = [(2, 5000), (3, 130), (3, 1), (2, 0)];
/// Queries of these that see nothing.
const EMPTY: [usize; 4] = [5, 6, 8, 9];
const QUERIES: usize = 10;

/// Sets column `column` of all rows of `tensor`.
fn set_column(
    tensor: &HostTensor,
    column: usize,
    value: impl Fn(usize) -> f64,
) -> Result<HostTensor, Box<dyn Error>> {
    let width = tensor.shape()[tensor.shape().len() - 1];
    let mut values = tensor.to_f64();
    for (row, values) in values.chunks_mut(width).enumerate() {
        values[column] = value(row);
    }
    Ok(HostTensor::from_f64(tensor.dtype(), tensor.shape(), &values)?)
}

/// A column of the query, and the part whose first column it meets: the one that is not the values.
fn column(case: &Case) -> (usize, usize) {
    match case.problem.geometry().row() {
        Row::Separate { .. } => (0, 0),
        Row::Tied { n, .. } => (n, 1),
    }
}

/// Keys that are -inf where the queries are 1, but at position `finite` of the first sequence.
fn attend(
    engine: &CudaBackend,
    case: &Case,
    finite: Option<usize>,
) -> Result<([HostTensor; 2], HostTensor), Box<dyn Error>> {
    let (query_column, keys) = column(case);
    let tokens = LENS.iter().map(|(_, kv_len)| kv_len).sum();
    let mut rows = case.rows(tokens, 5)?;
    let of_a_token = rows[keys].to_f64().len() / tokens / rows[keys].shape().last().unwrap_or(&1);
    let key = |row: usize| {
        if Some(row / of_a_token) == finite { 0.0 } else { f64::NEG_INFINITY }
    };
    rows[keys] = set_column(&rows[keys], 0, key)?;
    let mut cache = case.cache(engine, case.pages(&LENS))?;
    case.fill(engine, &mut cache, &LENS, 0, &rows)?;
    let step = case.step(&LENS, 0, Mask::Causal)?;
    let q = upload(engine, &set_column(&case.queries(QUERIES)?, query_column, |_| 1.0)?)?;
    let mut plan = engine.plan(Planning::new(&case.problem, &step))?;
    let mut results = Results::new(engine, &case.problem, QUERIES)?;
    results.attend(engine, &mut plan, &q, &cache)?;
    let found = [engine.download(&results.o)?, engine.download(&results.lse)?];
    Ok((found, rows[1 - keys].clone()))
}

pub(crate) fn scores(engine: &CudaBackend) -> Outcome {
    for case in families()? {
        for case in [case.clone(), case.batch_invariant()] {
            only_infinite(engine, &case)?;
            one_finite(engine, &case)?;
        }
    }
    Ok(())
}

fn only_infinite(engine: &CudaBackend, case: &Case) -> Outcome {
    let ([o, lse], _) = attend(engine, case, None)?;
    for (tensor, nothing) in [(o, 0.0), (lse, f64::NEG_INFINITY)] {
        let values = tensor.to_f64();
        for (index, value) in values.iter().enumerate() {
            let query = index / (values.len() / QUERIES);
            let fits = if EMPTY.contains(&query) { *value == nothing } else { value.is_nan() };
            expect(fits, format!("{case}: query {query} has {value}"))?;
        }
    }
    Ok(())
}

/// The one finite score has all the weight, whatever the other parts of its sequence say.
fn one_finite(engine: &CudaBackend, case: &Case) -> Outcome {
    let position = 777;
    let ([o, lse], values) = attend(engine, case, Some(position))?;
    let geometry = case.problem.geometry();
    let (h_q, d_v) = (geometry.h_q(), geometry.width_v());
    let (o, lse, values) = (o.to_f64(), lse.to_f64(), values.to_f64());
    for row in 0..2 * h_q {
        let head = row % h_q / geometry.group();
        let value = (position * geometry.heads() + head) * d_v;
        let fits = o[row * d_v..][..d_v] == values[value..][..d_v] && lse[row].is_finite();
        expect(fits, format!("{case}: row {row} is not the one value"))?;
    }
    Ok(())
}
