//! Positions of a block, as they lie in one part of the cache.

use crate::buffer::Element;
use crate::cache::Part;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::lanes::{Lanes, Unit};
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::schedule::BLOCK;
use grouped_attention::PageId;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use half::bf16;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use std::ops::Range;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;
/// Bytes of what is read next of which a line is asked for beforehand.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const TOUCHED: usize = 16 << 10;

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

    /// How many rows from `j` on follow each other with little between them, of `bytes` bytes about,
    /// and where they begin and end; nothing where not even two do.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    pub(crate) fn run(&self, j: usize, bytes: usize) -> Option<(usize, Range<*const E>)> {
        let offsets = &self.offsets[j..];
        let distance = offsets.get(1)?.checked_sub(offsets[0])?;
        if distance < self.width || distance > self.width + self.width / 4 {
            return None;
        }
        let most = (bytes / (distance * size_of::<E>())).max(1);
        let follows = |pair: &&[usize]| pair[0] + distance == pair[1];
        let rows = 1 + offsets.windows(2).take(most - 1).take_while(follows).count();
        Some((rows, self.row(j).as_ptr()..self.row(j + rows - 1).as_ptr_range().end))
    }

    /// Where some rows begin and end, if they [follow](Self::follow) each other.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    pub(crate) fn whole_run(&self, rows: Range<usize>) -> Option<Range<*const E>> {
        let (start, end) = (self.row(rows.start), self.row(rows.end - 1));
        self.follow(&rows).then_some(start.as_ptr()..end.as_ptr_range().end)
    }

    /// Whether some rows seem to follow each other with little between them, by where the first and the last begin.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    fn follow(&self, rows: &Range<usize>) -> bool {
        let (first, last) = (self.offsets[rows.start], self.offsets[rows.end - 1]);
        let between = (rows.len() - 1) * self.width;
        (first + between..=first + between + between / 4).contains(&last)
    }

    /// Asks for one line of every 16 KiB, all at once.
    ///
    /// A processor must look up where a page is before it can ask for a line of it, and goes on with little else meanwhile. So
    /// lines asked for one run of rows after the other wait for each run's page in turn; here for all of them together.
    /// PERF: the first line of a page of 4 KiB costs 190 ns, alone or of 8 pages at once, of 32 pages 640. Two threads of a
    /// Xeon, the matrix kernel, B 8, L 8192, `q_len` 1, four rounds in turn, without and with, us: GQA 10756, 10450, at 4
    /// 11744, 11567; GTA 6650, 6355, at 4 8661, 8472; MLA with 16 heads 4039, 3982, with 128 9866, 9701; GLA-2 with 16 heads
    /// 3845, 3715, with 128 6700, 6590. A line of every 4 KiB is 1 to 6 % slower than none; of every 32 KiB MLA with 16
    /// heads takes 3903 where this took 3898.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    pub(crate) fn touch<L: Lanes>(&self, lanes: L) {
        self.touched().for_each(|cell| lanes.prefetch(self.cells, cell));
    }

    /// Cells of every 16 KiB of each 64 rows that follow each other.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    fn touched(&self) -> impl Iterator<Item = usize> {
        let rows = (0..self.len()).step_by(BLOCK).map(|j| j..(j + BLOCK).min(self.len()));
        let runs = rows.filter(|rows| self.follow(rows));
        runs.flat_map(|rows| {
            let [start, last] = [rows.start, rows.end - 1].map(|j| self.offsets[j] + self.head);
            (start..last + self.width).step_by(TOUCHED / size_of::<E>())
        })
    }

    /// Cache lines that a row takes if it begins with one.
    #[inline(always)]
    pub(crate) fn lines(&self) -> usize {
        self.width.div_ceil(LINE / size_of::<E>())
    }

    /// Asks for row `j`, if there is one.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline(always)]
    pub(crate) fn prefetch<L: Lanes>(&self, lanes: L, j: usize) {
        if let Some(offset) = self.offsets.get(j) {
            for line in 0..self.lines() {
                lanes.prefetch(self.cells, offset + self.head + line * (LINE / size_of::<E>()));
            }
        }
    }

    /// Rows from `j` on that lie side by side, or that seem to by where the first and the last of them begin, at most
    /// `most`: how many, and the cells from the first to the end of the last.
    pub(crate) fn side_by_side(&self, j: usize, most: usize) -> (usize, &'a [E]) {
        let offsets = &self.offsets[j..];
        let mut rows = offsets.len().min(most);
        while rows > 1 && offsets[rows - 1] != offsets[0] + (rows - 1) * self.width {
            rows = rows.div_ceil(2);
        }
        let start = offsets[0] + self.head;
        (rows, &self.cells[start..start + rows * self.width])
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
    fn runs_end_where_rows_no_longer_follow() {
        let cells = [bf16::ZERO; 200];
        // Three rows in a page, two in an earlier one, one in a later one.
        let offsets = [100, 108, 116, 40, 48, 160];
        let strip = Strip { cells: &cells[..], offsets: &offsets, head: 2, width: 8 };
        let run = |j, bytes| {
            let (rows, range) = strip.run(j, bytes)?;
            let start = range.start.addr() - cells.as_ptr().addr();
            Some((rows, start / 2, (range.end.addr() - range.start.addr()) / 2))
        };
        assert_eq!(run(0, 1000), Some((3, 102, 24)));
        assert_eq!(run(0, 32), Some((2, 102, 16)));
        assert_eq!(run(0, 1), Some((1, 102, 8)));
        assert_eq!(run(1, 1000), Some((2, 110, 16)));
        assert_eq!(run(2, 1000), None, "the next row lies before it");
        assert_eq!(run(3, 1000), Some((2, 42, 16)));
        assert_eq!(run(4, 1000), None, "the next row lies far behind it");
        assert_eq!(run(5, 1000), None, "the last row");
        // Rows with a little between them are a run, with much they are not.
        assert!(Strip { width: 7, ..strip }.run(0, 1000).is_some());
        assert!(Strip { width: 6, ..strip }.run(0, 1000).is_none());
    }

    #[test]
    fn every_run_is_touched_where_it_begins_and_every_16_kib_on() {
        // Rows of 512 bytes: 64 of them, 64 before these, 10 behind, and 64 each in a place of its own.
        let cells = vec![bf16::ZERO; 256 * 1024];
        let runs = [(400, 1), (100, 1), (600, 1), (650, 5)].map(|(row, distance)| {
            (0..BLOCK).map(move |j| 256 * (row + distance * j)).collect::<Vec<_>>()
        });
        let touched = |offsets: &[usize]| -> Vec<usize> {
            Strip { cells: &cells[..], offsets, head: 8, width: 256 }.touched().collect()
        };
        let offsets = [&runs[0][..], &runs[1], &runs[2][..10]].concat();
        let row = |row: usize| row * 256 + 8;
        assert_eq!(touched(&offsets), [400, 432, 100, 132, 600].map(row));
        assert_eq!(touched(&runs[3]), [0; 0], "rows that do not follow each other are no run");
        assert_eq!(touched(&[]), [0; 0]);
    }
}
