//! A suite that judges attention engines against the specification.
#![forbid(unsafe_code)]

pub mod file;
