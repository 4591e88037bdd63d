//! What is asked of memory while a kernel computes: the rows of the next head or block, of sixteen pages in turn.
//!
//! A core has a few places for lines on their way to its first-level cache. A line that is asked for takes one until
//! it has come, as long as memory takes, even if it is asked to the second-level cache only; and what is loaded from
//! there needs the same places. What the prefetcher of the second-level cache fetches by itself takes none. It goes ahead of
//! lines that are asked for in a page, a little; so where one page is asked for after the other each line is met
//! on its way, and where sixteen take turns it has come, and to ask for it costs next to nothing.
//!
//! Lines are asked for evenly, in step with the work: many at once would still wait for each other.

#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::amx::Asked;
use crate::buffer::PAGE;
use crate::lanes::Lanes;
use crate::machine;
use crate::plan::{Padded, with_capacity};
use crate::schedule::{BLOCK, MATRIX_BLOCK};
use crate::strip::{LINE, Strip};
use grouped_attention::EngineError;
use half::bf16;

/// Two neighbouring lines, which are asked for together.
const PAIR: usize = 2 * LINE;

/// Pages that take turns, at most.
///
/// PERF: a loop of its own on a Xeon, in which each 1 KiB is a tile that is loaded for 1, 8 or 12 products (26, 141 and 210 ns
/// for a page), runs of four pages in random order, ns a page: one after the other 308, 375, 425; 2 in turn 297, 333, 364; 4
/// 291, 316, 345; 8 262, 286, 305; 16 255, 286, 304. On another hour 16 and 32 298, 324, 360 and 320, 361, 408; 64, which is
/// more than it follows, 444, 540, 717. Two lines of each in turn are as one, four 0 to 12 % more; halves of pages 10 % more;
/// pages in turn, but their lines in any order, 20 %. The engine, B 8, us: 4, 8, 16 pages 6822, 6680, 6281 for GTA at `q_len` 4;
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
    #[inline(always)]
    pub(crate) fn new(pairs: &'a [usize], work: usize) -> Ahead<'a> {
        Ahead { pairs, rate: (pairs.len() * WHOLE).div_ceil(work), due: 0 }
    }

    /// What is to be asked for with so much work, which is so many products of tiles, a multiple of four.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    pub(crate) fn with_products<L: Lanes>(
        &mut self,
        lanes: L,
        work: usize,
        products: usize,
    ) -> Asked<'a> {
        let (due, fours) = (self.due(work), products / 4);
        let (asked, rest) = Asked::split(self.pairs, due, fours);
        let last = rest.len() < fours && due >= self.pairs.len();
        self.take(self.pairs.len() - rest.len());
        // The last few, of which there are not as many as would go with the products, at once.
        if last {
            Share { pairs: self.take(rest.len()), step: rest.len() }.ask(lanes);
        }
        asked
    }

    /// What is to be asked for with so much work, in so many steps.
    #[inline(always)]
    pub(crate) fn share(&mut self, work: usize, steps: usize) -> Share<'a> {
        let pairs = self.due(work).min(self.pairs.len());
        Share { pairs: self.take(pairs), step: pairs.div_ceil(steps) }
    }

    /// Asks for what falls to so much work at once.
    #[inline(always)]
    pub(crate) fn ask<L: Lanes>(&mut self, lanes: L, work: usize) {
        self.share(work, 1).ask(lanes);
    }

    /// Pairs that are due after so much more work.
    #[inline(always)]
    fn due(&mut self, work: usize) -> usize {
        self.due += (work * self.rate).cast_signed();
        self.due.max(0).unsigned_abs() / WHOLE
    }

    #[inline(always)]
    fn take(&mut self, pairs: usize) -> &'a [usize] {
        let (taken, rest) = self.pairs.split_at(pairs);
        self.pairs = rest;
        self.due -= (pairs * WHOLE).cast_signed();
        taken
    }
}

/// Pairs that are asked for in steps.
#[derive(Debug)]
pub(crate) struct Share<'a> {
    pairs: &'a [usize],
    step: usize,
}

impl Share<'_> {
    /// Asks for the next step's.
    #[inline(always)]
    pub(crate) fn ask<L: Lanes>(&mut self, lanes: L) {
        let (asked, rest) = self.pairs.split_at(self.step.min(self.pairs.len()));
        for pair in asked {
            lanes.prefetch(*pair);
            lanes.prefetch(pair.wrapping_add(LINE));
        }
        self.pairs = rest;
    }
}

/// Writes down what is to be asked for with a block.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Pages that take turns here.
    turns: usize,
    pairs: Vec<usize>,
}

impl Lines {
    /// With room for what one block reads of another, whatever its rows.
    pub(crate) fn new(padded: Padded) -> Result<Lines, EngineError> {
        // Of a row alone there is a pair for each two lines begun; of rows that follow each other with a quarter of their
        // width between them fewer, and those at the ends of pages. Other formats than bf16 have shorter blocks.
        let widest = padded.q_stride().max(padded.value) * size_of::<bf16>();
        let pairs = with_capacity(STRIPS * MATRIX_BLOCK * (widest.div_ceil(LINE) + 1))?;
        // Elsewhere that was not measured, and on processors of AMD one page after the other was good.
        let turns = if machine::is_intel() { TURNS } else { 1 };
        Ok(Lines { turns, pairs })
    }

    /// The pairs of lines of all rows, in the order in which they are to be asked for.
    pub(crate) fn of<E: Copy, const N: usize>(&mut self, strips: [Strip<'_, E>; N]) -> &[usize] {
        const { assert!(N <= STRIPS) };
        self.pairs.clear();
        let mut runs = Runs { starts: [0; TURNS], pairs: [0; TURNS], count: 0, turns: self.turns };
        for strip in strips.into_iter().filter(|strip| strip.width() > 0) {
            // Pages of a cache are of one size, so no run is longer than one before it but by chance.
            let (mut first, mut most) = (0, BLOCK);
            while first < strip.len() {
                let mut rows = first..(first + most).min(strip.len());
                let run = loop {
                    if let Some(run) = strip.run(rows.clone()) {
                        break run;
                    }
                    most = rows.len().div_ceil(2);
                    rows.end = rows.start + most;
                };
                runs.push(run.start.addr(), run.end.addr(), &mut self.pairs);
                first = rows.end;
            }
        }
        runs.write(&mut self.pairs);
        &self.pairs
    }
}

/// Strips that are read next, at most.
const STRIPS: usize = 3;

/// Pages, or shorter runs of memory, that take turns.
struct Runs {
    /// Where each begins.
    starts: [usize; TURNS],
    /// Pairs of each, one of which may begin in it and end behind it.
    pairs: [usize; TURNS],
    count: usize,
    /// How many take turns.
    turns: usize,
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
            if self.count == self.turns {
                self.write(out);
            }
            start = page;
        }
    }

    /// Writes down a pair of each in turn.
    #[inline]
    fn write(&mut self, out: &mut Vec<usize>) {
        let (starts, pairs) = (&self.starts[..self.count], &self.pairs[..self.count]);
        let shortest = pairs.iter().copied().min().unwrap_or(0);
        let written = match starts.len() {
            TURNS => write_whole::<TURNS>(starts, shortest, out),
            8 => write_whole::<8>(starts, shortest, out),
            1 => write_whole::<1>(starts, shortest, out),
            _ => 0,
        };
        for pair in written..pairs.iter().copied().max().unwrap_or(0) {
            let runs = starts.iter().zip(pairs).filter(|(_, pairs)| pair < **pairs);
            out.extend(runs.map(|(start, _)| start + pair * PAIR));
        }
        self.count = 0;
    }
}

/// Of so many runs, at a known number of them, the first `pairs` pairs; answers how many.
///
/// PERF: one thread of a Xeon, 512 positions in the caches, us, one by one and so: GTA 42, 41, GQA 66, 63.
#[inline]
fn write_whole<const N: usize>(starts: &[usize], pairs: usize, out: &mut Vec<usize>) -> usize {
    let mut pair: [usize; N] = *starts.first_chunk().expect("so many runs");
    for _ in 0..pairs {
        out.extend_from_slice(&pair);
        pair = pair.map(|start| start + PAIR);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Portable;

    /// Cells of 20 pages, of which the first begins one.
    fn cells() -> (Vec<bf16>, usize) {
        let cells = vec![bf16::ZERO; 21 * PAGE / 2];
        let skipped = cells.as_ptr().align_offset(PAGE);
        (cells, skipped)
    }

    /// The pairs of a strip, as lines from the first page on.
    fn lines(cells: &[bf16], offsets: &[usize], width: usize) -> Vec<usize> {
        let strip = Strip::of(cells, offsets, width);
        let mut lines = Lines { turns: TURNS, pairs: Vec::new() };
        lines.of([strip]).iter().map(|pair| (pair - cells.as_ptr().addr()) / LINE).collect()
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
    fn runs_are_as_long_as_pages_of_the_cache() {
        let (cells, skipped) = cells();
        let cells = &cells[skipped..];
        // Pages of 16 rows of 256 bytes, 4 KiB each, in an order of their own.
        let offsets = [7, 1, 4, 2].map(|page| (0..16).map(move |j| page * PAGE / 2 + 128 * j));
        let offsets: Vec<usize> = offsets.into_iter().flatten().collect();
        let expected: Vec<usize> = (0..32)
            .flat_map(|pair| [7, 1, 4, 2].map(|page| page * PAGE / LINE + 2 * pair))
            .collect();
        assert_eq!(lines(cells, &offsets, 128), expected);
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
        let mut left = |work| {
            let mut share = ahead.share(work, 4);
            let steps = [0; 4].map(|_| {
                let before = share.pairs.len();
                share.ask(Portable);
                before - share.pairs.len()
            });
            (steps, ahead.pairs.len())
        };
        assert_eq!(left(25), ([6, 6, 6, 4], 68));
        assert_eq!(left(0), ([0; 4], 68));
        assert_eq!(left(25), ([6, 6, 6, 5], 45), "what was short is made up for");
        let mut ahead = Ahead::new(&all, 100);
        ahead.ask(Portable, 50);
        assert_eq!(ahead.pairs.len(), 45);
        ahead.ask(Portable, 1000);
        assert!(ahead.pairs.is_empty());
        ahead.ask(Portable, 1000);
    }
}
