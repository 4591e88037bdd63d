//! Queries and cache rows that trained models computed, as inputs.
//!
//! Trained attention is not gaussian: scores are peaked at few positions, keys of neighbouring
//! bytes are alike, some channels are a hundred times larger than others. The states under
//! `corpus/states.safetensors` are those of the models in `models/` reading held-out text, in
//! bf16, from their first and their last layer; `tests/capture` makes them again.
//!
//! | tensor | shape |
//! |---|---|
//! | `{kind}.{layer}.q` | `[queries, h_q * width_k]` |
//! | `{kind}.{layer}.first` | `[tokens, h * d_k]` or `[tokens, h * s]` |
//! | `{kind}.{layer}.second` | `[tokens, h * d_v]` or `[tokens, r]` |

use crate::case::{Case, InvalidCase};
use crate::fill::{Fill, Token, TokenRow};
use grouped_attention::{Geometry, InvalidGeometry};
use safetensors::{Dtype, SafeTensors};

const FILE: &[u8] = include_bytes!("../corpus/states.safetensors");

/// Kinds of models in the file, as its tensors name them.
pub const KINDS: [&str; 4] = ["gqa", "gta", "mla", "gla"];
/// Layers of each model in the file.
pub const LAYERS: [usize; 2] = [0, 5];

/// The geometry of a model's attention.
///
/// # Errors
/// None, for the kinds above.
pub fn geometry(kind: &str) -> Result<Geometry, InvalidGeometry> {
    match kind {
        "gqa" => Geometry::gqa(8, 4, 32),
        "gta" => Geometry::gta(8, 4, 32),
        "mla" => Geometry::mla(8, 128, 16),
        _ => Geometry::gla(8, 2, 64, 16),
    }
}

/// Captured states of one layer of one model.
#[derive(Clone, Debug)]
pub(crate) struct States {
    /// `[queries][h_q, width_k]`.
    queries: Vec<Vec<f64>>,
    /// `[tokens]`.
    rows: Vec<TokenRow>,
}

impl States {
    /// The states that a case asks for, if it does: those of the model with its geometry, of the
    /// layer that the seed chooses.
    pub(crate) fn for_case(case: &Case) -> Result<Option<States>, InvalidCase> {
        if case.fill != Fill::States {
            return Ok(None);
        }
        let kind = KINDS.into_iter().find(|kind| geometry(kind) == Ok(case.geometry));
        let Some(kind) = kind else {
            let reason = format!("no model is {}", case.geometry);
            return Err(InvalidCase::States { reason });
        };
        let layer = LAYERS[(case.seed % LAYERS.len() as u64) as usize];
        States::read(FILE, kind, layer).map(Some).map_err(|reason| InvalidCase::States { reason })
    }

    fn read(file: &[u8], kind: &str, layer: usize) -> Result<States, String> {
        let file = SafeTensors::deserialize(file).map_err(|error| error.to_string())?;
        let rows = |part: &str| -> Result<Vec<Vec<f64>>, String> {
            let name = format!("{kind}.{layer}.{part}");
            let tensor = file.tensor(&name).map_err(|error| error.to_string())?;
            let width: usize = tensor.shape().iter().skip(1).product();
            if tensor.dtype() != Dtype::BF16 || width == 0 {
                return Err(format!("{name} is not rows of bf16"));
            }
            let bits = tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            let values: Vec<f64> = bits.map(|bits| half::bf16::from_bits(bits).to_f64()).collect();
            Ok(values.chunks_exact(width).map(<[f64]>::to_vec).collect())
        };
        let parts = rows("first")?.into_iter().zip(rows("second")?);
        let rows_of_both = parts.map(|(first, second)| TokenRow { first, second });
        Ok(States { queries: rows("q")?, rows: rows_of_both.collect() })
    }

    /// One query token. Where a case has more than were captured, they come round again.
    pub(crate) fn query(&self, sequence: usize, t: usize, draft: u64) -> Vec<f64> {
        self.queries[(t + 5 * sequence + 7 * draft as usize) % self.queries.len()].clone()
    }

    /// One cached token; sequences read the text from different places.
    pub(crate) fn row(&self, token: Token) -> TokenRow {
        let Token { sequence, position, draft } = token;
        self.rows[(position + 37 * sequence + 11 * draft as usize) % self.rows.len()].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_layer_was_captured() {
        for kind in KINDS {
            let row = geometry(kind).unwrap().row();
            for layer in LAYERS {
                let states = States::read(FILE, kind, layer).unwrap();
                assert_eq!((states.queries.len(), states.rows.len()), (16, 128), "{kind} {layer}");
                let TokenRow { first, second } = &states.rows[0];
                assert_eq!([first.len(), second.len()], row.parts());
                let all = states.rows.iter().flat_map(|row| row.first.iter().chain(&row.second));
                assert!(all.chain(states.queries.iter().flatten()).all(|x| x.is_finite()));
            }
        }
    }
}
