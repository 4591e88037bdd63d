//! Merged parts.

use crate::compare::{Compared, Comparison, Place, Quantity, distance};
use crate::execute::Output;
use crate::script::Script;
use crate::tolerance::MergeTolerance;
use grouped_attention::{Arithmetic, Span, Step, merge_row};

/// A merge is judged by the parts that the engine itself computed, which are exact inputs to it;
/// that those are right was judged before `[S-7.16]`.
pub(super) fn judge(script: &Script, arithmetic: Arithmetic, outputs: [&Output; 3]) -> Comparison {
    let last = script.questions.len() - 1;
    let (tolerance, _) = script.tolerance(last, arithmetic);
    let geometry = script.problem.geometry();
    let (h_q, width_v) = (geometry.h_q(), geometry.width_v());
    let step = &script.questions[last].step;
    let mut comparison = Comparison::default();
    let rows = outputs[0].o.len() / width_v;
    for row in 0..rows {
        let [part, other, got] = outputs.map(|output| Row::of(output, row, width_v));
        let (mut o, mut lse) = (part.o.to_vec(), part.lse);
        merge_row(&mut o, &mut lse, other.o, other.lse);
        let bounds = tolerance.merge(part.lse, other.lse, lse);
        let merged = Merged { parts: [part, other], o: &o, lse, bounds };
        merged.compare(got, &mut comparison, |quantity| place(step, h_q, row, quantity));
        comparison.rows += 1;
    }
    comparison
}

/// One row of an output.
#[derive(Clone, Copy)]
struct Row<'a> {
    o: &'a [f64],
    lse: f64,
}

impl<'a> Row<'a> {
    fn of(output: &'a Output, row: usize, width_v: usize) -> Row<'a> {
        let lse = output.lse.as_deref().expect("a merging script asks for lse");
        Row { o: &output.o[row * width_v..][..width_v], lse: lse[row] }
    }
}

/// What merging two rows should give.
struct Merged<'a> {
    parts: [Row<'a>; 2],
    o: &'a [f64],
    lse: f64,
    bounds: MergeTolerance,
}

impl Merged<'_> {
    fn compare(&self, got: Row<'_>, comparison: &mut Comparison, at: impl Fn(Quantity) -> Place) {
        for (column, (&expected, &got)) in self.o.iter().zip(got.o).enumerate() {
            let weigh = |part: &Row<'_>| (part.lse - self.lse).exp() * part.o[column].abs();
            // A_m of [S-7.16].
            let envelope = self.parts.iter().map(weigh).sum();
            let bound = self.bounds.element(envelope, expected);
            comparison.push(self.compared(at(Quantity::Element { column }), expected, got, bound));
        }
        let bound = self.bounds.lse();
        comparison.push(self.compared(at(Quantity::Lse), self.lse, got.lse, bound));
    }

    fn compared(&self, place: Place, expected: f64, got: f64, bound: f64) -> Compared {
        // [S-3.16]: with an empty part nothing is computed, so nothing may differ.
        let empty = self.parts.iter().any(|part| part.lse == f64::NEG_INFINITY);
        if expected.is_finite() && !empty {
            return Compared { place, expected, got, bound, error: distance(expected, got) };
        }
        let same = expected == got || (!expected.is_finite() && !got.is_finite());
        let error = if same { 0.0 } else { f64::INFINITY };
        Compared { place, expected, got, bound: f64::INFINITY, error }
    }
}

/// Coordinates of a packed row.
fn place(step: &Step, h_q: usize, row: usize, quantity: Quantity) -> Place {
    let query = row / h_q;
    let holds = |span: &Span| (span.q_start..span.q_start + span.q_len).contains(&query);
    let sequence = step.spans().iter().position(holds).unwrap_or(0);
    let token = query - step.spans().get(sequence).map_or(0, |span| span.q_start);
    Place { sequence, token, head: row % h_q, quantity }
}
