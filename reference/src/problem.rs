//! What is asked of an engine, apart from the lengths of a step.

use crate::dtype::Dtype;
use crate::geometry::Geometry;
use crate::rope::Rope;

/// One attention layer's computation: geometry, formats, scale and how sums may be cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    geometry: Geometry,
    dtype: Dtype,
    output: Dtype,
    scale: f64,
    rope: Option<Rope>,
    batch_invariant: bool,
    extension: Option<Extension>,
}

/// What attention kernels elsewhere can do and nothing here defines yet.
///
/// Asking for one is legal and answered by [`Unsupported::Extension`], never by ignoring it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Extension {
    /// Only the last `window` positions are visible.
    SlidingWindow {
        /// Visible positions, the query's own included.
        window: usize,
    },
    /// Scores are `cap * tanh(score / cap)`.
    SoftCap {
        /// The cap.
        cap: f64,
    },
    /// Every head's softmax has one more term that has no value.
    Sinks,
}

impl Problem {
    /// Queries and cache in `dtype`; outputs likewise, no rotation on append, sums cut as the
    /// engine likes.
    ///
    /// `scale` multiplies the scores. It is the training scale of the model (`1 / sqrt(d_h)`, or
    /// `1 / sqrt(d_h + d_r)` for MLA and GLA in absorbed form too) and has no default, since no
    /// width of a tensor tells it `[S-3.5] [S-3.6]`.
    ///
    /// # Errors
    /// A scale that is not finite and positive.
    pub fn new(geometry: Geometry, dtype: Dtype, scale: f64) -> Result<Problem, InvalidProblem> {
        // An engine holds the scale in f32, as it is or for exponentials of base 2; one that underflows
        // there would silence every score.
        let held = [scale as f32, (scale * std::f64::consts::LOG2_E) as f32];
        if !held.iter().all(|held| held.is_finite() && *held > 0.0) {
            return Err(InvalidProblem::Scale { scale: scale.to_string() });
        }
        Ok(Problem {
            geometry,
            dtype,
            output: dtype,
            scale,
            rope: None,
            batch_invariant: false,
            extension: None,
        })
    }

    /// The same problem with outputs in f32, unrounded from the accumulators.
    pub fn f32_output(self) -> Problem {
        Problem { output: Dtype::F32, ..self }
    }

    /// The same problem with a rope for [`Append::rotating`](crate::Append::rotating).
    ///
    /// # Errors
    /// A rope whose width is not that of the rope key, or for separate rows of the whole key.
    pub fn rotating(self, rope: Rope) -> Result<Problem, InvalidProblem> {
        let expected = self.rotated_width();
        if rope.width() != expected {
            return Err(InvalidProblem::RopeWidth { expected, got: rope.width() });
        }
        Ok(Problem { rope: Some(rope), ..self })
    }

    /// The same problem in batch-invariant mode: the bits of a sequence's result must not depend
    /// on its neighbours, on page ids or on the page size `[S-3.21]`.
    pub fn batch_invariant(self) -> Problem {
        Problem { batch_invariant: true, ..self }
    }

    /// The same problem with an extension, which no engine supports yet.
    pub fn extended(self, extension: Extension) -> Problem {
        Problem { extension: Some(extension), ..self }
    }

    /// Heads and widths.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Format of queries and cache.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Format of outputs: that of the queries, or f32.
    pub fn output(&self) -> Dtype {
        self.output
    }

    /// The factor of every score.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// How a rotating append turns rope keys.
    pub fn rope(&self) -> Option<&Rope> {
        self.rope.as_ref()
    }

    /// True in batch-invariant mode.
    pub fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    /// The extension asked for, if any.
    pub fn extension(&self) -> Option<Extension> {
        self.extension
    }

    /// Elements of a row that a rotating append turns: the rope key, or the whole key of every
    /// head where keys and values are apart.
    pub fn rotated_width(&self) -> usize {
        match self.geometry.row() {
            crate::Row::Separate { d_k, .. } => d_k,
            crate::Row::Tied { r, .. } => r,
        }
    }
}

/// Why numbers are not a problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidProblem {
    /// The scale must be finite and positive, also in f32 and there times log2(e).
    #[error("a scale must be finite and positive in f32, also times log2(e), and {scale} is not")]
    Scale {
        /// The scale as given; text, so that errors compare.
        scale: String,
    },
    /// The rope turns more or fewer elements than the row has.
    #[error("the rope turns {got} elements of a rope key of {expected}")]
    RopeWidth {
        /// Width of the rope key.
        expected: usize,
        /// Width of the rope.
        got: usize,
    },
}

/// What an engine cannot do, though it is legal to ask.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// Not defined here yet.
    #[error("{0:?} is not supported")]
    Extension(Extension),
    /// A format this engine has no kernel for.
    #[error("{dtype} is not supported")]
    Dtype {
        /// The format.
        dtype: Dtype,
    },
    /// Heads or widths this engine has no kernel for.
    #[error("{geometry} is not supported: {reason}")]
    Geometry {
        /// The geometry.
        geometry: Geometry,
        /// What about it.
        reason: String,
    },
    /// Something else, in the engine's words.
    #[error("{what} is not supported")]
    Other {
        /// What was asked for.
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [S-3.21]: the mode is asked for, and nothing else changes with it.
    #[test]
    fn batch_invariance_is_asked_for() {
        let geometry = Geometry::gqa(2, 1, 4).expect("legal");
        let plain = Problem::new(geometry, Dtype::F16, 0.5).expect("legal");
        assert!(!plain.is_batch_invariant());
        let invariant = plain.clone().batch_invariant();
        assert!(invariant.is_batch_invariant());
        assert_eq!(Problem { batch_invariant: false, ..invariant }, plain);
    }
}
