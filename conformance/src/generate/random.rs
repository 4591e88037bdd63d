//! Random descriptions by proptest. What fails is shrunk as a description: fewer sequences,
//! shorter, smaller heads, plainer settings. Tensors follow from it and are never shrunk.

use super::shape::{Family, fitted};
use crate::case::{Case, Lens};
use crate::draft::{Draft, MaskShape};
use crate::fill::{Fill, Place};
use crate::judge::{Fault, Verdict};
use crate::scenario::Scenario;
use grouped_attention::{Dtype, Variant};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;

/// Judges random cases of one variant until one fails; that one, shrunk, with its fault.
pub fn search(
    variant: Variant,
    seed: u64,
    cases: u32,
    judge: impl Fn(&Case) -> Verdict,
) -> Option<(Case, Fault)> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8] = variant as u8;
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 4_000, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let fault = RefCell::new(None);
    let outcome = TestRunner::new_with_rng(config, rng).run(&cases_of(variant), |case| {
        match judge(&case) {
            Verdict::Passed(_) | Verdict::Skipped { .. } => Ok(()),
            Verdict::Failed(found) => {
                let reason = found.to_string();
                // The last failure that shrinking meets is the smallest.
                fault.replace(Some((case, found)));
                Err(TestCaseError::fail(reason))
            }
        }
    });
    match outcome {
        Ok(()) => None,
        Err(TestError::Fail(..)) => fault.into_inner(),
        Err(TestError::Abort(reason)) => unreachable!("nothing is rejected: {reason}"),
    }
}

/// Descriptions of one variant. Simplest values stand first, because shrinking goes there.
pub fn cases_of(variant: Variant) -> impl Strategy<Value = Case> {
    let families = Family::of(variant);
    let heads = (0..families.len(), 1..=3_usize, select(vec![1, 2, 3, 5, 6, 7, 8, 16]));
    let widths = (1..=24_usize, 1..=8_usize);
    let lens = prop::collection::vec((0..=8_usize, prop_oneof![0..=9_usize, 0..=140_usize]), 0..=4);
    let formats = select(vec![
        (Dtype::F32, false),
        (Dtype::F16, false),
        (Dtype::Bf16, false),
        (Dtype::F16, true),
        (Dtype::Bf16, true),
    ]);
    let paging = (prop_oneof![1..=4_usize, 1..=40_usize], any::<[bool; 3]>());
    let course = (select(masks()), select(Scenario::ALL.to_vec()), fills());
    let numbers = (1..=30_u32, any::<u64>());
    (heads, widths, lens, formats, paging, course, numbers).prop_map(
        move |(heads, widths, lens, format, paging, course, numbers)| {
            let (family, heads, group) = heads;
            let geometry = families[family].geometry(group, heads, widths.0, widths.1);
            let mut case = Case::new(geometry, 0, 0, f64::from(numbers.0) / 20.0);
            case.lens = lens.into_iter().map(|(q, kv)| Lens { q, kv }).collect();
            (case.dtype, case.f32_output) = format;
            case.page_size = paging.0;
            [case.shared, case.no_lse, case.invariant] = paging.1;
            (case.mask, case.scenario, case.fill) = course;
            case.seed = numbers.1;
            fitted(case)
        },
    )
}

fn masks() -> Vec<MaskShape> {
    let trees = [Draft::Chain, Draft::Roots, Draft::Binary, Draft::Random];
    let plain = [MaskShape::Causal, MaskShape::Full];
    plain.into_iter().chain(trees.map(MaskShape::Tree)).collect()
}

fn fills() -> impl Strategy<Value = Fill> {
    let place = prop_oneof![
        (0..=9_usize).prop_map(Place::BeforeLast),
        (0..=64_usize).prop_map(Place::At),
        Just(Place::Edges),
    ];
    prop_oneof![
        3 => Just(Fill::Gaussian),
        4 => place.clone().prop_map(Fill::Needle),
        2 => select(vec![
            Fill::Large, Fill::Cancelling, Fill::Ties, Fill::Denormal, Fill::Rising, Fill::NanQuery,
        ]),
        1 => place.clone().prop_map(Fill::Nan),
        1 => place.prop_map(Fill::Infinity),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;

    #[test]
    fn a_failure_is_shrunk_to_a_small_line() {
        let judge = |case: &Case| match Script::new(case) {
            Err(error) => Verdict::Failed(Fault::Case(Box::new(error))),
            Ok(_) if case.lens.iter().any(|lens| lens.kv >= 7) => Verdict::Failed(Fault::Vacuous),
            Ok(_) => Verdict::Passed(Default::default()),
        };
        let (case, fault) = search(Variant::Gla, 1, 200, judge).unwrap();
        assert_eq!(fault, Fault::Vacuous, "{case}");
        assert_eq!(case.lens.len(), 1, "{case}");
        assert_eq!(case.lens[0].kv, 7, "{case}");
    }

    #[test]
    fn every_description_is_a_legal_case() {
        for variant in Variant::ALL {
            let found = search(variant, 2, 150, |case| match Script::new(case) {
                Ok(_) => {
                    assert_eq!(case.geometry.variant(), variant);
                    Verdict::Skipped { reason: String::new() }
                }
                Err(error) => Verdict::Failed(Fault::Case(Box::new(error))),
            });
            assert!(found.is_none(), "{found:?}");
        }
    }
}
