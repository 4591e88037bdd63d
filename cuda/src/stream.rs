//! Streams and events: the order in which a device works.

use crate::device::Device;
use crate::driver::{Address, call};
use crate::error::DriverError;
use cudarc::driver::sys::{CUDA_MEMCPY2D, CUevent, CUevent_flags, CUstream, CUstream_flags};
use std::ffi::{c_uint, c_void};
use std::sync::Arc;

/// A stream of a device: its own, or one of the caller's.
#[derive(Debug)]
pub(crate) struct Stream {
    device: Arc<Device>,
    handle: CUstream,
    owned: bool,
}

// SAFETY: the driver lets any thread use a stream and orders the calls itself.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new stream, which does not wait for the legacy default stream.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Stream, DriverError> {
        let mut handle: CUstream = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: `handle` is a place for one handle.
        unsafe { call!(device, cuStreamCreate(&raw mut handle, flags)) }?;
        Ok(Stream { device: device.clone(), handle, owned: true })
    }

    /// A caller's stream, which is not destroyed.
    ///
    /// # Safety
    /// The handle must be a stream of the device (0 for its default stream) as long as this is
    /// used.
    pub(crate) unsafe fn foreign(device: &Arc<Device>, handle: u64) -> Stream {
        let handle = std::ptr::with_exposed_provenance_mut(handle as usize);
        Stream { device: device.clone(), handle, owned: false }
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn handle(&self) -> CUstream {
        self.handle
    }

    /// Waits for everything issued so far.
    ///
    /// # Errors
    /// What that work ran into.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the handle is a stream of the device.
        unsafe { call!(self.device, cuStreamSynchronize(self.handle)) }
    }

    /// Copies to the device.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Safety
    /// Both ranges must be valid, and the host's must stay as it is until the copy is done.
    pub(crate) unsafe fn copy_to_device(
        &self,
        to: Address,
        from: *const c_void,
        bytes: usize,
    ) -> Result<(), DriverError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for both ranges.
        unsafe { call!(self.device, cuMemcpyHtoDAsync_v2(to, from, bytes, self.handle)) }
    }

    /// Copies to the host.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Safety
    /// Both ranges must be valid, and the host's must not be used until the copy is done.
    pub(crate) unsafe fn copy_to_host(
        &self,
        to: *mut c_void,
        from: Address,
        bytes: usize,
    ) -> Result<(), DriverError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for both ranges.
        unsafe { call!(self.device, cuMemcpyDtoHAsync_v2(to, from, bytes, self.handle)) }
    }

    /// Copies a rectangle.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Safety
    /// Both rectangles must lie in valid memory.
    pub(crate) unsafe fn copy_2d(&self, copy: &CUDA_MEMCPY2D) -> Result<(), DriverError> {
        // SAFETY: the caller vouches for both rectangles.
        unsafe { call!(self.device, cuMemcpy2DAsync_v2(&raw const *copy, self.handle)) }
    }

    /// Sets bytes to 0.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Safety
    /// The range must be valid.
    pub(crate) unsafe fn clear(&self, to: Address, bytes: usize) -> Result<(), DriverError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller vouches for the range.
        unsafe { call!(self.device, cuMemsetD8Async(to, 0, bytes, self.handle)) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: the handle was created by `new` and is destroyed once.
            let _ = unsafe { call!(self.device, cuStreamDestroy_v2(self.handle)) };
        }
    }
}

/// A point in a stream that can be waited for.
#[derive(Debug)]
pub(crate) struct Event {
    device: Arc<Device>,
    handle: CUevent,
}

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}

impl Event {
    /// An event that has happened.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Event, DriverError> {
        let mut handle: CUevent = std::ptr::null_mut();
        let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
        // SAFETY: `handle` is a place for one handle.
        unsafe { call!(device, cuEventCreate(&raw mut handle, flags)) }?;
        Ok(Event { device: device.clone(), handle })
    }

    /// Happens once the stream's work so far is done.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        // SAFETY: event and stream belong to the device.
        unsafe { call!(self.device, cuEventRecord(self.handle, stream.handle)) }
    }

    /// Waits until it has happened.
    ///
    /// # Errors
    /// What the work before it ran into.
    pub(crate) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the handle is an event of the device.
        unsafe { call!(self.device, cuEventSynchronize(self.handle)) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle was created by `new` and is destroyed once.
        let _ = unsafe { call!(self.device, cuEventDestroy_v2(self.handle)) };
    }
}
