//! The report as a page of the book: what ran where, the figure, and every run in a table.

use crate::options::Options;
use crate::report::Run;
use grouped_attention::Identity;
use grouped_attention_conformance::serve::Percentiles;
use std::fmt::{self, Write};
use std::path::Path;
use std::process::Command;

/// Markdown; `figure` is the drawing's place as seen from the page.
pub(crate) fn page(
    identity: &Identity,
    options: &Options,
    runs: &[Run],
    figure: Option<&Path>,
) -> Result<String, fmt::Error> {
    let mut out = String::from("# Serving\n\n");
    let words: Vec<String> = std::env::args().skip(1).collect();
    writeln!(
        out,
        "Written by\n\n```sh\ncargo run --release --example serve -- {}\n```\n",
        words.join(" ")
    )?;
    writeln!(out, "* engine: {identity}")?;
    writeln!(out, "* commit: {}", commit().as_deref().unwrap_or("unknown"))?;
    writeln!(
        out,
        "* pages: {} bytes of {} for each variant, all layers together, {} tokens a page",
        options.budget, options.dtype, options.page_size
    )?;
    writeln!(
        out,
        "* steps: at most {} tokens, drafts of at most {}, {} requests a run\n",
        options.chunk, options.speculate, options.requests
    )?;
    out.push_str(ABOUT);
    if let Some(figure) = figure {
        writeln!(
            out,
            "\n![Time to the first byte and time between bytes against requests per second]({})",
            figure.display()
        )?;
    }
    out.push_str(HEAD);
    for run in runs {
        let (summary, counters) = (&run.summary, &run.counters);
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.0} | {:.0} % | {} | {} | {:.1} |",
            run.variant.name().to_uppercase(),
            run.rate.map_or("trace".into(), |rate| rate.to_string()),
            run.policy(),
            summary.answered,
            run.pool.pages * run.pool.page_size,
            cells(summary.ttft, 1.0, 2),
            cells(summary.itl, 1e3, 1),
            cells(summary.request_rate, 1.0, 0),
            summary.throughput,
            100.0 * summary.mean_pages / run.pool.pages as f64,
            counters.preemptions,
            counters.recomputed + counters.rows_in,
            counters.moving.as_secs_f64() * 1e3,
        )?;
    }
    Ok(out)
}

const ABOUT: &str = "\
The models are those of [the quality page](../quality.md), which answer byte by byte. Each variant gets the same bytes of
pages, so that what a token costs decides how many fit: *tokens* is what the pool holds. A request that loses its pages
is either computed again from its text (*recompute*) or has its rows copied to the host and back (*swap*); *again* counts
the tokens that came a second time either way, *moved* the time of the copies. Percentiles are the 50th, 90th and 99th, by
nearest rank; *use* is the part of the pool that requests held on average.
";

const HEAD: &str = "
| variant | requests / s | policy | answered | tokens | first byte, s | between bytes, ms | a request, bytes / s | all, bytes / s | use | preempted | again | moved, ms |
|---|---:|---|---:|---:|---|---|---|---:|---:|---:|---:|---:|
";

fn cells(of: Option<Percentiles>, unit: f64, digits: usize) -> String {
    let Some(Percentiles { p50, p90, p99 }) = of else { return "–".into() };
    [p50, p90, p99].map(|value| format!("{:.digits$}", value * unit)).join(" · ")
}

/// The commit of the checkout that this runs in, marked where it has changes.
fn commit() -> Option<String> {
    let git = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let git = git.ok().filter(|git| git.status.success())?;
    Some(String::from_utf8_lossy(&git.stdout).trim().to_owned())
}
