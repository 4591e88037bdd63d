//! Layers against code that nobody here wrote: `conformance/fixtures`, made by HuggingFace's
//! Llama and DeepSeek attention, and for GTA and GLA by a PyTorch module from the formulas
//! `[S-5.11 .. S-5.21]`.
#![cfg(feature = "safetensors")]

mod cached;

use cached::attend;
use grouped_attention::layers::{Layer, LayerConfig, LayerKind};
use grouped_attention::{
    Append, Attend, Backend, CacheLayout, CopyRows, Dtype, Error, Geometry, HostTensor, MaskKind,
    PageTables, Planning, Problem, Reference, Row, Sharding, Upload,
};
use safetensors::{SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Largest difference allowed, relative to the largest element of the expected tensor.
const TOLERANCE: f64 = 1e-9;

/// Tensors that a fixture holds beside the weights of its layer.
const DATA: [&str; 7] =
    ["hidden_states", "position_ids", "output", "cache_k", "cache_v", "cache_state", "cache_rope"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/fixtures")
}

/// Every file of the folder but the tables of angles.
fn fixtures() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the folder of fixtures")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .filter(|path| !path.ends_with("rope_tables.safetensors"))
        .collect();
    paths.sort();
    paths
}

fn metadata(bytes: &[u8]) -> HashMap<String, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).expect("a header");
    header.metadata().clone().expect("metadata")
}

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let view = tensors.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(view.dtype(), safetensors::Dtype::F64, "{name}");
    view.data().as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
}

fn integers(tensors: &SafeTensors<'_>, name: &str) -> Vec<i64> {
    let view = tensors.tensor(name).expect(name);
    assert_eq!(view.dtype(), safetensors::Dtype::I64, "{name}");
    view.data().as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
}

/// What a fixture holds for its layer: the tensors that are not data, as a file of their own, and
/// the prefix of their names.
fn weights(tensors: &SafeTensors<'_>) -> (Vec<u8>, String) {
    let weights: Vec<(String, TensorView<'_>)> =
        tensors.tensors().into_iter().filter(|(name, _)| !DATA.contains(&name.as_str())).collect();
    let name = &weights.first().expect("weights").0;
    let prefix = match name.find("self_attn.") {
        Some(start) => name[..start + "self_attn.".len()].to_owned(),
        None => String::new(),
    };
    (safetensors::serialize(weights, None).expect("a file"), prefix)
}

/// Largest |got - expected| over largest |expected|.
fn difference(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let differences = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // Not f64::max, which drops a NaN.
    let worst = differences.fold(0.0, |max: f64, x| if max.is_nan() || x <= max { max } else { x });
    worst / largest
}

/// One layer with its input, its output and the rows it caches.
struct Fixture {
    name: String,
    layer: Layer,
    /// L, tokens of one sequence.
    length: usize,
    hidden: Vec<f64>,    // [B, L, D]
    positions: Vec<i64>, // [B, L]
    output: Vec<f64>,    // [B, L, D]
    rows: [Vec<f64>; 2], // [B, L, ..]
}

impl Fixture {
    fn read(path: &Path) -> Fixture {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let bytes = std::fs::read(path).expect("a fixture");
        let metadata = metadata(&bytes);
        let tensors = SafeTensors::deserialize(&bytes).expect("a fixture");
        let kind: LayerKind = metadata["kind"].parse().expect("a kind");
        let config = LayerConfig::from_json(&metadata["config"]).expect("a configuration");
        let (file, prefix) = weights(&tensors);
        let file = SafeTensors::deserialize(&file).expect("a file");
        let layer = Layer::from_safetensors(kind, &config, &file, &prefix)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let rows = match kind {
            LayerKind::Gqa => ["cache_k", "cache_v"],
            LayerKind::Gta | LayerKind::Mla | LayerKind::Gla => ["cache_state", "cache_rope"],
        };
        Fixture {
            name,
            layer,
            length: tensors.tensor("hidden_states").expect("hidden states").shape()[1],
            hidden: floats(&tensors, "hidden_states"),
            positions: integers(&tensors, "position_ids"),
            output: floats(&tensors, "output"),
            rows: rows.map(|name| floats(&tensors, name)),
        }
    }

    fn sequences(&self) -> usize {
        self.positions.len() / self.length
    }

    /// Differences of the trained form, of the absorbed form over f64 rows, and of the rows.
    fn differences(&self) -> [(&'static str, f64); 4] {
        let Fixture { layer, length, hidden, positions, output, rows, .. } = self;
        let forward = layer.forward_causal(hidden, positions, *length).expect("lengths that fit");
        let projected = layer.project(hidden, positions).expect("lengths that fit");
        let attended = attend(layer, &projected.queries, &projected.rows, *length);
        let decoded = layer.output(&attended).expect("lengths that fit");
        assert_eq!(projected.rows, forward.rows);
        let [first, second] = forward.rows.parts();
        [
            ("output as trained", difference(&forward.output, output)),
            ("output from the cache", difference(&decoded, output)),
            ("first part of the rows", difference(first, &rows[0])),
            ("second part of the rows", difference(second, &rows[1])),
        ]
    }

    /// The layer's output when an engine decodes all sequences at once from a paged f32 cache:
    /// a chunk of three tokens each, then token by token.
    fn decode(&self) -> Result<Vec<f64>, Error> {
        let (engine, geometry) = (Reference::new(), self.layer.geometry());
        let problem = Problem::new(geometry, Dtype::F32, self.layer.scale())?;
        let mut tables = PageTables::new(3, 16)?;
        let mut cache = engine.create_cache(CacheLayout::new(geometry, Dtype::F32, 3, 16)?)?;
        let sequences: Vec<_> = (0..self.sequences()).map(|_| tables.insert()).collect();
        let width = self.layer.model_width();
        let mut output = vec![0.0; self.output.len()];
        let chunks = std::iter::once(0..3).chain((3..self.length).map(|t| t..t + 1));
        for chunk in chunks {
            for &sequence in &sequences {
                let copies = tables.extend(sequence, chunk.len())?;
                engine.copy_rows(CopyRows::new(&mut cache, &copies)?)?;
            }
            let queries: Vec<_> = sequences.iter().map(|&id| (id, chunk.len())).collect();
            let step = tables.step(&queries, MaskKind::Causal)?;
            let mut plan = engine.plan(Planning::new(&problem, &step))?;

            // The chunk's tokens of every sequence, packed.
            let tokens: Vec<usize> = (0..self.sequences())
                .flat_map(|b| chunk.clone().map(move |t| b * self.length + t))
                .collect();
            let hidden: Vec<f64> =
                tokens.iter().flat_map(|t| self.hidden[t * width..][..width].to_vec()).collect();
            let positions: Vec<i64> = tokens.iter().map(|&t| self.positions[t]).collect();
            let projected = self.layer.project(&hidden, &positions).expect("lengths that fit");

            let total = tokens.len();
            let upload = |values: &[f64], heads: usize| {
                let shape = match heads {
                    0 => vec![total, values.len() / total],
                    _ => vec![total, heads, values.len() / total / heads],
                };
                let mut tensor = engine.allocate(Dtype::F32, &shape)?;
                let host = HostTensor::from_f64(Dtype::F32, &shape, values)?;
                engine.upload(Upload::new(&mut tensor, &host)?)?;
                Ok::<_, Error>(tensor)
            };
            let [first, second] = projected.rows.parts();
            let first = upload(first, geometry.heads())?;
            let second = match geometry.row() {
                Row::Separate { heads, .. } => upload(second, heads)?,
                Row::Tied { .. } => upload(second, 0)?,
            };
            engine.append(Append::new(&plan, &mut cache, &first, Some(&second))?)?;
            let q = upload(&projected.queries, geometry.h_q())?;
            let mut o =
                engine.allocate(Dtype::F32, &[total, geometry.h_q(), geometry.width_v()])?;
            engine.attend(Attend::new(&mut plan, &q, &cache, &mut o, None)?)?;
            let attended = engine.download(&o)?.to_f64();
            let decoded = self.layer.output(&attended).expect("whole tokens");
            for (t, decoded) in tokens.into_iter().zip(decoded.chunks_exact(width)) {
                output[t * width..][..width].copy_from_slice(decoded);
            }
        }
        Ok(output)
    }
}

/// Names of the fixtures with a difference that is not below `tolerance`; NaN is not.
fn failures(tolerance: f64, differences: impl Fn(&Fixture) -> Vec<(&'static str, f64)>) -> String {
    let paths = fixtures();
    assert!(!paths.is_empty(), "no fixture in {}", folder().display());
    let mut failures = String::new();
    for fixture in paths.iter().map(|path| Fixture::read(path)) {
        for (what, difference) in differences(&fixture) {
            println!("{:28} {what:24} {difference:.1e}", fixture.name);
            if !matches!(difference.partial_cmp(&tolerance), Some(std::cmp::Ordering::Less)) {
                failures += &format!("{}: {what} differs by {difference:.1e}\n", fixture.name);
            }
        }
    }
    failures
}

#[test]
fn every_fixture_is_reproduced() {
    let failures = failures(TOLERANCE, |fixture| fixture.differences().to_vec());
    assert!(failures.is_empty(), "{failures}");
}

/// Decoding step by step over a paged cache gives what whole sequences give `[S-5.20]`.
///
/// Queries, rows and outputs are rounded to f32, each by 2^-24 = 6e-8 of itself at most, and scores
/// pass on a small multiple of that. The differences are below 1e-7.
#[test]
fn every_fixture_is_decoded_from_pages() {
    let failures = failures(1e-6, |fixture| {
        let decoded = fixture.decode().unwrap_or_else(|error| panic!("{}: {error}", fixture.name));
        vec![("output decoded in f32", difference(&decoded, &fixture.output))]
    });
    assert!(failures.is_empty(), "{failures}");
}

/// The set is not allowed to shrink to what happens to pass: every kind is in it.
#[test]
fn every_kind_has_a_fixture() {
    let kinds: Vec<String> = fixtures()
        .iter()
        .map(|path| metadata(&std::fs::read(path).expect("a fixture"))["kind"].clone())
        .collect();
    for kind in LayerKind::ALL {
        assert!(kinds.iter().any(|name| name == kind.name()), "no fixture of a {kind} layer");
    }
}

/// cos, sin and softmax factor of every table, which were computed in 50 digits `[S-5.1, S-5.5 ..
/// S-5.8]`.
#[test]
fn rope_tables_are_reproduced() {
    let bytes = std::fs::read(folder().join("rope_tables.safetensors")).expect("the tables");
    let tensors = SafeTensors::deserialize(&bytes).expect("the tables");
    let configs: serde_json::Value =
        serde_json::from_str(&metadata(&bytes)["configs"]).expect("configurations");
    let positions = integers(&tensors, "position_ids");
    let configs = configs.as_object().expect("an object");
    assert!(!configs.is_empty());
    for (name, table) in configs {
        let mut table = table.clone();
        (table["hidden_size"], table["num_attention_heads"]) = (1.into(), 1.into());
        let config = LayerConfig::from_json(&table.to_string()).expect("a configuration");
        let width = config.qk_rope_head_dim.expect("a width");
        let rope = config.rope(LayerKind::Mla, width).expect("legal parameters");
        let number = |key: &str| table[key].as_f64().expect("a number");
        assert!((rope.softmax_scale_factor() - number("softmax_factor")).abs() < 1e-14, "{name}");

        let tables = ["cos", "sin"].map(|part| floats(&tensors, &format!("{name}.{part}")));
        for (row, &position) in positions.iter().enumerate() {
            for (i, (cos, sin)) in rope.cos_sin(position).enumerate() {
                let [expected_cos, expected_sin] =
                    [0, 1].map(|part: usize| tables[part][row * width / 2 + i]);
                // An angle near 131071 is itself rounded by 7e-12, and its frequency once more.
                let close = |a: f64, b: f64| (a - b).abs() < 1e-10;
                assert!(
                    close(cos, expected_cos) && close(sin, expected_sin),
                    "{name}, position {position}, pair {i}"
                );
            }
        }
    }
}

/// Every cell of the paper's cache tables, transcribed by another hand than the snapshots of
/// `cost.rs` `[S-6.9 .. S-6.11]`.
#[test]
fn paper_tables_are_reproduced() {
    let text = std::fs::read_to_string(folder().join("paper_tables.json")).expect("the tables");
    let tables: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let mut cells = 0;
    for table in tables["tables"].as_array().expect("tables") {
        let multiples = table["quantity"].as_str().expect("text").contains("multiples of d_h");
        for row in table["rows"].as_array().expect("rows") {
            let size = |key: &str| row[key].as_u64().expect("a size") as usize;
            let geometry = match row["kind"].as_str().expect("a kind") {
                "gqa" => Geometry::gqa(size("h_q"), size("h_kv"), size("d_h")),
                "gta" => Geometry::gta(size("h_q"), size("h_kv"), size("d_h")),
                "mla" => Geometry::mla(size("h_q"), size("d_c"), size("d_r")),
                "gla" => Geometry::gla(size("h_q"), size("h_c"), size("d_c"), size("d_r")),
                kind => panic!("{kind}"),
            };
            let degrees = table["tensor_parallel"].as_array().expect("degrees");
            let printed = row["cells"].as_array().expect("cells");
            assert_eq!(degrees.len(), printed.len());
            for (degree, printed) in degrees.iter().zip(printed) {
                let degree = degree.as_u64().expect("a degree") as usize;
                let sharding = Sharding::new(geometry.clone().expect("legal"), degree);
                let sharding = sharding.expect("a degree that divides");
                let found = match multiples {
                    true => sharding.elements_per_token() as f64 / size("d_h") as f64,
                    false => sharding.bytes_per_token(Dtype::Bf16) as f64,
                };
                assert_eq!(Some(found), printed.as_f64(), "{} TP {degree}", row["method"]);
                cells += 1;
            }
        }
    }
    assert!(cells > 0);
}
