//! Dot kernels: some rows of queries against the rows of a block, straight from the cache.
//!
//! Queries and sums are in the order of the units (see [`Unit`]), so that a row of the cache is
//! used as it is loaded.

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constant extents by index are what keeps arrays of sums in registers"
)]

use crate::ahead::{Ahead, Share};
use crate::lanes::{Lanes, Unit};

use crate::strip::Strip;

/// Positions during whose scores one share of what is read next is asked for.
const RUN: usize = 16;

/// Some rows of an array.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, E = f32> {
    pub(crate) cells: &'a [E],
    pub(crate) stride: usize,
}

impl<'a, E> Matrix<'a, E> {
    /// The rows from `i` on.
    #[inline(always)]
    pub(crate) fn after(self, i: usize) -> Matrix<'a, E> {
        Matrix { cells: &self.cells[i * self.stride..], ..self }
    }

    /// Panics unless there are so many rows of so many elements.
    #[inline(always)]
    pub(crate) fn check(self, rows: usize, width: usize) {
        assert!((rows - 1) * self.stride + width <= self.cells.len(), "rows of the matrix");
    }
}

/// The unit at `at`, without looking whether there is one: that, in the innermost loops, takes
/// more operations than the arithmetic.
///
/// # Safety
/// `row` must reach to `at + L::UNIT`.
#[inline(always)]
unsafe fn unit_at<L: Lanes, E: Unit>(lanes: L, row: &[E], at: usize) -> [L::F; 2] {
    // SAFETY: the caller's promise.
    E::unit(lanes, unsafe { row.get_unchecked(at..at + L::UNIT) })
}

/// What is left of a row behind its whole units, filled up with zeros.
///
/// Kept out of the loops over whole units: a call there would cost them their registers.
#[inline(always)]
fn last_unit<L: Lanes, E: Unit>(lanes: L, rest: &[E]) -> [L::F; 2] {
    let mut padded = [E::zero(); 32];
    padded[..rest.len()].copy_from_slice(rest);
    E::unit(lanes, &padded)
}

/// `scores[i][j] = <q[i], k[j]>` for `rows` queries and every position of the strips, which are
/// the two pieces of a key. Meanwhile what is due is asked for.
#[inline(always)]
pub(crate) fn scores<L: Lanes, E: Unit>(
    lanes: L,
    q: Matrix<'_>,
    rows: usize,
    keys: [(Strip<'_, E>, usize); 2],
    scores: &mut [f32],
    stride: usize,
    ahead: &mut Ahead<'_>,
) {
    // Code for partial units takes registers even where it never runs.
    if keys.iter().any(|(strip, _)| !strip.width().is_multiple_of(L::UNIT)) {
        score_all::<L, E, true>(lanes, q, rows, keys, scores, stride, ahead);
    } else {
        score_all::<L, E, false>(lanes, q, rows, keys, scores, stride, ahead);
    }
}

#[inline(always)]
fn score_all<L: Lanes, E: Unit, const TAILS: bool>(
    lanes: L,
    q: Matrix<'_>,
    rows: usize,
    keys: [(Strip<'_, E>, usize); 2],
    scores: &mut [f32],
    stride: usize,
    ahead: &mut Ahead<'_>,
) {
    let (tiles, positions) = (rows.div_ceil(4), keys[0].0.len());
    let units: usize = keys.iter().map(|(strip, _)| strip.width().div_ceil(L::UNIT)).sum();
    let together = if L::REGISTERS >= 32 { 4 } else { 2 };
    for first in (0..positions).step_by(RUN) {
        let (mut j, end) = (first, positions.min(first + RUN));
        let work = (end - first) * tiles * units;
        let mut share = ahead.share(work, (end - first).div_ceil(together) * tiles);
        let share = &mut share;
        while j + together <= end {
            if L::REGISTERS >= 32 {
                score_positions::<L, E, 4, TAILS>(lanes, q, rows, keys, j, scores, stride, share);
            } else {
                score_positions::<L, E, 2, TAILS>(lanes, q, rows, keys, j, scores, stride, share);
            }
            j += together;
        }
        for j in j..end {
            score_positions::<L, E, 1, TAILS>(lanes, q, rows, keys, j, scores, stride, share);
        }
    }
}

#[inline(always)]
fn score_positions<L: Lanes, E: Unit, const T: usize, const TAILS: bool>(
    lanes: L,
    q: Matrix<'_>,
    rows: usize,
    keys: [(Strip<'_, E>, usize); 2],
    j: usize,
    scores: &mut [f32],
    stride: usize,
    share: &mut Share<'_>,
) {
    let mut i = 0;
    while i < rows {
        share.ask(lanes);
        let q = q.after(i);
        let out = &mut scores[i * stride + j..];
        i += match rows - i {
            1 => score_tile::<L, E, 1, T, TAILS>(lanes, q, keys, j, out, stride),
            2 => score_tile::<L, E, 2, T, TAILS>(lanes, q, keys, j, out, stride),
            3 => score_tile::<L, E, 3, T, TAILS>(lanes, q, keys, j, out, stride),
            _ => score_tile::<L, E, 4, T, TAILS>(lanes, q, keys, j, out, stride),
        };
    }
}

/// R queries against T positions; answers R.
#[inline(always)]
fn score_tile<L: Lanes, E: Unit, const R: usize, const T: usize, const TAILS: bool>(
    lanes: L,
    q: Matrix<'_>,
    keys: [(Strip<'_, E>, usize); 2],
    j: usize,
    scores: &mut [f32],
    stride: usize,
) -> usize {
    let [(first, padded), (second, _)] = keys;
    let rest = Matrix { cells: &q.cells[padded..], stride: q.stride };
    let mut sums = [[lanes.splat(0.0); T]; R];
    if TAILS {
        sums = score_piece::<L, E, R, T, true>(lanes, q, first, j, sums);
        sums = score_piece::<L, E, R, T, true>(lanes, rest, second, j, sums);
    } else {
        sums = score_piece::<L, E, R, T, false>(lanes, q, first, j, sums);
        sums = score_piece::<L, E, R, T, false>(lanes, rest, second, j, sums);
    }
    // Four sums across lanes at once, of as many rows as it takes.
    let all = sums.as_flattened();
    for i in (0..R * T).step_by(4) {
        if let Some(four) = all[i..].first_chunk() {
            for (k, score) in lanes.sum4(*four).into_iter().enumerate() {
                scores[(i + k) / T * stride + (i + k) % T] = score;
            }
        } else {
            for (k, sum) in all.iter().enumerate().skip(i) {
                scores[k / T * stride + k % T] = lanes.sum(*sum);
            }
        }
    }
    R
}

/// Adds one piece of the keys to R times T sums; its last unit is partial only if `TAIL`.
#[inline(always)]
fn score_piece<L: Lanes, E: Unit, const R: usize, const T: usize, const TAIL: bool>(
    lanes: L,
    q: Matrix<'_>,
    strip: Strip<'_, E>,
    j: usize,
    mut sums: [[L::F; T]; R],
) -> [[L::F; T]; R] {
    let rows: [&[E]; T] = std::array::from_fn(|t| strip.row(j + t));
    let whole = strip.width() / L::UNIT * L::UNIT;
    q.check(R, strip.width().next_multiple_of(L::UNIT));
    for at in (0..whole).step_by(L::UNIT) {
        let mut keys = [[lanes.splat(0.0); 2]; T];
        for t in 0..T {
            // SAFETY: each row is `width` long, of which `whole` is no more.
            keys[t] = unsafe { unit_at(lanes, rows[t], at) };
        }
        for r in 0..R {
            // SAFETY: `check` has seen R rows of `whole` elements at least.
            let q: [L::F; 2] = unsafe { unit_at(lanes, q.cells, r * q.stride + at) };
            for t in 0..T {
                sums[r][t] = lanes.fma(q[1], keys[t][1], lanes.fma(q[0], keys[t][0], sums[r][t]));
            }
        }
    }
    if TAIL && whole < strip.width() {
        for t in 0..T {
            let key = last_unit(lanes, &rows[t][whole..]);
            for r in 0..R {
                let q = lanes.unit_f32(&q.cells[r * q.stride + whole..]);
                sums[r][t] = lanes.fma(q[1], key[1], lanes.fma(q[0], key[0], sums[r][t]));
            }
        }
    }
    sums
}

/// `o[i] += sum over j of p[i][j] v[j]`, where `o[i]` begins at `i * o_stride`. Meanwhile what is due is
/// asked for.
#[inline(always)]
pub(crate) fn accumulate<L: Lanes, E: Unit>(
    lanes: L,
    p: Matrix<'_>,
    rows: usize,
    values: Strip<'_, E>,
    o: &mut [f32],
    o_stride: usize,
    ahead: &mut Ahead<'_>,
) {
    // Four rows of four vectors are sixteen registers.
    let wide = L::REGISTERS >= 32 && values.width() >= 2 * L::UNIT;
    let run = if wide { 2 * L::UNIT } else { L::UNIT };
    let mut column = 0;
    while column < values.width() {
        // What two units leave at the end of a row is one.
        let units = if values.width() - column >= run { run / L::UNIT } else { 1 };
        let mut i = 0;
        while i < rows {
            let p = p.after(i);
            let o = &mut o[i * o_stride + column..];
            let from = Columns { values, column, units, ahead: &mut *ahead };
            i += match rows - i {
                1 => accumulate_rows::<L, E, 1>(lanes, p, from, o, o_stride),
                2 => accumulate_rows::<L, E, 2>(lanes, p, from, o, o_stride),
                3 => accumulate_rows::<L, E, 3>(lanes, p, from, o, o_stride),
                _ => accumulate_rows::<L, E, 4>(lanes, p, from, o, o_stride),
            };
        }
        column += units * L::UNIT;
    }
}

/// Some columns of values, and what is asked for while they are added.
struct Columns<'r, 'a, E> {
    values: Strip<'r, E>,
    column: usize,
    /// Units from `column` on; the last of a row may be partial if it is the only one.
    units: usize,
    ahead: &'r mut Ahead<'a>,
}

/// R rows of sums over some units of values; answers R.
#[inline(always)]
fn accumulate_rows<L: Lanes, E: Unit, const R: usize>(
    lanes: L,
    p: Matrix<'_>,
    mut from: Columns<'_, '_, E>,
    o: &mut [f32],
    o_stride: usize,
) -> usize {
    let (column, units, width) = (from.column, from.units, from.values.width());
    assert!(units == 1 || column + units * L::UNIT <= width, "whole units");
    // SAFETY: a row has as many whole units from `column` on as are asked for: `units`, or one
    // where the branch says so.
    let unit = |row: &[E], i: usize| unsafe { unit_at(lanes, row, column + i * L::UNIT) };
    match units {
        2 => {
            let pair = |row: &[E]| {
                let ([a, b], [c, d]) = (unit(row, 0), unit(row, 1));
                [a, b, c, d]
            };
            accumulate_tile::<L, E, R, 4>(lanes, p, &mut from, pair, o, o_stride);
        }
        _ if column + L::UNIT <= width => {
            let one = |row: &[E]| unit(row, 0);
            accumulate_tile::<L, E, R, 2>(lanes, p, &mut from, one, o, o_stride);
        }
        _ => {
            let rest = |row: &[E]| last_unit(lanes, &row[column..]);
            accumulate_tile::<L, E, R, 2>(lanes, p, &mut from, rest, o, o_stride);
        }
    }
    R
}

/// R rows of sums over W vectors of values, which `load` takes from a row of the cache.
#[inline(always)]
fn accumulate_tile<L: Lanes, E: Unit, const R: usize, const W: usize>(
    lanes: L,
    p: Matrix<'_>,
    from: &mut Columns<'_, '_, E>,
    load: impl Fn(&[E]) -> [L::F; W],
    o: &mut [f32],
    o_stride: usize,
) {
    let values = from.values;
    let mut share = from.ahead.share(from.units * values.len(), values.len());
    let mut sums = [[lanes.splat(0.0); W]; R];
    for r in 0..R {
        for w in 0..W {
            sums[r][w] = lanes.load(&o[r * o_stride + w * L::LANES..]);
        }
    }
    p.check(R, values.len());
    for j in 0..values.len() {
        share.ask(lanes);
        let v = load(values.row(j));
        for r in 0..R {
            // SAFETY: `check` has seen R rows with a number for every position.
            let p = lanes.splat(*unsafe { p.cells.get_unchecked(r * p.stride + j) });
            for w in 0..W {
                sums[r][w] = lanes.fma(p, v[w], sums[r][w]);
            }
        }
    }
    for r in 0..R {
        for w in 0..W {
            lanes.store(&mut o[r * o_stride + w * L::LANES..], sums[r][w]);
        }
    }
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
        for (unit, o) in row.chunks(L::UNIT).zip(o.chunks_exact_mut(L::UNIT)) {
            let v = last_unit(lanes, unit);
            let sum = lanes.unit_f32(o);
            lanes.store(o, lanes.fma(p, v[0], sum[0]));
            lanes.store(&mut o[L::LANES..], lanes.fma(p, v[1], sum[1]));
        }
    }
}

/// Writes one row in f32, in the order of the units.
#[inline(always)]
pub(crate) fn widen_row<L: Lanes, E: Unit>(lanes: L, row: &[E], out: &mut [f32]) {
    let whole = row.len() / L::UNIT * L::UNIT;
    let units = row[..whole].chunks_exact(L::UNIT).zip(out.chunks_exact_mut(L::UNIT));
    for (unit, out) in units {
        let [first, second] = E::unit(lanes, unit);
        lanes.store(out, first);
        lanes.store(&mut out[L::LANES..], second);
    }
    if whole < row.len() {
        let [first, second] = last_unit(lanes, &row[whole..]);
        lanes.store(&mut out[whole..], first);
        lanes.store(&mut out[whole + L::LANES..], second);
    }
}

/// True if every number of the strip is finite.
pub(crate) fn finite<E: Unit>(strip: Strip<'_, E>) -> bool {
    (0..strip.len()).all(|j| strip.row(j).iter().all(|x| x.to_f32().is_finite()))
}
