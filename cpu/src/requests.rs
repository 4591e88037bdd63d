//! What the vector kernels ask of memory while they compute: the rows that the next head or block reads.
//!
//! A page's rows of one head are a run of memory, and the pages of a sequence lie anywhere, so the processor's
//! own prefetchers start anew with every run. Lines are asked for evenly, in step with the work: a core
//! has room for few requests and waits where there are more.

use crate::lanes::Lanes;
use crate::schedule::BLOCK;
use crate::strip::{LINE, Strip};

/// Rows to ask for.
///
/// PERF: one thread of a Zen 4, GQA at `q_len` 1, in the caches, avx512bf16 / avx2, us: a row at a time, each looked for
/// beside the position that it is as far from, 91 / 135, of which other changes of that time took some; shares of a run,
/// 69 / 138. The next run looked for in every step, by a call 69 / 200, which costs sums their registers, inlined 72 / 164;
/// shares of rows instead of lines 73 / 139; of two runs each 73 / 140 to 152. Where one row is bound by memory alone
/// (MHA) a row at a time was 4 to 8 % faster; asking in two or three places of a step is not, so why is not known.
#[derive(Debug)]
pub(crate) struct Requests<'a, E> {
    strips: [Strip<'a, E>; 2],
    /// Strip and row where the next run begins.
    next: (usize, usize),
    /// What is left of a run, and rows that the next one has at most.
    run: &'a [E],
    most: usize,
    /// Lines that fall to a unit of work, and those that are due, in parts of [`WHOLE`].
    rate: usize,
    due: usize,
}

const WHOLE: usize = 1 << 8;

/// Work that the weights of a block's row are, beside products.
pub(crate) const WEIGHING: usize = 8;

/// Work that a block of so many positions is: a unit is the product of one position, so many elements of it as are
/// loaded together, and four rows.
pub(crate) fn work(positions: usize, rows: usize, units: usize) -> usize {
    positions * rows.div_ceil(4) * units + rows * WEIGHING
}

impl<'a, E: Copy> Requests<'a, E> {
    /// All rows of the strips, spread over so much work.
    #[inline(always)]
    pub(crate) fn new(strips: [Strip<'a, E>; 2], work: usize) -> Requests<'a, E> {
        let strips = strips.map(|strip| if strip.width() == 0 { strip.none() } else { strip });
        let lines: usize = strips.iter().map(|strip| strip.len() * strip.lines()).sum();
        let rate = (lines * WHOLE).div_ceil(work);
        Requests { strips, next: (0, 0), run: &[], most: BLOCK, rate, due: 0 }
    }

    /// What is due with so much work, to be asked for in so many steps.
    #[inline(always)]
    pub(crate) fn share<L: Lanes>(&mut self, lanes: L, work: usize, steps: usize) -> Share<'a, E> {
        self.due += work * self.rate;
        let mut lines = self.due / WHOLE;
        self.due %= WHOLE;
        if self.run.len() < lines * Self::ELEMENTS {
            lines = self.across(lanes, lines);
        }
        let (run, rest) = self.run.split_at(lines * Self::ELEMENTS);
        self.run = rest;
        Share { run, step: lines.div_ceil(steps) * Self::ELEMENTS }
    }

    /// Asks at once for those of so many lines that are the rest of a run, and answers how many are left, all of them
    /// in one run.
    #[cold]
    fn across<L: Lanes>(&mut self, lanes: L, mut lines: usize) -> usize {
        loop {
            if lines <= self.run.len() / Self::ELEMENTS {
                return lines;
            }
            Share { run: self.run, step: self.run.len() }.ask(lanes);
            lines -= self.run.len().div_ceil(Self::ELEMENTS).min(lines);
            let Some(run) = self.next_run() else {
                (self.run, self.rate) = (&[], 0);
                return 0;
            };
            self.run = run;
        }
    }

    fn next_run(&mut self) -> Option<&'a [E]> {
        let (strip, row) = &mut self.next;
        while self.strips.get(*strip)?.len() == *row {
            (*strip, *row) = (*strip + 1, 0);
        }
        // Pages are of one size, so no run is longer than one before it but by chance.
        let (rows, run) = self.strips[*strip].side_by_side(*row, self.most);
        (*row, self.most) = (*row + rows, rows);
        Some(run)
    }

    /// Elements of a cache line.
    const ELEMENTS: usize = LINE / size_of::<E>();
}

/// Lines that are asked for in steps.
#[derive(Debug)]
pub(crate) struct Share<'a, E> {
    run: &'a [E],
    /// Elements to a step, whole lines.
    step: usize,
}

impl<E: Copy> Share<'_, E> {
    /// Asks for the next step's.
    #[inline(always)]
    pub(crate) fn ask<L: Lanes>(&mut self, lanes: L) {
        let (asked, rest) = self.run.split_at(self.step.min(self.run.len()));
        for at in (0..asked.len()).step_by(LINE / size_of::<E>()) {
            lanes.prefetch(asked, at);
        }
        self.run = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Portable;

    /// What shares of so much work have, cell by cell; `cells[i]` is i.
    fn shared(mut requests: Requests<'_, u16>, work: usize, shares: usize) -> Vec<u16> {
        (0..shares).flat_map(|_| requests.share(Portable, work, 4).run.to_vec()).collect()
    }

    #[test]
    fn shares_are_all_rows_in_their_order() {
        let cells: Vec<u16> = (0..1024).collect();
        // Rows of a line: four of a page, four of an earlier one, then two of another part.
        let offsets = [512, 544, 576, 608, 128, 160, 192, 224];
        let strips = [Strip::of(&cells, &offsets, 32), Strip::of(&cells, &offsets[6..], 32)];
        let all: Vec<u16> = (512..640).chain(128..256).chain(192..256).collect();
        // Ten lines in work of twenty: one share has two of them, and then one is asked for with every other.
        assert_eq!(shared(Requests::new(strips, 20), 4, 5), all);
        assert_eq!(shared(Requests::new(strips, 20), 1, 20), all);
        // Of a share of three runs the first two are asked for at once.
        assert_eq!(shared(Requests::new(strips, 20), 20, 1), all[256..]);
        // Nothing is left.
        assert_eq!(shared(Requests::new(strips, 20), 20, 4), all[256..]);
    }

    #[test]
    fn strips_without_width_have_nothing_to_ask_for() {
        let offsets = [0; 8];
        let none = Strip::<u16>::of(&[], &offsets, 0);
        assert!(shared(Requests::new([none, none], 20), 20, 2).is_empty());
    }

    #[test]
    fn steps_are_whole_lines_of_the_share() {
        let cells = [0_u16; 320];
        let strip = Strip::of(&cells, &[0, 160], 160);
        let mut share = Requests::new([strip, strip.none()], 10).share(Portable, 10, 4);
        let left = [0; 5].map(|_| {
            share.ask(Portable);
            share.run.len()
        });
        assert_eq!(left, [224, 128, 32, 0, 0]);
    }
}
