//! A head's sums of few rows, as one product of values for even and odd columns leaves them: `[unit, row, 32]` instead of
//! `[16, stride]`, whose first four or eight rows they are.

use crate::amx::{Height, ROWS};
use crate::plan::UNIT;

/// Widest values whose sums are ever so: as many as room for scores has place for.
pub(crate) const WIDEST: usize = 1024;

/// The numbers that a head's sums are then, of so many.
pub(crate) fn numbers(height: Height, sums: usize) -> usize {
    height.rows() * (sums / ROWS - UNIT)
}

/// From `[16, stride]`, whose other rows are lost.
pub(crate) fn by_units(height: Height, sums: &mut [f32], room: &mut [f32]) {
    let (rows, stride) = (height.rows(), sums.len() / ROWS);
    let room = &mut room[..numbers(height, sums.len())];
    for (unit, out) in room.chunks_exact_mut(rows * UNIT).enumerate() {
        for (row, out) in sums.chunks_exact(stride).zip(out.chunks_exact_mut(UNIT)) {
            out.copy_from_slice(&row[unit * UNIT..][..UNIT]);
        }
    }
    sums[..room.len()].copy_from_slice(room);
}

/// To `[16, stride]`; the other rows, and what stands behind a row's sums, are anything.
pub(crate) fn by_rows(height: Height, sums: &mut [f32], room: &mut [f32]) {
    let (rows, stride) = (height.rows(), sums.len() / ROWS);
    let room = &mut room[..numbers(height, sums.len())];
    room.copy_from_slice(&sums[..room.len()]);
    for (unit, all) in room.chunks_exact(rows * UNIT).enumerate() {
        for (row, x) in sums.chunks_exact_mut(stride).zip(all.chunks_exact(UNIT)) {
            row[unit * UNIT..][..UNIT].copy_from_slice(x);
        }
    }
}

/// Multiplies each row by its factor.
pub(crate) fn rescale(height: Height, factors: &[f32; ROWS], sums: &mut [f32]) {
    let numbers = numbers(height, sums.len());
    for unit in sums[..numbers].chunks_exact_mut(height.rows() * UNIT) {
        for (row, factor) in unit.chunks_exact_mut(UNIT).zip(factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_units_and_each_has_its_factor() {
        for height in [Height::Four, Height::Eight] {
            let stride = 3 * UNIT + UNIT;
            let whole = |row: usize, i: usize| row < height.rows() && i < stride - UNIT;
            let number =
                |row: usize, i: usize| if whole(row, i) { (1000 * row + i) as f32 } else { 0.0 };
            let numbers = || (0..ROWS).flat_map(|row| (0..stride).map(move |i| (row, i)));
            let rows: Vec<f32> = numbers().map(|(row, i)| number(row, i)).collect();
            let (mut sums, mut room) = (rows.clone(), vec![7.0; WIDEST * height.rows()]);
            by_units(height, &mut sums, &mut room);
            let unit = height.rows() * UNIT;
            assert_eq!(sums[..2], [0.0, 1.0]);
            assert_eq!(sums[UNIT], 1000.0, "the next row");
            assert_eq!(sums[2 * unit + UNIT + 3], number(1, 2 * UNIT + 3));
            let factors = std::array::from_fn(|row| (row + 1) as f32);
            rescale(height, &factors, &mut sums);
            by_rows(height, &mut sums, &mut room);
            for (row, i) in numbers().filter(|(row, i)| whole(*row, *i)) {
                assert_eq!(sums[row * stride + i], number(row, i) * factors[row], "{row}, {i}");
            }
        }
    }
}
