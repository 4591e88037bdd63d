//! From one latent head to the keys and values of the query heads it serves, and back
//! `[S-5.14, S-5.18]`.
//!
//! The up-projection of a latent head is, per query head of its group, d_h rows W_UK and then d_v
//! rows W_UV. Expanded, `k_i = W_UK,i c` and `v_i = W_UV,i c`. Absorbed, the same products meet the
//! query and the output instead of every cached token:
//!
//! ```text
//! <q_i, W_UK,i c_j> = <W_UK,i^T q_i, c_j>           sum_j p_j W_UV,i c_j = W_UV,i sum_j p_j c_j
//! ```
//!
//! A key bias adds the same number to every score of a row, which softmax does not see (lse does);
//! a value bias adds itself to the output.

use super::linear::dot;
use super::{LayerError, Linear};
use crate::geometry::{Geometry, InvalidGeometry};

/// The counts and widths of an MLA or GLA layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatentWidths {
    /// Query heads.
    pub h_q: usize,
    /// Latent heads; 1 for MLA.
    pub h_c: usize,
    /// Width of one latent head.
    pub d_c: usize,
    /// Width of a key without rope, per query head.
    pub d_h: usize,
    /// Width of the rope key.
    pub d_r: usize,
    /// Width of a value, per query head.
    pub d_v: usize,
}

impl LatentWidths {
    /// The geometry in the form the layer is trained in: every query head has its own key and
    /// value. It bounds the products of the widths that the absorbed geometry does not contain.
    pub(super) fn trained(&self) -> Result<Geometry, InvalidGeometry> {
        if self.d_h == 0 {
            return Err(InvalidGeometry::Zero { what: "d_h" });
        }
        // The sum saturates into a geometry that is too large.
        Geometry::separate(self.h_q, self.h_q, self.d_h.saturating_add(self.d_r), self.d_v)
    }

    /// Query heads that one latent head serves.
    pub(super) fn group(&self) -> usize {
        self.h_q / self.h_c
    }

    /// Checks that `up` expands one latent head into the keys and values of its group.
    pub(super) fn expect_up(&self, up: &Linear) -> Result<(), LayerError> {
        up.expect("up", self.group() * (self.d_h + self.d_v), self.d_c)
    }
}

/// One latent head's view of its up-projection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Up<'a> {
    linear: &'a Linear, // [g * (d_h + d_v), d_c]
    widths: LatentWidths,
}

impl<'a> Up<'a> {
    pub(super) fn new(linear: &'a Linear, widths: LatentWidths) -> Up<'a> {
        Up { linear, widths }
    }

    /// Keys without rope and values of every head of the group, from a latent, `[d_c]`:
    /// `[g, d_h + d_v]`.
    pub(super) fn expand(&self, latent: &[f64]) -> Vec<f64> {
        self.linear.apply(latent)
    }

    /// `W_UK^T q` of the group's head `head`: `[d_h]` to `[d_c]`.
    pub(super) fn absorb(&self, head: usize, q: &[f64]) -> Vec<f64> {
        let mut absorbed = vec![0.0; self.widths.d_c];
        for (row, q) in self.rows(self.first_row(head), self.widths.d_h).zip(q) {
            for (sum, w) in absorbed.iter_mut().zip(row) {
                *sum += w * q;
            }
        }
        absorbed
    }

    /// `W_UV õ + b_UV` of the group's head `head`: `[d_c]` to `[d_v]`.
    pub(super) fn value(&self, head: usize, attended: &[f64]) -> Vec<f64> {
        let first = self.first_row(head) + self.widths.d_h;
        let products = self.rows(first, self.widths.d_v).map(|row| dot(row, attended));
        match self.linear.bias() {
            Some(bias) => products.zip(&bias[first..]).map(|(v, b)| v + b).collect(),
            None => products.collect(),
        }
    }

    fn first_row(&self, head: usize) -> usize {
        head * (self.widths.d_h + self.widths.d_v)
    }

    fn rows(&self, first: usize, count: usize) -> impl Iterator<Item = &'a [f64]> {
        let d_c = self.widths.d_c;
        self.linear.weight()[first * d_c..][..count * d_c].chunks_exact(d_c)
    }
}
