//! Memory: on the device, and on the host where the device can reach it.

use crate::device::Device;
use crate::driver::{Address, call};
use grouped_attention::EngineError;
use std::ffi::c_void;
use std::sync::Arc;

/// Owned memory on a device.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    device: Arc<Device>,
    address: Address,
    bytes: usize,
}

impl DeviceBuffer {
    /// `bytes` bytes, not initialised.
    ///
    /// # Errors
    /// Out of memory, a failing device.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<DeviceBuffer, EngineError> {
        let address = device.allocate(bytes)?;
        Ok(DeviceBuffer { device: device.clone(), address, bytes })
    }

    pub(crate) fn address(&self) -> Address {
        self.address
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // The driver waits for pending work before it frees. An error here has been reported by
        // the call that caused it, and there is nobody to report it to again.
        // SAFETY: the address came from the driver and is freed once.
        let _ = unsafe { call!(self.device, cuMemFree_v2(self.address)) };
    }
}

/// Page-locked memory on the host, from which copies are asynchronous.
#[derive(Debug)]
pub(crate) struct PinnedBuffer {
    device: Arc<Device>,
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: the memory belongs to this buffer alone, and the driver lets any thread use it.
unsafe impl Send for PinnedBuffer {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// `bytes` zero bytes.
    ///
    /// # Errors
    /// Out of memory, a failing device.
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<PinnedBuffer, EngineError> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: `pointer` is a place for one pointer; the driver refuses a size of 0.
        match unsafe { call!(device, cuMemAllocHost_v2(&raw mut pointer, bytes.max(1))) } {
            Err(error) if error.is_out_of_memory() => {
                return Err(EngineError::OutOfMemory { bytes });
            }
            other => other?,
        }
        // SAFETY: the driver has given at least `bytes` bytes.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes) };
        Ok(PinnedBuffer { device: device.clone(), pointer, bytes })
    }

    pub(crate) fn pointer(&self) -> *const c_void {
        self.pointer
    }

    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the buffer owns `bytes` initialised bytes at `pointer`.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.bytes) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the driver and is freed once; owners wait for copies from
        // it first.
        let _ = unsafe { call!(self.device, cuMemFreeHost(self.pointer)) };
    }
}
