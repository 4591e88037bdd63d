//! Vectors of f32: one small set of operations per instruction set, on which every kernel but the
//! matrix one is written once.

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx512;
#[cfg(all(target_arch = "aarch64", not(miri)))]
mod neon;
mod portable;

#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) use {avx2::Avx2, avx512::Avx512};

#[cfg(all(target_arch = "aarch64", not(miri)))]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

use crate::buffer::Element;

/// An instruction set. A value of the type is the proof that the processor has it, which is what
/// makes the operations safe to call.
///
/// Every method is inlined into the function that [`vectorize`](Self::vectorize) runs, which is
/// compiled for the instruction set; elsewhere they are right but slow.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// A vector of [`LANES`](Self::LANES) f32.
    type F: Copy;
    const LANES: usize;
    /// Elements of a *unit*: the two vectors that are loaded together.
    const UNIT: usize = 2 * Self::LANES;
    /// Vectors that registers hold: what a tile of sums may take.
    const REGISTERS: usize;
    /// Rows of a head from which faer multiplies; `usize::MAX` where it has neither these instructions
    /// nor better ones, or allocates.
    #[cfg(feature = "faer")]
    const DENSE_ROWS: usize;
    /// True if [`fma`](Self::fma) rounds once.
    const FUSED: bool;

    /// Runs `job` compiled for this instruction set.
    fn vectorize<J: Job>(self, job: J);

    fn splat(self, x: f32) -> Self::F;
    /// The first `LANES` elements.
    fn load(self, x: &[f32]) -> Self::F;
    /// Overwrites the first `LANES` elements.
    fn store(self, x: &mut [f32], v: Self::F);
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where it is greater than `b`, else `b`: a NaN in `a` is ignored, one in `b` kept.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Sum over the lanes, in an order of its own that is always the same.
    fn sum(self, v: Self::F) -> f32;
    /// The largest of the lanes, none of which is NaN.
    fn largest(self, v: Self::F) -> f32;
    /// Four [`sum`](Self::sum)s at once, possibly in another order.
    #[inline(always)]
    fn sum4(self, v: [Self::F; 4]) -> [f32; 4] {
        v.map(|v| self.sum(v))
    }
    /// `2^x` within [`EXP_ERROR`] for x of at most 127; 0 below -126, NaN for NaN, 1 for 0.
    fn exp2(self, x: Self::F) -> Self::F;

    /// A unit of f32 as it lies: the first half, then the second.
    fn unit_f32(self, x: &[f32]) -> [Self::F; 2] {
        [self.load(x), self.load(&x[Self::LANES..])]
    }
    /// A unit of f16 as it lies.
    fn unit_f16(self, x: &[half::f16]) -> [Self::F; 2];
    /// A unit of bf16: the even elements, then the odd ones. A bf16 is the upper half of an f32, so
    /// this order takes one shift and one mask, and the order as it lies twice as many operations.
    fn unit_bf16(self, x: &[half::bf16]) -> [Self::F; 2];

    /// Asks for the cache line of an address, which may be any, to come to the second-level cache.
    ///
    /// PERF: two cores of a Zen 4, runs of 16 KiB in random order, each line asked for a run ahead
    /// while one is used, GB/s: to the second level 24 to 27, to the first 17 to 19, not at all 15 to
    /// 17, half a run at a time as much as not at all; runs of 128 KiB 25 to 29 any way. A core has
    /// room for few requests of its first-level cache.
    fn prefetch(self, line: usize);
    /// Asks for the cache line of `x[at]`, which may lie past the end, to come to the first-level cache: for a line that is used
    /// soon.
    fn prefetch_near<T>(self, x: &[T], at: usize);
}

/// Something to run compiled for an instruction set.
pub(crate) trait Job {
    fn run<L: Lanes>(self, lanes: L);
}

/// A format that lanes load. Queries and outputs are kept in the order of its units.
pub(crate) trait Unit: Element {
    /// Where a unit keeps its odd elements behind its even ones.
    const INTERLEAVED: bool;
    fn unit<L: Lanes>(lanes: L, x: &[Self]) -> [L::F; 2];
    fn zero() -> Self;
    /// The same numbers, where they are bf16.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn as_bf16(_: &[Self]) -> Option<&[half::bf16]> {
        None
    }
}

impl Unit for f32 {
    const INTERLEAVED: bool = false;
    #[inline(always)]
    fn unit<L: Lanes>(lanes: L, x: &[f32]) -> [L::F; 2] {
        lanes.unit_f32(x)
    }
    fn zero() -> f32 {
        0.0
    }
}

impl Unit for half::f16 {
    const INTERLEAVED: bool = false;
    #[inline(always)]
    fn unit<L: Lanes>(lanes: L, x: &[half::f16]) -> [L::F; 2] {
        lanes.unit_f16(x)
    }
    fn zero() -> half::f16 {
        half::f16::ZERO
    }
}

impl Unit for half::bf16 {
    const INTERLEAVED: bool = true;
    #[inline(always)]
    fn unit<L: Lanes>(lanes: L, x: &[half::bf16]) -> [L::F; 2] {
        lanes.unit_bf16(x)
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn as_bf16(x: &[half::bf16]) -> Option<&[half::bf16]> {
        Some(x)
    }
    fn zero() -> half::bf16 {
        half::bf16::ZERO
    }
}

/// Largest relative error of [`Lanes::exp2`] for results that are not subnormal. Of every f32 in
/// [-1/2, 1/2] the worst is 2^-22.09 where multiply-adds round once, and 2^-21.96 where twice; 2^-22.38 for the matrix
/// unit's.
pub(crate) const EXP_ERROR: f64 = 1.0625 / (1 << 22) as f64;

/// `2^f` for f in [-1/2, 1/2], constant term last: the polynomial of degree 5 with the least
/// relative error (Remez), 2^-23.7, and its constant term replaced by 1, so that `2^0` is 1.
pub(crate) const EXP2: [f32; 6] =
    [0.001_327_647_2, 0.009_675_541, 0.055_507_133, 0.240_221_2, 0.693_146_97, 1.0];

/// Exponents below this give 0: results would be subnormal.
pub(crate) const EXP2_MIN: f32 = -126.0;
#[cfg(test)]
mod tests {
    use super::*;

    struct Exp2<'a>(&'a mut [f32]);

    impl Job for Exp2<'_> {
        fn run<L: Lanes>(self, lanes: L) {
            for chunk in self.0.chunks_exact_mut(L::LANES) {
                let y = lanes.exp2(lanes.load(chunk));
                lanes.store(chunk, y);
            }
        }
    }

    /// Replaces exponents, a multiple of 16 of them, by powers.
    type Exponential = Box<dyn Fn(&mut [f32])>;

    /// Every exponential that can run here, by the name of its kernel.
    fn exponentials() -> Vec<(String, Exponential)> {
        let mut all: Vec<(_, Exponential)> = Vec::new();
        for kernel in crate::Kernel::available() {
            let instructions = kernel.detect().unwrap();
            all.push((kernel.to_string(), Box::new(move |x| instructions.run(Exp2(x)))));
        }
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if Avx512::detect().is_some() {
            all.push((
                "columns of the matrix unit".to_owned(),
                Box::new(|x| {
                    for x in x.as_chunks_mut().0 {
                        // SAFETY: every pattern of bits is a value of both types, which are of one size.
                        let exponents = unsafe {
                            std::mem::transmute::<[f32; 16], std::arch::x86_64::__m512>(*x)
                        };
                        // SAFETY: the features were detected.
                        let powers = unsafe { crate::columns::exp2(u16::MAX, exponents) };
                        // SAFETY: as for the exponents.
                        *x = unsafe {
                            std::mem::transmute::<std::arch::x86_64::__m512, [f32; 16]>(powers)
                        };
                    }
                }),
            ));
        }
        all
    }

    /// The largest relative error over some exponents.
    fn worst(exponential: &Exponential, x: &[f32]) -> f64 {
        let mut y = x.to_vec();
        exponential(&mut y);
        let error = |(x, y): (&f32, f32)| {
            let exact = f64::from(*x).exp2();
            ((f64::from(y) - exact) / exact).abs()
        };
        x.iter().zip(y).map(error).max_by(f64::total_cmp).expect("some exponents")
    }

    // [S-7.9]: every fraction of the polynomial's interval that is not too small to matter.
    #[test]
    fn no_fraction_exceeds_the_error() {
        const RUN: u32 = 1 << 16;
        for (name, exponential) in exponentials() {
            for sign in [1.0, -1.0] {
                // From 2^-26 to 1/2.
                for first in (0x3280_0000..=0x3f00_0000_u32).step_by(RUN as usize) {
                    let end = (first + RUN).min(0x3f00_0001);
                    let mut x: Vec<f32> = (first..end).map(|x| sign * f32::from_bits(x)).collect();
                    x.resize(RUN as usize, 0.0);
                    let error = worst(&exponential, &x);
                    assert!(error <= EXP_ERROR, "{name}: off by {error:e} from {first:#x} on");
                }
            }
        }
    }

    // [S-7.9]: the declared error holds over the whole range, at a spacing that meets every
    // fraction of the polynomial's interval many times.
    #[test]
    fn exponentials_keep_their_error() {
        for (name, exponential) in exponentials() {
            let x: Vec<f32> = (0..1 << 18).map(|i| -126.0 * i as f32 / (1 << 18) as f32).collect();
            let error = worst(&exponential, &x);
            assert!(error <= EXP_ERROR, "{name}: off by {error:e}");
            let mut special = [0.0, f32::NEG_INFINITY, f32::NAN, -126.5, -1e30, 1.0, -1.0, 8.0];
            let mut padded = [0.0; 16];
            padded[..8].copy_from_slice(&special);
            exponential(&mut padded);
            special.copy_from_slice(&padded[..8]);
            assert!(special[2].is_nan(), "{name}");
            special[2] = 0.0;
            assert_eq!(special, [1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.5, 256.0], "{name}");
        }
    }
}
