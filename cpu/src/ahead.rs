//! What the matrix kernel asks of memory while it computes: the rows of the next head or block, of sixteen pages in turn.
//!
//! A core has a few places for lines on their way to its first-level cache. A line that is asked for takes one until
//! it has come, as long as memory takes, even if it is asked to the second-level cache only; and tiles that are loaded from
//! there need the same places. What the prefetcher of the second-level cache fetches by itself takes none. It goes ahead of
//! lines that are asked for in a page, a little; so where one page is asked for after the other each line is met
//! on its way, and where sixteen take turns it has come, and to ask for it costs next to nothing.

use crate::amx::{Asked, ask};
use crate::buffer::PAGE;
use crate::plan::Padded;
use crate::schedule::{BLOCK, MATRIX_BLOCK};
use crate::strip::{LINE, Strip};
use half::bf16;

/// Two neighbouring lines, which are asked for together.
const PAIR: usize = 2 * LINE;

/// Pages that take turns.
///
/// PERF: a loop of its own, in which each 1 KiB is a tile that is loaded for 1, 8 or 12 products (26, 141 and 210 ns for a
/// page), runs of four pages in random order, ns a page: one after the other 308, 375, 425; 2 in turn 297, 333, 364; 4 291,
/// 316, 345; 8 262, 286, 305; 16 255, 286, 304. On another hour 16 and 32 298, 324, 360 and 320, 361, 408; 64, which is more
/// than it follows, 444, 540, 717. Two lines of each in turn as one, four 0 to 12 % more; halves of pages 10 % more; pages
/// in turn, but their lines in any order, 20 %. The engine, B 8, us: 4, 8, 16 pages 6822, 6680, 6281 for GTA at `q_len` 4;
/// 3902, 3755, 3592 for MLA with 16 heads.
const TURNS: usize = 16;

/// Pairs of lines to ask for with the work that a block is.
#[derive(Debug)]
pub(crate) struct Ahead<'a> {
    /// Where those begin that are left.
    pairs: &'a [usize],
    /// Pairs that fall to a unit of work, and those that are due, in parts of [`WHOLE`]; less those that were asked
    /// for before their time.
    rate: usize,
    due: isize,
}

const WHOLE: usize = 1 << 10;

impl<'a> Ahead<'a> {
    /// All of them, spread over so much work, which may be counted in anything.
    pub(crate) fn new(pairs: &'a [usize], work: usize) -> Ahead<'a> {
        Ahead { pairs, rate: (pairs.len() * WHOLE).div_ceil(work), due: 0 }
    }

    /// What is to be asked for with so much work, which is so many products, a multiple of four.
    #[inline]
    pub(crate) fn with_products(&mut self, work: usize, products: usize) -> Asked<'a> {
        let pairs = self.due(work);
        if pairs == 0 {
            return Asked::NOTHING;
        }
        let (asked, rest) = Asked::split(self.pairs, pairs, products / 4);
        self.take(self.pairs.len() - rest.len());
        asked
    }

    /// Asks for what falls to so much work at once.
    #[inline]
    pub(crate) fn ask(&mut self, work: usize) {
        let pairs = self.due(work).min(self.pairs.len());
        self.pairs[..pairs].iter().for_each(|pair| ask(*pair));
        self.take(pairs);
    }

    /// Pairs that are due after so much more work.
    #[inline]
    fn due(&mut self, work: usize) -> usize {
        self.due += (work * self.rate).cast_signed();
        self.due.max(0).unsigned_abs() / WHOLE
    }

    #[inline]
    fn take(&mut self, pairs: usize) {
        self.pairs = &self.pairs[pairs..];
        self.due -= (pairs * WHOLE).cast_signed();
    }
}

/// Pages, or shorter runs of memory, that take turns.
#[derive(Debug, Default)]
struct Runs {
    /// Where each begins.
    starts: [usize; TURNS],
    /// Pairs of each, one of which may begin in it and end behind it.
    pairs: [usize; TURNS],
    count: usize,
}

impl Runs {
    /// Adds the lines from `start` to `end`, cut where pages end.
    #[inline]
    fn push(&mut self, start: usize, end: usize, out: &mut Vec<usize>) {
        let mut start = start - start % LINE;
        while start < end {
            let page = (start + PAGE - start % PAGE).min(end);
            self.starts[self.count] = start;
            self.pairs[self.count] = (page - start).div_ceil(PAIR);
            self.count += 1;
            if self.count == TURNS {
                self.write(out);
            }
            start = page;
        }
    }

    /// Writes down a pair of each in turn.
    fn write(&mut self, out: &mut Vec<usize>) {
        let (starts, pairs) = (&self.starts[..self.count], &self.pairs[..self.count]);
        let shortest = pairs.iter().copied().min().unwrap_or(0);
        for pair in 0..shortest {
            out.extend(starts.iter().map(|start| start + pair * PAIR));
        }
        for pair in shortest..pairs.iter().copied().max().unwrap_or(0) {
            let runs = starts.iter().zip(pairs).filter(|(_, pairs)| pair < **pairs);
            out.extend(runs.map(|(start, _)| start + pair * PAIR));
        }
        self.count = 0;
    }
}

/// Room for what [`pairs`] writes of one block, whatever its rows.
pub(crate) fn room(padded: Padded) -> usize {
    // Of a row alone there is a pair for each two lines begun; of rows that follow each other with a quarter of their
    // width between them fewer, and those at the ends of pages.
    let widest = padded.q_stride().max(padded.value);
    STRIPS * MATRIX_BLOCK * ((widest * size_of::<bf16>()).div_ceil(LINE) + 1)
}

/// Strips that are read next, at most.
pub(crate) const STRIPS: usize = 3;

/// Writes down the lines of all rows, in the order in which they are to be asked for.
pub(crate) fn pairs<'o>(strips: [Strip<'_, bf16>; STRIPS], out: &'o mut Vec<usize>) -> &'o [usize] {
    out.clear();
    let mut runs = Runs::default();
    for strip in strips.into_iter().filter(|strip| strip.width() > 0) {
        for first in (0..strip.len()).step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(strip.len());
            if let Some(run) = strip.run(rows.clone()) {
                runs.push(run.start.addr(), run.end.addr(), out);
                continue;
            }
            for row in rows {
                let row = strip.row(row).as_ptr_range();
                runs.push(row.start.addr(), row.end.addr(), out);
            }
        }
    }
    runs.write(out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells of 20 pages, of which the first begins one.
    fn cells() -> (Vec<bf16>, usize) {
        let cells = vec![bf16::ZERO; 21 * PAGE / 2];
        let skipped = cells.as_ptr().align_offset(PAGE);
        (cells, skipped)
    }

    /// The pairs of a strip, as lines from the first page on.
    fn lines(cells: &[bf16], offsets: &[usize], width: usize) -> Vec<usize> {
        let strip = Strip::of(cells, offsets, width);
        let mut out = Vec::new();
        pairs([strip, strip.none(), strip.none()], &mut out);
        out.iter().map(|pair| (pair - cells.as_ptr().addr()) / LINE).collect()
    }

    #[test]
    fn pages_of_runs_take_turns() {
        let (cells, skipped) = cells();
        let cells = &cells[skipped..];
        // Two runs of 64 rows of 128 bytes, two pages each, the second before the first.
        let offsets = [8, 2].map(|page| (0..BLOCK).map(move |j| page * PAGE / 2 + 64 * j));
        let offsets: Vec<usize> = offsets.into_iter().flatten().collect();
        let expected: Vec<usize> = (0..32)
            .flat_map(|pair| [8, 9, 2, 3].map(|page| page * PAGE / LINE + 2 * pair))
            .collect();
        assert_eq!(lines(cells, &offsets, 64), expected);
    }

    #[test]
    fn every_line_is_asked_for_however_rows_lie() {
        let (cells, skipped) = cells();
        let cells = &cells[skipped..];
        for (first, distance, width) in
            [(0, 576, 576), (32, 576, 576), (40, 72, 64), (7, 300, 33), (96, 500, 500), (3, 1, 1)]
        {
            let offsets: Vec<usize> = (0..100)
                .map(|j| first + distance * j)
                .take_while(|at| at + width < cells.len())
                .collect();
            let asked = lines(cells, &offsets, width);
            let mut missing: Vec<usize> = offsets
                .iter()
                .flat_map(|at| at * 2 / LINE..=((at + width) * 2 - 1) / LINE)
                .filter(|line| !asked.iter().any(|pair| (*pair..pair + 2).contains(line)))
                .collect();
            missing.dedup();
            assert_eq!(missing, [0; 0], "{first}, {distance}, {width}");
            let rows = offsets.len();
            assert!(asked.len() <= rows * ((width * 2).div_ceil(LINE) + 1), "there is room");
        }
    }

    #[test]
    fn all_pairs_are_asked_for_in_step_with_the_work() {
        let all: Vec<usize> = (0..90).collect();
        let mut ahead = Ahead::new(&all, 100);
        let mut left = || {
            ahead.with_products(25, 8);
            ahead.pairs.len()
        };
        // Due are 22.5 each time, and with eight products an even number can be.
        assert_eq!([left(), left(), left(), left()], [68, 44, 22, 0]);
        let mut ahead = Ahead::new(&all, 100);
        ahead.ask(50);
        assert_eq!(ahead.pairs.len(), 45);
        ahead.ask(1000);
        assert!(ahead.pairs.is_empty());
        ahead.ask(1000);
    }
}
