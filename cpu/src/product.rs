//! Probabilities times values on the matrix unit: values packed for all rows, some columns at a time,
//! or as they lie in the cache.

use crate::ahead::Ahead;
use crate::amx::{
    COLUMNS_OF_FEW, DEPTH, Height, ROWS, SPREAD, Tile, Tiles, ValueRows, values_1x4, values_few,
    values_in_place,
};
use crate::lanes::Avx512;
use crate::matrix::STEPS;
use crate::pack::{COLUMN_TILES, COLUMNS};
use crate::strip::Strip;
use half::bf16;

/// Probabilities times [`COLUMNS`] columns of the values of one head and block.
pub(crate) struct Product<'a> {
    pub(crate) tiles: &'a Tiles,
    /// `[row tiles, STEPS]`.
    pub(crate) probabilities: &'a [Tile<u32>],
    /// `[steps, COLUMN_TILES]`.
    pub(crate) values: &'a [Tile<u32>],
    /// The first of the columns.
    pub(crate) column: usize,
}

impl Product<'_> {
    /// Adds the products of one row tile to its sums, `[16, stride]`. Columns past the values, which are zeros,
    /// are added to what stands behind them.
    pub(crate) fn add(
        &self,
        row_tile: usize,
        sums: &mut [f32],
        (lanes, ahead): (Avx512, &mut Ahead<'_>),
    ) {
        let stride = sums.len() / ROWS;
        let steps = self.values.len() / COLUMN_TILES;
        let p = self.probabilities[row_tile * STEPS..][..steps].as_ptr();
        let out = sums[self.column..][..(ROWS - 1) * stride + COLUMNS].as_mut_ptr();
        let products = COLUMN_TILES * steps;
        let asked = ahead.with_products(lanes, products, products);
        let (v, stride) = (self.values.as_ptr(), stride * size_of::<f32>());
        // SAFETY: the slices are as long as the tiles that are read and written.
        unsafe { values_1x4(self.tiles, p, v, steps, out, stride, asked) }
    }
}

/// The values of one head and block as they lie in the cache, by steps of 32 positions.
pub(crate) struct InPlace<'a> {
    strip: Strip<'a, bf16>,
    steps: [*const bf16; STEPS],
    /// Bytes from a position to the next.
    stride: usize,
    /// Rows that count.
    height: Height,
}

impl<'a> InPlace<'a> {
    /// Of whole steps, each within a page.
    pub(crate) fn new(strip: Strip<'a, bf16>, height: Height) -> InPlace<'a> {
        // Positions of a page lie at equal distances.
        let stride = strip.place(1).1 - strip.place(0).1;
        let mut steps = [std::ptr::null(); STEPS];
        for (step, out) in steps[..strip.len() / DEPTH].iter_mut().enumerate() {
            let (cells, start) = strip.place(step * DEPTH);
            *out = cells[start..][..(DEPTH - 1) * stride + strip.width()].as_ptr();
        }
        let stride = stride * size_of::<bf16>();
        InPlace { strip, steps, stride, height }
    }

    pub(crate) fn height(&self) -> Height {
        self.height
    }

    /// Adds the products of one tile of rows to its sums, which are those of [`crate::few`] where few count. Of
    /// `probabilities` the first tile is zeros. For what is asked for all of it is so much `work`.
    pub(crate) fn add(
        self,
        tiles: &Tiles,
        probabilities: &[Tile<u32>],
        sums: &mut [f32],
        (lanes, ahead, work): (Avx512, &mut Ahead<'_>, usize),
    ) {
        let stride = sums.len() / ROWS;
        let (width, height) = (self.strip.width(), self.height);
        let few = height.is_few();
        let steps = &self.steps[..self.strip.len() / DEPTH];
        // Of the whole slice, since two bytes before the second tile are read too.
        let p = probabilities[..1 + steps.len() * SPREAD].as_ptr().wrapping_add(1);
        let most = if few { COLUMNS_OF_FEW } else { COLUMNS };
        for column in (0..width).step_by(most) {
            let columns = most.min(width - column);
            // Of even and of odd positions for each tile of values, and where rows are many of even and odd columns.
            let products = if few { 2 } else { 4 } * columns / DEPTH * steps.len();
            let asked = ahead.with_products(lanes, work * columns / width, products);
            let v =
                ValueRows { steps, column: column * size_of::<bf16>(), stride: self.stride, asked };
            if few {
                let out = sums[column * height.rows()..][..columns * height.rows()].as_mut_ptr();
                // SAFETY: the slices, those that `new` took of the cells too, are as long as the tiles that are read
                // and written.
                unsafe { values_few(tiles, height, columns, p, &v, out) }
            } else {
                let out = sums[column..][..(ROWS - 1) * stride + COLUMNS].as_mut_ptr();
                // SAFETY: as above, and a tile of zeros stands before the probabilities.
                unsafe { values_in_place(tiles, p, &v, out, stride * size_of::<f32>()) }
            }
        }
    }
}
