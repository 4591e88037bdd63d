//! AVX-512: sixteen f32.

use super::{EXP2, EXP2_MIN, Job, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Proof that the processor and the system have AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Avx512> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        has.then_some(Avx512(()))
    }
}

const N: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn compiled<J: Job>(lanes: Avx512, job: J) {
    job.run(lanes);
}

impl Lanes for Avx512 {
    type F = __m512;
    const LANES: usize = N;
    #[cfg(feature = "faer")]
    const DENSE_ROWS: usize = 48;
    const REGISTERS: usize = 32;
    const FUSED: bool = true;

    fn vectorize<J: Job>(self, job: J) {
        // SAFETY: `self` proves the features.
        unsafe { compiled(self, job) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let x: &[f32; N] = x.first_chunk().expect("callers pass a whole vector");
        // SAFETY: `self` proves the feature, and the array is as long as the load.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: __m512) {
        let x: &mut [f32; N] = x.first_chunk_mut().expect("callers pass a whole vector");
        // SAFETY: `self` proves the feature, and the array is as long as the store.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves the feature. The instruction answers `b` unless `a > b`.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        // SAFETY: `self` proves the feature.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn sum4(self, v: [__m512; 4]) -> [f32; 4] {
        #[inline]
        #[target_feature(enable = "avx512f,avx512dq")]
        fn sum4([a, b, c, d]: [__m512; 4]) -> __m128 {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let [ab, cd] = [_mm512_castps_pd(ab), _mm512_castps_pd(cd)];
            let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
            let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
            // Every 128 bits now hold four partial sums, one of each vector.
            let all = _mm512_add_ps(low, high);
            let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
            _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
        }
        let mut sums = [0.0; 4];
        // SAFETY: `self` proves the features.
        let v = unsafe { sum4(v) };
        // SAFETY: the array is as long as the store, and every x86-64 has the instruction.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), v) }
        sums
    }

    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn exp2(x: __m512) -> __m512 {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            let power = _mm512_roundscale_ps::<NEAREST>(x);
            let f = _mm512_sub_ps(x, power);
            let mut sum = _mm512_set1_ps(EXP2[0]);
            for c in &EXP2[1..] {
                sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(*c));
            }
            // "Not less" holds for NaN too.
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(EXP2_MIN));
            _mm512_maskz_scalef_ps(kept, sum, power)
        }
        // SAFETY: `self` proves the feature.
        unsafe { exp2(x) }
    }

    #[inline(always)]
    fn unit_f16(self, x: &[f16]) -> [__m512; 2] {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn halves(x: &[f16; 2 * N]) -> [__m512; 2] {
            // SAFETY: the array is two loads long.
            let first = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
            // SAFETY: as above.
            let second = unsafe { _mm256_loadu_si256(x[N..].as_ptr().cast()) };
            [_mm512_cvtph_ps(first), _mm512_cvtph_ps(second)]
        }
        let x = x.first_chunk().expect("callers pass a whole unit");
        // SAFETY: `self` proves the feature.
        unsafe { halves(x) }
    }

    #[inline(always)]
    fn unit_bf16(self, x: &[bf16]) -> [__m512; 2] {
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn halves(x: &[bf16; 2 * N]) -> [__m512; 2] {
            // SAFETY: the array is as long as the load.
            let pairs = unsafe { _mm512_loadu_si512(x.as_ptr().cast()) };
            let even = _mm512_slli_epi32::<16>(pairs);
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
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
