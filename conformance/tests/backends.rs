//! The registry: every engine under test, one line each.
//!
//! Trials are named `engine/variant/case`; `cargo test --test backends gla/needle` filters them.
//! See [`grouped_attention_conformance::budget`] for the environment variables.

use grouped_attention::Reference;
use grouped_attention_conformance::{Registered, engine};
use grouped_attention_cpu::{CpuBackend, Kernel};
use grouped_attention_cuda::{CudaBackend, Kernels};
use std::process::ExitCode;

/// A new engine, or a new configuration of one, is one line here.
fn engines() -> Vec<Registered> {
    let mut engines = vec![
        engine("reference", || Ok(Reference::new())),
        engine("cpu", || Ok(CpuBackend::new())).sparse(),
        engine("cpu-1", || CpuBackend::with_threads(1)).sparse(),
        engine("cuda", || CudaBackend::new(0)).sparse(),
        engine("cuda-portable", || CudaBackend::with_kernels(0, Kernels::Portable)).sparse(),
        engine("cuda-naive", || CudaBackend::with_kernels(0, Kernels::Naive)).sparse(),
    ];
    // `cpu` is the best of them already; the others must not rot on machines that have a better one.
    // One that the machine cannot run is ignored, with that reason.
    for kernel in Kernel::ALL {
        let name = format!("cpu-{kernel}");
        engines.push(engine(&name, move || CpuBackend::builder().kernel(kernel).build()).sparse());
    }
    engines
}

fn main() -> ExitCode {
    grouped_attention_conformance::main(engines(), include_str!("known-failures.toml"))
}
