//! Copies between host and device, and from row to row of a cache.

use crate::backend::CudaBackend;
use crate::cache::CudaCache;
use crate::tensor::CudaTensor;
use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};
use grouped_attention::{
    CacheInfo, EngineError, HostTensor, RowCopy, Slot, TensorInfo, Values, ValuesMut,
};

impl CudaBackend {
    /// Host values to a tensor of the same shape and format.
    pub(crate) fn copy_in(
        &self,
        tensor: &CudaTensor,
        host: &HostTensor,
    ) -> Result<(), EngineError> {
        let bytes = first_byte(host.values());
        let (starts, run) = tensor.runs();
        let size = tensor.dtype().bytes();
        for (index, start) in starts.iter().enumerate() {
            let to = tensor.address() + (start * size) as u64;
            let from = bytes.wrapping_add(index * run * size).cast();
            // SAFETY: runs cover the tensor, whose shape is the host's, and are waited for below.
            unsafe { self.stream.copy_to_device(to, from, run * size) }?;
        }
        // The values are read before this returns, which copies from pageable memory do not promise.
        self.stream.synchronize()?;
        Ok(())
    }

    /// A tensor's values.
    pub(crate) fn copy_out(&self, tensor: &CudaTensor) -> Result<HostTensor, EngineError> {
        let mut host = HostTensor::zeros(tensor.dtype(), tensor.shape())
            .map_err(|_| EngineError::OutOfMemory { bytes: usize::MAX })?;
        let bytes = first_byte_mut(host.values_mut());
        let (starts, run) = tensor.runs();
        let size = tensor.dtype().bytes();
        for (index, start) in starts.iter().enumerate() {
            let from = tensor.address() + (start * size) as u64;
            let to = bytes.wrapping_add(index * run * size).cast();
            // SAFETY: runs cover the tensor, whose shape is the host's, and are waited for below.
            unsafe { self.stream.copy_to_host(to, from, run * size) }?;
        }
        self.stream.synchronize()?;
        Ok(host)
    }

    /// One part of the rows at `slots`, `[slots, h, width]` or `[slots, r]`.
    pub(crate) fn read_part(
        &self,
        cache: &CudaCache,
        slots: &[Slot],
        which: usize,
    ) -> Result<HostTensor, EngineError> {
        let (part, dtype) = (cache.parts()[which], cache.layout().dtype());
        let (heads, width) = cache.layout().geometry().row().part_heads()[which];
        let shape = [&[slots.len()], &cache.layout().part_shapes()[which][2..]].concat();
        let mut host = HostTensor::zeros(dtype, &shape)
            .map_err(|_| EngineError::OutOfMemory { bytes: usize::MAX })?;
        let bytes = first_byte_mut(host.values_mut());
        let size = dtype.bytes();
        for (index, slot) in slots.iter().enumerate() {
            let row = part.row(slot.page.0 as usize, slot.row, size);
            for head in 0..heads {
                let from = row + (head * part.head_stride * size) as u64;
                let to = bytes.wrapping_add((index * heads + head) * width * size).cast();
                // SAFETY: the call has checked the slots, the tensor has a place for each, and the
                // copies are waited for below.
                unsafe { self.stream.copy_to_host(to, from, width * size) }?;
            }
        }
        self.stream.synchronize()?;
        Ok(host)
    }

    /// One run of rows, part by part.
    pub(crate) fn copy_one(&self, cache: &CudaCache, copy: &RowCopy) -> Result<(), EngineError> {
        let size = cache.layout().dtype().bytes();
        for (part, (heads, width)) in
            cache.parts().iter().zip(cache.layout().geometry().row().part_heads())
        {
            if width == 0 || copy.rows == 0 {
                continue;
            }
            // One rectangle a head, or one for all where they lie side by side.
            let dense = heads == 1 || part.head_stride == width;
            let (blocks, width) = if dense { (1, heads * width) } else { (heads, width) };
            for block in 0..blocks {
                let offset = (block * part.head_stride * size) as u64;
                let row = |slot: Slot| part.row(slot.page.0 as usize, slot.row, size) + offset;
                let pitch = part.token_stride * size;
                let (from, to) = (row(copy.from), row(copy.to));
                let rectangle = rectangle(from, to, pitch, width * size, copy.rows);
                // SAFETY: the call has checked that both runs lie in pages of the cache.
                unsafe { self.stream.copy_2d(&rectangle) }?;
            }
        }
        Ok(())
    }
}

fn first_byte(values: &Values) -> *const u8 {
    match values {
        Values::F32(values) => values.as_ptr().cast(),
        Values::F16(values) => values.as_ptr().cast(),
        Values::Bf16(values) => values.as_ptr().cast(),
    }
}

fn first_byte_mut(values: ValuesMut<'_>) -> *mut u8 {
    match values {
        ValuesMut::F32(values) => values.as_mut_ptr().cast(),
        ValuesMut::F16(values) => values.as_mut_ptr().cast(),
        ValuesMut::Bf16(values) => values.as_mut_ptr().cast(),
    }
}

fn rectangle(from: u64, to: u64, pitch: usize, width_bytes: usize, height: usize) -> CUDA_MEMCPY2D {
    // A single row has no pitch to speak of, and one cached token may be a whole page apart.
    let pitch = if height == 1 { width_bytes } else { pitch };
    CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: from,
        srcArray: std::ptr::null_mut(),
        srcPitch: pitch,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        dstPitch: pitch,
        WidthInBytes: width_bytes,
        Height: height,
    }
}
