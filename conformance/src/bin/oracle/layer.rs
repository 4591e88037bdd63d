//! `oracle layer`: what a layer makes of hidden states.

use crate::exit::Failure;
use crate::files;
use clap::Args;
use grouped_attention_conformance::file::{Form, LayerFile, Writer};
use std::path::PathBuf;
use std::process::ExitCode;

/// Computes a causal attention layer in f64, and the rows that it caches.
#[derive(Debug, Args)]
#[command(name = "layer")]
pub(crate) struct LayerCommand {
    /// Weights, hidden states, and the configuration as metadata: a safetensors file.
    weights: PathBuf,
    /// Where the output and the cache rows go.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Computes as decoding does, absorbed queries over cache rows, instead of as in training.
    #[arg(long)]
    absorbed: bool,
    /// What the names of the layer's tensors begin with, where the file has several layers.
    #[arg(long)]
    prefix: Option<String>,
}

impl LayerCommand {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let path = &self.weights;
        let file = LayerFile::parse(&files::read(path)?, self.prefix.as_deref())
            .map_err(Failure::file(path))?;
        files::note_ignored(path, file.ignored());
        let form = if self.absorbed { Form::Absorbed } else { Form::Trained };
        let result = file.run(form).map_err(Failure::run(path))?;
        let mut writer = Writer::new();
        result.write_to(&mut writer);
        files::save(&writer, &self.output)?;
        Ok(ExitCode::SUCCESS)
    }
}
