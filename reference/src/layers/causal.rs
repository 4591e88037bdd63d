//! Attention of whole sequences over keys and values as the layer was trained with them.
//!
//! A layer's cache rows and the engines that read them are not used here: this is the other side
//! of the identity that the absorbed form has to meet `[S-5.16, S-5.19]`.

use super::linear::dot;

/// Queries, and the keys and values that they see in the form a layer is trained in.
#[derive(Debug)]
pub(super) struct Trained {
    pub(super) h_q: usize,
    /// Heads of `k` and `v`; query head i reads head `i / (h_q / heads)`.
    pub(super) heads: usize,
    /// Elements of a query and of a key.
    pub(super) d_k: usize,
    /// Elements of a value.
    pub(super) d_v: usize,
    pub(super) q: Vec<f64>, // [T, h_q, d_k]
    pub(super) k: Vec<f64>, // [T, heads, d_k]
    pub(super) v: Vec<f64>, // [T, heads, d_v]
}

impl Trained {
    fn query(&self, t: usize, i: usize) -> &[f64] {
        &self.q[(t * self.h_q + i) * self.d_k..][..self.d_k]
    }

    fn key(&self, j: usize, head: usize) -> &[f64] {
        &self.k[(j * self.heads + head) * self.d_k..][..self.d_k]
    }

    fn value(&self, j: usize, head: usize) -> &[f64] {
        &self.v[(j * self.heads + head) * self.d_v..][..self.d_v]
    }

    /// Token t of a sequence of `length` sees the tokens 0..=t of the same sequence, whatever
    /// their positions: `[T, h_q, d_v]`.
    pub(super) fn attend(&self, scale: f64, length: usize) -> Vec<f64> {
        let tokens = self.q.len() / (self.h_q * self.d_k);
        let mut o = Vec::with_capacity(tokens * self.h_q * self.d_v);
        for t in 0..tokens {
            let first = t - t % length;
            for i in 0..self.h_q {
                let head = i / (self.h_q / self.heads);
                let q = self.query(t, i);
                let scores: Vec<f64> =
                    (first..=t).map(|j| scale * dot(q, self.key(j, head))).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut row = vec![0.0; self.d_v];
                for (j, weight) in (first..=t).zip(&weights) {
                    for (o, v) in row.iter_mut().zip(self.value(j, head)) {
                        *o += weight / sum * v;
                    }
                }
                o.append(&mut row);
            }
        }
        o
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [S-5.16]: scores are taken from their maximum, so that none is too large for an exponential.
    #[test]
    fn large_scores_are_harmless() {
        let trained = Trained {
            h_q: 1,
            heads: 1,
            d_k: 1,
            d_v: 1,
            q: vec![1.0, 1.0],
            k: vec![800.0, 800.0],
            v: vec![1.0, 3.0],
        };
        assert_eq!(trained.attend(1.0, 2), [1.0, 2.0]);
    }
}
