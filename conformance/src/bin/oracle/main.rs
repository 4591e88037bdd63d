//! The reference as a judge, for authors whose kernels are not in Rust: safetensors in and out.
//!
//! Exit status: 0 done, 1 a result is out of bound, 2 a bad file or command line, 3 an engine that
//! is not available, does not support the case, or fails. Errors are one sentence on stderr.

mod arithmetic;
mod attend;
mod compare;
mod engine;
mod exit;
mod files;
mod generate;
mod layer;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Attention over paged caches, by definition: computes it, and judges who else did.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Attend(attend::Attend),
    Compare(Box<compare::Compare>),
    Layer(layer::LayerCommand),
    Gen(generate::Generate),
    List(generate::List),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Attend(command) => command.run(),
        Command::Compare(command) => command.run(),
        Command::Layer(command) => command.run(),
        Command::Gen(command) => command.run(),
        Command::List(command) => command.run(),
    };
    outcome.unwrap_or_else(|failure| failure.report())
}
