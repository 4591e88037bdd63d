//! Dense arrays.

use crate::buffer::{Buffer, Element, with_element};
use grouped_attention::{Dtype, EngineError, HostTensor, TensorInfo, Unsupported, Values};
use half::{bf16, f16};
use std::ptr::NonNull;

/// A dense row-major array in memory.
#[derive(Debug)]
pub struct CpuTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    buffer: Buffer,
}

impl TensorInfo for CpuTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl CpuTensor {
    pub(crate) fn zeroed(dtype: Dtype, shape: &[usize]) -> Result<CpuTensor, EngineError> {
        let elements = shape
            .iter()
            .try_fold(1_usize, |product, &extent| product.checked_mul(extent))
            .ok_or(EngineError::OutOfMemory { bytes: usize::MAX })?;
        let buffer = with_element!(dtype, E => Buffer::zeroed::<E>(elements),
            else Err(Unsupported::Dtype { dtype }.into()))?;
        Ok(CpuTensor { dtype, shape: shape.to_vec(), buffer })
    }

    /// A tensor over memory that the caller owns: a serving engine's activations, for example.
    ///
    /// # Safety
    /// `data` must point to as many initialised elements of the format `dtype` as the product of
    /// `shape` says (which must not overflow), aligned for it. They must stay valid, and nothing
    /// else may write them while the engine reads the tensor or access them while it writes it,
    /// until the tensor is dropped.
    pub unsafe fn from_raw_parts(data: NonNull<u8>, dtype: Dtype, shape: &[usize]) -> CpuTensor {
        let elements = shape.iter().product();
        let buffer = match dtype {
            // SAFETY: what `Buffer::foreign` asks is what the caller promised, for each format.
            Dtype::F32 => unsafe { Buffer::foreign::<f32>(data.cast(), elements) },
            // SAFETY: as above; the formats left are 16 bits wide.
            _ => unsafe { Buffer::foreign::<f16>(data.cast(), elements) },
        };
        CpuTensor { dtype, shape: shape.to_vec(), buffer }
    }

    /// The elements, row-major. The caller has checked the format.
    pub(crate) fn values<E: Element>(&self) -> &[E] {
        debug_assert_eq!(self.dtype, E::DTYPE);
        self.buffer.as_slice()
    }

    /// As [`values`](Self::values), to be written.
    pub(crate) fn values_mut<E: Element>(&mut self) -> &mut [E] {
        debug_assert_eq!(self.dtype, E::DTYPE);
        self.buffer.as_mut_slice()
    }

    pub(crate) fn upload(&mut self, host: &HostTensor) {
        match host.values() {
            Values::F32(values) => self.values_mut::<f32>().copy_from_slice(values),
            Values::F16(values) => self.values_mut::<f16>().copy_from_slice(values),
            Values::Bf16(values) => self.values_mut::<bf16>().copy_from_slice(values),
        }
    }

    pub(crate) fn download(&self) -> HostTensor {
        let values = match self.dtype {
            Dtype::F32 => Values::F32(self.values().to_vec()),
            Dtype::F16 => Values::F16(self.values().to_vec()),
            _ => Values::Bf16(self.values().to_vec()),
        };
        HostTensor::new(&self.shape, values).expect("a tensor's values fill its shape")
    }
}
