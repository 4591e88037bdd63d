//! What of a block is prepared once, where many rows are multiplied in pairs of bf16 ([`crate::pairs`]): keys
//! turned, so that a position stands in a lane and nothing is added across lanes, and values side by side.

use crate::ahead::Ahead;
use crate::amx::Tile;
use crate::lanes::{Avx512, Lanes};
use crate::pack::{load, side_by_side, store, transpose, words};
use crate::pairs::{UNIT, dot, unit_at};
use crate::plan::{Padded, with_capacity};

use crate::rows::Matrix;
use crate::schedule::BLOCK;
use crate::strip::Strip;
use grouped_attention::EngineError;
use half::bf16;
use std::arch::x86_64::*;

/// Positions of a vector of scores.
const LANES: usize = 16;

/// Vectors of positions that are turned together, and share what is loaded of the queries.
const VECTORS: usize = 2;

/// Query rows that share what is loaded of the keys.
const ROWS: usize = 8;

/// Elements of a key that take as long to turn as a row gains.
///
/// PERF: one core of a Zen 4, 64 positions, scores of rows as they are and turned, ns: 128 elements, 8 / 16 / 32
/// rows 1105, 1229 / 1988, 1810 / 3757, 2962; 320 elements, 64 rows 13392, 12622. One vector of positions at a
/// time takes 16522 there: a query's pair is broadcast for each product, not for two.
const ELEMENTS_A_ROW: usize = 8;

/// Rows from which values are put side by side once for all.
///
/// PERF: as above, 16 / 32 rows of 128 columns 1390, 1472 / 2734, 2663; 64 rows of 256 columns 10990, 9856.
const ROWS_OF_VALUES: usize = 32;

/// Room for what is prepared of a block.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Keys, `[units, VECTORS]` tiles of `[pair of elements, position]`.
    keys: Vec<[Tile<u32>; VECTORS]>,
    /// Two units of values, `[pairs of positions]`.
    values: Vec<Paired>,
}

/// Two positions side by side: the even columns of a unit, the odd ones, and those of the next unit.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Paired(pub(crate) [[u32; 16]; 4]);

impl Prepared {
    pub(crate) fn new(padded: Padded) -> Result<Prepared, EngineError> {
        let units = padded.q_stride() / UNIT;
        let (mut keys, mut values) = (with_capacity(units)?, with_capacity(BLOCK / 2)?);
        keys.resize(units, [Tile([[0; 16]; 16]); VECTORS]);
        values.resize(BLOCK / 2, Paired([[0; 16]; 4]));
        Ok(Prepared { keys, values })
    }

    /// True where so many rows are enough to turn keys for.
    pub(crate) fn turning_pays(rows: usize, keys: &[(Strip<'_, bf16>, usize); 2]) -> bool {
        rows * ELEMENTS_A_ROW >= keys[0].0.width() + keys[1].0.width()
    }

    /// True where so many rows are enough to put columns from `column` on side by side for.
    pub(crate) fn pairing_pays(rows: usize, values: &Strip<'_, bf16>, column: usize) -> bool {
        rows >= ROWS_OF_VALUES && values.width() - column > UNIT
    }

    /// Scores of rows against a block's keys, as [`Pairs::scores`](crate::pairs::Pairs::scores).
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) fn scores(
        &mut self,
        lanes: Avx512,
        q: Matrix<'_, bf16>,
        keys: [Strip<'_, bf16>; 2],
        scores: &mut [[f32; BLOCK]],
        ahead: &mut Ahead<'_>,
    ) {
        for j in (0..keys[0].len()).step_by(VECTORS * LANES) {
            let units = self.turn(keys, j);
            for (group, out) in scores.chunks_mut(ROWS).enumerate() {
                ahead.share(VECTORS * LANES * units * out.len().div_ceil(4), 1).ask(lanes);
                score_tile(lanes, q.after(group * ROWS), &self.keys[..units], j, out);
            }
        }
    }

    /// Turns keys of positions from `j` on, zeros behind the last, and answers how many units they have.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn turn(&mut self, keys: [Strip<'_, bf16>; 2], j: usize) -> usize {
        let mut units = 0;
        for strip in keys.into_iter().filter(|strip| strip.width() > 0) {
            let tiles = &mut self.keys[units..][..strip.width().div_ceil(UNIT)];
            units += tiles.len();
            for vector in 0..VECTORS {
                let first = j + vector * LANES;
                let rows: [&[bf16]; LANES] = std::array::from_fn(|i| {
                    if first + i < strip.len() { strip.row(first + i) } else { &[] }
                });
                for (unit, tiles) in tiles.iter_mut().enumerate() {
                    let at = unit * UNIT;
                    let part: [_; LANES] =
                        if first + LANES <= strip.len() && at + UNIT <= strip.width() {
                            // SAFETY: all rows are as wide as the strip.
                            std::array::from_fn(|i| unsafe { unit_at(rows[i], at) })
                        } else {
                            std::array::from_fn(|i| load(rows[i].get(at..).unwrap_or(&[])))
                        };
                    for (row, words) in tiles[vector].0.iter_mut().zip(transpose(part)) {
                        store(row, words);
                    }
                }
            }
        }
        units
    }

    /// Two units of values from `column` on, zeros behind the last column and the last position.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(crate) fn values(&mut self, values: Strip<'_, bf16>, column: usize) -> &[Paired] {
        for (j, Paired(pair)) in (0..values.len()).step_by(2).zip(&mut self.values) {
            let a = &values.row(j)[column..];
            let b = if j + 1 < values.len() { &values.row(j + 1)[column..] } else { &[] };
            for (row, words) in pair.iter_mut().zip(side_by_side(a, b)) {
                store(row, words);
            }
        }
        &self.values
    }
}

/// Up to [`ROWS`] queries against the turned positions from `j` on. Where there are fewer rows the last is multiplied
/// again, and the result dropped.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn score_tile(
    lanes: Avx512,
    q: Matrix<'_, bf16>,
    keys: &[[Tile<u32>; VECTORS]],
    j: usize,
    scores: &mut [[f32; BLOCK]],
) {
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let last = scores.len() - 1;
    for (unit, tiles) in keys.iter().enumerate() {
        let q: [&[bf16; UNIT]; ROWS] = std::array::from_fn(|row| {
            let unit = &q.cells[row.min(last) * q.stride + unit * UNIT..];
            unit.first_chunk().expect("queries are padded to whole units")
        });
        for pair in 0..UNIT / 2 {
            let keys = tiles.each_ref().map(|tile| words(&tile.0[pair]));
            for row in 0..ROWS {
                let [a, b] = [2 * pair, 2 * pair + 1].map(|i| i32::from(q[row][i].to_bits()));
                let q = _mm512_set1_epi32(a | b << 16);
                for vector in 0..VECTORS {
                    sums[row][vector] = dot(sums[row][vector], q, keys[vector]);
                }
            }
        }
    }
    for (row, sums) in scores.iter_mut().zip(sums) {
        for (vector, sum) in sums.into_iter().enumerate() {
            lanes.store(&mut row[j + vector * LANES..], sum);
        }
    }
}
