//! How near right engines come to the bounds, and what the bounds still notice: the two tables that
//! close chapter 7, printed by `cargo test --test bounds tight -- --nocapture`.

use crate::inputs::Inputs;
use crate::model::Model;
use grouped_attention::Dtype;
use grouped_attention_conformance::{Comparison, Tolerance};

const F32: Model = Model::F32;
const F16: Model = Model { operand: Dtype::F16, output: Dtype::F16, ..Model::BF16 };
const SHAPES: [[usize; 4]; 4] = [[8, 2, 4, 8], [8, 33, 16, 8], [4, 300, 64, 16], [2, 2048, 128, 8]];

/// Largest ratios of element, lse and residual under the plain bound and under the sharp one.
fn ratios(model: Model, all: impl Iterator<Item = Inputs>) -> [[f64; 3]; 2] {
    let mut worst = [Comparison::default(), Comparison::default()];
    for inputs in all {
        let exact = inputs.exact();
        let (o, lse) = model.attend(&inputs);
        let tolerance = inputs.tolerance(model.arithmetic(), model.output);
        for (worst, general_position) in worst.iter_mut().zip([false, true]) {
            let tolerance = Tolerance { general_position, ..tolerance };
            worst.absorb(&inputs.judge_by(&exact, &o, &lse, &tolerance));
        }
    }
    worst.map(|comparison| comparison.ratios())
}

fn print(inputs: &str, model: Model, [plain, sharp]: [[f64; 3]; 2]) {
    let (operand, output) = (model.operand, model.output);
    println!(
        "| {inputs} | {operand}, {output} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
        plain[0], plain[1], sharp[0], sharp[1], sharp[2]
    );
}

fn random(shapes: &[[usize; 4]], dtype: Dtype) -> impl Iterator<Item = Inputs> {
    let cases = shapes.iter().flat_map(|&shape| [1.0, 8.0].map(|deviation| (shape, deviation)));
    cases.enumerate().map(move |(seed, (shape, deviation))| {
        Inputs::gaussian(shape, dtype, deviation, 20 + seed as u64)
    })
}

// [S-7.7] [S-7.12 .. S-7.15] [S-7.22]
#[test]
fn tight_in_general_position_and_outside_it() {
    println!(
        "| inputs | probabilities, output | plain o | plain lse | sharp o | sharp lse | residual |"
    );
    println!("|---|---|---|---|---|---|---|");
    for model in [F32, Model { tile: 1, ..F32 }, Model::BF16, F16] {
        let found = ratios(model, random(&SHAPES, model.output));
        let name = if model.tile == 1 { "random, a maximum at each position" } else { "random" };
        print(name, model, found);
        assert!(found.iter().flatten().all(|&ratio| ratio < 1.0), "{name}: {found:?}");
        // A tenth of the bound is what a bound to sharpen is told by.
        assert!(found[1][0] > 0.2 && found[1][2] > 0.1, "{name}: {found:?}");
    }
    let long = ratios(F32, random(&SHAPES[3..], Dtype::F32));
    print("random, N = 2048 only", F32, long);
    assert!(long[1][0] > 10.0 * long[0][0], "long rows need the sharp bound: {long:?}");
    for model in [F32, Model { tile: 1, ..F32 }, Model::BF16, F16] {
        // Right engines outside general position, where only the plain bound is promised.
        let needle = ratios(model, random(&SHAPES, model.output).map(Inputs::with_needle));
        print("one needle", model, needle);
        let repeated = ratios(model, random(&SHAPES, model.output).map(Inputs::repeated));
        print("two distinct rows, each repeated N/2 times", model, repeated);
        let plain = needle[0].iter().chain(&repeated[0]);
        assert!(plain.clone().all(|&ratio| ratio < 1.0), "{needle:?} {repeated:?}");
        assert!(model.operand != Dtype::F32 || repeated[1][0] > 1.0, "{repeated:?}");
    }
}

const TRIALS: u64 = 10;

/// How many of [`TRIALS`] rows of `n` positions each bound of a model rejects if the last position
/// is dropped, in exact arithmetic: plain o, sharp o, residual, sharp lse.
fn noticed(model: Model, n: usize) -> [usize; 4] {
    let mut noticed = [0; 4];
    for seed in 0..TRIALS {
        let inputs = Inputs::gaussian([1, n, 128, 128], model.output, 1.0, 100 + seed);
        let (exact, dropped) = (inputs.exact(), inputs.without_last().exact());
        let lse: Vec<f64> = dropped.rows.iter().map(|row| row.lse).collect();
        let tolerance = inputs.tolerance(model.arithmetic(), model.output);
        let judge = |general_position| {
            let tolerance = Tolerance { general_position, ..tolerance };
            inputs.judge_by(&exact, &dropped.o, &lse, &tolerance).ratios()
        };
        let (plain, sharp) = (judge(false), judge(true));
        let found = [plain[0], sharp[0], sharp[2], sharp[1]];
        found.iter().zip(&mut noticed).for_each(|(&ratio, n)| *n += usize::from(ratio > 1.0));
    }
    noticed
}

// [S-7.12] [S-7.13]
#[test]
fn tight_enough_to_notice_a_dropped_position() {
    println!(
        "| N | bf16: plain o | sharp o | residual | sharp lse | f32: plain o | sharp o | residual | sharp lse |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for n in [256, 1024, 4096] {
        let (bf16, f32) = (noticed(Model::BF16, n), noticed(F32, n));
        let cells = bf16.iter().chain(&f32).map(usize::to_string).collect::<Vec<_>>();
        println!("| {n} | {} |", cells.join(" | "));
        let all = TRIALS as usize;
        assert!(f32[1] == all && bf16[1] >= all / 5 && bf16[1] >= bf16[0], "{n}: {bf16:?} {f32:?}");
    }
}
