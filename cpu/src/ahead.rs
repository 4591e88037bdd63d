//! What the matrix kernel asks of memory while it computes: the rows of the next head or block.
//!
//! Its products read what is in the second-level cache, so everything should be there when its turn
//! comes. The rows are asked for little by little, since a core has room for few requests and waits
//! where there are more.

use crate::amx::DEPTH;
use crate::lanes::Avx512;
use crate::strip::Strip;
use half::bf16;

/// Rows to ask for.
#[derive(Debug)]
pub(crate) struct Ahead<'a> {
    strips: [Strip<'a, bf16>; 2],
    /// Strip and row that come next.
    next: (usize, usize),
    /// Rows for each pair of positions that is packed, and for each step of a row tile.
    shares: [usize; 2],
}

impl<'a> Ahead<'a> {
    /// Rows of two strips, while a block of `steps` steps is packed for `row_tiles` tiles of
    /// rows, then weighed for each.
    pub(crate) fn new(strips: [Strip<'a, bf16>; 2], steps: usize, row_tiles: usize) -> Ahead<'a> {
        let rows: usize = strips.iter().map(Strip::len).sum();
        // Packing takes about as long as two row tiles do.
        let weight = 2 + row_tiles;
        let packing = (2 * rows).div_ceil(weight * steps * DEPTH / 2);
        let weighing = rows.div_ceil(weight * steps);
        Ahead { strips, next: (0, 0), shares: [packing, weighing] }
    }

    /// Asks for the share of a pair of positions.
    #[inline(always)]
    pub(crate) fn while_packing(&mut self, lanes: Avx512) {
        self.ask(lanes, self.shares[0]);
    }

    /// Asks for the share of a step of a row tile.
    #[inline(always)]
    pub(crate) fn while_weighing(&mut self, lanes: Avx512) {
        self.ask(lanes, self.shares[1]);
    }

    #[inline(always)]
    fn ask(&mut self, lanes: Avx512, rows: usize) {
        for _ in 0..rows {
            while self.next.0 < 2 && self.next.1 == self.strips[self.next.0].len() {
                self.next = (self.next.0 + 1, 0);
            }
            let Some(strip) = self.strips.get(self.next.0) else {
                return;
            };
            strip.prefetch(lanes, self.next.1);
            self.next.1 += 1;
        }
    }
}
