//! Multi-head latent attention: [`Mla`].

use super::causal::Trained;
use super::up::Up;
use super::{
    Equations, LatentWidths, LayerError, Linear, Projected, QueryProjection, Rows, rotate_heads,
};
use crate::geometry::Geometry;
use crate::norm::RmsNorm;
use crate::rope::Rope;

/// An MLA layer over model vectors of width D, as DeepSeek-V2 and V3 have it `[S-5.13]`. Legal by
/// construction.
///
/// ```text
/// [c^ | k^] = W_DKV x          c = norm(c^)         k_R = rope(k^) for all heads
/// [q_C,i | q^_i] = W_Q,i x     q_R,i = rope(q^_i)   or low-rank
/// k_i = [W_UK,i c | k_R]       v_i = W_UV,i c
/// y   = W_O [o_0 | .. | o_{h_q-1}]                  scale = 1 / sqrt(d_h + d_r)
/// ```
///
/// The cache holds c and k_R `[S-5.17]`. Absorbed, a query is `[W_UK,i^T q_C,i | q_R,i]` and what
/// attention returns goes through W_UV,i `[S-5.18]`:
///
/// ```text
/// <q_i, W_UK,i c_j> = <W_UK,i^T q_i, c_j>
/// sum_j p_j W_UV,i c_j = W_UV,i sum_j p_j c_j
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Mla {
    geometry: Geometry,
    widths: LatentWidths,
    weights: MlaWeights,
    rope: Rope,
}

/// The projections and norms of an [`Mla`].
#[derive(Clone, Debug, PartialEq)]
pub struct MlaWeights {
    /// To `[h_q, d_h + d_r]`.
    pub query: QueryProjection,
    /// `W_DKV`, `[d_c + d_r, D]`: the latent, then the rope key.
    pub down: Linear,
    /// Over the latent; the rope key has no norm.
    pub norm: RmsNorm,
    /// `[h_q * (d_h + d_v), d_c]`: per head W_UK, then W_UV.
    pub up: Linear,
    /// `[D, h_q * d_v]`.
    pub o: Linear,
}

impl Mla {
    /// A layer of the given widths; `rope` turns d_r elements.
    ///
    /// # Errors
    /// More than one latent head; widths that are no geometry; a weight or norm of another shape;
    /// a rope of another width.
    pub fn new(widths: LatentWidths, weights: MlaWeights, rope: Rope) -> Result<Mla, LayerError> {
        let LatentWidths { h_q, h_c, d_c, d_r, d_v, .. } = widths;
        if h_c != 1 {
            return Err(LayerError::Size { what: "latent heads", expected: 1, got: h_c });
        }
        let geometry = Geometry::mla(h_q, d_c, d_r)?;
        widths.trained()?; // also bounds the products below
        let width = weights.query.inputs();
        weights.query.expect(&widths)?;
        weights.down.expect("down", d_c + d_r, width)?;
        if weights.norm.width() != d_c {
            let got = weights.norm.width();
            return Err(LayerError::Size { what: "width of the norm", expected: d_c, got });
        }
        widths.expect_up(&weights.up)?;
        weights.o.expect("o", width, h_q * d_v)?;
        if rope.width() != d_r {
            let got = rope.width();
            return Err(LayerError::Size { what: "width of the rope", expected: d_r, got });
        }
        Ok(Mla { geometry, widths, weights, rope })
    }

    /// `[T, h_q, d_h + d_r]`, rotated, not absorbed.
    fn queries(&self, hidden: &[f64], positions: &[i64]) -> Vec<f64> {
        self.weights.query.apply(hidden, positions, &self.widths, &self.rope)
    }

    /// c and k_R of every token.
    fn rows(&self, hidden: &[f64], positions: &[i64]) -> Rows {
        let LatentWidths { d_c, d_r, .. } = self.widths;
        let down = self.weights.down.apply(hidden); // [T, d_c + d_r]
        let (mut state, mut rope) = (Vec::new(), Vec::new());
        for token in down.chunks_exact(d_c + d_r) {
            state.extend_from_slice(&token[..d_c]);
            rope.extend_from_slice(&token[d_c..]);
        }
        self.weights.norm.apply(&mut state);
        rotate_heads(&self.rope, &mut rope, 1, d_r, positions);
        Rows::Tied { state, rope }
    }

    fn up(&self) -> Up<'_> {
        Up::new(&self.weights.up, self.widths)
    }
}

impl Equations for Mla {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn rope(&self) -> &Rope {
        &self.rope
    }

    fn o(&self) -> &Linear {
        &self.weights.o
    }

    fn trained_width_k(&self) -> usize {
        self.widths.d_h + self.widths.d_r
    }

    fn project(&self, hidden: &[f64], positions: &[i64]) -> Projected {
        let (h_q, d_h) = (self.widths.h_q, self.widths.d_h);
        let mut queries = Vec::new(); // [T, h_q, d_c + d_r]
        let trained = self.queries(hidden, positions);
        for (index, query) in trained.chunks_exact(self.trained_width_k()).enumerate() {
            let (nope, rope) = query.split_at(d_h);
            queries.extend(self.up().absorb(index % h_q, nope));
            queries.extend_from_slice(rope);
        }
        Projected { queries, rows: self.rows(hidden, positions) }
    }

    fn values(&self, attended: &[f64]) -> Vec<f64> {
        attended
            .chunks_exact(self.widths.d_c)
            .enumerate()
            .flat_map(|(index, attended)| self.up().value(index % self.widths.h_q, attended))
            .collect()
    }

    fn train(&self, hidden: &[f64], positions: &[i64]) -> (Trained, Rows) {
        let LatentWidths { h_q, d_c, d_h, d_r, d_v, .. } = self.widths;
        let rows = self.rows(hidden, positions);
        let [state, rope] = rows.parts();
        let (mut k, mut v) = (Vec::new(), Vec::new()); // [T, h_q, d_h + d_r], [T, h_q, d_v]
        for (t, latent) in state.chunks_exact(d_c).enumerate() {
            for head in self.up().expand(latent).chunks_exact(d_h + d_v) {
                k.extend_from_slice(&head[..d_h]);
                k.extend_from_slice(&rope[t * d_r..][..d_r]);
                v.extend_from_slice(&head[d_h..]);
            }
        }
        let q = self.queries(hidden, positions);
        (Trained { h_q, heads: h_q, d_k: d_h + d_r, d_v, q, k, v }, rows)
    }
}
