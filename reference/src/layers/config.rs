//! A layer's sizes under HuggingFace's names `[S-5.21]`.

use super::LayerError;
use crate::rope::{Rope, RopeScaling, RopeStyle};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The kinds of layer that come from a file, each with the parameter names it is published under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// HuggingFace's Llama: `q_proj`, `k_proj`, `v_proj`, `o_proj`. MHA and MQA by head count.
    Gqa,
    /// The paper's GTA: `q_proj`, `kv_proj`, `W_rope_k`, `o_proj`.
    Gta,
    /// DeepSeek-V2 and V3: `q_proj`, or `q_a_proj`, `q_a_layernorm`, `q_b_proj`; then
    /// `kv_a_proj_with_mqa`, `kv_a_layernorm`, `kv_b_proj`, `o_proj`.
    Mla,
    /// The paper's GLA: `q_proj`, or `W_dQ`, `q_norm`, `W_uQ_rope`; then `W_dKV`, `kv_norm_1` to
    /// `kv_norm_{h_c}`, `W_ukv_1` to `W_ukv_{h_c}`, `o_proj`.
    Gla,
}

impl LayerKind {
    /// Every kind.
    pub const ALL: [LayerKind; 4] =
        [LayerKind::Gqa, LayerKind::Gta, LayerKind::Mla, LayerKind::Gla];

    /// The name that [`FromStr`](std::str::FromStr) reads.
    pub const fn name(self) -> &'static str {
        match self {
            LayerKind::Gqa => "gqa",
            LayerKind::Gta => "gta",
            LayerKind::Mla => "mla",
            LayerKind::Gla => "gla",
        }
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for LayerKind {
    type Err = LayerError;

    fn from_str(name: &str) -> Result<LayerKind, LayerError> {
        LayerKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| LayerError::UnknownKind { name: name.to_owned() })
    }
}

/// The keys of a HuggingFace `config.json` that say what an attention layer computes.
///
/// `hidden_size` and `num_attention_heads` are required. A key that a kind of layer does not name
/// below is not read for it; keys that are not here are ignored, except that those known to change the attention are errors when they are set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerConfig {
    /// Model width D.
    pub hidden_size: usize,
    /// Query heads h_q.
    pub num_attention_heads: usize,
    /// GQA: KV heads (default: h_q). GTA: tied heads (required).
    pub num_key_value_heads: Option<usize>,
    /// GLA: latent heads h_c (required). MLA has one.
    pub num_latent_heads: Option<usize>,
    /// GQA, GTA: head dim (default: D / h_q).
    pub head_dim: Option<usize>,
    /// MLA, GLA: width d_c of ONE latent head (required).
    pub kv_lora_rank: Option<usize>,
    /// MLA, GLA: width d_h of a key without rope (required). GTA: n (default: head dim - r).
    pub qk_nope_head_dim: Option<usize>,
    /// MLA, GLA: width d_r of the rope key (required). GTA: r (default: half the head dim).
    #[serde(alias = "rope_dim")]
    pub qk_rope_head_dim: Option<usize>,
    /// MLA, GLA: width d_v of a value (default: d_h). GQA: likewise (default: head dim).
    pub v_head_dim: Option<usize>,
    /// MLA, GLA: rank r_q of the queries; null for direct ones.
    pub q_lora_rank: Option<usize>,
    /// Base frequency of rope (default: 10000).
    pub rope_theta: Option<f64>,
    /// Frequency scaling; null for none.
    #[serde(alias = "rope_parameters")]
    pub rope_scaling: Option<RopeConfig>,
    /// Pair order of rope (default: true for MLA, as DeepSeek's checkpoints need, else false).
    #[serde(alias = "rope_interleave")]
    pub rope_interleaved: Option<bool>,
    /// MLA, GLA: eps of the norms (default: 1e-6).
    ///
    /// NOTE: HuggingFace's DeepSeek attention uses 1e-6 whatever its configuration says. What
    /// stands here is used; every published DeepSeek configuration says 1e-6.
    pub rms_norm_eps: Option<f64>,
    /// Whether the projections that HuggingFace gives a bias with this key have one; null: as the
    /// file has them. It says nothing about the paper's `W_*`, which are as the file has them.
    pub attention_bias: Option<bool>,
    /// Must be null, or switched off by `use_sliding_window`.
    pub sliding_window: Option<usize>,
    /// Whether `sliding_window` is in force (default: true).
    pub use_sliding_window: Option<bool>,
    /// Must be null.
    pub attn_logit_softcapping: Option<f64>,
    /// Must be null or 1.
    pub partial_rotary_factor: Option<f64>,
}

/// HuggingFace's `rope_scaling` object, or the `rope_parameters` of transformers 5.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// `default`, `llama3` or `yarn`; other types are not computed here.
    pub rope_type: Option<String>,
    /// The older name of `rope_type`; files often have both.
    #[serde(rename = "type")]
    pub older_type: Option<String>,
    /// Base frequency, where it stands inside the object.
    pub rope_theta: Option<f64>,
    /// Required by `llama3` and `yarn`.
    pub factor: Option<f64>,
    /// Required by both: tokens of the context the model was trained on.
    pub original_max_position_embeddings: Option<usize>,
    /// Required by `llama3`.
    pub low_freq_factor: Option<f64>,
    /// Required by `llama3`.
    pub high_freq_factor: Option<f64>,
    /// `yarn` (default: 32).
    pub beta_fast: Option<f64>,
    /// `yarn` (default: 1).
    pub beta_slow: Option<f64>,
    /// `yarn` (default: 1).
    pub mscale: Option<f64>,
    /// `yarn` (default: 0).
    pub mscale_all_dim: Option<f64>,
    /// `yarn`: replaces the factor on cos and sin.
    pub attention_factor: Option<f64>,
    /// `yarn` (default: true).
    pub truncate: Option<bool>,
    /// Must be null or 1.
    pub partial_rotary_factor: Option<f64>,
}

impl LayerConfig {
    /// Reads a configuration, for example a whole `config.json`.
    ///
    /// # Errors
    /// [`LayerError::Json`] for text that is no such object.
    pub fn from_json(text: &str) -> Result<LayerConfig, LayerError> {
        serde_json::from_str(text).map_err(|error| LayerError::Json { reason: error.to_string() })
    }

    /// The value of a key that `kind` cannot do without.
    pub(super) fn required<T>(
        kind: LayerKind,
        key: &'static str,
        value: Option<T>,
    ) -> Result<T, LayerError> {
        value.ok_or(LayerError::MissingKey { layer: kind.name(), key })
    }

    /// `head_dim`, or D / h_q if h_q divides D.
    pub(super) fn head_dim(&self) -> Result<usize, LayerError> {
        let (width, h_q) = (self.hidden_size, self.num_attention_heads);
        match self.head_dim {
            Some(head_dim) => Ok(head_dim),
            None if h_q > 0 && width.is_multiple_of(h_q) => Ok(width / h_q),
            None => Err(LayerError::Inconsistent {
                key: "hidden_size",
                expected: format!("a multiple of {h_q} heads"),
                got: width.to_string(),
            }),
        }
    }

    pub(super) fn eps(&self) -> f64 {
        self.rms_norm_eps.unwrap_or(1e-6)
    }

    /// Refuses what no layer here computes.
    pub(super) fn check_supported(&self) -> Result<(), LayerError> {
        let scaled_fraction =
            self.rope_scaling.as_ref().and_then(|rope| rope.partial_rotary_factor);
        let whole = |fraction: &f64| *fraction == 1.0;
        let window = self.sliding_window.filter(|_| self.use_sliding_window != Some(false));
        let set = [
            ("sliding_window", window.map(|tokens| tokens.to_string())),
            ("attn_logit_softcapping", self.attn_logit_softcapping.map(|cap| cap.to_string())),
            (
                "partial_rotary_factor",
                [self.partial_rotary_factor, scaled_fraction]
                    .into_iter()
                    .flatten()
                    .find(|fraction| !whole(fraction))
                    .map(|fraction| fraction.to_string()),
            ),
        ];
        match set.into_iter().find_map(|(key, value)| Some((key, value?))) {
            Some((key, value)) => Err(LayerError::Unsupported { key, value }),
            None => Ok(()),
        }
    }

    /// The rotation of `width` elements in a layer of `kind`.
    ///
    /// # Errors
    /// A scaling that is not computed here or lacks a key, two base frequencies, parameters out of
    /// their ranges.
    pub fn rope(&self, kind: LayerKind, width: usize) -> Result<Rope, LayerError> {
        let style = match self.rope_interleaved.unwrap_or(kind == LayerKind::Mla) {
            true => RopeStyle::Interleaved,
            false => RopeStyle::HalfSplit,
        };
        let inner = self.rope_scaling.as_ref().and_then(|rope| rope.rope_theta);
        let base = match (self.rope_theta, inner) {
            (Some(outer), Some(inner)) if outer != inner => {
                return Err(LayerError::Inconsistent {
                    key: "rope_theta",
                    expected: inner.to_string(),
                    got: outer.to_string(),
                });
            }
            (outer, inner) => outer.or(inner).unwrap_or(10_000.0),
        };
        let scaling = match &self.rope_scaling {
            None => RopeScaling::None,
            Some(scaling) => scaling.scaling(kind)?,
        };
        Ok(Rope::new(style, width, base, scaling)?)
    }
}

impl RopeConfig {
    fn scaling(&self, kind: LayerKind) -> Result<RopeScaling, LayerError> {
        let factor = || LayerConfig::required(kind, "rope_scaling.factor", self.factor);
        let original_max_position = || {
            LayerConfig::required(
                kind,
                "rope_scaling.original_max_position_embeddings",
                self.original_max_position_embeddings,
            )
        };
        match self.name(kind)? {
            "default" => Ok(RopeScaling::None),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: LayerConfig::required(
                    kind,
                    "rope_scaling.low_freq_factor",
                    self.low_freq_factor,
                )?,
                high_freq_factor: LayerConfig::required(
                    kind,
                    "rope_scaling.high_freq_factor",
                    self.high_freq_factor,
                )?,
                original_max_position: original_max_position()?,
            }),
            "yarn" => Ok(RopeScaling::Yarn {
                factor: factor()?,
                beta_fast: self.beta_fast.unwrap_or(32.0),
                beta_slow: self.beta_slow.unwrap_or(1.0),
                mscale: self.mscale.unwrap_or(1.0),
                mscale_all_dim: self.mscale_all_dim.unwrap_or(0.0),
                original_max_position: original_max_position()?,
                attention_factor: self.attention_factor,
                truncate: self.truncate.unwrap_or(true),
            }),
            other => Err(LayerError::Unsupported { key: "rope_type", value: other.to_owned() }),
        }
    }

    fn name(&self, kind: LayerKind) -> Result<&str, LayerError> {
        match (self.rope_type.as_deref(), self.older_type.as_deref()) {
            (Some(name), Some(older)) if name != older => Err(LayerError::Inconsistent {
                key: "type",
                expected: name.to_owned(),
                got: older.to_owned(),
            }),
            (name, older) => LayerConfig::required(kind, "rope_scaling.rope_type", name.or(older)),
        }
    }
}
