//! Positions of a block, as they lie in one part of the cache.

use crate::buffer::Element;
use crate::cache::Part;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::lanes::{Lanes, Unit};
use grouped_attention::PageId;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use half::bf16;
use std::ops::Range;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Some positions in one part of the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<'a, E> {
    cells: &'a [E],
    /// Where the first head of each position begins. `width` cells from there on, plus as many
    /// times `head_stride` as there are other heads, are within `cells`.
    offsets: &'a [usize],
    heads: usize,
    head_stride: usize,
    width: usize,
}

impl<'a, E: Element> Located<'a, E> {
    /// The positions from `first` on of a sequence with these pages, as many as `offsets` has room
    /// for.
    pub(crate) fn new(
        part: &'a Part,
        pages: &[PageId],
        page_size: usize,
        first: usize,
        offsets: &'a mut [usize],
    ) -> Located<'a, E> {
        let (heads, head_stride, width) = (part.heads, part.head_stride(), part.width);
        let cells = part.cells::<E>();
        let (mut j, token_stride) = (0, part.token_stride());
        while j < offsets.len() {
            let (page, token) = ((first + j) / page_size, (first + j) % page_size);
            let run = (page_size - token).min(offsets.len() - j);
            let run = &mut offsets[j..j + run];
            j += run.len();
            if width == 0 {
                // Nothing of it is read, and there may be no cells.
                run.fill(0);
                continue;
            }
            let start = part.offset(pages[page].0 as usize, token);
            let last = start + (run.len() - 1) * token_stride + (heads - 1) * head_stride;
            assert!(last + width <= cells.len(), "the page is one of the cache");
            for (i, offset) in run.iter_mut().enumerate() {
                *offset = start + i * token_stride;
            }
        }
        Located { cells, offsets, heads, head_stride, width }
    }

    /// Positions.
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// The first `count` positions, and the others.
    pub(crate) fn split_at(self, count: usize) -> (Located<'a, E>, Located<'a, E>) {
        let (first, rest) = self.offsets.split_at(count);
        (Located { offsets: first, ..self }, Located { offsets: rest, ..self })
    }

    /// The leading `width` elements of one head's rows.
    #[inline(always)]
    pub(crate) fn strip(self, head: usize, width: usize) -> Strip<'a, E> {
        assert!(head < self.heads && width <= self.width, "a head of the cache");
        let Located { cells, offsets, .. } = self;
        Strip { cells, offsets, head: head * self.head_stride, width }
    }
}

/// One head's rows of some positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strip<'a, E> {
    cells: &'a [E],
    /// Where each position begins, but for `head`; `head + width` cells from there on exist.
    offsets: &'a [usize],
    head: usize,
    width: usize,
}

impl<'a, E: Copy> Strip<'a, E> {
    /// Positions.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Elements of a row.
    #[inline(always)]
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    #[inline(always)]
    pub(crate) fn row(&self, j: usize) -> &'a [E] {
        let start = self.offsets[j] + self.head;
        // SAFETY: what `offsets` promises.
        unsafe { self.cells.get_unchecked(start..start + self.width) }
    }

    /// The rows behind the first `count`.
    pub(crate) fn after(self, count: usize) -> Strip<'a, E> {
        Strip { offsets: &self.offsets[count..], ..self }
    }

    /// No rows.
    pub(crate) fn none(self) -> Strip<'a, E> {
        Strip { offsets: &[], ..self }
    }

    /// Where some rows begin and end, if they seem to follow each other with little between them, by where the first and the
    /// last begin.
    #[inline]
    pub(crate) fn run(&self, rows: Range<usize>) -> Option<Range<*const E>> {
        let (first, last) = (self.offsets[rows.start], self.offsets[rows.end - 1]);
        let between = (rows.len() - 1) * self.width;
        let follow = (first + between..=first + between + between / 4).contains(&last);
        let (start, end) = (self.row(rows.start), self.row(rows.end - 1));
        follow.then_some(start.as_ptr()..end.as_ptr_range().end)
    }

    /// Asks for row `j`, if there is one.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline(always)]
    pub(crate) fn prefetch<L: Lanes>(&self, lanes: L, j: usize) {
        if let Some(offset) = self.offsets.get(j) {
            let row = self.cells.as_ptr().wrapping_add(offset + self.head).addr();
            for line in 0..(self.width * size_of::<E>()).div_ceil(LINE) {
                lanes.prefetch(row + line * LINE);
            }
        }
    }

    /// The same rows, where they are bf16.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline(always)]
    pub(crate) fn as_bf16(self) -> Option<Strip<'a, bf16>>
    where
        E: Unit,
    {
        let Strip { cells, offsets, head, width } = self;
        Some(Strip { cells: E::as_bf16(cells)?, offsets, head, width })
    }

    /// All cells of the part, and where in them row `j` begins.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) fn place(&self, j: usize) -> (&'a [E], usize) {
        (self.cells, self.offsets[j] + self.head)
    }
}

#[cfg(test)]
impl<'a, E> Strip<'a, E> {
    /// One head's rows where they are.
    pub(crate) fn of(cells: &'a [E], offsets: &'a [usize], width: usize) -> Strip<'a, E> {
        Strip { cells, offsets, head: 0, width }
    }
}

#[cfg(all(test, target_arch = "x86_64", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn rows_are_a_run_if_little_is_between_them() {
        let cells = [bf16::ZERO; 200];
        // Three rows in a page, two in an earlier one, one in a later one.
        let offsets = [100, 108, 116, 40, 48, 160];
        let strip = Strip { cells: &cells[..], offsets: &offsets, head: 2, width: 8 };
        let run = |strip: Strip<'_, bf16>, rows| {
            let range = strip.run(rows)?;
            let start = range.start.addr() - cells.as_ptr().addr();
            Some((start / 2, (range.end.addr() - range.start.addr()) / 2))
        };
        assert_eq!(run(strip, 0..3), Some((102, 24)));
        assert_eq!(run(strip, 1..2), Some((110, 8)));
        assert_eq!(run(strip, 3..5), Some((42, 16)));
        assert_eq!(run(strip, 2..4), None, "the next row lies before it");
        assert_eq!(run(strip, 4..6), None, "the next row lies far behind it");
        assert_eq!(run(Strip { width: 7, ..strip }, 0..3), Some((102, 23)));
        assert_eq!(run(Strip { width: 6, ..strip }, 0..3), None, "much is between them");
    }
}
