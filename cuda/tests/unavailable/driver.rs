//! A driver without a GPU, compiled by the tests beside it: it starts and has devices as variables of
//! the environment say. `--cfg old` leaves out the function that came last.

use std::ffi::{c_char, c_int, c_void};

fn setting(name: &str, default: c_int) -> c_int {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) $body:block)*) => {$(
        /// # Safety
        /// As the driver's function of this name.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> c_int $body
    )*};
}

functions! {
    cuInit(_flags: u32) { setting("FAKE_INIT", 0) }
    cuDriverGetVersion(version: *mut c_int) {
        unsafe { version.write(setting("FAKE_VERSION", 13000)) };
        0
    }
    cuGetErrorName(code: c_int, name: *mut *const c_char) {
        if code != 999 {
            return 1;
        }
        unsafe { name.write(c"CUDA_ERROR_UNKNOWN".as_ptr()) };
        0
    }
    cuDeviceGetCount(count: *mut c_int) {
        unsafe { count.write(setting("FAKE_DEVICES", 1)) };
        0
    }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        unsafe { device.write(ordinal) };
        0
    }
    cuDeviceGetName(name: *mut c_char, _len: c_int, _device: c_int) {
        let text = c"Fake";
        unsafe { name.copy_from(text.as_ptr(), text.to_bytes_with_nul().len()) };
        0
    }
    cuDeviceGetAttribute(value: *mut c_int, which: c_int, _device: c_int) {
        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        unsafe { value.write(if which == 75 { setting("FAKE_CAPABILITY", 9) } else { 0 }) };
        0
    }
    cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) {
        unsafe { context.write(std::ptr::dangling_mut::<u8>().cast()) };
        0
    }
    cuDevicePrimaryCtxRelease_v2(_device: c_int) { 0 }
}

macro_rules! never_called {
    ($($name:ident)*) => { functions! { $($name() { 999 })* } };
}

never_called! {
    cuCtxPushCurrent_v2 cuCtxPopCurrent_v2 cuStreamCreate cuStreamDestroy_v2 cuStreamSynchronize
    cuEventCreate cuEventDestroy_v2 cuEventRecord cuEventSynchronize cuMemAlloc_v2 cuMemFree_v2
    cuMemAllocHost_v2 cuMemFreeHost cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpy2DAsync_v2
    cuMemsetD8Async cuModuleLoadData cuModuleUnload cuModuleGetFunction cuFuncSetAttribute
    cuFuncGetAttribute cuTensorMapEncodeTiled cuOccupancyMaxActiveBlocksPerMultiprocessor
}

#[cfg(not(old))]
never_called! { cuLaunchKernelEx }
