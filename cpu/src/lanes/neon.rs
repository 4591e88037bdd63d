//! NEON: eight f32, in two registers.

use super::{EXP2, EXP2_MIN, Job, Lanes};
use half::{bf16, f16};
use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;

/// Proof that the processor has NEON, as all that run Linux or macOS do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Neon> {
        is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

const N: usize = 8;

type Pair = [float32x4_t; 2];

#[target_feature(enable = "neon")]
fn compiled<J: Job>(lanes: Neon, job: J) {
    job.run(lanes);
}

impl Lanes for Neon {
    type F = Pair;
    const LANES: usize = N;
    // On this architecture faer allocates for every product, and `attend` must not: 520 times in a
    // call of tests/allocation.rs.
    #[cfg(feature = "faer")]
    const DENSE_ROWS: usize = usize::MAX;
    const REGISTERS: usize = 16;
    const FUSED: bool = true;

    fn vectorize<J: Job>(self, job: J) {
        // SAFETY: `self` proves the feature.
        unsafe { compiled(self, job) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        // SAFETY: `self` proves the feature.
        let v = unsafe { vdupq_n_f32(x) };
        [v, v]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Pair {
        let x: &[f32; N] = x.first_chunk().expect("callers pass a whole vector");
        // SAFETY: `self` proves the feature, and the array is as long as the load.
        let float32x4x2_t(low, high) = unsafe { vld1q_f32_x2(x.as_ptr()) };
        [low, high]
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], [low, high]: Pair) {
        let x: &mut [f32; N] = x.first_chunk_mut().expect("callers pass a whole vector");
        // SAFETY: `self` proves the feature, and the array is as long as the store.
        unsafe { vst1q_f32_x2(x.as_mut_ptr(), float32x4x2_t(low, high)) }
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        #[inline]
        #[target_feature(enable = "neon")]
        fn mul(a: Pair, b: Pair) -> Pair {
            [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])]
        }
        // SAFETY: `self` proves the feature.
        unsafe { mul(a, b) }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        #[inline]
        #[target_feature(enable = "neon")]
        fn add(a: Pair, b: Pair) -> Pair {
            [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])]
        }
        // SAFETY: `self` proves the feature.
        unsafe { add(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        #[inline]
        #[target_feature(enable = "neon")]
        fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
            [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])]
        }
        // SAFETY: `self` proves the feature.
        unsafe { fma(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        /// Not the instruction for it, which answers NaN for a NaN in either.
        #[inline]
        #[target_feature(enable = "neon")]
        fn max(a: Pair, b: Pair) -> Pair {
            let larger = |i: usize| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]);
            [larger(0), larger(1)]
        }
        // SAFETY: `self` proves the feature.
        unsafe { max(a, b) }
    }

    #[inline(always)]
    fn sum(self, v: Pair) -> f32 {
        #[inline]
        #[target_feature(enable = "neon")]
        fn sum([low, high]: Pair) -> f32 {
            vaddvq_f32(vaddq_f32(low, high))
        }
        // SAFETY: `self` proves the feature.
        unsafe { sum(v) }
    }

    #[inline(always)]
    fn largest(self, v: Pair) -> f32 {
        #[inline]
        #[target_feature(enable = "neon")]
        fn largest([low, high]: Pair) -> f32 {
            vmaxvq_f32(vmaxq_f32(low, high))
        }
        // SAFETY: `self` proves the feature.
        unsafe { largest(v) }
    }

    #[inline(always)]
    fn sum4(self, v: [Pair; 4]) -> [f32; 4] {
        #[inline]
        #[target_feature(enable = "neon")]
        fn sum4(v: [Pair; 4]) -> float32x4_t {
            let [a, b, c, d] = v.map(|[low, high]| vaddq_f32(low, high));
            vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))
        }
        let mut sums = [0.0; 4];
        // SAFETY: `self` proves the feature.
        let v = unsafe { sum4(v) };
        // SAFETY: `self` proves the feature, and the array is as long as the store.
        unsafe { vst1q_f32(sums.as_mut_ptr(), v) }
        sums
    }

    #[inline(always)]
    fn exp2(self, x: Pair) -> Pair {
        #[inline]
        #[target_feature(enable = "neon")]
        fn exp2(x: Pair) -> Pair {
            x.map(|x| half_of_exp2(x))
        }
        #[inline]
        #[target_feature(enable = "neon")]
        fn half_of_exp2(x: float32x4_t) -> float32x4_t {
            let rounded = vrndnq_f32(x);
            let f = vsubq_f32(x, rounded);
            let mut sum = vdupq_n_f32(EXP2[0]);
            for c in &EXP2[1..] {
                sum = vfmaq_f32(vdupq_n_f32(*c), sum, f);
            }
            let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(rounded));
            let power = vaddq_s32(exponent, vreinterpretq_s32_f32(vdupq_n_f32(1.0)));
            let y = vmulq_f32(sum, vreinterpretq_f32_s32(power));
            // "Not less" holds for NaN too.
            let less = vcltq_f32(x, vdupq_n_f32(EXP2_MIN));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), less))
        }
        // SAFETY: `self` proves the feature.
        unsafe { exp2(x) }
    }

    #[inline(always)]
    fn unit_f16(self, x: &[f16]) -> [Pair; 2] {
        /// FCVTL, which has no stable intrinsic.
        #[inline]
        #[target_feature(enable = "neon")]
        fn widen(halves: uint16x4_t) -> float32x4_t {
            let wide: float32x4_t;
            // SAFETY: the instruction is part of NEON and touches these two registers alone.
            unsafe {
                asm!(
                    "fcvtl {wide:v}.4s, {halves:v}.4h",
                    wide = out(vreg) wide,
                    halves = in(vreg) halves,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            wide
        }
        #[inline]
        #[target_feature(enable = "neon")]
        fn unit(x: &[f16; 2 * N]) -> [Pair; 2] {
            // SAFETY: the array is as long as the load.
            let uint16x4x4_t(a, b, c, d) = unsafe { vld1_u16_x4(x.as_ptr().cast()) };
            [[widen(a), widen(b)], [widen(c), widen(d)]]
        }
        let x = x.first_chunk().expect("callers pass a whole unit");
        // SAFETY: `self` proves the feature.
        unsafe { unit(x) }
    }

    #[inline(always)]
    fn unit_bf16(self, x: &[bf16]) -> [Pair; 2] {
        #[inline]
        #[target_feature(enable = "neon")]
        fn unit(x: &[bf16; 2 * N]) -> [Pair; 2] {
            // SAFETY: the array is as long as the load.
            let uint16x8x2_t(low, high) = unsafe { vld1q_u16_x2(x.as_ptr().cast()) };
            let pairs = [vreinterpretq_u32_u16(low), vreinterpretq_u32_u16(high)];
            let even = pairs.map(|pairs| vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)));
            let upper = vdupq_n_u32(0xffff_0000);
            let odd = pairs.map(|pairs| vreinterpretq_f32_u32(vandq_u32(pairs, upper)));
            [even, odd]
        }
        let x = x.first_chunk().expect("callers pass a whole unit");
        // SAFETY: `self` proves the feature.
        unsafe { unit(x) }
    }

    #[inline(always)]
    fn prefetch(self, line: usize) {
        // SAFETY: a prefetch reads nothing and faults nowhere, so any address will do.
        unsafe {
            asm!("prfm pldl2keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn prefetch_near<T>(self, x: &[T], at: usize) {
        let line = x.as_ptr().wrapping_add(at);
        // SAFETY: as above.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
        }
    }
}
