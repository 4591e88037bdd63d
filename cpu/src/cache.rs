//! The paged cache of one layer.

use crate::buffer::{Buffer, Element, with_element};
use grouped_attention::{
    CacheInfo, CacheLayout, Dtype, EngineError, HostTensor, RowCopy, Slot, Unsupported, Values,
};
use half::f16;
use std::ptr::NonNull;

/// One layer's keys and values, or states and rope keys.
///
/// Caches that the engine allocates keep the rows of one head of a page together,
/// `[pages, h, page_size, width]`: a task reads one head after the other, and a run of whole cache
/// lines per head is what prefetchers follow. Rows written by
/// [`append`](grouped_attention::Backend::append) hold the same numbers in either order; foreign
/// caches say their order by their strides.
#[derive(Debug)]
pub struct CpuCache {
    layout: CacheLayout,
    parts: [Part; 2],
}

/// Keys, values, states or rope keys: `width` contiguous elements per row and head.
#[derive(Debug)]
pub(crate) struct Part {
    buffer: Buffer,
    pub(crate) heads: usize,
    pub(crate) width: usize,
    strides: Strides,
}

/// Elements from one page, token and head to the next. The elements of a head are contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// From page to page.
    pub page: usize,
    /// From a token to the next of its page.
    pub token: usize,
    /// From a head to the next; of no effect for the rope key, which has one.
    pub head: usize,
}

impl CacheInfo for CpuCache {
    fn layout(&self) -> &CacheLayout {
        &self.layout
    }
}

impl CpuCache {
    pub(crate) fn zeroed(layout: CacheLayout) -> Result<CpuCache, EngineError> {
        let (dtype, page_size) = (layout.dtype(), layout.page_size());
        let part = |(heads, width): (usize, usize)| {
            // The layout has checked that its bytes can be addressed.
            let elements = layout.pages() * page_size * heads * width;
            let buffer = with_element!(dtype, E => Buffer::zeroed::<E>(elements),
                else Err(Unsupported::Dtype { dtype }.into()))?;
            let strides =
                Strides { page: page_size * heads * width, token: width, head: page_size * width };
            Ok::<_, EngineError>(Part { buffer, heads, width, strides })
        };
        let [first, second] = layout.geometry().row().part_heads();
        Ok(CpuCache { layout, parts: [part(first)?, part(second)?] })
    }

    /// A cache over memory that the caller owns, such as a serving engine's: two arrays, or two
    /// views of one combined array. `second` is not read where the rope key has width 0.
    ///
    /// # Safety
    /// For each part, `data + page * strides.page + token * strides.token + head * strides.head`
    /// (in elements) must for every page, token and head of the layout be the address of `width`
    /// initialised elements of the layout's format, aligned for it, and so must everything between
    /// the first of them and the last. All of it must stay valid, and nothing else may write it
    /// while the engine reads the cache or access it while the engine writes it, until the cache is
    /// dropped. No two rows may overlap.
    pub unsafe fn from_raw_parts(
        layout: CacheLayout,
        first: (NonNull<u8>, Strides),
        second: (NonNull<u8>, Strides),
    ) -> CpuCache {
        let part = |(heads, width): (usize, usize), (data, strides): (NonNull<u8>, Strides)| {
            let last = layout.pages().saturating_sub(1) * strides.page
                + (layout.page_size() - 1) * strides.token
                + (heads - 1) * strides.head;
            if layout.pages() == 0 || width == 0 {
                // Nothing is read, so the caller's address may be any.
                return Part { buffer: Buffer::empty(), heads, width, strides };
            }
            let elements = last + width;
            let buffer = match layout.dtype() {
                // SAFETY: what `Buffer::foreign` asks is what the caller promised.
                Dtype::F32 => unsafe { Buffer::foreign::<f32>(data.cast(), elements) },
                // SAFETY: as above; the formats left are 16 bits wide.
                _ => unsafe { Buffer::foreign::<f16>(data.cast(), elements) },
            };
            Part { buffer, heads, width, strides }
        };
        let [first_size, second_size] = layout.geometry().row().part_heads();
        CpuCache { layout, parts: [part(first_size, first), part(second_size, second)] }
    }

    /// Keys or states.
    pub(crate) fn first(&self) -> &Part {
        &self.parts[0]
    }

    /// Values or rope keys.
    pub(crate) fn second(&self) -> &Part {
        &self.parts[1]
    }

    pub(crate) fn parts_mut(&mut self) -> &mut [Part; 2] {
        &mut self.parts
    }

    /// Both parts of the rows in `slots`, bit for bit.
    pub(crate) fn read_rows(&self, slots: &[Slot]) -> [HostTensor; 2] {
        let shapes = self.layout.part_shapes();
        [0, 1].map(|index| {
            let part = &self.parts[index];
            let values = match self.layout.dtype() {
                Dtype::F32 => Values::F32(part.rows(slots)),
                Dtype::F16 => Values::F16(part.rows(slots)),
                _ => Values::Bf16(part.rows(slots)),
            };
            let shape = [&[slots.len()], &shapes[index][2..]].concat();
            HostTensor::new(&shape, values).expect("each slot gives a row of the part's width")
        })
    }

    /// Copies rows bit for bit, one copy after another.
    pub(crate) fn copy_rows(&mut self, copies: &[RowCopy]) {
        for part in &mut self.parts {
            with_element!(self.layout.dtype(), E => part.copy_rows::<E>(copies),
                else unreachable!("no cache has another format"));
        }
    }
}

impl Part {
    pub(crate) fn cells<E: Element>(&self) -> &[E] {
        self.buffer.as_slice()
    }

    pub(crate) fn cells_mut<E: Element>(&mut self) -> &mut [E] {
        self.buffer.as_mut_slice()
    }

    /// Where head 0 of a token begins.
    pub(crate) fn offset(&self, page: usize, token: usize) -> usize {
        page * self.strides.page + token * self.strides.token
    }

    /// Elements from a head to the next.
    pub(crate) fn head_stride(&self) -> usize {
        self.strides.head
    }

    /// Elements from a token to the next of its page.
    pub(crate) fn token_stride(&self) -> usize {
        self.strides.token
    }

    /// `[slots, heads, width]`.
    fn rows<E: Element>(&self, slots: &[Slot]) -> Vec<E> {
        let cells = self.cells::<E>();
        let mut rows = Vec::with_capacity(slots.len() * self.heads * self.width);
        for slot in slots {
            let start = self.offset(slot.page.0 as usize, slot.row);
            for head in 0..self.heads {
                rows.extend_from_slice(&cells[start + head * self.strides.head..][..self.width]);
            }
        }
        rows
    }

    fn copy_rows<E: Element>(&mut self, copies: &[RowCopy]) {
        let (heads, width, stride) = (self.heads, self.width, self.strides.head);
        for copy in copies {
            for row in 0..copy.rows {
                let at = |slot: Slot| self.offset(slot.page.0 as usize, slot.row + row);
                let (from, to) = (at(copy.from), at(copy.to));
                let cells = self.buffer.as_mut_slice::<E>();
                for head in 0..heads {
                    let from = from + head * stride;
                    cells.copy_within(from..from + width, to + head * stride);
                }
            }
        }
    }
}
