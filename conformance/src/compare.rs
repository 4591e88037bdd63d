//! The only comparison: an engine's numbers against the oracle's, row by row.
//!
//! In this order, because each check presumes the one before: empty rows exactly `[S-7.21]`; sets
//! of non-finite elements `[S-7.20]`; then, in rows that saw only finite numbers, every element,
//! every lse, and the norm of every row's error. Nothing is averaged over rows: a zeroed row among
//! thousands disappears in a whole tensor's norm.

use crate::tolerance::{Element, RowTolerance, Tolerance, saw_finite};
use grouped_attention::{Attended, Step};
use std::fmt;

/// What the oracle says, and of which rows.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Results and diagnostics.
    pub attended: &'a Attended,
    /// Names the sequence and token of a row.
    pub step: &'a Step,
    /// Query heads.
    pub h_q: usize,
    /// Columns of a row.
    pub width_v: usize,
    /// Score error of each row that the engine is not to blame for, `[total_q, h_q]`; empty where
    /// there is none. See [`Tolerance::row`].
    pub score_slack: &'a [f64],
}

/// Which of a row's numbers is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// One element of `o`.
    Element {
        /// Its column.
        column: usize,
    },
    /// The lse of a row.
    Lse,
    /// The 2-norm of a row's error in `o`; the values are norms.
    Residual,
}

/// Where a number stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Sequence of the batch.
    pub sequence: usize,
    /// Query token, local to the sequence.
    pub token: usize,
    /// Query head.
    pub head: usize,
    /// Which number.
    pub quantity: Quantity,
}

/// One number compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Where.
    pub place: Place,
    /// The oracle's value.
    pub expected: f64,
    /// The engine's value.
    pub got: f64,
    /// How far apart they may be; infinite where only finiteness was compared.
    pub bound: f64,
    /// How far apart they are.
    pub error: f64,
}

impl Compared {
    /// Error over bound; above 1 is a violation.
    pub fn ratio(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.bound }
    }
}

/// Outcome of a comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Rows in which numbers were compared.
    pub rows: usize,
    /// Empty rows, and rows of which only finiteness was compared.
    pub rows_without_numbers: usize,
    /// Numbers compared.
    pub numbers: usize,
    /// Numbers that are too far apart, or finite on one side alone.
    pub violations: usize,
    /// The worst element, lse and residual, each by its ratio, where one was compared.
    pub worst: [Option<Compared>; 3],
    /// The largest ratio of an element in a row whose weight is shared, C at most 1/2: where one
    /// position has the weight there is little to err in, and bounds are easily near.
    pub shared_weight: f64,
}

impl Comparison {
    /// True if nothing is too far apart.
    pub fn passed(&self) -> bool {
        self.violations == 0
    }

    /// The largest ratio of element, lse and residual; 0 where nothing was compared.
    pub fn ratios(&self) -> [f64; 3] {
        self.worst.map(|worst| worst.map_or(0.0, |compared| compared.ratio()))
    }

    /// The worst of all numbers.
    pub fn worst(&self) -> Option<&Compared> {
        self.worst.iter().flatten().max_by(|a, b| a.ratio().total_cmp(&b.ratio()))
    }

    /// Adds another comparison's counts and keeps the worse of each kind.
    pub fn absorb(&mut self, other: &Comparison) {
        self.rows += other.rows;
        self.rows_without_numbers += other.rows_without_numbers;
        self.numbers += other.numbers;
        self.violations += other.violations;
        self.shared_weight = self.shared_weight.max(other.shared_weight);
        for compared in other.worst.iter().flatten() {
            self.keep(*compared);
        }
    }

    /// Takes one number into account.
    pub fn push(&mut self, compared: Compared) {
        self.numbers += 1;
        let ratio = compared.ratio();
        self.violations += usize::from(ratio > 1.0 || ratio.is_nan());
        self.keep(compared);
    }

    fn keep(&mut self, compared: Compared) {
        let kind = match compared.place.quantity {
            Quantity::Element { .. } => 0,
            Quantity::Lse => 1,
            Quantity::Residual => 2,
        };
        let worst = &mut self.worst[kind];
        if worst.is_none_or(|worst| compared.ratio().total_cmp(&worst.ratio()).is_gt()) {
            *worst = Some(compared);
        }
    }
}

/// Compares an engine's `o` `[total_q, h_q, width_v]` and, if it was asked for, `lse`
/// `[total_q, h_q]` with the oracle's.
///
/// # Panics
/// If the slices are not as long as the oracle's.
pub fn compare(
    expected: &Expected<'_>,
    o: &[f64],
    lse: Option<&[f64]>,
    tolerance: &Tolerance,
) -> Comparison {
    assert_eq!(o.len(), expected.attended.o.len(), "o is [total_q, h_q, width_v]");
    if let Some(lse) = lse {
        assert_eq!(lse.len(), expected.attended.rows.len(), "lse is [total_q, h_q]");
    }
    let mut comparison = Comparison::default();
    for (sequence, span) in expected.step.spans().iter().enumerate() {
        for token in 0..span.q_len {
            for head in 0..expected.h_q {
                let index = (span.q_start + token) * expected.h_q + head;
                let columns = index * expected.width_v..(index + 1) * expected.width_v;
                let row = Row { expected, tolerance, index, sequence, token, head };
                row.compare(&o[columns], lse.map(|lse| lse[index]), &mut comparison);
            }
        }
    }
    comparison
}

/// One query row being compared.
struct Row<'a> {
    expected: &'a Expected<'a>,
    tolerance: &'a Tolerance,
    index: usize,
    sequence: usize,
    token: usize,
    head: usize,
}

impl Row<'_> {
    fn compare(&self, o: &[f64], lse: Option<f64>, comparison: &mut Comparison) {
        let attended = self.expected.attended;
        let stats = &attended.rows[self.index];
        let slack = self.expected.score_slack.get(self.index).copied().unwrap_or(0.0);
        let bounds = self.tolerance.row(stats, slack);
        let finite = saw_finite(attended, self.index, self.expected.width_v);
        if stats.visible == 0 || !finite {
            comparison.rows_without_numbers += 1;
            return self.compare_exactly(o, lse, comparison);
        }
        if !bounds.applies() {
            comparison.rows_without_numbers += 1;
            return;
        }
        comparison.rows += 1;
        self.compare_numbers(o, lse, &bounds, comparison);
    }

    /// Empty rows by value, rows that saw something non-finite by finiteness: what IEEE arithmetic
    /// gives, or NaN throughout `[S-3.18]`.
    fn compare_exactly(&self, o: &[f64], lse: Option<f64>, comparison: &mut Comparison) {
        let attended = self.expected.attended;
        let stats = &attended.rows[self.index];
        let all_nan = stats.visible > 0 && o.iter().all(|x| x.is_nan());
        let same = |expected: f64, got: f64| {
            if stats.visible == 0 {
                expected == got
            } else {
                expected.is_finite() == got.is_finite() || (all_nan && got.is_nan())
            }
        };
        let mut push = |quantity, expected: f64, got: f64| {
            let error = if same(expected, got) { 0.0 } else { f64::INFINITY };
            let place = self.place(quantity);
            comparison.push(Compared { place, expected, got, bound: f64::INFINITY, error });
        };
        for (column, (&got, &expected)) in o.iter().zip(self.column(&attended.o)).enumerate() {
            push(Quantity::Element { column }, expected, got);
        }
        if let Some(lse) = lse {
            push(Quantity::Lse, stats.lse, lse);
        }
    }

    fn compare_numbers(
        &self,
        o: &[f64],
        lse: Option<f64>,
        bounds: &RowTolerance,
        comparison: &mut Comparison,
    ) {
        let attended = self.expected.attended;
        let expected = self.column(&attended.o);
        let first = self.index * self.expected.width_v;
        let elements: Vec<Element> =
            (first..first + o.len()).map(|index| Element::of(attended, index)).collect();
        let shares_weight = attended.rows[self.index].concentration <= 0.5;
        let mut squares = 0.0;
        let mut in_range = true;
        for (column, &got) in o.iter().enumerate() {
            let exact = expected[column];
            let bound = bounds.element(&elements[column]);
            // [S-7.3]: past the largest number of the format there is nothing to compare.
            if exact.abs() + bound >= self.largest() {
                in_range = false;
                continue;
            }
            let error = distance(exact, got);
            squares += error * error;
            let place = self.place(Quantity::Element { column });
            let compared = Compared { place, expected: exact, got, bound, error };
            if shares_weight {
                comparison.shared_weight = comparison.shared_weight.max(compared.ratio());
            }
            comparison.push(compared);
        }
        if in_range {
            let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
            comparison.push(Compared {
                place: self.place(Quantity::Residual),
                expected: norm(expected),
                got: norm(o),
                bound: bounds.residual(&elements),
                error: squares.sqrt(),
            });
        }
        if let Some(got) = lse {
            let exact = attended.rows[self.index].lse;
            let (place, bound) = (self.place(Quantity::Lse), bounds.lse());
            let error = distance(exact, got);
            comparison.push(Compared { place, expected: exact, got, bound, error });
        }
    }

    fn largest(&self) -> f64 {
        self.tolerance.output_max()
    }

    fn place(&self, quantity: Quantity) -> Place {
        Place { sequence: self.sequence, token: self.token, head: self.head, quantity }
    }

    fn column<'a>(&self, all: &'a [f64]) -> &'a [f64] {
        &all[self.index * self.expected.width_v..][..self.expected.width_v]
    }
}

/// Infinite where a number is missing: a NaN must not compare as near.
pub(crate) fn distance(expected: f64, got: f64) -> f64 {
    if got.is_finite() { (expected - got).abs() } else { f64::INFINITY }
}

/// Largest magnitude among finite numbers, 0 where there is none: what [`Tolerance`] wants of
/// queries and keys.
pub fn largest_finite(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().filter(|x| x.is_finite()).fold(0.0, |max, x| max.max(x.abs()))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { sequence, token, head, quantity } = self;
        match quantity {
            Quantity::Element { column } => {
                write!(f, "o[sequence {sequence}, token {token}, head {head}, column {column}]")
            }
            Quantity::Lse => write!(f, "lse[sequence {sequence}, token {token}, head {head}]"),
            Quantity::Residual => {
                write!(f, "|o| of [sequence {sequence}, token {token}, head {head}]")
            }
        }
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Compared { place, expected, got, bound, error } = self;
        write!(f, "{place}: expected {expected:e}, got {got:e}, ")?;
        if bound.is_finite() {
            write!(f, "error {error:.3e}, bound {bound:.3e}, ratio {:.3}", self.ratio())
        } else {
            write!(f, "which must both be finite or both not, and agree where nothing is visible")
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} of {} numbers are wrong", self.violations, self.numbers)?;
        for compared in self.worst.iter().flatten() {
            writeln!(f, "  worst {compared}")?;
        }
        Ok(())
    }
}
