//! What the matrix kernel asks of memory while it computes: the rows of the next head or block.
//!
//! Its products read what is in the second-level cache, so everything should be there when its turn
//! comes. The lines are asked for evenly, since a core has room for few requests and waits where
//! there are more: in step with the work, whose unit is the product of two tiles.
//!
//! Where there is one tile of rows products are few and memory sets the pace: what is asked for is counted out for
//! each 64 positions beforehand.

use crate::amx::Asked;
use crate::lanes::Avx512;
use crate::schedule::BLOCK;
use crate::strip::{LINE, Strip};
use half::bf16;
use std::ops::Range;

/// Rows to ask for.
#[derive(Debug)]
pub(crate) struct Ahead<'a> {
    strips: [Strip<'a, bf16>; 3],
    /// Strip and row that come next.
    next: (usize, usize),
    /// Bytes to ask for with what takes as long as a product, and as many as one can ask for.
    rate: usize,
    most: usize,
    /// Bytes that are due, less those that were asked for before their time, a row being asked for as a whole.
    due: isize,
}

/// How much work a block is, in products of tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Products themselves.
    pub(crate) products: usize,
    /// What takes as long as so many.
    pub(crate) others: usize,
    /// Lines that a product can ask for.
    pub(crate) most: usize,
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(strips: [Strip<'a, bf16>; 3], work: Work) -> Ahead<'a> {
        let strips = strips.map(|strip| if strip.lines() == 0 { strip.none() } else { strip });
        let lines: usize = strips.iter().map(|strip| strip.len() * strip.lines()).sum();
        let rate = (lines * LINE).div_ceil(work.products + work.others);
        Ahead { strips, next: (0, 0), rate, most: work.most * LINE, due: 0 }
    }

    /// What is to be asked for with work that takes as long as `products` products: a run of rows, or, where
    /// rows do not follow each other, nothing, since they are asked for at once.
    ///
    /// PERF: one thread of a Xeon, L 8192, best of 40 calls, one after the other on the same processor, lines
    /// counted one by one while values are packed and scores weighed, and runs of rows, us: GLA-2 with 128 heads
    /// 1896, 1848; MLA with 128 heads 2579, 2517, with 16 heads 873, 845; GLA-2 with 16 heads at `q_len` 4 1344,
    /// 1321; GQA at `q_len` 4 2937, 2698. Every second line, for the processor to fetch the other: GLA-2 with 128
    /// heads 1969 instead of 1920.
    #[inline]
    pub(crate) fn asked(&mut self, lanes: Avx512, products: usize) -> Asked {
        // Where its share is more than a product can ask for, the rest is left: in bursts it would be late.
        let most = (products * self.most).cast_signed();
        self.due = (self.due + (products * self.rate).cast_signed()).min(most);
        let Some((strip, row)) = self.row() else {
            return Asked::NOTHING;
        };
        if let Some((rows, run)) = strip.run(row, self.due.unsigned_abs()) {
            self.take(strip, rows);
            let [start, end] = [run.start, run.end].map(<*const bf16>::cast::<u8>);
            return Asked::lines(start, (end.addr() - start.addr()).div_ceil(products));
        }
        while let Some((strip, row)) = self.row() {
            strip.prefetch(lanes, row);
            self.take(strip, 1);
        }
        Asked::NOTHING
    }

    /// The row that comes next, and its strip, if any is left and anything due.
    #[inline]
    fn row(&mut self) -> Option<(Strip<'a, bf16>, usize)> {
        let (strip, row) = &mut self.next;
        while *strip < self.strips.len() && *row == self.strips[*strip].len() {
            (*strip, *row) = (*strip + 1, 0);
        }
        let strip = self.strips.get(*strip).copied()?;
        (self.due > 0).then_some((strip, *row))
    }

    fn take(&mut self, strip: Strip<'a, bf16>, rows: usize) {
        self.next.1 += rows;
        self.due -= (rows * strip.lines() * LINE).cast_signed();
    }
}

/// What the next head reads of the positions that this one is at, for one tile of rows.
///
/// Keys of 64 positions are asked for with the scores of 64 and while they are weighed, values with the products of
/// values; states, which are both, with all three.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beside<'a> {
    /// Keys, or states.
    pub(crate) first: Strip<'a, bf16>,
    /// Values where they are not states.
    pub(crate) values: Option<Strip<'a, bf16>>,
    /// Rope keys of the next block.
    pub(crate) rope: Strip<'a, bf16>,
}

impl Beside<'_> {
    /// Rows of 64 that are asked for with scores, and up to which they are while weighing.
    ///
    /// PERF: two threads of a Xeon, B 8, L 8192, medians, us. Separate, 48 and 64 / 32 and 64 / 32 and 48: GQA at `q_len` 1
    /// 11184 / 11371 / 12121, at 4 13229 / 13115 / 14496. Tied, 0 and 0 / 0 and 8 / 8 and 16 / 16 and 24, two rounds: MLA with
    /// 16 heads 4561, 4690 / 4399, 4352 / 4291, 4141 / 4504, 4439; GLA-2 with 16 heads 4120, 4275 / 3862, 4067 / 3974, 3909 /
    /// 3978, 3980; GTA 6849, 7032 / 6893, 7024 / 6762, 6588 / 6994, 7087, at `q_len` 4 9378, 9238 / 8945, 8843 / 9155, 9233 /
    /// 8984, 8975. On another hour 24 and 32 were 4 % slower for MLA than 16 and 24, 32 and 48 11 %, 32 and 64 29 %.
    fn shares(&self) -> (usize, usize) {
        if self.values.is_some() { (48, BLOCK) } else { (8, 16) }
    }

    /// With the scores of a group of 64 positions, which take so many products.
    #[inline]
    pub(crate) fn scores(&self, lanes: Avx512, group: usize, products: usize) -> Asked {
        let start = group * BLOCK;
        rows(lanes, self.first, start..start + self.shares().0, products)
    }

    /// While half of a group is weighed.
    #[inline]
    pub(crate) fn weights(&self, lanes: Avx512, half: usize) {
        let (from, to) = self.shares();
        let ask = |strip, from: usize, to: usize| {
            let each = (to - from) / 2;
            let start = half / 2 * BLOCK + from + half % 2 * each;
            rows(lanes, strip, start..start + each, 1).with(0..1);
        };
        ask(self.first, from, to);
        ask(self.rope, 0, BLOCK);
    }

    /// With the products of half of a group's values and some of their columns, of so many parts.
    #[inline]
    pub(crate) fn values(
        &self,
        lanes: Avx512,
        half: usize,
        (part, parts): (usize, usize),
        products: usize,
    ) -> Asked {
        let (strip, from) = match self.values {
            Some(values) => (values, 0),
            None => (self.first, self.shares().1),
        };
        let each = (BLOCK - from) / 2;
        let start = half / 2 * BLOCK + from + half % 2 * each;
        let [first, end] = [part, part + 1].map(|part| start + part * each / parts);
        rows(lanes, strip, first..end, products)
    }
}

/// Some rows with so many products: a run of them, or, where they do not follow each other, nothing, since they are
/// asked for at once.
#[inline]
fn rows(lanes: Avx512, strip: Strip<'_, bf16>, range: Range<usize>, products: usize) -> Asked {
    let range = range.start..range.end.min(strip.len());
    if range.is_empty() {
        return Asked::NOTHING;
    }
    if let Some(run) = strip.whole_run(range.clone()) {
        let [start, end] = [run.start, run.end].map(<*const bf16>::cast::<u8>);
        return Asked::lines(start, (end.addr() - start.addr()).div_ceil(products));
    }
    range.for_each(|row| strip.prefetch(lanes, row));
    Asked::NOTHING
}
