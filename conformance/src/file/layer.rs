//! A layer on hidden states, causal, from an empty cache.

use super::error::{FileError, RunError};
use super::format::Format;
use super::tensors::TensorFile;
use super::writer::Writer;
use grouped_attention::layers::{Layer, LayerConfig, LayerError, LayerKind, Rows};
use grouped_attention::{
    CacheLayout, Dtype, Mask, PageId, Problem, ReferenceCache, Row, Sequence, Slot, Step, attend,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::BTreeSet;

/// A layer and its input.
///
/// | tensor | shape | |
/// |---|---|---|
/// | `hidden_states` | `[B, L, D]` | |
/// | `position_ids` | `[B, L]` | integers; 0..L where absent |
/// | weights | | published names, with or without a module prefix |
///
/// Metadata: `kind` (`gqa`, `gta`, `mla` or `gla`) and `config`, JSON with HuggingFace's keys.
#[derive(Clone, Debug)]
pub struct LayerFile {
    layer: Layer,
    hidden: Vec<f64>,
    positions: Vec<i64>,
    /// [B, L].
    tokens: [usize; 2],
    ignored: Vec<String>,
}

/// In which form a layer is computed. The results differ by rounding alone `[S-5.19]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As trained: keys and values per query head, no cache `[S-5.16]`.
    Trained,
    /// As decoded: absorbed queries over cache rows `[S-5.18]`.
    Absorbed,
}

/// What a layer computed, in f64.
#[derive(Clone, Debug)]
pub struct LayerResult {
    output: Vec<f64>,
    rows: Rows,
    width: usize,
    tokens: [usize; 2],
    row: Row,
}

/// Tensors that a layer file may hold beside weights: its input, and the results of another run.
const DATA: [&str; 7] =
    ["hidden_states", "position_ids", "output", "cache_k", "cache_v", "cache_state", "cache_rope"];
/// The projection that every kind of layer has, by which its prefix is found.
const LANDMARK: &str = "o_proj.weight";

impl LayerFile {
    /// Reads a layer from the bytes of a file. A prefix is needed where the file has several.
    ///
    /// # Errors
    /// What is missing, misshapen or out of range, by its name.
    pub fn parse(bytes: &[u8], prefix: Option<&str>) -> Result<LayerFile, FileError> {
        let mut file = TensorFile::parse(bytes)?;
        let kind: LayerKind = file.metadata("kind", "gqa, gta, mla or gla")?.parse()?;
        let config = "a JSON object with the keys of HuggingFace's config.json";
        let config = LayerConfig::from_json(file.metadata("config", config)?)?;
        let [b, length, width] = file.shape_of_rank::<3>("hidden_states", "[B, L, D]")?;
        let prefix = match prefix {
            Some(prefix) => prefix.to_owned(),
            None => find_prefix(file.tensors())?,
        };
        let weights = Weights::new(file.tensors(), &prefix);
        weights.check_budget(&file, [b, length], &config)?;
        let layer = weights.layer(kind, &config)?;
        if width != layer.model_width() {
            return Err(FileError::Shape {
                tensor: "hidden_states".to_owned(),
                expected: format!("[B, L, {}], the layer's width", layer.model_width()),
                got: vec![b, length, width],
            });
        }
        let positions = positions(&mut file, [b, length])?;
        let hidden = file.floats("hidden_states")?.values;
        let ignored = file.unasked();
        let unused = |name: &String| !weights.has(name) && !DATA.contains(&name.as_str());
        let ignored = ignored.into_iter().filter(unused).collect();
        Ok(LayerFile { layer, hidden, positions, tokens: [b, length], ignored })
    }

    /// Names of tensors in the file that are neither the layer's nor its input.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Computes the layer.
    ///
    /// # Errors
    /// Sizes that the layer or the definition refuses; [`parse`](Self::parse) lets none pass.
    pub fn run(&self, form: Form) -> Result<LayerResult, RunError> {
        let [_, length] = self.tokens;
        let layer = &self.layer;
        let (output, rows) = match form {
            Form::Trained => {
                let forward = layer.forward_causal(&self.hidden, &self.positions, length)?;
                (forward.output, forward.rows)
            }
            Form::Absorbed => self.decode()?,
        };
        let row = layer.geometry().row();
        Ok(LayerResult { output, rows, width: layer.model_width(), tokens: self.tokens, row })
    }

    /// The cache is a page a sequence.
    fn decode(&self) -> Result<(Vec<f64>, Rows), RunError> {
        let [b, length] = self.tokens;
        let geometry = self.layer.geometry();
        let projected = self.layer.project(&self.hidden, &self.positions)?;
        // NOTE: the format is a label here. Neither the definition nor `write_exact` rounds to it.
        let dtype = Dtype::F32;
        let page_size = length.max(1);
        let mut cache = ReferenceCache::new(CacheLayout::new(geometry, dtype, page_size, b)?);
        let [first, second] = geometry.row().parts();
        let parts = projected.rows.parts();
        for token in 0..b * length {
            let slot = Slot { page: PageId((token / length) as u32), row: token % length };
            let first = &parts[0][token * first..][..first];
            cache.write_exact(slot, first, &parts[1][token * second..][..second]);
        }
        let pages: Vec<PageId> = (0..b as u32).map(PageId).collect();
        let sequences: Vec<Sequence<'_>> = pages
            .chunks_exact(1)
            .map(|pages| Sequence { q_len: length, kv_len: length, pages })
            .collect();
        let step = Step::new(page_size, &sequences, Mask::Causal)?;
        let problem = Problem::new(geometry, dtype, self.layer.scale())?;
        let attended = attend(&problem, &step, &projected.queries, &cache);
        Ok((self.layer.output(&attended.o)?, projected.rows))
    }
}

impl LayerResult {
    /// `[B, L, D]`.
    pub fn output(&self) -> &[f64] {
        &self.output
    }

    /// The rows that decoding would have cached.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Adds the result to a file.
    pub fn write_to(&self, writer: &mut Writer) {
        let [b, length] = self.tokens;
        writer.floats("output", Format::F64, &[b, length, self.width], &self.output);
        let [first, second] = self.rows.parts();
        match self.row {
            Row::Separate { heads, d_k, d_v } => {
                writer.floats("cache_k", Format::F64, &[b, length, heads, d_k], first);
                writer.floats("cache_v", Format::F64, &[b, length, heads, d_v], second);
            }
            Row::Tied { heads, s, r, .. } => {
                writer.floats("cache_state", Format::F64, &[b, length, heads, s], first);
                if r > 0 {
                    writer.floats("cache_rope", Format::F64, &[b, length, r], second);
                }
            }
        }
    }
}

/// The tensors of one layer, under their full names.
#[derive(Debug)]
struct Weights<'a> {
    prefix: &'a str,
    views: Vec<(String, TensorView<'a>)>,
    names: BTreeSet<String>,
}

impl<'a> Weights<'a> {
    /// Only NAME.weight and NAME.bias are weights, so that a file without a prefix may hold other
    /// tensors; among those, one that the layer has no use for is an error.
    fn new(tensors: &SafeTensors<'a>, prefix: &'a str) -> Weights<'a> {
        let is_weight = |name: &str| {
            name.starts_with(prefix) && (name.ends_with(".weight") || name.ends_with(".bias"))
        };
        let views: Vec<(String, TensorView<'a>)> =
            tensors.tensors().into_iter().filter(|(name, _)| is_weight(name)).collect();
        let names = views.iter().map(|(name, _)| name.clone()).collect();
        Weights { prefix, views, names }
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Projections make of each token as many numbers as they have rows, whatever the size of the
    /// token in the file.
    fn check_budget(
        &self,
        file: &TensorFile<'_>,
        [b, length]: [usize; 2],
        config: &LayerConfig,
    ) -> Result<(), FileError> {
        let rows =
            |(_, view): &(String, TensorView<'_>)| view.shape().first().copied().unwrap_or(0);
        let projected = self.views.iter().map(rows).fold(0_usize, usize::saturating_add);
        // Absorbed queries and their outputs are as wide as the latent head, for every head.
        let latent = config.kv_lora_rank.unwrap_or(0).saturating_add(projected);
        let absorbed = config.num_attention_heads.saturating_mul(latent);
        let numbers = projected.saturating_mul(4).saturating_add(absorbed.saturating_mul(4)).max(1);
        file.budget().allow("the layer", &[b, length, numbers, size_of::<f64>()])
    }

    fn layer(&self, kind: LayerKind, config: &LayerConfig) -> Result<Layer, FileError> {
        let views = self.views.iter().map(|(name, view)| (name, view));
        let bytes = safetensors::serialize(views, None)
            .map_err(|error| FileError::Container { reason: error.to_string() })?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| FileError::Container { reason: error.to_string() })?;
        Ok(Layer::from_safetensors(kind, config, &tensors, self.prefix)?)
    }
}

/// The prefix of the one layer that a file has.
fn find_prefix(tensors: &SafeTensors<'_>) -> Result<String, FileError> {
    let mut prefixes: Vec<&str> = tensors
        .names()
        .into_iter()
        .filter_map(|name| name.strip_suffix(LANDMARK))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    prefixes.sort_unstable();
    match prefixes[..] {
        [prefix] => Ok(prefix.to_owned()),
        [first, second, ..] => {
            Err(FileError::SeveralLayers { first: first.to_owned(), second: second.to_owned() })
        }
        [] => Err(LayerError::Missing { tensor: LANDMARK.to_owned() }.into()),
    }
}

fn positions(file: &mut TensorFile<'_>, [b, length]: [usize; 2]) -> Result<Vec<i64>, FileError> {
    let Some(got) = file.shape("position_ids") else {
        let length = length as i64;
        return Ok((0..b).flat_map(|_| 0..length).collect());
    };
    if got != [b, length] {
        return Err(FileError::Shape {
            tensor: "position_ids".to_owned(),
            expected: format!("[{b}, {length}], as hidden_states has"),
            got,
        });
    }
    file.integers("position_ids")
}
