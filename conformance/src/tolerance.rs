//! How far from the exact result an engine may be, derived from the arithmetic it declares.
//!
//! Chapter 7 of the specification has the proofs; this file has the formulas, in its letters, and
//! no constant that is not there. Nothing here knows an engine.
//!
//! A bound is computed in three layers: [`Tolerance`] knows the arithmetic and the widths,
//! [`RowTolerance`] what all elements of a row share, and [`RowTolerance::element`] the envelope A
//! and spread D of one element.
//!
//! ```text
//! Delta = (e^(n_w u_acc + u_x + 8 u_v) - 1) S + phi                                 [S-7.8]
//! alpha = exp(Delta + (1 + T) e_exp + u_P + u_x + n_o u_a + mu) - 1                 [S-7.12]
//! beta  = exp(Delta + (1 + T) e_exp + n_l u_v + mu) - 1
//! E     = (alpha A + beta |o|) / (1 - beta)                  plain, by the quotient lemma [S-7.11]
//!
//! kappa = 3 u_v R + phi + mu + [truncate] n_w u_acc R                               [S-7.8]
//! delta = R sqrt([nearest] n_w u_acc^2 + u_x^2 + 9 u_v^2)
//! V     = D^2 (delta^2 + (1 + T') e_exp^2) + (D + |o|)^2 (u_P^2 + u_x^2)             [S-7.13]
//!         + [nearest] n_o u_a^2 (D + sqrt2 |o|)^2 + n_l u_v^2 o^2
//! E     = kappa (A + |o|) + [truncate] n_o u_acc (D + sqrt2 |o|) + lambda sqrt V     sharp
//!
//! F(E)  = E + (u_out + 4 u_v) (|o| + E) + eta                                       [S-7.12]
//! ```
//!
//! The reference has an error of its own, bounded by the same formulas with every unit roundoff
//! 2^-53, and a comparison allows the sum of both `[S-7.1]`.

use grouped_attention::{Arithmetic, Attended, Dtype, RowStats};
use std::f64::consts::SQRT_2;

/// Standard deviations, in effect, that the sharp bound allows one element `[S-7.7]`.
const LAMBDA: f64 = 3.0;
/// The same for the norm of a row's error, which concentrates `[S-7.15]`.
const LAMBDA_ROW: f64 = 2.0;
/// Fewest columns for which a row's error concentrates `[S-7.15]`.
const CONCENTRATING_WIDTH: usize = 8;
/// Most changes of a running maximum over positions in general position `[S-7.9]`.
const MAXIMUM_CHANGES: f64 = 32.0;
/// Largest first-order score error for which the sharp bound neglects the second order `[S-7.13]`.
const FIRST_ORDER: f64 = 1.0 / 16.0;

/// What a bound depends on beside the row it is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// What the engine declares.
    pub arithmetic: Arithmetic,
    /// Format of `o`.
    pub output: Dtype,
    /// True if `o` and `lse` are stored in f64 instead, as files may have them.
    pub f64_results: bool,
    /// Format of queries and cache.
    pub dtype: Dtype,
    /// Width of a key.
    pub width_k: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Largest magnitude of a finite query element; any larger number will do `[S-7.17]`.
    pub q_max: f64,
    /// Largest magnitude of a finite key element; any larger number will do.
    pub k_max: f64,
    /// True if the inputs are in general position, so that the sharp bound holds `[S-7.22]`.
    pub general_position: bool,
}

/// Largest error of the exponent, in the two senses of `[S-7.8]`.
#[derive(Clone, Copy, Debug)]
struct Score {
    /// Delta: plain.
    plain: f64,
    /// kappa: common to the row.
    common: f64,
    /// delta: independent between positions.
    independent: f64,
}

/// Bounds of one engine's rounding in one row.
#[derive(Clone, Copy, Debug)]
struct RowError {
    score: Score,
    alpha: f64,
    beta: f64,
    n_o: f64,
    n_l: f64,
    /// (1 + T') e_exp^2.
    exp_variance: f64,
    arithmetic: Arithmetic,
    sharp: bool,
}

/// Bounds of one row.
#[derive(Clone, Copy, Debug)]
pub struct RowTolerance {
    engine: RowError,
    reference: RowError,
    /// phi and eta are absolute; eta of [S-7.17] without the output's.
    eta: f64,
    eta_out: f64,
    u_out: f64,
    lse: f64,
    applies: bool,
}

impl Tolerance {
    /// Bounds of a row of which the oracle says `stats`.
    ///
    /// `score_slack` is an error that scores have before attention begins, that of a rotated key
    /// for example `[S-7.19]`; 0 where the engine is given the numbers that the oracle has.
    pub fn row(&self, stats: &RowStats, score_slack: f64) -> RowTolerance {
        let engine = self.row_error(&self.arithmetic, stats, score_slack);
        // [S-7.1]: the oracle's own error, by the same formulas.
        let reference = self.row_error(&Arithmetic::F64, stats, 0.0);
        let u_v = self.arithmetic.vector;
        let length = (stats.visible.max(1) as f64).ln();
        let rounding = |u_v: f64| u_v * (3.0 * stats.score_norm + 4.0 * length + 4.0);
        let stored = self.lse_roundoff() * stats.lse.abs();
        let lse =
            engine.lse() + rounding(u_v) + stored + reference.lse() + rounding(2f64.powi(-53));
        RowTolerance {
            engine,
            reference,
            eta: self.underflow(stats),
            eta_out: self.output_underflow(),
            u_out: self.output_roundoff(),
            lse,
            applies: self.in_domain(stats) && engine.beta < 1.0,
        }
    }

    /// `[S-7.3]`, but for the largest number of the output format.
    fn in_domain(&self, stats: &RowStats) -> bool {
        let products = stats.score_magnitude / self.scale;
        self.scale.max(1.0) * products < 2f64.powi(126) && stats.value_max.is_finite()
    }

    fn row_error(&self, arithmetic: &Arithmetic, stats: &RowStats, score_slack: f64) -> RowError {
        let Arithmetic { product, accumulation, vector, probability, exp, .. } = *arithmetic;
        let visible = stats.visible as f64;
        let blocks = steps(stats.visible, arithmetic.step);
        let updates = steps(stats.visible, arithmetic.tile);
        let merging = 5.0 * (arithmetic.parts as f64 - 1.0);
        let n_o = blocks + updates + 1.0 + merging;
        let n_l = visible + updates + merging;
        let splitting = splitting(arithmetic, stats);
        let score = self.score(arithmetic, stats, splitting, score_slack);
        let both = score.plain + (1.0 + updates) * exp + splitting;
        let u_a = accumulation.max(vector);
        RowError {
            score,
            alpha: (both + probability + product + n_o * u_a).exp_m1(),
            beta: (both + n_l * vector).exp_m1(),
            n_o,
            n_l,
            exp_variance: (1.0 + updates.min(MAXIMUM_CHANGES)) * exp * exp,
            arithmetic: *arithmetic,
            sharp: self.general_position
                && score.common + LAMBDA * score.independent <= FIRST_ORDER,
        }
    }

    /// `[S-7.8]`. The slack is an error of one sign and one size at worst, so it joins the parts
    /// that do not average out.
    fn score(&self, a: &Arithmetic, stats: &RowStats, splitting: f64, slack: f64) -> Score {
        let n_w = steps(self.width_k, a.step);
        let (u_acc, u_v) = (a.accumulation, a.vector);
        let (nearest, truncates) = if a.truncates { (0.0, 1.0) } else { (1.0, 0.0) };
        let (magnitude, norm) = (stats.score_magnitude, stats.score_norm);
        // [S-7.17]: phi.
        let underflow =
            self.scale * self.width_k as f64 * self.smallest(a) * (2.0 + self.q_max + self.k_max);
        let independent = nearest * n_w * u_acc * u_acc + a.product.powi(2) + 9.0 * u_v * u_v;
        Score {
            plain: (n_w * u_acc + a.product + 8.0 * u_v).exp_m1() * magnitude + underflow + slack,
            common: 3.0 * u_v * norm
                + underflow
                + splitting
                + truncates * n_w * u_acc * norm
                + slack,
            independent: norm * independent.sqrt(),
        }
    }

    /// omega of `[S-7.17]`: the largest number that may become 0.
    fn smallest(&self, arithmetic: &Arithmetic) -> f64 {
        if arithmetic.flushes_subnormals { 2f64.powi(-126) } else { 2f64.powi(-149) }
    }

    /// eta of `[S-7.17]` without the output's.
    fn underflow(&self, stats: &RowStats) -> f64 {
        let omega = self.smallest(&self.arithmetic);
        let probability = if self.arithmetic.probability == Dtype::F16.unit_roundoff() {
            2f64.powi(-25)
        } else if self.arithmetic.probability == Dtype::Bf16.unit_roundoff() {
            omega.max(2f64.powi(-134))
        } else {
            omega
        };
        let visible = stats.visible as f64;
        omega * (2.0 * visible + 2.0) + 2.0 * visible * (probability + omega) * stats.value_max
    }

    /// u_out of `[S-7.2]`.
    fn output_roundoff(&self) -> f64 {
        if self.f64_results { f64::EPSILON / 2.0 } else { self.output.unit_roundoff() }
    }

    /// `[S-7.14]`: storing lse in f32 is part of the contract.
    fn lse_roundoff(&self) -> f64 {
        if self.f64_results { f64::EPSILON / 2.0 } else { Dtype::F32.unit_roundoff() }
    }

    /// Largest finite number of the output, past which there is nothing to compare `[S-7.3]`.
    pub fn output_max(&self) -> f64 {
        if self.f64_results { f64::MAX } else { self.output.max() }
    }

    /// eta_out of `[S-7.18]`.
    fn output_underflow(&self) -> f64 {
        if self.f64_results {
            return f64::from_bits(1);
        }
        let flushes = self.arithmetic.flushes_subnormals && self.output != Dtype::F16;
        if flushes { 2f64.powi(-126) } else { self.output.min_subnormal() / 2.0 }
    }
}

/// mu of `[S-7.9]`.
fn splitting(arithmetic: &Arithmetic, stats: &RowStats) -> f64 {
    if arithmetic.parts <= 1 {
        return 0.0;
    }
    let length = (stats.visible.max(1) as f64).ln();
    2.0 * arithmetic.exp + arithmetic.vector * (8.0 + 5.0 * (stats.score_norm + length))
}

fn steps(terms: usize, step: usize) -> f64 {
    terms.div_ceil(step.max(1)) as f64
}

impl RowError {
    /// `[S-7.12]`, before the output is formed.
    fn plain(&self, envelope: f64, o: f64) -> f64 {
        if self.beta >= 1.0 {
            return f64::INFINITY;
        }
        (self.alpha * envelope + self.beta * o) / (1.0 - self.beta)
    }

    /// `[S-7.13]`, before the output is formed. Arguments are magnitudes, or norms of a row.
    fn sharp(&self, lambda: f64, envelope: f64, spread: f64, o: f64) -> f64 {
        let Arithmetic { product, accumulation, vector, probability, truncates, .. } =
            self.arithmetic;
        let u_a = accumulation.max(vector);
        let reach = spread + SQRT_2 * o;
        let Score { common, independent, .. } = self.score;
        let scores = spread.powi(2) * (independent.powi(2) + self.exp_variance);
        let products = (spread + o).powi(2) * (probability.powi(2) + product.powi(2));
        let normaliser = self.n_l * (vector * o).powi(2);
        let (sum, drift) = if truncates {
            (0.0, self.n_o * accumulation * reach)
        } else {
            (self.n_o * (u_a * reach).powi(2), 0.0)
        };
        let variance = scores + products + sum + normaliser;
        common * (envelope + o) + drift + lambda * variance.sqrt()
    }

    fn element(&self, envelope: f64, spread: f64, o: f64) -> f64 {
        let plain = self.plain(envelope, o);
        if self.sharp { plain.min(self.sharp(LAMBDA, envelope, spread, o)) } else { plain }
    }

    /// `[S-7.14]` without the roundings that follow the normaliser.
    fn lse(&self) -> f64 {
        if self.beta >= 1.0 {
            return f64::INFINITY;
        }
        let plain = -(-self.beta).ln_1p();
        if !self.sharp {
            return plain;
        }
        let Score { common, independent, .. } = self.score;
        let variance = independent.powi(2)
            + self.exp_variance
            + self.n_l * self.arithmetic.vector * self.arithmetic.vector;
        plain.min(common + LAMBDA * variance.sqrt())
    }
}

impl RowTolerance {
    /// False where the row is outside the domain of the bounds, so that numbers say nothing
    /// `[S-7.3]`.
    pub fn applies(&self) -> bool {
        self.applies
    }

    /// Bound of one element with envelope A, spread D and exact output `o` `[S-7.12] [S-7.13]`.
    pub fn element(&self, envelope: f64, spread: f64, o: f64) -> f64 {
        let o = o.abs();
        let error = self.engine.element(envelope, spread, o);
        let reference = self.reference.element(envelope, spread, o);
        self.formed(error, o, 1.0) + reference
    }

    /// Bound of lse `[S-7.14]`.
    pub fn lse(&self) -> f64 {
        self.lse
    }

    /// Bound of the 2-norm of a row's error `[S-7.15]`. The slices are the row's columns.
    pub fn residual(&self, envelope: &[f64], spread: &[f64], o: &[f64]) -> f64 {
        let columns = envelope.iter().zip(spread).zip(o);
        let bounds = columns.map(|((&a, &d), &o)| self.element(a, d, o));
        let plain = norm(bounds);
        if !self.engine.sharp || o.len() < CONCENTRATING_WIDTH {
            return plain;
        }
        let of = |column: &[f64]| norm(column.iter().copied());
        let (envelope, spread, o_norm) = (of(envelope), of(spread), of(o));
        let error = self.engine.sharp(LAMBDA_ROW, envelope, spread, o_norm);
        let reference = self.reference.sharp(LAMBDA_ROW, envelope, spread, o_norm);
        plain.min(self.formed(error, o_norm, (o.len() as f64).sqrt()) + reference)
    }

    /// F(E): the quotient and the output format.
    fn formed(&self, error: f64, o: f64, columns: f64) -> f64 {
        let u_v = self.engine.arithmetic.vector;
        error + (self.u_out + 4.0 * u_v) * (o + error) + columns * (self.eta + self.eta_out)
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Bound of a merge of two given, non-empty parts, one row `[S-7.16]`.
#[derive(Clone, Copy, Debug)]
pub struct MergeTolerance {
    relative: f64,
    lse: f64,
    u_out: f64,
    eta_out: f64,
}

impl Tolerance {
    /// Bounds for a row merged from parts with these lse, which become `merged`.
    pub fn merge(&self, lse: f64, other_lse: f64, merged: f64) -> MergeTolerance {
        let Arithmetic { exp, vector, .. } = self.arithmetic;
        let magnitudes = 2.0 * lse.abs() + 2.0 * other_lse.abs();
        MergeTolerance {
            relative: 2.0 * exp + vector * (8.0 + magnitudes),
            lse: exp + vector * (6.0 + merged.abs()) + self.lse_roundoff() * merged.abs(),
            u_out: self.output_roundoff(),
            eta_out: self.output_underflow(),
        }
    }
}

impl MergeTolerance {
    /// Bound of one element, `envelope` being A_m: the weighted sum of the parts' magnitudes.
    pub fn element(&self, envelope: f64, o: f64) -> f64 {
        let error = self.relative * envelope;
        error + self.u_out * (o.abs() + error) + self.eta_out
    }

    /// Bound of lse.
    pub fn lse(&self) -> f64 {
        self.lse
    }
}

/// True if a row saw only finite numbers, as far as its results can tell `[S-7.3]`.
pub fn saw_finite(attended: &Attended, row: usize, width_v: usize) -> bool {
    let stats = &attended.rows[row];
    let columns = row * width_v..(row + 1) * width_v;
    let all_finite = |values: &[f64]| values.iter().all(|x| x.is_finite());
    // The maxima skip NaN, which shows in lse (a key or query) or in the columns (a value).
    let stats_finite = [stats.score_magnitude, stats.score_norm, stats.value_max];
    all_finite(&stats_finite)
        && (stats.lse.is_finite() || stats.visible == 0)
        && all_finite(&attended.o[columns.clone()])
        && all_finite(&attended.envelope[columns])
}
