//! The language models decode to the same bytes on every engine, page size and step shape.

#![allow(clippy::unwrap_used, reason = "a test that unwraps says what it expects by failing")]

use grouped_attention::layers::LayerKind;
use grouped_attention::{AnyBackend, Dtype};
use grouped_attention_conformance::engines;
use grouped_attention_conformance::lm::{Generation, Model, Options, Session, generate};
use safetensors::SafeTensors;
use std::path::PathBuf;

fn models() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models"))
}

fn load(kind: LayerKind) -> Model {
    Model::load(&models().join(format!("{kind}.safetensors"))).unwrap()
}

/// Engines that every machine has.
fn engine(name: &str) -> AnyBackend {
    engines::open(name).unwrap()
}

const GREEDY: Options = Options {
    tokens: 96,
    temperature: 0.0,
    seed: 0,
    page_size: 64,
    speculate: 0,
    dtype: Dtype::Bf16,
};

const PROMPTS: [&str; 4] = [
    "In the beginning",
    "And it came to pass in those days",
    "the son of Nun, the son of Nun, the son of",
    "And the LORD spake unto Moses, saying, And the LORD spake unto",
];

/// A greedy choice closer than this, in logits, is a near-tie: what engines may differ by (bf16
/// queries and rows move a logit by some thousandths) could decide it.
///
/// It is not a tolerance of the comparison, which is of bytes. A prompt with a near-tie fails as
/// one, and is to be replaced by a prompt that decides.
const NEAR_TIE: f64 = 1e-2;

fn run(model: &Model, backend: &AnyBackend, prompt: &str, options: &Options) -> Generation {
    let mut streamed = Vec::new();
    let out =
        generate(model, backend, prompt.as_bytes(), options, |byte| streamed.push(byte)).unwrap();
    assert_eq!(streamed, out.text, "what is streamed is what is returned");
    assert_eq!(out.text.len(), options.tokens);
    out
}

/// Compares two greedy texts, and says so if a near-tie makes the comparison void.
fn assert_same(kind: LayerKind, prompt: &str, what: &str, a: &Generation, b: &Generation) {
    assert!(
        a.margin > NEAR_TIE,
        "{kind} {prompt:?}: a near-tie of {:e} logits, no comparison",
        a.margin
    );
    assert_eq!(
        String::from_utf8_lossy(&a.text),
        String::from_utf8_lossy(&b.text),
        "{kind} {prompt:?}: {what}"
    );
}

#[test]
fn engines_agree_byte_for_byte() {
    let (reference, cpu) = (engine("reference"), engine("cpu"));
    for kind in LayerKind::ALL {
        let model = load(kind);
        for prompt in PROMPTS {
            let expected = run(&model, &reference, prompt, &GREEDY);
            let got = run(&model, &cpu, prompt, &GREEDY);
            assert_same(kind, prompt, "cpu differs from reference", &expected, &got);
        }
    }
}

#[test]
fn page_sizes_agree_byte_for_byte() {
    let cpu = engine("cpu");
    for kind in LayerKind::ALL {
        let model = load(kind);
        let expected = run(&model, &cpu, PROMPTS[0], &GREEDY);
        for page_size in [1, 3, 16, 128] {
            let got = run(&model, &cpu, PROMPTS[0], &Options { page_size, ..GREEDY });
            assert_same(kind, PROMPTS[0], &format!("page size {page_size}"), &expected, &got);
        }
    }
}

#[test]
fn speculation_changes_no_byte_and_saves_steps() {
    for (name, speculations) in [("reference", &[4][..]), ("cpu", &[1, 4, 7])] {
        let backend = engine(name);
        for kind in LayerKind::ALL {
            let model = load(kind);
            let mut accepted = 0;
            for prompt in PROMPTS {
                let expected = run(&model, &backend, prompt, &GREEDY);
                assert_eq!(expected.drafted, 0);
                for &speculate in speculations {
                    let got = run(&model, &backend, prompt, &Options { speculate, ..GREEDY });
                    let what = format!("{name}, drafts of {speculate}");
                    assert_same(kind, prompt, &what, &expected, &got);
                    assert_eq!(got.steps + got.accepted, expected.steps, "{what}");
                    accepted += got.accepted;
                }
            }
            assert!(accepted > 0, "{kind} on {name}: no draft was ever accepted");
        }
    }
}

#[test]
fn sampled_text_is_the_same_with_drafts() {
    let reference = engine("reference");
    let model = load(LayerKind::Gla);
    let options = Options { temperature: 0.7, seed: 3, ..GREEDY };
    let expected = run(&model, &reference, PROMPTS[2], &options);
    let got = run(&model, &reference, PROMPTS[2], &Options { speculate: 5, ..options });
    assert_eq!(String::from_utf8_lossy(&expected.text), String::from_utf8_lossy(&got.text));
    let other = run(&model, &reference, PROMPTS[2], &Options { seed: 4, ..options });
    assert_ne!(expected.text, other.text, "the seed decides the draws");
}

/// Logits of the model as it was trained, computed by other code in f64 from whole keys and values;
/// here from absorbed queries over paged caches in f32, in steps of several shapes.
// [S-5.19] [S-5.20]
#[test]
fn logits_are_those_of_the_trained_model() {
    let bytes = std::fs::read(models().join("vectors.safetensors")).unwrap();
    let vectors = SafeTensors::deserialize(&bytes).unwrap();
    let reference = engine("reference");
    for kind in LayerKind::ALL {
        let tokens = vectors.tensor(&format!("{kind}.tokens")).unwrap();
        let text: Vec<u8> = tokens.data().as_chunks::<4>().0.iter().map(|t| t[0]).collect();
        let logits = vectors.tensor(&format!("{kind}.logits")).unwrap();
        let expected: Vec<f64> =
            logits.data().as_chunks::<8>().0.iter().map(|x| f64::from_le_bytes(*x)).collect();

        let model = load(kind);
        let mut session = Session::new(&model, &reference, Dtype::F32, 16, text.len()).unwrap();
        let mut got = session.step(&text[..20]).unwrap();
        for bytes in text[20..].chunks(3) {
            got.extend(session.step(bytes).unwrap());
        }
        assert_eq!(got.len(), expected.len());
        let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        // f32 rounding of rows and queries, through six layers, on logits of about 20.
        assert!(worst < 1e-4, "{kind}: logits differ by {worst:e}");
    }
}

#[test]
fn damaged_files_are_named() {
    let bytes = std::fs::read(models().join("gla.safetensors")).unwrap();
    let short = Model::from_bytes(&bytes[..bytes.len() / 2]).unwrap_err();
    assert!(short.to_string().starts_with("not a whole safetensors file"), "{short}");

    let missing = Model::load(&models().join("no-such.safetensors")).unwrap_err();
    assert!(missing.to_string().contains("no-such.safetensors"), "{missing}");

    // Names of the same length, so that the header's own length stays right.
    let name = |letter| format!("layers.3.self_attn.W_{letter}KV.weight").into_bytes();
    let renamed = Model::from_bytes(&replace(&bytes, &name('d'), &name('x'))).unwrap_err();
    assert!(renamed.to_string().contains("KV.weight"), "{renamed}");
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}
