//! Grouped-query attention; MHA and MQA are its ends: [`Gqa`].

use super::causal::Trained;
use super::{Equations, LayerError, Linear, Projected, Rows, rotate_heads};
use crate::geometry::{Geometry, Row};
use crate::rope::Rope;

/// A GQA layer over model vectors of width D `[S-5.11]`; MHA and MQA are its ends. Legal by
/// construction.
///
/// ```text
/// q_i = rope(W_Q,i x)      k_g = rope(W_K,g x)      v_g = W_V,g x
/// y   = W_O [o_0 | .. | o_{h_q-1}]                  scale = 1 / sqrt(d_k)
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Gqa {
    geometry: Geometry,
    weights: GqaWeights,
    rope: Rope,
}

/// The projections of a [`Gqa`].
#[derive(Clone, Debug, PartialEq)]
pub struct GqaWeights {
    /// `[h_q * d_k, D]`.
    pub q: Linear,
    /// `[h_kv * d_k, D]`.
    pub k: Linear,
    /// `[h_kv * d_v, D]`.
    pub v: Linear,
    /// `[D, h_q * d_v]`.
    pub o: Linear,
}

impl Gqa {
    /// A layer with the given heads; `rope` turns whole queries and keys, so its width is d_k.
    ///
    /// # Errors
    /// A geometry with tied rows; a weight of another shape; a rope of another width.
    pub fn new(geometry: Geometry, weights: GqaWeights, rope: Rope) -> Result<Gqa, LayerError> {
        let Row::Separate { heads, d_k, d_v } = geometry.row() else {
            return Err(LayerError::WrongRow { layer: "gqa", geometry });
        };
        let (h_q, width) = (geometry.h_q(), weights.q.inputs());
        weights.q.expect("q", h_q * d_k, width)?;
        weights.k.expect("k", heads * d_k, width)?;
        weights.v.expect("v", heads * d_v, width)?;
        weights.o.expect("o", width, h_q * d_v)?;
        if rope.width() != d_k {
            let (expected, got) = (d_k, rope.width());
            return Err(LayerError::Size { what: "width of the rope", expected, got });
        }
        Ok(Gqa { geometry, weights, rope })
    }
}

impl Equations for Gqa {
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
        let mut queries = weights.q.apply(hidden); // [T, h_q, d_k]
        let mut k = weights.k.apply(hidden); // [T, h_kv, d_k]
        let v = weights.v.apply(hidden); // [T, h_kv, d_v]
        rotate_heads(&self.rope, &mut queries, geometry.h_q(), geometry.width_k(), positions);
        rotate_heads(&self.rope, &mut k, geometry.heads(), geometry.width_k(), positions);
        Projected { queries, rows: Rows::Separate { k, v } }
    }

    fn train(&self, hidden: &[f64], positions: &[i64]) -> (Trained, Rows) {
        let Projected { queries: q, rows } = self.project(hidden, positions);
        let [k, v] = rows.parts().map(<[f64]>::to_vec);
        let geometry = self.geometry;
        let trained = Trained {
            h_q: geometry.h_q(),
            heads: geometry.heads(),
            d_k: geometry.width_k(),
            d_v: geometry.width_v(),
            q,
            k,
            v,
        };
        (trained, rows)
    }
}
