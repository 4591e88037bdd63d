//! Decode attention for MHA, MQA, GQA, GTA, MLA and GLA, specified.
#![forbid(unsafe_code)]

mod dtype;
mod geometry;

pub use dtype::{Dtype, UnknownDtype};
pub use geometry::{Geometry, InvalidGeometry, Row, Variant};
