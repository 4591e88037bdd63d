//! The CUDA driver: the functions that this crate calls, and how.

use crate::error::{DriverError, unavailable};
use crate::library::{Binding, functions, open};
use cudarc::driver::sys::CUresult;
use grouped_attention::EngineError;
use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

/// Names under which the driver is installed.
const LIBRARIES: &[&str] =
    if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// Oldest driver interface accepted: the first with `cuLaunchKernelEx` and tensor maps.
const OLDEST_VERSION: i32 = 12000;

/// Address in a device's memory.
pub(crate) type Address = u64;

functions! {
    /// The driver's functions, by the versioned names that stay as they are once published.
    Api {
        cuInit,
        cuDriverGetVersion,
        cuGetErrorName,
        cuDeviceGetCount,
        cuDeviceGet,
        cuDeviceGetName,
        cuDeviceGetAttribute,
        cuDevicePrimaryCtxRetain,
        cuDevicePrimaryCtxRelease_v2,
        cuCtxPushCurrent_v2,
        cuCtxPopCurrent_v2,
        cuStreamCreate,
        cuStreamDestroy_v2,
        cuStreamSynchronize,
        cuEventCreate,
        cuEventDestroy_v2,
        cuEventRecord,
        cuEventSynchronize,
        cuMemAlloc_v2,
        cuMemFree_v2,
        cuMemAllocHost_v2,
        cuMemFreeHost,
        cuMemcpyHtoDAsync_v2,
        cuMemcpyDtoHAsync_v2,
        cuMemcpy2DAsync_v2,
        cuMemsetD8Async,
        cuModuleLoadData,
        cuModuleUnload,
        cuModuleGetFunction,
        cuFuncSetAttribute,
        cuFuncGetAttribute,
        cuTensorMapEncodeTiled,
        cuOccupancyMaxActiveBlocksPerMultiprocessor,
        cuLaunchKernelEx,
    }
}

/// Calls a function of the driver, by an [`Api`] or for a device, and turns its status into a
/// result. Unsafe as the function is.
macro_rules! call {
    ($caller:expr, $name:ident($($argument:expr),* $(,)?)) => {
        $caller.call(stringify!($name), |api: &$crate::driver::Api| {
            $crate::library::status!(cudarc::driver::sys, api, $name($($argument),*))
        })
    };
}
pub(crate) use call;

impl Api {
    /// Makes a call and turns its status into a result; the status' name is fetched now, while the
    /// library is at hand.
    ///
    /// # Errors
    /// Any status but success.
    pub(crate) fn call(
        &self,
        call: &'static str,
        status: impl FnOnce(&Api) -> c_int,
    ) -> Result<(), DriverError> {
        match status(self) {
            0 => Ok(()),
            code => Err(DriverError { call, code, name: self.name(code) }),
        }
    }

    /// The name of a status, known to cudarc or not: its binding would take known ones only.
    fn name(&self, code: c_int) -> String {
        type ErrorName = unsafe fn(c_int, *mut *const c_char) -> CUresult;
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: in C any number is a status, and `text` is a place for one pointer.
        let found = unsafe { ErrorName::call(self.cuGetErrorName, (code, &raw mut text)) };
        if found != 0 || text.is_null() {
            return "an unknown error".to_owned();
        }
        // SAFETY: on success the driver has given a string that lives as long as the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// Version of the driver's interface, as 1000 major + 10 minor.
    pub(crate) fn version(&self) -> Result<i32, DriverError> {
        let mut version = 0;
        // SAFETY: `version` is a place for one integer.
        unsafe { call!(self, cuDriverGetVersion(&raw mut version)) }?;
        Ok(version)
    }
}

/// The driver, loaded and initialised once per process.
///
/// # Errors
/// [`EngineError::Unavailable`]: no driver, one that is too old, or one that does not start.
pub(crate) fn driver() -> Result<&'static Api, EngineError> {
    static DRIVER: OnceLock<Result<Api, String>> = OnceLock::new();
    DRIVER.get_or_init(|| load(LIBRARIES)).as_ref().map_err(unavailable)
}

fn load(libraries: &[&str]) -> Result<Api, String> {
    // SAFETY: these are the names of the CUDA driver.
    let library = unsafe { open(libraries) }
        .map_err(|tried| format!("the NVIDIA driver's library was not found (tried {tried})"))?;
    let api = Api::resolve(library)
        .map_err(|symbol| format!("the NVIDIA driver is too old: it has no {symbol}"))?;
    let version = api.version().map_err(|error| error.to_string())?;
    check_version(version)?;
    // SAFETY: 0 is the only legal value of the flags.
    unsafe { call!(api, cuInit(0)) }.map_err(|error| {
        if error.is(CUresult::CUDA_ERROR_NO_DEVICE) {
            "no CUDA device was found".to_owned()
        } else {
            error.to_string()
        }
    })?;
    Ok(api)
}

fn check_version(version: i32) -> Result<(), String> {
    if version >= OLDEST_VERSION {
        return Ok(());
    }
    let text = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
    Err(format!(
        "the NVIDIA driver is too old: it supports CUDA {}, and {} is needed",
        text(version),
        text(OLDEST_VERSION)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        let reason = load(&["libno-such-driver.so.1"]).unwrap_err();
        assert!(reason.contains("libno-such-driver.so.1"), "{reason}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_driver_without_a_function_is_too_old() {
        let reason = load(&["libc.so.6"]).unwrap_err();
        assert_eq!(reason, "the NVIDIA driver is too old: it has no cuInit");
    }

    #[test]
    fn old_drivers_are_refused_by_version() {
        assert_eq!(check_version(12080), Ok(()));
        assert_eq!(
            check_version(11080).unwrap_err(),
            "the NVIDIA driver is too old: it supports CUDA 11.8, and 12.0 is needed"
        );
    }
}
