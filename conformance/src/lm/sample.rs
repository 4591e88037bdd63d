//! From logits to the next byte.

use super::uniform::Uniform;

/// Draws bytes at a temperature, or takes the likeliest one at temperature 0.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    draws: Uniform,
}

impl Sampler {
    /// A sampler whose draws depend on nothing but the seed.
    pub fn new(temperature: f64, seed: u64) -> Sampler {
        Sampler { temperature, draws: Uniform::new(seed) }
    }

    /// The next byte, of logits `[256]`.
    pub fn next(&mut self, logits: &[f64]) -> u8 {
        let likeliest = argmax(logits);
        if self.temperature == 0.0 {
            return likeliest as u8;
        }
        let temperature = self.temperature;
        let weight = |logit: f64| ((logit - logits[likeliest]) / temperature).exp();
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        let mut left = self.draws.next() * total;
        for (byte, &logit) in logits.iter().enumerate() {
            left -= weight(logit);
            if left < 0.0 {
                return byte as u8;
            }
        }
        // Rounding can leave a sliver behind the last weight.
        likeliest as u8
    }
}

/// Index of the largest logit, the first of equals.
fn argmax(logits: &[f64]) -> usize {
    logits
        .iter()
        .enumerate()
        .fold(0, |best, (index, logit)| if *logit > logits[best] { index } else { best })
}

/// How far the likeliest byte is ahead of the next.
pub(super) fn margin(logits: &[f64]) -> f64 {
    let best = argmax(logits);
    let others = logits.iter().enumerate().filter(|(index, _)| *index != best);
    logits[best] - others.map(|(_, &logit)| logit).fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_0_is_greedy_and_ties_go_to_the_first() {
        let mut sampler = Sampler::new(0.0, 1);
        assert_eq!(sampler.next(&[0.0, 2.0, 2.0, 1.0]), 1);
        assert_eq!(margin(&[0.0, 2.5, 2.0, 1.0]), 0.5);
    }

    #[test]
    fn draws_follow_the_weights_and_the_seed() {
        let logits = [0.0, 3_f64.ln()];
        let draw = |seed| {
            let mut sampler = Sampler::new(1.0, seed);
            (0..4000).map(|_| u32::from(sampler.next(&logits))).sum::<u32>()
        };
        // 3 of 4; five standard deviations of 4000 draws are 137.
        assert!(draw(7).abs_diff(3000) < 137, "{}", draw(7));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }
}
