//! Loaded kernels, and the one place where any of them is launched.

use crate::abi::Argument;
use crate::device::Device;
use crate::driver::{
    Handle, LAUNCH_PROGRAMMATIC_SERIALIZATION, LaunchAttribute, LaunchConfig,
    MAX_DYNAMIC_SHARED_MEMORY, MAX_THREADS,
};
use crate::error::DriverError;
use crate::jit::Instance;
use crate::stream::Stream;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

/// A kernel on a device, ready to be launched.
#[derive(Debug)]
pub(crate) struct Kernel {
    device: Arc<Device>,
    module: Handle,
    function: Handle,
    threads: usize,
    shared_bytes: usize,
}

// SAFETY: the driver lets any thread use modules and functions.
unsafe impl Send for Kernel {}
// SAFETY: as above; a loaded module does not change.
unsafe impl Sync for Kernel {}

/// An argument of a launch, by its address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pointer<'a>(*mut c_void, PhantomData<&'a ()>);

/// The driver reads an argument when the kernel is launched.
pub(crate) fn pointer<A: Argument>(argument: &A) -> Pointer<'_> {
    Pointer(std::ptr::from_ref(argument).cast_mut().cast(), PhantomData)
}

/// How a launch relates to the one before it in its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// It begins when the one before is done.
    After,
    /// It may begin earlier: the kernel itself waits where it must (sm_90 and later).
    Overlapping,
}

impl Kernel {
    /// Loads a cubin whose kernel is launched with blocks of as many threads as its launch bound says
    /// and `shared_bytes` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// A cubin that is not for this device, a failing device.
    pub(crate) fn load(
        device: &Arc<Device>,
        instance: &Instance,
        cubin: &[u8],
        shared_bytes: usize,
    ) -> Result<Kernel, DriverError> {
        let mut module: Handle = std::ptr::null_mut();
        device.call("cuModuleLoadData", |api| {
            // SAFETY: `module` is a place for one handle; a cubin is an ELF file that says its own
            // length.
            unsafe { (api.module_load)(&raw mut module, cubin.as_ptr().cast()) }
        })?;
        // Owns the module from here on, so that it is unloaded if what follows fails.
        let mut kernel = Kernel {
            device: device.clone(),
            module,
            function: std::ptr::null_mut(),
            threads: 0,
            shared_bytes,
        };
        let name = CString::new(instance.kernel).unwrap_or_default();
        device.call("cuModuleGetFunction", |api| {
            // SAFETY: the module was loaded above, and the name ends in 0.
            unsafe { (api.module_function)(&raw mut kernel.function, module, name.as_ptr()) }
        })?;
        let mut threads: c_int = 0;
        device.call("cuFuncGetAttribute", |api| {
            // SAFETY: `threads` is a place for one integer, and the function is loaded.
            unsafe { (api.function_attribute)(&raw mut threads, MAX_THREADS, kernel.function) }
        })?;
        kernel.threads = threads.unsigned_abs() as usize;
        device.call("cuFuncSetAttribute", |api| {
            let bytes = shared_bytes as c_int;
            // SAFETY: the function belongs to the module above.
            unsafe {
                (api.function_set_attribute)(kernel.function, MAX_DYNAMIC_SHARED_MEMORY, bytes)
            }
        })?;
        Ok(kernel)
    }

    /// Blocks that one multiprocessor holds at a time.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn blocks_per_multiprocessor(&self) -> Result<usize, DriverError> {
        let mut blocks: c_int = 0;
        self.device.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", |api| {
            let threads = self.threads as c_int;
            // SAFETY: `blocks` is a place for one integer, and the function is loaded.
            unsafe { (api.occupancy)(&raw mut blocks, self.function, threads, self.shared_bytes) }
        })?;
        Ok(blocks.unsigned_abs() as usize)
    }

    /// Launches `blocks` blocks with one struct after another as the arguments. No block: nothing is launched.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Safety
    /// `arguments` must be the structs that this kernel takes, their addresses and strides must
    /// describe memory of the device that outlives the launch, and what the kernel's head says of
    /// the host must hold.
    pub(crate) unsafe fn launch<const N: usize>(
        &self,
        stream: &Stream,
        blocks: usize,
        arguments: [Pointer<'_>; N],
        order: Order,
    ) -> Result<(), DriverError> {
        if blocks == 0 {
            return Ok(());
        }
        let mut arguments = arguments.map(|argument| argument.0);
        let mut attribute = LaunchAttribute {
            id: LAUNCH_PROGRAMMATIC_SERIALIZATION,
            padding: 0,
            value: [1, 0, 0, 0, 0, 0, 0, 0],
        };
        let config = LaunchConfig {
            grid: [blocks as c_uint, 1, 1],
            block: [self.threads as c_uint, 1, 1],
            shared_bytes: self.shared_bytes as c_uint,
            stream: stream.handle(),
            attributes: &raw mut attribute,
            attribute_count: c_uint::from(order == Order::Overlapping),
        };
        self.device.call("cuLaunchKernelEx", |api| {
            // SAFETY: the caller vouches for the arguments, which the driver copies before it
            // returns; the configuration lives until then.
            unsafe {
                (api.launch)(
                    &raw const config,
                    self.function,
                    arguments.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
        })
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: the module was loaded once and is unloaded once; the driver waits for launches.
        let code = |api: &crate::driver::Api| unsafe { (api.module_unload)(self.module) };
        let _ = self.device.call("cuModuleUnload", code);
    }
}
