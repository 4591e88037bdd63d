//! What a machine is told whose CUDA is missing, broken or too old.

#[cfg(target_os = "linux")]
mod fake;

use grouped_attention::EngineError;
use grouped_attention_cuda::CudaBackend;

/// True if the loader finds a driver, whatever state it is in.
fn has_driver() -> bool {
    ["libcuda.so.1", "libcuda.so", "nvcuda.dll"].iter().any(|name| {
        // SAFETY: these are the names of the CUDA driver.
        unsafe { libloading::Library::new(*name) }.is_ok()
    })
}

#[test]
fn a_machine_without_a_driver_gets_an_error_that_says_so() {
    if has_driver() {
        return;
    }
    for ordinal in [0, 1, usize::MAX] {
        let error = CudaBackend::new(ordinal).unwrap_err();
        let EngineError::Unavailable { engine: "cuda", reason } = &error else {
            panic!("not said to be unavailable: {error}");
        };
        assert!(reason.contains("libcuda.so.1") || cfg!(windows), "{reason}");
        // Errors hold nothing of the driver, so they print without one.
        assert!(error.to_string().starts_with("cuda is not available: "));
        assert!(!format!("{error:?}").is_empty());
    }
}

#[test]
fn a_device_that_does_not_exist_is_an_error() {
    let error = CudaBackend::new(1 << 20).unwrap_err();
    assert!(matches!(error, EngineError::Unavailable { .. }), "{error}");
}
