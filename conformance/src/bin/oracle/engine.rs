//! Engines by name.

use clap::ValueEnum;
use grouped_attention::{AnyBackend, EngineError};

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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
            Engine::Cpu => open("cpu").map(Some),
            Engine::Cuda => open("cuda").map(Some),
        }
    }
}

#[cfg(feature = "engines")]
fn open(engine: &'static str) -> Result<AnyBackend, EngineError> {
    use grouped_attention_conformance::engines::{self, OpenError};
    engines::open(engine).map_err(|error| match error {
        OpenError::Engine(error) => error,
        other => EngineError::Unavailable { engine, reason: other.to_string() },
    })
}

#[cfg(not(feature = "engines"))]
fn open(engine: &'static str) -> Result<AnyBackend, EngineError> {
    let reason = "this program was built without the feature engines".to_owned();
    Err(EngineError::Unavailable { engine, reason })
}
