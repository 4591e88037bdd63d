//! Loading layers: what is read, and every way in which a file or a configuration can be wrong
//! `[S-5.21, S-5.22]`.
#![cfg(feature = "safetensors")]

use grouped_attention::layers::{Layer, LayerConfig, LayerError, LayerKind};
use grouped_attention::{InvalidGeometry, InvalidRope, RopeScaling, RopeStyle, Variant};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;

const PREFIX: &str = "model.layers.3.self_attn.";

/// Tensors of a file to be, by full name.
#[derive(Clone)]
struct Tensors(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    /// Tensors under the prefix, filled with numbers that every format holds.
    fn of(shapes: &[(&str, &[usize])], dtype: Dtype) -> Tensors {
        let mut tensors = Tensors(BTreeMap::new());
        for (name, shape) in shapes {
            tensors.put(&format!("{PREFIX}{name}"), shape, dtype);
        }
        tensors
    }

    fn put(&mut self, name: &str, shape: &[usize], dtype: Dtype) {
        let elements: usize = shape.iter().product();
        let values = (0..elements).map(|i| (i * 7 % 13) as f64 / 8.0 - 0.75);
        let bytes = values.flat_map(|x| encode(dtype, x)).collect();
        self.0.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
    }

    fn file(&self) -> Vec<u8> {
        let views = self.0.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a view"))
        });
        safetensors::serialize(views, None).expect("a file")
    }

    fn load(&self, kind: LayerKind, config: &LayerConfig) -> Result<Layer, LayerError> {
        let file = self.file();
        let tensors = SafeTensors::deserialize(&file).expect("a file");
        Layer::from_safetensors(kind, config, &tensors, PREFIX)
    }
}

fn encode(dtype: Dtype, x: f64) -> Vec<u8> {
    match dtype {
        Dtype::F64 => x.to_le_bytes().to_vec(),
        Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(x).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(x).to_le_bytes().to_vec(),
        Dtype::I32 => (x as i32).to_le_bytes().to_vec(),
        other => panic!("{other}"),
    }
}

type Shapes = Vec<(&'static str, &'static [usize])>;

/// A layer of each kind, low-rank queries first: its configuration and the tensors it consists of.
fn published() -> Vec<(LayerKind, LayerConfig, Shapes)> {
    let gqa = LayerConfig {
        hidden_size: 12,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        head_dim: Some(6),
        ..LayerConfig::default()
    };
    let gta = LayerConfig { head_dim: Some(8), ..gqa.clone() };
    let latent = LayerConfig {
        hidden_size: 12,
        num_attention_heads: 4,
        kv_lora_rank: Some(5),
        qk_nope_head_dim: Some(3),
        qk_rope_head_dim: Some(2),
        v_head_dim: Some(4),
        q_lora_rank: Some(7),
        ..LayerConfig::default()
    };
    let gla = LayerConfig { num_latent_heads: Some(2), ..latent.clone() };
    let direct = |config: &LayerConfig| LayerConfig { q_lora_rank: None, ..config.clone() };
    let q: [(&str, &[usize]); 1] = [("q_proj.weight", &[20, 12])];
    let mla_q: [(&str, &[usize]); 3] = [
        ("q_a_proj.weight", &[7, 12]),
        ("q_a_layernorm.weight", &[7]),
        ("q_b_proj.weight", &[20, 7]),
    ];
    let mla_kv: [(&str, &[usize]); 4] = [
        ("kv_a_proj_with_mqa.weight", &[7, 12]),
        ("kv_a_layernorm.weight", &[5]),
        ("kv_b_proj.weight", &[28, 5]),
        ("o_proj.weight", &[12, 16]),
    ];
    let gla_q: [(&str, &[usize]); 3] =
        [("W_dQ.weight", &[7, 12]), ("q_norm.weight", &[7]), ("W_uQ_rope.weight", &[20, 7])];
    let gla_kv: [(&str, &[usize]); 6] = [
        ("W_dKV.weight", &[12, 12]),
        ("kv_norm_1.weight", &[5]),
        ("kv_norm_2.weight", &[5]),
        ("W_ukv_1.weight", &[14, 5]),
        ("W_ukv_2.weight", &[14, 5]),
        ("o_proj.weight", &[12, 16]),
    ];
    vec![
        (
            LayerKind::Gqa,
            gqa,
            vec![
                ("q_proj.weight", &[24, 12]),
                ("k_proj.weight", &[12, 12]),
                ("v_proj.weight", &[12, 12]),
                ("o_proj.weight", &[12, 24]),
            ],
        ),
        (
            LayerKind::Gta,
            gta,
            vec![
                ("q_proj.weight", &[32, 12]),
                ("kv_proj.weight", &[16, 12]),
                ("W_rope_k.weight", &[4, 12]),
                ("o_proj.weight", &[12, 32]),
            ],
        ),
        (LayerKind::Mla, latent.clone(), [&mla_q[..], &mla_kv].concat()),
        (LayerKind::Mla, direct(&latent), [&q[..], &mla_kv].concat()),
        (LayerKind::Gla, gla.clone(), [&gla_q[..], &gla_kv].concat()),
        (LayerKind::Gla, direct(&gla), [&q[..], &gla_kv].concat()),
    ]
}

#[test]
fn every_kind_loads_from_every_float_format() {
    for (kind, config, shapes) in published() {
        let load = |dtype| Tensors::of(&shapes, dtype).load(kind, &config).expect("a layer");
        let layer = load(Dtype::F64);
        assert_eq!(layer.geometry().variant().to_string(), kind.to_string());
        assert_eq!(layer.model_width(), 12);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            assert_eq!(load(dtype), layer, "{kind} {dtype}");
        }
    }
}

#[test]
fn a_missing_tensor_is_named() {
    for (kind, config, shapes) in published() {
        for (name, _) in &shapes {
            let mut tensors = Tensors::of(&shapes, Dtype::F32);
            let tensor = format!("{PREFIX}{name}");
            tensors.0.remove(&tensor);
            assert_eq!(tensors.load(kind, &config), Err(LayerError::Missing { tensor }));
        }
    }
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    for (kind, config, shapes) in published() {
        for (name, shape) in &shapes {
            let tensor = format!("{PREFIX}{name}");
            let mut transposed = shape.to_vec();
            transposed.reverse();
            transposed[0] += 1;
            for got in [transposed, vec![shape.iter().product(), 1], vec![]] {
                let mut tensors = Tensors::of(&shapes, Dtype::F32);
                tensors.put(&tensor, &got, Dtype::F32);
                let (tensor, expected) = (tensor.clone(), shape.to_vec());
                let error = LayerError::Shape { tensor, expected, got };
                assert_eq!(tensors.load(kind, &config), Err(error));
            }
        }
    }
}

#[test]
fn an_extra_tensor_under_the_prefix_is_named_and_others_are_ignored() {
    for (kind, config, shapes) in published() {
        let mut tensors = Tensors::of(&shapes, Dtype::F32);
        tensors.put("model.layers.3.mlp.up_proj.weight", &[3, 3], Dtype::I32);
        tensors.put("model.layers.30.self_attn.q_proj.weight", &[3, 3], Dtype::I32);
        assert!(tensors.load(kind, &config).is_ok());
        let tensor = format!("{PREFIX}rotary_emb.inv_freq");
        tensors.put(&tensor, &[3], Dtype::F32);
        assert_eq!(tensors.load(kind, &config), Err(LayerError::Unexpected { tensor }));
    }
}

#[test]
fn other_formats_and_numbers_that_are_none_are_named() {
    for (kind, config, shapes) in published() {
        for (name, shape) in &shapes {
            let tensor = format!("{PREFIX}{name}");
            let mut tensors = Tensors::of(&shapes, Dtype::F32);
            tensors.put(&tensor, shape, Dtype::I32);
            let dtype = "I32".to_owned();
            let error = LayerError::TensorDtype { tensor: tensor.clone(), dtype };
            assert_eq!(tensors.load(kind, &config), Err(error));

            for (dtype, bad) in [(Dtype::F64, f64::NAN), (Dtype::BF16, f64::NEG_INFINITY)] {
                let mut tensors = Tensors::of(&shapes, dtype);
                let bytes = &mut tensors.0.get_mut(&tensor).expect("a tensor").2;
                let size = encode(dtype, bad).len();
                bytes[3 * size..4 * size].copy_from_slice(&encode(dtype, bad));
                let error = LayerError::NotFinite { tensor: tensor.clone(), index: 3 };
                assert_eq!(tensors.load(kind, &config), Err(error));
            }
        }
    }
}

/// `attention_bias` decides for the projections it governs in the published code, the file for
/// those that the paper's code always gives one, and the rest have none [S-5.10].
#[test]
fn biases_are_where_the_published_code_has_them() {
    let governed = |kind: LayerKind, name: &str| match kind {
        LayerKind::Gqa | LayerKind::Gta | LayerKind::Gla => name.ends_with("_proj"),
        LayerKind::Mla => ["q_a_proj", "kv_a_proj_with_mqa", "o_proj"].contains(&name),
    };
    for (kind, config, shapes) in published() {
        let projections: Vec<(&str, usize)> = shapes
            .iter()
            .filter(|(_, shape)| shape.len() == 2)
            .map(|(name, shape)| (name.strip_suffix(".weight").expect("a weight"), shape[0]))
            .collect();
        for (name, outputs) in &projections {
            let tensor = format!("{PREFIX}{name}.bias");
            let with = |attention_bias| LayerConfig { attention_bias, ..config.clone() };
            let mut tensors = Tensors::of(&shapes, Dtype::F32);
            tensors.put(&tensor, &[*outputs], Dtype::F32);
            let unexpected = Err(LayerError::Unexpected { tensor: tensor.clone() });
            if governed(kind, name) {
                assert!(tensors.load(kind, &with(None)).is_ok(), "{tensor}");
                assert_eq!(tensors.load(kind, &with(Some(false))), unexpected);
            } else if name.starts_with("W_") {
                assert!(tensors.load(kind, &with(Some(false))).is_ok(), "{tensor}");
            } else {
                assert_eq!(tensors.load(kind, &with(None)), unexpected);
            }
        }

        // All the biases that attention_bias promises, then each of them missing.
        let config = LayerConfig { attention_bias: Some(true), ..config };
        let mut tensors = Tensors::of(&shapes, Dtype::F32);
        for (name, outputs) in projections.iter().filter(|(name, _)| governed(kind, name)) {
            tensors.put(&format!("{PREFIX}{name}.bias"), &[*outputs], Dtype::F32);
        }
        assert!(tensors.load(kind, &config).is_ok());
        for (name, _) in projections.iter().filter(|(name, _)| governed(kind, name)) {
            let mut tensors = tensors.clone();
            let tensor = format!("{PREFIX}{name}.bias");
            tensors.0.remove(&tensor);
            assert_eq!(tensors.load(kind, &config), Err(LayerError::Missing { tensor }));
        }
    }
}

#[test]
fn missing_and_contradictory_keys_are_named() {
    type Edit = fn(&mut LayerConfig);
    let missing = |layer, key| LayerError::MissingKey { layer, key };
    let inconsistent = |key, expected: &str, got: &str| {
        let (expected, got) = (expected.to_owned(), got.to_owned());
        LayerError::Inconsistent { key, expected, got }
    };
    let unsupported = |key, value: &str| LayerError::Unsupported { key, value: value.to_owned() };
    let cases: Vec<(LayerKind, Edit, LayerError)> = vec![
        (
            LayerKind::Gqa,
            |config| (config.head_dim, config.hidden_size) = (None, 13),
            inconsistent("hidden_size", "a multiple of 4 heads", "13"),
        ),
        (
            LayerKind::Gta,
            |config| config.num_key_value_heads = None,
            missing("gta", "num_key_value_heads"),
        ),
        (
            LayerKind::Gta,
            |config| config.v_head_dim = Some(4),
            inconsistent("v_head_dim", "8", "4"),
        ),
        (LayerKind::Mla, |config| config.kv_lora_rank = None, missing("mla", "kv_lora_rank")),
        (
            LayerKind::Mla,
            |config| config.qk_nope_head_dim = None,
            missing("mla", "qk_nope_head_dim"),
        ),
        (
            LayerKind::Gla,
            |config| config.qk_rope_head_dim = None,
            missing("gla", "qk_rope_head_dim"),
        ),
        (
            LayerKind::Gla,
            |config| config.num_latent_heads = None,
            missing("gla", "num_latent_heads"),
        ),
        (
            LayerKind::Mla,
            |config| config.num_latent_heads = Some(2),
            inconsistent("num_latent_heads", "1", "2"),
        ),
        (
            LayerKind::Gqa,
            |config| config.sliding_window = Some(4096),
            unsupported("sliding_window", "4096"),
        ),
        (
            LayerKind::Gqa,
            |config| config.attn_logit_softcapping = Some(50.0),
            unsupported("attn_logit_softcapping", "50"),
        ),
        (
            LayerKind::Gqa,
            |config| config.partial_rotary_factor = Some(0.5),
            unsupported("partial_rotary_factor", "0.5"),
        ),
        (
            LayerKind::Gqa,
            |config| config.num_key_value_heads = Some(3),
            LayerError::Geometry(InvalidGeometry::HeadsDoNotDivide { h_q: 4, heads: 3 }),
        ),
        (
            LayerKind::Gqa,
            |config| config.num_attention_heads = 0,
            LayerError::Geometry(InvalidGeometry::Zero { what: "h_q" }),
        ),
        (
            LayerKind::Gqa,
            |config| config.rope_theta = Some(-1.0),
            LayerError::Rope(InvalidRope::Base { base: -1.0 }),
        ),
    ];
    let published = published();
    for (kind, edit, error) in cases {
        let (_, config, shapes) =
            published.iter().find(|(other, ..)| *other == kind).expect("a layer");
        let mut config = config.clone();
        edit(&mut config);
        assert_eq!(Tensors::of(shapes, Dtype::F32).load(kind, &config), Err(error));
    }
}

/// Configurations in the spellings that published files have.
/// `head_dim` may be left out, as HuggingFace's Llama does: then it is D / h_q.
#[test]
fn heads_share_the_width_where_their_own_is_not_given() {
    let config = LayerConfig {
        hidden_size: 24,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        ..LayerConfig::default()
    };
    let tensors = Tensors::of(
        &[
            ("q_proj.weight", &[24, 24]),
            ("k_proj.weight", &[12, 24]),
            ("v_proj.weight", &[12, 24]),
            ("o_proj.weight", &[24, 24]),
        ],
        Dtype::F32,
    );
    let layer = tensors.load(LayerKind::Gqa, &config).expect("a layer");
    let given = LayerConfig { head_dim: Some(6), ..config.clone() };
    assert_eq!(tensors.load(LayerKind::Gqa, &given).expect("a layer"), layer);

    let none = LayerConfig { hidden_size: 0, num_attention_heads: 0, ..config };
    let error = tensors.load(LayerKind::Gqa, &none).expect_err("no heads");
    assert_eq!(
        error,
        LayerError::Inconsistent {
            key: "hidden_size",
            expected: "a multiple of 0 heads".to_owned(),
            got: "0".to_owned(),
        }
    );
}

#[test]
fn rope_is_read_in_every_published_spelling() {
    let rope = |kind, keys: &str| {
        let text = format!("{{\"hidden_size\": 8, \"num_attention_heads\": 2{keys}}}");
        LayerConfig::from_json(&text).expect("a configuration").rope(kind, 4)
    };
    let plain = rope(LayerKind::Gqa, "").expect("a rope");
    assert_eq!((plain.style(), plain.base()), (RopeStyle::HalfSplit, 10_000.0));
    assert_eq!(rope(LayerKind::Mla, "").expect("a rope").style(), RopeStyle::Interleaved);
    let split = rope(LayerKind::Mla, r#", "rope_interleave": false"#).expect("a rope");
    assert_eq!(split.style(), RopeStyle::HalfSplit);
    for text in [
        r#", "rope_theta": 5e5, "rope_scaling": null"#,
        r#", "rope_parameters": {"rope_type": "default", "rope_theta": 500000}"#,
        r#", "rope_theta": 5e5, "rope_scaling": {"type": "default", "rope_theta": 5e5}"#,
    ] {
        let rope = rope(LayerKind::Gqa, text).expect("a rope");
        assert_eq!((rope.base(), rope.scaling()), (5e5, RopeScaling::None), "{text}");
    }
    let yarn = r#", "rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 40,
        "original_max_position_embeddings": 4096}"#;
    assert_eq!(
        rope(LayerKind::Mla, yarn).expect("a rope").scaling(),
        RopeScaling::Yarn {
            factor: 40.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: 1.0,
            mscale_all_dim: 0.0,
            original_max_position: 4096,
            attention_factor: None,
            truncate: true,
        }
    );
    let error = |text: &str| {
        rope(LayerKind::Gqa, text).expect_err("a configuration that is wrong").to_string()
    };
    for (text, message) in [
        (
            r#", "rope_theta": 1e4, "rope_scaling": {"rope_type": "default", "rope_theta": 1e5}"#,
            "the configuration says rope_theta = 10000, and 100000 follows from the rest",
        ),
        (
            r#", "rope_scaling": {"rope_type": "yarn", "type": "llama3"}"#,
            "the configuration says type = llama3, and yarn follows from the rest",
        ),
        (
            r#", "rope_scaling": {"rope_type": "linear", "factor": 2}"#,
            "rope_type = linear is not supported",
        ),
        (
            r#", "rope_scaling": {"factor": 2}"#,
            "the configuration of a gqa layer needs rope_scaling.rope_type",
        ),
        (
            r#", "rope_scaling": {"rope_type": "llama3", "factor": 2}"#,
            "the configuration of a gqa layer needs rope_scaling.low_freq_factor",
        ),
        (
            r#", "rope_scaling": {"rope_type": "yarn", "factor": 2}"#,
            "the configuration of a gqa layer needs rope_scaling.original_max_position_embeddings",
        ),
    ] {
        assert_eq!(error(text), message);
    }
}

#[test]
fn text_that_is_no_configuration_is_an_error() {
    for text in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"hidden_size": 8}"#,
        r#"{"hidden_size": -8, "num_attention_heads": 2}"#,
        r#"{"hidden_size": 8, "num_attention_heads": 2, "rope_theta": "big"}"#,
        r#"{"hidden_size": 8, "num_attention_heads": 2, "rope_scaling": []}"#,
    ] {
        assert!(matches!(LayerConfig::from_json(text), Err(LayerError::Json { .. })), "{text}");
    }
    assert_eq!("gda".parse::<LayerKind>(), Err(LayerError::UnknownKind { name: "gda".to_owned() }));
}

/// A GTA layer whose head is all state and no rope has no `W_rope_k`.
#[test]
fn a_layer_without_rope_needs_no_rope_projection() {
    let (_, config, shapes) =
        published().into_iter().find(|(kind, ..)| *kind == LayerKind::Gta).expect("a layer");
    let config = LayerConfig { qk_rope_head_dim: Some(0), qk_nope_head_dim: Some(4), ..config };
    let mut tensors = Tensors::of(&shapes, Dtype::F32);
    tensors.0.remove(&format!("{PREFIX}W_rope_k.weight"));
    tensors.put(&format!("{PREFIX}q_proj.weight"), &[16, 12], Dtype::F32);
    let layer = tensors.load(LayerKind::Gta, &config).expect("a layer");
    assert_eq!(layer.geometry().variant(), Variant::Gta);
    let forward = layer.forward_causal(&[1.0; 24], &[0, 1], 2).expect("lengths that fit");
    assert_eq!(forward.rows.parts().map(<[f64]>::len), [32, 0]);
}

/// Sizes as a hostile configuration has them.
fn size() -> impl Strategy<Value = Option<usize>> {
    let edges =
        prop::sample::select(vec![0, 1, 2, 3, 1 << 31, 1 << 40, usize::MAX / 2, usize::MAX]);
    prop_oneof![Just(None), (0..16_usize).prop_map(Some), edges.prop_map(Some)]
}

fn number() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![Just(None), any::<f64>().prop_map(Some), (0.0..64.0).prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// No configuration makes the loader panic or ask for memory that the file does not warrant,
    /// and no layer comes out of one that does not fit the file.
    #[test]
    fn hostile_configurations_are_errors(
        index in 0..6_usize,
        sizes in prop::array::uniform10(size()),
        theta in number(),
        scaling in prop::option::of((
            prop::sample::select(vec!["yarn", "llama3"]),
            prop::array::uniform8(number()),
            size(),
        )),
    ) {
        let (kind, original, shapes) = published().swap_remove(index);
        let [d, h_q, h_kv, h_c, head_dim, d_c, d_h, d_r, d_v, rank] = sizes;
        let config = LayerConfig {
            hidden_size: d.unwrap_or(original.hidden_size),
            num_attention_heads: h_q.unwrap_or(original.num_attention_heads),
            num_key_value_heads: h_kv.or(original.num_key_value_heads),
            num_latent_heads: h_c.or(original.num_latent_heads),
            head_dim: head_dim.or(original.head_dim),
            kv_lora_rank: d_c.or(original.kv_lora_rank),
            qk_nope_head_dim: d_h.or(original.qk_nope_head_dim),
            qk_rope_head_dim: d_r.or(original.qk_rope_head_dim),
            v_head_dim: d_v.or(original.v_head_dim),
            q_lora_rank: rank.or(original.q_lora_rank),
            rope_theta: theta,
            rope_scaling: scaling.map(|(rope_type, numbers, context)| {
                let [factor, low, high, fast, slow, mscale, all, attention_factor] = numbers;
                grouped_attention::layers::RopeConfig {
                    rope_type: Some(rope_type.to_owned()),
                    factor,
                    original_max_position_embeddings: context,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    beta_fast: fast,
                    beta_slow: slow,
                    mscale,
                    mscale_all_dim: all,
                    attention_factor,
                    ..Default::default()
                }
            }),
            ..original
        };
        if let Ok(layer) = Tensors::of(&shapes, Dtype::BF16).load(kind, &config) {
            let hidden = vec![0.5; layer.model_width()];
            prop_assert_eq!(layer.model_width(), 12);
            prop_assert!(layer.project(&hidden, &[i64::MIN]).is_ok());
        }
    }
}
