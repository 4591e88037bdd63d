//! A linear map with an optional bias, in f64 `[S-5.10]`.

use super::LayerError;

/// `y = W x + b`, W of shape `[outputs, inputs]` row-major, as PyTorch stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    inputs: usize,
    outputs: usize,
    weight: Vec<f64>,       // [outputs, inputs]
    bias: Option<Vec<f64>>, // [outputs]
}

impl Linear {
    /// A map from `inputs` to `outputs` elements. `outputs` may be 0: the rope key of a layer
    /// without rope.
    ///
    /// # Errors
    /// `inputs` of 0; a weight or bias of another size.
    pub fn new(
        inputs: usize,
        outputs: usize,
        weight: Vec<f64>,
        bias: Option<Vec<f64>>,
    ) -> Result<Linear, LayerError> {
        if inputs == 0 {
            return Err(LayerError::Size { what: "inputs", expected: 1, got: 0 });
        }
        if outputs.checked_mul(inputs) != Some(weight.len()) {
            return Err(LayerError::Shape {
                tensor: "weight".to_owned(),
                expected: vec![outputs, inputs],
                got: vec![weight.len()],
            });
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != outputs) {
            return Err(LayerError::Shape {
                tensor: "bias".to_owned(),
                expected: vec![outputs],
                got: vec![bias.len()],
            });
        }
        Ok(Linear { inputs, outputs, weight, bias })
    }

    /// Elements in.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Elements out.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `[outputs, inputs]`, row-major.
    pub fn weight(&self) -> &[f64] {
        &self.weight
    }

    /// `[outputs]`.
    pub fn bias(&self) -> Option<&[f64]> {
        self.bias.as_deref()
    }

    /// The error of a map that should have been `[outputs, inputs]`.
    pub(super) fn expect(
        &self,
        tensor: &'static str,
        outputs: usize,
        inputs: usize,
    ) -> Result<(), LayerError> {
        if (self.outputs, self.inputs) == (outputs, inputs) {
            return Ok(());
        }
        Err(LayerError::Shape {
            tensor: tensor.to_owned(),
            expected: vec![outputs, inputs],
            got: vec![self.outputs, self.inputs],
        })
    }

    /// `[T, inputs]` to `[T, outputs]`. A token's result does not depend on its neighbours.
    ///
    /// # Panics
    /// If `x` is not a whole number of vectors of `inputs` elements.
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        assert!(x.len().is_multiple_of(self.inputs), "{} in vectors of {}", x.len(), self.inputs);
        let mut y = vec![0.0; x.len() / self.inputs * self.outputs];
        // Rows outside, tokens inside: the weights, which are more, are read once.
        for (output, row) in self.weight.chunks_exact(self.inputs).enumerate() {
            let bias = self.bias.as_ref().map_or(0.0, |bias| bias[output]);
            for (t, x) in x.chunks_exact(self.inputs).enumerate() {
                y[t * self.outputs + output] = dot(row, x) + bias;
            }
        }
        y
    }
}

/// `<a, b>`, in eight interleaved chains: a single one would wait for each sum in turn.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut chains = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((chain, a), b) in chains.iter_mut().zip(a).zip(b) {
            *chain += a * b;
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    chains.iter().sum::<f64>() + rest
}
