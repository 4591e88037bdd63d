//! Layers from safetensors files, under the parameter names they are published with `[S-5.21]`.
//!
//! The file is not trusted. Sizes come from the configuration and are checked against the tensors
//! before anything is computed from them, so no more memory is asked for than the file fills: at
//! most four times a 16-bit tensor, which is read into f64.

use super::config::{LayerConfig, LayerKind};
use super::{
    Gla, GlaWeights, Gqa, GqaWeights, Gta, GtaWeights, LatentWidths, Layer, LayerError, Linear,
    Mla, MlaWeights, QueryProjection,
};
use crate::geometry::Geometry;
use crate::norm::RmsNorm;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeSet;

impl Layer {
    /// The layer of `kind` whose tensors are named `prefix` + published name, for example with the
    /// prefix `model.layers.0.self_attn.`, its last dot included. Names and sizes are those of
    /// [`LayerKind`] and [`LayerConfig`]; tensors are F64, F32, F16 or BF16.
    ///
    /// # Errors
    /// A tensor under `prefix` that is missing, of no use, misshapen, of another format or not
    /// finite, by its full name; a configuration that lacks a key, contradicts itself or asks for
    /// what is not computed here; parameters that no geometry, rope or norm has.
    pub fn from_safetensors(
        kind: LayerKind,
        config: &LayerConfig,
        tensors: &SafeTensors<'_>,
        prefix: &str,
    ) -> Result<Layer, LayerError> {
        config.check_supported()?;
        let mut file = File { tensors, prefix, taken: BTreeSet::new() };
        let layer = match kind {
            LayerKind::Gqa => gqa(config, &mut file)?.into(),
            LayerKind::Gta => gta(config, &mut file)?.into(),
            LayerKind::Mla => mla(config, &mut file)?.into(),
            LayerKind::Gla => gla(config, &mut file)?.into(),
        };
        file.finish()?;
        Ok(layer)
    }
}

fn gqa(config: &LayerConfig, file: &mut File<'_>) -> Result<Gqa, LayerError> {
    let (width, h_q) = (config.hidden_size, config.num_attention_heads);
    let d_k = config.head_dim()?;
    let d_v = config.v_head_dim.unwrap_or(d_k);
    let h_kv = config.num_key_value_heads.unwrap_or(h_q);
    let geometry = Geometry::separate(h_q, h_kv, d_k, d_v)?;
    let bias = Bias::Config(config.attention_bias);
    let weights = GqaWeights {
        q: file.linear("q_proj", [h_q * d_k, width], bias)?,
        k: file.linear("k_proj", [h_kv * d_k, width], bias)?,
        v: file.linear("v_proj", [h_kv * d_v, width], bias)?,
        o: file.linear("o_proj", [width, h_q * d_v], bias)?,
    };
    Gqa::new(geometry, weights, config.rope(LayerKind::Gqa, d_k)?)
}

fn gta(config: &LayerConfig, file: &mut File<'_>) -> Result<Gta, LayerError> {
    let kind = LayerKind::Gta;
    let (width, h_q) = (config.hidden_size, config.num_attention_heads);
    let s = config.head_dim()?;
    let r = config.qk_rope_head_dim.unwrap_or(s / 2);
    let n = config.qk_nope_head_dim.unwrap_or(s.saturating_sub(r));
    let heads = LayerConfig::required(kind, "num_key_value_heads", config.num_key_value_heads)?;
    if let Some(d_v) = config.v_head_dim.filter(|&d_v| d_v != s) {
        let (expected, got) = (s.to_string(), d_v.to_string());
        return Err(LayerError::Inconsistent { key: "v_head_dim", expected, got });
    }
    let geometry = match n == r && n.checked_mul(2) == Some(s) {
        true => Geometry::gta(h_q, heads, s)?,
        false => Geometry::tied(h_q, heads, s, n, r)?,
    };
    let bias = Bias::Config(config.attention_bias);
    let weights = GtaWeights {
        q: file.linear("q_proj", [h_q * (n + r), width], bias)?,
        kv: file.linear("kv_proj", [heads * s, width], bias)?,
        rope_k: match r {
            // A projection to nothing has no tensor.
            0 => Linear::new(width, 0, Vec::new(), None)?,
            _ => file.linear("W_rope_k", [r, width], Bias::AsStored)?,
        },
        o: file.linear("o_proj", [width, h_q * s], bias)?,
    };
    Gta::new(geometry, weights, config.rope(kind, r)?)
}

fn mla(config: &LayerConfig, file: &mut File<'_>) -> Result<Mla, LayerError> {
    let widths = latent_widths(LayerKind::Mla, config, config.num_latent_heads.unwrap_or(1))?;
    let LatentWidths { h_q, d_c, d_h, d_r, d_v, .. } = widths;
    if widths.h_c != 1 {
        let (expected, got) = ("1".to_owned(), widths.h_c.to_string());
        return Err(LayerError::Inconsistent { key: "num_latent_heads", expected, got });
    }
    let (width, eps) = (config.hidden_size, config.eps());
    let bias = Bias::Config(config.attention_bias);
    let weights = MlaWeights {
        query: match config.q_lora_rank {
            None => QueryProjection::Direct(file.linear(
                "q_proj",
                [h_q * (d_h + d_r), width],
                Bias::Never,
            )?),
            Some(rank) => QueryProjection::LowRank {
                down: file.linear("q_a_proj", [rank, width], bias)?,
                norm: file.norm("q_a_layernorm", rank, eps)?,
                up: file.linear("q_b_proj", [h_q * (d_h + d_r), rank], Bias::Never)?,
            },
        },
        down: file.linear("kv_a_proj_with_mqa", [d_c + d_r, width], bias)?,
        norm: file.norm("kv_a_layernorm", d_c, eps)?,
        up: file.linear("kv_b_proj", [h_q * (d_h + d_v), d_c], Bias::Never)?,
        o: file.linear("o_proj", [width, h_q * d_v], bias)?,
    };
    Mla::new(widths, weights, config.rope(LayerKind::Mla, d_r)?)
}

fn gla(config: &LayerConfig, file: &mut File<'_>) -> Result<Gla, LayerError> {
    let kind = LayerKind::Gla;
    let h_c = LayerConfig::required(kind, "num_latent_heads", config.num_latent_heads)?;
    let widths = latent_widths(kind, config, h_c)?;
    let LatentWidths { h_q, d_c, d_h, d_r, d_v, .. } = widths;
    let (width, eps) = (config.hidden_size, config.eps());
    let bias = Bias::Config(config.attention_bias);
    let query = match config.q_lora_rank {
        None => QueryProjection::Direct(file.linear("q_proj", [h_q * (d_h + d_r), width], bias)?),
        Some(rank) => QueryProjection::LowRank {
            down: file.linear("W_dQ", [rank, width], Bias::AsStored)?,
            norm: file.norm("q_norm", rank, eps)?,
            up: file.linear("W_uQ_rope", [h_q * (d_h + d_r), rank], Bias::AsStored)?,
        },
    };
    let down = file.linear("W_dKV", [h_c * d_c + d_r, width], Bias::AsStored)?;
    let (mut norms, mut ups) = (Vec::new(), Vec::new());
    for g in 1..=h_c {
        norms.push(file.norm(&format!("kv_norm_{g}"), d_c, eps)?);
        let rows = widths.group() * (d_h + d_v);
        ups.push(file.linear(&format!("W_ukv_{g}"), [rows, d_c], Bias::AsStored)?);
    }
    let o = file.linear("o_proj", [width, h_q * d_v], bias)?;
    let weights = GlaWeights { query, down, norms, ups, o };
    Gla::new(widths, weights, config.rope(kind, d_r)?)
}

/// The widths of an MLA or GLA layer, such that no product of them overflows.
fn latent_widths(
    kind: LayerKind,
    config: &LayerConfig,
    h_c: usize,
) -> Result<LatentWidths, LayerError> {
    let d_h = LayerConfig::required(kind, "qk_nope_head_dim", config.qk_nope_head_dim)?;
    let widths = LatentWidths {
        h_q: config.num_attention_heads,
        h_c,
        d_c: LayerConfig::required(kind, "kv_lora_rank", config.kv_lora_rank)?,
        d_h,
        d_r: LayerConfig::required(kind, "qk_rope_head_dim", config.qk_rope_head_dim)?,
        d_v: config.v_head_dim.unwrap_or(d_h),
    };
    Geometry::gla(widths.h_q, h_c, widths.d_c, widths.d_r)?;
    widths.trained()?;
    Ok(widths)
}

/// Whether a projection has a bias.
#[derive(Clone, Copy, Debug)]
enum Bias {
    /// The published code never gives it one.
    Never,
    /// The published code always does; files without are read too.
    AsStored,
    /// `attention_bias` decides; null is as stored.
    Config(Option<bool>),
}

/// The tensors of a file under one prefix, and which of them have been used.
struct File<'a> {
    tensors: &'a SafeTensors<'a>,
    prefix: &'a str,
    taken: BTreeSet<String>,
}

impl File<'_> {
    /// NAME.weight, `[outputs, inputs]`, and NAME.bias, `[outputs]`.
    fn linear(
        &mut self,
        name: &str,
        [outputs, inputs]: [usize; 2],
        bias: Bias,
    ) -> Result<Linear, LayerError> {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias_name = format!("{name}.bias");
        let has_bias = match bias {
            Bias::Never | Bias::Config(Some(false)) => false,
            Bias::Config(Some(true)) => true,
            Bias::AsStored | Bias::Config(None) => self.has(&bias_name),
        };
        let bias = has_bias.then(|| self.tensor(&bias_name, &[outputs])).transpose()?;
        Linear::new(inputs, outputs, weight, bias)
    }

    /// NAME.weight, `[width]`.
    fn norm(&mut self, name: &str, width: usize, eps: f64) -> Result<RmsNorm, LayerError> {
        Ok(RmsNorm::new(self.tensor(&format!("{name}.weight"), &[width])?, eps)?)
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.tensor(&format!("{}{name}", self.prefix)).is_ok()
    }

    /// The tensor of exactly this shape, row-major.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f64>, LayerError> {
        let tensor = format!("{}{name}", self.prefix);
        let Ok(view) = self.tensors.tensor(&tensor) else {
            return Err(LayerError::Missing { tensor });
        };
        if view.shape() != shape {
            let (expected, got) = (shape.to_vec(), view.shape().to_vec());
            return Err(LayerError::Shape { tensor, expected, got });
        }
        let Some(values) = widen(&view) else {
            return Err(LayerError::TensorDtype { tensor, dtype: view.dtype().to_string() });
        };
        if let Some(index) = values.iter().position(|x| !x.is_finite()) {
            return Err(LayerError::NotFinite { tensor, index });
        }
        self.taken.insert(tensor);
        Ok(values)
    }

    /// Errs if a tensor under the prefix was not used.
    fn finish(self) -> Result<(), LayerError> {
        let unused = self
            .tensors
            .names()
            .into_iter()
            .filter(|name| name.starts_with(self.prefix) && !self.taken.contains(*name))
            .min();
        match unused {
            Some(name) => Err(LayerError::Unexpected { tensor: name.to_owned() }),
            None => Ok(()),
        }
    }
}

/// Every element, exactly; none for a format that is not read here.
fn widen(view: &TensorView<'_>) -> Option<Vec<f64>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        Dtype::F32 => each(bytes, |bytes| f64::from(f32::from_le_bytes(bytes))),
        Dtype::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f64()),
        Dtype::BF16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        _ => return None,
    })
}

fn each<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|&bytes| element(bytes)).collect()
}
