//! What a serving engine has and this crate does not offer: memory, streams and graphs of its own.

use libloading::Library;
use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

type Handle = *mut c_void;

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other trials may allocate meanwhile.
const CAPTURE_THREAD_LOCAL: c_uint = 1;

/// The driver, with the device's primary context current in this thread.
pub(crate) struct Driver {
    library: Library,
}

/// Calls a function of the driver and turns its status into a result.
macro_rules! call {
    ($driver:expr, $name:literal, ($($type:ty),*), $($argument:expr),*) => {{
        type Function = unsafe extern "C" fn($($type),*) -> c_int;
        // SAFETY: the driver's header gives the function this type.
        let function = unsafe { $driver.library.get::<Function>($name) };
        let function = function.map_err(|error| error.to_string())?;
        // SAFETY: the arguments are valid where this macro is used, as said there.
        match unsafe { function($($argument),*) } {
            0 => Ok(()),
            code => Err(format!("{} failed with {code}", String::from_utf8_lossy($name))),
        }
    }};
}

impl Driver {
    /// Must be called in each thread that uses it.
    pub(crate) fn new() -> Result<Driver, String> {
        // SAFETY: this is the CUDA driver, which the engine has loaded already.
        let library = unsafe { Library::new("libcuda.so.1") }.map_err(|error| error.to_string())?;
        let driver = Driver { library };
        let mut context: Handle = std::ptr::null_mut();
        // The engine keeps the context alive; this reference to it is left to the process's end.
        call!(driver, b"cuDevicePrimaryCtxRetain", (*mut Handle, c_int), &raw mut context, 0)?;
        call!(driver, b"cuCtxSetCurrent", (Handle), context)?;
        Ok(driver)
    }

    /// Memory that is left to the process's end.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64, String> {
        let mut address = 0;
        call!(self, b"cuMemAlloc_v2", (*mut u64, usize), &raw mut address, bytes)?;
        Ok(address)
    }

    /// Overwrites device memory with 32-bit words, after everything that is pending and before
    /// anything that comes: a copy of pageable memory may return before it arrives.
    pub(crate) fn write(&self, to: u64, words: &[i32]) -> Result<(), String> {
        call!(self, b"cuCtxSynchronize", (),)?;
        let from = words.as_ptr().cast::<c_void>();
        let bytes = size_of_val(words);
        call!(self, b"cuMemcpyHtoD_v2", (u64, *const c_void, usize), to, from, bytes)?;
        call!(self, b"cuCtxSynchronize", (),)
    }

    /// A stream that is left to the process's end.
    pub(crate) fn stream(&self) -> Result<u64, String> {
        let mut stream: Handle = std::ptr::null_mut();
        call!(self, b"cuStreamCreate", (*mut Handle, c_uint), &raw mut stream, 1)?;
        Ok(stream.expose_provenance() as u64)
    }

    /// Records what `issue` does on a stream, without doing it.
    pub(crate) fn record(
        &self,
        stream: u64,
        issue: impl FnOnce() -> crate::Outcome,
    ) -> Result<Graph<'_>, Box<dyn std::error::Error>> {
        let stream: Handle = std::ptr::with_exposed_provenance_mut(stream as usize);
        let mode = CAPTURE_THREAD_LOCAL;
        call!(self, b"cuStreamBeginCapture_v2", (Handle, c_uint), stream, mode)?;
        let issued = issue();
        let mut graph: Handle = std::ptr::null_mut();
        call!(self, b"cuStreamEndCapture", (Handle, *mut Handle), stream, &raw mut graph)?;
        issued?;
        let mut executable: Handle = std::ptr::null_mut();
        call!(
            self,
            b"cuGraphInstantiateWithFlags",
            (*mut Handle, Handle, c_ulonglong),
            &raw mut executable,
            graph,
            0
        )?;
        Ok(Graph { driver: self, executable, stream })
    }
}

/// Recorded work, left to the process's end.
pub(crate) struct Graph<'a> {
    driver: &'a Driver,
    executable: Handle,
    stream: Handle,
}

impl Graph<'_> {
    pub(crate) fn launch(&self) -> Result<(), String> {
        call!(self.driver, b"cuGraphLaunch", (Handle, Handle), self.executable, self.stream)
    }
}
