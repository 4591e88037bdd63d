//! How the program ends.

use crate::generate::NoCase;
use grouped_attention::{EngineError, Error};
use grouped_attention_conformance::file::{FileError, RunError};
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A result that is out of bound.
pub(crate) const OUT_OF_BOUND: u8 = 1;
/// A bad file or command line; clap's own status too.
const BAD_INPUT: u8 = 2;
/// An engine that cannot.
const ENGINE: u8 = 3;

/// Writes to standard output. A reader that has gone away has what it wanted, and the status stays that
/// of the verdict.
pub(crate) fn print(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_fmt(text).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

/// Why a command could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: FileError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Run { path: PathBuf, source: RunError },
    #[error("standard output: {0}")]
    Output(io::Error),
    #[error("nothing could be judged: the stated arithmetic implies no bound for any row")]
    NothingJudged,
    #[error(transparent)]
    Case(Box<NoCase>),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<NoCase> for Failure {
    fn from(error: NoCase) -> Failure {
        Failure::Case(Box::new(error))
    }
}

impl Failure {
    pub(crate) fn file(path: &Path) -> impl FnOnce(FileError) -> Failure {
        move |source| Failure::File { path: path.to_owned(), source }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Failure {
        move |source| Failure::Io { path: path.to_owned(), source }
    }

    pub(crate) fn run(path: &Path) -> impl FnOnce(RunError) -> Failure {
        move |source| Failure::Run { path: path.to_owned(), source }
    }

    /// Says it and ends.
    pub(crate) fn report(self) -> ExitCode {
        eprintln!("error: {self}");
        let engine = match &self {
            Failure::Engine(_) => true,
            Failure::Run { source: RunError::Engine(error), .. } => {
                matches!(**error, Error::Engine(_))
            }
            _ => false,
        };
        ExitCode::from(if engine { ENGINE } else { BAD_INPUT })
    }
}
