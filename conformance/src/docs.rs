//! The Rust blocks of the book, compiled and run as documentation tests. `.ci/book` looks here for
//! every page that has one.

/// docs/guide/serving.md
#[doc = include_str!("../../docs/guide/serving.md")]
mod serving {}

/// docs/guide/backend.md
#[doc = include_str!("../../docs/guide/backend.md")]
mod backend {}
