//! From times to medians and from medians to shares of what the machine can do.

use crate::workload::Workload;
use grouped_attention_benches::results::Ceilings;

/// The machine's rates against a workload.
pub(crate) trait Floor {
    /// The better way of reading, bytes per second.
    fn best_read(&self) -> Option<f64>;

    /// Seconds below which no engine can be: the bytes at the read rate or the FLOPs at the matrix
    /// rate, whichever takes longer. A rate that is not known bounds nothing.
    fn floor(&self, workload: &Workload) -> Option<f64>;
}

impl Floor for Ceilings {
    fn best_read(&self) -> Option<f64> {
        [self.read, self.read_prefetched].into_iter().flatten().reduce(f64::max)
    }

    fn floor(&self, workload: &Workload) -> Option<f64> {
        let read = self.best_read().map(|rate| workload.bytes() / rate);
        let multiplied = self.matrix.map(|rate| workload.flops() / rate);
        [read, multiplied].into_iter().flatten().reduce(f64::max)
    }
}

/// The times of one workload.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Seconds of each call, `[runs][repeats]`.
    pub(crate) runs: Vec<Vec<f64>>,
    pub(crate) ceilings: Ceilings,
}

impl Measured {
    /// The median of each run, seconds.
    pub(crate) fn medians(&self) -> Vec<f64> {
        self.runs.iter().map(|run| median(run)).collect()
    }

    /// The median of the runs' medians, seconds.
    pub(crate) fn median(&self) -> f64 {
        median(&self.medians())
    }

    /// Slowest less fastest median, as a share of the median; with a single run, of its calls.
    pub(crate) fn spread(&self) -> f64 {
        let all = if self.runs.len() > 1 { self.medians() } else { self.runs.concat() };
        let most = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (most - all.iter().copied().fold(f64::INFINITY, f64::min)) / self.median()
    }

    /// The fastest call, seconds.
    pub(crate) fn best(&self) -> f64 {
        self.runs.iter().flatten().copied().fold(f64::INFINITY, f64::min)
    }
}

/// The middle of an odd number of values, the mean of the two in the middle of an even one; NaN of
/// none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grouped_attention::Geometry;

    #[test]
    fn medians_and_spread() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        let runs = vec![vec![9.0, 10.0, 11.0], vec![12.0, 11.0, 12.0], vec![10.0, 11.0, 12.0]];
        let measured = Measured { runs, ceilings: Ceilings::default() };
        assert_eq!((measured.median(), measured.best()), (11.0, 9.0));
        assert_eq!(measured.spread(), 2.0 / 11.0);
    }

    #[test]
    fn the_floor_is_the_slower_of_two() {
        let geometry = Geometry::gla(128, 2, 256, 64).unwrap();
        let workload = |q_len| Workload::new("", geometry, 128, 8192, q_len);
        let rates = Ceilings { read: Some(3.062e12), matrix: Some(736e12), ..Ceilings::default() };
        let floor = |q_len| rates.floor(&workload(q_len)).unwrap();
        assert_eq!(floor(1), workload(1).bytes() / 3.062e12);
        assert_eq!(floor(4), workload(4).flops() / 736e12);
        let blind = Ceilings { matrix: None, ..rates };
        assert_eq!(blind.floor(&workload(4)), Some(workload(4).bytes() / 3.062e12));
        assert_eq!(Ceilings::default().floor(&workload(1)), None);
    }
}
