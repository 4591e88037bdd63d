//! Streams and events: the order in which a device works.

use crate::device::Device;
use crate::driver::{Address, Copy2d, EVENT_DISABLE_TIMING, Handle, STREAM_NON_BLOCKING};
use crate::error::DriverError;
use std::ffi::c_void;
use std::sync::Arc;

/// A stream of a device: its own, or one of the caller's.
#[derive(Debug)]
pub(crate) struct Stream {
    device: Arc<Device>,
    handle: Handle,
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
        let mut handle: Handle = std::ptr::null_mut();
        device.call("cuStreamCreate", |api| {
            // SAFETY: `handle` is a place for one handle.
            unsafe { (api.stream_create)(&raw mut handle, STREAM_NON_BLOCKING) }
        })?;
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

    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    /// Waits for everything issued so far.
    ///
    /// # Errors
    /// What that work ran into.
    pub(crate) fn synchronize(&self) -> Result<(), DriverError> {
        // SAFETY: the handle is a stream of the device.
        let code = |api: &crate::driver::Api| unsafe { (api.stream_synchronize)(self.handle) };
        self.device.call("cuStreamSynchronize", code)
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
        self.device.call("cuMemcpyHtoDAsync_v2", |api| {
            // SAFETY: the caller vouches for both ranges.
            unsafe { (api.copy_to_device)(to, from, bytes, self.handle) }
        })
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
        self.device.call("cuMemcpyDtoHAsync_v2", |api| {
            // SAFETY: the caller vouches for both ranges.
            unsafe { (api.copy_to_host)(to, from, bytes, self.handle) }
        })
    }

    /// Copies a rectangle.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Safety
    /// Both rectangles must lie in valid memory.
    pub(crate) unsafe fn copy_2d(&self, copy: &Copy2d) -> Result<(), DriverError> {
        self.device.call("cuMemcpy2DAsync_v2", |api| {
            // SAFETY: the caller vouches for both rectangles.
            unsafe { (api.copy_2d)(&raw const *copy, self.handle) }
        })
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
        self.device.call("cuMemsetD8Async", |api| {
            // SAFETY: the caller vouches for the range.
            unsafe { (api.memory_set)(to, 0, bytes, self.handle) }
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: the handle was created by `new` and is destroyed once.
            let code = |api: &crate::driver::Api| unsafe { (api.stream_destroy)(self.handle) };
            let _ = self.device.call("cuStreamDestroy_v2", code);
        }
    }
}

/// A point in a stream that can be waited for.
#[derive(Debug)]
pub(crate) struct Event {
    device: Arc<Device>,
    handle: Handle,
}

// SAFETY: the driver lets any thread use an event.
unsafe impl Send for Event {}

impl Event {
    /// An event that has happened.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn new(device: &Arc<Device>) -> Result<Event, DriverError> {
        let mut handle: Handle = std::ptr::null_mut();
        device.call("cuEventCreate", |api| {
            // SAFETY: `handle` is a place for one handle.
            unsafe { (api.event_create)(&raw mut handle, EVENT_DISABLE_TIMING) }
        })?;
        Ok(Event { device: device.clone(), handle })
    }

    /// Happens once the stream's work so far is done.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), DriverError> {
        self.device.call("cuEventRecord", |api| {
            // SAFETY: event and stream belong to the device.
            unsafe { (api.event_record)(self.handle, stream.handle) }
        })
    }

    /// Waits until it has happened.
    ///
    /// # Errors
    /// What the work before it ran into.
    pub(crate) fn wait(&self) -> Result<(), DriverError> {
        // SAFETY: the handle is an event of the device.
        let code = |api: &crate::driver::Api| unsafe { (api.event_synchronize)(self.handle) };
        self.device.call("cuEventSynchronize", code)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the handle was created by `new` and is destroyed once.
        let code = |api: &crate::driver::Api| unsafe { (api.event_destroy)(self.handle) };
        let _ = self.device.call("cuEventDestroy_v2", code);
    }
}
