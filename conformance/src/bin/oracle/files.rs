//! Whole files in and out.

use crate::exit::Failure;
use grouped_attention_conformance::file::Writer;
use std::fs;
use std::path::Path;

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(Failure::io(path))
}

pub(crate) fn save(writer: &Writer, path: &Path) -> Result<(), Failure> {
    writer.save(path).map_err(Failure::io(path))
}

/// Says which tensors of a file were not read: a misspelt name must not pass in silence.
pub(crate) fn note_ignored(path: &Path, names: &[String]) {
    for name in names {
        eprintln!("note: {}: tensor {name} is ignored", path.display());
    }
}
