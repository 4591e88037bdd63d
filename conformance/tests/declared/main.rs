//! Declared arithmetics against models that do what they declare: matrix instructions that truncate
//! or round, probabilities in each format, tiles of any size. The bounds must hold for a right one,
//! come near to what it needs, and fail for one that declares too much.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod inputs;
mod model;
mod rows;
