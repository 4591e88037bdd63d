//! What the `decode` program measured, as it prints it with `--json` and as others read it.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One run of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The engine, its kernel and its device in the engine's words.
    pub engine: String,
    /// The device alone.
    pub device: String,
    /// The commit that it was built from, where that is known.
    pub commit: Option<String>,
    /// The command line.
    pub command: String,
    /// What the machine could do before the first row.
    pub ceilings: Ceilings,
    /// One for each shape.
    pub rows: Vec<Row>,
}

impl Results {
    /// Reads what `decode --json` wrote.
    ///
    /// # Errors
    /// A file that cannot be read, or that is something else.
    pub fn read(path: &Path) -> Result<Results, ResultsError> {
        let error = |reason: String| ResultsError { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|cause| error(cause.to_string()))?;
        serde_json::from_str(&text).map_err(|cause| error(cause.to_string()))
    }
}

/// Why a file is not what `decode --json` writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ResultsError {
    /// The file.
    pub path: PathBuf,
    /// The system's or the parser's words.
    pub reason: String,
}

/// Rates that the machine reached in the same run, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes read by a loop that does nothing else.
    pub read: Option<f64>,
    /// Bytes read by a loop that also asks for lines ahead, where that is another thing.
    pub read_prefetched: Option<f64>,
    /// Bytes read and written by a copy.
    pub copy: Option<f64>,
    /// FLOPs of a matrix product, or of the widest vector instructions where there is no matrix
    /// unit.
    pub matrix: Option<f64>,
}

/// One shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// As tables have it.
    pub name: String,
    /// Heads and widths.
    pub geometry: String,
    /// Format of queries and cache.
    pub dtype: String,
    /// Sequences.
    pub batch: usize,
    /// Cached tokens of all sequences.
    pub tokens: usize,
    /// Query tokens of each.
    pub q_len: usize,
    /// Tokens per page.
    pub page_size: usize,
    /// Whether sums do not depend on the batch.
    pub batch_invariant: bool,
    /// Whether a CUDA graph was replayed.
    pub graph: bool,
    /// The kernel that ran.
    pub kernel: String,
    /// The median of each run, seconds.
    pub medians: Vec<f64>,
    /// The median of those, seconds.
    pub median: f64,
    /// Slowest less fastest median over the median.
    pub spread: f64,
    /// Cached bytes of a token.
    pub token_bytes: usize,
    /// Cached rows, queries and outputs.
    pub bytes: f64,
    /// Of scores and values.
    pub flops: f64,
    /// Bytes over the median.
    pub bytes_per_s: f64,
    /// FLOPs over the median.
    pub flops_per_s: f64,
    /// FLOPs for each byte of cache.
    pub intensity: f64,
    /// What the machine could do while this row was measured.
    pub ceilings: Ceilings,
    /// Seconds below which no engine can be on this machine.
    pub floor: Option<f64>,
    /// The floor over the median.
    pub of_floor: Option<f64>,
}
