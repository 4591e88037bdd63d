//! One engine, one case, one verdict.

mod audit;
mod invariance;
mod merge;

use crate::case::{Case, InvalidCase};
use crate::compare::{Comparison, compare};
use crate::execute::{Event, Halt, execute};
use crate::script::{Answer, Arrangement, Script};
use grouped_attention::{AnyBackend, Arithmetic, Backend, Slot};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a case says of an engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every number is within its bound.
    Passed(Comparison),
    /// The engine says that it does not do this.
    Skipped {
        /// In its words.
        reason: String,
    },
    /// The engine does not conform.
    Failed(Fault),
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// The description is no case; the engine is not to blame.
    Case(Box<InvalidCase>),
    /// It panicked.
    Panicked {
        /// With these words.
        message: String,
    },
    /// An error where there should be none, a row overwritten, a bad status.
    Halted(Halt),
    /// It says unsupported after it said supported.
    Promised {
        /// Its words.
        reason: String,
    },
    /// Numbers are too far apart.
    Wrong {
        /// Index of the attention or merge among those of the case.
        event: usize,
        /// The comparison.
        comparison: Box<Comparison>,
    },
    /// A cell does not hold what was written to it, or holds what was not.
    Stored {
        /// The cell.
        slot: Slot,
        /// 0 for the keys or states, 1 for the values or the rope key.
        part: usize,
        /// Element of that part of the row.
        element: usize,
        /// What it should hold; NaN where nothing was written.
        expected: f64,
        /// What it holds.
        got: f64,
    },
    /// No number of the case was compared, though rows see something: a case without teeth.
    Vacuous,
    /// Batch-invariant mode was granted and not declared.
    NotDeclaredInvariant,
    /// Bits differ between two arrangements of one sequence.
    Variant {
        /// Sequence of the case.
        sequence: usize,
        /// How else it was arranged.
        arrangement: Arrangement,
    },
}

impl Verdict {
    /// True for a failure.
    pub fn failed(&self) -> bool {
        matches!(self, Verdict::Failed(_))
    }
}

/// Judges an engine by a case.
pub fn judge(engine: &AnyBackend, case: &Case) -> Verdict {
    match Script::new(case) {
        Ok(script) => {
            let answers = script.answers();
            judge_script(engine, &script, &answers)
        }
        Err(error) => Verdict::Failed(Fault::Case(Box::new(error))),
    }
}

/// Judges an engine by a script whose answers are known.
pub fn judge_script(engine: &AnyBackend, script: &Script, answers: &[Answer]) -> Verdict {
    // A panic is a failure of the engine, not of the run; an engine that panicked is asked again
    // all the same, as a program that catches it would.
    let outcome = catch_unwind(AssertUnwindSafe(|| outcome(engine, script, answers)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let message = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Verdict::Failed(Fault::Panicked { message: message.to_owned() })
    })
}

fn outcome(engine: &AnyBackend, script: &Script, answers: &[Answer]) -> Verdict {
    if let Err(unsupported) = engine.supports(&script.problem) {
        return Verdict::Skipped { reason: unsupported.to_string() };
    }
    match run(engine, script, answers) {
        Ok(comparison) => Verdict::Passed(comparison),
        Err(Fault::Halted(Halt::Refused(error))) => refused(error),
        Err(fault) => Verdict::Failed(fault),
    }
}

fn refused(error: grouped_attention::Error) -> Verdict {
    use grouped_attention::{EngineError, Error};
    Verdict::Failed(match error {
        Error::Engine(EngineError::Unsupported(what)) => {
            Fault::Promised { reason: what.to_string() }
        }
        error => Fault::Halted(Halt::Refused(error)),
    })
}

fn run(engine: &AnyBackend, script: &Script, answers: &[Answer]) -> Result<Comparison, Fault> {
    let arithmetic = engine.arithmetic(&script.problem);
    let events = execute(engine, script).map_err(Fault::Halted)?;
    let mut all = Comparison::default();
    for (index, event) in events.iter().enumerate() {
        if let Event::Audited { first, second } = event {
            audit::judge(script, arithmetic, [first, second])?;
            continue;
        }
        let comparison = judge_event(script, answers, arithmetic, event);
        if !comparison.passed() {
            return Err(Fault::Wrong { event: index, comparison: Box::new(comparison) });
        }
        all.absorb(&comparison);
    }
    if all.rows == 0 && sees_something(answers) && !script.case.fill.has_non_finite() {
        return Err(Fault::Vacuous);
    }
    if script.case.invariant {
        invariance::judge(engine, script, arithmetic, &events)?;
    }
    Ok(all)
}

fn sees_something(answers: &[Answer]) -> bool {
    answers.iter().flat_map(|answer| &answer.attended.rows).any(|row| row.visible > 0)
}

fn judge_event(
    script: &Script,
    answers: &[Answer],
    arithmetic: Arithmetic,
    event: &Event,
) -> Comparison {
    match event {
        Event::Attended { question, output } => {
            let (tolerance, slack) = script.tolerance(*question, arithmetic);
            let expected = script.expected(*question, &answers[*question], &slack);
            compare(&expected, &output.o, output.lse.as_deref(), &tolerance)
        }
        Event::Merged { part, other, merged } => {
            merge::judge(script, arithmetic, [part, other, merged])
        }
        Event::Audited { .. } => Comparison::default(),
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Case(error) => write!(f, "not a case: {error}"),
            Fault::Panicked { message } => write!(f, "the engine panicked: {message}"),
            Fault::Halted(Halt::Refused(error)) => write!(f, "the engine refused: {error}"),
            Fault::Halted(Halt::Overwritten { tensor, row, now }) => {
                write!(f, "row {row} of {tensor} was not to be written and holds {now}")
            }
            Fault::Halted(Halt::Status(status)) => write!(f, "the plan's status is {status:?}"),
            Fault::Promised { reason } => {
                write!(f, "`supports` accepted the problem and a later call said: {reason}")
            }
            Fault::Wrong { event, comparison } => write!(f, "result {event}: {comparison}"),
            Fault::Stored { slot, part, element, expected, got } => write!(
                f,
                "row {} of page {} holds {got:e} in element {element} of part {part}, not \
                 {expected:e}",
                slot.row, slot.page.0
            ),
            Fault::Vacuous => f.write_str("no number was compared: the bounds do not apply"),
            Fault::NotDeclaredInvariant => {
                f.write_str("batch-invariant mode, and `arithmetic` does not declare it")
            }
            Fault::Variant { sequence, arrangement } => {
                write!(f, "sequence {sequence} has other bits under {arrangement:?}")
            }
        }
    }
}
