//! This machine as a device: its rates, measured.

use crate::roofline::device::NamedDevice;
use grouped_attention::cost::Device;
use grouped_attention::{Backend, EngineError};
use grouped_attention_cpu::CpuBackend;
use grouped_attention_cpu::ceiling::{Memory, Reading, multiply_adds};
use rayon::ThreadPoolBuilder;
use std::sync::Arc;

/// Times that memory is read, in each way.
const READS: usize = 5;

/// The processor that this runs on: the best of several reads of memory, and of vector
/// multiply-adds, by all cores.
///
/// # Errors
/// No memory to read; threads that cannot be started.
pub fn measured() -> Result<NamedDevice, EngineError> {
    let engine = CpuBackend::new();
    let pool = ThreadPoolBuilder::new()
        .build()
        .map_err(|error| EngineError::Unavailable { engine: "cpu", reason: error.to_string() })?;
    let pool = Arc::new(pool);
    let flops = multiply_adds(&pool)?;
    let memory = Memory::new(pool)?;
    let bandwidth = [Reading::Plain, Reading::Prefetching]
        .into_iter()
        .flat_map(|reading| std::iter::repeat_n(reading, READS))
        .map(|reading| memory.read(reading))
        .fold(0.0, f64::max);
    let device = Device::new(bandwidth, flops)
        .map_err(|error| EngineError::Device { message: error.to_string(), lost: false })?;
    Ok(NamedDevice { name: engine.identity().device, device })
}
