//! Dot kernels on pairs of bf16: one instruction multiplies two neighbours in each lane and adds
//! both products to a sum, at the rate of f32 multiply-adds where a processor is made for it.
//!
//! Keys are used as they lie. Values are put side by side, position by position, and probabilities
//! are rounded to bf16 once they have been summed. Where there are many rows both are prepared once
//! for all of them ([`crate::prepared`]).

#![expect(
    clippy::needless_range_loop,
    reason = "loops over constant extents by index are what keeps arrays of sums in registers"
)]

use crate::ahead::Ahead;
use crate::lanes::{Avx512, Lanes};
use crate::machine;
use crate::pack::{even, load, odd, words};
use crate::prepared::{Paired, Prepared};

use crate::rows::Matrix;
use crate::schedule::BLOCK;
use crate::strip::Strip;
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Elements of a vector.
pub(crate) const UNIT: usize = 32;

/// Query rows that share what is loaded of the cache.
const ROWS: usize = 4;

/// Positions that share what is loaded of the queries.
const POSITIONS: usize = 4;

/// Positions whose keys, in the first-level cache, meet one tile of rows after the other.
const RUN: usize = 16;

/// Proof that the processor has AVX-512 with BF16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs(Avx512);

impl Pairs {
    /// The instructions of everything but the products.
    pub(crate) fn lanes(self) -> Avx512 {
        self.0
    }

    pub(crate) fn detect() -> Option<Pairs> {
        let lanes = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Pairs(lanes))
    }

    /// True where the products are known to come twice as fast as with f32.
    ///
    /// PERF: GFLOP/s of one core on registers: Zen 4 234 against 117 of f32 multiply-adds; a Xeon with
    /// AMX 100 against 210.
    pub(crate) fn pay() -> bool {
        machine::is_amd()
    }

    /// As [`rows::scores`](crate::rows::scores), of queries as they lie, whose pieces begin at whole
    /// units and are filled up with zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) fn scores(
        self,
        q: Matrix<'_, bf16>,
        rows: usize,
        keys: [(Strip<'_, bf16>, usize); 2],
        scores: &mut [f32],
        ahead: &mut Ahead<'_>,
        prepared: &mut Prepared,
    ) {
        let scores = &mut scores.as_chunks_mut::<BLOCK>().0[..rows];
        if Prepared::turning_pays(rows, &keys) {
            return prepared.scores(self.0, q, keys.map(|(strip, _)| strip), scores, ahead);
        }
        // Code for partial units takes registers even where it never runs.
        if keys.iter().all(|(strip, _)| strip.width().is_multiple_of(UNIT)) {
            self.score_all::<false>(q, keys, scores, ahead);
        } else {
            self.score_all::<true>(q, keys, scores, ahead);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn score_all<const TAILS: bool>(
        self,
        q: Matrix<'_, bf16>,
        keys: [(Strip<'_, bf16>, usize); 2],
        scores: &mut [[f32; BLOCK]],
        ahead: &mut Ahead<'_>,
    ) {
        let positions = keys[0].0.len();
        for first in (0..positions).step_by(RUN) {
            let run = first..positions.min(first + RUN);
            for (tile, out) in scores.chunks_mut(ROWS).enumerate() {
                let (q, run) = (q.after(tile * ROWS), run.clone());
                match out.len() {
                    1 => self.score_run::<1, TAILS>(q, keys, run, out, ahead),
                    2 => self.score_run::<2, TAILS>(q, keys, run, out, ahead),
                    3 => self.score_run::<3, TAILS>(q, keys, run, out, ahead),
                    _ => self.score_run::<ROWS, TAILS>(q, keys, run, out, ahead),
                }
            }
        }
    }

    /// R queries against some positions.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn score_run<const R: usize, const TAILS: bool>(
        self,
        q: Matrix<'_, bf16>,
        keys: [(Strip<'_, bf16>, usize); 2],
        run: Range<usize>,
        scores: &mut [[f32; BLOCK]],
        ahead: &mut Ahead<'_>,
    ) {
        let scores = scores.first_chunk_mut::<R>().expect("as many rows");
        let mut units = 0;
        for (strip, skip) in &keys {
            q.check(R, skip + strip.width());
            units += strip.width().div_ceil(UNIT);
        }
        let mut share = ahead.share(run.len() * units, run.len().div_ceil(POSITIONS));
        let mut j = run.start;
        while j + POSITIONS <= run.end {
            share.ask(self.0);
            // SAFETY: `check` has seen the queries' rows.
            let sums = unsafe { self.products::<R, POSITIONS, TAILS>(q, keys, j) };
            let mut all = [[_mm512_setzero_ps(); POSITIONS]; ROWS];
            all[..R].copy_from_slice(&sums);
            let all = add_across(all.as_flattened().first_chunk().expect("sixteen sums"));
            let quarters = [
                _mm512_castps512_ps128(all),
                _mm512_extractf32x4_ps::<1>(all),
                _mm512_extractf32x4_ps::<2>(all),
                _mm512_extractf32x4_ps::<3>(all),
            ];
            for (row, quarter) in scores.iter_mut().zip(quarters) {
                let out = row[j..].first_chunk_mut::<POSITIONS>().expect("positions of the block");
                // SAFETY: the array is as long as the store.
                unsafe { _mm_storeu_ps(out.as_mut_ptr(), quarter) }
            }
            j += POSITIONS;
        }
        for j in j..run.end {
            // SAFETY: as above.
            let sums = unsafe { self.products::<R, 1, TAILS>(q, keys, j) };
            for (row, [sum]) in scores.iter_mut().zip(sums) {
                row[j] = self.0.sum(sum);
            }
        }
    }

    /// The products of R queries and T positions from `j` on, to be added across lanes.
    ///
    /// # Safety
    /// There must be R queries of as many elements as the keys take.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn products<const R: usize, const T: usize, const TAILS: bool>(
        self,
        q: Matrix<'_, bf16>,
        keys: [(Strip<'_, bf16>, usize); 2],
        j: usize,
    ) -> [[__m512; T]; R] {
        let mut sums = [[_mm512_setzero_ps(); T]; R];
        for (strip, skip) in keys {
            let width = strip.width();
            if width == 0 {
                continue;
            }
            let mut rows: [&[bf16]; T] = [&[]; T];
            for (t, row) in rows.iter_mut().enumerate() {
                *row = strip.row(j + t);
            }
            let whole = width / UNIT * UNIT;
            let mut at = 0;
            while at < whole {
                let mut unit = [_mm512_setzero_si512(); T];
                for t in 0..T {
                    // SAFETY: the row is `width` long, of which `whole` is no more.
                    unit[t] = unsafe { unit_at(rows[t], at) };
                }
                for r in 0..R {
                    // SAFETY: the caller's promise.
                    let q = unsafe { unit_at(q.cells, r * q.stride + skip + at) };
                    for t in 0..T {
                        sums[r][t] = dot(sums[r][t], q, unit[t]);
                    }
                }
                at += UNIT;
            }
            if TAILS && whole < width {
                for t in 0..T {
                    let unit = load(&rows[t][whole..]);
                    for r in 0..R {
                        let at = r * q.stride + skip + whole;
                        sums[r][t] = dot(sums[r][t], load(&q.cells[at..at + width - whole]), unit);
                    }
                }
            }
        }
        sums
    }

    /// Rounds the probabilities of `rows` rows to bf16: pairs of positions, in the first half of each
    /// row.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) fn round(self, rows: usize, p: &mut [f32]) {
        let (whole, _) = p.as_chunks_mut::<BLOCK>();
        for row in &mut whole[..rows] {
            for i in (0..BLOCK).step_by(UNIT) {
                let low = self.0.load(&row[i..]);
                let high = self.0.load(&row[i + UNIT / 2..]);
                let pairs = _mm512_cvtne2ps_pbh(high, low);
                // SAFETY: both types are 512 bits without meaning of their own.
                let pairs = unsafe { std::mem::transmute::<__m512bh, __m512>(pairs) };
                self.0.store(&mut row[i / 2..], pairs);
            }
        }
    }

    /// As [`rows::accumulate`](crate::rows::accumulate), of probabilities that are
    /// [rounded](Self::round).
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(crate) fn accumulate(
        self,
        p: &[f32],
        rows: usize,
        values: Strip<'_, bf16>,
        o: &mut [f32],
        o_stride: usize,
        ahead: &mut Ahead<'_>,
        prepared: &mut Prepared,
    ) {
        let width = values.width();
        for column in (0..width).step_by(2 * UNIT) {
            let prepared = Prepared::pairing_pays(rows, &values, column)
                .then(|| prepared.values(values, column));
            for i in (0..rows).step_by(ROWS) {
                let mut from = Columns { values, column, ahead: &mut *ahead };
                let p = &p[i * BLOCK..];
                let o = &mut o[i * o_stride + column..];
                if let Some(prepared) = prepared {
                    match rows - i {
                        1 => self.accumulate_prepared::<1>(p, prepared, &mut from, o, o_stride),
                        2 => self.accumulate_prepared::<2>(p, prepared, &mut from, o, o_stride),
                        3 => self.accumulate_prepared::<3>(p, prepared, &mut from, o, o_stride),
                        _ => self.accumulate_prepared::<ROWS>(p, prepared, &mut from, o, o_stride),
                    }
                    continue;
                }
                let units = if width - column > UNIT { 2 } else { 1 };
                match (rows - i, units) {
                    (1, 2) => self.accumulate_tile::<1, 2>(p, &mut from, o, o_stride),
                    (2, 2) => self.accumulate_tile::<2, 2>(p, &mut from, o, o_stride),
                    (3, 2) => self.accumulate_tile::<3, 2>(p, &mut from, o, o_stride),
                    (_, 2) => self.accumulate_tile::<ROWS, 2>(p, &mut from, o, o_stride),
                    (1, _) => self.accumulate_tile::<1, 1>(p, &mut from, o, o_stride),
                    (2, _) => self.accumulate_tile::<2, 1>(p, &mut from, o, o_stride),
                    (3, _) => self.accumulate_tile::<3, 1>(p, &mut from, o, o_stride),
                    (_, _) => self.accumulate_tile::<ROWS, 1>(p, &mut from, o, o_stride),
                }
            }
        }
    }

    /// R rows of sums over U units of values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn accumulate_tile<const R: usize, const U: usize>(
        self,
        p: &[f32],
        from: &mut Columns<'_, '_>,
        o: &mut [f32],
        o_stride: usize,
    ) {
        let Columns { values, column, ref mut ahead } = *from;
        let mut sums = self.load_sums::<R, U>(o, o_stride);
        let whole = values.len() / 2;
        assert!(
            (R - 1) * BLOCK + values.len().div_ceil(2) <= p.len(),
            "a pair for every two positions"
        );
        // Columns of the last unit.
        let last = (values.width() - column - (U - 1) * UNIT).min(UNIT);
        let mask = u32::MAX >> (UNIT - last);
        let units = |row: &[bf16]| {
            let mut units = [_mm512_setzero_si512(); U];
            for u in 0..U {
                let mask = if u + 1 < U { u32::MAX } else { mask };
                // SAFETY: units begin within the row.
                let rest = unsafe { row.get_unchecked(column + u * UNIT..) };
                // SAFETY: what the mask lets through lies within the row.
                units[u] = unsafe { _mm512_maskz_loadu_epi16(mask, rest.as_ptr().cast()) };
            }
            units
        };
        for first in (0..whole).step_by(RUN / 2) {
            let run = first..whole.min(first + RUN / 2);
            let mut share = ahead.share(2 * U * run.len(), run.len());
            for j in run {
                share.ask(self.0);
                let (a, b) = (units(values.row(2 * j)), units(values.row(2 * j + 1)));
                let pairs = std::array::from_fn(|u| [even(a[u], b[u]), odd(a[u], b[u])]);
                // SAFETY: the assertion has seen R rows of pairs.
                sums = unsafe { add_pairs(sums, p, j, pairs) };
            }
        }
        // Nothing stands behind an odd number of positions: a probability of 0 would not do for
        // whatever row were read instead, since 0 times NaN is NaN.
        if !values.len().is_multiple_of(2) {
            let (a, b) = (units(values.row(2 * whole)), [_mm512_setzero_si512(); U]);
            let pairs = std::array::from_fn(|u| [even(a[u], b[u]), odd(a[u], b[u])]);
            // SAFETY: as above.
            sums = unsafe { add_pairs(sums, p, whole, pairs) };
        }
        self.store_sums(&sums, o, o_stride);
    }

    /// As [`accumulate_tile`](Self::accumulate_tile), of two units of values that are side by side already.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn accumulate_prepared<const R: usize>(
        self,
        p: &[f32],
        prepared: &[Paired],
        from: &mut Columns<'_, '_>,
        o: &mut [f32],
        o_stride: usize,
    ) {
        let mut sums = self.load_sums::<R, 2>(o, o_stride);
        let pairs = from.values.len().div_ceil(2);
        assert!((R - 1) * BLOCK + pairs <= p.len(), "a pair for every two positions");
        let mut share = from.ahead.share(2 * 2 * pairs, pairs);
        for (j, pair) in prepared[..pairs].iter().enumerate() {
            share.ask(self.0);
            let Paired([one, one_odd, other, other_odd]) = pair;
            let pairs = [[words(one), words(one_odd)], [words(other), words(other_odd)]];
            // SAFETY: the assertion has seen R rows of pairs.
            sums = unsafe { add_pairs(sums, p, j, pairs) };
        }
        self.store_sums(&sums, o, o_stride);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn load_sums<const R: usize, const U: usize>(
        self,
        o: &[f32],
        o_stride: usize,
    ) -> [[[__m512; 2]; U]; R] {
        let mut sums = [[[_mm512_setzero_ps(); 2]; U]; R];
        for r in 0..R {
            for u in 0..U {
                for half in 0..2 {
                    let at = r * o_stride + u * UNIT + half * UNIT / 2;
                    sums[r][u][half] = self.0.load(&o[at..]);
                }
            }
        }
        sums
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn store_sums<const R: usize, const U: usize>(
        self,
        sums: &[[[__m512; 2]; U]; R],
        o: &mut [f32],
        o_stride: usize,
    ) {
        for r in 0..R {
            for u in 0..U {
                for half in 0..2 {
                    let at = r * o_stride + u * UNIT + half * UNIT / 2;
                    self.0.store(&mut o[at..], sums[r][u][half]);
                }
            }
        }
    }
}

/// Adds the products of pair `j` of positions, of R rows of `p` that are [`BLOCK`] apart.
///
/// # Safety
/// `p` must reach to pair `j` of the last row.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn add_pairs<const R: usize, const U: usize>(
    mut sums: [[[__m512; 2]; U]; R],
    p: &[f32],
    j: usize,
    pairs: [[__m512i; 2]; U],
) -> [[[__m512; 2]; U]; R] {
    for r in 0..R {
        // SAFETY: the caller's promise.
        let p = unsafe { *p.get_unchecked(r * BLOCK + j) };
        let p = _mm512_castps_si512(_mm512_set1_ps(p));
        for u in 0..U {
            for half in 0..2 {
                sums[r][u][half] = dot(sums[r][u][half], p, pairs[u][half]);
            }
        }
    }
    sums
}

impl Pairs {
    /// Multiplies pairs between registers, `rounds` times; answers the operations.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) fn multiply(self, rounds: usize) -> f64 {
        // More chains than latency, no more than registers.
        const CHAINS: usize = 12;
        let [a, b] = [0x3f00_3e80, 0x3e80_3f40].map(|x| _mm512_set1_epi32(std::hint::black_box(x)));
        let mut sums = [self.0.splat(0.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = dot(*sum, a, b);
            }
        }
        std::hint::black_box(sums.map(|sum| self.0.sum(sum)));
        (rounds * CHAINS * 2 * UNIT) as f64
    }
}

/// Some columns of values, and what is asked for while they are added.
struct Columns<'r, 'a> {
    values: Strip<'r, bf16>,
    column: usize,
    ahead: &'r mut Ahead<'a>,
}

/// Adds the products of all pairs to the sums of their lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) fn dot(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits without meaning of their own.
    let a = unsafe { std::mem::transmute::<__m512i, __m512bh>(a) };
    // SAFETY: as above.
    let b = unsafe { std::mem::transmute::<__m512i, __m512bh>(b) };
    _mm512_dpbf16_ps(sums, a, b)
}

/// The sums over the lanes of sixteen vectors, in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn add_across(v: &[__m512; 16]) -> __m512 {
    let mut fours = [_mm512_setzero_ps(); 4];
    for (i, four) in fours.iter_mut().enumerate() {
        let [a, b, c, d] = [v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]];
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let [ab, cd] = [_mm512_castps_pd(ab), _mm512_castps_pd(cd)];
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        // Every 128 bits now hold a partial sum of each of the four.
        *four = _mm512_add_ps(low, _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
    }
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let halves =
        |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<EVEN>(a, b), _mm512_shuffle_f32x4::<ODD>(a, b));
    halves(halves(fours[0], fours[1]), halves(fours[2], fours[3]))
}

/// The unit at `at`.
///
/// # Safety
/// `row` must reach to `at + UNIT`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn unit_at(row: &[bf16], at: usize) -> __m512i {
    // SAFETY: the caller's promise.
    let unit = unsafe { row.get_unchecked(at..at + UNIT) };
    // SAFETY: the slice is as long as the load.
    unsafe { _mm512_loadu_si512(unit.as_ptr().cast()) }
}
