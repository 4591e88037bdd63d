//! An arithmetic on the command line: a preset, and parts that differ from it.

use clap::{ArgGroup, Args, ValueEnum};
use grouped_attention::{Arithmetic, Dtype};
use std::str::FromStr;

/// What the judged kernel states about its own rounding; chapter 7 of the specification says what
/// each part means. A unit roundoff is f64, f32, f16, bf16, 2^-24, a decimal number or 0.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("stated")
    .args(["arithmetic", "accumulation", "probability"]).required(true).multiple(true))]
pub(crate) struct Stated {
    /// Formats alone; without it f32, changed by the parts below.
    #[arg(long, value_enum)]
    arithmetic: Option<Preset>,
    /// Relative error of one product before it is added; 0 where it is exact or fused.
    #[arg(long, value_name = "U")]
    product: Option<Roundoff>,
    /// Unit roundoff of sums in the two matrix products.
    #[arg(long, value_name = "U")]
    accumulation: Option<Roundoff>,
    /// Whether those sums truncate; state the full unit then, 2^-23 for f32.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    truncates: Option<bool>,
    /// Products that one rounding of those sums absorbs, such as the depth of a matrix instruction.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    step: Option<usize>,
    /// Unit roundoff of everything else: softmax, its sum, rescaling, merging.
    #[arg(long, value_name = "U")]
    vector: Option<Roundoff>,
    /// Unit roundoff of probabilities as they meet values; 0 where they stay as they are.
    #[arg(long, value_name = "U")]
    probability: Option<Roundoff>,
    /// Largest relative error of one exponential.
    #[arg(long, value_name = "U")]
    exp: Option<Roundoff>,
    /// Positions for each update of the running maximum at least; all for two passes.
    #[arg(long, value_name = "N", value_parser = parse_tile)]
    tile: Option<usize>,
    /// Parts of a row at most that are combined through o and lse.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    parts: Option<usize>,
    /// Whether f32 and bf16 numbers below 2^-126 may become 0.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    flushes: Option<bool>,
}

/// Formats that go together. A preset promises nothing about the order of a computation: every
/// product is rounded on its own and the maximum may change at every position.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Preset {
    /// f64 throughout, two passes.
    F64,
    /// f32 throughout, sums to nearest.
    F32,
    /// TF32 operands, f32 sums that truncate.
    Tf32,
    /// f16 probabilities, f32 sums that truncate.
    F16,
    /// bf16 probabilities, f32 sums that truncate.
    Bf16,
}

/// Relative error of ex2.approx and of polynomials within two units in the last place of f32.
const EXP: f64 = 1.0 / (1 << 22) as f64;

impl Preset {
    fn arithmetic(self) -> Arithmetic {
        let f32 = Arithmetic::f32(EXP, 1);
        // Matrix instructions drop the bits that do not fit the sum, so a step is off by up to one
        // unit in the last place: twice the roundoff.
        let matrix =
            Arithmetic { accumulation: 2.0 * Dtype::F32.unit_roundoff(), truncates: true, ..f32 };
        match self {
            Preset::F64 => Arithmetic::F64,
            Preset::F32 => f32,
            Preset::Tf32 => Arithmetic { product: 1.0 / 1024.0, ..matrix },
            Preset::F16 => Arithmetic { probability: Dtype::F16.unit_roundoff(), ..matrix },
            Preset::Bf16 => Arithmetic { probability: Dtype::Bf16.unit_roundoff(), ..matrix },
        }
    }
}

impl Stated {
    pub(crate) fn arithmetic(&self) -> Arithmetic {
        let base = self.arithmetic.unwrap_or(Preset::F32).arithmetic();
        let roundoff = |part: Option<Roundoff>, base: f64| part.map_or(base, |Roundoff(u)| u);
        Arithmetic {
            product: roundoff(self.product, base.product),
            accumulation: roundoff(self.accumulation, base.accumulation),
            truncates: self.truncates.unwrap_or(base.truncates),
            step: self.step.unwrap_or(base.step),
            vector: roundoff(self.vector, base.vector),
            probability: roundoff(self.probability, base.probability),
            exp: roundoff(self.exp, base.exp),
            tile: self.tile.unwrap_or(base.tile),
            parts: self.parts.unwrap_or(base.parts),
            flushes_subnormals: self.flushes.unwrap_or(base.flushes_subnormals),
            ..base
        }
    }
}

/// A relative error, at least 0 and below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Roundoff(f64);

impl FromStr for Roundoff {
    type Err = String;

    fn from_str(text: &str) -> Result<Roundoff, String> {
        let value = match text {
            "f64" => Some(f64::EPSILON / 2.0),
            "f32" => Some(Dtype::F32.unit_roundoff()),
            "f16" => Some(Dtype::F16.unit_roundoff()),
            "bf16" => Some(Dtype::Bf16.unit_roundoff()),
            _ => match text.strip_prefix("2^-") {
                Some(exponent) => exponent.parse::<u8>().ok().map(|e| 2f64.powi(-i32::from(e))),
                None => text.parse().ok(),
            },
        };
        let legal = value.filter(|value| (0.0..1.0).contains(value));
        let expected = "expected f64, f32, f16, bf16, 2^-24 or a number from 0 to below 1";
        legal.map(Roundoff).ok_or_else(|| expected.to_owned())
    }
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a positive number".to_owned()),
        Ok(count) => Ok(count),
    }
}

fn parse_tile(text: &str) -> Result<usize, String> {
    if text == "all" { Ok(usize::MAX) } else { parse_count(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        stated: Stated,
    }

    fn stated(words: &str) -> Result<Arithmetic, clap::Error> {
        let line = Line::try_parse_from(["compare"].into_iter().chain(words.split_whitespace()))?;
        Ok(line.stated.arithmetic())
    }

    // [S-7.2]
    #[test]
    fn parts_change_a_preset() {
        let words = "--arithmetic bf16 --step 16 --tile 64 --parts 8 --flushes --truncates false";
        let expected = Arithmetic {
            accumulation: 2f64.powi(-23),
            parts: 8,
            flushes_subnormals: true,
            ..Arithmetic::matrix(Dtype::Bf16, 16, 2f64.powi(-22), 64)
        };
        assert_eq!(stated(words).unwrap(), expected);
        assert!(stated("--arithmetic bf16").unwrap().truncates);
    }

    #[test]
    fn probabilities_and_accumulation_apart_are_enough() {
        let expected = Arithmetic { probability: 2f64.powi(-11), ..Arithmetic::f32(EXP, 1) };
        assert_eq!(stated("--probability f16").unwrap(), expected);
        assert_eq!(stated("--accumulation f32 --probability f16").unwrap(), expected);
        let two_pass = stated("--accumulation 2^-53 --tile all").unwrap();
        assert_eq!((two_pass.accumulation, two_pass.tile), (2f64.powi(-53), usize::MAX));
    }

    #[test]
    fn nothing_stated_is_an_error() {
        assert!(stated("").is_err() && stated("--tile 4").is_err());
        for bad in ["--probability 1", "--probability -1", "--exp nan", "--exp 2^-999"] {
            assert!(stated(&format!("--arithmetic f32 {bad}")).is_err(), "{bad}");
        }
        assert!(stated("--arithmetic f32 --tile 0").is_err());
    }
}
