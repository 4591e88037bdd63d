//! How far from the exact result an engine may be, derived from the arithmetic it declares.
//!
//! Chapter 7 of the specification has the proofs; this file has the formulas, in its letters, and
//! no constant that is not there. Nothing here knows an engine.
//!
//! A bound is computed in three layers: [`Tolerance`] knows the arithmetic and the widths,
//! [`RowTolerance`] what all elements of a row share, and [`Element`] what is known of one element:
//! its envelope A, spread D and deviation M.
//!
//! ```text
//! Delta = (e^(n_w u_acc + u_x + (6 + 2 [T > 1]) u_v) - 1) S + phi                   [S-7.8]
//! gamma = exp(Delta + T e_exp) - 1                                                  [S-7.12]
//! alpha = exp(u_P + u_x + n_o u_a + mu) - 1
//! beta  = exp(n_l u_v + mu) - 1
//! E     = (gamma M + (1 + gamma) (alpha A + beta |o|)) / ((1 - gamma) (1 - beta))
//!                                                            plain, by the quotient lemma [S-7.11]
//!
//! kappa = 3 u_v R + phi + [truncate] n_w u_acc R                                    [S-7.8]
//! delta = R sqrt([nearest] n_w u_acc^2 + u_x^2 + 5 u_v^2)
//! tau   = sqrt([T > 1] 4 u_v^2 R^2 + (T' - 1) e_exp^2)
//! Q     = (D + |o| sqrt C)^2                                                        [S-7.13]
//! V     = D^2 (delta^2 + e_exp^2 + tau^2) + Q (u_P^2 + u_x^2)
//!         + [nearest] n_o u_a^2 (o^2 / 3 + Q) + n_l u_v^2 (1/3 + C) o^2
//! E     = kappa M + mu (A + |o|) + [truncate] n_o u_acc sqrt(o^2 + Q) + lambda sqrt V     sharp
//!
//! F(E)  = E + (e^(u_out + 3 u_v) - 1) (|o| + E) + eta                               [S-7.12]
//! ```
//!
//! The reference has an error of its own, bounded by the same formulas with every unit roundoff
//! 2^-53, and a comparison allows the sum of both `[S-7.1]`.

use grouped_attention::{Arithmetic, Attended, Dtype, RowStats};

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

/// What the oracle knows of one element of `o`, or, as norms, of a row of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Element {
    /// |o|.
    pub o: f64,
    /// The envelope A.
    pub envelope: f64,
    /// The spread D.
    pub spread: f64,
    /// The deviation M.
    pub deviation: f64,
}

impl Element {
    /// Element `index` of all that the oracle attended.
    pub fn of(attended: &Attended, index: usize) -> Element {
        Element {
            o: attended.o[index].abs(),
            envelope: attended.envelope[index],
            spread: attended.spread[index],
            deviation: attended.deviation[index],
        }
    }

    /// The 2-norms of a row's columns.
    fn norms(row: &[Element]) -> Element {
        let of = |part: fn(&Element) -> f64| norm(row.iter().map(part));
        Element {
            o: of(|element| element.o),
            envelope: of(|element| element.envelope),
            spread: of(|element| element.spread),
            deviation: of(|element| element.deviation),
        }
    }
}

/// Largest error of the exponent, in the two senses of `[S-7.8]`.
#[derive(Clone, Copy, Debug)]
struct Score {
    /// Delta: plain.
    plain: f64,
    /// kappa: of one sign, or common to the row.
    common: f64,
    /// delta: independent between positions.
    independent: f64,
    /// The part of tau that scores have: common to the positions of a tile.
    tile: f64,
}

/// Bounds of one engine's rounding in one row.
#[derive(Clone, Copy, Debug)]
struct RowError {
    score: Score,
    gamma: f64,
    alpha: f64,
    beta: f64,
    /// mu.
    splitting: f64,
    n_o: f64,
    n_l: f64,
    /// delta^2 + e_exp^2.
    own_variance: f64,
    /// tau^2.
    tile_variance: f64,
    /// C.
    concentration: f64,
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
            u_out: self.rounding_of_results(),
            lse,
            applies: self.in_domain(stats) && engine.in_domain(),
        }
    }

    /// `[S-7.3]`, but for the largest number of the output format.
    fn in_domain(&self, stats: &RowStats) -> bool {
        let products = stats.score_magnitude / self.scale;
        // What is summed before it is normalised, by weights of up to 2^8.
        let values = 2f64.powi(8) * stats.visible as f64 * stats.value_max;
        self.scale.max(1.0) * products < 2f64.powi(126) && values < 2f64.powi(127)
    }

    fn row_error(&self, arithmetic: &Arithmetic, stats: &RowStats, score_slack: f64) -> RowError {
        let Arithmetic { product, accumulation, vector, probability, exp, .. } = *arithmetic;
        let visible = stats.visible as f64;
        let blocks = steps(stats.visible, arithmetic.step);
        let updates = steps(stats.visible, arithmetic.tile);
        let merging = 5.0 * (arithmetic.parts as f64 - 1.0);
        let n_o = blocks + updates + merging;
        let n_l = (visible + updates + merging - 2.0).max(0.0);
        let splitting = splitting(arithmetic, stats);
        let score = self.score(arithmetic, stats, updates, score_slack);
        let factors = (updates.min(MAXIMUM_CHANGES) - 1.0).max(0.0);
        let u_a = accumulation.max(vector);
        RowError {
            score,
            gamma: (score.plain + updates * exp).exp_m1(),
            alpha: (probability + product + n_o * u_a + splitting).exp_m1(),
            beta: (n_l * vector + splitting).exp_m1(),
            splitting,
            n_o,
            n_l,
            own_variance: score.independent.powi(2) + exp * exp,
            tile_variance: score.tile.powi(2) + factors * exp * exp,
            concentration: stats.concentration,
            arithmetic: *arithmetic,
            sharp: self.general_position
                && score.common + splitting + LAMBDA * score.independent.hypot(score.tile)
                    <= FIRST_ORDER,
        }
    }

    /// `[S-7.8]`. The slack is an error of one sign and one size at worst, so it joins the parts
    /// that do not average out.
    fn score(&self, a: &Arithmetic, stats: &RowStats, updates: f64, slack: f64) -> Score {
        let n_w = steps(self.width_k, a.step);
        let (u_acc, u_v) = (a.accumulation, a.vector);
        let (nearest, truncates) = if a.truncates { (0.0, 1.0) } else { (1.0, 0.0) };
        // Differences of successive maxima, where there is more than one.
        let maxima = if updates > 1.0 { 2.0 * u_v } else { 0.0 };
        let (magnitude, norm) = (stats.score_magnitude, stats.score_norm);
        // [S-7.17]: phi.
        let underflow =
            self.scale * self.width_k as f64 * self.smallest(a) * (2.0 + self.q_max + self.k_max);
        let independent = nearest * n_w * u_acc * u_acc + a.product.powi(2) + 5.0 * u_v * u_v;
        let relative = (n_w * u_acc + a.product + 6.0 * u_v + maxima).exp_m1();
        Score {
            plain: relative * magnitude + underflow + slack,
            common: 3.0 * u_v * norm + underflow + truncates * n_w * u_acc * norm + slack,
            independent: norm * independent.sqrt(),
            tile: norm * maxima,
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

    /// u_out as `[S-7.12]` has it: a result in a format that holds it is stored as it is.
    fn rounding_of_results(&self) -> f64 {
        let u_out = self.output_roundoff();
        if u_out > self.arithmetic.vector { u_out } else { 0.0 }
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
    /// `[S-7.3]`: gamma and beta are below 1.
    fn in_domain(&self) -> bool {
        self.gamma < 1.0 && self.beta < 1.0
    }

    /// `[S-7.12]`, before the output is formed.
    fn plain(&self, element: &Element) -> f64 {
        if !self.in_domain() {
            return f64::INFINITY;
        }
        let Element { o, envelope, deviation, .. } = *element;
        let apart = self.alpha * envelope + self.beta * o;
        let moved = self.gamma * deviation + (1.0 + self.gamma) * apart;
        moved / ((1.0 - self.gamma) * (1.0 - self.beta))
    }

    /// `[S-7.13]`, before the output is formed.
    fn sharp(&self, lambda: f64, element: &Element) -> f64 {
        let Arithmetic { product, accumulation, vector, probability, truncates, .. } =
            self.arithmetic;
        let Element { o, envelope, spread, deviation } = *element;
        let u_a = accumulation.max(vector);
        let terms = (spread + o * self.concentration.sqrt()).powi(2);
        let weights = spread.powi(2) * (self.own_variance + self.tile_variance);
        let products = terms * (probability.powi(2) + product.powi(2));
        let normaliser = self.n_l * (vector * o).powi(2) * (1.0 / 3.0 + self.concentration);
        let (sum, drift) = if truncates {
            (0.0, self.n_o * accumulation * (o * o + terms).sqrt())
        } else {
            (self.n_o * u_a * u_a * (o * o / 3.0 + terms), 0.0)
        };
        let variance = weights + products + sum + normaliser;
        let aligned = self.score.common * deviation + self.splitting * (envelope + o) + drift;
        aligned + lambda * variance.sqrt()
    }

    fn element(&self, element: &Element) -> f64 {
        let plain = self.plain(element);
        if self.sharp { plain.min(self.sharp(LAMBDA, element)) } else { plain }
    }

    /// `[S-7.14]` without the roundings that follow the normaliser.
    fn lse(&self) -> f64 {
        if !self.in_domain() {
            return f64::INFINITY;
        }
        let plain = -(-self.gamma).ln_1p() - (-self.beta).ln_1p();
        if !self.sharp {
            return plain;
        }
        let u_v = self.arithmetic.vector;
        let variance = self.concentration * self.own_variance
            + self.tile_variance
            + self.n_l * u_v * u_v * (1.0 / 3.0 + self.concentration);
        plain.min(self.score.common + self.splitting + LAMBDA * variance.sqrt())
    }
}

impl RowTolerance {
    /// False where the row is outside the domain of the bounds, so that numbers say nothing
    /// `[S-7.3]`.
    pub fn applies(&self) -> bool {
        self.applies
    }

    /// Bound of one element `[S-7.12] [S-7.13]`.
    pub fn element(&self, element: &Element) -> f64 {
        let error = self.engine.element(element);
        let reference = self.reference.element(element);
        self.formed(error, element.o, 1.0) + reference
    }

    /// Bound of lse `[S-7.14]`.
    pub fn lse(&self) -> f64 {
        self.lse
    }

    /// Bound of the 2-norm of the error of a row with these elements `[S-7.15]`.
    pub fn residual(&self, row: &[Element]) -> f64 {
        let plain = norm(row.iter().map(|element| self.element(element)));
        if !self.engine.sharp || row.len() < CONCENTRATING_WIDTH {
            return plain;
        }
        let norms = Element::norms(row);
        let error = self.engine.sharp(LAMBDA_ROW, &norms);
        let reference = self.reference.sharp(LAMBDA_ROW, &norms);
        plain.min(self.formed(error, norms.o, (row.len() as f64).sqrt()) + reference)
    }

    /// F(E): the quotient and the output format.
    fn formed(&self, error: f64, o: f64, columns: f64) -> f64 {
        let rounding = (self.u_out + 3.0 * self.engine.arithmetic.vector).exp_m1();
        error + rounding * (o + error) + columns * (self.eta + self.eta_out)
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
