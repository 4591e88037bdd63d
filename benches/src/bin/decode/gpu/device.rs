//! A device as the bench uses it: numbers, flushes, graphs, and what it can do at best.

use super::blas::Blas;
use crate::measure::median;
use crate::options::Flush;
use crate::rig::Outcome;
use cudarc::driver::sys::{CUdevice_attribute, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr, DevicePtrMut,
    LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use grouped_attention::Dtype;
use grouped_attention_benches::results::Ceilings;
use std::cell::RefCell;
use std::sync::Arc;

/// Larger than any device's cache.
const FLUSH_BYTES: usize = 256 << 20;
/// Bytes that a ceiling reads, and half of what it copies.
const CEILING_BYTES: usize = 2 << 30;
/// Calls of each ceiling.
const SAMPLES: usize = 11;
/// Rows of the matrices whose product is timed.
const MATRIX: usize = 8192;
/// Threads of a block of the bench's own kernels.
const THREADS: u32 = 256;

pub(super) struct Device {
    pub(super) stream: Arc<CudaStream>,
    fill: CudaFunction,
    read: CudaFunction,
    multiprocessors: u32,
    flushed: RefCell<CudaSlice<u8>>,
    /// One word for each thread of `read`.
    sums: RefCell<CudaSlice<u32>>,
}

impl Device {
    pub(super) fn new(ordinal: usize) -> Outcome<Device> {
        let context = CudaContext::new(ordinal)?;
        // SAFETY: everything here happens on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let module = context.load_module(Ptx::from_src(include_str!("kernels.ptx")))?;
        let multiprocessors =
            context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let multiprocessors = multiprocessors.unsigned_abs();
        let threads = THREADS * multiprocessors * MOST_BLOCKS;
        Ok(Device {
            fill: module.load_function("fill")?,
            read: module.load_function("read")?,
            multiprocessors,
            flushed: RefCell::new(stream.alloc_zeros(FLUSH_BYTES)?),
            sums: RefCell::new(stream.alloc_zeros(threads as usize)?),
            stream,
        })
    }

    /// The stream's handle, as the engine takes it.
    pub(super) fn stream_handle(&self) -> u64 {
        self.stream.cu_stream().expose_provenance() as u64
    }

    /// Numbers of [`Random`](crate::random::Random) into memory.
    ///
    /// # Safety
    /// The address must be of that many elements on this device.
    pub(super) unsafe fn fill(
        &self,
        address: u64,
        elements: usize,
        seed: u64,
        dtype: Dtype,
    ) -> Outcome<()> {
        if elements == 0 {
            return Ok(());
        }
        let kind: u32 = match dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Bf16 => 2,
            other => return Err(format!("no numbers in {other}").into()),
        };
        let elements = elements as u64;
        let mut launch = self.stream.launch_builder(&self.fill);
        launch.arg(&address).arg(&elements).arg(&seed).arg(&kind);
        // SAFETY: the kernel takes these four, and writes the elements that the caller vouches for.
        unsafe { launch.launch(self.grid(16)) }?;
        Ok(())
    }

    fn grid(&self, blocks: u32) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (self.multiprocessors * blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        }
    }

    /// Puts other memory in the place of what the device's cache holds.
    pub(super) fn flush(&self, flush: Flush) -> Outcome<()> {
        match flush {
            Flush::None => {}
            Flush::Write => self.stream.memset_zeros(&mut *self.flushed.borrow_mut())?,
            Flush::Read => {
                self.read_all(&self.flushed.borrow(), 8)?;
            }
        }
        Ok(())
    }

    /// Records what `issue` does on the stream, without doing it.
    pub(super) fn record(&self, issue: impl FnOnce() -> Outcome<()>) -> Outcome<CudaGraph> {
        self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let issued = issue();
        // The capture ends, whatever came of it.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        issued?;
        graph?.ok_or_else(|| "the recorded graph is empty".into())
    }

    /// Reads memory, all but a rest that is smaller than a round; answers the bytes read.
    fn read_all(&self, memory: &CudaSlice<u8>, blocks: u32) -> Outcome<usize> {
        let round = 8 * 16 * (THREADS * self.multiprocessors * blocks) as usize;
        let rounds = memory.len() / round;
        let count = rounds as u64;
        let mut sums = self.sums.borrow_mut();
        let mut launch = self.stream.launch_builder(&self.read);
        launch.arg(memory).arg(&count).arg(&mut *sums);
        // SAFETY: the kernel takes these three, reads `rounds` rounds, which the memory has, and
        // writes a word for each thread, of which there are at most as many as words.
        unsafe { launch.launch(self.grid(blocks)) }?;
        Ok(rounds * round)
    }

    /// What the device can do: bytes read, bytes copied, FLOPs of a matrix product.
    pub(super) fn ceilings(&self) -> Outcome<Ceilings> {
        let mut memory: [CudaSlice<u8>; 2] =
            [self.stream.alloc_zeros(CEILING_BYTES)?, self.stream.alloc_zeros(CEILING_BYTES)?];
        for (index, part) in memory.iter_mut().enumerate() {
            let (address, _guard) = part.device_ptr_mut(&self.stream);
            // SAFETY: the memory has that many bytes, so half as many elements.
            unsafe { self.fill(address, CEILING_BYTES / 2, index as u64, Dtype::Bf16) }?;
        }
        let nothing = || Ok(());
        let mut read = 0.0_f64;
        for blocks in [4, 8, MOST_BLOCKS] {
            let bytes = self.read_all(&memory[0], blocks)?;
            let times =
                self.times(SAMPLES, nothing, || self.read_all(&memory[0], blocks).map(drop))?;
            read = read.max(bytes as f64 / median(&times));
        }
        let [from, to] = &mut memory;
        let times = self.times(SAMPLES, nothing, || Ok(self.stream.memcpy_dtod(&*from, to)?))?;
        let copy = 2.0 * CEILING_BYTES as f64 / median(&times);
        let matrix = match self.matrix_rate(from, to) {
            Ok(rate) => Some(rate),
            Err(error) => {
                eprintln!("decode: no matrix rate, so floors are of bytes alone: cuBLAS: {error}");
                None
            }
        };
        Ok(Ceilings { read: Some(read), read_prefetched: None, copy: Some(copy), matrix })
    }

    fn matrix_rate(&self, factors: &CudaSlice<u8>, product: &mut CudaSlice<u8>) -> Outcome<f64> {
        let blas = Blas::new(self.stream.cu_stream().cast())?;
        let (from, _from_guard) = factors.device_ptr(&self.stream);
        let (to, _to_guard) = product.device_ptr_mut(&self.stream);
        let matrices = [from, from + (2 * MATRIX * MATRIX) as u64, to];
        // SAFETY: both memories are larger than two such matrices.
        let multiply = || unsafe { blas.multiply(MATRIX, matrices) };
        self.times(3, || Ok(()), multiply)?;
        let times = self.times(SAMPLES, || Ok(()), multiply)?;
        Ok(2.0 * (MATRIX as f64).powi(3) / median(&times))
    }
}

/// Most blocks of `read` for each multiprocessor.
const MOST_BLOCKS: u32 = 16;

const _: () = assert!(CEILING_BYTES >= 2 * 2 * MATRIX * MATRIX);
