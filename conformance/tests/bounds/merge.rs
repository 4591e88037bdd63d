//! The bound of a merge.

use crate::inputs::Inputs;
use crate::model::{Model, f32};
use grouped_attention::{Dtype, merge_row};
use grouped_attention_conformance::noise::Noise;

/// One element and the lse of two parts, merged in f32 from their common maximum `[S-3.15]`.
fn merged([o_a, lse_a]: [f64; 2], [o_b, lse_b]: [f64; 2]) -> [f64; 2] {
    let max = lse_a.max(lse_b);
    let weight = |lse: f64| f32(f32(lse - max).exp());
    let lse = f32(max + f32(f32(weight(lse_a) + weight(lse_b)).ln()));
    let share = |lse_part: f64| f32(f32(lse_part - lse).exp());
    [f32(f32(o_a * share(lse_a)) + f32(o_b * share(lse_b))), lse]
}

// [S-7.16]
#[test]
fn a_merge_in_f32_is_in_bound_and_one_in_base_2_is_not() {
    let inputs = Inputs::gaussian([1, 1, 8, 1], Dtype::F32, 1.0, 0);
    let tolerance = inputs.tolerance(Model::F32.arithmetic(), Dtype::F32);
    let mut noise = Noise::new(8, &[]);
    let mut largest: [f64; 2] = [0.0; 2];
    for _ in 0..2000 {
        let mut part = || [f32(noise.gaussian()), f32(30.0 * noise.gaussian())];
        let (a, b) = (part(), part());
        let (mut exact, mut lse) = ([a[0]], a[1]);
        merge_row(&mut exact, &mut lse, &[b[0]], b[1]);
        let envelope = (a[1] - lse).exp() * a[0].abs() + (b[1] - lse).exp() * b[0].abs();
        let bounds = tolerance.merge(a[1], b[1], lse);
        let [got, got_lse] = merged(a, b);
        let ratios = [
            (got - exact[0]).abs() / bounds.element(envelope, exact[0]),
            (got_lse - lse).abs() / bounds.lse(),
        ];
        assert!(ratios.iter().all(|ratio| *ratio <= 1.0), "{a:?} {b:?}: {ratios:?}");
        largest = [0, 1].map(|i: usize| largest[i].max(ratios[i]));
    }
    assert!(largest.iter().all(|ratio| *ratio > 0.05), "{largest:?}");
    // Two equal parts are ln 2 above either, not 1.
    let bounds = tolerance.merge(5.0, 5.0, 5.0 + 2f64.ln());
    assert!((6.0 - (5.0 + 2f64.ln())).abs() > bounds.lse());
}
