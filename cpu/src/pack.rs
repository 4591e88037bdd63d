//! Packing for products of pairs of bf16, on the matrix unit and by vectors: transposition of 16 by 16 words, and values
//! in pairs of positions.

use crate::ahead::Ahead;
use crate::amx::{DEPTH, ROWS, Tile, Tiles};
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

/// A row of a tile.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn words(row: &[u32; 16]) -> __m512i {
    // SAFETY: the array is as long as the load.
    unsafe { _mm512_loadu_si512(row.as_ptr().cast()) }
}

/// Columns of values that are packed, and multiplied, together.
///
/// Those of a block, 32 KiB, stay in the first-level cache until every row has been multiplied by them.
///
/// PERF: one thread of a Xeon, L 8192, `q_len` 1, best of 150 calls, us: MLA with 16 heads, all columns at
/// once 1252, 64 at a time 1100. With 128 heads, probabilities must make way for values (see
/// [`crate::amx::values_1x4`]): MLA 2741, and 2694 (2780 if values make way); GLA 2003, 2000 (2065); 32
/// at a time: MLA 2752.
pub(crate) const COLUMNS: usize = COLUMN_TILES * ROWS;
/// Tiles of so many columns.
pub(crate) const COLUMN_TILES: usize = 4;

/// Packs [`COLUMNS`] columns of a block's values, `[steps, COLUMN_TILES]`: row i of a tile holds the even,
/// or the odd, ones of 32 columns of positions 2i and 2i + 1, side by side. Positions past the strip, and
/// columns past its rows, are zeros. Meanwhile `ahead` is asked for.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn pack_values(
    strip: Strip<'_, bf16>,
    column: usize,
    out: &mut [Tile<u32>],
    (unit, lanes, ahead): (&Tiles, Avx512, &mut Ahead<'_>),
) {
    let whole = column + COLUMNS <= strip.width();
    for (step, tiles) in out.as_chunks_mut::<COLUMN_TILES>().0.iter_mut().enumerate() {
        let first = step * DEPTH;
        if step % 4 == 3 {
            unit.keep_awake();
        }
        if whole && first + DEPTH <= strip.len() {
            for i in 0..ROWS {
                let [a, b] = [0, 1].map(|k| {
                    let row = strip.row(first + 2 * i + k);
                    row[column..].first_chunk::<COLUMNS>().expect("whole columns")
                });
                if i.is_multiple_of(4) {
                    ahead.ask(lanes, 4);
                }
                for (tiles, (a, b)) in
                    tiles.as_chunks_mut().0.iter_mut().zip(chunks(a).iter().zip(chunks(b)))
                {
                    let [one, other]: &mut [Tile<u32>; 2] = tiles;
                    let (a, b) = (load_whole(a), load_whole(b));
                    store(&mut one.0[i], even(a, b));
                    store(&mut other.0[i], odd(a, b));
                }
            }
            continue;
        }
        ahead.ask(lanes, ROWS);
        for i in 0..ROWS {
            let [a, b] = [0, 1].map(|k| {
                let j = first + 2 * i + k;
                let row = if j < strip.len() { strip.row(j) } else { &[] };
                row.get(column..).unwrap_or(&[])
            });
            for (tile, words) in tiles.iter_mut().zip(side_by_side(a, b)) {
                store(&mut tile.0[i], words);
            }
        }
    }
}

/// Up to [`COLUMNS`] columns of two positions side by side, zeros behind the last: the even ones of 32, the odd ones,
/// and those of the next 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn side_by_side(a: &[bf16], b: &[bf16]) -> [__m512i; COLUMN_TILES] {
    let next = |row| <[bf16]>::get(row, DEPTH..).unwrap_or(&[]);
    let [(a, b), (c, d)] = [(load(a), load(b)), (load(next(a)), load(next(b)))];
    [even(a, b), odd(a, b), even(c, d), odd(c, d)]
}

/// The upper number of each word.
const UPPER: u32 = 0xaaaa_aaaa;

/// The even numbers of two rows side by side.
///
/// PERF: a permutation of two vectors' words is one instruction, and two cycles of a Xeon: a line of packed
/// values, its rows in the first-level cache, takes 2.1 cycles by those and 1.7 so; from the second-level cache
/// as long either way, 2.8 or 3.4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn even(a: __m512i, b: __m512i) -> __m512i {
    _mm512_mask_blend_epi16(UPPER, a, _mm512_slli_epi32::<16>(b))
}

/// The odd numbers of two rows side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn odd(a: __m512i, b: __m512i) -> __m512i {
    _mm512_mask_blend_epi16(UPPER, _mm512_srli_epi32::<16>(a), b)
}

fn chunks(row: &[bf16; COLUMNS]) -> &[[bf16; DEPTH]] {
    row.as_chunks().0
}

/// Thirty-two numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_whole(x: &[bf16; DEPTH]) -> __m512i {
    // SAFETY: the array is as long as the load.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
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
