//! Requests that arrive.

use super::server::Request;
use crate::lm::Uniform;
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A request and when it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// When it comes, from the start.
    pub at: Duration,
    /// What it is.
    pub request: Request,
    /// When it is called off, if the answer is not whole by then.
    pub cancel: Option<Duration>,
}

/// Requests that come independently of each other at a mean rate, with prompts cut from a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Poisson {
    /// Requests per second, more than 0.
    pub rate: f64,
    /// How many.
    pub requests: usize,
    /// Decides everything.
    pub seed: u64,
    /// Bytes of a prompt's own part.
    pub prompt: RangeInclusive<usize>,
    /// Bytes of an answer.
    pub tokens: RangeInclusive<usize>,
    /// Passages that prompts have in common.
    pub prefixes: usize,
    /// Bytes of each.
    pub prefix: usize,
    /// Part of the requests that begin with one of them.
    pub sharing: f64,
    /// Part of the requests that are called off.
    pub cancelled: f64,
    /// Of the answers.
    pub temperature: f64,
}

impl Poisson {
    /// The requests in the order of their arrival. Prompts and lengths depend on the seed and not
    /// on the rate, so that rates differ in nothing but the times.
    ///
    /// # Errors
    /// A rate that is not a positive number; a text shorter than a prompt; an empty range.
    pub fn arrivals(&self, text: &[u8]) -> Result<Vec<Arrival>, WorkloadError> {
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(WorkloadError::Rate { rate: self.rate });
        }
        for range in [&self.prompt, &self.tokens] {
            if range.is_empty() || *range.start() == 0 {
                return Err(WorkloadError::Range { low: *range.start(), high: *range.end() });
            }
        }
        let longest = self.prefix.max(*self.prompt.end());
        if longest > text.len() {
            return Err(WorkloadError::TextTooShort { longest, len: text.len() });
        }
        let mut draws = Uniform::new(self.seed);
        let prefixes: Vec<_> =
            (0..self.prefixes).map(|_| passage(text, self.prefix, &mut draws)).collect();
        let mut at = 0.0;
        Ok((0..self.requests)
            .map(|index| {
                at += -(1.0 - draws.next()).ln() / self.rate;
                self.arrival(at, index, &prefixes, text, &mut draws)
            })
            .collect())
    }

    fn arrival(
        &self,
        at: f64,
        index: usize,
        prefixes: &[&[u8]],
        text: &[u8],
        draws: &mut Uniform,
    ) -> Arrival {
        let mut prompt = Vec::new();
        if draws.next() < self.sharing && !prefixes.is_empty() {
            prompt.extend_from_slice(prefixes[draws.below(prefixes.len())]);
        }
        let own = between(&self.prompt, draws);
        prompt.extend_from_slice(passage(text, own, draws));
        let tokens = between(&self.tokens, draws);
        // Patience is exponential with a mean of one second, whatever the load.
        let (called_off, patience) = (draws.next() < self.cancelled, -(1.0 - draws.next()).ln());
        let request = Request {
            prompt,
            tokens,
            temperature: self.temperature,
            seed: self.seed.wrapping_add(index as u64),
        };
        let cancel = called_off.then(|| Duration::from_secs_f64(at + patience));
        Arrival { at: Duration::from_secs_f64(at), request, cancel }
    }
}

fn between(range: &RangeInclusive<usize>, draws: &mut Uniform) -> usize {
    range.start() + draws.below(range.end() - range.start() + 1)
}

fn passage<'a>(text: &'a [u8], len: usize, draws: &mut Uniform) -> &'a [u8] {
    &text[draws.below(text.len() - len + 1)..][..len]
}

/// One line of a trace.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at: f64,
    prompt: String,
    tokens: usize,
    cancel: Option<f64>,
    #[serde(default)]
    temperature: f64,
    seed: Option<u64>,
}

/// Reads a trace: one JSON object a line, with `at` (seconds), `prompt`, `tokens`, and optionally
/// `cancel` (seconds), `temperature` and `seed`. Requests may stand in any order.
///
/// # Errors
/// A line that is not such an object, or a time or temperature that is negative or no number.
pub fn read_trace(text: &str) -> Result<Vec<Arrival>, WorkloadError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut arrivals = lines
        .map(|(index, line)| {
            read_line(index, line)
                .map_err(|reason| WorkloadError::Trace { line: index + 1, reason })
        })
        .collect::<Result<Vec<_>, _>>()?;
    arrivals.sort_by_key(|arrival| arrival.at);
    Ok(arrivals)
}

fn read_line(index: usize, line: &str) -> Result<Arrival, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let time = |what: &str, seconds| {
        Duration::try_from_secs_f64(seconds).map_err(|_| format!("{what} is {seconds} seconds"))
    };
    if !(line.temperature >= 0.0 && line.temperature.is_finite()) {
        return Err(format!("temperature is {}", line.temperature));
    }
    Ok(Arrival {
        at: time("at", line.at)?,
        cancel: line.cancel.map(|seconds| time("cancel", seconds)).transpose()?,
        request: Request {
            prompt: line.prompt.into_bytes(),
            tokens: line.tokens,
            temperature: line.temperature,
            seed: line.seed.unwrap_or(index as u64),
        },
    })
}

/// Why there is no workload.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// Nothing would ever arrive, or everything at once.
    #[error("a rate of {rate} requests per second is not a positive number")]
    Rate {
        /// The rate.
        rate: f64,
    },
    /// Lengths are at least 1.
    #[error("lengths of {low} to {high} bytes are no range of positive lengths")]
    Range {
        /// Shortest.
        low: usize,
        /// Longest.
        high: usize,
    },
    /// Prompts are cut out of the text.
    #[error("prompts of {longest} bytes cannot be cut from a text of {len}")]
    TextTooShort {
        /// Longest passage.
        longest: usize,
        /// Bytes of the text.
        len: usize,
    },
    /// A line of a trace.
    #[error("line {line} of the trace: {reason}")]
    Trace {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poisson(rate: f64) -> Poisson {
        Poisson {
            rate,
            requests: 2000,
            seed: 5,
            prompt: 3..=9,
            tokens: 1..=4,
            prefixes: 2,
            prefix: 16,
            sharing: 0.5,
            cancelled: 0.25,
            temperature: 0.0,
        }
    }

    #[test]
    fn gaps_have_the_rate_and_the_rest_does_not_depend_on_it() {
        let text: Vec<u8> = (0..=255).collect();
        let (slow, fast) =
            (poisson(4.0).arrivals(&text).unwrap(), poisson(8.0).arrivals(&text).unwrap());
        // 2000 gaps of 1/4 s; five standard deviations of their sum are 56 s.
        let end = slow.last().unwrap().at.as_secs_f64();
        assert!((end - 500.0).abs() < 56.0, "{end}");
        assert!(slow.iter().zip(&fast).all(|(a, b)| a.request == b.request));
        assert!(slow.windows(2).all(|pair| pair[0].at <= pair[1].at));
        let sharing = slow.iter().filter(|arrival| arrival.request.prompt.len() > 9).count();
        assert!(sharing.abs_diff(1000) < 112, "{sharing}");
        let lengths: Vec<usize> = slow.iter().map(|arrival| arrival.request.tokens).collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&1), Some(&4)));
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let of = |change: fn(&mut Poisson)| {
            let mut poisson = poisson(1.0);
            change(&mut poisson);
            poisson.arrivals(&[0; 20]).unwrap_err()
        };
        assert_eq!(of(|p| p.rate = 0.0), WorkloadError::Rate { rate: 0.0 });
        assert_eq!(of(|p| p.tokens = 0..=4), WorkloadError::Range { low: 0, high: 4 });
        assert_eq!(of(|p| p.prefix = 21), WorkloadError::TextTooShort { longest: 21, len: 20 });
    }

    #[test]
    fn traces_are_sorted_and_bad_lines_named() {
        let trace = "{\"at\": 2, \"prompt\": \"b\", \"tokens\": 3}\n\n\
                     {\"at\": 0.5, \"prompt\": \"a\", \"tokens\": 1, \"cancel\": 1, \"seed\": 9}\n";
        let arrivals = read_trace(trace).unwrap();
        assert_eq!(arrivals[0].at, Duration::from_millis(500));
        assert_eq!(arrivals[0].cancel, Some(Duration::from_secs(1)));
        assert_eq!((arrivals[0].request.seed, arrivals[1].request.seed), (9, 0));

        for (line, what) in [
            ("{\"at\": -1, \"prompt\": \"\", \"tokens\": 1}", "at is -1 seconds"),
            ("{\"at\": 1, \"prompt\": \"\"}", "missing field `tokens`"),
            ("{\"at\": 1, \"prompt\": \"\", \"tokens\": 1, \"n\": 1}", "unknown field `n`"),
        ] {
            let error = read_trace(&format!("\n{line}")).unwrap_err().to_string();
            assert!(error.starts_with("line 2 of the trace: ") && error.contains(what), "{error}");
        }
    }
}
