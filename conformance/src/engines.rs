//! This project's engines by name, for programs that choose at run time.

use grouped_attention::{AnyBackend, EngineError, Reference};
use grouped_attention_cpu::CpuBackend;
use grouped_attention_cuda::CudaBackend;

/// Names that [`open`] knows.
pub const NAMES: [&str; 3] = ["reference", "cpu", "cuda"];

/// Opens an engine with its defaults: the CPU engine on all cores, CUDA on the first device.
///
/// # Errors
/// An unknown name; an engine that cannot run on this machine.
pub fn open(name: &str) -> Result<AnyBackend, OpenError> {
    match name {
        "reference" => Ok(Box::new(Reference::new())),
        "cpu" => Ok(Box::new(CpuBackend::new())),
        "cuda" => Ok(Box::new(CudaBackend::new(0)?)),
        _ => Err(OpenError::Unknown { name: name.to_owned() }),
    }
}

/// Why there is no such engine.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No engine has this name.
    #[error("unknown engine {name:?}: expected {}", NAMES.join(", "))]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// The engine cannot run here.
    #[error(transparent)]
    Engine(#[from] EngineError),
}
