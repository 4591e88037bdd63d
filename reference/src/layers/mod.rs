//! What surrounds the attention: projections, norms, rope, and how they come from a file.
//!
//! A layer splits where an engine fits in, so that any engine can decode with it:
//!
//! ```text
//! hidden [T, D] --project--> queries [T, h_q, width K]   and the rows to append
//!                            (engine: append, attend)
//! attended [T, h_q, width V] --output--> [T, D]
//! ```
//!
//! For MLA and GLA these are the absorbed form `[S-5.18]`: queries and outputs live in latent space.
//! [`Layer::forward_causal`] computes whole sequences in the form the layer was trained in
//! `[S-5.16]`, with keys and values per query head and no cache; that both agree is tested
//! `[S-5.19, S-5.20]`.
//!
//! Everything is f64 and row-major; a token's numbers depend on no other token except through the
//! attention.

mod causal;
#[cfg(feature = "safetensors")]
mod config;
mod error;
mod gla;
mod gqa;
mod gta;
mod linear;
mod mla;
mod query;
mod up;
#[cfg(feature = "safetensors")]
mod weights;

#[cfg(feature = "safetensors")]
pub use config::{LayerConfig, LayerKind, RopeConfig};
pub use error::{InputRule, LayerError};
pub use gla::{Gla, GlaWeights};
pub use gqa::{Gqa, GqaWeights};
pub use gta::{Gta, GtaWeights};
pub use linear::Linear;
pub use mla::{Mla, MlaWeights};
pub use query::QueryProjection;
pub use up::LatentWidths;

use crate::geometry::Geometry;
use crate::rope::Rope;
use causal::Trained;

/// One attention layer of any variant, over model vectors of width D.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer {
    /// Grouped-query attention, with MHA and MQA.
    Gqa(Gqa),
    /// Grouped-Tied Attention.
    Gta(Gta),
    /// Multi-head latent attention.
    Mla(Mla),
    /// Grouped Latent Attention.
    Gla(Gla),
}

/// What a layer makes of T tokens before attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Projected {
    /// `[T, h_q, width K]`: rotated, absorbed for MLA and GLA, `[nope | rope]` `[S-3.4]`.
    pub queries: Vec<f64>,
    /// The cache rows of the same tokens.
    pub rows: Rows,
}

/// Cache rows of T tokens, after norm and rope.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    /// Keys and values.
    Separate {
        /// `[T, h_kv, d_k]`, rotated.
        k: Vec<f64>,
        /// `[T, h_kv, d_v]`.
        v: Vec<f64>,
    },
    /// States and the rope key that all heads share.
    Tied {
        /// `[T, h, s]`: tied KV as projected, or latents after their norm.
        state: Vec<f64>,
        /// `[T, r]`, rotated.
        rope: Vec<f64>,
    },
}

impl Rows {
    /// The two parts in the order of [`Row::parts`](crate::Row::parts).
    pub fn parts(&self) -> [&[f64]; 2] {
        match self {
            Rows::Separate { k, v } => [k, v],
            Rows::Tied { state, rope } => [state, rope],
        }
    }
}

/// What whole sequences become.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `[B, L, D]`.
    pub output: Vec<f64>,
    /// The rows that decoding would have cached, `[B, L, ..]`.
    pub rows: Rows,
}

/// The equations of one variant. [`Layer`] has checked every length by the time these run.
trait Equations {
    fn geometry(&self) -> Geometry;

    fn rope(&self) -> &Rope;

    /// The output projection, `[D, h_q * d_v]`.
    fn o(&self) -> &Linear;

    /// Width of a key as trained, which sets the softmax scale `[S-3.6]`.
    fn trained_width_k(&self) -> usize {
        self.geometry().width_k()
    }

    fn project(&self, hidden: &[f64], positions: &[i64]) -> Projected;

    /// `[T, h_q, width V]` of an engine to `[T, h_q * d_v]`.
    fn values(&self, attended: &[f64]) -> Vec<f64> {
        attended.to_vec()
    }

    /// Queries, keys and values as trained, beside the rows.
    fn train(&self, hidden: &[f64], positions: &[i64]) -> (Trained, Rows);
}

impl Layer {
    fn equations(&self) -> &dyn Equations {
        match self {
            Layer::Gqa(layer) => layer,
            Layer::Gta(layer) => layer,
            Layer::Mla(layer) => layer,
            Layer::Gla(layer) => layer,
        }
    }

    /// What an engine has to attend over.
    pub fn geometry(&self) -> Geometry {
        self.equations().geometry()
    }

    /// The softmax scale, for an engine as for the trained form `[S-3.6]`: 1 / sqrt(width of a key
    /// as trained), times the rope's [`softmax_scale_factor`](Rope::softmax_scale_factor).
    ///
    /// For MLA and GLA the key as trained has `d_h + d_r` elements, not the `d_c + d_r` of the
    /// absorbed one.
    pub fn scale(&self) -> f64 {
        let equations = self.equations();
        equations.rope().softmax_scale_factor() / (equations.trained_width_k() as f64).sqrt()
    }

    /// The rotation of queries and keys. Its width is d_k for GQA and r otherwise.
    pub fn rope(&self) -> &Rope {
        self.equations().rope()
    }

    /// Width D of the model's vectors.
    pub fn model_width(&self) -> usize {
        self.equations().o().outputs()
    }

    /// Queries and cache rows of the tokens `hidden`, `[T, D]`, at `positions`, `[T]`.
    ///
    /// # Errors
    /// [`LayerError::Input`] if `hidden` is not one vector per position.
    pub fn project(&self, hidden: &[f64], positions: &[i64]) -> Result<Projected, LayerError> {
        self.check(hidden, positions)?;
        Ok(self.equations().project(hidden, positions))
    }

    /// `[T, D]` of what an engine attended to, `[T, h_q, width V]`.
    ///
    /// A biased value projection of MLA or GLA adds its bias here, which is exact because weights
    /// of a softmax sum to 1. A row that saw nothing has no such weights: it gets the bias too.
    ///
    /// # Errors
    /// [`LayerError::Input`] if `attended` is not a whole number of tokens.
    pub fn output(&self, attended: &[f64]) -> Result<Vec<f64>, LayerError> {
        let equations = self.equations();
        let geometry = equations.geometry();
        let token = geometry.h_q() * geometry.width_v();
        if !attended.len().is_multiple_of(token) {
            return Err(LayerError::Input {
                what: "attended",
                expected: token,
                got: attended.len(),
                rule: InputRule::MultipleOf,
            });
        }
        Ok(equations.o().apply(&equations.values(attended)))
    }

    /// The layer on B whole sequences of `length` tokens, from an empty cache, as trained.
    ///
    /// `hidden` is `[B, length, D]` and `positions` `[B, length]`. A token sees itself and the
    /// tokens before it in its sequence, whatever the positions say.
    ///
    /// # Errors
    /// [`LayerError::Input`] if `positions` are not whole sequences or `hidden` is not one vector
    /// per position.
    pub fn forward_causal(
        &self,
        hidden: &[f64],
        positions: &[i64],
        length: usize,
    ) -> Result<Forward, LayerError> {
        self.check(hidden, positions)?;
        // Of 0 only 0 is a multiple, and no tokens need no length.
        if !positions.len().is_multiple_of(length) {
            return Err(LayerError::Input {
                what: "positions",
                expected: length,
                got: positions.len(),
                rule: InputRule::MultipleOf,
            });
        }
        let equations = self.equations();
        let (trained, rows) = equations.train(hidden, positions);
        let attended = trained.attend(self.scale(), length);
        Ok(Forward { output: equations.o().apply(&attended), rows })
    }

    fn check(&self, hidden: &[f64], positions: &[i64]) -> Result<(), LayerError> {
        // A product that saturates is no slice's length.
        let expected = positions.len().saturating_mul(self.model_width());
        if hidden.len() == expected {
            return Ok(());
        }
        let (got, rule) = (hidden.len(), InputRule::Exactly);
        Err(LayerError::Input { what: "hidden", expected, got, rule })
    }
}

impl From<Gqa> for Layer {
    fn from(layer: Gqa) -> Layer {
        Layer::Gqa(layer)
    }
}

impl From<Gta> for Layer {
    fn from(layer: Gta) -> Layer {
        Layer::Gta(layer)
    }
}

impl From<Mla> for Layer {
    fn from(layer: Mla) -> Layer {
        Layer::Mla(layer)
    }
}

impl From<Gla> for Layer {
    fn from(layer: Gla) -> Layer {
        Layer::Gla(layer)
    }
}

/// Rotates the last `rope.width()` elements of every head of `x`, `[T, heads, width]`.
fn rotate_heads(rope: &Rope, x: &mut [f64], heads: usize, width: usize, positions: &[i64]) {
    debug_assert_eq!(x.len(), positions.len() * heads * width);
    if rope.width() == 0 {
        return;
    }
    for (token, &position) in x.chunks_exact_mut(heads * width).zip(positions) {
        for head in token.chunks_exact_mut(width) {
            rope.rotate(&mut head[width - rope.width()..], position);
        }
    }
}
