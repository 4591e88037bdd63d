//! What a run did, per engine: the closing table, and how close each engine came to its bounds.

use crate::case::Case;
use crate::compare::Comparison;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

/// Counts of one engine.
#[derive(Clone, Debug, Default)]
struct Counts {
    run: usize,
    cases: usize,
    skipped: usize,
    known: usize,
    failed: usize,
    numbers: usize,
    rows: usize,
    rows_without_numbers: usize,
    closest: BTreeMap<Kind, Closest>,
}

/// Cases whose bounds are made of the same terms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    dtype: String,
    output: String,
    bound: &'static str,
}

/// The largest ratios of error to bound among cases of one kind, and where they were.
#[derive(Clone, Debug, Default)]
struct Closest {
    cases: usize,
    ratios: [f64; 3],
    shared_weight: f64,
    lines: [String; 3],
}

/// Counts of all engines.
#[derive(Debug, Default)]
pub struct Tally {
    engines: Mutex<BTreeMap<String, Counts>>,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Passed,
    Skipped,
    Known,
    Failed,
}

impl Tally {
    pub(crate) fn trial(&self, engine: &str, ended: Ended) {
        self.with(engine, |counts| match ended {
            Ended::Passed => counts.run += 1,
            Ended::Skipped => counts.skipped += 1,
            Ended::Known => counts.known += 1,
            Ended::Failed => counts.failed += 1,
        });
    }

    pub(crate) fn passed(&self, engine: &str, case: &Case, comparison: &Comparison) {
        let kind = Kind {
            dtype: case.dtype.to_string(),
            output: case.output().to_string(),
            bound: if case.general_position() { "sharp" } else { "plain" },
        };
        self.with(engine, |counts| {
            counts.cases += 1;
            counts.numbers += comparison.numbers;
            counts.rows += comparison.rows;
            counts.rows_without_numbers += comparison.rows_without_numbers;
            let closest = counts.closest.entry(kind).or_default();
            closest.cases += 1;
            closest.shared_weight = closest.shared_weight.max(comparison.shared_weight);
            for (index, ratio) in comparison.ratios().into_iter().enumerate() {
                if ratio > closest.ratios[index] {
                    closest.ratios[index] = ratio;
                    closest.lines[index] = case.to_string();
                }
            }
        });
    }

    fn with(&self, engine: &str, change: impl FnOnce(&mut Counts)) {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        change(engines.entry(engine.to_owned()).or_default());
    }

    /// The table that closes a run.
    pub fn table(&self) -> String {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = format!(
            "{:<16}{:>8}{:>9}{:>8}{:>8}{:>9}{:>11}{:>13}{:>9}\n",
            "engine", "passed", "skipped", "known", "failed", "cases", "rows", "numbers", "worst"
        );
        for (engine, counts) in engines.iter() {
            let ratios = counts.closest.values().flat_map(|closest| closest.ratios);
            let worst = ratios.fold(0.0, f64::max);
            let Counts { run, skipped, known, failed, cases, rows, numbers, .. } = counts;
            let _ = writeln!(
                table,
                "{engine:<16}{run:>8}{skipped:>9}{known:>8}{failed:>8}{cases:>9}{rows:>11}\
                 {numbers:>13}{worst:>9.3}"
            );
        }
        table
    }

    /// Largest ratios of error to bound, as a Markdown table, with the lines they were met in.
    pub fn tightness(&self) -> String {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = String::from(
            "| engine | dtype | output | bound | cases | element | of shared weight | lse | \
             row residual |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        let mut lines = String::new();
        for (engine, counts) in engines.iter() {
            for (Kind { dtype, output, bound }, closest) in &counts.closest {
                let [element, lse, residual] = closest.ratios;
                let Closest { cases, shared_weight, .. } = closest;
                let _ = writeln!(
                    table,
                    "| {engine} | {dtype} | {output} | {bound} | {cases} | {element:.3} | \
                     {shared_weight:.3} | {lse:.3} | {residual:.3} |"
                );
                for (quantity, line) in ["element", "lse", "residual"].iter().zip(&closest.lines) {
                    if !line.is_empty() {
                        let _ = writeln!(
                            lines,
                            "* {engine} {dtype} {output} {bound} {quantity}: `{line}`"
                        );
                    }
                }
            }
        }
        format!("{table}\nEach largest ratio was met in:\n\n{lines}")
    }
}
