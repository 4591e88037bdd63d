//! Online softmax of sixteen rows at once, a row to a lane: [`crate::softmax`] turned by 90
//! degrees, for scores that come as `[position, row]`.

use crate::ahead::Ahead;
use crate::amx::{DEPTH, ROWS, SPREAD, Tile};
use crate::lanes::{Avx512, EXP2, EXP2_MIN};
use crate::pack::{store, transpose};
use std::arch::x86_64::*;

/// What is kept of the positions that sixteen query rows have seen, but for `o`.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Columns {
    /// A maximum of each row's scaled scores in base 2, or less by at most [`LAZY`].
    pub(crate) m: [f32; ROWS],
    pub(crate) l: [f32; ROWS],
}

/// What sixteen rows see of some positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// Leading positions that all rows see.
    pub(crate) clear: usize,
    /// One mask a position, all of them: bit i says whether row i sees it.
    pub(crate) masks: &'a [u16],
}

/// Products of tiles that take as long as weighing 32 positions of sixteen rows.
pub(crate) const WEIGHING: usize = 12;

/// How far scores may exceed the maximum that is kept before it follows them: sums are rescaled
/// seldom, and a probability stays below 2^8.
const LAZY: f32 = 8.0;

impl Columns {
    /// Nothing seen.
    pub(crate) const EMPTY: Columns = Columns { m: [f32::NEG_INFINITY; ROWS], l: [0.0; ROWS] };

    /// Turns scores into probabilities in bf16, tiles of `[row, position]`, adds them to `l`
    /// before they are rounded, and rescales the rows of `sums`, `[16, stride]`, if need be. There is
    /// a tile for 32 positions in `out`, or, if `in_place`, there are [`SPREAD`], see
    /// [`crate::amx::values_in_place`].
    ///
    /// The probabilities replace `scores` if `keep`. Meanwhile `ahead` is asked for.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) fn push(
        &mut self,
        scores: &mut [Tile<f32>],
        seen: Seen<'_>,
        scale: f32,
        keep: bool,
        (in_place, out): (bool, &mut [Tile<u32>]),
        sums: &mut [f32],
        (lanes, ahead): (Avx512, &mut Ahead<'_>),
    ) {
        let scale = _mm512_set1_ps(scale);
        let largest = _mm512_mul_ps(largest(scores, seen), scale);
        let base = self.follow(largest, sums);
        let shift = _mm512_sub_ps(_mm512_setzero_ps(), base);
        let mut sum = _mm512_setzero_ps();
        for (step, out) in out.chunks_exact_mut(if in_place { SPREAD } else { 1 }).enumerate() {
            let first = step * DEPTH;
            ahead.after(lanes, WEIGHING);
            let tiles = &mut scores[2 * step..][..2];
            let exponents = Exponents { scale, shift };
            let (words, added) = if first + DEPTH <= seen.clear && !keep {
                exponents.whole(tiles)
            } else {
                let masks = &seen.masks[first..];
                exponents.partial(tiles, &masks[..masks.len().min(DEPTH)])
            };
            sum = _mm512_add_ps(sum, added);
            put_words(transpose(words), out);
        }
        let sum = _mm512_add_ps(get(&self.l), sum);
        put(&mut self.l, sum);
    }

    /// Lets the maxima follow `largest` where that is far above them, rescales what is relative to
    /// them, and answers what is to be subtracted from exponents.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn follow(&mut self, largest: __m512, sums: &mut [f32]) -> __m512 {
        let old = get(&self.m);
        let limit = _mm512_add_ps(old, _mm512_set1_ps(LAZY));
        if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(largest, limit) != 0 {
            // One row that must follow takes those along that may.
            let new = _mm512_max_ps(largest, old);
            // A sum whose maximum is -inf is 0 or NaN, and 1 keeps either.
            let nothing = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(old, negative_infinity());
            let same = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(old, new);
            let one = _mm512_set1_ps(1.0);
            let factor = exp2(u16::MAX, _mm512_sub_ps(old, new));
            let factor = _mm512_mask_mov_ps(factor, nothing | same, one);
            put(&mut self.m, new);
            let rescaled = _mm512_mul_ps(get(&self.l), factor);
            put(&mut self.l, rescaled);
            let mut factors = [0.0; ROWS];
            put(&mut factors, factor);
            rescale(&factors, sums);
        }
        let m = get(&self.m);
        let nothing = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(m, negative_infinity());
        _mm512_mask_mov_ps(m, nothing, _mm512_setzero_ps())
    }
}

/// From scores to exponents.
#[derive(Clone, Copy)]
struct Exponents {
    scale: __m512,
    shift: __m512,
}

impl Exponents {
    /// Probabilities of 32 positions in pairs, and their sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn whole(self, scores: &[Tile<f32>]) -> ([__m512i; ROWS], __m512) {
        let mut words = [_mm512_setzero_si512(); ROWS];
        let mut sum = [_mm512_setzero_ps(); 2];
        for half in 0..2 {
            for i in 0..8 {
                let pair = [0, 1].map(|k| get(&scores[half].0[2 * i + k]));
                let p = pair.map(|x| exp2(u16::MAX, _mm512_fmadd_ps(x, self.scale, self.shift)));
                sum = [_mm512_add_ps(sum[0], p[0]), _mm512_add_ps(sum[1], p[1])];
                words[8 * half + i] = pairs(p[0], p[1]);
            }
        }
        (words, _mm512_add_ps(sum[0], sum[1]))
    }

    /// As [`whole`](Self::whole), for as many positions as there are masks and what rows see of
    /// them; the probabilities replace the scores.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn partial(self, scores: &mut [Tile<f32>], masks: &[u16]) -> ([__m512i; ROWS], __m512) {
        let mut all = [_mm512_setzero_ps(); DEPTH];
        let mut sum = _mm512_setzero_ps();
        for (j, (p, seen)) in all.iter_mut().zip(masks).enumerate() {
            let score = &mut scores[j / ROWS].0[j % ROWS];
            *p = exp2(*seen, _mm512_fmadd_ps(get(score), self.scale, self.shift));
            sum = _mm512_add_ps(sum, *p);
            put(score, *p);
        }
        let mut words = [_mm512_setzero_si512(); ROWS];
        for (word, p) in words.iter_mut().zip(all.chunks_exact(2)) {
            *word = pairs(p[0], p[1]);
        }
        (words, sum)
    }
}

/// Writes probabilities of 32 positions in pairs: a tile, or [`SPREAD`] in which each stands beside a
/// zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn put_words(rows: [__m512i; ROWS], out: &mut [Tile<u32>]) {
    // A loop for each tile, which the compiler unrolls; of one for all four it makes a loop through
    // memory.
    match out {
        [tile] => tile.0.iter_mut().zip(rows).for_each(|(row, x)| store(row, x)),
        [even_first, even_second, odd_first, odd_second] => {
            let below = _mm512_set1_epi32(0xffff);
            even_first
                .0
                .iter_mut()
                .zip(rows)
                .for_each(|(row, x)| store(row, _mm512_and_si512(x, below)));
            even_second
                .0
                .iter_mut()
                .zip(rows)
                .for_each(|(row, x)| store(row, _mm512_slli_epi32::<16>(x)));
            odd_first
                .0
                .iter_mut()
                .zip(rows)
                .for_each(|(row, x)| store(row, _mm512_srli_epi32::<16>(x)));
            odd_second
                .0
                .iter_mut()
                .zip(rows)
                .for_each(|(row, x)| store(row, _mm512_andnot_si512(below, x)));
        }
        _ => unreachable!("a tile a step, or as many as it is spread over"),
    }
}

/// Multiplies each of sixteen rows by its factor.
#[inline]
#[target_feature(enable = "avx512f")]
fn rescale(factors: &[f32; ROWS], sums: &mut [f32]) {
    let stride = sums.len() / ROWS;
    for (row, factor) in sums.chunks_exact_mut(stride).zip(factors) {
        if *factor == 1.0 {
            continue;
        }
        let factor = _mm512_set1_ps(*factor);
        for x in row.as_chunks_mut().0 {
            put(x, _mm512_mul_ps(get(x), factor));
        }
    }
}

/// The largest score of each row over the positions that it sees.
#[inline]
#[target_feature(enable = "avx512f")]
fn largest(scores: &[Tile<f32>], seen: Seen<'_>) -> __m512 {
    let mut max = [negative_infinity(); 4];
    let whole = seen.clear / ROWS;
    for tile in &scores[..whole] {
        for (j, score) in tile.0.iter().enumerate() {
            // NaNs stand first and are ignored; their probabilities spread them.
            max[j % 4] = _mm512_max_ps(get(score), max[j % 4]);
        }
    }
    for (j, seen) in seen.masks.iter().enumerate().skip(whole * ROWS) {
        let score = get(&scores[j / ROWS].0[j % ROWS]);
        max[0] = _mm512_mask_max_ps(max[0], *seen, score, max[0]);
    }
    _mm512_max_ps(_mm512_max_ps(max[0], max[1]), _mm512_max_ps(max[2], max[3]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn negative_infinity() -> __m512 {
    _mm512_set1_ps(f32::NEG_INFINITY)
}

/// As [`crate::lanes::Lanes::exp2`]; 0 where a row does not see.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(seen: u16, x: __m512) -> __m512 {
    const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    let power = _mm512_roundscale_ps::<NEAREST>(x);
    let f = _mm512_sub_ps(x, power);
    let mut sum = _mm512_set1_ps(EXP2[0]);
    for c in &EXP2[1..] {
        sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(*c));
    }
    let kept = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(seen, x, _mm512_set1_ps(EXP2_MIN));
    _mm512_maskz_scalef_ps(kept, sum, power)
}

/// Rounds two vectors to bf16 and puts them side by side: word i is lane i of both, `a` below.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pairs(a: __m512, b: __m512) -> __m512i {
    let apart = _mm512_cvtne2ps_pbh(b, a);
    // SAFETY: both types are 512 bits without meaning of their own.
    let apart: __m512i = unsafe { std::mem::transmute(apart) };
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + i % 2 * 16) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: the array is as long as the load.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    _mm512_permutexvar_epi16(order, apart)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn get(x: &[f32; ROWS]) -> __m512 {
    // SAFETY: the array is as long as the load.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put(x: &mut [f32; ROWS], v: __m512) {
    // SAFETY: the array is as long as the store.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_probabilities_are_those_of_one_tile() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        let words: [[u32; 16]; ROWS] = std::array::from_fn(|row| {
            std::array::from_fn(|i| 0x3f80_0000 + 0x1_0001 * (16 * row + i) as u32)
        });
        // SAFETY: every pattern of bits is a value of both types, which are of one size.
        let rows: [__m512i; ROWS] = unsafe { std::mem::transmute(words) };
        let mut tiles = [Tile([[7; 16]; ROWS]); SPREAD];
        // SAFETY: the feature was detected.
        unsafe { put_words(rows, &mut tiles) }
        let mut whole = [Tile([[7; 16]; ROWS])];
        // SAFETY: as above.
        unsafe { put_words(rows, &mut whole) }
        assert_eq!(whole[0].0, words);
        for (row, words) in words.iter().enumerate() {
            for (i, word) in words.iter().enumerate() {
                // Positions 2i and 2i + 1; the lower half of a word is the first of a pair.
                let (even, odd) = (word & 0xffff, word >> 16);
                let spread = tiles.map(|tile| tile.0[row][i]);
                assert_eq!(spread, [even, even << 16, odd, odd << 16]);
            }
        }
    }
}
