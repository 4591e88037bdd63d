//! Reading tensors by name, with every shape checked before a value is.

use super::budget::Budget;
use super::error::FileError;
use super::format::Format;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::{BTreeSet, HashMap};

/// A safetensors file in memory, and which of its tensors have been asked for.
#[derive(Debug)]
pub struct TensorFile<'a> {
    tensors: SafeTensors<'a>,
    metadata: HashMap<String, String>,
    budget: Budget,
    asked: BTreeSet<&'static str>,
}

/// A tensor of real numbers, widened to f64 and remembered in the format it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Floats {
    /// Format in the file.
    pub format: Format,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f64>,
}

impl Floats {
    /// Rounds every element to a format, to nearest even.
    pub fn round(&mut self, format: Format) {
        if let Some(dtype) = format.dtype() {
            self.values.iter_mut().for_each(|x| *x = dtype.round(*x));
        }
        self.format = format;
    }
}

/// What tensors of real numbers may be stored in.
const FLOATS: &str = "F64, F32, F16 or BF16";
/// What tensors of indices and lengths may be stored in.
const INTEGERS: &str = "I32 or I64";

impl<'a> TensorFile<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// Bytes that are no safetensors file.
    pub fn parse(bytes: &'a [u8]) -> Result<TensorFile<'a>, FileError> {
        let container = |error: safetensors::SafeTensorError| FileError::Container {
            reason: error.to_string(),
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(container)?;
        Ok(TensorFile {
            tensors: SafeTensors::deserialize(bytes).map_err(container)?,
            metadata: header.metadata().clone().unwrap_or_default(),
            budget: Budget::of_file(bytes.len()),
            asked: BTreeSet::new(),
        })
    }

    /// What the file may ask for.
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// The tensors as they are.
    pub fn tensors(&self) -> &SafeTensors<'a> {
        &self.tensors
    }

    /// The shape of a tensor, if the file has it.
    pub fn shape(&mut self, name: &'static str) -> Option<Vec<usize>> {
        Some(self.view(name)?.shape().to_vec())
    }

    /// The shape of a tensor of rank N.
    ///
    /// # Errors
    /// No such tensor, or one of another rank.
    pub fn shape_of_rank<const N: usize>(
        &mut self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<[usize; N], FileError> {
        let Some(got) = self.shape(name) else {
            return Err(FileError::Missing { tensor: name.to_owned(), expected });
        };
        got.as_slice().try_into().map_err(|_| FileError::Shape {
            tensor: name.to_owned(),
            expected: expected.to_owned(),
            got: got.clone(),
        })
    }

    /// The numbers of a tensor whose shape has been checked.
    ///
    /// # Errors
    /// No such tensor, or one that does not hold real numbers.
    pub fn floats(&mut self, name: &'static str) -> Result<Floats, FileError> {
        let view = self.existing(name, FLOATS)?;
        let Some(format) = Format::of(view.dtype()) else {
            return Err(wrong_format(name, &view, FLOATS));
        };
        let values = format.decode(view.data());
        Ok(Floats { format, shape: view.shape().to_vec(), values })
    }

    /// The numbers of a tensor of indices or lengths whose shape has been checked.
    ///
    /// # Errors
    /// No such tensor, or one that does not hold integers.
    pub fn integers(&mut self, name: &'static str) -> Result<Vec<i64>, FileError> {
        let view = self.existing(name, INTEGERS)?;
        match view.dtype() {
            safetensors::Dtype::I32 => {
                let elements = view.data().as_chunks().0.iter();
                Ok(elements.map(|&bytes| i64::from(i32::from_le_bytes(bytes))).collect())
            }
            safetensors::Dtype::I64 => {
                let elements = view.data().as_chunks().0.iter();
                Ok(elements.map(|&bytes| i64::from_le_bytes(bytes)).collect())
            }
            _ => Err(wrong_format(name, &view, INTEGERS)),
        }
    }

    /// The value of a metadata key.
    ///
    /// # Errors
    /// No such key.
    pub fn metadata(&self, key: &'static str, expected: &'static str) -> Result<&str, FileError> {
        let value = self.metadata.get(key).map(String::as_str);
        value.ok_or(FileError::MissingKey { key, expected })
    }

    /// Names of tensors that nobody has asked for, in order.
    pub fn unasked(&self) -> Vec<String> {
        let names = self.tensors.names().into_iter().filter(|name| !self.asked.contains(name));
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        names
    }

    fn view(&mut self, name: &'static str) -> Option<TensorView<'a>> {
        self.asked.insert(name);
        self.tensors.tensor(name).ok()
    }

    fn existing(
        &mut self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<TensorView<'a>, FileError> {
        let missing = || FileError::Missing { tensor: name.to_owned(), expected };
        self.view(name).ok_or_else(missing)
    }
}

fn wrong_format(name: &str, view: &TensorView<'_>, expected: &'static str) -> FileError {
    FileError::Format { tensor: name.to_owned(), expected, format: view.dtype().to_string() }
}
