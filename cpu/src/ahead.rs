//! What the matrix kernel asks of memory while it computes: the rows of the next head or block.
//!
//! Its products read what is in the second-level cache, so everything should be there when its turn
//! comes. The lines are asked for evenly, since a core has room for few requests and waits where
//! there are more: in step with the work, whose unit is the product of two tiles.

use crate::amx::Asked;
use crate::lanes::Avx512;
use crate::strip::Strip;
use half::bf16;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Units in which parts of a line are counted.
const WHOLE: usize = 1024;

/// Rows to ask for.
#[derive(Debug)]
pub(crate) struct Ahead<'a> {
    strips: [Strip<'a, bf16>; 3],
    /// Strip, row and line that come next.
    next: (usize, usize, usize),
    /// Parts of lines to ask for with what takes as long as a product, and with a product.
    rate: usize,
    multiplying: usize,
    /// Parts of a line that nobody has asked for yet.
    owed: usize,
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
        // Where a product cannot ask for its share, the rest of it is left: in bursts it would be late.
        let rate = (lines * WHOLE).div_ceil(work.products + work.others);
        let multiplying = rate.min(work.most * WHOLE);
        Ahead { strips, next: (0, 0, 0), rate, multiplying, owed: 0 }
    }

    /// Asks for what is due after work that takes as long as `products` products.
    #[inline(always)]
    pub(crate) fn after(&mut self, lanes: Avx512, products: usize) {
        self.owed += self.rate * products;
        self.ask(lanes);
    }

    /// What a run of `products` products is to ask for.
    #[inline]
    pub(crate) fn while_multiplying(&mut self, lanes: Avx512, products: usize) -> Asked {
        let Some(strip) = self.strip() else {
            return Asked::NOTHING;
        };
        let bytes = products * self.multiplying * LINE / WHOLE;
        let Some((rows, run)) = strip.run(self.next.1, bytes) else {
            self.owed += self.multiplying * products;
            self.ask(lanes);
            return Asked::NOTHING;
        };
        (self.next.1, self.next.2) = (self.next.1 + rows, 0);
        // A short run is asked for with what lies before it, which is here already.
        let [start, end] = [run.start, run.end].map(<*const bf16>::cast::<u8>);
        let bytes = bytes.max(end.addr() - start.addr());
        Asked::lines(end.wrapping_sub(bytes), bytes.div_ceil(products))
    }

    #[inline(always)]
    fn ask(&mut self, lanes: Avx512) {
        while self.owed >= WHOLE {
            let Some(strip) = self.strip() else {
                self.owed = 0;
                return;
            };
            let (_, row, line) = &mut self.next;
            strip.prefetch_line(lanes, *row, *line);
            *line += 1;
            if *line == strip.lines() {
                (*row, *line) = (*row + 1, 0);
            }
            self.owed -= WHOLE;
        }
    }

    /// The strip whose row is next, if any is left.
    #[inline(always)]
    fn strip(&mut self) -> Option<Strip<'a, bf16>> {
        while self.next.0 < self.strips.len() && self.next.1 == self.strips[self.next.0].len() {
            self.next = (self.next.0 + 1, 0, 0);
        }
        self.strips.get(self.next.0).copied()
    }
}
