//! The CUDA driver: its functions, and what this crate needs of their types.

use crate::abi::TensorMap;
use crate::error::{DriverError, unavailable};
use crate::library::{functions, open};
use grouped_attention::EngineError;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// Names under which the driver is installed.
const LIBRARIES: &[&str] =
    if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// Oldest driver interface accepted: the first with `cuLaunchKernelEx` and tensor maps.
const OLDEST_VERSION: i32 = 12000;

/// An opaque handle of the driver: a context, stream, module, function, event or graph.
pub(crate) type Handle = *mut c_void;

/// Address in a device's memory.
pub(crate) type Address = u64;

/// `CUdevice_attribute`, the few that are asked for.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Attribute {
    Multiprocessors = 16,
    CapabilityMajor = 75,
    CapabilityMinor = 76,
    SharedMemoryPerBlock = 97,
}

/// `CUfunction_attribute`: dynamic shared memory that a launch may ask for.
pub(crate) const MAX_DYNAMIC_SHARED_MEMORY: c_int = 8;
/// `CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK`: the launch bound.
pub(crate) const MAX_THREADS: c_int = 0;
/// `CU_STREAM_NON_BLOCKING`: does not wait for the legacy default stream.
pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
pub(crate) const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_MEMORYTYPE_DEVICE`.
pub(crate) const MEMORY_DEVICE: c_uint = 2;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
pub(crate) const LAUNCH_PROGRAMMATIC_SERIALIZATION: c_uint = 6;

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LaunchConfig {
    pub(crate) grid: [c_uint; 3],
    pub(crate) block: [c_uint; 3],
    pub(crate) shared_bytes: c_uint,
    pub(crate) stream: Handle,
    pub(crate) attributes: *mut LaunchAttribute,
    pub(crate) attribute_count: c_uint,
}
const _: () = assert!(size_of::<LaunchConfig>() == 56);

/// `CUlaunchAttribute`: an id and a union of 64 bytes.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LaunchAttribute {
    pub(crate) id: c_uint,
    pub(crate) padding: c_uint,
    pub(crate) value: [u64; 8],
}
const _: () = assert!(size_of::<LaunchAttribute>() == 72);

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Copy2d {
    pub(crate) from_x: usize,
    pub(crate) from_y: usize,
    pub(crate) from_memory: c_uint,
    pub(crate) from_host: *const c_void,
    pub(crate) from_device: Address,
    pub(crate) from_array: Handle,
    pub(crate) from_pitch: usize,
    pub(crate) to_x: usize,
    pub(crate) to_y: usize,
    pub(crate) to_memory: c_uint,
    pub(crate) to_host: *mut c_void,
    pub(crate) to_device: Address,
    pub(crate) to_array: Handle,
    pub(crate) to_pitch: usize,
    pub(crate) width_bytes: usize,
    pub(crate) height: usize,
}
const _: () = assert!(size_of::<Copy2d>() == 128);

functions! {
    /// The driver's functions, by the versioned names that stay as they are once published.
    Api {
        init = cuInit(flags: c_uint);
        driver_version = cuDriverGetVersion(version: *mut c_int);
        error_name = cuGetErrorName(code: c_int, name: *mut *const c_char);
        device_count = cuDeviceGetCount(count: *mut c_int);
        device_get = cuDeviceGet(device: *mut c_int, ordinal: c_int);
        device_name = cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int);
        device_attribute = cuDeviceGetAttribute(value: *mut c_int, which: c_int, device: c_int);
        context_retain = cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int);
        context_release = cuDevicePrimaryCtxRelease_v2(device: c_int);
        context_push = cuCtxPushCurrent_v2(context: Handle);
        context_pop = cuCtxPopCurrent_v2(context: *mut Handle);
        stream_create = cuStreamCreate(stream: *mut Handle, flags: c_uint);
        stream_destroy = cuStreamDestroy_v2(stream: Handle);
        stream_synchronize = cuStreamSynchronize(stream: Handle);
        event_create = cuEventCreate(event: *mut Handle, flags: c_uint);
        event_destroy = cuEventDestroy_v2(event: Handle);
        event_record = cuEventRecord(event: Handle, stream: Handle);
        event_synchronize = cuEventSynchronize(event: Handle);
        memory_allocate = cuMemAlloc_v2(address: *mut Address, bytes: usize);
        memory_free = cuMemFree_v2(address: Address);
        host_allocate = cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize);
        host_free = cuMemFreeHost(pointer: *mut c_void);
        copy_to_device = cuMemcpyHtoDAsync_v2(
            to: Address, from: *const c_void, bytes: usize, stream: Handle,
        );
        copy_to_host = cuMemcpyDtoHAsync_v2(
            to: *mut c_void, from: Address, bytes: usize, stream: Handle,
        );
        copy_2d = cuMemcpy2DAsync_v2(copy: *const Copy2d, stream: Handle);
        memory_set = cuMemsetD8Async(to: Address, value: u8, bytes: usize, stream: Handle);
        module_load = cuModuleLoadData(module: *mut Handle, image: *const c_void);
        module_unload = cuModuleUnload(module: Handle);
        module_function = cuModuleGetFunction(
            function: *mut Handle, module: Handle, name: *const c_char,
        );
        function_set_attribute = cuFuncSetAttribute(
            function: Handle, attribute: c_int, value: c_int,
        );
        function_attribute = cuFuncGetAttribute(
            value: *mut c_int, attribute: c_int, function: Handle,
        );
        tensor_map_encode = cuTensorMapEncodeTiled(
            map: *mut TensorMap,
            element: c_uint,
            rank: c_uint,
            address: *mut c_void,
            extents: *const u64,
            strides: *const u64,
            copied: *const c_uint,
            element_strides: *const c_uint,
            interleave: c_uint,
            swizzle: c_uint,
            promotion: c_uint,
            fill: c_uint,
        );
        occupancy = cuOccupancyMaxActiveBlocksPerMultiprocessor(
            blocks: *mut c_int, function: Handle, threads: c_int, shared_bytes: usize,
        );
        launch = cuLaunchKernelEx(
            config: *const LaunchConfig,
            function: Handle,
            arguments: *mut *mut c_void,
            extra: *mut *mut c_void,
        );
    }
}

impl Api {
    /// A status code as a result; the name is fetched now, while the library is at hand.
    pub(crate) fn check(&self, call: &'static str, code: c_int) -> Result<(), DriverError> {
        if code == 0 {
            return Ok(());
        }
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: `text` is a place for one pointer.
        let known = unsafe { (self.error_name)(code, &raw mut text) } == 0 && !text.is_null();
        let name = if known {
            // SAFETY: on success the driver has given a string that lives as long as the library.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        } else {
            "an unknown error".to_owned()
        };
        Err(DriverError { call, code, name })
    }

    /// Version of the driver's interface, as 1000 major + 10 minor.
    pub(crate) fn version(&self) -> Result<i32, DriverError> {
        let mut version = 0;
        // SAFETY: `version` is a place for one integer.
        let code = unsafe { (self.driver_version)(&raw mut version) };
        self.check("cuDriverGetVersion", code)?;
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
    // SAFETY: the library is the CUDA driver, and the table above declares its functions.
    let api = unsafe { Api::resolve(library) }
        .map_err(|symbol| format!("the NVIDIA driver is too old: it has no {symbol}"))?;
    let version = api.version().map_err(|error| error.to_string())?;
    check_version(version)?;
    // SAFETY: 0 is the only legal value of the flags.
    let code = unsafe { (api.init)(0) };
    api.check("cuInit", code).map_err(|error| match error.code {
        100 => "no CUDA device was found".to_owned(),
        _ => error.to_string(),
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
