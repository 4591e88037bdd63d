//! Plain Rust that compilers vectorise for whatever the build targets.

use super::{EXP2, EXP2_MIN, Job, Lanes};
use half::{bf16, f16};

/// No instruction set in particular.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

const N: usize = 8;

#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> [f32; N] {
    std::array::from_fn(f)
}

/// Without the instruction, `mul_add` is a call into a library.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if Portable::FUSED { a.mul_add(b, c) } else { a * b + c }
}

impl Lanes for Portable {
    type F = [f32; N];
    const LANES: usize = N;
    #[cfg(feature = "faer")]
    const DENSE_ROWS: usize = usize::MAX;
    const REGISTERS: usize = 16;
    const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

    #[inline(always)]
    fn vectorize<J: Job>(self, job: J) {
        job.run(self);
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; N] {
        [x; N]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> [f32; N] {
        *x.first_chunk().expect("callers pass a whole vector")
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: [f32; N]) {
        *x.first_chunk_mut().expect("callers pass a whole vector") = v;
    }

    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        map(|i| mul_add(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn sum(self, v: [f32; N]) -> f32 {
        let [a, b, c, d, e, f, g, h] = v;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    fn largest(self, v: [f32; N]) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn exp2(self, x: [f32; N]) -> [f32; N] {
        map(|i| {
            let x = x[i];
            // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the significand.
            const SHIFT: f32 = 12_582_912.0;
            let shifted = x + SHIFT;
            let f = x - (shifted - SHIFT);
            let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
            let polynomial = EXP2[1..].iter().fold(EXP2[0], |sum, &c| mul_add(sum, f, c));
            if x < EXP2_MIN { 0.0 } else { polynomial * power }
        })
    }

    #[inline(always)]
    fn unit_f16(self, x: &[f16]) -> [[f32; N]; 2] {
        let x: &[f16; 2 * N] = x.first_chunk().expect("callers pass a whole unit");
        [map(|i| x[i].to_f32()), map(|i| x[N + i].to_f32())]
    }

    #[inline(always)]
    fn unit_bf16(self, x: &[bf16]) -> [[f32; N]; 2] {
        let x: &[bf16; 2 * N] = x.first_chunk().expect("callers pass a whole unit");
        let widen = |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
        [map(|i| widen(x[2 * i])), map(|i| widen(x[2 * i + 1]))]
    }

    #[inline(always)]
    fn prefetch(self, _: usize) {}

    #[inline(always)]
    fn prefetch_near<T>(self, _: &[T], _: usize) {}
}
