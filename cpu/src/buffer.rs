//! Memory of tensors, caches and workspaces: owned and aligned, or the caller's.

use grouped_attention::{Dtype, EngineError};
use half::{bf16, f16};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::ptr::NonNull;

/// A number format that kernels read and write.
///
/// # Safety
/// Every bit pattern must be a value, all zero bits included.
pub(crate) unsafe trait Element: Copy + Send + Sync + fmt::Debug + 'static {
    const DTYPE: Dtype;
    fn to_f32(self) -> f32;
    /// Rounds once, to nearest even.
    fn from_f32(x: f32) -> Self;
    /// Rounds once, to nearest even.
    fn from_f64(x: f64) -> Self {
        // A value of the format survives both casts, so they are exact.
        Self::from_f32(Self::DTYPE.round(x) as f32)
    }
}

// SAFETY: every pattern of 32 bits is an f32.
unsafe impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
}

// SAFETY: an f16 is a transparent u16.
unsafe impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

// SAFETY: a bf16 is a transparent u16.
unsafe impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        // Without branches, so that loops over it become vector code.
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let quiet = bits >> 16 | 0x40;
        bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16)
    }
}

/// Alignment of owned memory: a cache line, which is also a row of an AMX tile. A row that
/// straddles two lines costs two accesses.
const ALIGN: usize = 64;
/// Alignment of much of it: a page, so that runs of a cache begin with one and are asked for page by page.
///
/// PERF: two threads of a Xeon, B 8, L 8192, three rounds in turn, aligned to a line and so, us: GTA at `q_len` 4 6497, 6307; MLA
/// with 16 heads 3548, 3323, the latter before pages that begin within one were asked for by themselves.
pub(crate) const PAGE: usize = 4096;

/// A run of bytes that is read and written as elements of one format.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
    /// What to give back on drop; `None` for the caller's memory.
    owned: Option<(NonNull<u8>, Layout)>,
}

// SAFETY: a buffer is the only handle to its memory (for the caller's memory, its constructor asks
// that), and shared access only reads.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Zeroed memory. Pages that are never touched take no memory of the machine.
    pub(crate) fn zeroed<E: Element>(elements: usize) -> Result<Buffer, EngineError> {
        let bytes = elements.saturating_mul(size_of::<E>());
        let out_of_memory = EngineError::OutOfMemory { bytes };
        if bytes == 0 {
            return Ok(Buffer::empty());
        }
        // Asked for more alignment than it gives anyway, the allocator writes the zeros itself, and so
        // touches every page: what is aligned is found within a little more memory.
        let align = if bytes < 16 * PAGE { ALIGN } else { PAGE };
        let room = bytes.checked_add(align - 1);
        let Some(layout) = room.and_then(|room| Layout::array::<u128>(room.div_ceil(16)).ok())
        else {
            return Err(out_of_memory);
        };
        // SAFETY: the layout's size is not 0.
        let given = unsafe { alloc_zeroed(layout) };
        let given = NonNull::new(given).ok_or(out_of_memory)?;
        let skipped = given.align_offset(align);
        // SAFETY: at most `align` - 1 bytes are skipped, and the layout has so many beside `bytes`.
        let start = unsafe { given.add(skipped) };
        Ok(Buffer { start, bytes, owned: Some((given, layout)) })
    }

    /// No bytes, for which any aligned address is right.
    pub(crate) fn empty() -> Buffer {
        Buffer { start: NonNull::<Line>::dangling().cast(), bytes: 0, owned: None }
    }

    /// The caller's memory.
    ///
    /// # Safety
    /// `elements` elements at `start` must be initialised and stay valid, and nothing else may
    /// write them while the buffer is read or access them while it is written, until it is dropped.
    pub(crate) unsafe fn foreign<E: Element>(start: NonNull<E>, elements: usize) -> Buffer {
        Buffer { start: start.cast(), bytes: elements * size_of::<E>(), owned: None }
    }

    pub(crate) fn as_slice<E: Element>(&self) -> &[E] {
        let elements = self.elements::<E>();
        // SAFETY: `start` is aligned (checked), valid for `bytes` bytes and initialised, every
        // pattern is an `E`, and the borrow of `self` keeps writers out.
        unsafe { std::slice::from_raw_parts(self.start.cast().as_ptr(), elements) }
    }

    pub(crate) fn as_mut_slice<E: Element>(&mut self) -> &mut [E] {
        let elements = self.elements::<E>();
        // SAFETY: as in `as_slice`; the unique borrow of `self` keeps readers out too.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast().as_ptr(), elements) }
    }

    fn elements<E: Element>(&self) -> usize {
        debug_assert!(self.start.cast::<E>().is_aligned(), "owned by ALIGN, foreign by its type");
        self.bytes / size_of::<E>()
    }
}

/// Gives dangling pointers the alignment of owned memory.
#[repr(align(64))]
struct Line;

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((given, layout)) = self.owned {
            // SAFETY: `given` came from the allocator with this very layout, once.
            unsafe { dealloc(given.as_ptr(), layout) }
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = if self.owned.is_some() { "owned" } else { "borrowed" };
        write!(f, "{} bytes, {owner}", self.bytes)
    }
}

/// Runs `$body` with the type alias `$E` standing for the element type of a dtype.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr, else $other:expr) => {
        match $dtype {
            grouped_attention::Dtype::F32 => {
                type $E = f32;
                $body
            }
            grouped_attention::Dtype::F16 => {
                type $E = half::f16;
                $body
            }
            grouped_attention::Dtype::Bf16 => {
                type $E = half::bf16;
                $body
            }
            _ => $other,
        }
    };
}
pub(crate) use with_element;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_half_does() {
        // Every upper half with the lower halves around a tie.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                let (got, want) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
                assert!(got == want || (got.is_nan() && want.is_nan()), "{x}: {got}, not {want}");
            }
        }
    }
}
