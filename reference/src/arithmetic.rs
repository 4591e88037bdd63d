//! What an engine says of its own rounding, from which error bounds are derived.

use crate::dtype::Dtype;

/// The precision of an engine's arithmetic for one problem `[S-7.2]`.
///
/// The conformance suite derives its bounds from this declaration and holds no number of its own
/// for any engine. Inputs are exact (they were rounded to the cache's format before), and the final
/// rounding to the output format is the problem's, which the bound adds by itself.
///
/// Two habits are required of every engine, or the derivation does not hold: the softmax sum takes
/// each `p` before `p` is rounded for the product with the values `[S-7.10]`; and the factor that
/// follows a new maximum is formed from the same rounded maxima that `p` used, so that factors
/// telescope `[S-7.9]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arithmetic {
    /// Relative error of one product `q k` or `p v` before it is added; 0 where it is exact or
    /// fused.
    pub product: f64,
    /// Unit roundoff of sums in the two products: 2^-24 for f32 rounded to nearest, 2^-23 for f32
    /// that truncates.
    pub accumulation: f64,
    /// True if those sums truncate, so that errors have one sign and do not average out.
    pub truncates: bool,
    /// Products absorbed by one rounding: 1 for chains of fused multiply-adds, the depth of the
    /// matrix instruction otherwise.
    pub step: usize,
    /// Unit roundoff of everything outside the two products: softmax, its sum, rescaling, merging.
    pub vector: f64,
    /// Unit roundoff of probabilities as they are multiplied with values; 0 where they keep the
    /// precision of `vector`.
    pub probability: f64,
    /// Largest relative error of one exponential.
    pub exp: f64,
    /// Fewest positions per update of the running maximum; `usize::MAX` where there is one pass for
    /// the maximum and one for the sums.
    pub tile: usize,
    /// Most parts that are combined through (o, lse); 1 where partial sums are merged unnormalised.
    pub parts: usize,
    /// True if inputs or intermediate results below the smallest normal f32 may become 0.
    pub flushes_subnormals: bool,
    /// True if the bits of a sequence's result do not depend on its neighbours in the batch
    /// `[S-3.20]`.
    pub batch_invariant: bool,
}

impl Arithmetic {
    /// f64 throughout, two passes, with a libm exponential within one unit in the last place: the
    /// reference `[S-7.1]`.
    pub const F64: Arithmetic = Arithmetic {
        product: f64::EPSILON / 2.0,
        accumulation: f64::EPSILON / 2.0,
        truncates: false,
        step: 1,
        vector: f64::EPSILON / 2.0,
        probability: 0.0,
        exp: f64::EPSILON,
        tile: usize::MAX,
        parts: 1,
        flushes_subnormals: false,
        batch_invariant: true,
    };

    /// Chains of f32 fused multiply-adds, an exponential within `exp` relative error, unrounded
    /// probabilities, and a new maximum after at least `tile` positions.
    pub fn f32(exp: f64, tile: usize) -> Arithmetic {
        Arithmetic {
            product: 0.0,
            accumulation: Dtype::F32.unit_roundoff(),
            vector: Dtype::F32.unit_roundoff(),
            exp,
            tile,
            ..Arithmetic::F64
        }
    }

    /// Matrix instructions of depth `step` over 16-bit operands with f32 sums: probabilities are
    /// rounded to `operand` before they meet the values.
    pub fn matrix(operand: Dtype, step: usize, exp: f64, tile: usize) -> Arithmetic {
        Arithmetic { step, probability: operand.unit_roundoff(), ..Arithmetic::f32(exp, tile) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // [S-7.1], [S-7.2]
    #[test]
    fn declarations_are_what_their_names_say() {
        let roundoff = |bits: i32| 2f64.powi(-bits);
        assert_eq!(
            Arithmetic::F64,
            Arithmetic {
                product: roundoff(53),
                accumulation: roundoff(53),
                truncates: false,
                step: 1,
                vector: roundoff(53),
                probability: 0.0,
                exp: roundoff(52),
                tile: usize::MAX,
                parts: 1,
                flushes_subnormals: false,
                batch_invariant: true,
            }
        );
        let single = Arithmetic::f32(1e-7, 64);
        assert_eq!(
            single,
            Arithmetic {
                product: 0.0,
                accumulation: roundoff(24),
                vector: roundoff(24),
                exp: 1e-7,
                tile: 64,
                ..Arithmetic::F64
            }
        );
        assert_eq!(
            Arithmetic::matrix(Dtype::Bf16, 16, 1e-7, 64),
            Arithmetic { step: 16, probability: roundoff(8), ..single }
        );
    }
}
