//! Loaded kernels, and the one place where any of them is launched.

use crate::abi::Argument;
use crate::device::Device;
use crate::driver::call;
use crate::error::DriverError;
use crate::jit::Instance;
use crate::stream::Stream;
use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchConfig, CUmodule,
};
use std::ffi::{CString, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

/// A kernel on a device, ready to be launched.
#[derive(Debug)]
pub(crate) struct Kernel {
    device: Arc<Device>,
    module: CUmodule,
    function: CUfunction,
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
        let mut module: CUmodule = std::ptr::null_mut();
        // SAFETY: `module` is a place for one handle; a cubin is an ELF file that says its own length.
        unsafe { call!(device, cuModuleLoadData(&raw mut module, cubin.as_ptr().cast())) }?;
        // Owns the module from here on, so that it is unloaded if what follows fails.
        let mut kernel = Kernel {
            device: device.clone(),
            module,
            function: std::ptr::null_mut(),
            threads: 0,
            shared_bytes,
        };
        let name = CString::new(instance.kernel).unwrap_or_default();
        // SAFETY: the module was loaded above, and the name ends in 0.
        unsafe {
            call!(device, cuModuleGetFunction(&raw mut kernel.function, module, name.as_ptr()))
        }?;
        let bound = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        let mut threads: c_int = 0;
        // SAFETY: `threads` is a place for one integer, and the function is loaded.
        unsafe { call!(device, cuFuncGetAttribute(&raw mut threads, bound, kernel.function)) }?;
        kernel.threads = threads.unsigned_abs() as usize;
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function belongs to the module above.
        unsafe {
            call!(device, cuFuncSetAttribute(kernel.function, limit, shared_bytes as c_int))
        }?;
        Ok(kernel)
    }

    /// Blocks that one multiprocessor holds at a time.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn blocks_per_multiprocessor(&self) -> Result<usize, DriverError> {
        let mut blocks: c_int = 0;
        let threads = self.threads as c_int;
        // SAFETY: `blocks` is a place for one integer, and the function is loaded.
        unsafe {
            call!(
                self.device,
                cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &raw mut blocks,
                    self.function,
                    threads,
                    self.shared_bytes
                )
            )
        }?;
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
        // All of the union is set: what the driver does not know of an attribute it wants to be 0.
        let mut value = CUlaunchAttributeValue { pad: [0; 64] };
        value.programmaticStreamSerializationAllowed = 1;
        let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut overlap = CUlaunchAttribute { id, pad: [0; 4], value };
        let config = CUlaunchConfig {
            gridDimX: blocks as c_uint,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.threads as c_uint,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes as c_uint,
            hStream: stream.handle(),
            attrs: &raw mut overlap,
            numAttrs: c_uint::from(order == Order::Overlapping),
        };
        let extra = std::ptr::null_mut();
        // SAFETY: the caller vouches for the arguments, which the driver copies before it returns;
        // the configuration lives until then.
        unsafe {
            call!(
                self.device,
                cuLaunchKernelEx(&raw const config, self.function, arguments.as_mut_ptr(), extra)
            )
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: the module was loaded once and is unloaded once; the driver waits for launches.
        let _ = unsafe { call!(self.device, cuModuleUnload(self.module)) };
    }
}
