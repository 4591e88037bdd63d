//! Draws that depend on nothing but a seed.

/// Uniform numbers on `[0, 1)`, by SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Uniform {
    state: u64,
}

impl Uniform {
    pub(crate) fn new(seed: u64) -> Uniform {
        Uniform { state: seed }
    }

    pub(crate) fn next(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 * f64::EPSILON / 2.0
    }

    /// An index below `count`, which is at least 1.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        // The product rounds up to `count` only past 2^53.
        ((self.next() * count as f64) as usize).min(count - 1)
    }
}
