//! Probabilities times values on the matrix unit: values packed for all rows, some columns at a time,
//! or as they lie in the cache.

use crate::ahead::Ahead;
use crate::amx::{
    DEPTH, ROWS, SPREAD, Tile, Tiles, ValueRows, values_1x4, values_2x2, values_in_place,
};
use crate::lanes::Avx512;
use crate::matrix::STEPS;
use crate::strip::Strip;
use half::bf16;
use std::ops::Range;

/// Probabilities times some columns of the values of one head and block.
pub(crate) struct Product<'a> {
    pub(crate) tiles: &'a Tiles,
    /// `[row tiles, STEPS]`.
    pub(crate) probabilities: &'a [Tile<u32>],
    /// `[steps, column tiles]`.
    pub(crate) values: &'a [Tile<u32>],
    pub(crate) columns: Range<usize>,
    /// Elements from a row of sums to the next.
    pub(crate) stride: usize,
}

impl Product<'_> {
    /// Adds the products of one or two row tiles from `tile` on to their sums.
    pub(crate) fn add(
        &self,
        tile: usize,
        count: usize,
        sums: &mut [f32],
        unwanted: &mut [f32],
        (lanes, ahead): (Avx512, &mut Ahead<'_>),
    ) {
        let Product { tiles, stride, ref columns, .. } = *self;
        let stride_bytes = stride * size_of::<f32>();
        let column_tiles = columns.len() / ROWS;
        let v_stride = column_tiles * size_of::<Tile<u32>>();
        let steps = self.values.len() / column_tiles;
        let p = |tile: usize| self.probabilities[tile * STEPS..][..steps].as_ptr();
        // All tiles from the first of the first step to the last of the last.
        let v = |tile: usize, count: usize| {
            self.values[tile..][..(steps - 1) * column_tiles + count].as_ptr()
        };
        let span = |width: usize| (ROWS - 1) * stride + width;
        if count == 1 && columns.len() == 4 * ROWS {
            let out = sums[columns.start..][..span(4 * ROWS)].as_mut_ptr();
            let asked = ahead.while_multiplying(lanes, 4 * steps);
            // SAFETY: the slices are as long as the tiles that are read and written.
            unsafe {
                let (p, v) = (p(tile), v(0, 4));
                values_1x4(tiles, p, v, v_stride, steps, out, stride_bytes, asked);
            }
            return;
        }
        for (pair, column) in columns.clone().step_by(2 * ROWS).enumerate() {
            // One row tile and two columns: the other half of the product is computed in vain.
            let (one, other) = sums.split_at_mut(ROWS * stride);
            let other = if count == 1 { &mut *unwanted } else { other };
            let other = &mut other[if count == 1 { 0 } else { column }..][..span(2 * ROWS)];
            let out = [one[column..][..span(2 * ROWS)].as_mut_ptr(), other.as_mut_ptr()];
            let p = [p(tile), p(tile + count - 1)];
            let v = [v(2 * pair, 1), v(2 * pair + 1, 1)];
            let asked = ahead.while_multiplying(lanes, 4 * steps);
            // SAFETY: as above; the two outputs are apart.
            unsafe { values_2x2(tiles, p, v, v_stride, steps, out, stride_bytes, asked) }
        }
    }
}

/// The values of one head and block as they lie in the cache, by steps of 32 positions.
pub(crate) struct InPlace<'a> {
    strip: Strip<'a, bf16>,
    steps: [*const bf16; STEPS],
    /// Bytes from a position to the next.
    stride: usize,
}

impl<'a> InPlace<'a> {
    /// Of whole steps, each within a page.
    pub(crate) fn new(strip: Strip<'a, bf16>) -> InPlace<'a> {
        // Positions of a page lie at equal distances.
        let stride = strip.place(1).1 - strip.place(0).1;
        let mut steps = [std::ptr::null(); STEPS];
        for (step, first) in steps[..strip.len() / DEPTH].iter_mut().enumerate() {
            let (cells, start) = strip.place(step * DEPTH);
            *first = cells[start..][..(DEPTH - 1) * stride + strip.width()].as_ptr();
        }
        let stride = stride * size_of::<bf16>();
        InPlace { strip, steps, stride }
    }

    /// Adds the products of one tile of rows to its sums.
    pub(crate) fn add(
        &self,
        tiles: &Tiles,
        probabilities: &[Tile<u32>],
        sums: &mut [f32],
        (lanes, ahead): (Avx512, &mut Ahead<'_>),
    ) {
        let stride = sums.len() / ROWS;
        let count = self.strip.len() / DEPTH;
        let p = probabilities[..count * SPREAD].as_ptr();
        let width = 4 * ROWS;
        for column in (0..self.strip.width()).step_by(width) {
            let v = ValueRows {
                steps: self.steps.as_ptr(),
                count,
                column: column * size_of::<bf16>(),
                stride: self.stride,
            };
            let out = sums[column..][..(ROWS - 1) * stride + width].as_mut_ptr();
            let asked = ahead.while_multiplying(lanes, 8 * count);
            // SAFETY: the slices, those that `new` took of the cells too, are as long as the tiles
            // that are read and written.
            unsafe { values_in_place(tiles, p, &v, out, stride * size_of::<f32>(), asked) }
        }
    }
}
