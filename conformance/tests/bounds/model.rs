//! An engine of which every rounding is written out.

use crate::inputs::Inputs;
use grouped_attention::{Arithmetic, Dtype};
use grouped_attention_conformance::noise::Noise;
use std::f64::consts::{LN_2, LOG2_E};

/// What the model does; [`Model::arithmetic`] is what it should declare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    /// Products that one rounding of a sum absorbs.
    pub(crate) step: usize,
    /// Sums drop the bits that do not fit.
    pub(crate) truncates: bool,
    /// Format of probabilities as they meet values; f32 keeps them.
    pub(crate) operand: Dtype,
    /// Positions per update of the running maximum.
    pub(crate) tile: usize,
    /// Defect: the normaliser sums probabilities after they are rounded `[S-7.10]`.
    pub(crate) sums_rounded: bool,
    pub(crate) output: Dtype,
}

/// Relative error of the model's exponential.
const EXP: f64 = 1.0 / (1 << 22) as f64;

impl Model {
    pub(crate) const F32: Model = Model {
        step: 1,
        truncates: false,
        operand: Dtype::F32,
        tile: 64,
        sums_rounded: false,
        output: Dtype::F32,
    };

    pub(crate) const BF16: Model = Model {
        step: 16,
        truncates: true,
        operand: Dtype::Bf16,
        output: Dtype::Bf16,
        ..Model::F32
    };

    pub(crate) fn arithmetic(&self) -> Arithmetic {
        let base = match self.operand {
            Dtype::F32 => Arithmetic::f32(EXP, self.tile),
            operand => Arithmetic::matrix(operand, self.step, EXP, self.tile),
        };
        let unit = Dtype::F32.unit_roundoff();
        let accumulation = if self.truncates { 2.0 * unit } else { unit };
        Arithmetic { step: self.step, accumulation, truncates: self.truncates, ..base }
    }

    fn add(&self, sum: f64, block: f64) -> f64 {
        if self.truncates { truncated(sum + block) } else { f32(sum + block) }
    }

    /// A dot product on top of `sum`, `step` exact products at a time.
    fn dot(&self, sum: f64, products: &[f64]) -> f64 {
        products.chunks(self.step).fold(sum, |sum, block| self.add(sum, block.iter().sum()))
    }

    /// `o` `[rows, d_v]` and `lse` `[rows]`.
    pub(crate) fn attend(&self, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
        let mut noise = Noise::new(7, &[2]);
        let mut o = Vec::new();
        let mut lse = Vec::new();
        for query in inputs.q.chunks_exact(inputs.d_k) {
            let (mut row, log) = self.row(inputs, query, &mut noise);
            o.append(&mut row);
            lse.push(log);
        }
        (o, lse)
    }

    fn row(&self, inputs: &Inputs, query: &[f64], noise: &mut Noise) -> (Vec<f64>, f64) {
        let factor = f32(f32(inputs.scale) * f32(LOG2_E));
        let scores: Vec<f64> = inputs
            .k
            .chunks_exact(inputs.d_k)
            .map(|key| key.iter().zip(query).map(|(k, q)| k * q).collect::<Vec<f64>>())
            .map(|products| f32(self.dot(0.0, &products) * factor))
            .collect();
        let mut exp2 = |x: f64| f32(x.exp2() * (1.0 + 0.7 * EXP * noise.sign()));
        let (mut max, mut sum) = (f64::NEG_INFINITY, 0.0);
        let mut o = vec![0.0; inputs.d_v];
        let tiles = scores.chunks(self.tile).zip(inputs.v.chunks(self.tile * inputs.d_v));
        for (scores, values) in tiles {
            let new = scores.iter().copied().fold(max, f64::max);
            if new > max && max.is_finite() {
                let rescale = exp2(f32(max - new));
                sum = f32(sum * rescale);
                o.iter_mut().for_each(|o| *o = f32(*o * rescale));
            }
            max = new;
            let p: Vec<f64> = scores.iter().map(|x| exp2(f32(x - max))).collect();
            let rounded: Vec<f64> = p.iter().map(|&p| self.operand.round(p)).collect();
            for &p in if self.sums_rounded { &rounded } else { &p } {
                sum = f32(sum + p);
            }
            for (column, o) in o.iter_mut().enumerate() {
                let rows = values.chunks_exact(inputs.d_v);
                let products: Vec<f64> =
                    rows.zip(&rounded).map(|(row, p)| p * row[column]).collect();
                *o = self.dot(*o, &products);
            }
        }
        let inverse = f32(1.0 / sum);
        let o = o.into_iter().map(|o| self.output.round(f32(o * inverse))).collect();
        (o, f32(f32(max * f32(LN_2)) + f32(sum.ln())))
    }
}

pub(crate) fn f32(x: f64) -> f64 {
    Dtype::F32.round(x)
}

/// The f32 number next to `x` on the side of 0.
pub(crate) fn truncated(x: f64) -> f64 {
    let near = x as f32;
    let over = f64::from(near).abs() > x.abs();
    f64::from(if over { f32::from_bits(near.to_bits() - 1) } else { near })
}
