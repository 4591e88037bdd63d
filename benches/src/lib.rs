//! Benchmarks of the engines, checked before they are timed, and the rooflines beside them.

pub mod results;
pub mod roofline;
