//! Packing for the matrix unit: transposition of 16 by 16 words, and values in pairs of positions.

use crate::ahead::Ahead;
use crate::amx::{DEPTH, ROWS, Tile};
use crate::lanes::Avx512;
use crate::strip::Strip;
use half::bf16;
use std::arch::x86_64::*;

/// Word j of row i becomes word i of row j.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose(mut rows: [__m512i; 16]) -> [__m512i; 16] {
    // Pairs of rows, then fours, within 128 bits; then 128-bit quarters across rows.
    for i in (0..16).step_by(2) {
        let (a, b) = (rows[i], rows[i + 1]);
        rows[i] = _mm512_unpacklo_epi32(a, b);
        rows[i + 1] = _mm512_unpackhi_epi32(a, b);
    }
    for i in (0..16).step_by(4) {
        let [a, b, c, d] = [rows[i], rows[i + 1], rows[i + 2], rows[i + 3]];
        rows[i] = _mm512_unpacklo_epi64(a, c);
        rows[i + 1] = _mm512_unpackhi_epi64(a, c);
        rows[i + 2] = _mm512_unpacklo_epi64(b, d);
        rows[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut out = rows;
    for i in 0..4 {
        let [a, b, c, d] = [rows[i], rows[i + 4], rows[i + 8], rows[i + 12]];
        let ab_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let ab_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        let cd_even = _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d);
        let cd_odd = _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d);
        out[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_even, cd_even);
        out[i + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_odd, cd_odd);
        out[i + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_even, cd_even);
        out[i + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_odd, cd_odd);
    }
    out
}

/// Up to 32 numbers, and zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn load(x: &[bf16]) -> __m512i {
    let mask = if x.len() >= DEPTH { u32::MAX } else { (1 << x.len()) - 1 };
    // SAFETY: no more elements are read than the slice has.
    unsafe { _mm512_maskz_loadu_epi16(mask, x.as_ptr().cast()) }
}

/// Overwrites a row of a tile.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store(row: &mut [u32; 16], v: __m512i) {
    // SAFETY: the array is as long as the store.
    unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), v) }
}

/// Packs the values of a block, `[steps, column tiles]`: row i of a tile holds 16 columns of
/// positions 2i and 2i + 1, side by side. Positions past the strip are zeros. Meanwhile `ahead` is
/// asked for.
///
/// The tiles of a step lie together because its rows are written across all of them: with those of a
/// column together, `steps` KiB apart, they would fall into one set of the first-level cache, which
/// has 12 ways where 512 columns are 32 tiles.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn pack_values(
    strip: Strip<'_, bf16>,
    steps: usize,
    out: &mut [Tile<u32>],
    (lanes, ahead): (Avx512, &mut Ahead<'_>),
) {
    let low: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 32) as u16);
    let high = low.map(|i| i + 16);
    // SAFETY: the arrays are as long as the loads.
    let low = unsafe { _mm512_loadu_si512(low.as_ptr().cast()) };
    // SAFETY: as above.
    let high = unsafe { _mm512_loadu_si512(high.as_ptr().cast()) };
    let column_tiles = strip.width().next_multiple_of(DEPTH) / ROWS;
    for step in 0..steps {
        for i in 0..ROWS {
            let first = step * DEPTH + 2 * i;
            let row = |j: usize| if j < strip.len() { strip.row(j) } else { &[] };
            let (a, b) = (row(first), row(first + 1));
            // Where rows are keys and values at once, this is where they come from memory.
            strip.prefetch(lanes, first + DEPTH);
            strip.prefetch(lanes, first + DEPTH + 1);
            ahead.while_packing(lanes);
            let mut put = |pair: usize, a, b| {
                let tile = step * column_tiles + 2 * pair;
                store(&mut out[tile].0[i], _mm512_permutex2var_epi16(a, low, b));
                store(&mut out[tile + 1].0[i], _mm512_permutex2var_epi16(a, high, b));
            };
            let (whole_a, whole_b) = (a.as_chunks::<DEPTH>().0, b.as_chunks::<DEPTH>().0);
            let whole = whole_a.len().min(whole_b.len());
            for (pair, (a, b)) in whole_a.iter().zip(whole_b).enumerate() {
                put(pair, load_whole(a), load_whole(b));
            }
            for pair in whole..column_tiles / 2 {
                put(pair, load(tail(a, pair * DEPTH)), load(tail(b, pair * DEPTH)));
            }
        }
    }
}

/// Thirty-two numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_whole(x: &[bf16; DEPTH]) -> __m512i {
    // SAFETY: the array is as long as the load.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

/// What follows the first `start` elements, if anything.
#[inline(always)]
fn tail(row: &[bf16], start: usize) -> &[bf16] {
    row.get(start..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        let rows: [[u32; 16]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as u32));
        // SAFETY: every pattern of bits is a value of both types, which are of one size.
        let vectors: [__m512i; 16] = unsafe { std::mem::transmute(rows) };
        // SAFETY: the feature was detected.
        let vectors = unsafe { transpose(vectors) };
        // SAFETY: as above.
        let out: [[u32; 16]; 16] = unsafe { std::mem::transmute(vectors) };
        for i in 0..16 {
            for j in 0..16 {
                assert_eq!(out[i][j], rows[j][i]);
            }
        }
    }
}
