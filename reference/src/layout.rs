//! How one layer's cache is laid out in pages.

use crate::dtype::Dtype;
use crate::geometry::{Geometry, Row};

/// Shape of one layer's cache. Legal by construction.
///
/// A separate cache is two tensors, keys `[pages, page_size, h, d_k]` and values
/// `[pages, page_size, h, d_v]`; a tied one is states `[pages, page_size, h, s]` and rope keys
/// `[pages, page_size, r]` `[S-2.10]`. Each has its own strides, so one combined tensor
/// `[pages, page_size, h s + r]` is two views of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheLayout {
    geometry: Geometry,
    dtype: Dtype,
    page_size: usize,
    pages: usize,
}

impl CacheLayout {
    /// A cache of `pages` pages of `page_size` tokens.
    ///
    /// # Errors
    /// A page size of 0; more than `i32::MAX` pages; a size in bytes past `isize::MAX`.
    pub fn new(
        geometry: Geometry,
        dtype: Dtype,
        page_size: usize,
        pages: usize,
    ) -> Result<CacheLayout, InvalidLayout> {
        if page_size == 0 {
            return Err(InvalidLayout::PageSizeZero);
        }
        let bytes = pages
            .checked_mul(page_size)
            .and_then(|tokens| tokens.checked_mul(geometry.row().elements()))
            .and_then(|elements| elements.checked_mul(size_of::<f64>()));
        match bytes {
            Some(bytes) if bytes <= isize::MAX as usize && pages <= i32::MAX as usize => {
                Ok(CacheLayout { geometry, dtype, page_size, pages })
            }
            _ => Err(InvalidLayout::TooLarge { pages, page_size }),
        }
    }

    /// Heads and widths.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Format of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Shapes of the two parts: keys and values, or states and rope keys (which may be 0 wide).
    pub fn part_shapes(&self) -> [Vec<usize>; 2] {
        let (pages, page_size) = (self.pages, self.page_size);
        match self.geometry.row() {
            Row::Separate { heads, d_k, d_v } => {
                [vec![pages, page_size, heads, d_k], vec![pages, page_size, heads, d_v]]
            }
            Row::Tied { heads, s, r, .. } => {
                [vec![pages, page_size, heads, s], vec![pages, page_size, r]]
            }
        }
    }

    /// Bytes of the whole cache.
    pub fn bytes(&self) -> usize {
        self.pages * self.page_size * self.geometry.row().elements() * self.dtype.bytes()
    }
}

/// Why sizes are not a cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLayout {
    /// Pages must hold at least one token.
    #[error("the page size is 0")]
    PageSizeZero,
    /// The cache cannot be addressed.
    #[error("{pages} pages of {page_size} tokens are more than a cache can have")]
    TooLarge {
        /// Pages.
        pages: usize,
        /// Tokens per page.
        page_size: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(geometry: Geometry) -> [Vec<usize>; 2] {
        let layout = CacheLayout::new(geometry, Dtype::Bf16, 16, 5).unwrap();
        let shapes = layout.part_shapes();
        let elements: usize = shapes.iter().map(|shape| shape.iter().product::<usize>()).sum();
        assert_eq!(layout.bytes(), 2 * elements);
        shapes
    }

    // [S-2.1] [S-2.2] [S-2.3] [S-2.10]
    #[test]
    fn parts_are_pages_of_tokens() {
        let gqa = Geometry::separate(6, 3, 8, 4).unwrap();
        assert_eq!(shapes(gqa), [vec![5, 16, 3, 8], vec![5, 16, 3, 4]]);
        let gla = Geometry::gla(4, 2, 256, 64).unwrap();
        assert_eq!(shapes(gla), [vec![5, 16, 2, 256], vec![5, 16, 64]]);
        let no_rope = Geometry::gla(4, 2, 256, 0).unwrap();
        assert_eq!(shapes(no_rope), [vec![5, 16, 2, 256], vec![5, 16, 0]]);
    }
}
