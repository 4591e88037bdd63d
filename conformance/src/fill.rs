//! What numbers the tensors hold: inputs on which a wrong kernel shows.
//!
//! Random numbers alone hide what goes wrong at boundaries: at a length of thousands a dropped
//! token moves no element by more than rounding does. A *needle* is a position whose key answers
//! every query, so that a good part of the weight lies there; where it is dropped, doubled or
//! seen too early, the result is far away. Needles go to every position where a kernel changes
//! its mind: see [`edges`].

use crate::case::{Case, Lens};
use crate::noise::Noise;
use crate::states::States;
use grouped_attention::{Dtype, Geometry, Row as RowKind};
use std::fmt;
use std::str::FromStr;

/// A family of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    /// Standard normal queries, keys and values.
    Gaussian,
    /// Scores with a standard deviation of about 40, so that few positions have weight.
    Large,
    /// Values of alternating sign a hundred times larger than their average.
    Cancelling,
    /// Equal keys, hence equal scores, at every position.
    Ties,
    /// Cached numbers below the smallest normal one of their format.
    Denormal,
    /// Scores that rise with the position, so that every tile has a new maximum.
    Rising,
    /// Gaussian with needles.
    Needle(Place),
    /// Gaussian with a NaN in the last cached head's key.
    Nan(Place),
    /// Gaussian with an infinity in one value.
    Infinity(Place),
    /// Gaussian with a NaN in the first query of each sequence, in its first head.
    NanQuery,
    /// Queries and rows that trained models computed: see `states.rs`.
    States,
}

/// Where in a sequence something special stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// At this position, if the sequence has it.
    At(usize),
    /// So many positions before the last one.
    BeforeLast(usize),
    /// At every boundary: see [`edges`].
    Edges,
}

/// Positions of a sequence at which kernels change their mind: the first and last one, the ends of
/// pages, of tiles and splits of usual sizes, of the committed prefix, and every draft position.
pub fn edges(lens: Lens, page_size: usize) -> Vec<usize> {
    let Lens { q, kv } = lens;
    let last_page = kv.saturating_sub(1) / page_size * page_size;
    let prefix = kv.saturating_sub(q);
    let tiles = [16, 32, 64, 128, 256, 512, 1024, 2048];
    let splits = [kv / 4, kv / 2, 3 * (kv / 4)];
    let starts = tiles.into_iter().chain(splits).chain([0, page_size, last_page, prefix, kv]);
    let around = starts.flat_map(|start| [start.checked_sub(1), Some(start)]).flatten();
    let mut edges: Vec<usize> = around.chain(prefix..kv).filter(|&at| at < kv).collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}

impl Place {
    fn holds(self, position: usize, lens: Lens, page_size: usize) -> bool {
        match self {
            Place::At(at) => position == at,
            Place::BeforeLast(back) => position + back + 1 == lens.kv,
            Place::Edges => edges(lens, page_size).binary_search(&position).is_ok(),
        }
    }
}

impl Fill {
    /// True if wide enough keys are in general position: see [`Case::general_position`].
    ///
    /// Needles are not: beside one, thousands of ordinary weights lie below half a unit in the last
    /// place of the sum, and adding one loses it whole. Such errors have one sign and do not
    /// average out (a plain f32 sum of 2049 weights was found past the sharp bound of lse).
    pub fn general_position(self) -> bool {
        match self {
            Fill::Gaussian | Fill::Large | Fill::NanQuery => true,
            Fill::Nan(_) | Fill::Infinity(_) => true,
            Fill::Needle(_) | Fill::Rising => false,
            Fill::Cancelling | Fill::Ties | Fill::Denormal | Fill::States => false,
        }
    }

    /// True if some row may see a number that is not finite.
    pub fn has_non_finite(self) -> bool {
        matches!(self, Fill::Nan(_) | Fill::Infinity(_) | Fill::NanQuery)
    }
}

/// One cached token: values of the cache's format.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRow {
    /// Keys `[h, d_k]` or states `[h, s]`.
    pub first: Vec<f64>,
    /// Values `[h, d_v]` or the rope key `[r]`.
    pub second: Vec<f64>,
}

/// Which token's content is asked for. Sequences with a common prefix share the content, and a
/// token that is written again after a truncation has another draft number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub(crate) sequence: usize,
    pub(crate) position: usize,
    pub(crate) draft: u64,
}

/// Makes the numbers of a case.
#[derive(Debug)]
pub(crate) struct Filler {
    geometry: Geometry,
    dtype: Dtype,
    page_size: usize,
    scale: f64,
    fill: Fill,
    seed: u64,
    states: Option<States>,
}

/// Streams of [`Noise`], so that no two uses share numbers.
const QUERY: u64 = 1;
const ROW: u64 = 2;
const DIRECTION: u64 = 3;
const COMMON_KEY: u64 = 4;

/// Score by which needles stand out, beside the logarithm of the length: with it a lone needle has
/// most of the weight, and forty of them still have a fortieth each.
const NEEDLE_SCORE: f64 = 4.0;
/// Highest score of [`Fill::Rising`].
const RISE: f64 = 40.0;
/// Standard deviation of scores under [`Fill::Large`].
const LARGE: f64 = 40.0;
/// Magnitude of values under [`Fill::Cancelling`].
const CANCELLING: f64 = 100.0;

impl Filler {
    pub(crate) fn new(case: &Case, states: Option<States>) -> Filler {
        Filler {
            geometry: case.geometry,
            dtype: case.dtype,
            page_size: case.page_size,
            scale: case.scale,
            fill: case.fill,
            seed: case.seed,
            states,
        }
    }

    /// The direction that queries have in common, `[width_k]` of signs. It is the same for all
    /// heads, because tied heads share the rope part of their keys.
    fn direction(&self) -> Vec<f64> {
        let mut noise = Noise::new(self.seed, &[DIRECTION]);
        (0..self.geometry.width_k()).map(|_| noise.sign()).collect()
    }

    /// Multiple of the direction that a key must be for queries to score `score` there.
    fn answering(&self, score: f64) -> f64 {
        score / (self.scale * self.geometry.width_k() as f64)
    }

    /// One query token, `[h_q, width_k]`.
    pub(crate) fn query(&self, sequence: usize, t: usize, draft: u64) -> Vec<f64> {
        let (h_q, width) = (self.geometry.h_q(), self.geometry.width_k());
        if let Some(states) = &self.states {
            return self.rounded(states.query(sequence, t, draft));
        }
        let mut noise = Noise::new(self.seed, &[QUERY, sequence as u64, t as u64, draft]);
        let direction = self.direction();
        let row = self.scale * (width as f64).sqrt();
        let mut query = Vec::with_capacity(h_q * width);
        for i in 0..h_q {
            for &along in &direction {
                let gaussian = noise.gaussian();
                query.push(match self.fill {
                    Fill::Large => LARGE / row * gaussian,
                    Fill::Cancelling => gaussian / (row * CANCELLING),
                    Fill::Needle(_) | Fill::Nan(_) | Fill::Infinity(_) => along + gaussian,
                    Fill::Rising => along + gaussian / 8.0,
                    _ => gaussian,
                });
            }
            if self.fill == Fill::NanQuery && t == 0 && i == 0 {
                query[0] = f64::NAN;
            }
        }
        self.rounded(query)
    }

    /// One cached token of a sequence of these lengths.
    pub(crate) fn row(&self, token: Token, lens: Lens) -> TokenRow {
        if let Some(states) = &self.states {
            let TokenRow { first, second } = states.row(token);
            return TokenRow { first: self.rounded(first), second: self.rounded(second) };
        }
        let Token { sequence, position, draft } = token;
        let keys = [ROW, sequence as u64, position as u64, draft];
        let mut noise = Noise::new(self.seed, &keys);
        let [first, second] = self.geometry.row().parts();
        let mut draw = |width: usize| (0..width).map(|_| noise.gaussian()).collect::<Vec<f64>>();
        let mut row = TokenRow { first: draw(first), second: draw(second) };
        match self.fill {
            Fill::Cancelling => self.cancel(&mut row, position),
            Fill::Ties => self.tie(&mut row),
            Fill::Denormal => {
                let tiny = self.dtype.min_normal() / 4.0;
                row.first.iter_mut().chain(&mut row.second).for_each(|x| *x *= tiny);
            }
            Fill::Rising => {
                let score = RISE * (position + 1) as f64 / lens.kv as f64;
                self.answer(&mut row, self.answering(score), 1.0 / 8.0);
            }
            Fill::Needle(place) if place.holds(position, lens, self.page_size) => {
                let score = NEEDLE_SCORE + (lens.kv as f64).ln();
                self.answer(&mut row, self.answering(score), 1.0);
            }
            Fill::Nan(place) if place.holds(position, lens, self.page_size) => {
                let last_head = first / self.geometry.heads() * (self.geometry.heads() - 1);
                row.first[last_head] = f64::NAN;
            }
            Fill::Infinity(place) if place.holds(position, lens, self.page_size) => {
                let value = match self.geometry.row() {
                    RowKind::Separate { .. } => &mut row.second[0],
                    RowKind::Tied { s, .. } => &mut row.first[s - 1],
                };
                *value = f64::INFINITY;
            }
            _ => {}
        }
        TokenRow { first: self.rounded(row.first), second: self.rounded(row.second) }
    }

    /// Turns every key of a row into `along` times the common direction plus `noise` times what it
    /// was. Separate values double, so that they stand out too.
    fn answer(&self, row: &mut TokenRow, along: f64, noise: f64) {
        let direction = self.direction();
        let toward = |x: &mut f64, sign: &f64| *x = along * sign + noise * *x;
        match self.geometry.row() {
            RowKind::Separate { d_k, .. } => {
                for key in row.first.chunks_exact_mut(d_k) {
                    key.iter_mut().zip(&direction).for_each(|(x, sign)| toward(x, sign));
                }
                row.second.iter_mut().for_each(|x| *x *= 2.0);
            }
            RowKind::Tied { s, n, .. } => {
                for state in row.first.chunks_exact_mut(s) {
                    state[..n].iter_mut().zip(&direction).for_each(|(x, sign)| toward(x, sign));
                    state[n..].iter_mut().for_each(|x| *x *= 2.0);
                }
                row.second.iter_mut().zip(&direction[n..]).for_each(|(x, sign)| toward(x, sign));
            }
        }
    }

    /// Values of alternating sign; tied keys are part of them, and queries are small enough for
    /// the scores to stay near 0.
    fn cancel(&self, row: &mut TokenRow, position: usize) {
        let sign = if position.is_multiple_of(2) { CANCELLING } else { -CANCELLING };
        let values = match self.geometry.row() {
            RowKind::Separate { .. } => &mut row.second,
            RowKind::Tied { .. } => &mut row.first,
        };
        values.iter_mut().for_each(|x| *x = sign * (1.0 + *x / 64.0));
    }

    /// The key that every position has under [`Fill::Ties`].
    fn tie(&self, row: &mut TokenRow) {
        let mut noise = Noise::new(self.seed, &[COMMON_KEY]);
        match self.geometry.row() {
            RowKind::Separate { .. } => row.first.fill_with(|| noise.gaussian()),
            RowKind::Tied { s, n, .. } => {
                for state in row.first.chunks_exact_mut(s) {
                    state[..n].fill_with(|| noise.gaussian());
                }
                row.second.fill_with(|| noise.gaussian());
            }
        }
    }

    fn rounded(&self, mut values: Vec<f64>) -> Vec<f64> {
        values.iter_mut().for_each(|x| *x = self.dtype.round(*x));
        values
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fill::Gaussian => f.write_str("gaussian"),
            Fill::Large => f.write_str("large"),
            Fill::Cancelling => f.write_str("cancelling"),
            Fill::Ties => f.write_str("ties"),
            Fill::Denormal => f.write_str("denormal"),
            Fill::Rising => f.write_str("rising"),
            Fill::Needle(place) => write!(f, "needle:{place}"),
            Fill::Nan(place) => write!(f, "nan:{place}"),
            Fill::Infinity(place) => write!(f, "inf:{place}"),
            Fill::NanQuery => f.write_str("nanquery"),
            Fill::States => f.write_str("states"),
        }
    }
}

/// `3` is position 3, `-1` the last one as in Python, `edges` every boundary.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::At(at) => write!(f, "{at}"),
            Place::BeforeLast(back) => write!(f, "-{}", back + 1),
            Place::Edges => f.write_str("edges"),
        }
    }
}

impl FromStr for Fill {
    type Err = ();

    fn from_str(text: &str) -> Result<Fill, ()> {
        match text.split_once(':') {
            None => match text {
                "gaussian" => Ok(Fill::Gaussian),
                "large" => Ok(Fill::Large),
                "cancelling" => Ok(Fill::Cancelling),
                "ties" => Ok(Fill::Ties),
                "denormal" => Ok(Fill::Denormal),
                "rising" => Ok(Fill::Rising),
                "nanquery" => Ok(Fill::NanQuery),
                "states" => Ok(Fill::States),
                _ => Err(()),
            },
            Some(("needle", place)) => place.parse().map(Fill::Needle),
            Some(("nan", place)) => place.parse().map(Fill::Nan),
            Some(("inf", place)) => place.parse().map(Fill::Infinity),
            Some(_) => Err(()),
        }
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Place, ()> {
        if text == "edges" {
            return Ok(Place::Edges);
        }
        match text.strip_prefix('-') {
            None => text.parse().map(Place::At).map_err(|_| ()),
            Some(back) => match back.parse::<usize>() {
                Ok(back) if back > 0 => Ok(Place::BeforeLast(back - 1)),
                _ => Err(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filler(line: &str) -> (Case, Filler) {
        let case: Case = line.parse().unwrap();
        let filler = Filler::new(&case, None);
        (case, filler)
    }

    #[test]
    fn edges_are_ends_of_pages_tiles_and_drafts() {
        let at = edges(Lens { q: 2, kv: 70 }, 7);
        for edge in [0, 6, 7, 15, 16, 31, 32, 34, 35, 62, 63, 64, 67, 68, 69] {
            assert!(at.contains(&edge), "{edge} of {at:?}");
        }
        assert!(edges(Lens { q: 1, kv: 0 }, 7).is_empty());
    }

    #[test]
    fn a_needle_has_most_of_the_weight() {
        let (case, filler) =
            filler("gla h_q=2 h=2 s=16 n=16 r=8 q=1 kv=1000 scale=0.2 fill=needle:-2 seed=3");
        let query = filler.query(0, 0, 0);
        let score = |position| {
            let row = filler.row(Token { sequence: 0, position, draft: 0 }, case.lens[0]);
            let key = row.first[..16].iter().chain(&row.second);
            0.2 * query[..24].iter().zip(key).map(|(q, k)| q * k).sum::<f64>()
        };
        let needle: f64 = score(998);
        let rest: f64 = (0..1000).filter(|&j| j != 998).map(|j| score(j).exp()).sum();
        assert!(needle.exp() > rest, "{needle} against ln {}", rest.ln());
    }

    #[test]
    fn numbers_are_of_the_format() {
        for fill in ["gaussian", "large", "cancelling", "ties", "denormal", "rising", "needle:0"] {
            let line =
                format!("gta h_q=2 h=1 s=6 n=3 r=2 dtype=f16 q=1 kv=4 scale=0.3 fill={fill}");
            let (case, filler) = filler(&line);
            let row = filler.row(Token { sequence: 0, position: 0, draft: 0 }, case.lens[0]);
            let numbers = filler.query(0, 0, 0).into_iter().chain(row.first).chain(row.second);
            for x in numbers {
                assert!(Dtype::F16.represents(x), "{fill}: {x}");
            }
        }
    }
}
