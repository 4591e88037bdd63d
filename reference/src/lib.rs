//! Decode attention for MHA, MQA, GQA, GTA, MLA and GLA, specified.
#![forbid(unsafe_code)]

pub mod cost;
mod dtype;
mod geometry;
pub mod layers;
mod norm;
mod rope;
mod sharding;

pub use dtype::{Dtype, UnknownDtype};
pub use geometry::{Geometry, InvalidGeometry, Row, Variant};
pub use norm::{InvalidNorm, RmsNorm};
pub use rope::{InvalidRope, Rope, RopeScaling, RopeStyle};
pub use sharding::{InvalidSharding, Sharding};
