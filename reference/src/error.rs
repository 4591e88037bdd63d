//! Errors, gathered: what callers got wrong, and what an engine could not do.

use crate::call::InvalidCall;
use crate::dtype::UnknownDtype;
use crate::geometry::InvalidGeometry;
use crate::layout::InvalidLayout;
use crate::mask::InvalidMask;
use crate::norm::InvalidNorm;
use crate::pages::PageError;
use crate::problem::{InvalidProblem, Unsupported};
use crate::rope::InvalidRope;
use crate::sharding::InvalidSharding;
use crate::step::InvalidStep;
use crate::tensor::InvalidTensor;

/// Any error of this crate, but for those of layers and their files, or of an engine.
///
/// Everything but [`Error::Engine`] is found before an engine is asked, so all engines refuse the
/// same input in the same words.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No geometry has these numbers.
    #[error(transparent)]
    Geometry(#[from] InvalidGeometry),
    /// No format has this name.
    #[error(transparent)]
    Dtype(#[from] UnknownDtype),
    /// No problem has these numbers.
    #[error(transparent)]
    Problem(#[from] InvalidProblem),
    /// No cache has these sizes.
    #[error(transparent)]
    Layout(#[from] InvalidLayout),
    /// No tensor has these sizes.
    #[error(transparent)]
    Tensor(#[from] InvalidTensor),
    /// No rope has these numbers.
    #[error(transparent)]
    Rope(#[from] InvalidRope),
    /// No norm has these numbers.
    #[error(transparent)]
    Norm(#[from] InvalidNorm),
    /// The heads cannot be shared out like this.
    #[error(transparent)]
    Sharding(#[from] InvalidSharding),
    /// Not a mask over these queries.
    #[error(transparent)]
    Mask(#[from] InvalidMask),
    /// Lengths, tables and mask are not a step.
    #[error(transparent)]
    Step(#[from] InvalidStep),
    /// Page tables refuse.
    #[error(transparent)]
    Pages(#[from] PageError),
    /// Arguments of a call do not fit each other.
    #[error(transparent)]
    Call(#[from] InvalidCall),
    /// An engine could not do what is legal to ask.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<Unsupported> for Error {
    fn from(unsupported: Unsupported) -> Error {
        Error::Engine(unsupported.into())
    }
}

/// What only an engine can know.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No kernel for this.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The engine cannot run on this machine at all.
    #[error("{engine} is not available: {reason}")]
    Unavailable {
        /// The engine.
        engine: &'static str,
        /// What is missing.
        reason: String,
    },
    /// Memory ran out; the engine is as it was before.
    #[error("out of memory: {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A device or its driver failed.
    #[error("device error: {message}{}", if *.lost { "; the backend is lost" } else { "" })]
    Device {
        /// The driver's words.
        message: String,
        /// True if the backend cannot be used any more.
        lost: bool,
    },
    /// A tensor, cache or plan of another engine, or of another device of this one.
    #[error("the {what} belongs to another engine")]
    Foreign {
        /// Which argument.
        what: &'static str,
    },
}
