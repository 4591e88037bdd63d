//! AVX2 with FMA and F16C: eight f32.

use super::{EXP2, EXP2_MIN, Job, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that the processor and the system have AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Avx2> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }
}

const N: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
fn compiled<J: Job>(lanes: Avx2, job: J) {
    job.run(lanes);
}

impl Lanes for Avx2 {
    type F = __m256;
    const LANES: usize = N;
    #[cfg(feature = "faer")]
    const DENSE_ROWS: usize = 12;
    const REGISTERS: usize = 16;
    const FUSED: bool = true;

    fn vectorize<J: Job>(self, job: J) {
        // SAFETY: `self` proves the features.
        unsafe { compiled(self, job) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        let x: &[f32; N] = x.first_chunk().expect("callers pass a whole vector");
        // SAFETY: `self` proves the feature, and the array is as long as the load.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: __m256) {
        let x: &mut [f32; N] = x.first_chunk_mut().expect("callers pass a whole vector");
        // SAFETY: `self` proves the feature, and the array is as long as the store.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves the feature. The instruction answers `b` unless `a > b`.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn sum(v: __m256) -> f32 {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
        // SAFETY: `self` proves the feature.
        unsafe { sum(v) }
    }

    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn largest(v: __m256) -> f32 {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
        // SAFETY: `self` proves the feature.
        unsafe { largest(v) }
    }

    #[inline(always)]
    fn sum4(self, v: [__m256; 4]) -> [f32; 4] {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn sum4([a, b, c, d]: [__m256; 4]) -> __m128 {
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let [ab, cd] = [_mm256_castps_pd(ab), _mm256_castps_pd(cd)];
            let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
            let high = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
            // Each half now holds a partial sum of every vector.
            let all = _mm256_add_ps(low, high);
            _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all))
        }
        let mut sums = [0.0; 4];
        // SAFETY: `self` proves the feature.
        let v = unsafe { sum4(v) };
        // SAFETY: the array is as long as the store, and every x86-64 has the instruction.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), v) }
        sums
    }

    #[inline(always)]
    fn exp2(self, x: __m256) -> __m256 {
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        fn exp2(x: __m256) -> __m256 {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            let rounded = _mm256_round_ps::<NEAREST>(x);
            let f = _mm256_sub_ps(x, rounded);
            let mut sum = _mm256_set1_ps(EXP2[0]);
            for c in &EXP2[1..] {
                sum = _mm256_fmadd_ps(sum, f, _mm256_set1_ps(*c));
            }
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(rounded));
            let power = _mm256_add_epi32(exponent, _mm256_castps_si256(_mm256_set1_ps(1.0)));
            // "Not less" holds for NaN too.
            let kept = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(EXP2_MIN));
            _mm256_and_ps(kept, _mm256_mul_ps(sum, _mm256_castsi256_ps(power)))
        }
        // SAFETY: `self` proves the features.
        unsafe { exp2(x) }
    }

    #[inline(always)]
    fn unit_f16(self, x: &[f16]) -> [__m256; 2] {
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        fn halves(x: &[f16; 2 * N]) -> [__m256; 2] {
            // SAFETY: the array is two loads long.
            let first = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
            // SAFETY: as above.
            let second = unsafe { _mm_loadu_si128(x[N..].as_ptr().cast()) };
            [_mm256_cvtph_ps(first), _mm256_cvtph_ps(second)]
        }
        let x = x.first_chunk().expect("callers pass a whole unit");
        // SAFETY: `self` proves the features.
        unsafe { halves(x) }
    }

    #[inline(always)]
    fn unit_bf16(self, x: &[bf16]) -> [__m256; 2] {
        #[inline]
        #[target_feature(enable = "avx2")]
        fn halves(x: &[bf16; 2 * N]) -> [__m256; 2] {
            // SAFETY: the array is as long as the load.
            let pairs = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
            let even = _mm256_slli_epi32::<16>(pairs);
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
        }
        let x = x.first_chunk().expect("callers pass a whole unit");
        // SAFETY: `self` proves the feature.
        unsafe { halves(x) }
    }

    #[inline(always)]
    fn prefetch(self, line: usize) {
        // SAFETY: a prefetch reads nothing and faults nowhere, so any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(line)) }
    }

    #[inline(always)]
    fn prefetch_near<T>(self, x: &[T], at: usize) {
        let line = x.as_ptr().wrapping_add(at);
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}
