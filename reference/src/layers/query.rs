//! Queries of MLA and GLA: direct, or low-rank with a norm between `[S-5.15]`.

use super::{LayerError, Linear};
use crate::norm::RmsNorm;

/// `x -> [q_nope (d_h) | q_rope (d_r)]` per query head.
#[derive(Clone, Debug, PartialEq)]
pub enum QueryProjection {
    /// `W_Q x`.
    Direct(
        /// `[h_q * (d_h + d_r), D]`.
        Linear,
    ),
    /// `W_UQ norm(W_DQ x)`.
    LowRank {
        /// `W_DQ`, `[r_q, D]`.
        down: Linear,
        /// Over r_q elements.
        norm: RmsNorm,
        /// `W_UQ`, `[h_q * (d_h + d_r), r_q]`.
        up: Linear,
    },
}

impl QueryProjection {
    /// Width D of the model's vectors.
    pub fn inputs(&self) -> usize {
        match self {
            QueryProjection::Direct(direct) => direct.inputs(),
            QueryProjection::LowRank { down, .. } => down.inputs(),
        }
    }

    /// Checks that queries of `outputs` elements come out.
    pub(super) fn expect(&self, outputs: usize) -> Result<(), LayerError> {
        match self {
            QueryProjection::Direct(direct) => direct.expect("q", outputs, direct.inputs()),
            QueryProjection::LowRank { down, norm, up } => {
                let rank = norm.width();
                down.expect("q down", rank, down.inputs())?;
                up.expect("q up", outputs, rank)
            }
        }
    }

    /// `[T, D]` to `[T, h_q, d_h + d_r]`, not rotated.
    pub(super) fn apply(&self, hidden: &[f64]) -> Vec<f64> {
        match self {
            QueryProjection::Direct(direct) => direct.apply(hidden),
            QueryProjection::LowRank { down, norm, up } => {
                let mut latent = down.apply(hidden); // [T, r_q]
                norm.apply(&mut latent);
                up.apply(&latent)
            }
        }
    }
}
