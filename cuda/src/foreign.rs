//! Streams and memory of the caller's: plain handles and addresses, of whatever CUDA crate they come
//! from.

use crate::backend::{CudaBackend, check_layout, other};
use crate::cache::{CachePart, CudaCache};
use crate::stream::Stream;
use crate::tensor::CudaTensor;
use grouped_attention::{CacheLayout, Dtype, EngineError};
use std::sync::Arc;

impl CudaBackend {
    /// The same engine on a stream of the caller's, given as its `CUstream` handle.
    ///
    /// # Safety
    /// The handle must be a stream of this engine's device, created in the device's primary
    /// context, and must live as long as the engine, its clones, and the plans they make.
    ///
    /// Nothing orders two streams. Before an engine is given what work on another engine's stream has
    /// written or still reads, the caller must order them, by events or
    /// [`synchronize`](grouped_attention::Backend::synchronize). That goes for tensors and caches, also
    /// those just allocated, which are cleared on their engine's stream, and for plans, which `plan` and
    /// `update` write.
    pub unsafe fn on_stream(&self, stream: u64) -> CudaBackend {
        // SAFETY: the caller promises what `foreign` asks for.
        let stream = Arc::new(unsafe { Stream::foreign(&self.shared.device, stream) });
        CudaBackend { stream, ..self.clone() }
    }

    /// A tensor in a caller's memory.
    ///
    /// Strides count elements. Kernels need the elements of the last dimension side by side, and
    /// tensor-core kernels need 16-byte alignment of address and strides; calls with other tensors
    /// are answered by [`EngineError::Unsupported`].
    ///
    /// # Errors
    /// A number of strides other than that of the dimensions, sizes that overflow.
    ///
    /// # Safety
    /// The memory must be this device's, hold every element that shape and strides reach, outlive
    /// the tensor and all work on it, and not be used otherwise while that work is pending.
    pub unsafe fn wrap_tensor(
        &self,
        address: u64,
        dtype: Dtype,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<CudaTensor, EngineError> {
        check_strides(shape, strides)?;
        Ok(CudaTensor::foreign(&self.shared.device, dtype, shape, strides, address))
    }

    /// A cache in a caller's memory.
    ///
    /// # Errors
    /// Pages or strides past what kernels can index.
    ///
    /// # Safety
    /// As for [`wrap_tensor`](Self::wrap_tensor), for both parts.
    pub unsafe fn wrap_cache(
        &self,
        layout: CacheLayout,
        parts: [CachePart; 2],
    ) -> Result<CudaCache, EngineError> {
        check_layout(&layout)?;
        for (part, shape) in parts.iter().zip(layout.part_shapes()) {
            let strides = match shape.len() {
                4 => vec![part.page_stride, part.token_stride, part.head_stride, 1],
                _ => vec![part.page_stride, part.token_stride, 1],
            };
            check_strides(&shape, &strides)?;
        }
        Ok(CudaCache::new(&self.shared.device, layout, parts, None))
    }
}

/// Strides for every dimension, and no element past what an address can reach.
fn check_strides(shape: &[usize], strides: &[usize]) -> Result<(), EngineError> {
    if shape.len() != strides.len() {
        return Err(other(format!("{} strides for {} dimensions", strides.len(), shape.len())));
    }
    let last = shape.iter().zip(strides).try_fold(0_usize, |last, (extent, stride)| {
        last.checked_add(extent.saturating_sub(1).checked_mul(*stride)?)
    });
    match last {
        Some(last) if last <= isize::MAX as usize / 8 => Ok(()),
        _ => Err(other(format!("a tensor of shape {shape:?} with strides {strides:?}"))),
    }
}
