//! A device: its primary context, what is known of it, and the one way to call the driver for it.

use crate::abi::TensorMap;
use crate::driver::{Address, Api, Attribute, Handle, driver};
use crate::error::{DriverError, unavailable};
use crate::hopper::{MapShape, NO_MAP};
use grouped_attention::EngineError;
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One CUDA device. Everything that lives on it keeps it.
pub(crate) struct Device {
    api: &'static Api,
    ordinal: usize,
    device: c_int,
    context: Handle,
    name: String,
    capability: (i32, i32),
    multiprocessors: usize,
    shared_bytes: usize,
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
        let code = unsafe { (api.device_count)(&raw mut count) };
        api.check("cuDeviceGetCount", code)?;
        let number = c_int::try_from(ordinal).ok().filter(|number| *number < count);
        let Some(number) = number else {
            return Err(unavailable(match count {
                0 => "no CUDA device was found".to_owned(),
                _ => format!("there is no device {ordinal}: {count} were found"),
            }));
        };
        let mut device = 0;
        // SAFETY: `device` is a place for one integer.
        let code = unsafe { (api.device_get)(&raw mut device, number) };
        api.check("cuDeviceGet", code)?;
        let attribute = |which| attribute(api, device, which);
        let capability =
            (attribute(Attribute::CapabilityMajor)?, attribute(Attribute::CapabilityMinor)?);
        let multiprocessors = attribute(Attribute::Multiprocessors)?.unsigned_abs() as usize;
        let shared_bytes = attribute(Attribute::SharedMemoryPerBlock)?.unsigned_abs() as usize;
        let (name, driver_version) = (name(api, device)?, api.version()?);
        let mut context: Handle = std::ptr::null_mut();
        // SAFETY: `context` is a place for one handle; it is released in `drop`.
        let code = unsafe { (api.context_retain)(&raw mut context, device) };
        api.check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Device {
            api,
            ordinal,
            device,
            context,
            name,
            capability,
            multiprocessors,
            shared_bytes,
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
        call: impl FnOnce(&Api) -> c_int,
    ) -> Result<(), DriverError> {
        if self.lost.load(Ordering::Relaxed) {
            let name_of_code = "an earlier error that lost the device".to_owned();
            return Err(DriverError { call: name, code: 700, name: name_of_code });
        }
        // SAFETY: the context is retained as long as `self` lives.
        let code = unsafe { (self.api.context_push)(self.context) };
        self.api.check("cuCtxPushCurrent_v2", code)?;
        let result = self.api.check(name, call(self.api));
        let mut popped: Handle = std::ptr::null_mut();
        // SAFETY: `popped` is a place for one handle, and what is popped was pushed above.
        unsafe { (self.api.context_pop)(&raw mut popped) };
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
        let code = |api: &Api| unsafe { (api.memory_allocate)(&raw mut address, bytes.max(1)) };
        match self.call("cuMemAlloc_v2", code) {
            Ok(()) => Ok(address),
            Err(error) if error.is_out_of_memory() => Err(EngineError::OutOfMemory { bytes }),
            Err(error) => Err(error.into()),
        }
    }

    /// A tensor map of one part of a cache, for the swizzle that kernels read.
    ///
    /// # Errors
    /// A part that the copy engine cannot address.
    pub(crate) fn tensor_map(&self, shape: &MapShape) -> Result<TensorMap, DriverError> {
        // CU_TENSOR_MAP_DATA_TYPE_UINT16, _SWIZZLE_128B, _L2_PROMOTION_L2_128B
        const ELEMENT: u32 = 1;
        const SWIZZLE: u32 = 3;
        const PROMOTION: u32 = 2;
        let mut map = NO_MAP;
        let element_strides = [1; 5];
        let address = std::ptr::with_exposed_provenance_mut(shape.address as usize);
        self.call("cuTensorMapEncodeTiled", |api| {
            // SAFETY: all arrays have the rank's five entries, strides one fewer; the driver only
            // writes the map and reads no device memory.
            unsafe {
                (api.tensor_map_encode)(
                    &raw mut map,
                    ELEMENT,
                    5,
                    address,
                    shape.extents.as_ptr(),
                    shape.strides.as_ptr(),
                    shape.copied.as_ptr(),
                    element_strides.as_ptr(),
                    0,
                    SWIZZLE,
                    PROMOTION,
                    0,
                )
            }
        })?;
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

    /// Shared memory that one block may ask for.
    pub(crate) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// Version of the driver's interface, as 1000 major + 10 minor.
    pub(crate) fn driver_version(&self) -> i32 {
        self.driver_version
    }
}

fn attribute(api: &Api, device: c_int, which: Attribute) -> Result<i32, DriverError> {
    let mut value = 0;
    // SAFETY: `value` is a place for one integer.
    let code = unsafe { (api.device_attribute)(&raw mut value, which as c_int, device) };
    api.check("cuDeviceGetAttribute", code)?;
    Ok(value)
}

fn name(api: &Api, device: c_int) -> Result<String, DriverError> {
    let mut text: [c_char; 128] = [0; 128];
    // SAFETY: `text` has room for as many characters as are said.
    let code = unsafe { (api.device_name)(text.as_mut_ptr(), 127, device) };
    api.check("cuDeviceGetName", code)?;
    // SAFETY: the last of the characters was 0 before and was not offered to the driver.
    Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the context was retained once, and nothing that uses it outlives `self`.
        unsafe { (self.api.context_release)(self.device) };
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
