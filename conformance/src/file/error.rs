//! What is wrong with a file, in one sentence that names the tensor.

use grouped_attention::layers::LayerError;
use grouped_attention::{Error, InvalidGeometry, InvalidLayout, InvalidProblem, InvalidStep};

/// Why a file is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// Not safetensors at all, or one whose header contradicts its size.
    #[error("not a safetensors file: {reason}")]
    Container {
        /// What the parser said.
        reason: String,
    },
    /// A tensor that there is no doing without.
    #[error("tensor {tensor} is missing: expected {expected}")]
    Missing {
        /// Its name.
        tensor: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// A tensor of a format that is not read here.
    #[error("tensor {tensor} is {format}: expected {expected}")]
    Format {
        /// Its name.
        tensor: String,
        /// The formats that are read.
        expected: &'static str,
        /// Its format, by the name safetensors gives it.
        format: String,
    },
    /// A tensor of another rank or extent.
    #[error("tensor {tensor} has shape {got:?}: expected {expected}")]
    Shape {
        /// Its name.
        tensor: String,
        /// The shape it has to have, and why.
        expected: String,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// An element that an index or a length cannot be.
    #[error("{tensor}{index:?} is {value}: expected {expected}")]
    Element {
        /// Name of the tensor.
        tensor: &'static str,
        /// Where the element stands.
        index: Vec<usize>,
        /// The element.
        value: i64,
        /// What it has to be, and why.
        expected: String,
    },
    /// Two tensors that do not go together.
    #[error("the file has both {0} and {1}: a cache is {2}")]
    Both(&'static str, &'static str, &'static str),
    /// A metadata key that there is no doing without.
    #[error("metadata {key} is missing: expected {expected}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// What its value has to be.
        expected: &'static str,
    },
    /// A metadata value that its key does not take.
    #[error("metadata {key} is {value:?}: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What its value has to be.
        expected: &'static str,
        /// The value.
        value: String,
    },
    /// Small tensors whose product is not small.
    #[error(
        "{what} would take {} bytes, and a file of this size may ask for {limit}",
        product(.extents)
    )]
    TooLarge {
        /// What would be allocated.
        what: &'static str,
        /// Factors of its size in bytes.
        extents: Vec<usize>,
        /// The most bytes allowed.
        limit: usize,
    },
    /// Several layers, and no word on which is meant.
    #[error("the file has the layers {first:?} and {second:?}: give the prefix of one")]
    SeveralLayers {
        /// Prefix of one.
        first: String,
        /// Prefix of another.
        second: String,
    },
    /// The numbers of a tensor are refused where they come together.
    #[error("tensor {tensor}: {source}")]
    Refused {
        /// The tensor at fault, or the one that shows it.
        tensor: &'static str,
        /// What refuses them.
        source: Box<Error>,
    },
    /// A layer's weights or configuration; its errors name the tensor themselves.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl FileError {
    /// Says which tensor shows what the library refused.
    pub(super) fn refused<E: Into<Error>>(tensor: &'static str) -> impl FnOnce(E) -> FileError {
        move |source| FileError::Refused { tensor, source: Box::new(source.into()) }
    }
}

/// Why a case could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Engines compute in one format, and the file does not say which.
    #[error("q is {q} and {tensor} is {cache}: an engine needs one of f32, f16, bf16 (--dtype)")]
    NoFormat {
        /// Format of the queries.
        q: super::Format,
        /// A tensor of the cache.
        tensor: &'static str,
        /// Its format.
        cache: super::Format,
    },
    /// A layer that refuses its input.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// Refused or failed.
    #[error(transparent)]
    Engine(Box<Error>),
}

macro_rules! run_errors {
    ($($error:ty),*) => {$(
        impl From<$error> for RunError {
            fn from(error: $error) -> RunError {
                RunError::Engine(Box::new(error.into()))
            }
        }
    )*};
}

run_errors!(
    Error,
    InvalidGeometry,
    InvalidLayout,
    InvalidProblem,
    InvalidStep,
    grouped_attention::EngineError,
    grouped_attention::InvalidCall,
    grouped_attention::InvalidTensor
);

/// The product as text: exact, or how it overflows.
fn product(extents: &[usize]) -> String {
    let product = extents.iter().try_fold(1_u128, |all, &extent| all.checked_mul(extent as u128));
    product.map_or_else(|| "more than 2^128".to_owned(), |bytes| bytes.to_string())
}
