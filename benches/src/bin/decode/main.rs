//! Times decode attention on an engine, beside what the machine itself can do.
//!
//! Every shape is compared with the reference on a sample of its rows before it is timed. On the
//! processor as many caches as are larger than its own are attended in turn; on a GPU other memory
//! is written between two calls, or a CUDA graph attends caches in turn.

#![allow(missing_docs, reason = "a program")]

mod check;
mod commit;
mod gpu;
mod host;
mod lens;
mod measure;
mod options;
mod random;
mod report;
mod rig;
mod sweep;
mod workload;

use clap::Parser;
use grouped_attention::Backend;
use grouped_attention_benches::results::Results;
use indicatif::{ProgressBar, ProgressStyle};
use options::{Engine, Options};
use rig::{Outcome, Rig};
use std::io::Write;
use std::process::ExitCode;
use sweep::Entry;

fn main() -> ExitCode {
    match start(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("decode: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(options: &Options) -> Outcome<()> {
    let entries = options.entries()?;
    match options.backend {
        Engine::Reference | Engine::Cpu => bench(&host::Host::new(options)?, options, &entries),
        Engine::Cuda => bench(&gpu::Gpu::new(options)?, options, &entries),
    }
}

fn bench<R: Rig>(rig: &R, options: &Options, entries: &[Entry]) -> Outcome<()> {
    let identity = rig.engine().identity();
    let ceilings = rig.ceilings()?;
    let asked = entries.iter().filter(|entry| entry.asked);
    let width = asked.clone().map(|entry| entry.workload.name.len()).max().unwrap_or(0);
    // What is for people makes way for what is for programs.
    let print = |text: String| match options.json {
        true => writeln!(std::io::stderr(), "{text}"),
        false => writeln!(std::io::stdout(), "{text}"),
    };
    print(format!("{identity}\n{}\n", report::ceilings(&ceilings)))?;
    print(report::head(width))?;
    let bar = ProgressBar::new(asked.count() as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}")?);
    let mut rows = vec![None; entries.len()];
    for (entry, slot) in entries.iter().zip(&mut rows).filter(|(entry, _)| entry.asked) {
        bar.set_message(entry.workload.name.clone());
        let timed = rig::run(rig, &entry.workload, options)
            .map_err(|error| format!("{}: {error}", entry.workload.name))?;
        let row = report::row(&entry.workload, &timed);
        bar.suspend(|| print(report::line(&row, timed.measured.best(), width)))?;
        *slot = Some(row);
        bar.inc(1);
    }
    bar.finish_and_clear();
    if entries.iter().any(|entry| entry.goal.is_some()) {
        print(format!("\n{}", report::goals(entries, &rows)))?;
        print(format!("after the last row: {}", report::ceilings(&rig.ceilings()?)))?;
    }
    if options.json {
        let results = Results {
            engine: identity.to_string(),
            device: identity.device,
            commit: commit::commit(),
            command: std::env::args().skip(1).fold("decode".into(), |all, word| all + " " + &word),
            ceilings,
            rows: rows.into_iter().flatten().collect(),
        };
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&results)?)?;
    }
    Ok(())
}
