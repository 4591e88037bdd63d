//! A case: the description of a problem, from which every number of it follows.
//!
//! A case prints as one line and is read back from that line, so a failure anywhere can be run
//! again anywhere:
//!
//! ```text
//! gla h_q=4 h=2 s=8 n=8 r=4 dtype=bf16 out=f32 page=3 q=1,2 kv=5,7 mask=tree:random scale=0.3 fill=needle:-1 do=append seed=7 shared
//! ```
//!
//! The geometry comes first, as [`Geometry`] prints it. `q`, `kv` and `scale` must be given; one
//! number in `q` or `kv` stands for as many as the other has, and `-` is a batch of no sequence.
//! What else is left out is f32, outputs in the format of the queries, pages of 16, causal,
//! gaussian, a plain `attend` and seed 0.

use crate::draft::{Draft, MaskShape};
use crate::fill::Fill;
use crate::scenario::Scenario;
use grouped_attention::{Dtype, Geometry, InvalidGeometry, Problem, Row, Variant};
use std::fmt;
use std::str::FromStr;

/// Narrowest keys among which none repeats by chance `[S-7.22]`.
const GENERAL_WIDTH: usize = 8;

/// Lengths of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lens {
    /// Query tokens.
    pub q: usize,
    /// Cached tokens, the queries' own normally included.
    pub kv: usize,
}

/// The description of one problem. [`Script::new`](crate::Script::new) says whether it is legal.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Heads and widths.
    pub geometry: Geometry,
    /// Format of queries and cache.
    pub dtype: Dtype,
    /// True for outputs in f32.
    pub f32_output: bool,
    /// Tokens per page.
    pub page_size: usize,
    /// Lengths of the sequences, `[B]`.
    pub lens: Vec<Lens>,
    /// Who sees what.
    pub mask: MaskShape,
    /// Factor of the scores.
    pub scale: f64,
    /// What numbers the tensors hold.
    pub fill: Fill,
    /// What is done, attention being the last of it.
    pub scenario: Scenario,
    /// Where the first pages of the tables lie in the cache; the rest follow in order. Empty for
    /// places that the seed decides.
    pub places: Vec<u32>,
    /// True if sequences share the pages of their common prefix.
    pub shared: bool,
    /// True for the batch-invariant mode.
    pub invariant: bool,
    /// True if pages lie past 2^31 elements of the cache.
    pub far: bool,
    /// True if the engine is not asked for the lse.
    pub no_lse: bool,
    /// Decides every random number.
    pub seed: u64,
}

impl Case {
    /// A case of one sequence with everything else as the line's defaults are.
    pub fn new(geometry: Geometry, q: usize, kv: usize, scale: f64) -> Case {
        Case {
            geometry: canonical(geometry),
            dtype: Dtype::F32,
            f32_output: false,
            page_size: 16,
            lens: vec![Lens { q, kv }],
            mask: MaskShape::Causal,
            scale,
            fill: Fill::Gaussian,
            scenario: Scenario::Attend,
            places: Vec::new(),
            shared: false,
            invariant: false,
            far: false,
            no_lse: false,
            seed: 0,
        }
    }

    /// What is asked of the engine, apart from lengths.
    ///
    /// # Errors
    /// A scale that is not finite and positive.
    pub fn problem(&self) -> Result<Problem, InvalidCase> {
        let mut problem = Problem::new(self.geometry, self.dtype, self.scale)?;
        if self.f32_output {
            problem = problem.f32_output();
        }
        if self.invariant {
            problem = problem.batch_invariant();
        }
        match self.scenario.rope(problem.rotated_width(), self.seed)? {
            Some(rope) => Ok(problem.rotating(rope)?),
            None => Ok(problem),
        }
    }

    /// True if the inputs are in general position, so that the sharp bound holds: numbers that are
    /// drawn at random, and keys wide enough for none to repeat by chance `[S-7.22]`.
    pub fn general_position(&self) -> bool {
        self.fill.general_position() && self.geometry.width_k() >= GENERAL_WIDTH
    }

    /// Format of the outputs.
    pub fn output(&self) -> Dtype {
        if self.f32_output { Dtype::F32 } else { self.dtype }
    }

    /// Query tokens of all sequences.
    pub fn total_q(&self) -> usize {
        self.lens.iter().map(|lens| lens.q).sum()
    }

    /// Bytes that one attention has to move at least: every cached row once, queries, outputs and
    /// lse once.
    pub fn bytes(&self) -> usize {
        let geometry = &self.geometry;
        let cached: usize = self.lens.iter().filter(|lens| lens.q > 0).map(|lens| lens.kv).sum();
        let rows = self.total_q() * geometry.h_q();
        let lse = if self.no_lse { 0 } else { rows * Dtype::F32.bytes() };
        cached * geometry.row().elements() * self.dtype.bytes()
            + rows * geometry.width_k() * self.dtype.bytes()
            + rows * geometry.width_v() * self.output().bytes()
            + lse
    }

    /// Multiplications and additions of the two products over all visible positions.
    pub fn flops(&self) -> usize {
        let seen: usize = match &self.mask {
            MaskShape::Tree(_) | MaskShape::Causal => {
                self.lens.iter().map(|lens| self.mask.visible(*lens, &self.draft(*lens))).sum()
            }
            MaskShape::Full => self.lens.iter().map(|lens| lens.q * lens.kv).sum(),
        };
        2 * seen * self.geometry.h_q() * (self.geometry.width_k() + self.geometry.width_v())
    }

    fn draft(&self, lens: Lens) -> Vec<i32> {
        match &self.mask {
            // One sequence's share of an explicit list depends on those before it; a chain is what
            // a cost needs.
            MaskShape::Tree(Draft::Explicit(_)) => Draft::Chain.parents(lens.q, self.seed, 0),
            MaskShape::Tree(draft) => draft.parents(lens.q, self.seed, 0),
            MaskShape::Causal | MaskShape::Full => Vec::new(),
        }
    }
}

/// The same geometry under the name that its numbers imply, which is the name that a line gives.
fn canonical(geometry: Geometry) -> Geometry {
    let h_q = geometry.h_q();
    let named = match geometry.row() {
        Row::Separate { heads, d_k, d_v } => Geometry::separate(h_q, heads, d_k, d_v),
        Row::Tied { heads, s, n, r } => Geometry::tied(h_q, heads, s, n, r),
    };
    named.expect("a geometry's own numbers make one")
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |of: fn(&Lens) -> usize| match self.lens.as_slice() {
            [] => "-".to_owned(),
            lens => lens.iter().map(|lens| of(lens).to_string()).collect::<Vec<_>>().join(","),
        };
        write!(f, "{} dtype={}", self.geometry, self.dtype)?;
        if self.f32_output && self.dtype != Dtype::F32 {
            write!(f, " out=f32")?;
        }
        write!(f, " page={} q={} kv={}", self.page_size, list(|l| l.q), list(|l| l.kv))?;
        write!(f, " mask={} scale={} fill={}", self.mask, self.scale, self.fill)?;
        write!(f, " do={} seed={}", self.scenario, self.seed)?;
        if !self.places.is_empty() {
            let places: Vec<String> = self.places.iter().map(u32::to_string).collect();
            write!(f, " places={}", places.join(","))?;
        }
        for (flag, set) in self.flags() {
            if set {
                write!(f, " {flag}")?;
            }
        }
        Ok(())
    }
}

impl Case {
    fn flags(&self) -> [(&'static str, bool); 4] {
        [
            ("shared", self.shared),
            ("invariant", self.invariant),
            ("far", self.far),
            ("nolse", self.no_lse),
        ]
    }
}

impl FromStr for Case {
    type Err = InvalidCase;

    fn from_str(line: &str) -> Result<Case, InvalidCase> {
        let mut words = line.split_whitespace();
        let variant: Variant = words.next().unwrap_or_default().parse()?;
        let mut fields = Fields::default();
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => fields.pairs.push((key, value)),
                None => fields.flags.push(word),
            }
        }
        let geometry = fields.geometry(variant)?;
        let (q, kv) = fields.lens()?;
        let mut case = Case::new(geometry, 0, 0, fields.number("scale")?);
        case.lens = q.into_iter().zip(kv).map(|(q, kv)| Lens { q, kv }).collect();
        case.dtype = fields.optional("dtype", case.dtype)?;
        case.f32_output = match fields.take("out") {
            None => false,
            Some("f32") => case.dtype != Dtype::F32,
            Some(value) if value == case.dtype.to_string() => false,
            Some(value) => return Err(InvalidCase::value("out", value)),
        };
        case.page_size = fields.optional("page", case.page_size)?;
        case.mask = fields.optional("mask", case.mask)?;
        case.fill = fields.optional("fill", case.fill)?;
        case.scenario = fields.optional("do", case.scenario)?;
        case.seed = fields.optional("seed", 0)?;
        if fields.has("places") {
            case.places = fields.list("places")?;
        }
        case.shared = fields.flag("shared");
        case.invariant = fields.flag("invariant");
        case.far = fields.flag("far");
        case.no_lse = fields.flag("nolse");
        fields.finish()?;
        Ok(case)
    }
}

/// Words of a line that have not been read yet.
#[derive(Default)]
struct Fields<'a> {
    pairs: Vec<(&'a str, &'a str)>,
    flags: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.pairs.iter().position(|(name, _)| *name == key)?;
        Some(self.pairs.remove(at).1)
    }

    fn flag(&mut self, flag: &str) -> bool {
        let before = self.flags.len();
        self.flags.retain(|word| *word != flag);
        self.flags.len() < before
    }

    fn number<T: FromStr>(&mut self, key: &'static str) -> Result<T, InvalidCase> {
        let value = self.take(key).ok_or(InvalidCase::Missing { key })?;
        value.parse().map_err(|_| InvalidCase::value(key, value))
    }

    fn optional<T: FromStr>(&mut self, key: &'static str, or: T) -> Result<T, InvalidCase> {
        match self.take(key) {
            None => Ok(or),
            Some(value) => value.parse().map_err(|_| InvalidCase::value(key, value)),
        }
    }

    fn geometry(&mut self, variant: Variant) -> Result<Geometry, InvalidCase> {
        let (h_q, heads) = (self.number("h_q")?, self.number("h")?);
        let geometry = match variant {
            Variant::Mha | Variant::Gqa | Variant::Mqa => {
                Geometry::separate(h_q, heads, self.number("d_k")?, self.number("d_v")?)?
            }
            Variant::Gta | Variant::Mla | Variant::Gla => {
                let (s, n, r) = (self.number("s")?, self.number("n")?, self.number("r")?);
                Geometry::tied(h_q, heads, s, n, r)?
            }
        };
        // A line that says gta and means gla would be filed under the wrong name.
        if geometry.variant() != variant {
            return Err(InvalidCase::Variant { said: variant, implied: geometry.variant() });
        }
        Ok(geometry)
    }

    /// `q` and `kv`, made equally long.
    fn lens(&mut self) -> Result<(Vec<usize>, Vec<usize>), InvalidCase> {
        let (mut q, mut kv): (Vec<usize>, Vec<usize>) = (self.list("q")?, self.list("kv")?);
        if q.len() == 1 {
            q.resize(kv.len(), q[0]);
        }
        if kv.len() == 1 {
            kv.resize(q.len(), kv[0]);
        }
        if q.len() != kv.len() {
            return Err(InvalidCase::Lengths { q: q.len(), kv: kv.len() });
        }
        Ok((q, kv))
    }

    fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(name, _)| *name == key)
    }

    fn list<T: FromStr>(&mut self, key: &'static str) -> Result<Vec<T>, InvalidCase> {
        let value = self.take(key).ok_or(InvalidCase::Missing { key })?;
        if value == "-" {
            return Ok(Vec::new());
        }
        let items = value.split(',').map(str::parse);
        items.collect::<Result<_, _>>().map_err(|_| InvalidCase::value(key, value))
    }

    fn finish(self) -> Result<(), InvalidCase> {
        let unread = self.pairs.iter().map(|(key, _)| *key).chain(self.flags).next();
        unread.map_or(Ok(()), |word| Err(InvalidCase::Unknown { word: word.to_owned() }))
    }
}

/// Why a line or a description is not a case.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCase {
    /// A key that has no default is missing.
    #[error("{key}= is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A word that no key or flag is.
    #[error("{word:?} is not a key of a case")]
    Unknown {
        /// The word.
        word: String,
    },
    /// A value that its key does not take.
    #[error("{value:?} is not a value of {key}=")]
    Value {
        /// The key.
        key: &'static str,
        /// The value as given.
        value: String,
    },
    /// The numbers are another variant's.
    #[error("the line says {said}, and its numbers are those of {implied}")]
    Variant {
        /// The word.
        said: Variant,
        /// What its numbers make.
        implied: Variant,
    },
    /// Places that are not different pages of the pool.
    #[error("places= {places:?} are not different pages of a pool of {pages}")]
    Places {
        /// As given.
        places: Vec<u32>,
        /// Pages of the pool.
        pages: usize,
    },
    /// Two lists over the same sequences.
    #[error("q= has {q} sequences and kv= has {kv}")]
    Lengths {
        /// Sequences of `q`.
        q: usize,
        /// Sequences of `kv`.
        kv: usize,
    },
    /// The scenario needs something that the case does not have.
    #[error("{scenario}: {reason}")]
    Scenario {
        /// The scenario.
        scenario: String,
        /// What is missing.
        reason: &'static str,
    },
    /// States of trained models, asked for where no file holds them.
    #[error("no captured states: {reason}")]
    States {
        /// What is missing.
        reason: String,
    },
    /// The library refuses.
    #[error(transparent)]
    Refused(#[from] grouped_attention::Error),
}

impl InvalidCase {
    fn value(key: &'static str, value: &str) -> InvalidCase {
        InvalidCase::Value { key, value: value.to_owned() }
    }
}

macro_rules! refused {
    ($($error:ty),*) => {$(
        impl From<$error> for InvalidCase {
            fn from(error: $error) -> InvalidCase {
                InvalidCase::Refused(error.into())
            }
        }
    )*};
}

refused!(
    InvalidGeometry,
    grouped_attention::InvalidProblem,
    grouped_attention::InvalidLayout,
    grouped_attention::InvalidTensor,
    grouped_attention::InvalidRope,
    grouped_attention::InvalidMask,
    grouped_attention::InvalidStep,
    grouped_attention::PageError
);

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(line: &str) {
        let case: Case = line.parse().unwrap();
        assert_eq!(case.to_string().parse::<Case>().unwrap(), case, "{line}");
        assert_eq!(case.to_string().split_whitespace().next(), line.split_whitespace().next());
    }

    #[test]
    fn lines_are_read_back() {
        round_trip("gla h_q=4 h=2 s=8 n=8 r=4 q=1 kv=5 scale=0.1");
        round_trip("gta h_q=4 h=4 s=8 n=3 r=0 dtype=bf16 out=f32 q=1,2,0 kv=7 scale=1e-3 seed=9");
        round_trip("mqa h_q=3 h=1 d_k=4 d_v=6 page=3 q=- kv=- mask=full scale=2 shared far");
        round_trip("mha h_q=3 h=3 d_k=4 d_v=6 q=3 kv=9 mask=tree:-1,0,0 scale=2 fill=needle:-2");
        round_trip("mha h_q=3 h=3 d_k=4 d_v=6 page=4 q=3 kv=9 scale=2 places=2,0,1");
        round_trip("mla h_q=3 h=1 s=4 n=4 r=2 q=3 kv=9 mask=tree:random scale=2 do=keep nolse");
        round_trip("gqa h_q=6 h=2 d_k=4 d_v=4 q=3 kv=9 scale=2 do=rotate:interleaved invariant");
    }

    #[test]
    fn bad_lines_name_the_word() {
        let error = |line: &str| line.parse::<Case>().unwrap_err().to_string();
        assert_eq!(error("gla h_q=4 h=2 s=8 n=8 r=4 kv=5 scale=1"), "q= is missing");
        let gla = "gla h_q=4 h=2 s=8 n=8 r=4 q=1 kv=5";
        assert_eq!(error(&format!("{gla} scale=x")), "\"x\" is not a value of scale=");
        assert_eq!(error(&format!("{gla} scale=1 colour")), "\"colour\" is not a key of a case");
        assert_eq!(
            error("mla h_q=4 h=2 s=8 n=8 r=4 q=1 kv=5 scale=1"),
            "the line says mla, and its numbers are those of gla"
        );
        assert_eq!(
            error("mqa h_q=4 h=1 d_k=8 d_v=8 q=1,2 kv=5,6,7 scale=1"),
            "q= has 2 sequences and kv= has 3"
        );
    }

    #[test]
    fn costs_are_those_of_the_formats() {
        let case: Case =
            "mla h_q=2 h=1 s=4 n=4 r=2 dtype=bf16 out=f32 q=1 kv=10 scale=1".parse().unwrap();
        assert_eq!(case.bytes(), 10 * 6 * 2 + 2 * 6 * 2 + 2 * 4 * 4 + 2 * 4);
        assert_eq!(case.flops(), 2 * 10 * 2 * (6 + 4));
        let causal: Case = "mha h_q=1 h=1 d_k=1 d_v=1 q=3 kv=2 scale=1".parse().unwrap();
        assert_eq!(causal.flops(), 2 * 3 * 2);
    }
}
