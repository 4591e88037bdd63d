//! Grouped Latent Attention: [`Gla`].

use super::causal::Trained;
use super::up::Up;
use super::{
    Equations, LatentWidths, LayerError, Linear, Projected, QueryProjection, Rows, rotate_heads,
};
use crate::geometry::Geometry;
use crate::norm::RmsNorm;
use crate::rope::Rope;

/// A GLA layer over model vectors of width D: h_c latent heads, each for its own group of query
/// heads `[S-5.13]`. Legal by construction.
///
/// ```text
/// [c^_0 | .. | c^_{h_c-1} | k^] = W_DKV x
/// c_g = norm_g(c^_g)           k_R = rope(k^)       g = floor(i / (h_q / h_c))
/// [q_C,i | q^_i] = W_Q,i x     q_R,i = rope(q^_i)   or low-rank
/// k_i = [W_UK,i c_g | k_R]     v_i = W_UV,i c_g
/// y   = W_O [o_0 | .. | o_{h_q-1}]                  scale = 1 / sqrt(d_h + d_r)
/// ```
///
/// The rope key is one for all latent heads. The cache holds the c_g and k_R `[S-5.17]`; absorbed
/// `[S-5.18]` as in [`Mla`](super::Mla). With h_c = 1 this is MLA `[S-2.8]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gla {
    geometry: Geometry,
    widths: LatentWidths,
    weights: GlaWeights,
    rope: Rope,
}

/// The projections and norms of a [`Gla`].
#[derive(Clone, Debug, PartialEq)]
pub struct GlaWeights {
    /// To `[h_q, d_h + d_r]`.
    pub query: QueryProjection,
    /// `W_DKV`, `[h_c * d_c + d_r, D]`: the latent heads, then the rope key.
    pub down: Linear,
    /// One per latent head, `[h_c]`; the rope key has no norm.
    pub norms: Vec<RmsNorm>,
    /// One per latent head, `[h_c]`, each `[h_q / h_c * (d_h + d_v), d_c]`: per head W_UK, then
    /// W_UV.
    pub ups: Vec<Linear>,
    /// `[D, h_q * d_v]`.
    pub o: Linear,
}

impl Gla {
    /// A layer of the given widths; `rope` turns d_r elements.
    ///
    /// # Errors
    /// Widths that are no geometry; norms or up-projections that are not one per latent head; a
    /// weight or norm of another shape; a rope of another width.
    pub fn new(widths: LatentWidths, weights: GlaWeights, rope: Rope) -> Result<Gla, LayerError> {
        let LatentWidths { h_q, h_c, d_c, d_r, d_v, .. } = widths;
        let geometry = Geometry::gla(h_q, h_c, d_c, d_r)?;
        widths.trained()?; // also bounds the products below
        let width = weights.query.inputs();
        weights.query.expect(&widths)?;
        weights.down.expect("down", h_c * d_c + d_r, width)?;
        for (what, expected, got) in [
            ("norms", h_c, weights.norms.len()),
            ("up-projections", h_c, weights.ups.len()),
            ("width of the rope", d_r, rope.width()),
        ] {
            if got != expected {
                return Err(LayerError::Size { what, expected, got });
            }
        }
        for (norm, up) in weights.norms.iter().zip(&weights.ups) {
            if norm.width() != d_c {
                let got = norm.width();
                return Err(LayerError::Size { what: "width of a norm", expected: d_c, got });
            }
            widths.expect_up(up)?;
        }
        weights.o.expect("o", width, h_q * d_v)?;
        Ok(Gla { geometry, widths, weights, rope })
    }

    /// `[T, h_q, d_h + d_r]`, rotated, not absorbed.
    fn queries(&self, hidden: &[f64], positions: &[i64]) -> Vec<f64> {
        self.weights.query.apply(hidden, positions, &self.widths, &self.rope)
    }

    /// c_g and k_R of every token.
    fn rows(&self, hidden: &[f64], positions: &[i64]) -> Rows {
        let LatentWidths { h_c, d_c, d_r, .. } = self.widths;
        let mut down = self.weights.down.apply(hidden); // [T, h_c * d_c + d_r]
        let (mut state, mut rope) = (Vec::new(), Vec::new());
        for token in down.chunks_exact_mut(h_c * d_c + d_r) {
            let (latents, key) = token.split_at_mut(h_c * d_c);
            for (latent, norm) in latents.chunks_exact_mut(d_c).zip(&self.weights.norms) {
                norm.apply(latent);
            }
            state.extend_from_slice(latents);
            rope.extend_from_slice(key);
        }
        rotate_heads(&self.rope, &mut rope, 1, d_r, positions);
        Rows::Tied { state, rope }
    }

    /// The up-projection that serves query head `i`, and the head's place in its group.
    fn up(&self, i: usize) -> (Up<'_>, usize) {
        let group = self.widths.group();
        (Up::new(&self.weights.ups[i / group], self.widths), i % group)
    }
}

impl Equations for Gla {
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
            let (up, head) = self.up(index % h_q);
            queries.extend(up.absorb(head, nope));
            queries.extend_from_slice(rope);
        }
        Projected { queries, rows: self.rows(hidden, positions) }
    }

    fn values(&self, attended: &[f64]) -> Vec<f64> {
        let mut values = Vec::new(); // [T, h_q, d_v]
        for (index, attended) in attended.chunks_exact(self.widths.d_c).enumerate() {
            let (up, head) = self.up(index % self.widths.h_q);
            values.extend(up.value(head, attended));
        }
        values
    }

    fn train(&self, hidden: &[f64], positions: &[i64]) -> (Trained, Rows) {
        let LatentWidths { h_q, h_c, d_c, d_h, d_r, d_v } = self.widths;
        let rows = self.rows(hidden, positions);
        let [state, rope] = rows.parts();
        let (mut k, mut v) = (Vec::new(), Vec::new()); // [T, h_q, d_h + d_r], [T, h_q, d_v]
        for (index, latent) in state.chunks_exact(d_c).enumerate() {
            let (t, latent_head) = (index / h_c, index % h_c);
            let up = Up::new(&self.weights.ups[latent_head], self.widths);
            for head in up.expand(latent).chunks_exact(d_h + d_v) {
                k.extend_from_slice(&head[..d_h]);
                k.extend_from_slice(&rope[t * d_r..][..d_r]);
                v.extend_from_slice(&head[d_h..]);
            }
        }
        let q = self.queries(hidden, positions);
        (Trained { h_q, heads: h_q, d_k: d_h + d_r, d_v, q, k, v }, rows)
    }
}
