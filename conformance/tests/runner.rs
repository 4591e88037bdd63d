//! What the runner makes of engines that are absent, required, wrong, or wrong as expected.

use grouped_attention::{EngineError, Reference};
use grouped_attention_conformance::budget::Budget;
use grouped_attention_conformance::run::Suite;
use grouped_attention_conformance::{Registered, engine};
use libtest_mimic::{Arguments, Conclusion};

const CASE: &str = "mqa h_q=2 h=1 d_k=4 d_v=4 page=2 q=1 kv=5 scale=0.4";

fn absent() -> Registered {
    engine::<Reference>("absent", || {
        Err(EngineError::Unavailable { engine: "absent", reason: "no such device".into() })
    })
}

fn present() -> Registered {
    engine("present", || Ok(Reference::new()))
}

fn conclude(engines: Vec<Registered>, known: &str, budget: Budget, filter: &str) -> Conclusion {
    let suite = Suite::new(engines, known, budget).expect("a suite");
    let filter = Some(filter.to_owned()).filter(|filter| !filter.is_empty());
    suite.conclude(&Arguments { filter, quiet: true, ..Arguments::default() })
}

fn one_case() -> Budget {
    Budget { case: Some(CASE.into()), ..Budget::default() }
}

#[test]
fn a_case_runs_from_its_line_on_every_engine() {
    let done = conclude(vec![present(), absent()], "", one_case(), "");
    // The case, the stale check, and the trial that says why the other engine has none.
    assert_eq!((done.num_passed, done.num_ignored, done.num_failed), (2, 1, 0));
}

/// What cargo-nextest asks for before it runs anything: nothing runs, and nothing is counted.
#[test]
fn a_list_runs_nothing() {
    let suite = Suite::new(vec![present(), absent()], "", one_case()).expect("a suite");
    let list = Arguments { list: true, quiet: true, ..Arguments::default() };
    let done = suite.conclude(&list);
    assert_eq!((done.num_passed, done.num_ignored, done.num_failed), (0, 0, 0));
}

#[test]
fn an_absent_engine_fails_where_it_is_required() {
    let budget = Budget { required: vec!["absent".into()], ..one_case() };
    let done = conclude(vec![present(), absent()], "", budget, "absent/");
    assert_eq!((done.num_ignored, done.num_failed), (0, 1));
}

#[test]
fn a_required_engine_must_be_registered() {
    let budget = Budget { required: vec!["typo".into()], ..one_case() };
    assert!(Suite::new(vec![present()], "", budget).unwrap_err().contains("typo"));
}

#[test]
fn any_other_error_of_a_constructor_fails() {
    let broken = engine::<Reference>("broken", || Err(EngineError::OutOfMemory { bytes: 1 }));
    let done = conclude(vec![broken], "", one_case(), "broken/");
    assert_eq!((done.num_ignored, done.num_failed), (0, 1));
}

#[test]
fn a_known_failure_that_passes_fails() {
    let known = "[[failure]]\ntrial = 'present/mqa/line'\nreason = 'it did once'";
    let done = conclude(vec![present()], known, one_case(), "present/");
    assert_eq!((done.num_passed, done.num_failed), (0, 1));
}

#[test]
fn a_known_failure_that_fails_is_ignored_with_its_reason() {
    // Appending more queries than there are tokens is no case, and fails on every engine.
    let budget = Budget {
        case: Some(format!("{CASE} q=9 do=append").replacen("q=1 ", "", 1)),
        ..Budget::default()
    };
    let failing = conclude(vec![present()], "", budget.clone(), "present/");
    assert_eq!((failing.num_ignored, failing.num_failed), (0, 1));
    let known = "[[failure]]\ntrial = 'present/mqa/line'\nreason = 'no such case'";
    let done = conclude(vec![present()], known, budget, "present/");
    assert_eq!((done.num_ignored, done.num_failed), (1, 0));
}

#[test]
fn a_known_failure_of_no_trial_is_stale() {
    let known = "[[failure]]\ntrial = 'present/mqa/gone'\nreason = 'it did once'";
    let done = conclude(vec![present()], known, Budget::default(), "known-failures/");
    assert_eq!((done.num_passed, done.num_failed), (0, 1));
}

#[test]
fn trials_filter_by_name() {
    let filter = "present/mqa/page-larger";
    let done = conclude(vec![present()], "", Budget::default(), filter);
    assert_eq!((done.num_passed, done.num_failed), (1, 0));
}

#[test]
fn a_line_that_is_no_case_is_named() {
    let budget = Budget { case: Some("mqa h_q=2".into()), ..Budget::default() };
    assert!(Suite::new(vec![present()], "", budget).unwrap_err().contains("is missing"));
}
