//! Makes `corpus/states.safetensors`: what the trained models ask and cache while reading.
//!
//! ```text
//! cargo test -p grouped-attention-conformance --test capture -- --ignored
//! ```

mod recorder;

use grouped_attention::Dtype;
use grouped_attention_conformance::lm::{Model, Session};
use grouped_attention_conformance::states::{KINDS, LAYERS};
use half::bf16;
use recorder::{Recorder, Seen};
use safetensors::tensor::TensorView;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of text that are read, and how many of the last ones' queries are kept.
const TOKENS: usize = 128;
const QUERIES: usize = 16;

#[test]
#[ignore = "writes corpus/states.safetensors"]
fn capture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(root.join("models/heldout.txt")).unwrap();
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for kind in KINDS {
        let model = Model::load(&root.join(format!("models/{kind}.safetensors"))).unwrap();
        let recorder = Recorder::default();
        let mut session = Session::new(&model, &recorder, Dtype::F32, 16, TOKENS).unwrap();
        session.step(&text[..TOKENS]).unwrap();
        let seen = recorder.take();
        for layer in LAYERS {
            let Seen { q, first, second } = &seen[layer];
            let width = q.len() / TOKENS;
            let asked = &q[(TOKENS - QUERIES) * width..];
            let parts =
                [("q", asked, QUERIES), ("first", first, TOKENS), ("second", second, TOKENS)];
            for (part, values, rows) in parts {
                let bytes = |x: &f64| bf16::from_f64(*x).to_bits().to_le_bytes();
                let shape = vec![rows, values.len() / rows];
                let data: Vec<u8> = values.iter().flat_map(bytes).collect();
                tensors.insert(format!("{kind}.{layer}.{part}"), (shape, data));
            }
        }
    }
    let view = |(shape, data): &'static (Vec<usize>, Vec<u8>)| {
        TensorView::new(safetensors::Dtype::BF16, shape.clone(), data).unwrap()
    };
    let tensors: &'static BTreeMap<_, _> = Box::leak(Box::new(tensors));
    let views = tensors.iter().map(|(name, tensor)| (name.clone(), view(tensor)));
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(root.join("corpus/states.safetensors"), file).unwrap();
}
