//! Engines by name.

use clap::ValueEnum;
use grouped_attention::{AnyBackend, EngineError};

/// Who computes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Engine {
    /// The definition, in f64.
    Reference,
    /// This project's engine for CPUs.
    Cpu,
    /// This project's engine for NVIDIA GPUs.
    Cuda,
}

impl Engine {
    /// The engine, or none for the definition itself, which rounds nothing.
    pub(crate) fn start(self) -> Result<Option<AnyBackend>, EngineError> {
        match self {
            Engine::Reference => Ok(None),
            Engine::Cpu => unavailable("cpu"),
            Engine::Cuda => unavailable("cuda"),
        }
    }
}

fn unavailable(engine: &'static str) -> Result<Option<AnyBackend>, EngineError> {
    let reason = "this program was built without it".to_owned();
    Err(EngineError::Unavailable { engine, reason })
}
