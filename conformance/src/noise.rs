//! Numbers that a seed decides: the same on every machine, in any order of asking.
//!
//! A generator of our own keeps a printed case meaning the same numbers for good; crates of random
//! numbers change theirs between versions.

/// SplitMix64: a counter through a mixing function, so that any key opens an independent stream.
#[derive(Clone, Debug)]
pub struct Noise {
    state: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Noise {
    /// The stream that a seed and a path of keys open.
    pub fn new(seed: u64, keys: &[u64]) -> Noise {
        let state = keys.iter().fold(mix(seed ^ GOLDEN), |state, &key| {
            mix(state.wrapping_add(GOLDEN) ^ key.wrapping_mul(0xd6e8_feb8_6659_fd93))
        });
        Noise { state }
    }

    /// 64 uniform bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `(0, 1)`.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Uniform in `0..n`; 0 for n = 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// Standard normal.
    pub fn gaussian(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// -1 or 1.
    pub fn sign(&mut self) -> f64 {
        if self.bits() >> 63 == 0 { 1.0 } else { -1.0 }
    }

    /// One of a list.
    ///
    /// # Panics
    /// If the list is empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Puts a list into a random order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.below(end + 1));
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |keys: &[u64]| Noise::new(7, keys).bits();
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        assert_ne!(draw(&[1, 2]), draw(&[2, 1]));
        assert_ne!(draw(&[1]), draw(&[1, 0]));
    }

    #[test]
    fn gaussians_have_unit_variance() {
        let mut noise = Noise::new(1, &[]);
        let draws: Vec<f64> = (0..20_000).map(|_| noise.gaussian()).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let square = draws.iter().map(|x| x * x).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.05, "{mean} {square}");
    }

    #[test]
    fn below_stays_below() {
        let mut noise = Noise::new(3, &[]);
        assert!((0..1000).all(|_| noise.below(3) < 3));
        assert_eq!(noise.below(0), 0);
    }
}
