//! Generates text with a small language model on any engine.
//!
//! ```sh
//! cargo run --release --example generate -- --prompt "In the beginning" --variant gla --speculate 4
//! ```
//!
//! The text goes to stdout as it comes; what it took goes to stderr at the end.

use clap::Parser;
use grouped_attention::layers::LayerKind;
use grouped_attention::{AnyBackend, Backend, Dtype, Geometry};
use grouped_attention_conformance::engines;
use grouped_attention_conformance::lm::{Generation, Model, Options, generate};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Continue a text with a 3.9M-parameter byte-level model.
#[derive(Parser)]
struct Arguments {
    /// Text to continue
    #[arg(long, default_value = "In the beginning")]
    prompt: String,

    /// Kind of attention: gqa, gta, mla or gla
    #[arg(long, default_value = "gla")]
    variant: LayerKind,

    /// Engine: reference, cpu or cuda
    #[arg(long, default_value = "cpu")]
    backend: String,

    /// Bytes to generate
    #[arg(long, default_value_t = 400)]
    tokens: usize,

    /// 0 always takes the likeliest byte
    #[arg(long, default_value_t = 0.8, value_parser = temperature)]
    temperature: f64,

    /// Decides what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Tokens per cache page
    #[arg(long, default_value_t = 64)]
    page_size: usize,

    /// Check drafts of up to K bytes in one step; 0 decodes byte by byte
    #[arg(long, value_name = "K", default_value_t = 0)]
    speculate: usize,

    /// Format of queries and caches: f32, f16 or bf16
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,

    /// Model file; by default the variant's own
    #[arg(long)]
    model: Option<PathBuf>,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value >= 0.0 && f64::is_finite(value) => Ok(value),
        _ => Err("expected a finite number of at least 0".to_owned()),
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help is an answer and may be long; what is wrong with an option is one sentence.
        Err(answer) if !answer.use_stderr() => answer.exit(),
        Err(error) => return fail(error.to_string().lines().next().unwrap_or_default()),
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(what: &str) -> ExitCode {
    eprintln!("generate: {}", what.trim_start_matches("error: "));
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let path = arguments.model.clone().unwrap_or_else(|| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models");
        PathBuf::from(folder).join(format!("{}.safetensors", arguments.variant))
    });
    let model = Model::load(&path)?;
    let backend = engines::open(&arguments.backend)?;
    let options = Options {
        tokens: arguments.tokens,
        temperature: arguments.temperature,
        seed: arguments.seed,
        page_size: arguments.page_size,
        speculate: arguments.speculate,
        dtype: arguments.dtype,
    };
    if arguments.prompt.len() + arguments.tokens > model.context() {
        let context = model.context();
        eprintln!("note: the model was trained on {context} bytes; text past them degrades");
    }

    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let mut started = false;
    let generation = generate(&model, &backend, arguments.prompt.as_bytes(), &options, |byte| {
        // The prompt appears with the first byte after it, so that a refusal prints no text.
        let prompt = if started { &[][..] } else { arguments.prompt.as_bytes() };
        started = true;
        let written =
            out.write_all(prompt).and_then(|()| out.write_all(&[byte])).and_then(|()| out.flush());
        failed = failed.take().or(written.err());
    })?;
    if !started {
        out.write_all(arguments.prompt.as_bytes())?;
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    writeln!(out)?;
    report(&model, &backend, arguments, &generation);
    Ok(())
}

/// What it took, on stderr.
fn report(model: &Model, backend: &AnyBackend, arguments: &Arguments, generation: &Generation) {
    let tokens = generation.text.len();
    let (attention, dense) =
        (generation.decode.attention.as_secs_f64(), generation.decode.dense.as_secs_f64());
    let total = attention + dense;
    eprintln!("\nengine     {}", backend.identity());
    if total > 0.0 {
        eprintln!(
            "speed      {:.0} tokens/s; attention {:.0} us a token, {:.0} % of the time",
            tokens as f64 / total,
            attention / tokens as f64 * 1e6,
            attention / total * 100.0
        );
    }
    if arguments.speculate > 0 {
        let Generation { steps, accepted, drafted, .. } = generation;
        eprintln!(
            "drafts     {:.2} accepted a step ({accepted} of {drafted} in {steps} steps)",
            *accepted as f64 / (*steps).max(1) as f64
        );
    }
    let Some(layer) = model.layers().next() else { return };
    let bytes = |geometry: &Geometry| {
        geometry.row().elements() * arguments.dtype.bytes() * model.layers().len()
    };
    let geometry = layer.geometry();
    if let Ok(gqa) = Geometry::gqa(8, 4, 32) {
        eprintln!(
            "cache      {} bytes a token ({} for GQA), {geometry}",
            bytes(&geometry),
            bytes(&gqa)
        );
    }
}
