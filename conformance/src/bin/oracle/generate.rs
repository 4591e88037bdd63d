//! `oracle gen` and `oracle list`: inputs for kernels.

use crate::exit::{Failure, print};
use crate::files;
use clap::Args;
use grouped_attention_conformance::file::{CaseFile, Writer};
use grouped_attention_conformance::generate::corpus::{self, Named};
use grouped_attention_conformance::{Case, Inputs, InvalidCase, Lens, Script};
use std::path::PathBuf;
use std::process::ExitCode;

/// Writes a case of the corpus, or one from its line, as a file.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// A name that `oracle list` prints, or a line such as "gqa h_q=8 h=2 d_k=64 d_v=64 q=1,3
    /// kv=100,7 scale=0.125 dtype=bf16 seed=1".
    #[arg(required = true, value_name = "NAME|LINE")]
    words: Vec<String>,
    /// Where the case goes.
    #[arg(short, long, value_name = "CASE")]
    output: PathBuf,
}

/// Prints the cases of the corpus: name, line, and what goes wrong without it.
#[derive(Debug, Args)]
pub(crate) struct List {}

/// Why there is no such case.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoCase {
    #[error(transparent)]
    Corpus(#[from] corpus::InvalidCorpus),
    #[error("{line:?}: {source}")]
    Line { line: String, source: InvalidCase },
    #[error(
        "{line:?}: its cache reaches past 2^31 elements, so a file of it would have {gigabytes} GB: \
         judge an engine by it in memory, through the suite"
    )]
    Far { line: String, gigabytes: usize },
    #[error(
        "{line:?}: its cache has {elements} elements, and files of at most {MOST_ELEMENTS} are made: \
         judge an engine by it in memory, through the suite"
    )]
    Large { line: String, elements: usize },
}

/// Elements of a cache that is written to a file: 2 GB while it is made, in f64.
const MOST_ELEMENTS: usize = 1 << 28;

/// Elements of the cache of a case, its sequences' last pages and a spare one included.
fn elements(case: &Case) -> usize {
    let room = |lens: &Lens| lens.kv.saturating_add(lens.q).saturating_add(case.page_size);
    let pages = case.lens.iter().map(|lens| room(lens).div_ceil(case.page_size.max(1)));
    let pages = pages.fold(0_usize, usize::saturating_add);
    let row = case.geometry.row().elements();
    pages.saturating_mul(case.page_size).saturating_mul(row)
}

impl Generate {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        // A line may come as one word or as many, as the shell was told.
        let text = self.words.join(" ");
        let case = if text.contains(char::is_whitespace) {
            let source = |source| NoCase::Line { line: text.clone(), source };
            text.parse::<Case>().map_err(source)?
        } else {
            corpus::find(&text).map_err(NoCase::from)?.case
        };
        let line = case.to_string();
        let illegal = |source| NoCase::Line { line: line.clone(), source };
        let elements = elements(&case);
        if elements > MOST_ELEMENTS {
            return Err(NoCase::Large { line, elements }.into());
        }
        let script = Script::new(&case).map_err(illegal)?;
        if case.far {
            let gigabytes = script.layout.bytes().div_ceil(1_000_000_000);
            return Err(NoCase::Far { line, gigabytes }.into());
        }
        let inputs = Inputs::new(&script).map_err(illegal)?;
        let Inputs { problem, cache, step, q } = inputs;
        let file = CaseFile::new(&problem, step, q, &cache).map_err(Failure::run(&self.output))?;
        let mut writer = Writer::new();
        file.write_to(&mut writer);
        writer.metadata("case", &line);
        files::save(&writer, &self.output)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        for Named { name, why, case } in corpus::corpus().map_err(NoCase::from)? {
            print(format_args!("{name}\n    {case}\n    {why}\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
