//! Percentiles of what a replay saw.

use super::replay::{Gauge, Outcome, Record, Replay};
use serde::Serialize;
use std::time::Duration;

/// Three points of a distribution, by nearest rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of the values are no worse.
    pub p50: f64,
    /// Nine in ten are no worse.
    pub p90: f64,
    /// Ninety-nine in a hundred are no worse.
    pub p99: f64,
}

impl Percentiles {
    /// Of values of which smaller ones are better; `None` of none.
    pub fn ascending(mut values: Vec<f64>) -> Option<Percentiles> {
        values.sort_by(f64::total_cmp);
        Self::of(&values)
    }

    /// Of values of which larger ones are better; `None` of none.
    pub fn descending(mut values: Vec<f64>) -> Option<Percentiles> {
        values.sort_by(|a, b| b.total_cmp(a));
        Self::of(&values)
    }

    fn of(sorted: &[f64]) -> Option<Percentiles> {
        let last = sorted.len().checked_sub(1)?;
        let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).min(last + 1) - 1];
        Some(Percentiles { p50: at(50), p90: at(90), p99: at(99) })
    }
}

/// What a replay comes to. Times are in seconds; `None` where nothing was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Requests answered in full.
    pub answered: usize,
    /// Requests called off.
    pub cancelled: usize,
    /// Requests that the pool could never hold.
    pub refused: usize,
    /// From arrival to first byte, of requests that got one.
    pub ttft: Option<Percentiles>,
    /// From one byte to the next; bytes that come together share the time since those before.
    pub itl: Option<Percentiles>,
    /// Bytes per second of an answer, from arrival to last byte.
    pub request_rate: Option<Percentiles>,
    /// Bytes of answers per second, from the first arrival to the last byte.
    pub throughput: f64,
    /// From the first arrival to the last byte.
    pub duration: f64,
    /// Most pages that requests held.
    pub peak_pages: usize,
    /// Pages that requests held, averaged over time.
    pub mean_pages: f64,
    /// Requests in a step, on average.
    pub mean_batch: f64,
}

impl Summary {
    /// Of a whole replay.
    pub fn new(replay: &Replay) -> Summary {
        let Replay { records, gauges, .. } = replay;
        let count =
            |of: fn(&Outcome) -> bool| records.iter().filter(|record| of(&record.outcome)).count();
        let first = records.first().map_or(Duration::ZERO, |record| record.at);
        let emissions = || records.iter().flat_map(|record| &record.emissions);
        let last = emissions().map(|&(at, _)| at).max().unwrap_or(first);
        let duration = last.saturating_sub(first).as_secs_f64();
        let bytes: usize = emissions().map(|&(_, bytes)| bytes).sum();
        let steps = gauges.len().max(1) as f64;
        Summary {
            answered: count(|outcome| matches!(outcome, Outcome::Answered)),
            cancelled: count(|outcome| matches!(outcome, Outcome::Cancelled)),
            refused: count(|outcome| matches!(outcome, Outcome::Refused(_))),
            ttft: Percentiles::ascending(records.iter().filter_map(ttft).collect()),
            itl: Percentiles::ascending(records.iter().flat_map(gaps).collect()),
            request_rate: Percentiles::descending(records.iter().filter_map(rate).collect()),
            throughput: if duration > 0.0 { bytes as f64 / duration } else { 0.0 },
            duration,
            peak_pages: gauges.iter().map(|gauge| gauge.pages).max().unwrap_or(0),
            mean_pages: mean_pages(gauges, first),
            mean_batch: gauges.iter().map(|gauge| gauge.running as f64).sum::<f64>() / steps,
        }
    }
}

fn ttft(record: &Record) -> Option<f64> {
    let &(first, _) = record.emissions.first()?;
    Some(first.saturating_sub(record.at).as_secs_f64())
}

/// Time per byte of each emission but the first, once for each of its bytes.
fn gaps(record: &Record) -> impl Iterator<Item = f64> + '_ {
    record.emissions.windows(2).flat_map(|pair| {
        let [(before, _), (now, bytes)] = [pair[0], pair[1]];
        let each = now.saturating_sub(before).as_secs_f64() / bytes as f64;
        std::iter::repeat_n(each, bytes)
    })
}

/// Bytes per second of a whole answer.
fn rate(record: &Record) -> Option<f64> {
    let &(last, _) = record.emissions.last()?;
    let seconds = last.saturating_sub(record.at).as_secs_f64();
    (matches!(record.outcome, Outcome::Answered) && seconds > 0.0)
        .then(|| record.answer.len() as f64 / seconds)
}

/// Each step's pages weigh as long as the step took; between steps nothing is held.
fn mean_pages(gauges: &[Gauge], first: Duration) -> f64 {
    let seconds = |from: Duration, to: Duration| to.saturating_sub(from).as_secs_f64();
    let held: f64 =
        gauges.iter().map(|gauge| gauge.pages as f64 * seconds(gauge.began, gauge.at)).sum();
    let span = gauges.last().map_or(0.0, |gauge| seconds(first, gauge.at));
    if span > 0.0 { held / span } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Counters;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = || (1..=200).map(f64::from).collect::<Vec<_>>();
        let expected = Percentiles { p50: 100.0, p90: 180.0, p99: 198.0 };
        assert_eq!(Percentiles::ascending(values()), Some(expected));
        let expected = Percentiles { p50: 101.0, p90: 21.0, p99: 3.0 };
        assert_eq!(Percentiles::descending(values()), Some(expected));
        let one = Percentiles { p50: 7.0, p90: 7.0, p99: 7.0 };
        assert_eq!(Percentiles::ascending(vec![7.0]), Some(one));
        assert_eq!(Percentiles::ascending(Vec::new()), None);
    }

    #[test]
    fn times_are_taken_from_arrivals_and_emissions() {
        let second = Duration::from_secs;
        let record = Record {
            at: second(1),
            answer: b"abcd".to_vec(),
            emissions: vec![(second(3), 1), (second(4), 1), (second(9), 2)],
            outcome: Outcome::Answered,
        };
        assert_eq!(ttft(&record), Some(2.0));
        assert_eq!(gaps(&record).collect::<Vec<_>>(), [1.0, 2.5, 2.5]);
        assert_eq!(rate(&record), Some(0.5));

        let gauge = |began, at, pages| {
            let (began, at) = (second(began), second(at));
            Gauge { began, at, pages, running: 1, open: 1, tokens: 1 }
        };
        let gauges = vec![gauge(1, 3, 2), gauge(3, 4, 6), gauge(8, 9, 2)];
        let replay = Replay { records: vec![record], gauges, counters: Counters::default() };
        let summary = Summary::new(&replay);
        assert_eq!((summary.duration, summary.throughput), (8.0, 0.5));
        assert_eq!((summary.peak_pages, summary.mean_pages), (6, (2.0 * 2.0 + 6.0 + 2.0) / 8.0));
    }
}
