//! The gated feed-forward of a Llama block.

use grouped_attention::layers::Linear;

/// `down(silu(gate(x)) * up(x))`, without biases.
#[derive(Clone, Debug)]
pub struct Mlp {
    pub(super) gate: Linear, // [F, D]
    pub(super) up: Linear,   // [F, D]
    pub(super) down: Linear, // [D, F]
}

impl Mlp {
    /// `[T, D]` to `[T, D]`.
    pub(super) fn apply(&self, x: &[f64]) -> Vec<f64> {
        let mut hidden = self.gate.apply(x);
        for (gate, up) in hidden.iter_mut().zip(self.up.apply(x)) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
        self.down.apply(&hidden)
    }
}
