//! Tensors on a device: owned, or views of a caller's memory.

use crate::device::Device;
use crate::driver::Address;
use crate::memory::DeviceBuffer;
use grouped_attention::{Dtype, TensorInfo};
use std::sync::Arc;

/// A tensor on a CUDA device. Strides count elements.
#[derive(Debug)]
pub struct CudaTensor {
    pub(crate) device: Arc<Device>,
    address: Address,
    dtype: Dtype,
    shape: Vec<usize>,
    strides: Vec<usize>,
    /// Absent where the memory is the caller's.
    _storage: Option<DeviceBuffer>,
}

impl CudaTensor {
    pub(crate) fn owned(
        device: &Arc<Device>,
        dtype: Dtype,
        shape: &[usize],
        storage: DeviceBuffer,
    ) -> CudaTensor {
        CudaTensor {
            device: device.clone(),
            address: storage.address(),
            dtype,
            shape: shape.to_vec(),
            strides: dense_strides(shape),
            _storage: Some(storage),
        }
    }

    pub(crate) fn foreign(
        device: &Arc<Device>,
        dtype: Dtype,
        shape: &[usize],
        strides: &[usize],
        address: Address,
    ) -> CudaTensor {
        CudaTensor {
            device: device.clone(),
            address,
            dtype,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            _storage: None,
        }
    }

    /// Address of the first element in the device's memory.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Elements from one index to the next, for each dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    pub(crate) fn stride(&self, dimension: usize) -> i64 {
        self.strides[dimension] as i64
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if rows lie one after another without a gap.
    pub(crate) fn is_dense(&self) -> bool {
        self.elements() == 0 || is_dense(&self.shape, &self.strides)
    }

    /// True if the elements of the last dimension lie side by side, as kernels need it.
    pub(crate) fn has_dense_rows(&self) -> bool {
        self.shape.last().is_none_or(|&extent| extent <= 1) || self.strides.last() == Some(&1)
    }

    /// True if every row of the last dimension begins at a multiple of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        let outer = self.shape.len().saturating_sub(1);
        let taken =
            self.shape[..outer].iter().zip(&self.strides).filter(|(extent, _)| **extent > 1);
        is_aligned(self.address, taken.map(|(_, stride)| *stride), self.dtype)
    }

    /// First elements of the runs that lie side by side, with the runs' length, in row-major order.
    pub(crate) fn runs(&self) -> (Vec<usize>, usize) {
        if self.is_dense() {
            return (vec![0], self.elements());
        }
        let mut starts = vec![0];
        let (mut dimensions, mut run) = (self.shape.len(), 1);
        if self.has_dense_rows() {
            dimensions -= 1;
            run = self.shape[dimensions];
        }
        for (&extent, &stride) in self.shape[..dimensions].iter().zip(&self.strides) {
            starts = starts
                .iter()
                .flat_map(|start| (0..extent).map(move |index| start + index * stride))
                .collect();
        }
        (starts, run)
    }
}

impl TensorInfo for CudaTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// Strides of a row-major array without gaps.
pub(crate) fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * shape[dimension].max(1);
    }
    strides
}

fn is_dense(shape: &[usize], strides: &[usize]) -> bool {
    let dense = dense_strides(shape);
    shape.iter().zip(strides).zip(&dense).all(|((&extent, a), b)| extent == 1 || a == b)
}

/// True if rows of `strides` elements apart begin at multiples of 16 bytes where the first does.
pub(crate) fn is_aligned(
    address: Address,
    strides: impl IntoIterator<Item = usize>,
    dtype: Dtype,
) -> bool {
    const BYTES: usize = 16;
    let mut strides = strides.into_iter();
    address.is_multiple_of(BYTES as u64)
        && strides.all(|stride| stride.is_multiple_of(BYTES / dtype.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_of_dense_arrays() {
        assert_eq!(dense_strides(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(dense_strides(&[]), [0; 0]);
        assert!(is_dense(&[1, 3, 4], &[99, 4, 1]));
        assert!(!is_dense(&[2, 3, 4], &[16, 4, 1]));
    }

    #[test]
    fn alignment_is_of_address_and_strides() {
        assert!(is_aligned(256, [576, 8], Dtype::Bf16));
        assert!(!is_aligned(256, [576, 4], Dtype::Bf16));
        assert!(is_aligned(256, [4], Dtype::F32));
        assert!(!is_aligned(258, [8], Dtype::Bf16));
        assert!(!is_aligned(256, [usize::MAX], Dtype::Bf16));
    }
}
