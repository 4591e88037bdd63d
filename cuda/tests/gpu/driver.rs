//! What a serving engine has and this crate does not offer: memory, streams and graphs of its own.
//! This one has them from cudarc, and hands over what any has: addresses and handles.

use crate::Outcome;
use cudarc::driver::DriverError;
use cudarc::driver::result::{self, ctx, graph, primary_ctx, stream};
use cudarc::driver::sys::{CUgraphExec, CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode};
use grouped_attention::Backend;
use grouped_attention_cuda::CudaBackend;
use std::error::Error;

/// The driver, with a device's primary context current in this thread.
pub(crate) struct Driver(());

impl Driver {
    /// Must be called in each thread that uses it.
    pub(crate) fn new(ordinal: usize) -> Result<Driver, DriverError> {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the device exists; this reference to its context is left to the process's end.
        let context = unsafe { primary_ctx::retain(device) }?;
        // SAFETY: the context is retained.
        unsafe { ctx::set_current(context) }?;
        Ok(Driver(()))
    }

    /// Memory that is left to the process's end.
    pub(crate) fn allocate(&self, bytes: usize) -> Result<u64, DriverError> {
        // SAFETY: a context is current; nobody reads the memory before it is written.
        unsafe { result::malloc_sync(bytes) }
    }

    /// Overwrites device memory with 32-bit words, after everything that the engine was asked for and
    /// before anything that comes: a copy of pageable memory may return before it arrives.
    ///
    /// NOTE: waits for streams and never for the context, which would break off what other trials
    /// are recording.
    pub(crate) fn write(&self, engine: &CudaBackend, to: u64, words: &[i32]) -> Outcome {
        engine.synchronize()?;
        // SAFETY: trials name addresses of tables that have room for the words.
        unsafe { result::memcpy_htod_sync(to, words) }?;
        // SAFETY: null is the stream of that copy.
        Ok(unsafe { stream::synchronize(std::ptr::null_mut()) }?)
    }

    /// A stream that is left to the process's end.
    pub(crate) fn stream(&self) -> Result<u64, DriverError> {
        let stream = stream::create(stream::StreamKind::NonBlocking)?;
        Ok(stream.expose_provenance() as u64)
    }

    /// Records what `issue` does on a stream, without doing it.
    pub(crate) fn record(
        &self,
        stream: u64,
        issue: impl FnOnce() -> Outcome,
    ) -> Result<Graph, Box<dyn Error>> {
        let stream: CUstream = std::ptr::with_exposed_provenance_mut(stream as usize);
        // Of this thread alone: other trials may allocate meanwhile.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is one of `Self::stream`.
        unsafe { stream::begin_capture(stream, mode) }?;
        let issued = issue();
        // SAFETY: capture was begun above.
        let recorded = unsafe { stream::end_capture(stream) };
        issued?;
        // SAFETY: the graph was just recorded.
        let executable = unsafe { graph::instantiate(recorded?, CUgraphInstantiate_flags(0)) }?;
        Ok(Graph { executable, stream })
    }
}

/// Recorded work, left to the process's end.
pub(crate) struct Graph {
    executable: CUgraphExec,
    stream: CUstream,
}

impl Graph {
    pub(crate) fn launch(&self) -> Result<(), DriverError> {
        // SAFETY: graph and stream live to the process's end.
        unsafe { graph::launch(self.executable, self.stream) }
    }
}
