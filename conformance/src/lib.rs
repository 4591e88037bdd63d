//! grouped-attention-conformance
#![forbid(unsafe_code)]

pub mod engines;
pub mod lm;
pub mod serve;
