//! The bounds of a row, for models that declare what they do and for one that does not.

use crate::inputs::Inputs;
use crate::model::Model;
use grouped_attention::{Arithmetic, Dtype};
use grouped_attention_conformance::{Comparison, Element, Tolerance};

const SHAPES: [[usize; 4]; 5] =
    [[8, 2, 4, 3], [8, 33, 16, 8], [4, 300, 64, 16], [2, 2048, 128, 16], [4, 129, 576, 32]];

fn judge(model: Model, inputs: &Inputs, general_position: bool) -> Comparison {
    let (o, lse) = model.attend(inputs);
    let tolerance = inputs.tolerance(model.arithmetic(), model.output);
    inputs.judge(&o, &lse, &Tolerance { general_position, ..tolerance })
}

// [S-7.12] [S-7.13] [S-7.14] [S-7.15]
#[test]
fn models_are_in_bound_by_what_they_declare() {
    let models = [
        ("f32", Model::F32),
        ("one at a time", Model { tile: 1, ..Model::F32 }),
        ("two passes", Model { tile: usize::MAX >> 8, ..Model::F32 }),
        ("f16", Model { operand: Dtype::F16, output: Dtype::F16, ..Model::BF16 }),
        ("bf16", Model::BF16),
        ("bf16 nearest", Model { truncates: false, step: 1, ..Model::BF16 }),
    ];
    for (name, model) in models {
        let mut largest: [f64; 3] = [0.0; 3];
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            for deviation in [1.0, 8.0] {
                let inputs = Inputs::gaussian(shape, model.output, deviation, seed as u64);
                let plain = judge(model, &inputs, false);
                assert!(plain.passed(), "{name}, {shape:?}: {plain}");
                let sharp = judge(model, &inputs, true);
                assert!(sharp.passed(), "{name}, {shape:?}, sharp: {sharp}");
                for (largest, ratio) in largest.iter_mut().zip(sharp.ratios()) {
                    *largest = largest.max(ratio);
                }
            }
        }
        // Within seven times of what an engine needs; at ten a bound is one to sharpen.
        let [element, lse, residual] = largest;
        assert!(element > 0.15 && residual > 0.1 && lse > 0.05, "{name}: {largest:?}");
    }
}

/// A lone position's lse is its score, so this is the error of a score alone.
// [S-7.8]
#[test]
fn scores_are_in_bound() {
    for truncates in [false, true] {
        let model = Model { truncates, ..Model::F32 };
        let inputs = Inputs::gaussian([64, 1, 576, 1], Dtype::F32, 8.0, 1);
        assert!(judge(model, &inputs, false).passed());
        let sharp = judge(model, &inputs, true);
        assert!(sharp.passed() && sharp.ratios()[1] > 0.05, "{sharp}");
    }
    // Scores of bf16 products that are rounded to bf16 on the way are not scores in f32.
    let inputs = Inputs::gaussian([64, 1, 64, 1], Dtype::F32, 8.0, 1);
    let (o, lse) = Model::F32.attend(&inputs);
    let rounded: Vec<f64> = lse.iter().map(|&x| Dtype::Bf16.round(x)).collect();
    let tolerance = inputs.tolerance(Model::F32.arithmetic(), Dtype::F32);
    assert!(!inputs.judge(&o, &rounded, &tolerance).passed());
}

// [S-7.10]
#[test]
fn a_normaliser_of_rounded_probabilities_is_out_of_bound() {
    let inputs = Inputs::gaussian([32, 300, 64, 4], Dtype::Bf16, 1.0, 6);
    let honest = judge(Model::BF16, &inputs, false);
    assert!(honest.passed(), "{honest}");
    let defect = judge(Model { sums_rounded: true, ..Model::BF16 }, &inputs, false);
    assert!(defect.ratios()[1] > 1.0, "{defect}");
}

/// Equal keys make equal errors: a right engine is outside the sharp bound and inside the plain one.
// [S-7.7] [S-7.13] [S-7.22]
#[test]
fn repeated_rows_need_the_plain_bound() {
    let inputs = Inputs::gaussian([8, 2048, 64, 16], Dtype::F32, 8.0, 9).repeated();
    let plain = judge(Model::F32, &inputs, false);
    assert!(plain.passed(), "{plain}");
    let sharp = judge(Model::F32, &inputs, true);
    assert!(!sharp.passed(), "{sharp}");
}

/// Each part of the declaration matters: a model that declares a better one is out of bound.
// [S-7.2] [S-7.13]
#[test]
fn a_declaration_that_is_too_good_shows() {
    let inputs = Inputs::gaussian([16, 2048, 128, 16], Dtype::Bf16, 4.0, 12);
    let model = Model { output: Dtype::F32, ..Model::BF16 };
    let (o, lse) = model.attend(&inputs);
    let honest = model.arithmetic();
    let too_good = [
        ("probability", Arithmetic { probability: 2f64.powi(-13), ..honest }),
        ("all", Arithmetic::f32(honest.exp, honest.tile)),
    ];
    let passes = |arithmetic| {
        let tolerance = inputs.tolerance(arithmetic, Dtype::F32);
        inputs.judge(&o, &lse, &Tolerance { general_position: true, ..tolerance }).passed()
    };
    assert!(passes(honest));
    for (part, arithmetic) in too_good {
        assert!(!passes(arithmetic), "{part}");
    }
}

/// Every element of a row near its own bound is more than rounding does: errors have both signs and
/// many sizes, so their norm says what no element does.
// [S-7.15]
#[test]
fn a_row_of_large_errors_is_out_of_bound_though_no_element_is() {
    let inputs = Inputs::gaussian([4, 512, 64, 64], Dtype::F32, 1.0, 13);
    let tolerance = Tolerance {
        general_position: true,
        ..inputs.tolerance(Model::F32.arithmetic(), Dtype::F32)
    };
    let exact = inputs.exact();
    let lse: Vec<f64> = exact.rows.iter().map(|row| row.lse).collect();
    let mut o = exact.o.clone();
    for (row, columns) in o.chunks_exact_mut(64).enumerate() {
        let bounds = tolerance.row(&exact.rows[row], 0.0);
        for (column, o) in columns.iter_mut().enumerate() {
            let at = row * 64 + column;
            let bound = bounds.element(&Element::of(&exact, at));
            *o += 0.95 * bound;
        }
    }
    let [element, _, residual] = inputs.judge(&o, &lse, &tolerance).ratios();
    assert!(element < 1.0 && residual > 1.0, "element {element}, residual {residual}");
}

/// An output is as near as its format has numbers, where those are subnormal too.
// [S-7.17] [S-7.18]
#[test]
fn outputs_round_once_and_underflow() {
    for (output, magnitude) in
        [(Dtype::Bf16, 1.0), (Dtype::F16, 1.0), (Dtype::F16, 2f64.powi(-22)), (Dtype::F32, 1e-42)]
    {
        let mut inputs = Inputs::gaussian([8, 40, 16, 16], Dtype::F32, 1.0, 14);
        inputs.v.iter_mut().for_each(|v| *v = Dtype::F32.round(*v * magnitude));
        let exact = inputs.exact();
        let lse: Vec<f64> = exact.rows.iter().map(|row| row.lse).collect();
        let rounded: Vec<f64> = exact.o.iter().map(|&o| output.round(o)).collect();
        let tolerance = inputs.tolerance(Arithmetic::f32(2f64.powi(-22), 64), output);
        assert!(inputs.judge(&rounded, &lse, &tolerance).passed(), "{output}");
        if output == Dtype::F32 {
            // Sums of f32 subnormals lose as much as outputs do, so two units say nothing.
            continue;
        }
        // Two units off is another number than rounding gives.
        let unit = 4.0 * output.unit_roundoff();
        let off = |&o: &f64| output.round(o + (o.abs() * unit).max(2.0 * output.min_subnormal()));
        let off: Vec<f64> = exact.o.iter().map(off).collect();
        assert!(!inputs.judge(&off, &lse, &tolerance).passed(), "{output}");
    }
}
