//! Number formats of queries, caches and outputs, and exact rounding into them.

use std::fmt;

/// A storage format. Arithmetic inside an engine is another matter: see
/// [`Arithmetic`](crate::Arithmetic).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
}

impl Dtype {
    /// Every format, widest first.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// Significant bits, the hidden one included.
    const fn precision(self) -> i32 {
        match self {
            Dtype::F32 => 24,
            Dtype::F16 => 11,
            Dtype::Bf16 => 8,
        }
    }

    /// Exponent of the smallest positive normal number.
    const fn min_exponent(self) -> i32 {
        match self {
            Dtype::F32 | Dtype::Bf16 => -126,
            Dtype::F16 => -14,
        }
    }

    /// Largest finite value.
    pub const fn max(self) -> f64 {
        match self {
            Dtype::F32 => f32::MAX as f64,
            Dtype::F16 => 65504.0,
            Dtype::Bf16 => 3.389_531_389_251_535_5e38,
        }
    }

    /// Unit roundoff `u`: the largest relative error of rounding a number in the normal range.
    pub fn unit_roundoff(self) -> f64 {
        exp2(-self.precision())
    }

    /// Smallest positive subnormal number; half of it bounds the absolute error of an underflow.
    pub fn min_subnormal(self) -> f64 {
        exp2(self.min_exponent() - self.precision() + 1)
    }

    /// Smallest positive normal number.
    pub fn min_normal(self) -> f64 {
        exp2(self.min_exponent())
    }

    /// Rounds to the nearest value of this format, ties to even, in one rounding.
    ///
    /// Going through f32 first would round twice; `half::bf16::from_f64` drops low bits of the
    /// significand, which turns a value just above a tie into the tie.
    pub fn round(self, x: f64) -> f64 {
        if x == 0.0 || !x.is_finite() {
            return x;
        }
        // The spacing of the format's numbers around x is a power of two, so dividing by it is
        // exact and what is left is rounding to an integer of at most 24 bits.
        let exponent = exponent(x).max(self.min_exponent());
        let spacing = exp2(exponent - self.precision() + 1);
        let rounded = (x / spacing).round_ties_even() * spacing;
        if rounded.abs() > self.max() { f64::INFINITY.copysign(x) } else { rounded }
    }

    /// True if `x` is a value of this format (NaN and infinities are).
    pub fn represents(self, x: f64) -> bool {
        x.is_nan() || self.round(x) == x
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(name: &str) -> Result<Dtype, UnknownDtype> {
        Dtype::ALL
            .into_iter()
            .find(|dtype| dtype.to_string() == name)
            .ok_or_else(|| UnknownDtype { name: name.to_owned() })
    }
}

/// A name that no [`Dtype`] has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {name:?}: expected f32, f16 or bf16")]
pub struct UnknownDtype {
    /// The name as given.
    pub name: String,
}

/// `2^e` for `e` in the range of f64's normal numbers.
fn exp2(e: i32) -> f64 {
    debug_assert!((-1022..=1023).contains(&e));
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// `floor(log2 |x|)` of a finite non-zero `x`; f64 subnormals count as the smallest normal, far
/// below every format here.
fn exponent(x: f64) -> i32 {
    ((x.to_bits() >> 52) as i32 & 0x7ff).max(1) - 1023
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    // [S-1.5]
    #[test]
    fn every_bf16_and_f16_is_its_own_rounding() {
        for bits in 0..=u16::MAX {
            for (dtype, x) in [
                (Dtype::Bf16, bf16::from_bits(bits).to_f64()),
                (Dtype::F16, f16::from_bits(bits).to_f64()),
            ] {
                assert!(dtype.represents(x), "{dtype} {bits:#06x}");
                if x.is_finite() {
                    assert_eq!(dtype.round(x).to_bits(), x.to_bits(), "{dtype} {bits:#06x}");
                }
            }
        }
    }

    // [S-1.5] [S-7.17]
    #[test]
    fn limits_are_those_of_the_formats() {
        let limits = |dtype: Dtype| {
            (dtype.bytes(), dtype.unit_roundoff(), dtype.min_normal(), dtype.min_subnormal())
        };
        assert_eq!(limits(Dtype::F32), (4, exp2(-24), exp2(-126), exp2(-149)));
        assert_eq!(limits(Dtype::F16), (2, exp2(-11), exp2(-14), exp2(-24)));
        assert_eq!(limits(Dtype::Bf16), (2, exp2(-8), exp2(-126), exp2(-133)));
        assert_eq!(Dtype::F32.max(), f64::from(f32::MAX));
        assert_eq!(Dtype::F16.max(), f16::MAX.to_f64());
        for dtype in Dtype::ALL {
            // The smallest number is one, and half of it is the tie that goes to 0.
            assert_eq!(dtype.round(dtype.min_subnormal()), dtype.min_subnormal());
            assert_eq!(dtype.round(dtype.min_subnormal() / 2.0), 0.0);
            assert_eq!(dtype.round(1.5 * dtype.min_subnormal()), 2.0 * dtype.min_subnormal());
            // 1 and its neighbours: the spacing above 1 is twice the unit roundoff.
            assert!(dtype.represents(1.0 + 2.0 * dtype.unit_roundoff()));
            assert!(!dtype.represents(1.0 + dtype.unit_roundoff()));
            assert!(dtype.represents(f64::NAN) && dtype.represents(f64::NEG_INFINITY));
            assert!(!dtype.represents(dtype.max() * (1.0 - dtype.unit_roundoff() / 2.0)));
            assert_eq!(dtype.round(-0.0).to_bits(), (-0.0f64).to_bits());
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert_eq!(format!("[{:>5}]", Dtype::F16), "[  f16]");
    }

    // [S-1.5]
    #[test]
    fn midpoints_go_to_even_and_neighbours_of_midpoints_do_not() {
        // 1 + 2^-8 is halfway between the bf16 numbers 1 and 1 + 2^-7.
        let tie = 1.0 + exp2(-8);
        assert_eq!(Dtype::Bf16.round(tie), 1.0);
        assert_eq!(Dtype::Bf16.round(tie + exp2(-52)), 1.0 + exp2(-7));
        assert_eq!(Dtype::Bf16.round(1.0 + 3.0 * exp2(-8)), 1.0 + exp2(-6));
        assert_eq!(Dtype::F16.round(exp2(-25)), 0.0);
        assert_eq!(Dtype::F16.round(exp2(-25) * 1.001), exp2(-24));
    }

    #[test]
    fn f32_rounding_is_the_cast() {
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            bits = bits.wrapping_mul(0xd129_0d3e_a3b9_2d1d).rotate_left(23).wrapping_add(1);
            let x = f64::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            assert_eq!(Dtype::F32.round(x), f64::from(x as f32), "{x:e}");
        }
    }

    #[test]
    fn overflow_is_infinite_only_past_the_last_midpoint() {
        assert_eq!(Dtype::F16.round(65519.999), 65504.0);
        assert_eq!(Dtype::F16.round(65520.0), f64::INFINITY);
        assert_eq!(Dtype::F16.round(-65520.0), f64::NEG_INFINITY);
        assert_eq!(Dtype::Bf16.round(f64::MAX), f64::INFINITY);
        assert_eq!(Dtype::Bf16.max(), bf16::MAX.to_f64());
    }
}
