//! `oracle attend`: what attention over a case is.

use crate::engine::Engine;
use crate::exit::Failure;
use crate::files;
use clap::{Args, ValueEnum};
use grouped_attention_conformance::file::{CaseFile, Format, ResultFile, Writer};
use std::path::PathBuf;
use std::process::ExitCode;

/// Computes o and lse of a case.
#[derive(Debug, Args)]
pub(crate) struct Attend {
    /// The case, a safetensors file.
    case: PathBuf,
    /// Where o and lse go; the reference writes them in f64, and the envelope.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Who computes.
    #[arg(long, value_enum, default_value_t = Engine::Reference)]
    backend: Engine,
    /// Rounds q and the cache first; by default they are taken as they are in the file.
    #[arg(long, value_enum)]
    dtype: Option<Rounding>,
}

/// Formats that a case can be rounded to.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Rounding {
    Bf16,
    F16,
    F32,
}

impl From<Rounding> for Format {
    fn from(rounding: Rounding) -> Format {
        match rounding {
            Rounding::Bf16 => Format::Bf16,
            Rounding::F16 => Format::F16,
            Rounding::F32 => Format::F32,
        }
    }
}

/// Reads a case, and rounds it if that is wanted.
pub(crate) fn read_case(
    path: &std::path::Path,
    dtype: Option<Rounding>,
) -> Result<CaseFile, Failure> {
    let mut case = CaseFile::parse(&files::read(path)?).map_err(Failure::file(path))?;
    files::note_ignored(path, case.ignored());
    if let Some(dtype) = dtype {
        case.round(dtype.into());
    }
    Ok(case)
}

impl Attend {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let case = read_case(&self.case, self.dtype)?;
        let (result, engine) = match self.backend.start()? {
            None => {
                let attended = case.attend().map_err(Failure::run(&self.case))?;
                (ResultFile::exact(&case, attended), "the definition, in f64".to_owned())
            }
            Some(backend) => {
                let result = case.run(&backend).map_err(Failure::run(&self.case))?;
                (result, grouped_attention::Backend::identity(&backend).to_string())
            }
        };
        let mut writer = Writer::new();
        result.write_to(&mut writer);
        writer.metadata("engine", &engine);
        files::save(&writer, &self.output)?;
        Ok(ExitCode::SUCCESS)
    }
}
