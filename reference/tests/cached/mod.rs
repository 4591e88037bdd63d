//! Attention over cache rows as a reader of the specification writes it, for tests of layers: the
//! layer's two halves then stand on nothing that the crate computes between them.

use grouped_attention::Row;
use grouped_attention::layers::{Layer, Rows};

/// Attention over cache rows, written from `[S-3.1, S-3.2]` with the causal mask of a whole
/// sequence: `[B, L, h_q, width V]`.
pub(crate) fn attend(layer: &Layer, queries: &[f64], rows: &Rows, length: usize) -> Vec<f64> {
    let geometry = layer.geometry();
    let (h_q, width_k, width_v) = (geometry.h_q(), geometry.width_k(), geometry.width_v());
    let heads = geometry.heads();
    let key = |token: usize, head: usize| match (rows, geometry.row()) {
        (Rows::Separate { k, .. }, Row::Separate { d_k, .. }) => {
            k[(token * heads + head) * d_k..][..d_k].to_vec()
        }
        (Rows::Tied { state, rope }, Row::Tied { s, n, r, .. }) => {
            [&state[(token * heads + head) * s..][..n], &rope[token * r..][..r]].concat()
        }
        _ => panic!("rows of the wrong kind"),
    };
    let value = |token: usize, head: usize| match rows {
        Rows::Separate { v: values, .. } | Rows::Tied { state: values, .. } => {
            &values[(token * heads + head) * width_v..][..width_v]
        }
    };
    let mut attended = Vec::new();
    for (index, query) in queries.chunks_exact(width_k).enumerate() {
        let (token, head) = (index / h_q, geometry.cached_head(index % h_q));
        let visible = token / length * length..=token;
        let weights: Vec<f64> = visible
            .clone()
            .map(|j| key(j, head).iter().zip(query).map(|(k, q)| k * q).sum::<f64>())
            .map(|score| (layer.scale() * score).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        attended.extend((0..width_v).map(|e| {
            let products = visible.clone().zip(&weights).map(|(j, p)| p * value(j, head)[e]);
            products.sum::<f64>() / sum
        }));
    }
    attended
}
