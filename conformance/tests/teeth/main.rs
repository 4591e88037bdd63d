//! The suite is tested: right engines pass it, and engines that are wrong in one way do not.
//!
//! A suite whose bounds were slackened, or whose inputs lost their needles, would still pass every
//! engine. It fails here.

mod defects;
mod flash;

use defects::{bf16_probabilities, defects};
use flash::{Bend, Flash, RIGHT};
use grouped_attention::AnyBackend;
use grouped_attention_conformance::budget::Budget;
use grouped_attention_conformance::generate::corpus::{Named, corpus};
use grouped_attention_conformance::generate::{exhaustive, grid};
use grouped_attention_conformance::judge::judge_script;
use grouped_attention_conformance::{Answer, Comparison, Fault, Script, Verdict, judge};
use std::sync::LazyLock;

/// Named cases of the default run, with their answers.
static CASES: LazyLock<Vec<(Named, Script, Vec<Answer>)>> = LazyLock::new(|| {
    let corpus = corpus().expect("the corpus is legal");
    let named = corpus.into_iter().chain(grid::grid(&Budget::default()));
    named
        .map(|named| {
            let script = Script::new(&named.case).expect("cases of the suite are legal");
            let answers = script.answers();
            (named, script, answers)
        })
        .collect()
});

fn engine(bend: Bend) -> AnyBackend {
    Box::new(Flash(bend))
}

/// Every case of the default run that is not random, until one rejects the engine.
fn rejected_by(engine: &AnyBackend) -> Option<String> {
    for (named, script, answers) in CASES.iter() {
        let verdict = judge_script(engine, script, answers);
        if let Verdict::Failed(fault) = verdict {
            assert!(!matches!(fault, Fault::Case(_)), "{fault}");
            return Some(named.name.clone());
        }
    }
    let mut small = exhaustive::buckets(false).into_iter().flat_map(|bucket| bucket.cases());
    small.find(|case| judge(engine, case).failed()).map(|case| case.to_string())
}

#[test]
fn every_broken_engine_is_rejected() {
    let hook = std::panic::take_hook();
    // Some of them panic, which is one way of being wrong and not worth a backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let mut table = Vec::new();
    let mut passed = Vec::new();
    for (name, bend) in defects() {
        match rejected_by(&engine(bend)) {
            Some(case) => table.push(format!("{name:<52} {case}")),
            None => passed.push(name),
        }
    }
    std::panic::set_hook(hook);
    println!("{}", table.join("\n"));
    assert!(passed.is_empty(), "these broken engines pass: {passed:#?}");
    assert!(table.len() >= 30);
}

/// How close a right engine comes to its bounds.
fn tightness(bend: Bend) -> Comparison {
    let engine = engine(bend);
    let mut all = Comparison::default();
    for (named, script, answers) in CASES.iter() {
        match judge_script(&engine, script, answers) {
            Verdict::Passed(comparison) => all.absorb(&comparison),
            other => panic!("{}: {other:?}\n{}", named.name, named.case),
        }
    }
    all
}

#[test]
fn right_engines_pass_and_come_near_their_bounds() {
    let bf16 = |p: f32| half::bf16::from_f32(p).to_f32();
    let engines = [
        ("f32", RIGHT),
        ("f32, splits of one tile", Bend { split: |_| 64, ..RIGHT }),
        ("bf16 probabilities", Bend { rounded: bf16, declared: bf16_probabilities, ..RIGHT }),
    ];
    for (name, bend) in engines {
        let all = tightness(bend);
        let [element, lse, residual] = all.ratios();
        println!("{name}: element {element:.3}, lse {lse:.3}, residual {residual:.3}");
        // Output rounding alone comes within a tenth of the bound where nothing else matters.
        assert!(element > 0.5 && lse > 0.2, "{name}: a bound that nothing comes near");
    }
}
