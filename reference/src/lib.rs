//! Decode attention for MHA, MQA, GQA, GTA, MLA and GLA, specified.
#![forbid(unsafe_code)]

mod dtype;
mod geometry;
pub mod layers;
mod norm;
mod rope;

pub use dtype::{Dtype, UnknownDtype};
pub use geometry::{Geometry, InvalidGeometry, Row, Variant};
pub use norm::{InvalidNorm, RmsNorm};
pub use rope::{InvalidRope, Rope, RopeScaling, RopeStyle};
