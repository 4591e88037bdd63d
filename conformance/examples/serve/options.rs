//! The command line.

use clap::Parser;
use clap::error::ErrorKind;
use grouped_attention::Dtype;
use grouped_attention::layers::LayerKind;
use grouped_attention_conformance::serve::{Poisson, Preemption};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

/// Continuous batching over paged caches: latency and cache use of attention variants that get
/// the same bytes of pages.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Kinds of attention, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "gqa,gta,mla,gla")]
    pub(crate) variant: Vec<LayerKind>,

    /// Engine: reference, cpu or cuda
    #[arg(long, default_value = "cpu")]
    pub(crate) backend: String,

    /// Requests per second; several rates, separated by commas, give a curve
    #[arg(long, visible_alias = "rates", value_delimiter = ',', default_value = "1,2,4")]
    #[arg(value_parser = rate)]
    pub(crate) rate: Vec<f64>,

    /// Requests to serve
    #[arg(long, default_value_t = 32, value_parser = positive)]
    pub(crate) requests: usize,

    /// Decides arrivals, prompts, lengths and draws
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,

    /// Serve this trace instead: one object {"at", "prompt", "tokens", "cancel"} a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "requests", "seed", "cancel"])]
    pub(crate) trace: Option<PathBuf>,

    /// Bytes of pages in all layers together; K, M and G stand for powers of 1024
    #[arg(long, default_value = "1M", value_parser = bytes)]
    pub(crate) budget: usize,

    /// The budget is that of one of N tensor-parallel devices, which keeps its share of the heads
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) devices: usize,

    /// Tokens per page
    #[arg(long, default_value_t = 16, value_parser = positive)]
    pub(crate) page_size: usize,

    /// Tokens of one step: prompts longer than what decoding leaves of it are fed in chunks
    #[arg(long, default_value_t = 32, value_parser = positive)]
    pub(crate) chunk: usize,

    /// Check drafts of up to K bytes in one step; 0 decodes byte by byte
    #[arg(long, value_name = "K", default_value_t = 4)]
    pub(crate) speculate: usize,

    /// What becomes of a preempted request's rows; both, separated by a comma, are compared
    #[arg(long, value_delimiter = ',', default_value = "recompute", value_parser = preemption)]
    pub(crate) preempt: Vec<Preemption>,

    /// Bytes of a prompt's own part
    #[arg(long, value_name = "LO:HI", default_value = "24:96", value_parser = range)]
    pub(crate) prompt: RangeInclusive<usize>,

    /// Bytes of an answer
    #[arg(long, value_name = "LO:HI", default_value = "24:96", value_parser = range)]
    pub(crate) tokens: RangeInclusive<usize>,

    /// Part of the requests that begin with one of three common passages of 64 bytes
    #[arg(long, value_name = "PART", default_value_t = 0.5, value_parser = part)]
    pub(crate) sharing: f64,

    /// Part of the requests that are called off, a second after they came on average
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = part)]
    pub(crate) cancel: f64,

    /// 0 always takes the likeliest byte
    #[arg(long, default_value_t = 0.7, value_parser = temperature)]
    pub(crate) temperature: f64,

    /// Format of queries and caches: f32, f16 or bf16
    #[arg(long, default_value = "bf16")]
    pub(crate) dtype: Dtype,

    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw latency against load
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    pub(crate) svg: Option<PathBuf>,

    /// Write the report as a page of the book, which shows the figure where there is one
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    pub(crate) page: Option<PathBuf>,
}

impl Options {
    /// The workload at a rate.
    pub(crate) fn poisson(&self, rate: f64) -> Poisson {
        Poisson {
            rate,
            requests: self.requests,
            seed: self.seed,
            prompt: self.prompt.clone(),
            tokens: self.tokens.clone(),
            prefixes: 3,
            prefix: 64,
            sharing: self.sharing,
            cancelled: self.cancel,
            temperature: self.temperature,
        }
    }
}

/// Help as it is asked for; anything else is one sentence on stderr.
pub(crate) fn explain(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print!("{error}");
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    let sentence = lines.collect::<Vec<_>>().join(" ");
    eprintln!("serve: {}", sentence.trim_start_matches("error: "));
    ExitCode::from(2)
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "expected a count from 1".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..f64::INFINITY).contains(rate) && *rate > 0.0);
    rate.ok_or_else(|| "expected a positive number of requests per second".to_owned())
}

fn temperature(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..f64::INFINITY).contains(value));
    value.ok_or_else(|| "expected a finite number of at least 0".to_owned())
}

fn part(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

fn bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<usize>().ok().and_then(|count| count.checked_mul(unit));
    bytes.ok_or_else(|| "expected a number of bytes, as 1572864, 1536K or 2M".to_owned())
}

fn range(text: &str) -> Result<RangeInclusive<usize>, String> {
    let parts = text.split_once(':').and_then(|(low, high)| {
        let (low, high): (usize, usize) = (low.parse().ok()?, high.parse().ok()?);
        (0 < low && low <= high).then_some(low..=high)
    });
    parts.ok_or_else(|| "expected LO:HI with 0 < LO <= HI".to_owned())
}

fn preemption(text: &str) -> Result<Preemption, String> {
    match text {
        "recompute" => Ok(Preemption::Recompute),
        "swap" => Ok(Preemption::Swap),
        _ => Err("expected recompute or swap".to_owned()),
    }
}
