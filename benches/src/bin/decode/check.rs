//! Compares what an engine computed with the reference, on a sample of rows.

use crate::random::{Random, mix};
use crate::workload::Workload;
use grouped_attention::{
    CacheLayout, Error, Geometry, HostTensor, PageId, Problem, ReferenceCache, Row, Sequence, Slot,
    Step, attend,
};
use rayon::prelude::*;

/// Sequences that are compared: the first, the last, and others between them.
const SEQUENCES: usize = 4;

/// The seeds of what a workload attends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeds {
    pub(crate) queries: Random,
    /// Of the two parts of a cache.
    pub(crate) parts: [Random; 2],
}

impl Seeds {
    /// Of the cache of this index.
    pub(crate) fn of(cache: usize) -> Seeds {
        let random = |what: u64| Random { seed: mix(3 * cache as u64 + what) };
        Seeds { queries: Random { seed: mix(u64::MAX) }, parts: [random(0), random(1)] }
    }
}

/// An engine that is not to be timed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(
        "{name}: sequence {sequence} is wrong by {error:.1e} of its norm, {allowed:.1e} allowed"
    )]
    Wrong { name: String, sequence: usize, error: f64, allowed: f64 },
    #[error("{name}: element {element} of the output is {value}")]
    NotFinite { name: String, element: usize, value: f64 },
    #[error(transparent)]
    Call(#[from] Error),
}

/// Looks at every element of `o`, `[total_q, h_q, width_v]`, and compares all queries of a few
/// sequences, one query head for each cached head.
pub(crate) fn check(workload: &Workload, seeds: &Seeds, o: &HostTensor) -> Result<(), CheckError> {
    let got = o.to_f64();
    if let Some((element, &value)) = got.par_iter().enumerate().find_any(|(_, x)| !x.is_finite()) {
        return Err(CheckError::NotFinite { name: workload.name.clone(), element, value });
    }
    let tables = workload.tables();
    let allowed = 2.0 * workload.dtype.unit_roundoff() + 1e-5;
    sample(tables.len()).into_par_iter().try_for_each(|sequence| {
        let pages = &tables[sequence];
        let error = compare(workload, seeds, sequence, pages, &got).map_err(CheckError::from)?;
        if error <= allowed {
            return Ok(());
        }
        Err(CheckError::Wrong { name: workload.name.clone(), sequence, error, allowed })
    })
}

fn sample(batch: usize) -> Vec<usize> {
    let mut chosen: Vec<usize> =
        (0..SEQUENCES).map(|i| i * batch.saturating_sub(1) / (SEQUENCES - 1)).collect();
    chosen.dedup();
    chosen.retain(|&sequence| sequence < batch);
    chosen
}

/// Norm of the difference over the norm of what is right.
fn compare(
    workload: &Workload,
    seeds: &Seeds,
    sequence: usize,
    pages: &[PageId],
    got: &[f64],
) -> Result<f64, Error> {
    let geometry = workload.geometry;
    let heads: Vec<usize> = (0..geometry.heads())
        .map(|head| {
            let within = mix((sequence * geometry.heads() + head) as u64) as usize;
            head * geometry.group() + within % geometry.group()
        })
        .collect();
    let want = expected(workload, seeds, sequence, pages, &heads)?;
    let width = geometry.width_v();
    let rows = (0..workload.q_len).flat_map(|t| {
        let query = sequence * workload.q_len + t;
        heads.iter().map(move |head| query * geometry.h_q() + head)
    });
    let (mut difference, mut norm) = (0.0, 0.0);
    for (row, want) in rows.zip(want.chunks_exact(width)) {
        for (got, want) in got[row * width..][..width].iter().zip(want) {
            difference += (got - want) * (got - want);
            norm += want * want;
        }
    }
    Ok((difference / norm).sqrt())
}

/// The definition's result for some query heads of one sequence, `[q_len, heads, width_v]`.
fn expected(
    workload: &Workload,
    seeds: &Seeds,
    sequence: usize,
    pages: &[PageId],
    heads: &[usize],
) -> Result<Vec<f64>, Error> {
    let geometry = one_query_head_each(&workload.geometry)?;
    let kv_len = workload.lens[sequence];
    // The same rows, in the order of their positions.
    let order: Vec<PageId> = (0..pages.len() as u32).map(PageId).collect();
    let layout = CacheLayout::new(geometry, workload.dtype, workload.page_size, order.len())?;
    let mut cache = ReferenceCache::new(layout);
    let slot = |page, position| Slot { page, row: position % workload.page_size };
    let cells: Vec<usize> =
        (0..kv_len).map(|p| workload.cell(slot(pages[p / workload.page_size], p))).collect();
    let widths = geometry.row().parts();
    let part = |which: usize| -> Result<Vec<f64>, Error> {
        let shape = [kv_len, widths[which]];
        Ok(seeds.parts[which].rows(workload.dtype, &shape, &cells)?.to_f64())
    };
    let (first, second) = (part(0)?, part(1)?);
    for position in 0..kv_len {
        let [first, second] = [(&first, widths[0]), (&second, widths[1])]
            .map(|(part, width)| &part[position * width..][..width]);
        cache.write(slot(order[position / workload.page_size], position), first, second);
    }
    let sequences = [Sequence { q_len: workload.q_len, kv_len, pages: &order }];
    let step = Step::new(workload.page_size, &sequences, workload.mask(1)?)?;
    let problem = Problem::new(geometry, workload.dtype, workload.problem()?.scale())?;
    let rows: Vec<usize> = (0..workload.q_len)
        .flat_map(|t| {
            let query = sequence * workload.q_len + t;
            heads.iter().map(move |head| query * workload.geometry.h_q() + head)
        })
        .collect();
    let shape = [rows.len(), geometry.width_k()];
    let q = seeds.queries.rows(workload.dtype, &shape, &rows)?.to_f64();
    Ok(attend(&problem, &step, &q, &cache).o)
}

/// The same cache, read by one query head for each of its heads.
fn one_query_head_each(geometry: &Geometry) -> Result<Geometry, Error> {
    Ok(match geometry.row() {
        Row::Separate { heads, d_k, d_v } => Geometry::separate(heads, heads, d_k, d_v)?,
        Row::Tied { heads, s, n, r } => Geometry::tied(heads, heads, s, n, r)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;
    use crate::workload::Masking;
    use grouped_attention::{Dtype, Reference};

    fn workload(geometry: Geometry) -> Workload {
        let lens = vec![37, 5, 64, 130, 3];
        Workload {
            lens,
            page_size: 16,
            masking: Masking::Tree,
            ..Workload::new("w", geometry, 0, 0, 3)
        }
    }

    fn output(workload: &Workload) -> HostTensor {
        host::attended(&Reference::new(), workload).unwrap()
    }

    #[test]
    fn what_the_reference_computes_is_right_and_a_wrong_row_is_found() {
        for geometry in [
            Geometry::gqa(4, 2, 16).unwrap(),
            Geometry::gta(8, 2, 32).unwrap(),
            Geometry::gla(8, 2, 16, 8).unwrap(),
        ] {
            let workload = workload(geometry);
            let o = output(&workload);
            check(&workload, &Seeds::of(0), &o).unwrap();
            // The last sequence is of the sample: all of its rows are off.
            let mut values = o.to_f64();
            let from = values.len() - 3 * geometry.h_q() * geometry.width_v();
            values[from..].iter_mut().for_each(|x| *x *= 1.1);
            let wrong = HostTensor::from_f64(o.dtype(), o.shape(), &values).unwrap();
            let error = check(&workload, &Seeds::of(0), &wrong).unwrap_err();
            assert!(matches!(error, CheckError::Wrong { sequence: 4, .. }), "{error}");
            let error = check(&workload, &Seeds::of(1), &o).unwrap_err();
            assert!(matches!(error, CheckError::Wrong { .. }), "another cache: {error}");
            values[7] = f64::NAN;
            let wrong = HostTensor::from_f64(Dtype::F32, o.shape(), &values).unwrap();
            let error = check(&workload, &Seeds::of(0), &wrong).unwrap_err();
            assert!(matches!(error, CheckError::NotFinite { element: 7, .. }), "{error}");
        }
    }

    #[test]
    fn samples_have_both_ends() {
        assert_eq!(sample(0), [0; 0]);
        assert_eq!(sample(1), [0]);
        assert_eq!(sample(3), [0, 1, 2]);
        assert_eq!(sample(128), [0, 42, 84, 127]);
    }
}
