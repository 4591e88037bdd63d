//! `oracle layer` against the fixtures, which HuggingFace's modules and PyTorch computed.

use crate::program::Folder;
use crate::tensors::Tensors;
use std::path::PathBuf;

/// Largest difference allowed, relative to the largest element of the expected tensor.
const TOLERANCE: f64 = 1e-9;

fn fixtures() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .filter(|path| !path.ends_with("rope_tables.safetensors"))
        .collect();
    paths.sort();
    paths
}

fn fixture(name: &str) -> Tensors {
    let path = format!("{}/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    Tensors::from_bytes(&std::fs::read(path).unwrap())
}

fn difference(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // Not f64::max, which drops a NaN.
    worst.fold(0.0, |max: f64, x| if max.is_nan() || x <= max { max } else { x }) / largest
}

// [S-5.11] [S-5.12] [S-5.16] [S-5.17] [S-5.18] [S-5.19] [S-5.21]
#[test]
fn every_fixture_is_reproduced_in_both_forms() {
    let folder = Folder::new();
    let paths = fixtures();
    assert!(paths.len() >= 20, "{}", paths.len());
    for path in paths {
        let expected = Tensors::from_bytes(&std::fs::read(&path).unwrap());
        for form in ["", "--absorbed"] {
            folder.succeed(&format!("layer {} -o out {form}", path.display()));
            let out = folder.get("out");
            assert!(out.tensors.len() == 3, "{:?}", out.tensors.keys());
            for name in out.tensors.keys() {
                assert_eq!(out.shape(name), expected.shape(name), "{name}");
                let difference = difference(&out.floats(name), &expected.floats(name));
                assert!(difference < TOLERANCE, "{}: {name} {difference:e}", path.display());
            }
        }
    }
}

/// Positions are 0..L where the file does not give them.
#[test]
fn positions_default_to_the_order() {
    let folder = Folder::new();
    let file = fixture("gla");
    let [b, length, _] = file.shape("hidden_states") else { panic!("[B, L, D]") };
    let order: Vec<i64> = (0..*b).flat_map(|_| 0..*length as i64).collect();
    folder.put("given", &file.clone().i64("position_ids", &[*b, *length], &order));
    folder.put("default", &file.without("position_ids"));
    folder.succeed("layer given -o expected");
    folder.succeed("layer default -o out");
    assert_eq!(folder.get("out"), folder.get("expected"));
}

/// A file of a whole model holds many layers; one is asked for by its prefix.
#[test]
fn one_layer_of_several_is_chosen_by_its_prefix() {
    let folder = Folder::new();
    let file = fixture("gla_4_bias_prefixed");
    let mut two = file.clone();
    for (name, tensor) in &file.tensors {
        if let Some(rest) = name.strip_prefix("model.layers.0.") {
            two.tensors.insert(format!("model.layers.1.{rest}"), tensor.clone());
        }
    }
    folder.put("two", &two);
    folder.put("one", &file);
    let ran = folder.run("layer two -o out");
    assert_eq!(ran.status, 2);
    insta::assert_snapshot!(ran.stderr, @r#"error: two: the file has the layers "model.layers.0.self_attn." and "model.layers.1.self_attn.": give the prefix of one"#);
    let ran = folder.run("layer two -o out --prefix model.layers.1.self_attn.");
    assert_eq!(ran.status, 0);
    assert!(ran.stderr.starts_with("note: two: tensor model.layers.0."), "{}", ran.stderr);
    folder.succeed("layer one -o expected");
    assert_eq!(folder.get("out"), folder.get("expected"));
}

// [S-5.21] [S-5.22] [S-3.22]
#[test]
fn bad_layers_are_named() {
    let folder = Folder::new();
    let error = |file: Tensors| {
        folder.put("layer", &file);
        let ran = folder.run("layer layer -o out");
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
        assert_eq!(folder.names(), ["layer"]);
        ran.stderr
    };
    let gqa = || fixture("llama_gqa");
    insta::assert_snapshot!(error(gqa().without("kind")), @"error: layer: metadata kind is missing: expected gqa, gta, mla or gla");
    insta::assert_snapshot!(error(gqa().meta("kind", "mamba")), @r#"error: layer: unknown kind of layer "mamba": expected gqa, gta, mla or gla"#);
    insta::assert_snapshot!(error(gqa().without("config")), @"error: layer: metadata config is missing: expected a JSON object with the keys of HuggingFace's config.json");
    insta::assert_snapshot!(error(gqa().meta("config", "{")), @"error: layer: the layer's configuration cannot be read: EOF while parsing an object at line 1 column 1");
    insta::assert_snapshot!(error(gqa().meta("config", "{\"hidden_size\": 1e99}")), @"error: layer: the layer's configuration cannot be read: invalid type: floating point `1e+99`, expected usize at line 1 column 20");
    insta::assert_snapshot!(error(gqa().without("hidden_states")), @"error: layer: tensor hidden_states is missing: expected [B, L, D]");
    insta::assert_snapshot!(error(gqa().f64("hidden_states", &[1, 1, 2], &[0.0; 2])), @"error: layer: tensor hidden_states has shape [1, 1, 2]: expected [B, L, 32], the layer's width");
    insta::assert_snapshot!(error(gqa().f64("hidden_states", &[2], &[0.0; 2])), @"error: layer: tensor hidden_states has shape [2]: expected [B, L, D]");
    insta::assert_snapshot!(error(gqa().i64("position_ids", &[1], &[0])), @"error: layer: tensor position_ids has shape [1]: expected [2, 8], as hidden_states has");
    insta::assert_snapshot!(error(gqa().f64("position_ids", &[2, 8], &[0.0; 16])), @"error: layer: tensor position_ids is F64: expected I32 or I64");
    insta::assert_snapshot!(error(gqa().without("o_proj.weight")), @"error: layer: tensor o_proj.weight is missing");
    insta::assert_snapshot!(error(gqa().without("k_proj.weight")), @"error: layer: tensor k_proj.weight is missing");
    insta::assert_snapshot!(error(gqa().f64("k_proj.weight", &[1, 2], &[0.0; 2])), @"error: layer: tensor k_proj.weight has shape [1, 2], and the layer needs [16, 32]");
    insta::assert_snapshot!(error(gqa().f64("q_norm.weight", &[2], &[0.0; 2])), @"error: layer: tensor q_norm.weight is not part of the layer");
    insta::assert_snapshot!(error(fixture("gla").without("W_ukv_2.weight")), @"error: layer: tensor W_ukv_2.weight is missing");
    let huge = gqa().f64("hidden_states", &[1 << 40, 1 << 20, 0], &[]);
    insta::assert_snapshot!(error(huge), @"error: layer: the layer would take 17708874310761169551360 bytes, and a file of this size may ask for 18956800");
}
