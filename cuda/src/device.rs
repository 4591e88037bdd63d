//! A device: its primary context, what is known of it, and the one way to call the driver for it.

use crate::driver::{Address, Api, call, driver};
use crate::error::{DriverError, unavailable};
use crate::hopper::{MapShape, NO_MAP};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUresult, CUtensorMap, CUtensorMapDataType,
    CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion, CUtensorMapSwizzle,
};
use grouped_attention::EngineError;
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that the memory of a device brings a multiprocessor in a cycle, by its clocks, from which it is fast for
/// what the multiprocessor does with them: an H100 (HBM3) has 12.8, an H200 18.8.
const FAST_MEMORY: f64 = 16.0;

/// One CUDA device. Everything that lives on it keeps it.
pub(crate) struct Device {
    api: &'static Api,
    ordinal: usize,
    device: CUdevice,
    context: CUcontext,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    shared_bytes: usize,
    fast_memory: bool,
    driver_version: i32,
    /// Set by an error after which the context answers nothing; see [`DriverError::is_sticky`].
    lost: AtomicBool,
}

// SAFETY: the only field that is not Send by itself is the context's handle, which the driver lets
// any thread use.
unsafe impl Send for Device {}
// SAFETY: as above; the driver synchronises calls on one context itself.
unsafe impl Sync for Device {}

impl Device {
    /// Opens a device by its number and retains its primary context, the one that other CUDA
    /// libraries of the process use.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] where there is no driver or no such device.
    pub(crate) fn open(ordinal: usize) -> Result<Arc<Device>, EngineError> {
        let api = driver()?;
        let mut count = 0;
        // SAFETY: `count` is a place for one integer.
        unsafe { call!(api, cuDeviceGetCount(&raw mut count)) }?;
        let number = c_int::try_from(ordinal).ok().filter(|number| *number < count);
        let Some(number) = number else {
            return Err(unavailable(match count {
                0 => "no CUDA device was found".to_owned(),
                _ => format!("there is no device {ordinal}: {count} were found"),
            }));
        };
        let mut device = 0;
        // SAFETY: `device` is a place for one integer.
        unsafe { call!(api, cuDeviceGet(&raw mut device, number)) }?;
        let attribute = |which| attribute(api, device, which);
        let capability = (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let multiprocessors =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let memory_clock = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let memory_bits =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        let clock = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
        let per_cycle = bytes_per_cycle(memory_clock, memory_bits, clock, multiprocessors);
        let (name, driver_version) = (name(api, device)?, api.version()?);
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: `context` is a place for one handle; it is released in `drop`.
        unsafe { call!(api, cuDevicePrimaryCtxRetain(&raw mut context, device)) }?;
        Ok(Arc::new(Device {
            api,
            ordinal,
            device,
            context,
            name,
            capability,
            multiprocessors: multiprocessors.unsigned_abs() as usize,
            shared_bytes: shared_bytes.unsigned_abs() as usize,
            fast_memory: per_cycle >= FAST_MEMORY,
            driver_version,
            lost: AtomicBool::new(false),
        }))
    }

    /// Calls the driver with this device's context current, and puts back whichever was.
    ///
    /// # Errors
    /// What the call answers; at once where the device was lost before.
    pub(crate) fn call(
        &self,
        name: &'static str,
        status: impl FnOnce(&Api) -> c_int,
    ) -> Result<(), DriverError> {
        if self.lost.load(Ordering::Relaxed) {
            let code = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS as c_int;
            let earlier = "an earlier error that lost the device".to_owned();
            return Err(DriverError { call: name, code, name: earlier });
        }
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { call!(self.api, cuCtxPushCurrent_v2(self.context)) }?;
        let result = self.api.call(name, status);
        let mut popped: CUcontext = std::ptr::null_mut();
        // SAFETY: `popped` is a place for one handle, and what is popped was pushed above.
        let _ = unsafe { call!(self.api, cuCtxPopCurrent_v2(&raw mut popped)) };
        if let Err(error) = &result
            && error.is_sticky()
        {
            self.lost.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Memory on the device, not initialised.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`], or a failing device.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<Address, EngineError> {
        let mut address = 0;
        // SAFETY: `address` is a place for one address; the driver refuses a size of 0.
        match unsafe { call!(self, cuMemAlloc_v2(&raw mut address, bytes.max(1))) } {
            Ok(()) => Ok(address),
            Err(error) if error.is_out_of_memory() => Err(EngineError::OutOfMemory { bytes }),
            Err(error) => Err(error.into()),
        }
    }

    /// A tensor map of one part of a cache, for the swizzle that kernels read.
    ///
    /// # Errors
    /// A part that the copy engine cannot address.
    pub(crate) fn tensor_map(&self, shape: &MapShape) -> Result<CUtensorMap, DriverError> {
        let mut map = NO_MAP;
        let element_strides = [1; 5];
        let address = std::ptr::with_exposed_provenance_mut(shape.address as usize);
        // SAFETY: all arrays have the rank's five entries, strides one fewer; the driver only writes
        // the map and reads no device memory.
        unsafe {
            call!(
                self,
                cuTensorMapEncodeTiled(
                    &raw mut map,
                    CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
                    5,
                    address,
                    shape.extents.as_ptr(),
                    shape.strides.as_ptr(),
                    shape.copied.as_ptr(),
                    element_strides.as_ptr(),
                    CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                    CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            )
        }?;
        Ok(map)
    }

    /// Number of the device.
    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Compute capability, major and minor.
    pub(crate) fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Multiprocessors.
    pub(crate) fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Whether memory brings a multiprocessor what it needs about as fast as that uses it up.
    pub(crate) fn has_fast_memory(&self) -> bool {
        self.fast_memory
    }

    /// Shared memory that one block may ask for.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// Version of the driver's interface, as 1000 major + 10 minor.
    pub(crate) fn driver_version(&self) -> i32 {
        self.driver_version
    }
}

/// Bytes of memory a multiprocessor and cycle: clocks in kHz, the memory's of which two transfers come, and the
/// width of its bus in bits. A clock that the driver does not say makes it 0.
fn bytes_per_cycle(memory_clock: i32, memory_bits: i32, clock: i32, multiprocessors: i32) -> f64 {
    let cycles = f64::from(clock) * f64::from(multiprocessors);
    if cycles <= 0.0 {
        return 0.0;
    }
    2.0 * f64::from(memory_clock) * f64::from(memory_bits / 8) / cycles
}

fn attribute(api: &Api, device: CUdevice, which: CUdevice_attribute) -> Result<i32, DriverError> {
    let mut value = 0;
    // SAFETY: `value` is a place for one integer.
    unsafe { call!(api, cuDeviceGetAttribute(&raw mut value, which, device)) }?;
    Ok(value)
}

fn name(api: &Api, device: CUdevice) -> Result<String, DriverError> {
    let mut text: [c_char; 128] = [0; 128];
    // SAFETY: `text` has room for as many characters as are said.
    unsafe { call!(api, cuDeviceGetName(text.as_mut_ptr(), 127, device)) }?;
    // SAFETY: the last of the characters was 0 before and was not offered to the driver.
    Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the context was retained once, and nothing that uses it outlives `self`.
        let _ = unsafe { call!(self.api, cuDevicePrimaryCtxRelease_v2(self.device)) };
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(f, "{} (cuda:{}, sm_{major}{minor})", self.name, self.ordinal)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_h200_has_fast_memory_and_an_h100_has_not() {
        let h100 = bytes_per_cycle(2_619_000, 5120, 1_980_000, 132);
        let h200 = bytes_per_cycle(3_201_000, 6144, 1_980_000, 132);
        assert!(h100 < FAST_MEMORY && FAST_MEMORY < h200, "{h100} {h200}");
        assert_eq!(bytes_per_cycle(3_201_000, 6144, 0, 132), 0.0);
        assert_eq!(bytes_per_cycle(0, 6144, 1_980_000, 132), 0.0);
    }
}
