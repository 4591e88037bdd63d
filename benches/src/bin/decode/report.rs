//! Rows as a table to read, as JSON, and as the table of docs/results/h100.md.

use crate::measure::Floor;
use crate::rig::Timed;
use crate::sweep::{Bound, Entry};
use crate::workload::Workload;
use grouped_attention_benches::results::{Ceilings, Row};

/// The numbers of one row.
pub(crate) fn row(workload: &Workload, timed: &Timed) -> Row {
    let (measured, median) = (&timed.measured, timed.measured.median());
    let floor = measured.ceilings.floor(workload);
    Row {
        name: workload.name.clone(),
        geometry: workload.geometry.to_string(),
        dtype: workload.dtype.to_string(),
        batch: workload.lens.len(),
        tokens: workload.lens.iter().sum(),
        q_len: workload.q_len,
        page_size: workload.page_size,
        batch_invariant: workload.batch_invariant,
        graph: workload.graph,
        kernel: timed.kernel.clone(),
        medians: measured.medians(),
        median,
        spread: measured.spread(),
        token_bytes: workload.geometry.row().elements() * workload.dtype.bytes(),
        bytes: workload.bytes(),
        flops: workload.flops(),
        bytes_per_s: workload.bytes() / median,
        flops_per_s: workload.flops() / median,
        intensity: workload.intensity(),
        ceilings: measured.ceilings,
        floor,
        of_floor: floor.map(|floor| floor / median),
    }
}

/// The machine's rates in a line.
pub(crate) fn ceilings(ceilings: &Ceilings) -> String {
    let rate = |rate: Option<f64>, unit: f64| match rate {
        Some(rate) => format!("{:.*}", if rate / unit < 10.0 { 3 } else { 1 }, rate / unit),
        None => "not measured".into(),
    };
    format!(
        "read {} GB/s, prefetching {}, copy {}; matrix {} TFLOP/s",
        rate(ceilings.read, 1e9),
        rate(ceilings.read_prefetched, 1e9),
        rate(ceilings.copy, 1e9),
        rate(ceilings.matrix, 1e12),
    )
}

/// Names of the columns of [`line()`].
pub(crate) fn head(width: usize) -> String {
    format!(
        "{:<width$} {:>10} {:>7} {:>10} {:>9} {:>8} {:>10} {:>8}  kernel",
        "shape", "median us", "spread", "best us", "GB/s", "TFLOP/s", "floor us", "of floor"
    )
}

/// A row of the table.
pub(crate) fn line(row: &Row, best: f64, width: usize) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    format!(
        "{:<width$} {:>10.1} {:>6.1}% {:>10.1} {:>9.2} {:>8.3} {:>10} {:>8}  {}",
        row.name,
        row.median * 1e6,
        100.0 * row.spread,
        best * 1e6,
        row.bytes_per_s / 1e9,
        row.flops_per_s / 1e12,
        or_dash(row.floor.map(|floor| format!("{:.1}", floor * 1e6))),
        or_dash(row.of_floor.map(|share| format!("{:.1}%", 100.0 * share))),
        row.kernel,
    )
}

/// The table of docs/results/h100.md; rows that were not measured are left out.
pub(crate) fn goals(entries: &[Entry], rows: &[Option<Row>]) -> String {
    let mut text = String::from(
        "| shape | peers µs | must | aim | µs | runs | spread | floor µs | floor / measured | reached |\n\
         |---|---|---|---|---:|---|---:|---:|---:|---|\n",
    );
    for (entry, row) in entries.iter().zip(rows) {
        let (Some(goal), Some(row)) = (&entry.goal, row) else { continue };
        let reached = match [goal.aim, goal.must].map(|bound| holds(bound, row, rows)) {
            [Some(true), _] => "aim",
            [_, Some(true)] => "must",
            [_, Some(false)] => "no",
            [_, None] => "–",
        };
        let runs: Vec<String> =
            row.medians.iter().map(|median| format!("{:.1}", median * 1e6)).collect();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
        text.push_str(&format!(
            "| {} | {} | {} | {} | {:.1} | {} | {:.1} % | {} | {} | {reached} |\n",
            row.name,
            goal.peers,
            limit(goal.must, entries),
            limit(goal.aim, entries),
            row.median * 1e6,
            runs.join(", "),
            100.0 * row.spread,
            or_dash(row.floor.map(|floor| format!("{:.1}", floor * 1e6))),
            or_dash(row.of_floor.map(|share| format!("{:.1} %", 100.0 * share))),
        ));
    }
    text
}

fn limit(bound: Bound, entries: &[Entry]) -> String {
    match bound {
        Bound::Micros(micros) => format!("≤ {micros}"),
        Bound::Share(share) => format!("≥ {:.0} % of the floor", 100.0 * share),
        Bound::Times { row, factor } => {
            format!("≤ {factor:.2} × {}", entries[row].workload.name)
        }
    }
}

/// Whether a row keeps a bound; `None` where the row that it is compared with was not measured.
fn holds(bound: Bound, row: &Row, rows: &[Option<Row>]) -> Option<bool> {
    match bound {
        Bound::Micros(micros) => Some(row.median * 1e6 <= micros),
        Bound::Share(share) => row.of_floor.map(|reached| reached >= share),
        Bound::Times { row: other, factor } => {
            rows[other].as_ref().map(|other| row.median <= factor * other.median)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Measured;
    use crate::sweep::Sweep;
    use grouped_attention_benches::results::Results;

    fn measured(workload: &Workload, micros: f64) -> Row {
        let ceilings =
            Ceilings { read: Some(3.062e12), matrix: Some(736e12), ..Ceilings::default() };
        let runs = vec![vec![micros / 1e6; 11]; 3];
        row(workload, &Timed { measured: Measured { runs, ceilings }, kernel: "k".into() })
    }

    #[test]
    fn goals_are_compared_with_what_was_measured() {
        let entries = Sweep::H100.entries().unwrap();
        let mut rows = vec![None; entries.len()];
        rows[0] = Some(measured(&entries[0].workload, 437.0));
        let find = |part: &str| {
            entries.iter().position(|entry| entry.workload.name.contains(part)).unwrap()
        };
        let (one, ragged, quarter) = (find("page 1"), find("ragged"), find("q_len 4"));
        // Page 16 comes first, and 1.025 times page 64 is within must alone.
        rows[one] = Some(measured(&entries[one].workload, 437.0 * 1.025));
        let floor = measured(&entries[ragged].workload, 1.0).floor.unwrap();
        rows[ragged] = Some(measured(&entries[ragged].workload, 1e6 * floor / 0.93));
        rows[quarter] = Some(measured(&entries[quarter].workload, 911.0));
        let text = goals(&entries, &rows);
        let reached: Vec<&str> = (text.lines().skip(2))
            .map(|line| line.trim_end_matches(" |").rsplit(' ').next().unwrap())
            .collect();
        assert_eq!(reached, ["must", "no", "aim", "must"], "{text}");
        rows[0] = None;
        assert!(goals(&entries, &rows).lines().last().unwrap().ends_with("| – |"), "{text}");
    }

    #[test]
    fn results_are_read_as_they_are_written() {
        let entries = Sweep::Models.entries().unwrap();
        let rows = entries.iter().map(|entry| measured(&entry.workload, 100.0)).collect();
        let results = Results {
            engine: "cuda".into(),
            device: "a".into(),
            commit: None,
            command: "decode --sweep models".into(),
            ceilings: Ceilings::default(),
            rows,
        };
        let text = serde_json::to_string_pretty(&results).unwrap();
        let path = std::env::temp_dir().join(format!("results-{}.json", std::process::id()));
        std::fs::write(&path, text).unwrap();
        assert_eq!(Results::read(&path).unwrap(), results);
        std::fs::write(&path, "[]").unwrap();
        assert!(Results::read(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
