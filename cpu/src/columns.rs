//! Online softmax of sixteen rows at once, a row to a lane: [`crate::softmax`] turned by 90
//! degrees, for scores that come as `[position, row]`. Where a tile has four rows or eight, a vector holds
//! those of four positions or of two.

use crate::amx::{DEPTH, Height, ROWS, SPREAD, Tile};
use crate::few;
use crate::lanes::EXP2_MIN;
use crate::pack::store;
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

/// Vectors of scores that are weighed at a stretch, between two calls for something else.
pub(crate) const STRETCH: usize = 8;

/// Products of tiles that take as long as weighing such a stretch.
pub(crate) const WEIGHING: usize = 3;

/// How far scores may exceed the maximum that is kept before it follows them: sums are rescaled
/// seldom, and a probability stays below 2^8.
const LAZY: f32 = 8.0;

impl Columns {
    /// Nothing seen.
    pub(crate) const EMPTY: Columns = Columns { m: [f32::NEG_INFINITY; ROWS], l: [0.0; ROWS] };

    /// Turns scores into probabilities in bf16, tiles of `[row, position]`, adds them to `l`
    /// before they are rounded, and rescales the rows of `sums`, `[16, stride]`, if need be. There is
    /// a tile for 32 positions in `out`, or, if `in_place`, there are [`SPREAD`], see
    /// [`crate::amx::values_in_place`], and sums of few rows are as [`crate::few`] says. Scores are `[positions, height]`,
    /// dense.
    ///
    /// The probabilities replace `scores` if `keep`. Before each [`STRETCH`] `meanwhile` is called with its number.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) fn push(
        &mut self,
        height: Height,
        scores: &mut [[f32; ROWS]],
        seen: Seen<'_>,
        scale: f32,
        keep: bool,
        (in_place, out): (bool, &mut [Tile<u32>]),
        sums: &mut [f32],
        mut meanwhile: impl FnMut(usize),
    ) {
        let scale = _mm512_set1_ps(scale);
        self.repeat(height);
        let largest = _mm512_mul_ps(largest(height, scores, seen), scale);
        let few = Some(height).filter(|height| in_place && height.is_few());
        let base = self.follow(largest, few, sums);
        let shift = _mm512_sub_ps(_mm512_setzero_ps(), base);
        let mut sum = _mm512_setzero_ps();
        let exponents = Exponents { scale, shift };
        let scores = scores.chunks_exact_mut(2 * height.rows());
        let out = out.chunks_exact_mut(if in_place { SPREAD } else { 1 });
        for (step, (scores, out)) in scores.zip(out).enumerate() {
            let first = step * DEPTH;
            let stretches = scores.len() / STRETCH;
            let mut meanwhile = |stretch| meanwhile(step * stretches + stretch);
            let added = if first + DEPTH <= seen.clear && !keep {
                exponents.whole(height, scores, out, meanwhile)
            } else {
                (0..stretches).for_each(&mut meanwhile);
                let masks = &seen.masks[first..];
                exponents.partial(height, scores, &masks[..masks.len().min(DEPTH)], out)
            };
            sum = _mm512_add_ps(sum, added);
        }
        let sum =
            _mm512_add_ps(get(&self.l), over_positions(height, sum, |a, b| _mm512_add_ps(a, b)));
        put(&mut self.l, sum);
    }

    /// Lets every lane hold what the lane of its row does.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn repeat(&mut self, height: Height) {
        for kept in [&mut self.m, &mut self.l] {
            let (rows, others) = kept.split_at_mut(height.rows());
            others.chunks_exact_mut(rows.len()).for_each(|lanes| lanes.copy_from_slice(rows));
        }
    }

    /// Lets the maxima follow `largest` where that is far above them, rescales what is relative to
    /// them, and answers what is to be subtracted from exponents.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn follow(&mut self, largest: __m512, few: Option<Height>, sums: &mut [f32]) -> __m512 {
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
            match few {
                None => rescale(&factors, sums),
                Some(height) => few::rescale(height, &factors, sums),
            }
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
    /// Writes the probabilities of 32 positions, and answers their sums.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn whole(
        self,
        height: Height,
        scores: &[[f32; ROWS]],
        out: &mut [Tile<u32>],
        mut meanwhile: impl FnMut(usize),
    ) -> __m512 {
        let mut sum = [_mm512_setzero_ps(); 2];
        let mut weigh = |v: usize, score: &[f32; ROWS]| {
            if v.is_multiple_of(STRETCH) {
                meanwhile(v / STRETCH);
            }
            let p = exp2(u16::MAX, _mm512_fmadd_ps(get(score), self.scale, self.shift));
            sum[v % 2] = _mm512_add_ps(sum[v % 2], p);
            p
        };
        // Of a known length in each, so that no access is checked.
        match height {
            Height::Four => {
                let scores: &[_; 8] = scores.first_chunk().expect("8 vectors a step");
                put_rows(turn_four(|v| weigh(v, &scores[v])), out);
            }
            Height::Eight => {
                let scores: &[_; 16] = scores.first_chunk().expect("16 vectors a step");
                put_rows(turn_eight(|v| weigh(v, &scores[v])), out);
            }
            Height::Sixteen => {
                let scores: &[_; 32] = scores.first_chunk().expect("32 vectors a step");
                put_rows(turn(|v| weigh(v, &scores[v])), out);
            }
        }
        _mm512_add_ps(sum[0], sum[1])
    }

    /// As [`whole`](Self::whole), for as many positions as there are masks and what rows see of
    /// them; the probabilities replace the scores.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn partial(
        self,
        height: Height,
        scores: &mut [[f32; ROWS]],
        masks: &[u16],
        out: &mut [Tile<u32>],
    ) -> __m512 {
        let mut all = [_mm512_setzero_ps(); DEPTH];
        let mut sum = _mm512_setzero_ps();
        for (v, (p, score)) in all.iter_mut().zip(scores).enumerate() {
            let seen = mask(height, masks, v);
            *p = exp2(seen, _mm512_fmadd_ps(get(score), self.scale, self.shift));
            sum = _mm512_add_ps(sum, *p);
            put(score, *p);
        }
        match height {
            Height::Four => put_rows(turn_four(|v| all[v]), out),
            Height::Eight => put_rows(turn_eight(|v| all[v]), out),
            Height::Sixteen => put_rows(turn(|v| all[v]), out),
        }
        sum
    }
}

/// What the rows of vector `v` see of its positions, a lane to a bit. Positions without a mask are not seen.
#[inline]
fn mask(height: Height, masks: &[u16], v: usize) -> u16 {
    let (rows, positions) = (height.rows(), ROWS / height.rows());
    let masks = masks.iter().skip(v * positions).take(positions).enumerate();
    masks.fold(0, |all, (i, mask)| all | (mask & u16::MAX >> (ROWS - rows)) << (i * rows))
}

/// Writes rows of 32 probabilities: a tile, or [`SPREAD`], of even and of odd positions, in which each stands before a
/// zero, and of few rows also behind one, in a row of its own.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn put_rows<const H: usize>(rows: [__m512i; H], out: &mut [Tile<u32>]) {
    // A loop for each tile, which the compiler unrolls; of one for all four it makes a loop through
    // memory.
    match out {
        [tile] => tile.0.iter_mut().zip(rows).for_each(|(row, x)| store(row, x)),
        [even, odd] if H == ROWS => {
            let below = _mm512_set1_epi32(0xffff);
            let (even, odd) = (even.0.iter_mut().zip(rows), odd.0.iter_mut().zip(rows));
            even.for_each(|(row, x)| store(row, _mm512_and_si512(x, below)));
            odd.for_each(|(row, x)| store(row, _mm512_srli_epi32::<16>(x)));
        }
        [even, odd] => {
            let below = _mm512_set1_epi32(0xffff);
            let (even, odd) = (even.0.as_chunks_mut().0, odd.0.as_chunks_mut().0);
            even.iter_mut().zip(rows).for_each(|([before, behind], x)| {
                store(before, _mm512_and_si512(x, below));
                store(behind, _mm512_slli_epi32::<16>(x));
            });
            odd.iter_mut().zip(rows).for_each(|([before, behind], x)| {
                store(before, _mm512_srli_epi32::<16>(x));
                store(behind, _mm512_andnot_si512(below, x));
            });
        }
        _ => unreachable!("a tile a step, or as many as it is spread over"),
    }
}

/// Multiplies each of sixteen rows by its factor.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn largest(height: Height, scores: &[[f32; ROWS]], seen: Seen<'_>) -> __m512 {
    let mut max = [negative_infinity(); 4];
    let positions = ROWS / height.rows();
    let whole = seen.clear / positions;
    let (clear, others) = scores.split_at(whole);
    for (v, score) in clear.iter().enumerate() {
        // NaNs stand first and are ignored; their probabilities spread them.
        max[v % 4] = _mm512_max_ps(get(score), max[v % 4]);
    }
    let vectors = seen.masks.len().div_ceil(positions);
    for (score, v) in others.iter().zip(whole..vectors) {
        let seen = mask(height, seen.masks, v);
        max[0] = _mm512_mask_max_ps(max[0], seen, get(score), max[0]);
    }
    let [a, b, c, d] = max;
    over_positions(height, _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)), |a, b| {
        _mm512_max_ps(a, b)
    })
}

/// Joins what the positions of a vector have, for each row, in every lane of the row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn over_positions(height: Height, x: __m512, join: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    let halves = |x| join(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x));
    let quarters = |x| join(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
    match height {
        Height::Four => quarters(halves(x)),
        Height::Eight => halves(x),
        Height::Sixteen => x,
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn negative_infinity() -> __m512 {
    _mm512_set1_ps(f32::NEG_INFINITY)
}

/// `2^f` for f in [0, 1], constant term last: as [`crate::lanes::EXP2`], with a least error of 2^-23.5.
const EXP2: [f32; 6] =
    [0.001_867_130_2, 0.009_017_03, 0.055_799_913, 0.240_164_44, 0.693_151_3, 1.0];

/// As [`crate::lanes::Lanes::exp2`]; 0 where a row does not see.
///
/// PERF: by the fraction above the floor, not the one around the nearest whole number: an instruction
/// finds it, and the one that multiplies by powers takes the floor itself. On a Xeon, from scores in the
/// first-level cache to bf16, 7.8 cycles a vector, and 9.2 around the nearest. On Zen 4, whose other kernels
/// keep to that, it is slower: GQA, `q_len` 1, 92.3 us instead of 90.2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(crate) fn exp2(seen: u16, x: __m512) -> __m512 {
    const FLOOR: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    let f = _mm512_reduce_ps::<FLOOR>(x);
    let mut sum = _mm512_set1_ps(EXP2[0]);
    for c in &EXP2[1..] {
        sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(*c));
    }
    // "Not less" holds for NaN too.
    let kept = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(seen, x, _mm512_set1_ps(EXP2_MIN));
    _mm512_maskz_scalef_ps(kept, sum, x)
}

/// Sixteen positions from `$first` on of row i and of row i + 8, four at a time in turn: `[__m512i; 8]`.
///
/// PERF: [`crate::pack::transpose`] would want two positions side by side first, which takes a permutation of
/// words for each vector. Here what brings them side by side turns them too: 7.5 instead of 7.8 cycles a vector.
/// No function, since whether it is inlined changes with code elsewhere, and if not its result goes through memory. Nor could
/// `$p` be inlined there unless all have the same target features. One thread of a Xeon, in the caches, GLA-2 with 128
/// heads at `q_len` 4, us: a call for each 16 positions and for each vector 664, for each 16 positions 631, neither 613.
macro_rules! turn_half {
    ($p:ident, $first:expr) => {{
        // Pairs of positions of rows 0 to 3 and 8 to 11, and of the others; above them those 8 positions on.
        let pairs: [[__m512i; 2]; 4] = std::array::from_fn(|i| {
            let [even, odd] = [0, 1].map(|k| {
                let j = $first + 2 * i + k;
                round($p(j), $p(j + 8))
            });
            [_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)]
        });
        let fours: [[__m512i; 4]; 2] = std::array::from_fn(|part| {
            let [a, b, c, d] = pairs.map(|pair| pair[part]);
            let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        });
        let turned: [__m512i; 8] = std::array::from_fn(|i| fours[i / 4][i % 4]);
        turned
    }};
}

/// Rounds probabilities, `p(position)` of sixteen rows, to bf16, and turns them: 32 positions to a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn turn(mut p: impl FnMut(usize) -> __m512) -> [__m512i; ROWS] {
    // Two calls and not a loop, which would go through memory.
    let [a, b] = [turn_half!(p, 0), turn_half!(p, ROWS)];
    let mut rows = [_mm512_setzero_si512(); ROWS];
    for i in 0..8 {
        rows[i] = _mm512_shuffle_i32x4::<0b10_00_10_00>(a[i], b[i]);
        rows[i + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(a[i], b[i]);
    }
    rows
}

/// As [`turn`], for eight rows: a vector has those of two positions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn turn_eight(mut p: impl FnMut(usize) -> __m512) -> [__m512i; 8] {
    // Four positions: 2i, 2i + 1 and those 16 on, each the eight words of 128 bits.
    let eights: [__m512i; 8] = std::array::from_fn(|i| {
        let (a, b) = (p(i), p(i + 8));
        round(a, b)
    });
    let pairs: [[__m512i; 2]; 4] = std::array::from_fn(|i| {
        let (a, b) = (eights[2 * i], eights[2 * i + 1]);
        [_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)]
    });
    let fours: [[__m512i; 4]; 2] = std::array::from_fn(|i| {
        let ([a, b], [c, d]) = (pairs[2 * i], pairs[2 * i + 1]);
        [
            _mm512_unpacklo_epi32(a, c),
            _mm512_unpackhi_epi32(a, c),
            _mm512_unpacklo_epi32(b, d),
            _mm512_unpackhi_epi32(b, d),
        ]
    });
    let order = order(&EIGHT);
    std::array::from_fn(|row| {
        let (a, b) = (fours[0][row / 2], fours[1][row / 2]);
        let mixed =
            if row % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) };
        _mm512_permutexvar_epi16(order, mixed)
    })
}

/// As [`turn`], for four rows: a vector has those of four positions.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn turn_four(mut p: impl FnMut(usize) -> __m512) -> [__m512i; 4] {
    // Eight positions: 4i to 4i + 3 and those 16 on, each four words.
    let fours: [__m512i; 4] = std::array::from_fn(|i| {
        let (a, b) = (p(i), p(i + 4));
        round(a, b)
    });
    let [a, b, c, d] = fours;
    let (ab, ab_high) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
    let (cd, cd_high) = (_mm512_unpacklo_epi16(c, d), _mm512_unpackhi_epi16(c, d));
    let low = [_mm512_unpacklo_epi32(ab, cd), _mm512_unpackhi_epi32(ab, cd)];
    let high = [_mm512_unpacklo_epi32(ab_high, cd_high), _mm512_unpackhi_epi32(ab_high, cd_high)];
    let order = order(&FOUR);
    std::array::from_fn(|row| {
        let (a, b) = (low[row / 2], high[row / 2]);
        let mixed =
            if row % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) };
        _mm512_permutexvar_epi16(order, mixed)
    })
}

/// Where each of 32 positions is among the words of a row that [`turn_eight`] has mixed, or [`turn_four`].
static EIGHT: [u16; DEPTH] = places(Height::Eight);
static FOUR: [u16; DEPTH] = places(Height::Four);

const fn places(height: Height) -> [u16; DEPTH] {
    let mut places = [0; DEPTH];
    let mut place = 0;
    while place < DEPTH {
        // The quarter of a vector, and the word of it.
        let (quarter, word) = (place / 8, place % 8);
        let position = match height {
            Height::Four => 4 * (word % 4) + 2 * (quarter % 2) + word / 4,
            _ => 2 * word + quarter % 2,
        };
        places[16 * (quarter / 2) + position] = place as u16;
        place += 1;
    }
    places
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn order(places: &[u16; DEPTH]) -> __m512i {
    // SAFETY: the array is as long as the load.
    unsafe { _mm512_loadu_si512(places.as_ptr().cast()) }
}

/// Two vectors in bf16, `a` below `b`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn round(a: __m512, b: __m512) -> __m512i {
    let rounded = _mm512_cvtne2ps_pbh(b, a);
    // SAFETY: both types are 512 bits without meaning of their own.
    unsafe { std::mem::transmute(rounded) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn get(x: &[f32; ROWS]) -> __m512 {
    // SAFETY: the array is as long as the load.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn put(x: &mut [f32; ROWS], v: __m512) {
    // SAFETY: the array is as long as the store.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns() {
        if !is_x86_feature_detected!("avx512bw") || !is_x86_feature_detected!("avx512bf16") {
            return;
        }
        // Whole numbers that bf16 holds, another for every position and row of a quarter.
        let number =
            |position: usize, row: usize| ((position % 16) * ROWS + row + position / 16) as f32;
        let numbers: [[f32; ROWS]; DEPTH] =
            std::array::from_fn(|j| std::array::from_fn(|row| number(j, row)));
        // SAFETY: every pattern of bits is a value of both types, which are of one size.
        let numbers: [__m512; DEPTH] = unsafe { std::mem::transmute(numbers) };
        // SAFETY: the features were detected.
        let rows = unsafe { turn(|j| numbers[j]) };
        // SAFETY: every pattern of bits is a value of both types, which are of one size.
        let rows: [[half::bf16; DEPTH]; ROWS] = unsafe { std::mem::transmute(rows) };
        for (row, positions) in rows.iter().enumerate() {
            for (position, p) in positions.iter().enumerate() {
                assert_eq!(p.to_f32(), number(position, row), "row {row}, position {position}");
            }
        }
    }

    /// Numbers that bf16 holds, another for every position of a quarter and row, as vectors of a height have them.
    fn heights<const H: usize, const V: usize>(turn: impl Fn(&[__m512; V]) -> [__m512i; H]) {
        let number = |position: usize, row: usize| (position * H + row) as f32;
        let numbers: [[f32; ROWS]; V] = std::array::from_fn(|v| {
            std::array::from_fn(|lane| number(v * (ROWS / H) + lane / H, lane % H))
        });
        let vectors = numbers.map(|lanes| {
            // SAFETY: every pattern of bits is a value of both types, which are of one size.
            unsafe { std::mem::transmute::<[f32; ROWS], __m512>(lanes) }
        });
        for (row, words) in turn(&vectors).into_iter().enumerate() {
            // SAFETY: as above.
            let positions: [half::bf16; DEPTH] = unsafe { std::mem::transmute(words) };
            for (position, p) in positions.iter().enumerate() {
                assert_eq!(p.to_f32(), number(position, row), "row {row}, position {position}");
            }
        }
    }

    #[test]
    fn turns_few_rows() {
        if !is_x86_feature_detected!("avx512bw") || !is_x86_feature_detected!("avx512bf16") {
            return;
        }
        // SAFETY: the features were detected.
        heights::<4, 8>(|numbers| unsafe { turn_four(|v| numbers[v]) });
        // SAFETY: as above.
        heights::<8, 16>(|numbers| unsafe { turn_eight(|v| numbers[v]) });
    }

    #[test]
    fn masks_of_few_rows_stand_side_by_side() {
        let masks = [0b0001, 0b1_0010, 0b0100, 0b1000, 0xffff];
        assert_eq!(mask(Height::Four, &masks, 0), 0b1000_0100_0010_0001);
        assert_eq!(mask(Height::Four, &masks, 1), 0b1111, "positions without a mask are not seen");
        assert_eq!(mask(Height::Eight, &masks, 0), 0b1_0010_0000_0001);
        assert_eq!(mask(Height::Sixteen, &masks, 4), 0xffff);
        assert_eq!(mask(Height::Sixteen, &masks, 5), 0);
    }

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
        unsafe { put_rows(rows, &mut tiles) }
        let mut few = [Tile([[7; 16]; ROWS]); SPREAD];
        // SAFETY: as above.
        unsafe { put_rows::<8>(*rows.first_chunk().expect("more rows"), &mut few) }
        let mut whole = [Tile([[7; 16]; ROWS])];
        // SAFETY: as above.
        unsafe { put_rows(rows, &mut whole) }
        assert_eq!(whole[0].0, words);
        for (row, words) in words.iter().enumerate() {
            for (i, word) in words.iter().enumerate() {
                // Positions 2i and 2i + 1; the lower half of a word is the first of a pair.
                let (even, odd) = (word & 0xffff, word >> 16);
                let spread = tiles.map(|tile| tile.0[row][i]);
                assert_eq!(spread, [even, odd]);
                if row < 8 {
                    let spread = few.map(|tile| [tile.0[2 * row][i], tile.0[2 * row + 1][i]]);
                    assert_eq!(spread, [[even, even << 16], [odd, odd << 16]]);
                }
            }
        }
    }
}
