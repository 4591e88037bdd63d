//! What a serving engine relies on and the conformance suite cannot ask of every engine: replayed
//! graphs, foreign memory and streams, several devices, the status word, offsets past 2^31,
//! repeatable bits, widths that no model has, and small/ for tools that slow every launch down.
//!
//! Without a device the trials are ignored, each with the reason;
//! `GROUPED_ATTENTION_REQUIRE_ENGINES=cuda` makes that a failure.

mod devices;
mod driver;
mod foreign;
mod infinite;
mod layer;
mod repeat;
mod replay;
mod small;
mod status;
mod widths;

use grouped_attention_cuda::{CudaBackend, Kernels};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::process::ExitCode;

/// How a trial is told of what went wrong.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A trial of one engine.
type Run = fn(&CudaBackend) -> Outcome;

/// A trial of the same engine on two devices.
type RunTwo = fn(&CudaBackend, &CudaBackend) -> Outcome;

const TRIALS: [(&str, Run); 16] = [
    ("small/every-kernel-once", small::every_kernel),
    ("repeat/three-runs-have-the-same-bits", repeat::three_runs),
    ("repeat/rows-past-2^31-elements", repeat::far_rows),
    ("repeat/long-rows-among-others", repeat::among_long_ones),
    ("repeat/streams-and-threads", repeat::threads),
    ("repeat/cache-without-pages", repeat::no_pages),
    ("foreign/combined-tensor-and-strides", foreign::combined),
    ("foreign/misaligned-is-refused-or-right", foreign::misaligned),
    ("devices/strangers-of-one-device-are-refused", devices::second_engine),
    ("replay/graph-computes-the-latest-step", replay::graph),
    ("replay/device-schedules-as-the-host-does", replay::device_schedule),
    ("status/bad-page-is-nan-and-reported", status::bad_page),
    ("status/bad-write-is-reported", status::bad_write),
    ("status/length-past-the-plan-is-reported", status::long_sequence),
    ("infinite/scores-of-minus-infinity-are-no-empty-rows", infinite::scores),
    ("widths/wide-rows-agree-with-the-reference", widths::wide),
];

const TRIALS_OF_TWO: [(&str, RunTwo); 2] = [
    ("devices/both-compute", devices::both_compute),
    ("devices/strangers-are-refused", devices::strangers_are_refused),
];

const ENGINES: [(&str, Kernels); 3] = [
    ("cuda", Kernels::Hopper),
    ("cuda-portable", Kernels::Portable),
    ("cuda-naive", Kernels::Naive),
];

fn trial(engine: &'static str, kernels: Kernels, name: &str, run: Run) -> Trial {
    Trial::ignorable_test(format!("{engine}/{name}"), move || {
        let backend = match CudaBackend::with_kernels(0, kernels) {
            Ok(backend) => backend,
            Err(error) if required(engine) => return Err(Failed::from(error.to_string())),
            Err(error) => return Ok(Completion::ignored_with(error)),
        };
        run(&backend).map_err(|error| Failed::from(error.to_string()))?;
        Ok(Completion::Completed)
    })
}

/// Ignored where there is one device; that there is none is for the others to fail on.
fn trial_of_two(engine: &'static str, kernels: Kernels, name: &str, run: RunTwo) -> Trial {
    Trial::ignorable_test(format!("{engine}/{name}"), move || {
        let open = |ordinal| CudaBackend::with_kernels(ordinal, kernels);
        match (open(0), open(1)) {
            (Ok(first), Ok(second)) => {
                run(&first, &second).map_err(|error| Failed::from(error.to_string()))?;
                Ok(Completion::Completed)
            }
            (Err(error), _) | (_, Err(error)) => Ok(Completion::ignored_with(error)),
        }
    })
}

fn required(engine: &str) -> bool {
    let names = std::env::var("GROUPED_ATTENTION_REQUIRE_ENGINES").unwrap_or_default();
    names.split(',').any(|name| name.trim() == engine)
}

fn main() -> ExitCode {
    let trials = ENGINES.into_iter().flat_map(|(engine, kernels)| {
        let one = TRIALS.map(|(name, run)| trial(engine, kernels, name, run));
        let two = TRIALS_OF_TWO.map(|(name, run)| trial_of_two(engine, kernels, name, run));
        one.into_iter().chain(two)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A condition that a trial depends on.
fn expect(condition: bool, what: impl std::fmt::Display) -> Outcome {
    if condition { Ok(()) } else { Err(what.to_string().into()) }
}
