//! Lengths of a ragged batch: read from a file, or drawn from a distribution with a seed.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the cached lengths of a batch come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lens {
    /// One length a sequence, separated by white space.
    File(PathBuf),
    /// Drawn for as many sequences as the batch has.
    Drawn { distribution: Distribution, seed: u64 },
}

/// How a length is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Distribution {
    /// Every length of `low..=high` alike.
    Uniform { low: usize, high: usize },
    /// Every ratio alike.
    LogUniform { low: usize, high: usize },
    /// The mean of the lengths themselves, and the deviation of their logarithms.
    LogNormal { mean: f64, sigma: f64 },
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum LensError {
    #[error(
        "lengths {text:?}: expected a file, uniform:LO:HI:SEED, loguniform:LO:HI:SEED or \
         lognormal:MEAN:SIGMA:SEED with 1 <= LO <= HI, MEAN >= 1 and SIGMA >= 0"
    )]
    Distribution { text: String },
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
}

impl FromStr for Lens {
    type Err = LensError;

    fn from_str(text: &str) -> Result<Lens, LensError> {
        let fields: Vec<&str> = text.split(':').collect();
        let drawn = match fields[..] {
            ["uniform", low, high, seed] => range(low, high)
                .map(|(low, high)| Distribution::Uniform { low, high })
                .zip(seed.parse().ok()),
            ["loguniform", low, high, seed] => range(low, high)
                .map(|(low, high)| Distribution::LogUniform { low, high })
                .zip(seed.parse().ok()),
            ["lognormal", mean, sigma, seed] => log_normal(mean, sigma).zip(seed.parse().ok()),
            ["uniform" | "loguniform" | "lognormal", ..] => None,
            _ => return Ok(Lens::File(text.into())),
        };
        match drawn {
            Some((distribution, seed)) => Ok(Lens::Drawn { distribution, seed }),
            None => Err(LensError::Distribution { text: text.to_owned() }),
        }
    }
}

fn range(low: &str, high: &str) -> Option<(usize, usize)> {
    let (low, high) = (low.parse().ok()?, high.parse().ok()?);
    (1 <= low && low <= high).then_some((low, high))
}

fn log_normal(mean: &str, sigma: &str) -> Option<Distribution> {
    let (mean, sigma): (f64, f64) = (mean.parse().ok()?, sigma.parse().ok()?);
    let legal = mean.is_finite() && mean >= 1.0 && sigma.is_finite() && sigma >= 0.0;
    legal.then_some(Distribution::LogNormal { mean, sigma })
}

impl Lens {
    /// The lengths, one a sequence; `batch` of them where they are drawn.
    pub(crate) fn lengths(&self, batch: usize) -> Result<Vec<usize>, LensError> {
        match self {
            Lens::File(path) => read(path),
            Lens::Drawn { distribution, seed } => {
                let mut words = Words(*seed);
                Ok((0..batch).map(|_| distribution.draw(&mut words)).collect())
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<usize>, LensError> {
    let error = |reason: String| LensError::File { path: path.to_owned(), reason };
    let text = std::fs::read_to_string(path).map_err(|cause| error(cause.to_string()))?;
    let lengths: Vec<usize> = text
        .split_whitespace()
        .map(|word| word.parse().map_err(|_| error(format!("{word:?} is not a length"))))
        .collect::<Result<_, _>>()?;
    if lengths.is_empty() {
        return Err(error("no lengths".into()));
    }
    Ok(lengths)
}

impl Distribution {
    fn draw(&self, words: &mut Words) -> usize {
        match *self {
            Distribution::Uniform { low, high } => {
                low + (words.unit() * (high - low + 1) as f64) as usize
            }
            Distribution::LogUniform { low, high } => {
                let ratio = high as f64 / low as f64;
                let length = low as f64 * ratio.powf(words.unit());
                (length.round() as usize).clamp(low, high)
            }
            Distribution::LogNormal { mean, sigma } => {
                // exp of a normal of mean m has the mean exp(m + sigma^2 / 2).
                let log = mean.ln() - sigma * sigma / 2.0 + sigma * words.normal();
                (log.exp().round() as usize).max(1)
            }
        }
    }
}

/// splitmix64.
struct Words(u64);

impl Words {
    /// In `0..1`.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (crate::random::mix(self.0) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str, batch: usize) -> Vec<usize> {
        text.parse::<Lens>().unwrap().lengths(batch).unwrap()
    }

    #[test]
    fn lengths_stay_within_their_range_and_follow_their_seed() {
        for text in ["uniform:3:9:1", "loguniform:3:9:1"] {
            let lengths = drawn(text, 1000);
            assert_eq!(
                (lengths.iter().min(), lengths.iter().max()),
                (Some(&3), Some(&9)),
                "{text}"
            );
            assert_eq!(lengths, drawn(text, 1000));
            assert_ne!(lengths, drawn(&text.replace(":1", ":2"), 1000));
        }
        assert_eq!(drawn("uniform:5:5:0", 2), [5, 5]);
    }

    #[test]
    fn logarithms_are_what_is_uniform_or_normal() {
        let middle = |text: &str| {
            let mut lengths = drawn(text, 4001);
            lengths.sort_unstable();
            lengths[2000] as f64
        };
        let geometric_mean = (256.0_f64 * 65536.0).sqrt();
        assert!((middle("loguniform:256:65536:1") / geometric_mean).ln().abs() < 0.15);
        let mean = |text: &str| drawn(text, 20_000).iter().sum::<usize>() as f64 / 20_000.0;
        assert!((mean("lognormal:4096:0.5:1") / 4096.0 - 1.0).abs() < 0.03);
        assert_eq!(drawn("lognormal:100:0:7", 3), [100; 3]);
    }

    #[test]
    fn what_is_neither_a_distribution_nor_a_file_says_so() {
        for text in ["uniform:0:4:1", "uniform:5:4:1", "loguniform:1:2", "lognormal:nan:1:1"] {
            let error = text.parse::<Lens>().unwrap_err();
            assert!(matches!(error, LensError::Distribution { .. }), "{text}");
        }
        let missing: Lens = "no/such/file".parse().unwrap();
        assert!(matches!(missing.lengths(1), Err(LensError::File { .. })));
    }

    #[test]
    fn a_file_has_one_length_a_sequence() {
        let path = std::env::temp_dir().join(format!("lens-{}", std::process::id()));
        std::fs::write(&path, "12 7\n300\n").unwrap();
        assert_eq!(Lens::File(path.clone()).lengths(99).unwrap(), [12, 7, 300]);
        std::fs::write(&path, "12 x").unwrap();
        assert!(matches!(Lens::File(path.clone()).lengths(1), Err(LensError::File { .. })));
        std::fs::remove_file(path).unwrap();
    }
}
