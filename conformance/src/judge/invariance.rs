//! Batch-invariant mode.

use super::Fault;
use crate::execute::{Event, Output, execute};
use crate::script::{Arrangement, Script};
use grouped_attention::{AnyBackend, Arithmetic};

/// `[S-3.21]`: the same bits alone, in another order, on other pages, with another page size.
pub(super) fn judge(
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
        let other =
            Script::arranged(case, &arrangement).map_err(|error| Fault::Case(Box::new(error)))?;
        let rearranged = execute(engine, &other).map_err(Fault::Halted)?;
        for (event, other_event) in events.iter().zip(&rearranged) {
            let outputs = last_output(event).zip(last_output(other_event));
            let Some((output, other_output)) = outputs else { continue };
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

fn last_output(event: &Event) -> Option<&Output> {
    match event {
        Event::Attended { output, .. } => Some(output),
        Event::Merged { merged, .. } => Some(merged),
        Event::Audited { .. } => None,
    }
}

/// Every number of one sequence of a batch.
fn rows_of(script: &Script, event: &Event, output: &Output, sequence: usize) -> Vec<f64> {
    let question = match event {
        Event::Attended { question, .. } => *question,
        Event::Merged { .. } | Event::Audited { .. } => script.questions.len() - 1,
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
