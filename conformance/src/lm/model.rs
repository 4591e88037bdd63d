//! Weights of a byte-level transformer, read from a safetensors file.

use super::mlp::Mlp;
use grouped_attention::layers::{Layer, LayerConfig, LayerError, LayerKind, Linear};
use grouped_attention::{InvalidNorm, RmsNorm};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Tokens are bytes.
pub const VOCABULARY: usize = 256;

/// A transformer over bytes: Llama's blocks around one of four kinds of attention.
#[derive(Clone, Debug)]
pub struct Model {
    kind: LayerKind,
    /// `[256, D]`; the output head is its transpose.
    pub(super) embedding: Linear,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: RmsNorm,
    context: usize,
}

/// One layer: attention and MLP, each behind a norm and beside a residual.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) attention_norm: RmsNorm,
    pub(super) attention: Layer,
    pub(super) mlp_norm: RmsNorm,
    pub(super) mlp: Mlp,
}

/// What a model needs to know beside its attention layers.
#[derive(Deserialize)]
struct ModelConfig {
    num_hidden_layers: usize,
    vocab_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    layer: LayerConfig,
}

impl Model {
    /// Reads a model file: safetensors with `kind` and `config` in its metadata.
    ///
    /// # Errors
    /// A file that cannot be read or is no such model; the error names the file and the tensor.
    pub fn load(path: &Path) -> Result<Model, ModelError> {
        let bytes = std::fs::read(path).map_err(|error| ModelError::Read {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        Self::from_bytes(&bytes)
            .map_err(|reason| ModelError::File { path: path.to_owned(), reason: Box::new(reason) })
    }

    /// Reads a model from the bytes of its file.
    ///
    /// # Errors
    /// As [`load`](Self::load), without the file's name.
    pub fn from_bytes(bytes: &[u8]) -> Result<Model, ModelError> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let text = |key: &'static str| {
            header
                .metadata()
                .as_ref()
                .and_then(|metadata| metadata.get(key))
                .ok_or(ModelError::MissingMetadata { key })
        };
        let kind: LayerKind = text("kind")?.parse()?;
        let config: ModelConfig = serde_json::from_str(text("config")?)
            .map_err(|error| ModelError::Config { reason: error.to_string() })?;
        if config.vocab_size != VOCABULARY || !config.tie_word_embeddings {
            return Err(ModelError::NotByteLevel { vocabulary: config.vocab_size });
        }
        let tensors = SafeTensors::deserialize(bytes)?;
        // The header says how many layers the file can have at most; a configuration cannot ask
        // for more memory than the file has tensors.
        let blocks = (0..config.num_hidden_layers)
            .map(|index| read_block(&tensors, kind, &config, index))
            .collect::<Result<_, _>>()?;
        let width = config.layer.hidden_size;
        Ok(Model {
            kind,
            embedding: read_linear(&tensors, "model.embed_tokens", VOCABULARY, width)?,
            blocks,
            norm: read_norm(&tensors, "model.norm", width, config.rms_norm_eps)?,
            context: config.max_position_embeddings,
        })
    }

    /// The kind of attention.
    pub fn kind(&self) -> LayerKind {
        self.kind
    }

    /// Width D of the model's vectors.
    pub fn width(&self) -> usize {
        self.embedding.inputs()
    }

    /// The attention layers, first to last.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = &Layer> {
        self.blocks.iter().map(|block| &block.attention)
    }

    /// Longest context the model was trained on.
    pub fn context(&self) -> usize {
        self.context
    }
}

fn read_block(
    tensors: &SafeTensors<'_>,
    kind: LayerKind,
    config: &ModelConfig,
    index: usize,
) -> Result<Block, ModelError> {
    let prefix = format!("model.layers.{index}");
    let (width, hidden, eps) =
        (config.layer.hidden_size, config.intermediate_size, config.rms_norm_eps);
    let norm = |name| read_norm(tensors, &format!("{prefix}.{name}"), width, eps);
    let linear = |name, outputs, inputs| {
        read_linear(tensors, &format!("{prefix}.mlp.{name}"), outputs, inputs)
    };
    Ok(Block {
        attention_norm: norm("input_layernorm")?,
        attention: Layer::from_safetensors(
            kind,
            &config.layer,
            tensors,
            &format!("{prefix}.self_attn."),
        )?,
        mlp_norm: norm("post_attention_layernorm")?,
        mlp: Mlp {
            gate: linear("gate_proj", hidden, width)?,
            up: linear("up_proj", hidden, width)?,
            down: linear("down_proj", width, hidden)?,
        },
    })
}

fn read_linear(
    tensors: &SafeTensors<'_>,
    name: &str,
    outputs: usize,
    inputs: usize,
) -> Result<Linear, ModelError> {
    let values = read(tensors, &format!("{name}.weight"), &[outputs, inputs])?;
    Ok(Linear::new(inputs, outputs, values, None)?)
}

fn read_norm(
    tensors: &SafeTensors<'_>,
    name: &str,
    width: usize,
    eps: f64,
) -> Result<RmsNorm, ModelError> {
    Ok(RmsNorm::new(read(tensors, &format!("{name}.weight"), &[width])?, eps)?)
}

/// A bf16 tensor of the given shape, widened.
fn read(tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f64>, ModelError> {
    let tensor =
        tensors.tensor(name).map_err(|_| ModelError::MissingTensor { name: name.to_owned() })?;
    if tensor.dtype() != Dtype::BF16 || tensor.shape() != shape {
        return Err(ModelError::Tensor {
            name: name.to_owned(),
            expected: shape.to_vec(),
            got: tensor.shape().to_vec(),
            dtype: format!("{:?}", tensor.dtype()),
        });
    }
    let (pairs, _) = tensor.data().as_chunks::<2>();
    Ok(pairs.iter().map(|&pair| bf16::from_le_bytes(pair).to_f64()).collect())
}

/// Why a file is not a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is not a model.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: Box<ModelError>,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("not a whole safetensors file: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// The header lacks an entry.
    #[error("the header has no {key:?}")]
    MissingMetadata {
        /// The entry.
        key: &'static str,
    },
    /// The configuration is not one.
    #[error("the header's \"config\" is not a model configuration: {reason}")]
    Config {
        /// What is wrong with it.
        reason: String,
    },
    /// Only byte-level models with tied embeddings are read.
    #[error("not a byte-level model with a tied embedding: its vocabulary is {vocabulary}")]
    NotByteLevel {
        /// Its vocabulary.
        vocabulary: usize,
    },
    /// A tensor is missing.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape or format.
    #[error("tensor {name} is {dtype} {got:?}, expected BF16 {expected:?}")]
    Tensor {
        /// Its name.
        name: String,
        /// The shape it must have.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
        /// The format it has.
        dtype: String,
    },
    /// An attention layer is wrong.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A norm is wrong.
    #[error(transparent)]
    Norm(#[from] InvalidNorm),
}
