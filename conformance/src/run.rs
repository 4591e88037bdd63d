//! The run: engines times cases, as trials of libtest-mimic named `engine/variant/case`.

use crate::budget::Budget;
use crate::case::Case;
use crate::contract;
use crate::expect::KnownFailures;
use crate::generate::corpus::{Named, corpus};
use crate::generate::{exhaustive, grid, random};
use crate::judge::{Fault, Verdict, judge_script};
use crate::registry::Registered;
use crate::script::{Answer, Script};
use crate::tally::{Ended, Tally};
use grouped_attention::{AnyBackend, Variant};
use libtest_mimic::{Arguments, Completion, Conclusion, Failed, Trial};
use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Runs the suite over engines: the whole `main` of a test target with `harness = false`.
///
/// `known` are known failures as [`KnownFailures`] reads them; empty for none.
pub fn main(engines: Vec<Registered>, known: &str) -> ExitCode {
    let suite = Budget::from_env().and_then(|budget| Suite::new(engines, known, budget));
    match suite {
        Ok(suite) => suite.run(&Arguments::from_args()),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Engines, cases and what is known of both.
#[derive(Debug)]
pub struct Suite {
    engines: Vec<Arc<Registered>>,
    shared: Arc<Shared>,
    corpus: Vec<Named>,
    grid: Vec<Named>,
}

/// Everything that trials share.
#[derive(Debug)]
struct Shared {
    budget: Budget,
    known: KnownFailures,
    tally: Tally,
    answers: Mutex<HashMap<String, Arc<Vec<Answer>>>>,
}

impl Suite {
    /// A suite over these engines.
    ///
    /// # Errors
    /// Known failures or a case that cannot be read; a required engine that is not registered.
    pub fn new(engines: Vec<Registered>, known: &str, budget: Budget) -> Result<Suite, String> {
        let registered = |name: &String| engines.iter().any(|engine| engine.name() == name);
        if let Some(name) = budget.required.iter().find(|name| !registered(name)) {
            return Err(format!("GROUPED_ATTENTION_REQUIRE_ENGINES: there is no engine {name}"));
        }
        let (corpus, grid) = match &budget.case {
            Some(line) => (vec![named_by_line(line)?], Vec::new()),
            None => (corpus().map_err(|error| error.to_string())?, grid::grid(&budget)),
        };
        Ok(Suite {
            engines: engines.into_iter().map(Arc::new).collect(),
            shared: Arc::new(Shared {
                known: KnownFailures::parse(known)?,
                tally: Tally::default(),
                answers: Mutex::default(),
                budget,
            }),
            corpus,
            grid,
        })
    }

    /// Runs the trials, prints the closing table and writes the tightness where it was asked for.
    pub fn run(&self, arguments: &Arguments) -> ExitCode {
        let conclusion = self.conclude(arguments);
        if arguments.list {
            return ExitCode::SUCCESS;
        }
        println!("{}", self.shared.tally.table());
        if let Some(path) = &self.shared.budget.tightness
            && let Err(error) = std::fs::write(path, self.shared.tally.tightness())
        {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
        conclusion.exit_code()
    }

    /// Runs the trials that the arguments ask for.
    pub fn conclude(&self, arguments: &Arguments) -> Conclusion {
        let mut trials: Vec<Trial> = Vec::new();
        for engine in &self.engines {
            trials.extend(self.trials(engine, arguments.list));
        }
        let names: Vec<String> = trials.iter().map(|trial| trial.name().to_owned()).collect();
        let stale: Vec<String> = match &self.shared.budget.case {
            None => self.shared.known.stale(&names).map(str::to_owned).collect(),
            Some(_) => Vec::new(),
        };
        trials.push(Trial::test("known-failures/none-is-stale", move || match stale.as_slice() {
            [] => Ok(()),
            stale => Err(format!("no trial is called {}", stale.join(", ")).into()),
        }));
        libtest_mimic::run(arguments, trials)
    }

    /// All trials of one engine, or the one that says why there are none.
    fn trials(&self, engine: &Arc<Registered>, listing: bool) -> Vec<Trial> {
        let name = engine.name().to_owned();
        let backend = match engine.build() {
            Ok(backend) => backend,
            Err(error) => {
                let unavailable =
                    matches!(error, grouped_attention::EngineError::Unavailable { .. });
                let required = self.shared.budget.required.contains(&name);
                let ended = match unavailable && !required {
                    true => Ended::Skipped,
                    false => Ended::Failed,
                };
                // nextest leaves out what the list says is ignored. Elsewhere the trial is run, for
                // its reason to be seen.
                let left_out = listing && ended == Ended::Skipped;
                let shared = Arc::clone(&self.shared);
                let trial = Trial::ignorable_test(format!("{name}/available"), move || {
                    shared.tally.trial(&name, ended);
                    match ended {
                        Ended::Skipped => Ok(Completion::ignored_with(&error)),
                        _ => Err(Failed::from(error.to_string())),
                    }
                });
                return vec![trial.with_ignored_flag(left_out)];
            }
        };
        let under_test = UnderTest {
            name,
            backend,
            sparse: engine.is_sparse(),
            shared: Arc::clone(&self.shared),
        };
        let under_test = Arc::new(under_test);
        let mut trials = Vec::new();
        for named in self.corpus.iter().chain(&self.grid) {
            trials.push(under_test.case_trial(named));
        }
        if self.shared.budget.case.is_none() {
            trials.extend(under_test.contract_trials());
            trials.extend(under_test.exhaustive_trials());
            trials.extend(Variant::ALL.map(|variant| under_test.random_trial(variant)));
        }
        trials
    }
}

fn named_by_line(line: &str) -> Result<Named, String> {
    let case: Case = line.parse().map_err(|error| format!("GROUPED_ATTENTION_CASE: {error}"))?;
    Ok(Named { name: "line".to_owned(), why: "asked for".to_owned(), case })
}

/// An engine that exists.
struct UnderTest {
    name: String,
    backend: Arc<AnyBackend>,
    sparse: bool,
    shared: Arc<Shared>,
}

/// How a trial's runner ends: passed, skipped with a reason, or failed with one.
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

impl UnderTest {
    /// A trial that counts itself and knows known failures.
    fn trial(
        self: &Arc<Self>,
        name: String,
        outcome: impl FnOnce(&UnderTest) -> Outcome + Send + 'static,
    ) -> Trial {
        let this = Arc::clone(self);
        let full = format!("{}/{name}", self.name);
        let trial = full.clone();
        Trial::ignorable_test(full, move || {
            let known = this.shared.known.reason(&trial).map(str::to_owned);
            let (ended, result) = match (outcome(&this), known) {
                (Outcome::Passed, None) => (Ended::Passed, Ok(Completion::Completed)),
                (Outcome::Skipped(reason), None) => {
                    (Ended::Skipped, Ok(Completion::ignored_with(reason)))
                }
                (Outcome::Failed(reason), None) => (Ended::Failed, Err(Failed::from(reason))),
                (Outcome::Failed(_), Some(reason)) => {
                    let reason = format!("known failure: {reason}");
                    (Ended::Known, Ok(Completion::ignored_with(reason)))
                }
                (_, Some(_)) => {
                    let message = "a known failure does not fail any more: remove its entry";
                    (Ended::Failed, Err(Failed::from(message)))
                }
            };
            this.shared.tally.trial(&this.name, ended);
            result
        })
    }

    fn case_trial(self: &Arc<Self>, named: &Named) -> Trial {
        let Named { name, why, case } = named.clone();
        self.trial(format!("{}/{name}", case.geometry.variant()), move |this| {
            match this.judge_cached(&case) {
                Verdict::Passed(comparison) => {
                    this.shared.tally.passed(&this.name, &case, &comparison);
                    Outcome::Passed
                }
                Verdict::Skipped { reason } => Outcome::Skipped(reason),
                Verdict::Failed(fault) => Outcome::Failed(report(&case, &why, &fault)),
            }
        })
    }

    /// Judges by a case whose answers other engines need too.
    fn judge_cached(&self, case: &Case) -> Verdict {
        if case.far && !self.sparse {
            let reason = "its caches take memory where they are not written".to_owned();
            return Verdict::Skipped { reason };
        }
        let script = match Script::new(case) {
            Ok(script) => script,
            Err(error) => return Verdict::Failed(Fault::Case(Box::new(error))),
        };
        let line = case.to_string();
        let lock = || self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&line).cloned();
        let answers = known.unwrap_or_else(|| {
            let answers = Arc::new(script.answers());
            lock().insert(line, Arc::clone(&answers));
            answers
        });
        judge_script(&self.backend, &script, &answers)
    }

    fn exhaustive_trials(self: &Arc<Self>) -> Vec<Trial> {
        let buckets = exhaustive::buckets(self.shared.budget.extensive);
        let trial = |bucket: exhaustive::Bucket| {
            let name = format!("{}/exhaustive-{}", bucket.variant(), bucket.name());
            self.trial(name, move |this| this.judge_all(bucket.cases()))
        };
        buckets.into_iter().map(trial).collect()
    }

    /// Judges by many small cases and reports the first that fails, which is the smallest.
    fn judge_all(&self, cases: impl Iterator<Item = Case>) -> Outcome {
        for case in cases {
            match crate::judge::judge(&self.backend, &case) {
                Verdict::Passed(comparison) => {
                    self.shared.tally.passed(&self.name, &case, &comparison);
                }
                Verdict::Skipped { reason } => return Outcome::Skipped(reason),
                Verdict::Failed(fault) => {
                    return Outcome::Failed(report(&case, "one of every small case", &fault));
                }
            }
        }
        Outcome::Passed
    }

    fn random_trial(self: &Arc<Self>, variant: Variant) -> Trial {
        self.trial(format!("{variant}/random"), move |this| {
            let budget = &this.shared.budget;
            let found = random::search(variant, budget.seed, budget.random_cases, |case| {
                let verdict = crate::judge::judge(&this.backend, case);
                if let Verdict::Passed(comparison) = &verdict {
                    this.shared.tally.passed(&this.name, case, comparison);
                }
                verdict
            });
            match found {
                None => Outcome::Passed,
                Some((case, fault)) => {
                    let why = format!("random, seed {}, shrunk", budget.seed);
                    Outcome::Failed(report(&case, &why, &fault))
                }
            }
        })
    }

    fn contract_trials(self: &Arc<Self>) -> Vec<Trial> {
        let trial = |clause: &contract::Clause| {
            let check = clause.check;
            self.trial(format!("contract/{}", clause.name), move |this| {
                match check(&this.backend) {
                    Ok(()) => Outcome::Passed,
                    Err(message) => Outcome::Failed(message),
                }
            })
        };
        contract::CLAUSES.iter().map(trial).collect()
    }
}

/// What a failed trial prints: what is wrong, why the case is there, how to run it again.
fn report(case: &Case, why: &str, fault: &Fault) -> String {
    format!("{fault}\n  case: {case}\n  why: {why}\n  again: GROUPED_ATTENTION_CASE='{case}'")
}
