//! Queries of MLA and GLA: direct, or low-rank with a norm between `[S-5.15]`.

use super::{LatentWidths, LayerError, Linear, rotate_heads};
use crate::norm::RmsNorm;
use crate::rope::Rope;

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

    /// Checks that queries of the layer's widths come out.
    pub(super) fn expect(&self, widths: &LatentWidths) -> Result<(), LayerError> {
        let outputs = widths.h_q * (widths.d_h + widths.d_r);
        match self {
            QueryProjection::Direct(direct) => direct.expect("q", outputs, direct.inputs()),
            QueryProjection::LowRank { down, norm, up } => {
                let rank = norm.width();
                down.expect("q down", rank, down.inputs())?;
                up.expect("q up", outputs, rank)
            }
        }
    }

    /// `[T, D]` to `[T, h_q, d_h + d_r]`, rotated, not absorbed.
    pub(super) fn apply(
        &self,
        hidden: &[f64],
        positions: &[i64],
        widths: &LatentWidths,
        rope: &Rope,
    ) -> Vec<f64> {
        let mut queries = match self {
            QueryProjection::Direct(direct) => direct.apply(hidden),
            QueryProjection::LowRank { down, norm, up } => {
                let mut latent = down.apply(hidden); // [T, r_q]
                norm.apply(&mut latent);
                up.apply(&latent)
            }
        };
        rotate_heads(rope, &mut queries, widths.h_q, widths.d_h + widths.d_r, positions);
        queries
    }
}
