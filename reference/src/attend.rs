//! The definition of attention over a cache: [`attend`].

use crate::backend::CacheInfo;
use crate::engine::ReferenceCache;
use crate::pages::Slot;
use crate::problem::Problem;
use crate::step::Step;

/// Results of [`attend`], row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended {
    /// `[total_q, h_q, d_v]`.
    pub o: Vec<f64>,
    /// `[total_q, h_q, d_v]`, the envelope A.
    pub envelope: Vec<f64>,
    /// `[total_q, h_q, d_v]`, the spread D.
    pub spread: Vec<f64>,
    /// `[total_q, h_q, d_v]`, the deviation M.
    pub deviation: Vec<f64>,
    /// `[total_q, h_q]`.
    pub rows: Vec<RowStats>,
}

/// What is known of one query row beside its output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Natural logarithm of the softmax sum; -inf where nothing is visible.
    pub lse: f64,
    /// Visible positions, N.
    pub visible: usize,
    /// Largest scaled sum of absolute products, S.
    pub score_magnitude: f64,
    /// Largest Euclidean norm of a score and its products, R.
    pub score_norm: f64,
    /// Sum of the squared probabilities, C: 1 if one position has all the weight, 1/N if they
    /// share it.
    pub concentration: f64,
    /// Largest absolute element of a visible value.
    pub value_max: f64,
}

impl RowStats {
    const EMPTY: RowStats = RowStats {
        lse: f64::NEG_INFINITY,
        visible: 0,
        score_magnitude: 0.0,
        score_norm: 0.0,
        concentration: 0.0,
        value_max: 0.0,
    };
}

/// Attention of the queries `[total_q, h_q, width_k]` of a step over a cache: the definition.
///
/// For query t of a sequence and head i with cached head g `[S-3.1]` `[S-3.2]` `[S-3.3]`:
///
/// ```text
/// score[j]  = scale * <q[t, i], K_g[j]>            for every visible position j
/// o[t, i]   = sum_j p[j] * V_g[j]                  p = softmax(score)
/// lse[t, i] = ln sum_j exp(score[j])               natural logarithm
/// ```
///
/// and beside them what error bounds scale with `[S-7.4]` `[S-7.5]`:
///
/// ```text
/// A[t, i]   = sum_j p[j] * |V_g[j]|                         the envelope
/// D[t, i]   = sqrt(sum_j p[j]^2 * (V_g[j] - o[t, i])^2)     the spread
/// M[t, i]   = sum_j p[j] * |V_g[j] - o[t, i]|               the deviation
/// C[t, i]   = sum_j p[j]^2                                  the concentration
/// S[t, i]   = max_j scale * sum_c |q_c k_jc|
/// R[t, i]   = max_j sqrt(score[j]^2 + scale^2 * sum_c (q_c k_jc)^2)
/// ```
///
/// Two passes, f64, no tiling, in the order of the positions. A row that sees no position has
/// `o = 0`, `lse = -inf` and zeros for the rest. Only visible positions are read, so unused cells may hold
/// anything. A NaN or infinity that a row sees spreads as IEEE arithmetic spreads it, within that
/// row alone.
///
/// # Panics
/// If the queries are not `total_q * h_q * width_k` numbers, the cache has other rows than the
/// problem or other pages than the step, or a page id of the step is not a page of the cache:
/// [`Attend`](crate::Attend) checks all of it for callers.
pub fn attend(problem: &Problem, step: &Step, q: &[f64], cache: &ReferenceCache) -> Attended {
    let geometry = problem.geometry();
    let (h_q, width_k, width_v) = (geometry.h_q(), geometry.width_k(), geometry.width_v());
    assert_eq!(q.len(), step.total_q() * h_q * width_k, "queries are [total_q, h_q, width_k]");
    let layout = cache.layout();
    assert_eq!(layout.geometry().row(), geometry.row(), "rows of the cache and of the problem");
    assert_eq!(layout.page_size(), step.page_size(), "page sizes of the cache and of the step");
    let rows = step.total_q() * h_q;
    let mut out = Attended {
        o: vec![0.0; rows * width_v],
        envelope: vec![0.0; rows * width_v],
        spread: vec![0.0; rows * width_v],
        deviation: vec![0.0; rows * width_v],
        rows: vec![RowStats::EMPTY; rows],
    };
    for span in step.spans() {
        for t in 0..span.q_len {
            let visible: Vec<Slot> = (0..span.kv_len)
                .filter(|&j| step.sees(span, t, j))
                .map(|j| step.slot(span, j))
                .collect();
            for i in 0..h_q {
                let row = (span.q_start + t) * h_q + i;
                let elements = row * width_v..(row + 1) * width_v;
                let seen = Seen { cache, head: geometry.cached_head(i), slots: &visible };
                out.rows[row] = attend_row(
                    problem.scale(),
                    &q[row * width_k..][..width_k],
                    seen,
                    RowOut {
                        o: &mut out.o[elements.clone()],
                        envelope: &mut out.envelope[elements.clone()],
                        spread: &mut out.spread[elements.clone()],
                        deviation: &mut out.deviation[elements],
                    },
                );
            }
        }
    }
    out
}

/// The keys and values that one query row sees, in the order of their positions.
#[derive(Clone, Copy)]
struct Seen<'a> {
    cache: &'a ReferenceCache,
    head: usize,
    slots: &'a [Slot],
}

impl<'a> Seen<'a> {
    fn keys(self) -> impl Iterator<Item = impl Iterator<Item = f64> + 'a> {
        self.slots.iter().map(move |&slot| self.cache.key(slot, self.head))
    }

    fn values(self) -> impl Iterator<Item = &'a [f64]> {
        self.slots.iter().map(move |&slot| self.cache.value(slot, self.head))
    }
}

/// One row's columns of [`Attended`], `[d_v]` each, zeros at first.
struct RowOut<'a> {
    o: &'a mut [f64],
    envelope: &'a mut [f64],
    spread: &'a mut [f64],
    deviation: &'a mut [f64],
}

/// Adds one row onto zeros.
fn attend_row(scale: f64, query: &[f64], seen: Seen<'_>, out: RowOut<'_>) -> RowStats {
    let RowOut { o, envelope, spread, deviation } = out;
    let mut stats = RowStats { visible: seen.slots.len(), ..RowStats::EMPTY };
    if stats.visible == 0 {
        return stats;
    }
    let mut scores = Vec::with_capacity(stats.visible);
    for key in seen.keys() {
        let (mut sum, mut absolute, mut squares) = (0.0, 0.0, 0.0);
        for (q, k) in query.iter().zip(key) {
            let product = q * k;
            sum += product;
            absolute += product.abs();
            squares += product * product;
        }
        let score: f64 = scale * sum;
        scores.push(score);
        stats.score_magnitude = stats.score_magnitude.max(scale * absolute);
        stats.score_norm = stats.score_norm.max((score * score + scale * scale * squares).sqrt());
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    stats.lse = max + sum.ln();
    for (weight, value) in weights.iter().zip(seen.values()) {
        let p = weight / sum;
        stats.concentration += p * p;
        for ((o, a), v) in o.iter_mut().zip(envelope.iter_mut()).zip(value) {
            *o += p * v;
            *a += p * v.abs();
            stats.value_max = stats.value_max.max(v.abs());
        }
    }
    for (weight, value) in weights.iter().zip(seen.values()) {
        let p = weight / sum;
        for (((d, m), o), v) in spread.iter_mut().zip(&mut *deviation).zip(&*o).zip(value) {
            *d += (p * (v - o)) * (p * (v - o));
            *m += p * (v - o).abs();
        }
    }
    for d in spread {
        *d = d.sqrt();
    }
    stats
}
