//! One layer's cache on a device: two strided parts, owned or views of a caller's memory.

use crate::abi;
use crate::device::Device;
use crate::driver::Address;
use crate::memory::DeviceBuffer;
use crate::tensor::is_aligned;
use grouped_attention::{CacheInfo, CacheLayout};
use std::sync::Arc;

/// Where one part of a cache lies: keys, values, states `[pages, page_size, h, width]`, or rope keys
/// `[pages, page_size, r]`. The elements of a row lie side by side.
///
/// One combined tensor `[pages, page_size, h * s + r]` is two of these, with the same strides and
/// addresses `h * s` elements apart `[S-2.10]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePart {
    /// Address of the first element in the device's memory; any where the part is 0 wide.
    pub address: u64,
    /// Elements from one page to the next.
    pub page_stride: usize,
    /// Elements from one token of a page to the next.
    pub token_stride: usize,
    /// Elements from one head of a token to the next; any for rope keys.
    pub head_stride: usize,
}

impl CachePart {
    /// A part of `heads` heads of `width` elements without gaps.
    pub(crate) fn dense(address: Address, page_size: usize, heads: usize, width: usize) -> Self {
        let token_stride = heads * width;
        let page_stride = page_size * token_stride;
        CachePart { address, page_stride, token_stride, head_stride: width }
    }

    pub(crate) fn to_abi(self) -> abi::Pages {
        abi::Pages {
            data: self.address,
            page_stride: self.page_stride as i64,
            token_stride: self.token_stride as i64,
            head_stride: self.head_stride as i64,
        }
    }

    /// First byte of one row.
    pub(crate) fn row(&self, page: usize, row: usize, element_bytes: usize) -> Address {
        let element = page * self.page_stride + row * self.token_stride;
        self.address + (element * element_bytes) as u64
    }
}

/// One layer's cache on a CUDA device.
#[derive(Debug)]
pub struct CudaCache {
    pub(crate) device: Arc<Device>,
    layout: CacheLayout,
    parts: [CachePart; 2],
    /// Absent where the memory is the caller's.
    _storage: Option<DeviceBuffer>,
}

impl CudaCache {
    pub(crate) fn new(
        device: &Arc<Device>,
        layout: CacheLayout,
        parts: [CachePart; 2],
        storage: Option<DeviceBuffer>,
    ) -> CudaCache {
        CudaCache { device: device.clone(), layout, parts, _storage: storage }
    }

    /// Keys and values, or states and rope keys.
    pub fn parts(&self) -> [CachePart; 2] {
        self.parts
    }

    /// True if every row begins at a multiple of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        let widths = self.layout.geometry().row().part_heads();
        self.parts.iter().zip(widths).all(|(part, (heads, width))| {
            let head_stride = if heads > 1 { part.head_stride } else { 0 };
            let strides = [part.page_stride, part.token_stride, head_stride];
            width == 0 || is_aligned(part.address, strides, self.layout.dtype())
        })
    }
}

impl CacheInfo for CudaCache {
    fn layout(&self) -> &CacheLayout {
        &self.layout
    }
}
