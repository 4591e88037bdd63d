//! Rotary position embedding: [`Rope`].

use std::f64::consts::PI;
use std::sync::Arc;

/// Which two elements of a vector of width r form pair i.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// `(i, i + r/2)`: Llama and the published GTA and GLA code ("rotate half", NeoX)
    /// `[S-5.2]`.
    HalfSplit,
    /// `(2i, 2i + 1)`: DeepSeek checkpoints (GPT-J) `[S-5.3]`.
    Interleaved,
}

/// How the frequencies are changed for contexts longer than the trained one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Llama 3.1 `[S-5.5]`: frequencies with few turns in the original context are divided by
    /// `factor`, those with many are left, and between the two both are blended.
    Llama3 {
        /// Divisor of the low frequencies, at least 1.
        factor: f64,
        /// Turns in the original context up to which a frequency counts as low.
        low_freq_factor: f64,
        /// Turns from which it counts as high; more than `low_freq_factor`.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original_max_position: usize,
    },
    /// YaRN as DeepSeek-V2 and V3 use it `[S-5.6]`. With `m(a) = 0.1 a ln(factor) + 1`, cos and sin
    /// are multiplied by `m(mscale) / m(mscale_all_dim)` `[S-5.7]` and the softmax scale by
    /// `m(mscale_all_dim)^2` `[S-5.8]`.
    Yarn {
        /// Divisor of the low frequencies, at least 1.
        factor: f64,
        /// Turns in the original context from which a frequency is left alone (published: 32).
        beta_fast: f64,
        /// Turns up to which it is divided by `factor` (published: 1).
        beta_slow: f64,
        /// Magnitude of cos and sin (published default: 1).
        mscale: f64,
        /// Magnitude that moves from cos and sin into the softmax scale (published default: 0).
        mscale_all_dim: f64,
        /// Tokens of the original context.
        original_max_position: usize,
        /// Replaces the factor on cos and sin; leaves the softmax scale's as it is.
        attention_factor: Option<f64>,
        /// Whether the ends of the blend are widened to whole pairs (published default: true).
        truncate: bool,
    },
}

/// A rotary embedding of one width, angles in f64 `[S-5.1]`. Legal by construction.
///
/// A vector of even width r is r/2 pairs. At position p, pair i turns by the angle `p * f_i`:
///
/// ```text
/// f_i    = base^(-2i/r)                         then scaled, see RopeScaling
/// a'     = c * (a cos(p f_i) - b sin(p f_i))
/// b'     = c * (b cos(p f_i) + a sin(p f_i))
/// ```
///
/// c is 1 except under YaRN. Which two elements are pair i is the style's matter, and the result
/// stays where it came from: a key rotated in interleaved style is stored in pair order.
///
/// ```
/// use grouped_attention::{Rope, RopeScaling, RopeStyle};
/// let rope = Rope::new(RopeStyle::Interleaved, 4, 10_000.0, RopeScaling::None)?;
/// let mut x = [1.0, 0.0, 1.0, 0.0];
/// rope.rotate(&mut x, 1);
/// assert_eq!(x, [1f64.cos(), 1f64.sin(), 0.01f64.cos(), 0.01f64.sin()]);
/// # Ok::<(), grouped_attention::InvalidRope>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    style: RopeStyle,
    base: f64,
    scaling: RopeScaling,
    frequencies: Arc<[f64]>, // [r / 2], radians per position
    magnitude: f64,
    softmax_scale_factor: f64,
}

impl Rope {
    /// Widest vector accepted. The frequencies are tabulated, so a width read from a file must not
    /// decide how much memory is asked for; published models rotate 256 elements at most.
    pub const MAX_WIDTH: usize = 1 << 16;

    /// A rotation of vectors of `width` elements with base frequency `base`.
    ///
    /// # Errors
    /// An odd width or one over [`Rope::MAX_WIDTH`], a base that is not a finite number above 1,
    /// scaling parameters outside the ranges that [`RopeScaling`] gives, or so large that what follows
    /// from them is not a finite number above 0.
    pub fn new(
        style: RopeStyle,
        width: usize,
        base: f64,
        scaling: RopeScaling,
    ) -> Result<Rope, InvalidRope> {
        if !width.is_multiple_of(2) {
            return Err(InvalidRope::OddWidth { width });
        }
        if width > Rope::MAX_WIDTH {
            return Err(InvalidRope::TooWide { width });
        }
        if !(base.is_finite() && base > 1.0) {
            return Err(InvalidRope::Base { base });
        }
        scaling.check()?;
        let trained: Vec<f64> =
            (0..width / 2).map(|i| base.powf(-((2 * i) as f64) / width as f64)).collect();
        let (magnitude, softmax_scale_factor) =
            (scaling.magnitude(), scaling.softmax_scale_factor());
        // Legal parameters that are large enough overflow together.
        for (what, value) in
            [("magnitude", magnitude), ("softmax scale factor", softmax_scale_factor)]
        {
            if !(value.is_finite() && value > 0.0) {
                return Err(InvalidRope::Scaling { what, value });
            }
        }
        let frequencies = scaling.apply(trained, base).into();
        Ok(Rope { style, base, scaling, frequencies, magnitude, softmax_scale_factor })
    }

    /// Elements r of a rotated vector; even, may be 0.
    pub fn width(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Which elements form a pair.
    pub fn style(&self) -> RopeStyle {
        self.style
    }

    /// The base frequency.
    pub fn base(&self) -> f64 {
        self.base
    }

    /// The frequency scaling.
    pub fn scaling(&self) -> RopeScaling {
        self.scaling
    }

    /// What the softmax scale of the layer is multiplied by: `m(mscale_all_dim)^2` under YaRN, 1
    /// otherwise. `rotate` does not contain it.
    pub fn softmax_scale_factor(&self) -> f64 {
        self.softmax_scale_factor
    }

    /// `(c cos, c sin)` of every pair's angle at `position`, `[r / 2]`.
    ///
    /// An angle is one f64 product of relative error about `2^-52`, so its absolute error grows
    /// with the position.
    pub fn cos_sin(&self, position: i64) -> impl ExactSizeIterator<Item = (f64, f64)> + '_ {
        self.frequencies.iter().map(move |frequency| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (self.magnitude * cos, self.magnitude * sin)
        })
    }

    /// Rotates every vector of `x`, `[.., r]`, to `position`, which may be negative.
    ///
    /// # Panics
    /// If `x` is not a whole number of vectors of [`Rope::width`] elements.
    pub fn rotate(&self, x: &mut [f64], position: i64) {
        let width = self.width();
        if width == 0 {
            assert!(x.is_empty(), "a rope of width 0 rotates nothing, and x has {}", x.len());
            return;
        }
        assert!(x.len().is_multiple_of(width), "{} elements in vectors of {width}", x.len());
        let angles: Vec<(f64, f64)> = self.cos_sin(position).collect();
        for vector in x.chunks_exact_mut(width) {
            for (i, &(cos, sin)) in angles.iter().enumerate() {
                let (first, second) = match self.style {
                    RopeStyle::HalfSplit => (i, i + width / 2),
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                };
                let (a, b) = (vector[first], vector[second]);
                vector[first] = a * cos - b * sin;
                vector[second] = b * cos + a * sin;
            }
        }
    }
}

impl RopeScaling {
    fn check(&self) -> Result<(), InvalidRope> {
        let invalid = |what, value| Err(InvalidRope::Scaling { what, value });
        let (factor, original) = match *self {
            RopeScaling::None => return Ok(()),
            RopeScaling::Llama3 { factor, original_max_position, .. }
            | RopeScaling::Yarn { factor, original_max_position, .. } => {
                (factor, original_max_position)
            }
        };
        if !(factor.is_finite() && factor >= 1.0) {
            return invalid("factor", factor);
        }
        if original == 0 {
            return invalid("original_max_position", 0.0);
        }
        match *self {
            RopeScaling::None => {}
            RopeScaling::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } => {
                if !(low.is_finite() && low > 0.0) {
                    return invalid("low_freq_factor", low);
                }
                if !(high.is_finite() && high > low) {
                    return invalid("high_freq_factor", high);
                }
            }
            RopeScaling::Yarn {
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                attention_factor,
                ..
            } => {
                if !(beta_slow.is_finite() && beta_slow > 0.0) {
                    return invalid("beta_slow", beta_slow);
                }
                if !(beta_fast.is_finite() && beta_fast >= beta_slow) {
                    return invalid("beta_fast", beta_fast);
                }
                for (what, a) in [("mscale", mscale), ("mscale_all_dim", mscale_all_dim)] {
                    if !(a.is_finite() && a >= 0.0) {
                        return invalid(what, a);
                    }
                }
                if let Some(c) = attention_factor.filter(|c| !(c.is_finite() && *c > 0.0)) {
                    return invalid("attention_factor", c);
                }
            }
        }
        Ok(())
    }

    /// The scaled frequencies, `[r / 2]`, of the `trained` ones.
    fn apply(&self, trained: Vec<f64>, base: f64) -> Vec<f64> {
        match *self {
            RopeScaling::None => trained,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                let keep = |frequency: f64| {
                    let turns = original_max_position as f64 * frequency / (2.0 * PI);
                    (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
                };
                trained.into_iter().map(|f| blend(f, f / factor, keep(f))).collect()
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position,
                truncate,
                ..
            } => {
                let width = 2 * trained.len();
                let pair = |turns| pair_with_turns(turns, width, base, original_max_position);
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                // NOTE: the published bound of the upper end is width - 1, twice the last pair.
                // It changes the slope where the blend reaches past the end, so it stays.
                let (low, mut high) = (low.max(0.0), high.min(width as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let keep = |i: usize| 1.0 - (i as f64 - low) / (high - low);
                trained
                    .into_iter()
                    .enumerate()
                    .map(|(i, f)| blend(f, f / factor, keep(i)))
                    .collect()
            }
        }
    }

    /// The factor on cos and sin.
    fn magnitude(&self) -> f64 {
        match *self {
            RopeScaling::None | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn { factor, mscale, mscale_all_dim, attention_factor, .. } => {
                attention_factor.unwrap_or(m(factor, mscale) / m(factor, mscale_all_dim))
            }
        }
    }

    fn softmax_scale_factor(&self) -> f64 {
        match *self {
            RopeScaling::None | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn { factor, mscale_all_dim, .. } => m(factor, mscale_all_dim).powi(2),
        }
    }
}

/// YaRN's magnitude `m(f, a) = 0.1 a ln f + 1`; a legal factor is at least 1.
fn m(factor: f64, a: f64) -> f64 {
    0.1 * a * factor.ln() + 1.0
}

/// The (fractional) pair whose frequency makes `turns` turns in `context` tokens.
fn pair_with_turns(turns: f64, width: usize, base: f64, context: usize) -> f64 {
    width as f64 * (context as f64 / (turns * 2.0 * PI)).ln() / (2.0 * base.ln())
}

/// `keep` of the trained frequency and the rest of the divided one; `keep` outside [0, 1] is
/// clamped.
fn blend(trained: f64, divided: f64, keep: f64) -> f64 {
    let keep = keep.clamp(0.0, 1.0);
    keep * trained + (1.0 - keep) * divided
}

/// Why no [`Rope`] has these parameters.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRope {
    /// Elements are rotated in pairs.
    #[error("rope rotates pairs, and its width {width} is odd")]
    OddWidth {
        /// The width asked for.
        width: usize,
    },
    /// More than [`Rope::MAX_WIDTH`] elements.
    #[error("rope of width {width} is wider than {max}", max = Rope::MAX_WIDTH)]
    TooWide {
        /// The width asked for.
        width: usize,
    },
    /// The base frequency is not a finite number above 1.
    #[error("rope base {base} is not a finite number above 1")]
    Base {
        /// The base asked for.
        base: f64,
    },
    /// A parameter of the frequency scaling, or what follows from it, is out of its range.
    #[error("rope scaling: {what} = {value} is out of range")]
    Scaling {
        /// The parameter's name.
        what: &'static str,
        /// Its value.
        value: f64,
    },
}
