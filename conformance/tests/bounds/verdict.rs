//! What is compared at all, and in which order.

use crate::inputs::Inputs;
use crate::model::Model;
use grouped_attention::Dtype;
use grouped_attention_conformance::Comparison;

fn judge(inputs: &Inputs, change: impl FnOnce(&mut [f64], &mut [f64])) -> Comparison {
    let exact = inputs.exact();
    let mut lse: Vec<f64> = exact.rows.iter().map(|row| row.lse).collect();
    let mut o = exact.o.clone();
    change(&mut o, &mut lse);
    inputs.judge(&o, &lse, &inputs.tolerance(Model::F32.arithmetic(), Dtype::F32))
}

fn inputs() -> Inputs {
    Inputs::gaussian([4, 9, 8, 4], Dtype::F32, 1.0, 2)
}

// [S-7.20]
#[test]
fn sets_of_non_finite_numbers_are_compared_before_numbers() {
    let mut inputs = inputs();
    // Row 1 sees a NaN, and no other does.
    inputs.q[8] = f64::NAN;
    let exact = judge(&inputs, |_, _| {});
    assert!(exact.passed(), "{exact}");
    assert_eq!((exact.rows, exact.rows_without_numbers), (3, 1));
    assert!(!judge(&inputs, |o, _| o[4] = 0.0).passed(), "a number where a NaN belongs");
    assert!(!judge(&inputs, |_, lse| lse[1] = 0.0).passed());
    assert!(!judge(&inputs, |o, _| o[0] = f64::NAN).passed(), "a NaN where a number belongs");
    assert!(!judge(&inputs, |o, _| o[0] = f64::INFINITY).passed());
    assert!(!judge(&inputs, |_, lse| lse[0] = f64::NEG_INFINITY).passed());
}

/// A NaN among the values reaches its column, or the whole row, and nothing between.
// [S-3.18] [S-7.20]
#[test]
fn a_row_that_sees_a_nan_may_be_nan_throughout() {
    let mut inputs = inputs();
    inputs.v[2] = f64::NAN;
    assert!(judge(&inputs, |_, _| {}).passed());
    assert!(judge(&inputs, |o, _| o[..4].fill(f64::NAN)).passed());
    let throughout = |o: &mut [f64], lse: &mut [f64]| {
        o[..4].fill(f64::NAN);
        lse[0] = f64::NAN;
    };
    assert!(judge(&inputs, throughout).passed());
    assert!(!judge(&inputs, |o, _| o[1] = f64::NAN).passed(), "a NaN in a column too many");
    assert!(!judge(&inputs, |o, _| o[2] = 0.0).passed(), "a NaN was lost");
    assert!(!judge(&inputs, |_, lse| lse[0] = f64::NAN).passed(), "lse alone");
}

// [S-7.21]
#[test]
fn empty_rows_are_compared_exactly() {
    let empty = Inputs::gaussian([4, 0, 8, 4], Dtype::F32, 1.0, 2);
    let exact = judge(&empty, |_, _| {});
    assert!(exact.passed() && exact.rows_without_numbers == 4, "{exact}");
    assert!(!judge(&empty, |o, _| o[5] = f64::MIN_POSITIVE).passed());
    assert!(!judge(&empty, |_, lse| lse[2] = f64::MIN).passed());
}

/// Where products of a score may overflow f32, or sums of values before they are divided, and where an
/// output may not fit its format, numbers say nothing; what can be said still is.
// [S-7.3]
#[test]
fn numbers_outside_the_domain_are_not_compared() {
    let mut large = inputs();
    large.q[..8].iter_mut().for_each(|q| *q *= 2f64.powi(64));
    large.k.iter_mut().for_each(|k| *k *= 2f64.powi(64));
    large.scale *= 2f64.powi(-64);
    // Row 0 is outside the domain. The others score as before.
    let wrong = judge(&large, |o, _| o[0] = 3.0);
    assert!(wrong.passed() && wrong.rows == 3, "{wrong}");
    assert!(!judge(&large, |o, _| o[4] = 3.0).passed());
    let mut tall = inputs();
    tall.v.fill(2e38);
    let infinite = judge(&tall, |o, _| o.fill(f64::INFINITY));
    assert!(infinite.passed() && infinite.rows == 0, "{infinite}");
    // Past the largest number of the output an element is not compared, and its neighbour is.
    let mut wide = inputs();
    wide.v.iter_mut().step_by(4).for_each(|v| *v = 1e5);
    let exact = wide.exact();
    let lse: Vec<f64> = exact.rows.iter().map(|row| row.lse).collect();
    let mut o = exact.o.clone();
    let tolerance = wide.tolerance(Model::F32.arithmetic(), Dtype::F16);
    o.iter_mut().step_by(4).for_each(|o| *o = f64::INFINITY);
    assert!(wide.judge(&o, &lse, &tolerance).passed());
    o[1] += 1.0;
    assert!(!wide.judge(&o, &lse, &tolerance).passed());
}
