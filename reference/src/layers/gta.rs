//! Grouped-Tied Attention: [`Gta`].

use super::causal::Trained;
use super::{Equations, LayerError, Linear, Projected, Rows, rotate_heads};
use crate::geometry::{Geometry, Row};
use crate::rope::Rope;

/// A GTA layer over model vectors of width D `[S-5.12]`: one state per head is the value, and a
/// prefix of it is half the key. Legal by construction.
///
/// ```text
/// kv_g = W_KV,g x                       never rotated; the value is all of it
/// k_R  = rope(W_R x)                    one for all heads
/// K_g  = [ kv_g[..n] | k_R ]            V_g = kv_g
/// q_i  = [ q[..n] | rope(q[n..]) ]      of q = W_Q,i x
/// y    = W_O [o_0 | .. | o_{h_q-1}]     scale = 1 / sqrt(n + r)
/// ```
///
/// The paper has s = d_h and n = r = d_h / 2, so its scale is 1 / sqrt(d_h).
#[derive(Clone, Debug, PartialEq)]
pub struct Gta {
    geometry: Geometry,
    weights: GtaWeights,
    rope: Rope,
}

/// The projections of a [`Gta`].
#[derive(Clone, Debug, PartialEq)]
pub struct GtaWeights {
    /// `[h_q * (n + r), D]`.
    pub q: Linear,
    /// `[h * s, D]`: the tied states.
    pub kv: Linear,
    /// `[r, D]`: the rope key.
    pub rope_k: Linear,
    /// `[D, h_q * s]`.
    pub o: Linear,
}

impl Gta {
    /// A layer with the given heads; `rope` turns the r last elements of a query and the rope key.
    ///
    /// # Errors
    /// A geometry with separate rows; a weight of another shape; a rope of another width.
    pub fn new(geometry: Geometry, weights: GtaWeights, rope: Rope) -> Result<Gta, LayerError> {
        let Row::Tied { heads, s, n, r } = geometry.row() else {
            return Err(LayerError::WrongRow { layer: "gta", geometry });
        };
        let (h_q, width) = (geometry.h_q(), weights.q.inputs());
        weights.q.expect("q", h_q * (n + r), width)?;
        weights.kv.expect("kv", heads * s, width)?;
        weights.rope_k.expect("rope_k", r, width)?;
        weights.o.expect("o", width, h_q * s)?;
        if rope.width() != r {
            let got = rope.width();
            return Err(LayerError::Size { what: "width of the rope", expected: r, got });
        }
        Ok(Gta { geometry, weights, rope })
    }

    /// `K_g` of every token and head, `[T, h, n + r]`.
    fn keys(&self, state: &[f64], rope: &[f64]) -> Vec<f64> {
        let (heads, s, r) = (self.geometry.heads(), self.geometry.width_v(), self.rope.width());
        let n = self.geometry.width_k() - r;
        let mut keys = Vec::with_capacity(state.len() / s * (n + r));
        for (index, state) in state.chunks_exact(s).enumerate() {
            let token = index / heads;
            keys.extend_from_slice(&state[..n]);
            keys.extend_from_slice(&rope[token * r..][..r]);
        }
        keys
    }
}

impl Equations for Gta {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn rope(&self) -> &Rope {
        &self.rope
    }

    fn o(&self) -> &Linear {
        &self.weights.o
    }

    fn project(&self, hidden: &[f64], positions: &[i64]) -> Projected {
        let (geometry, weights) = (self.geometry, &self.weights);
        let mut queries = weights.q.apply(hidden); // [T, h_q, n + r]
        let state = weights.kv.apply(hidden); // [T, h, s]
        let mut rope = weights.rope_k.apply(hidden); // [T, r]
        rotate_heads(&self.rope, &mut queries, geometry.h_q(), geometry.width_k(), positions);
        rotate_heads(&self.rope, &mut rope, 1, self.rope.width(), positions);
        Projected { queries, rows: Rows::Tied { state, rope } }
    }

    fn train(&self, hidden: &[f64], positions: &[i64]) -> (Trained, Rows) {
        let Projected { queries: q, rows } = self.project(hidden, positions);
        let [state, rope] = rows.parts();
        let geometry = self.geometry;
        let trained = Trained {
            h_q: geometry.h_q(),
            heads: geometry.heads(),
            d_k: geometry.width_k(),
            d_v: geometry.width_v(),
            q,
            k: self.keys(state, rope),
            v: state.to_vec(),
        };
        (trained, rows)
    }
}
