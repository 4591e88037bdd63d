//! What a run comes to, for people and for programs.

use crate::options::Options;
use grouped_attention::Identity;
use grouped_attention::layers::LayerKind;
use grouped_attention_conformance::lm::Timing;
use grouped_attention_conformance::serve::{Counters, Percentiles, Preemption, Summary};
use serde_json::{Value, json};
use std::fmt::{self, Write};

/// The pages that a variant's caches have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(crate) pages: usize,
    pub(crate) page_size: usize,
    /// Bytes of a token in all layers, on one device.
    pub(crate) token_bytes: usize,
    /// The same, undivided: what moves to the host and back here.
    pub(crate) layers_bytes: usize,
}

impl Pool {
    fn kib(self, pages: f64) -> f64 {
        pages * (self.page_size * self.token_bytes) as f64 / 1024.0
    }
}

/// One workload, served.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) variant: LayerKind,
    pub(crate) preemption: Preemption,
    /// Requests per second; `None` for a trace.
    pub(crate) rate: Option<f64>,
    pub(crate) pool: Pool,
    pub(crate) summary: Summary,
    pub(crate) counters: Counters,
    /// Seconds, and pages that requests held then.
    pub(crate) pages: Vec<(f64, usize)>,
    pub(crate) timing: Timing,
    /// Why requests were refused, each reason once.
    pub(crate) refusals: Vec<String>,
}

impl Run {
    pub(crate) fn policy(&self) -> &'static str {
        match self.preemption {
            Preemption::Recompute => "recompute",
            Preemption::Swap => "swap",
        }
    }

    fn load(&self) -> String {
        self.rate.map_or("trace".to_owned(), |rate| format!("{rate}/s"))
    }

    /// Mean pages held in each of `bins` equal spans of the run, as parts of the pool.
    fn use_over_time(&self, bins: usize) -> Vec<f64> {
        let (Some(&(first, _)), Some(&(last, _))) = (self.pages.first(), self.pages.last()) else {
            return Vec::new();
        };
        let width = ((last - first) / bins as f64).max(f64::MIN_POSITIVE);
        let mut sums = vec![(0.0, 0_u32); bins];
        for &(at, pages) in &self.pages {
            let (sum, count) = &mut sums[(((at - first) / width) as usize).min(bins - 1)];
            *sum += pages as f64 / self.pool.pages as f64;
            *count += 1;
        }
        sums.into_iter().map(|(sum, count)| sum / f64::from(count.max(1))).collect()
    }
}

/// One run, at length.
pub(crate) fn describe(run: &Run) -> Result<String, fmt::Error> {
    let Run { pool, summary, counters, timing, .. } = run;
    let Summary { answered, cancelled, refused, duration, .. } = summary;
    let mut out = String::new();
    writeln!(
        out,
        "{} at {}, {}: {answered} answered, {cancelled} cancelled, {refused} refused in \
         {duration:.1} s",
        run.variant,
        run.load(),
        run.policy()
    )?;
    for reason in &run.refusals {
        writeln!(out, "  refused     {reason}")?;
    }
    let tokens = pool.pages * pool.page_size;
    writeln!(
        out,
        "  cache       {} pages of {} tokens, {tokens} tokens of {} bytes",
        pool.pages, pool.page_size, pool.token_bytes
    )?;
    writeln!(
        out,
        "  in use      mean {:.1} pages ({:.0} KiB), peak {} ({:.0} KiB)  {}",
        summary.mean_pages,
        pool.kib(summary.mean_pages),
        summary.peak_pages,
        pool.kib(summary.peak_pages as f64),
        sparkline(&run.use_over_time(32))
    )?;
    writeln!(
        out,
        "  steps       {} of {:.1} requests and {:.1} tokens; attention {:.0} % of the time",
        counters.steps,
        summary.mean_batch,
        counters.computed as f64 / counters.steps.max(1) as f64,
        100.0 * attention_part(timing)
    )?;
    writeln!(
        out,
        "  preempted   {} times; {} tokens computed again; {} rows out, {} back ({:.0} KiB) in \
         {:.1} ms",
        counters.preemptions,
        counters.recomputed,
        counters.rows_out,
        counters.rows_in,
        ((counters.rows_out + counters.rows_in) * pool.layers_bytes) as f64 / 1024.0,
        counters.moving.as_secs_f64() * 1e3
    )?;
    writeln!(
        out,
        "  shared      {} tokens by prefix; drafts {} of {} accepted",
        counters.shared, counters.accepted, counters.drafted
    )?;
    Ok(out)
}

/// Eight heights for parts from 0 to 1.
fn sparkline(parts: &[f64]) -> String {
    let bars = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    parts.iter().map(|part| bars[((part * 8.0) as usize).min(7)]).collect()
}

fn attention_part(timing: &Timing) -> f64 {
    let attention = timing.attention.as_secs_f64();
    attention / (attention + timing.dense.as_secs_f64()).max(f64::MIN_POSITIVE)
}

/// All runs side by side.
pub(crate) fn table(
    identity: &Identity,
    options: &Options,
    runs: &[Run],
) -> Result<String, fmt::Error> {
    let mut out = format!("engine {identity}\n");
    let (budget, dtype, devices) = (options.budget, options.dtype, options.devices);
    writeln!(out, "{budget} bytes of {dtype} pages for each variant, all layers together")?;
    if devices > 1 {
        let note = "holds of its share of the heads; here one computes it all";
        writeln!(out, "pages are as many as one of {devices} devices {note}")?;
    }
    writeln!(
        out,
        "\n{:35}{:>21}{:>21}{:>21}",
        "", "first byte, s", "between bytes, ms", "a request, bytes/s"
    )?;
    writeln!(
        out,
        "{:4} {:>6} {:10} {:>5} {:>6}{HEAD:>21}{HEAD:>21}{HEAD:>21} {:>8} {:>9} {:>6}",
        "", "load", "policy", "pages", "peak", "bytes/s", "preempted", "again"
    )?;
    for run in runs {
        let Run { summary, counters, .. } = run;
        writeln!(
            out,
            "{:4} {:>6} {:10} {:>5} {:>6}{}{}{} {:>8.1} {:>9} {:>6}",
            run.variant,
            run.load(),
            run.policy(),
            run.pool.pages,
            summary.peak_pages,
            cells(summary.ttft, 1.0, 2),
            cells(summary.itl, 1e3, 1),
            cells(summary.request_rate, 1.0, 1),
            summary.throughput,
            counters.preemptions,
            // Tokens whose rows came a second time, from the model or from the host.
            counters.recomputed + counters.rows_in
        )?;
    }
    Ok(out)
}

const HEAD: &str = "p50    p90    p99";

fn cells(of: Option<Percentiles>, unit: f64, digits: usize) -> String {
    let Some(Percentiles { p50, p90, p99 }) = of else { return format!("{:>21}", "-") };
    [p50, p90, p99].map(|value| format!("{:>7.digits$}", value * unit)).concat()
}

/// Everything, with the pages over time.
pub(crate) fn json(identity: &Identity, options: &Options, runs: &[Run]) -> Value {
    json!({
        "engine": identity.to_string(),
        "budget_bytes": options.budget,
        "devices": options.devices,
        "page_size": options.page_size,
        "chunk": options.chunk,
        "speculate": options.speculate,
        "dtype": options.dtype.to_string(),
        "runs": runs.iter().map(json_run).collect::<Vec<_>>(),
    })
}

fn json_run(run: &Run) -> Value {
    let Counters { moving, .. } = run.counters;
    json!({
        "variant": run.variant.name(),
        "rate": run.rate,
        "preempt": run.policy(),
        "pages": run.pool.pages,
        "bytes_per_token": run.pool.token_bytes,
        "summary": run.summary,
        "steps": run.counters.steps,
        "computed": run.counters.computed,
        "recomputed": run.counters.recomputed,
        "shared": run.counters.shared,
        "drafted": run.counters.drafted,
        "accepted": run.counters.accepted,
        "preemptions": run.counters.preemptions,
        "rows_out": run.counters.rows_out,
        "rows_in": run.counters.rows_in,
        "refusals": run.refusals,
        "moving_s": moving.as_secs_f64(),
        "attention_s": run.timing.attention.as_secs_f64(),
        "dense_s": run.timing.dense.as_secs_f64(),
        "pages_over_time": run.pages,
    })
}
