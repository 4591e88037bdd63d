//! Chapter 7 against engines that are models: every rounding of theirs is written out, so that what
//! they declare is what they do. A bound must hold for the right one and fail for one that declares
//! too much.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod inputs;
mod merge;
mod model;
mod rotation;
mod rows;
mod sums;
mod tight;
mod verdict;
