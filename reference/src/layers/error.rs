//! Why there is no such layer, or why a layer cannot take this input.

use crate::geometry::{Geometry, InvalidGeometry};
use crate::norm::InvalidNorm;
use crate::rope::InvalidRope;

/// What is wrong with a layer's weights, its configuration or its input.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The head counts and widths are no geometry.
    #[error(transparent)]
    Geometry(#[from] InvalidGeometry),
    /// The rope parameters are out of range.
    #[error(transparent)]
    Rope(#[from] InvalidRope),
    /// The norm parameters are out of range.
    #[error(transparent)]
    Norm(#[from] InvalidNorm),
    /// The layer keeps the other kind of row.
    #[error("{layer} cannot have the geometry {geometry}")]
    WrongRow {
        /// The layer's name.
        layer: &'static str,
        /// The geometry asked for.
        geometry: Geometry,
    },
    /// A count or width of the layer is not what the others make it.
    #[error("{what} is {got}, and the layer needs {expected}")]
    Size {
        /// What was counted.
        what: &'static str,
        /// What it has to be.
        expected: usize,
        /// What it is.
        got: usize,
    },
    /// A weight has another shape than the layer's sizes give it, `[outputs, inputs]`.
    #[error("tensor {tensor} has shape {got:?}, and the layer needs {expected:?}")]
    Shape {
        /// The tensor's name: the full one if it comes from a file.
        tensor: String,
        /// The shape it has to have.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// An input is not a whole number of tokens, or not as many as another input.
    #[error("{what} has {got} elements, and {expected} {rule}")]
    Input {
        /// The argument's name.
        what: &'static str,
        /// The number of elements that fits, or the one it has to be a multiple of.
        expected: usize,
        /// The number of elements given.
        got: usize,
        /// How `expected` is meant.
        rule: InputRule,
    },
    /// The file lacks a tensor.
    #[error("tensor {tensor} is missing")]
    Missing {
        /// The tensor's full name.
        tensor: String,
    },
    /// The file has a tensor under the layer's prefix that the layer has no use for.
    #[error("tensor {tensor} is not part of the layer")]
    Unexpected {
        /// The tensor's full name.
        tensor: String,
    },
    /// The file stores a tensor in a format that is not read here.
    #[error("tensor {tensor} is {dtype}: expected F64, F32, F16 or BF16")]
    TensorDtype {
        /// The tensor's full name.
        tensor: String,
        /// Its format, by the name safetensors gives it.
        dtype: String,
    },
    /// A stored weight is NaN or infinite.
    #[error("element {index} of tensor {tensor} is not finite")]
    NotFinite {
        /// The tensor's full name.
        tensor: String,
        /// The first such element, row-major.
        index: usize,
    },
    /// The configuration is not the JSON object it has to be.
    #[error("the layer's configuration cannot be read: {reason}")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// The configuration lacks a key that this kind of layer needs.
    #[error("the configuration of a {layer} layer needs {key}")]
    MissingKey {
        /// The layer's kind.
        layer: &'static str,
        /// The key.
        key: &'static str,
    },
    /// Two keys of the configuration contradict each other, or one contradicts the layer's kind.
    #[error("the configuration says {key} = {got}, and {expected} follows from the rest")]
    Inconsistent {
        /// The key.
        key: &'static str,
        /// The value that agrees with the rest.
        expected: String,
        /// The value given.
        got: String,
    },
    /// The configuration asks for something that is not computed here `[S-3.22]`.
    #[error("{key} = {value} is not supported")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// The value asked for.
        value: String,
    },
    /// A name that no kind of layer has.
    #[error("unknown kind of layer {name:?}: expected gqa, gta, mla or gla")]
    UnknownKind {
        /// The name as given.
        name: String,
    },
}

/// How a number of elements is bound in [`LayerError::Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputRule {
    /// The number is the only one that fits.
    Exactly,
    /// Any multiple of the number fits.
    MultipleOf,
}

impl std::fmt::Display for InputRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            InputRule::Exactly => "fit",
            InputRule::MultipleOf => "make a whole",
        })
    }
}
