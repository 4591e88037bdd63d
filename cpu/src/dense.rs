//! Blocks that meet many rows: keys and values are widened to f32 once for all of them, and both
//! products are faer's.
//!
//! A dot kernel widens every key again for each four rows and adds across lanes for each score. From
//! [`Lanes::DENSE_ROWS`] rows on it is cheaper to write the block down in f32 and to multiply
//! matrices.

use crate::lanes::{Lanes, Unit};
use crate::plan::{Padded, UNIT};
use crate::rows::{Matrix, widen_row};
use crate::schedule::BLOCK;
use crate::strip::Strip;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use grouped_attention::Row;

/// Elements between rows, so that those of a column do not fall into a few sets of the first-level
/// cache.
const GAP: usize = 16;

/// Keys and values of a block in f32, in the order of the units.
#[derive(Debug)]
pub(crate) struct Wide<'a> {
    cells: &'a [f32],
    /// Where values and both pieces of keys begin.
    starts: [usize; 3],
    /// From a value to the next, and from a key to the next.
    strides: [usize; 2],
    padded: Padded,
    positions: usize,
}

impl<'a> Wide<'a> {
    /// Elements that a block takes.
    pub(crate) fn elements(padded: Padded) -> usize {
        BLOCK * (padded.value + padded.q_stride() + 2 * GAP)
    }

    /// Writes a block down. What pads rows in `out` must be zeros, and stays so.
    #[inline(always)]
    pub(crate) fn new<L: Lanes, E: Unit>(
        lanes: L,
        row: Row,
        keys: [Strip<'_, E>; 2],
        values: Strip<'_, E>,
        out: &'a mut [f32],
    ) -> Wide<'a> {
        let padded = Padded::new(row);
        // A state's leading elements are its key's. In the order of the units they lead too where
        // they are whole units, or all.
        let tied = match row {
            Row::Tied { n, s, .. } => n == s || n.is_multiple_of(UNIT),
            Row::Separate { .. } => false,
        };
        let (starts, strides) = if tied {
            let stride = padded.value + padded.key[1] + GAP;
            ([0, 0, padded.value], [stride; 2])
        } else {
            let strides = [padded.value + GAP, padded.q_stride() + GAP];
            let key = BLOCK * strides[0];
            ([0, key, key + padded.key[0]], strides)
        };
        widen(lanes, values, &mut out[starts[0]..], strides[0]);
        if !tied {
            widen(lanes, keys[0], &mut out[starts[1]..], strides[1]);
        }
        widen(lanes, keys[1], &mut out[starts[2]..], strides[1]);
        Wide { cells: out, starts, strides, padded, positions: values.len() }
    }

    /// `scores[i][j] = <q[i], k[j]>` for `rows` queries, `[rows, BLOCK]`.
    pub(crate) fn scores(&self, q: Matrix<'_>, rows: usize, scores: &mut [f32]) {
        let [_, first, second] = self.starts;
        let [depth, more] = self.padded.key;
        let mut multiply = |skip: usize, start: usize, depth: usize, add| {
            let q = Matrix { cells: &q.cells[skip..], ..q };
            let q = view(q, [rows, depth]);
            let keys = Matrix { cells: &self.cells[start..], stride: self.strides[1] };
            let keys = view(keys, [self.positions, depth]).transpose();
            let scores = view_mut(scores, [rows, self.positions], BLOCK);
            matmul(scores, add, q, keys, 1.0, Par::Seq);
        };
        if first + depth == second {
            multiply(0, first, depth + more, Accum::Replace);
        } else {
            multiply(0, first, depth, Accum::Replace);
            multiply(depth, second, more, Accum::Add);
        }
    }

    /// `o[i] += sum over j of p[i][j] v[j]` for `rows` rows that are `stride` apart.
    pub(crate) fn accumulate(&self, p: Matrix<'_>, rows: usize, o: &mut [f32], stride: usize) {
        let p = view(p, [rows, self.positions]);
        let values = Matrix { cells: self.cells, stride: self.strides[0] };
        let values = view(values, [self.positions, self.padded.value]);
        let o = view_mut(o, [rows, self.padded.value], stride);
        matmul(o, Accum::Add, p, values, 1.0, Par::Seq);
    }
}

/// Writes the rows of a strip `stride` apart.
#[inline(always)]
fn widen<L: Lanes, E: Unit>(lanes: L, strip: Strip<'_, E>, out: &mut [f32], stride: usize) {
    for (j, out) in out.chunks_mut(stride).take(strip.len()).enumerate() {
        widen_row(lanes, strip.row(j), out);
    }
}

/// A row-major matrix.
///
/// Made from its strides: `from_row_major_slice_with_stride` of faer 0.24.4 takes the stride for
/// that of columns, and its mutable twin lets a product write past the slice.
fn view(matrix: Matrix<'_>, [rows, columns]: [usize; 2]) -> MatRef<'_, f32> {
    matrix.check(rows, columns);
    let stride = matrix.stride as isize;
    // SAFETY: `check` has seen that the last element of the last row is within the slice.
    unsafe { MatRef::from_raw_parts(matrix.cells.as_ptr(), rows, columns, stride, 1) }
}

/// A row-major matrix that is written.
fn view_mut(cells: &mut [f32], [rows, columns]: [usize; 2], stride: usize) -> MatMut<'_, f32> {
    Matrix { cells, stride }.check(rows, columns);
    assert!(columns <= stride, "rows that do not overlap");
    // SAFETY: `check` has seen that the last element of the last row is within the slice, whose
    // borrow lasts as long as the view.
    unsafe { MatMut::from_raw_parts_mut(cells.as_mut_ptr(), rows, columns, stride as isize, 1) }
}
