//! What a run comes to, for people and for programs.

use crate::options::Options;
use grouped_attention::Identity;
use grouped_attention::layers::LayerKind;
use grouped_attention_conformance::lm::Timing;
use grouped_attention_conformance::serve::{Counters, Percentiles, Preemption, Summary};
use serde_json::{Value, json};

/// The pages that a variant's caches have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(crate) pages: usize,
    pub(crate) page_size: usize,
    /// Bytes of a token in all layers.
    pub(crate) token_bytes: usize,
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
pub(crate) fn print(run: &Run) {
    let Run { pool, summary, counters, timing, .. } = run;
    let Summary { answered, cancelled, refused, duration, .. } = summary;
    println!(
        "{} at {}, {}: {answered} answered, {cancelled} cancelled, {refused} refused in {duration:.1} s",
        run.variant,
        run.load(),
        run.policy()
    );
    let tokens = pool.pages * pool.page_size;
    println!(
        "  cache       {} pages of {} tokens, {tokens} tokens of {} bytes",
        pool.pages, pool.page_size, pool.token_bytes
    );
    println!(
        "  in use      mean {:.1} pages ({:.0} KiB), peak {} ({:.0} KiB)  {}",
        summary.mean_pages,
        pool.kib(summary.mean_pages),
        summary.peak_pages,
        pool.kib(summary.peak_pages as f64),
        sparkline(&run.use_over_time(32))
    );
    println!(
        "  steps       {} of {:.1} requests and {:.1} tokens; attention {:.0} % of the model's time",
        counters.steps,
        summary.mean_batch,
        counters.computed as f64 / counters.steps.max(1) as f64,
        100.0 * attention_part(timing)
    );
    println!(
        "  preempted   {} times; {} tokens computed again, {} rows out, {} back in {:.1} ms",
        counters.preemptions,
        counters.recomputed,
        counters.rows_out,
        counters.rows_in,
        counters.moving.as_secs_f64() * 1e3
    );
    println!(
        "  shared      {} tokens by prefix; drafts {} of {} accepted\n",
        counters.shared, counters.accepted, counters.drafted
    );
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
pub(crate) fn print_table(identity: &Identity, options: &Options, runs: &[Run]) {
    println!("engine {identity}");
    println!("{} bytes of pages for each variant, {} caches", options.budget, options.dtype);
    if options.devices > 1 {
        println!(
            "pages are as many as one of {} devices holds of its share; one device computes it all",
            options.devices
        );
    }
    println!(
        "\n{:34}{:>21}{:>21}{:>21}",
        "", "first byte, s", "between bytes, ms", "bytes/s of a request"
    );
    println!(
        "{:4} {:>6} {:9} {:>6} {:>6}{:>21}{:>21}{:>21} {:>8} {:>9} {:>6}",
        "", "load", "preempted", "pages", "peak", HEAD, HEAD, HEAD, "bytes/s", "preempted", "again"
    );
    for run in runs {
        let Run { summary, counters, .. } = run;
        println!(
            "{:4} {:>6} {:9} {:>6} {:>6}{}{}{} {:>8.1} {:>9} {:>6}",
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
            counters.recomputed.max(counters.rows_in)
        );
    }
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
        "moving_s": moving.as_secs_f64(),
        "attention_s": run.timing.attention.as_secs_f64(),
        "dense_s": run.timing.dense.as_secs_f64(),
        "pages_over_time": run.pages,
    })
}
