//! What is done to a cache before, and between, the attentions that are judged.

use crate::case::InvalidCase;
use grouped_attention::{Rope, RopeScaling, RopeStyle};
use std::fmt;
use std::str::FromStr;

/// A course of operations. Every attention in it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scenario {
    /// Rows are there; attend.
    Attend,
    /// The queries' own rows are appended by the plan that then attends.
    Append,
    /// Append a draft and attend; truncate to its first half; append other tokens and attend.
    Truncate,
    /// Append a tree and attend; keep one path of it; append another tree and attend.
    Keep,
    /// Fork every sequence, take some of the fork's last tokens back, append different tokens to
    /// both, attend to both in one batch: shared pages and copies on write.
    Fork,
    /// Attend to the positions before a page boundary and to those after it, and merge.
    Merge,
    /// One plan with room for more, updated to other lengths, tables and order, and back.
    Update,
    /// The same with tensors as large as the plan's capacity, as recorded calls need them.
    Replay,
    /// One plan through the steps of a batch, in a model of two layers: some sequences, all of them,
    /// none, all under another mask, some again; new rows appended where there are any.
    Serve,
    /// As `Append`, with keys that the engine rotates, at positions with gaps.
    Rotate(RopeStyle),
}

/// Base of the rotations: frequencies from 1 down to a thousandth within narrow keys.
const ROPE_BASE: f64 = 1_000.0;
/// Contexts in which some of those frequencies turn often, some seldom and some in between.
const LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position: 256,
};
/// With a factor on cosine and sine that is not 1.
const YARN: RopeScaling = RopeScaling::Yarn {
    factor: 4.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    mscale: 1.0,
    mscale_all_dim: 0.0,
    original_max_position: 512,
    attention_factor: None,
    truncate: true,
};

impl Scenario {
    /// All of them.
    pub const ALL: [Scenario; 11] = [
        Scenario::Attend,
        Scenario::Append,
        Scenario::Truncate,
        Scenario::Keep,
        Scenario::Fork,
        Scenario::Merge,
        Scenario::Update,
        Scenario::Replay,
        Scenario::Serve,
        Scenario::Rotate(RopeStyle::HalfSplit),
        Scenario::Rotate(RopeStyle::Interleaved),
    ];

    /// The rope that keys are turned by, if they are: as trained for even seeds, scaled as published
    /// models of its style scale it for odd ones.
    pub(crate) fn rope(self, width: usize, seed: u64) -> Result<Option<Rope>, InvalidCase> {
        let Scenario::Rotate(style) = self else { return Ok(None) };
        let scaling = match style {
            _ if seed.is_multiple_of(2) => RopeScaling::None,
            RopeStyle::HalfSplit => LLAMA3,
            RopeStyle::Interleaved => YARN,
        };
        Ok(Some(Rope::new(style, width, ROPE_BASE, scaling)?))
    }

    /// Caches that the course attends to.
    pub(crate) fn layers(self) -> usize {
        if self == Scenario::Serve { 2 } else { 1 }
    }

    /// True if the queries' own tokens are appended, so that there are no more queries than cached
    /// tokens.
    pub fn appends(self) -> bool {
        let whole = [Scenario::Attend, Scenario::Merge, Scenario::Update, Scenario::Replay];
        !whole.contains(&self)
    }

    /// The word that lines and trial names use.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Attend => "attend",
            Scenario::Append => "append",
            Scenario::Truncate => "truncate",
            Scenario::Keep => "keep",
            Scenario::Fork => "fork",
            Scenario::Merge => "merge",
            Scenario::Update => "update",
            Scenario::Replay => "replay",
            Scenario::Serve => "serve",
            Scenario::Rotate(RopeStyle::HalfSplit) => "rotate:half",
            Scenario::Rotate(RopeStyle::Interleaved) => "rotate:interleaved",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Scenario {
    type Err = ();

    fn from_str(name: &str) -> Result<Scenario, ()> {
        Scenario::ALL.into_iter().find(|scenario| scenario.name() == name).ok_or(())
    }
}
