//! Rows of one shape, the oracle's answer about them, and a judge.

use grouped_attention::{
    Arithmetic, Attended, CacheLayout, Dtype, Geometry, Mask, PageId, Problem, ReferenceCache,
    Sequence, Slot, Step, attend,
};
use grouped_attention_conformance::noise::Noise;
use grouped_attention_conformance::{Comparison, Expected, Tolerance, compare, largest_finite};

/// `rows` independent queries over `n` positions: heads that share one key and value.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) rows: usize,
    pub(crate) n: usize,
    pub(crate) d_k: usize,
    pub(crate) d_v: usize,
    pub(crate) scale: f64,
    pub(crate) dtype: Dtype,
    /// `[rows, d_k]`.
    pub(crate) q: Vec<f64>,
    /// `[n, d_k]`.
    pub(crate) k: Vec<f64>,
    /// `[n, d_v]`.
    pub(crate) v: Vec<f64>,
}

impl Inputs {
    /// Standard normal numbers of a format, scored with a standard deviation of `deviation`.
    pub(crate) fn gaussian(
        [rows, n, d_k, d_v]: [usize; 4],
        dtype: Dtype,
        deviation: f64,
        seed: u64,
    ) -> Inputs {
        let mut noise = Noise::new(seed, &[1]);
        let mut draw = |count: usize| -> Vec<f64> {
            (0..count).map(|_| dtype.round(noise.gaussian())).collect()
        };
        let (q, k, v) = (draw(rows * d_k), draw(n * d_k), draw(n * d_v));
        Inputs { rows, n, d_k, d_v, scale: deviation / (d_k as f64).sqrt(), dtype, q, k, v }
    }

    /// The same queries over two rows of the cache, each there `n / 2` times, in turn.
    pub(crate) fn repeated(mut self) -> Inputs {
        for j in 2..self.n {
            self.k.copy_within(j % 2 * self.d_k..(j % 2 + 1) * self.d_k, j * self.d_k);
            self.v.copy_within(j % 2 * self.d_v..(j % 2 + 1) * self.d_v, j * self.d_v);
        }
        self
    }

    /// The last key answers the first query with a score that outweighs all others together.
    pub(crate) fn with_needle(mut self) -> Inputs {
        let query = &self.q[..self.d_k];
        let norm: f64 = query.iter().map(|q| q * q).sum();
        let along = (4.0 + (self.n as f64).ln()) / (self.scale * norm);
        let key: Vec<f64> = query.iter().map(|q| self.dtype.round(along * q)).collect();
        let last = self.k.len() - self.d_k;
        self.k[last..].copy_from_slice(&key);
        self
    }

    /// The same, but for the last position.
    pub(crate) fn without_last(&self) -> Inputs {
        let mut short = self.clone();
        short.n -= 1;
        short.k.truncate(short.n * short.d_k);
        short.v.truncate(short.n * short.d_v);
        short
    }

    fn step(&self) -> Step {
        let pages = [PageId(0)];
        let sequence = Sequence { q_len: 1, kv_len: self.n, pages: &pages };
        Step::new(self.n.max(1), &[sequence], Mask::Full).unwrap()
    }

    /// What the oracle says.
    pub(crate) fn exact(&self) -> Attended {
        let geometry = Geometry::separate(self.rows, 1, self.d_k, self.d_v).unwrap();
        let layout = CacheLayout::new(geometry, self.dtype, self.n.max(1), 1).unwrap();
        let mut cache = ReferenceCache::new(layout);
        for (row, (k, v)) in
            self.k.chunks_exact(self.d_k).zip(self.v.chunks_exact(self.d_v)).enumerate()
        {
            cache.write(Slot { page: PageId(0), row }, k, v);
        }
        let problem = Problem::new(geometry, self.dtype, self.scale).unwrap();
        attend(&problem, &self.step(), &self.q, &cache)
    }

    pub(crate) fn tolerance(&self, arithmetic: Arithmetic, output: Dtype) -> Tolerance {
        Tolerance {
            arithmetic,
            output,
            f64_results: false,
            dtype: self.dtype,
            width_k: self.d_k,
            scale: self.scale,
            q_max: largest_finite(self.q.iter().copied()),
            k_max: largest_finite(self.k.iter().copied()),
            general_position: false,
        }
    }

    /// Judges `o` `[rows, d_v]` and `lse` `[rows]`.
    pub(crate) fn judge(&self, o: &[f64], lse: &[f64], tolerance: &Tolerance) -> Comparison {
        self.judge_by(&self.exact(), o, lse, tolerance)
    }

    /// As [`judge`](Self::judge), by what the oracle has said.
    pub(crate) fn judge_by(
        &self,
        attended: &Attended,
        o: &[f64],
        lse: &[f64],
        tolerance: &Tolerance,
    ) -> Comparison {
        let expected = Expected {
            attended,
            step: &self.step(),
            h_q: self.rows,
            width_v: self.d_v,
            score_slack: &[],
        };
        compare(&expected, o, Some(lse), tolerance)
    }
}
