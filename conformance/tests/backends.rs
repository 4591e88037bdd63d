//! The registry: every engine under test, one line each.
//!
//! Trials are named `engine/variant/case`; `cargo test --test backends gla/needle` filters them.
//! See [`grouped_attention_conformance::budget`] for the environment variables.

use grouped_attention::Reference;
use grouped_attention_conformance::{Registered, engine};
use grouped_attention_cuda::{CudaBackend, Kernels};
use std::process::ExitCode;

/// A new engine, or a new configuration of one, is one line here.
fn engines() -> Vec<Registered> {
    vec![
        engine("reference", || Ok(Reference::new())),
        engine("cuda", || CudaBackend::new(0)).sparse(),
        engine("cuda-naive", || CudaBackend::with_kernels(0, Kernels::Naive)).sparse(),
    ]
}

fn main() -> ExitCode {
    grouped_attention_conformance::main(engines(), include_str!("known-failures.toml"))
}
