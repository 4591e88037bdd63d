//! A small language model that decodes on any engine.
//!
//! The models under `conformance/models/` are byte-level transformers, one per variant. Attention
//! runs on a [`Backend`](grouped_attention::Backend); everything else (embedding, norms,
//! projections, MLP) runs here in f64, one token after another, so that a token's numbers are the
//! same whatever else is in the step. What differs between engines, page sizes and step shapes is
//! then the attention alone, which is what the [`generate`](fn@generate) tests compare.

mod decoder;
mod draft;
mod generate;
mod mlp;
mod model;
mod sample;
mod saved;
mod session;
mod uniform;

pub use decoder::{DecodeError, Decoder, Timing};
pub use draft::prompt_lookup;
pub use generate::{Generation, Options, generate};
pub use mlp::Mlp;
pub use model::{Model, ModelError, VOCABULARY};
pub use sample::Sampler;
pub use saved::SavedRows;
pub use session::Session;
pub(crate) use uniform::Uniform;
