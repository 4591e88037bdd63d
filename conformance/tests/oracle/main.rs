//! The `oracle` program, run as its users run it: files in, files and an exit status out.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod attend;
mod bad_files;
mod compare;
mod engines;
mod generate;
mod layer;
mod program;
mod tensors;
