//! Decode attention for MHA, MQA, GQA, GTA, MLA and GLA, specified.
#![forbid(unsafe_code)]

mod arithmetic;
mod attend;
mod backend;
mod call;
mod dtype;
mod dynamic;
mod engine;
mod error;
mod geometry;
mod layout;
mod mask;
mod merge;
mod pages;
mod problem;
mod rope;
mod step;
mod tensor;

pub use arithmetic::Arithmetic;
pub use attend::{Attended, RowStats, attend};
pub use backend::{Backend, CacheInfo, Identity, PlanInfo, Planned, Status, TensorInfo};
pub use call::{Append, Attend, CopyRows, InvalidCall, Merge, Planning, Update, Upload};
pub use dtype::{Dtype, UnknownDtype};
pub use dynamic::{AnyBackend, AnyCache, AnyPlan, AnyTensor, DynBackend};
pub use engine::{Reference, ReferenceCache, ReferencePlan, ReferenceTensor};
pub use error::{EngineError, Error};
pub use geometry::{Geometry, InvalidGeometry, Row, Variant};
pub use layout::{CacheLayout, InvalidLayout};
pub use mask::{InvalidMask, Mask, MaskKind, Tree};
pub use merge::merge_row;
pub use pages::{PageError, PageId, PageTables, RowCopy, SequenceId, Slot};
pub use problem::{Extension, InvalidProblem, Problem, Unsupported};
pub use rope::{InvalidRope, Rope, RopeScaling, RopeStyle};
pub use step::{Extent, InvalidStep, Sequence, Span, Step, Write};
pub use tensor::{HostTensor, InvalidTensor, Values, ValuesMut};
