//! One engine, one case, one verdict.

use crate::case::{Case, InvalidCase};
use crate::compare::{Compared, Comparison, Place, Quantity, compare, distance};
use crate::execute::{Event, Halt, Output, execute};
use crate::script::{Answer, Arrangement, Script};
use grouped_attention::{AnyBackend, Arithmetic, Backend, Step, merge_row};
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
    Case(InvalidCase),
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
        comparison: Comparison,
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
        Err(error) => Verdict::Failed(Fault::Case(error)),
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
        let comparison = judge_event(script, answers, arithmetic, event);
        if !comparison.passed() {
            return Err(Fault::Wrong { event: index, comparison });
        }
        all.absorb(&comparison);
    }
    if all.rows == 0 && sees_something(answers) && !script.case.fill.has_non_finite() {
        return Err(Fault::Vacuous);
    }
    if script.case.invariant {
        judge_invariance(engine, script, arithmetic, &events)?;
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
            judge_merge(script, arithmetic, [part, other, merged])
        }
    }
}

/// A merge is judged by the parts that the engine itself computed, which are exact inputs to it;
/// that those are right was judged before `[S-7.16]`.
fn judge_merge(script: &Script, arithmetic: Arithmetic, outputs: [&Output; 3]) -> Comparison {
    let last = script.questions.len() - 1;
    let (tolerance, _) = script.tolerance(last, arithmetic);
    let geometry = script.problem.geometry();
    let (h_q, width_v) = (geometry.h_q(), geometry.width_v());
    let step = &script.questions[last].step;
    let mut comparison = Comparison::default();
    let lses = outputs.map(|output| output.lse.as_deref().expect("a merging script has lse"));
    for row in 0..lses[0].len() {
        let at = |index: usize| &outputs[index].o[row * width_v..][..width_v];
        let (a, b, got) = (lses[0][row], lses[1][row], lses[2][row]);
        let (mut o, mut lse) = (at(0).to_vec(), a);
        merge_row(&mut o, &mut lse, at(1), b);
        // [S-3.16]: with an empty part nothing is computed, so nothing may differ.
        let empty = a == f64::NEG_INFINITY || b == f64::NEG_INFINITY;
        let bounds = tolerance.merge(a, b, lse);
        let mut push = |quantity, expected: f64, got: f64, bound: f64| {
            let (bound, error) = if expected.is_finite() && !empty {
                (bound, distance(expected, got))
            } else {
                let same = expected == got || (!expected.is_finite() && !got.is_finite());
                (f64::INFINITY, if same { 0.0 } else { f64::INFINITY })
            };
            let place = place(step, h_q, row, quantity);
            comparison.push(Compared { place, expected, got, bound, error });
        };
        for column in 0..width_v {
            let weigh = |part: f64, x: f64| (part - lse).exp() * x.abs();
            let envelope = weigh(a, at(0)[column]) + weigh(b, at(1)[column]);
            let bound = bounds.element(envelope, o[column]);
            push(Quantity::Element { column }, o[column], at(2)[column], bound);
        }
        push(Quantity::Lse, lse, got, bounds.lse());
        comparison.rows += 1;
    }
    comparison
}

/// Coordinates of a packed row.
fn place(step: &Step, h_q: usize, row: usize, quantity: Quantity) -> Place {
    let query = row / h_q;
    let holds = |span: &&grouped_attention::Span| {
        (span.q_start..span.q_start + span.q_len).contains(&query)
    };
    let sequence = step.spans().iter().position(|span| holds(&span)).unwrap_or(0);
    let token = query - step.spans().get(sequence).map_or(0, |span| span.q_start);
    Place { sequence, token, head: row % h_q, quantity }
}

/// `[S-3.21]`: the same bits alone, in another order, on other pages, with another page size.
fn judge_invariance(
    engine: &AnyBackend,
    script: &Script,
    arithmetic: Arithmetic,
    events: &[Event],
) -> Result<(), Fault> {
    if !arithmetic.batch_invariant {
        return Err(Fault::NotDeclaredInvariant);
    }
    let case = &script.case;
    let sequences = 0..case.lens.len();
    let page_size = 2 * case.page_size + 1;
    let alone = sequences.clone().map(|sequence| vec![sequence]);
    let arrangements = alone.chain([sequences.rev().collect()]).zip(1..);
    for (sequences, places) in arrangements {
        let arrangement = Arrangement { sequences, page_size, places };
        let other = Script::arranged(case, &arrangement).map_err(Fault::Case)?;
        let rearranged = execute(engine, &other).map_err(Fault::Halted)?;
        for (event, other_event) in events.iter().zip(&rearranged) {
            let (output, other_output) = (last_output(event), last_output(other_event));
            for (index, &sequence) in arrangement.sequences.iter().enumerate() {
                let ours = rows_of(script, event, output, sequence);
                let theirs = rows_of(&other, other_event, other_output, index);
                if !same_bits(&ours, &theirs) {
                    return Err(Fault::Variant { sequence, arrangement });
                }
            }
        }
    }
    Ok(())
}

fn last_output(event: &Event) -> &Output {
    match event {
        Event::Attended { output, .. } => output,
        Event::Merged { merged, .. } => merged,
    }
}

/// Every number of one sequence of a batch.
fn rows_of(script: &Script, event: &Event, output: &Output, sequence: usize) -> Vec<f64> {
    let question = match event {
        Event::Attended { question, .. } => *question,
        Event::Merged { .. } => script.questions.len() - 1,
    };
    let geometry = script.problem.geometry();
    let span = &script.questions[question].step.spans()[sequence];
    let rows = span.q_start * geometry.h_q()..(span.q_start + span.q_len) * geometry.h_q();
    let width_v = geometry.width_v();
    let lse = output.lse.as_ref().map_or(&[][..], |lse| &lse[rows.clone()]);
    [&output.o[rows.start * width_v..rows.end * width_v], lse].concat()
}

/// Values of one format are equal in bits exactly if they are in f64; NaN payloads aside.
fn same_bits(a: &[f64], b: &[f64]) -> bool {
    let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(same)
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
