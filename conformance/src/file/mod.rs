//! Safetensors files: cases, results and layers, for authors whose kernels are not in Rust.
//!
//! | file | read | written |
//! |---|---|---|
//! | a case: queries, cache, page tables, mask | [`CaseFile::parse`] | [`CaseFile::write_to`] |
//! | a result: `o`, `lse`, `envelope` | [`ResultFile::parse`] | [`ResultFile::write_to`] |
//! | a layer: weights, configuration, hidden states | [`LayerFile::parse`] | – |
//! | what a layer computed | – | [`LayerResult::write_to`] |
//!
//! Files are not trusted. Every size is checked against the header before anything is computed from
//! it, no tensor is read at an index that was not checked, and what is allocated is bounded by a
//! multiple of the file ([`Budget`]). An error is one sentence that names the tensor or the
//! metadata key and what is wrong with it.

mod budget;
mod case;
mod engine;
mod error;
mod format;
mod layer;
mod result;
mod table;
mod tensors;
mod writer;

pub use budget::Budget;
pub use case::CaseFile;
pub use error::{FileError, RunError};
pub use format::Format;
pub use layer::{Form, LayerFile, LayerResult};
pub use result::ResultFile;
pub use tensors::{Floats, TensorFile};
pub use writer::Writer;
