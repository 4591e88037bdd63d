//! Serves requests that arrive while others are being answered, and says how long they took.
//!
//! ```sh
//! cargo run --release --example serve -- --variant gqa,gta --rates 0.5,1,2 --svg latency.svg
//! ```
//!
//! Every variant gets the same bytes for its pages; what differs is how many tokens fit. Progress
//! and errors go to stderr, the report to stdout.

mod figure;
mod options;
mod page;
mod report;

use clap::Parser;
use grouped_attention::layers::LayerKind;
use grouped_attention::{AnyBackend, Backend, Sharding};
use grouped_attention_conformance::engines;
use grouped_attention_conformance::lm::{Decoder, Model};
use grouped_attention_conformance::serve::{
    Arrival, Outcome, Preemption, Record, Server, ServerOptions, Summary, WallClock, read_trace,
    replay,
};
use indicatif::{ProgressBar, ProgressStyle};
use options::Options;
use report::{Pool, Run};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => return options::explain(&error),
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let backend = engines::open(&options.backend)?;
    let loads = loads(options)?;
    // Whether they can be written is found now, not after the last run; what they hold stays until then.
    let open = |path: &Option<PathBuf>| {
        let mut how = File::options();
        how.write(true).create(true).truncate(false);
        let open =
            |path: &PathBuf| how.open(path).map_err(|error| format!("{}: {error}", path.display()));
        path.as_ref().map(open).transpose()
    };
    let (svg, page) = (open(&options.svg)?, open(&options.page)?);
    let mut out = std::io::stdout().lock();
    let mut runs = Vec::new();
    for &variant in &options.variant {
        let models = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models"));
        let model = Model::load(&models.join(format!("{variant}.safetensors")))?;
        let pool = pool(options, &model)?;
        for &preemption in &options.preempt {
            for load in &loads {
                let run = serve(options, &backend, &model, pool, preemption, load)?;
                if !options.json {
                    writeln!(out, "{}", report::describe(&run)?)?;
                }
                runs.push(run);
            }
        }
    }
    if options.json {
        writeln!(out, "{}", report::json(&backend.identity(), options, &runs))?;
    } else {
        write!(out, "{}", report::table(&backend.identity(), options, &runs)?)?;
    }
    // Pages of the book see figures one folder up.
    let figure = options.svg.as_deref().and_then(Path::file_name);
    let figure = figure.map(|name| Path::new("../figures").join(name));
    let text = page::page(&backend.identity(), options, &runs, figure.as_deref())?;
    if let Some(mut file) = svg {
        file.set_len(0)?;
        file.write_all(figure::latency(&runs)?.as_bytes())?;
    }
    if let Some(mut file) = page {
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// What is to be served.
struct Load {
    /// Requests per second; `None` for a trace.
    rate: Option<f64>,
    arrivals: Vec<Arrival>,
}

/// The workload at each rate, or the one of a trace.
fn loads(options: &Options) -> Result<Vec<Load>, Failure> {
    let named = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    if let Some(path) = &options.trace {
        let trace = std::fs::read_to_string(path).map_err(|error| named(path, &error))?;
        let arrivals = read_trace(&trace).map_err(|error| named(path, &error))?;
        return Ok(vec![Load { rate: None, arrivals }]);
    }
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/heldout.txt"));
    let text = std::fs::read(path).map_err(|error| named(path, &error))?;
    let load =
        |&rate| Ok(Load { rate: Some(rate), arrivals: options.poisson(rate).arrivals(&text)? });
    options.rate.iter().map(load).collect()
}

/// The pages that the budget pays for.
fn pool(options: &Options, model: &Model) -> Result<Pool, Failure> {
    let layer = model.layers().next().ok_or("the model has no layers")?;
    let shard = Sharding::new(layer.geometry(), options.devices)?;
    let layers = model.layers().len();
    let token_bytes = shard.bytes_per_token(options.dtype) * layers;
    let layers_bytes = layer.geometry().row().elements() * options.dtype.bytes() * layers;
    let page_bytes = token_bytes * options.page_size;
    let pages = options.budget / page_bytes;
    if pages == 0 {
        let (budget, kind) = (options.budget, model.kind());
        let page = format!("one page of {kind}, {page_bytes} bytes");
        return Err(format!("a budget of {budget} bytes has no room for {page}").into());
    }
    Ok(Pool { pages, page_size: options.page_size, token_bytes, layers_bytes })
}

fn serve(
    options: &Options,
    backend: &AnyBackend,
    model: &Model,
    pool: Pool,
    preemption: Preemption,
    load: &Load,
) -> Result<Run, Failure> {
    let decoder = Decoder::new(model, backend, options.dtype, pool.page_size, pool.pages)?;
    let Load { rate, arrivals } = load;
    let (budget, speculate) = (options.chunk, options.speculate);
    let mut server = Server::new(decoder, ServerOptions { budget, speculate, preemption })?;
    let bar = progress(model.kind(), *rate, arrivals.len());
    let replay = replay(&mut server, arrivals, &mut WallClock::start(), |gauge, done| {
        bar.set_position(done as u64);
        bar.set_message(format!(
            "{} open, {} in the step, {}/{} pages",
            gauge.open, gauge.running, gauge.pages, pool.pages
        ));
    });
    bar.finish_and_clear();
    let replay = replay?;
    Ok(Run {
        variant: model.kind(),
        preemption,
        rate: *rate,
        pool,
        summary: Summary::new(&replay),
        counters: replay.counters,
        pages: replay.gauges.iter().map(|gauge| (gauge.at.as_secs_f64(), gauge.pages)).collect(),
        timing: server.texts().timing(),
        refusals: refusals(&replay.records),
    })
}

fn refusals(records: &[Record]) -> Vec<String> {
    let reason = |record: &Record| match &record.outcome {
        Outcome::Refused(error) => Some(error.to_string()),
        _ => None,
    };
    records.iter().filter_map(reason).collect::<BTreeSet<_>>().into_iter().collect()
}

fn progress(variant: LayerKind, rate: Option<f64>, requests: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len} done, {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let load = rate.map_or("trace".to_owned(), |rate| format!("{rate}/s"));
    ProgressBar::new(requests as u64).with_style(style).with_prefix(format!("{variant} {load}"))
}
