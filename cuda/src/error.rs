//! What the driver and the compiler answer, as values that hold nothing of either library.
//!
//! A driver error is turned into text at once, while the library is known to be loaded: printing one
//! later must not need it, as printing cudarc's `DriverError` does.

use cudarc::driver::sys::CUresult;
use grouped_attention::EngineError;
use std::fmt;

/// The engine's name in errors and identities.
pub(crate) const ENGINE: &str = "cuda";

/// Results after which the device's context answers every call with the same one, so that nothing but
/// a new process helps.
const STICKY: [CUresult; 11] = [
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
];

/// A call into the driver that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DriverError {
    pub(crate) call: &'static str,
    pub(crate) code: i32,
    pub(crate) name: String,
}

impl DriverError {
    /// True if the call answered this; codes that cudarc does not know are none of its results.
    pub(crate) fn is(&self, result: CUresult) -> bool {
        self.code == result as i32
    }

    /// True if the device will answer nothing any more.
    pub(crate) fn is_sticky(&self) -> bool {
        STICKY.iter().any(|&result| self.is(result))
    }

    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.is(CUresult::CUDA_ERROR_OUT_OF_MEMORY)
    }
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed with {} ({})", self.call, self.name, self.code)
    }
}

impl From<DriverError> for EngineError {
    fn from(error: DriverError) -> EngineError {
        EngineError::Device { message: error.to_string(), lost: error.is_sticky() }
    }
}

/// The engine cannot run here.
pub(crate) fn unavailable(reason: impl Into<String>) -> EngineError {
    EngineError::Unavailable { engine: ENGINE, reason: reason.into() }
}

/// A failure that leaves the backend as it was.
pub(crate) fn failed(message: impl Into<String>) -> EngineError {
    EngineError::Device { message: message.into(), lost: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i32) -> DriverError {
        DriverError { call: "cuMemAlloc_v2", code, name: "CUDA_ERROR".into() }
    }

    #[test]
    fn only_sticky_codes_lose_the_backend() {
        assert!(error(700).is_sticky() && error(719).is_sticky());
        assert!(!error(1).is_sticky() && !error(2).is_sticky() && !error(4242).is_sticky());
        let EngineError::Device { message, lost } = error(700).into() else {
            panic!("not a device error")
        };
        assert!(lost);
        assert_eq!(message, "cuMemAlloc_v2 failed with CUDA_ERROR (700)");
    }
}
