//! A case made concrete: what an engine is told to do, and what the oracle is asked.
//!
//! The two halves are made apart. Engines get page tables, copies and calls as a serving program
//! would make them, with pages in random places, NaN in every cell that no token lives in, NaN
//! behind the last query and the last new row, and impossible ids behind each table. The oracle
//! gets, for each attention, the tokens that each sequence should hold by then, from a record kept
//! in plain vectors: no page table, copy list or append of the library has a part in it.

mod build;
mod pool;

use crate::case::{Case, InvalidCase};
use crate::compare::{Expected, largest_finite};
use crate::fill::TokenRow;
use crate::tolerance::Tolerance;
use build::Builder;
use grouped_attention::{
    Append, Arithmetic, Attended, Backend, CacheLayout, CopyRows, Error, Extent, HostTensor,
    Planning, Problem, Reference, ReferenceCache, ReferenceTensor, RowCopy, Slot, Step, Upload,
    attend,
};

/// Rows behind the last one of query, output and new-row tensors, which nobody may read or write.
pub const SPARE_ROWS: usize = 2;

/// One thing an engine is told to do. A script has one current plan.
#[derive(Clone, Debug)]
pub enum Op {
    /// Make the current plan.
    Plan {
        /// What for.
        step: Step,
        /// Room for later updates.
        capacity: Option<Capacity>,
    },
    /// Update the current plan.
    Update {
        /// What to.
        step: Step,
    },
    /// From here on rows go to this layer's cache, and are read from it. A script begins with layer 0.
    Layer(usize),
    /// Append by the current plan.
    Append {
        /// Keys or states, `[writes + SPARE_ROWS, h, _]`.
        first: HostTensor,
        /// Values or rope keys.
        second: Option<HostTensor>,
        /// Whether the engine rotates.
        rotating: bool,
    },
    /// Copy rows within the cache.
    Copy(Vec<RowCopy>),
    /// Attend by the current plan.
    Attend {
        /// `[query rows + SPARE_ROWS, h_q, width_k]`.
        q: HostTensor,
        /// Index of what the oracle is asked.
        question: usize,
    },
    /// Merge the last answer into the one before it.
    Merge,
}

/// Room of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Largest sizes.
    pub extent: Extent,
    /// True if tensors have the capacity's rows, as recorded calls need.
    pub replayed: bool,
}

/// What cells should hold when a script has run.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Cells of tokens, then cells that nothing was ever written to but NaN.
    pub slots: Vec<Slot>,
    /// What the first of them hold.
    pub rows: Vec<StoredRow>,
}

/// What one cell should hold.
#[derive(Clone, Debug)]
pub struct StoredRow {
    /// Exactly, but for rounding into the cache's format.
    pub row: TokenRow,
    /// For each element, how far a rotation in the engine may be off per unit of its vector
    /// roundoff, before the rounding into the cache's format; absent where elements are stored as
    /// given, bit for bit `[S-4.9] [S-7.19]`.
    pub rotation: Option<TokenRow>,
}

/// What the oracle is asked: attention over the tokens that the sequences should hold.
#[derive(Clone, Debug)]
pub struct Question {
    /// Lengths and mask, over a cache with one token a page, in order.
    pub step: Step,
    /// `[total_q, h_q, width_k]`.
    pub q: Vec<f64>,
    /// The tokens.
    pub cache: ReferenceCache,
    /// Score error that rotation in the engine may leave, `[total_q, h_q]`, as a multiple of the
    /// engine's vector roundoff and an absolute part: see [`Script::tolerance`].
    rotation: Option<Rotation>,
    q_max: f64,
    k_max: f64,
}

/// How far a rotated key may move the scores of each row `[S-7.19]`.
#[derive(Clone, Debug)]
struct Rotation {
    /// Per unit of vector roundoff, `[total_q, h_q]`.
    relative: Vec<f64>,
    /// From rounding into the cache's format, `[total_q, h_q]`.
    stored: Vec<f64>,
}

/// A case made concrete.
#[derive(Clone, Debug)]
pub struct Script {
    /// The case.
    pub case: Case,
    /// What is computed.
    pub problem: Problem,
    /// The cache.
    pub layout: CacheLayout,
    /// What the engine does.
    pub ops: Vec<Op>,
    /// What the oracle is asked.
    pub questions: Vec<Question>,
    /// What the cache should hold in the end.
    pub audit: Audit,
}

/// What batch-invariant results must not depend on `[S-3.21]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrangement {
    /// Sequences of the case in the order they stand in the batch.
    pub sequences: Vec<usize>,
    /// Tokens per page.
    pub page_size: usize,
    /// Decides, with the seed, which pages are used.
    pub places: u64,
}

impl Arrangement {
    /// As the case says.
    pub fn of(case: &Case) -> Arrangement {
        Arrangement {
            sequences: (0..case.lens.len()).collect(),
            page_size: case.page_size,
            places: 0,
        }
    }
}

/// The oracle's answer to a [`Question`].
#[derive(Clone, Debug)]
pub struct Answer {
    /// Results and diagnostics.
    pub attended: Attended,
}

impl Script {
    /// Makes a case concrete. It is the same for every engine and on every machine.
    ///
    /// # Errors
    /// A case whose numbers do not fit together.
    pub fn new(case: &Case) -> Result<Script, InvalidCase> {
        Script::arranged(case, &Arrangement::of(case))
    }

    /// The same sequences, some of them, in another order, on other pages of another size.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn arranged(case: &Case, arrangement: &Arrangement) -> Result<Script, InvalidCase> {
        Builder::new(case, arrangement.clone())?.build()
    }

    /// Asks the oracle everything that the script asks.
    pub fn answers(&self) -> Vec<Answer> {
        let answer = |question: &Question| Answer {
            attended: attend(&self.problem, &question.step, &question.q, &question.cache),
        };
        self.questions.iter().map(answer).collect()
    }

    /// What an answer is compared as.
    pub fn expected<'a>(
        &'a self,
        question: usize,
        answer: &'a Answer,
        score_slack: &'a [f64],
    ) -> Expected<'a> {
        let geometry = self.problem.geometry();
        Expected {
            attended: &answer.attended,
            step: &self.questions[question].step,
            h_q: geometry.h_q(),
            width_v: geometry.width_v(),
            score_slack,
        }
    }

    /// The bound for an engine with this arithmetic, and the score error that its rotation of keys
    /// may leave in each row (empty where it rotates none).
    pub fn tolerance(&self, question: usize, arithmetic: Arithmetic) -> (Tolerance, Vec<f64>) {
        let Question { q_max, k_max, rotation, .. } = &self.questions[question];
        let tolerance = Tolerance {
            arithmetic,
            output: self.problem.output(),
            f64_results: false,
            dtype: self.problem.dtype(),
            width_k: self.problem.geometry().width_k(),
            scale: self.problem.scale(),
            q_max: *q_max,
            k_max: *k_max,
            general_position: self.case.general_position(),
        };
        let slack = rotation.as_ref().map_or_else(Vec::new, |rotation| {
            let rows = rotation.relative.iter().zip(&rotation.stored);
            rows.map(|(relative, stored)| relative * arithmetic.vector + stored).collect()
        });
        (tolerance, slack)
    }
}

/// The inputs of a script's last attention as a caller would have them: for programs that hand
/// them to engines which are not driven through this crate.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// What is computed.
    pub problem: Problem,
    /// The cache, NaN where no token lives.
    pub cache: ReferenceCache,
    /// Lengths, page tables and mask.
    pub step: Step,
    /// `[total_q, h_q, width_k]`.
    pub q: Vec<f64>,
}

impl Inputs {
    /// Runs a script on the reference engine up to its last attention, and stops before it.
    ///
    /// # Errors
    /// A script without an attention; whatever the reference refuses.
    ///
    /// # Panics
    /// Never: scripts plan before they attend.
    pub fn new(script: &Script) -> Result<Inputs, InvalidCase> {
        let attends = |op: &Op| matches!(op, Op::Attend { .. });
        let Some(last) = script.ops.iter().rposition(attends) else {
            return Err(InvalidCase::Scenario {
                scenario: script.case.scenario.to_string(),
                reason: "nothing is attended to",
            });
        };
        let mut host = Host::new(script);
        for op in &script.ops[..last] {
            host.apply(op).map_err(InvalidCase::Refused)?;
        }
        let (Op::Attend { q, .. }, Some(step)) = (&script.ops[last], host.step) else {
            unreachable!("this operation attends, and a script plans before it does");
        };
        let geometry = script.problem.geometry();
        let mut q = q.to_f64();
        q.truncate(step.total_q() * geometry.h_q() * geometry.width_k());
        let cache = host.caches.swap_remove(host.layer);
        Ok(Inputs { problem: script.problem.clone(), cache, step, q })
    }
}

/// The reference engine, as far as it is needed to move rows.
struct Host<'a> {
    problem: &'a Problem,
    caches: Vec<ReferenceCache>,
    layer: usize,
    step: Option<Step>,
}

impl<'a> Host<'a> {
    fn new(script: &'a Script) -> Host<'a> {
        let layers = 0..script.case.scenario.layers();
        let caches = layers.map(|_| ReferenceCache::new(script.layout)).collect();
        Host { problem: &script.problem, caches, layer: 0, step: None }
    }

    fn apply(&mut self, op: &Op) -> Result<(), Error> {
        let engine = Reference::new();
        match op {
            Op::Plan { step, .. } | Op::Update { step } => self.step = Some(step.clone()),
            Op::Layer(layer) => self.layer = *layer,
            Op::Append { first, second, rotating } => {
                let step = self.step.as_ref().expect("a script plans before it appends");
                let plan = engine.plan(Planning::new(self.problem, step))?;
                let upload = |host: &HostTensor| -> Result<ReferenceTensor, Error> {
                    let mut tensor = engine.allocate(host.dtype(), host.shape())?;
                    engine.upload(Upload::new(&mut tensor, host)?)?;
                    Ok(tensor)
                };
                let first = upload(first)?;
                let second = second.as_ref().map(upload).transpose()?;
                let cache = &mut self.caches[self.layer];
                engine.append(if *rotating {
                    Append::rotating(&plan, cache, &first, second.as_ref())?
                } else {
                    Append::new(&plan, cache, &first, second.as_ref())?
                })?;
            }
            Op::Copy(copies) => {
                engine.copy_rows(CopyRows::new(&mut self.caches[self.layer], copies)?)?;
            }
            Op::Attend { .. } | Op::Merge => {}
        }
        Ok(())
    }
}

fn maxima(question: &Step, q: &[f64], cache: &ReferenceCache, heads: usize) -> (f64, f64) {
    let tokens = question.spans().iter().flat_map(|span| (0..span.kv_len).map(move |j| (span, j)));
    let keys = tokens.flat_map(|(span, j)| {
        let slot = question.slot(span, j);
        (0..heads).flat_map(move |head| cache.key(slot, head))
    });
    (largest_finite(q.iter().copied()), largest_finite(keys))
}
