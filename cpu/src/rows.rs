//! Dot kernels: some rows of queries against the rows of a block, straight from the cache.
//!
//! Queries and sums are in the order of the units (see [`Unit`]), so that a row of the cache is
//! used as it is loaded.

use crate::lanes::{Lanes, Unit};

/// One head's rows of a block in one part of the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip<'a, E> {
    pub(crate) cells: &'a [E],
    /// Where each position begins, head and all.
    pub(crate) offsets: &'a [usize],
    /// Added to every offset.
    pub(crate) head: usize,
    pub(crate) width: usize,
}

impl<'a, E> Strip<'a, E> {
    #[inline(always)]
    pub(crate) fn row(&self, j: usize) -> &'a [E] {
        &self.cells[self.offsets[j] + self.head..][..self.width]
    }

    /// Positions.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }
}

/// Some rows of an array of f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    pub(crate) cells: &'a [f32],
    pub(crate) stride: usize,
}

/// Unit `u` of a row of the cache; what a last, partial unit lacks is 0.
#[inline(always)]
fn unit<L: Lanes, E: Unit>(lanes: L, row: &[E], u: usize) -> [L::F; 2] {
    let rest = &row[u * L::UNIT..];
    if rest.len() >= L::UNIT {
        return E::unit(lanes, rest);
    }
    let mut padded = [E::zero(); 32];
    padded[..rest.len()].copy_from_slice(rest);
    E::unit(lanes, &padded)
}

/// `scores[i][j] = <q[i], k[j]>` for `rows` queries and every position of the strips, which are
/// the two pieces of a key.
#[inline(always)]
pub(crate) fn scores<L: Lanes, E: Unit>(
    lanes: L,
    q: Matrix<'_>,
    rows: usize,
    keys: [(Strip<'_, E>, usize); 2],
    scores: &mut [f32],
    stride: usize,
) {
    let positions = keys[0].0.len();
    let mut j = 0;
    while j + 4 <= positions {
        score_positions::<L, E, 4>(lanes, q, rows, keys, j, scores, stride);
        j += 4;
    }
    while j < positions {
        score_positions::<L, E, 1>(lanes, q, rows, keys, j, scores, stride);
        j += 1;
    }
}

#[inline(always)]
fn score_positions<L: Lanes, E: Unit, const T: usize>(
    lanes: L,
    q: Matrix<'_>,
    rows: usize,
    keys: [(Strip<'_, E>, usize); 2],
    j: usize,
    scores: &mut [f32],
    stride: usize,
) {
    let mut i = 0;
    while i < rows {
        let q = Matrix { cells: &q.cells[i * q.stride..], stride: q.stride };
        let out = &mut scores[i * stride + j..];
        i += match rows - i {
            1 => score_tile::<L, E, 1, T>(lanes, q, keys, j, out, stride),
            2 => score_tile::<L, E, 2, T>(lanes, q, keys, j, out, stride),
            3 => score_tile::<L, E, 3, T>(lanes, q, keys, j, out, stride),
            _ => score_tile::<L, E, 4, T>(lanes, q, keys, j, out, stride),
        };
    }
}

/// R queries against T positions; answers R.
#[inline(always)]
fn score_tile<L: Lanes, E: Unit, const R: usize, const T: usize>(
    lanes: L,
    q: Matrix<'_>,
    keys: [(Strip<'_, E>, usize); 2],
    j: usize,
    scores: &mut [f32],
    stride: usize,
) -> usize {
    let mut sums = [[lanes.splat(0.0); T]; R];
    let mut first = 0;
    for (strip, padded) in keys {
        let rows: [&[E]; T] = std::array::from_fn(|t| strip.row(j + t));
        for u in 0..strip.width.div_ceil(L::UNIT) {
            let keys: [[L::F; 2]; T] = std::array::from_fn(|t| unit(lanes, rows[t], u));
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = lanes.unit_f32(&q.cells[r * q.stride + first + u * L::UNIT..]);
                for (sum, key) in sums.iter_mut().zip(&keys) {
                    *sum = lanes.fma(q[1], key[1], lanes.fma(q[0], key[0], *sum));
                }
            }
        }
        first += padded;
    }
    for (r, sums) in sums.iter().enumerate() {
        for (t, sum) in sums.iter().enumerate() {
            scores[r * stride + t] = lanes.sum(*sum);
        }
    }
    R
}

/// `o[i] += sum over j of p[i][j] v[j]`, where `o[i]` begins at `i * o_stride`.
#[inline(always)]
pub(crate) fn accumulate<L: Lanes, E: Unit>(
    lanes: L,
    p: Matrix<'_>,
    rows: usize,
    values: Strip<'_, E>,
    o: &mut [f32],
    o_stride: usize,
) {
    let units = values.width.div_ceil(L::UNIT);
    let mut u = 0;
    while u < units {
        let mut i = 0;
        while i < rows {
            let p = Matrix { cells: &p.cells[i * p.stride..], stride: p.stride };
            let o = &mut o[i * o_stride + u * L::UNIT..];
            i += match (rows - i, units - u) {
                (1, 1) => accumulate_tile::<L, E, 1, 1>(lanes, p, values, u, o, o_stride),
                (1, _) => accumulate_tile::<L, E, 1, 2>(lanes, p, values, u, o, o_stride),
                (2, 1) => accumulate_tile::<L, E, 2, 1>(lanes, p, values, u, o, o_stride),
                (2, _) => accumulate_tile::<L, E, 2, 2>(lanes, p, values, u, o, o_stride),
                (3, 1) => accumulate_tile::<L, E, 3, 1>(lanes, p, values, u, o, o_stride),
                (3, _) => accumulate_tile::<L, E, 3, 2>(lanes, p, values, u, o, o_stride),
                (_, 1) => accumulate_tile::<L, E, 4, 1>(lanes, p, values, u, o, o_stride),
                (_, _) => accumulate_tile::<L, E, 4, 2>(lanes, p, values, u, o, o_stride),
            };
        }
        u += 2;
    }
}

/// R rows of sums over C units from unit `u` of the values; answers R.
#[inline(always)]
fn accumulate_tile<L: Lanes, E: Unit, const R: usize, const C: usize>(
    lanes: L,
    p: Matrix<'_>,
    values: Strip<'_, E>,
    u: usize,
    o: &mut [f32],
    o_stride: usize,
) -> usize {
    let mut sums: [[[L::F; 2]; C]; R] = std::array::from_fn(|r| {
        std::array::from_fn(|c| lanes.unit_f32(&o[r * o_stride + c * L::UNIT..]))
    });
    for j in 0..values.len() {
        let row = values.row(j);
        let v: [[L::F; 2]; C] = std::array::from_fn(|c| unit(lanes, row, u + c));
        for (r, sums) in sums.iter_mut().enumerate() {
            let p = lanes.splat(p.cells[r * p.stride + j]);
            for (sum, v) in sums.iter_mut().zip(&v) {
                *sum = [lanes.fma(p, v[0], sum[0]), lanes.fma(p, v[1], sum[1])];
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            let o = &mut o[r * o_stride + c * L::UNIT..];
            lanes.store(o, sum[0]);
            lanes.store(&mut o[L::LANES..], sum[1]);
        }
    }
    R
}

/// As [`accumulate`], for one row and only the positions whose bit is set: what is not seen is not
/// touched, whatever it holds.
pub(crate) fn accumulate_seen<L: Lanes, E: Unit>(
    lanes: L,
    p: &[f32],
    seen: u64,
    values: Strip<'_, E>,
    o: &mut [f32],
) {
    for j in (0..values.len()).filter(|j| seen >> j & 1 == 1) {
        let (row, p) = (values.row(j), lanes.splat(p[j]));
        for u in 0..row.len().div_ceil(L::UNIT) {
            let v = unit(lanes, row, u);
            let o = &mut o[u * L::UNIT..];
            let sum = lanes.unit_f32(o);
            lanes.store(o, lanes.fma(p, v[0], sum[0]));
            lanes.store(&mut o[L::LANES..], lanes.fma(p, v[1], sum[1]));
        }
    }
}

/// Writes one row in f32, in the order of the units.
#[inline(always)]
pub(crate) fn widen_row<L: Lanes, E: Unit>(lanes: L, row: &[E], out: &mut [f32]) {
    for u in 0..row.len().div_ceil(L::UNIT) {
        let [first, second] = unit(lanes, row, u);
        let out = &mut out[u * L::UNIT..];
        lanes.store(out, first);
        lanes.store(&mut out[L::LANES..], second);
    }
}

/// True if every number of the strip is finite.
pub(crate) fn finite<E: Unit>(strip: Strip<'_, E>) -> bool {
    (0..strip.len()).all(|j| strip.row(j).iter().all(|x| x.to_f32().is_finite()))
}
