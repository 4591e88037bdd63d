//! RMSNorm in f64 `[S-5.9]`.

/// `y = x / sqrt(mean(x^2) + eps) * weight`, element by element.
///
/// ```
/// use grouped_attention::RmsNorm;
/// let norm = RmsNorm::new(vec![1.0, 10.0], 1e-300)?;
/// let mut x = [3.0, 3.0];
/// norm.apply(&mut x);
/// assert_eq!(x, [1.0, 10.0]);
/// # Ok::<(), grouped_attention::InvalidNorm>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    weight: Vec<f64>, // [width]
    eps: f64,
}

impl RmsNorm {
    /// A norm of vectors as wide as `weight`.
    ///
    /// # Errors
    /// No weight at all; an eps that is not a finite number above 0: with 0 a vector of zeros
    /// would become NaN.
    pub fn new(weight: Vec<f64>, eps: f64) -> Result<RmsNorm, InvalidNorm> {
        if weight.is_empty() {
            return Err(InvalidNorm::WidthZero);
        }
        if !(eps.is_finite() && eps > 0.0) {
            return Err(InvalidNorm::Eps { eps });
        }
        Ok(RmsNorm { weight, eps })
    }

    /// Elements of a vector.
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    /// What is added to the mean square.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Normalises every vector of `x`, `[.., width]`.
    ///
    /// # Panics
    /// If `x` is not a whole number of vectors of [`RmsNorm::width`] elements.
    pub fn apply(&self, x: &mut [f64]) {
        let width = self.width();
        assert!(x.len().is_multiple_of(width), "{} elements in vectors of {width}", x.len());
        for vector in x.chunks_exact_mut(width) {
            let mean_square = vector.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let root = (mean_square + self.eps).sqrt();
            for (x, weight) in vector.iter_mut().zip(&self.weight) {
                *x = *x / root * weight;
            }
        }
    }
}

/// Why no [`RmsNorm`] has these parameters.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNorm {
    /// There is nothing to normalise.
    #[error("a norm of width 0")]
    WidthZero,
    /// eps is not a finite number above 0.
    #[error("norm eps {eps} is not a finite number above 0")]
    Eps {
        /// The eps asked for.
        eps: f64,
    },
}
