//! The contract that every engine signs.

use crate::arithmetic::Arithmetic;
use crate::call::{Append, Attend, CopyRows, Merge, Planning, ReadRows, Update, Upload};
use crate::dtype::Dtype;
use crate::error::EngineError;
use crate::layout::CacheLayout;
use crate::problem::{Problem, Unsupported};
use crate::step::Extent;
use crate::tensor::HostTensor;
use std::fmt;

/// An attention engine: tensors, caches, plans, and attention over them.
///
/// Methods take *calls* ([`Attend`], [`Append`], …): arguments that their constructors have
/// checked against each other. A call that exists is legal, so an engine checks nothing that a
/// caller could have got wrong, and all engines refuse the same input with the same error. What an
/// engine returns is what only it can know: unsupported, out of memory, a failing device.
///
/// Work may be asynchronous. Calls on one engine take effect in the order they are made;
/// [`download`](Self::download), [`read_rows`](Self::read_rows) and
/// [`synchronize`](Self::synchronize) wait.
///
/// # What an engine must do
///
/// * It must compute what [`attend`](crate::attend()) defines, within the error that
///   [`arithmetic`](Self::arithmetic) implies.
/// * It must never panic, and never read or write outside its tensors, for any legal call.
/// * It must never let a position that a query does not see change that query's result: not by
///   value, not by NaN, not by the page-table slots behind the last used page.
/// * It must give `o = 0`, `lse = -inf` to a query that sees nothing.
/// * It must write every element of the rows it is asked for and none other.
/// * After an error it must be usable, or say in [`EngineError::Device`] that it is lost.
pub trait Backend: fmt::Debug + Send + Sync {
    /// A dense array where this engine computes.
    type Tensor: TensorInfo + fmt::Debug + Send + Sync + 'static;
    /// One layer's cache.
    type Cache: CacheInfo + fmt::Debug + Send + Sync + 'static;
    /// The plan of one step, with whatever workspace it needs.
    type Plan: PlanInfo + fmt::Debug + Send + 'static;

    /// Which engine this is, and which kernels it has chosen.
    fn identity(&self) -> Identity;

    /// Says whether [`plan`](Self::plan) would accept a problem.
    ///
    /// It must not allocate on a device, and its answer must not change.
    ///
    /// # Errors
    /// What it is that has no kernel.
    fn supports(&self, problem: &Problem) -> Result<(), Unsupported>;

    /// The arithmetic with which a supported problem is computed.
    ///
    /// It must bound what every kernel that may be chosen for the problem does.
    fn arithmetic(&self, problem: &Problem) -> Arithmetic;

    /// A tensor of zeros.
    ///
    /// # Errors
    /// Out of memory, a failing device, an unsupported format.
    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<Self::Tensor, EngineError>;

    /// Overwrites a tensor with host values. The host values are read before it returns.
    ///
    /// # Errors
    /// A failing device.
    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError>
    where
        Self: Sized;

    /// Waits for the tensor's pending work and copies it to the host.
    ///
    /// # Errors
    /// A failing device.
    fn download(&self, tensor: &Self::Tensor) -> Result<HostTensor, EngineError>;

    /// Storage for one layer's rows. What its cells hold until they are written is unspecified.
    ///
    /// # Errors
    /// Out of memory, a failing device, an unsupported geometry or format.
    fn create_cache(&self, layout: CacheLayout) -> Result<Self::Cache, EngineError>;

    /// Plans one step of one problem, for all layers that share it.
    ///
    /// Everything that depends on lengths, tables or the mask, and every allocation, must happen
    /// here or in [`update`](Self::update), not in the calls that take the plan.
    ///
    /// # Errors
    /// Unsupported, out of memory, a failing device.
    fn plan(&self, call: Planning<'_>) -> Result<Self::Plan, EngineError>;

    /// Rewrites a plan in place for another step within its capacity.
    ///
    /// It must allocate no device memory; the reference, which promises no speed, is the one engine
    /// that may allocate on the host. On a device it must write the memory that captured work
    /// reads, so that a graph captured with the plan computes the new step when it is replayed,
    /// under another mask too.
    ///
    /// # Errors
    /// A failing device.
    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError>
    where
        Self: Sized;

    /// Writes the step's new rows into a cache, rotating the rope key (for separate rows the whole
    /// key) on the way in if the call says so.
    ///
    /// Row w must go to the cell of the step's write w, rounded to the cache's format after the
    /// rotation. No other cell may change.
    ///
    /// # Errors
    /// A failing device.
    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError>
    where
        Self: Sized;

    /// Copies rows within a cache, bit for bit, as if one copy after another.
    ///
    /// # Errors
    /// A failing device.
    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Result<(), EngineError>
    where
        Self: Sized;

    /// Waits for the cache's pending work and copies rows to the host, bit for bit: the first and
    /// the second part of each slot's row, in the order of the slots.
    ///
    /// The parts are `[slots, h, d_k]` and `[slots, h, d_v]`, or `[slots, h, s]` and `[slots, r]`
    /// (which may be 0 wide). What a cell holds that was never written is unspecified. With a step
    /// [`writing`](crate::Step::writing) the same slots, [`append`](Self::append) brings them back:
    /// so a serving loop moves a preempted sequence to the host and back.
    ///
    /// # Errors
    /// A failing device.
    fn read_rows(&self, call: ReadRows<'_, Self>) -> Result<[HostTensor; 2], EngineError>
    where
        Self: Sized;

    /// Attention of a step's queries over a cache.
    ///
    /// It must not allocate (the reference may), and on a device must neither wait nor copy to the
    /// host. It must write the first `total_q` rows of `o` and `lse` and leave the rest as it is.
    /// In the problem's batch-invariant mode the bits of a sequence's result must not depend on the
    /// other sequences of the step, on page ids or on the page size.
    ///
    /// # Errors
    /// A failing device.
    fn attend(&self, call: Attend<'_, Self>) -> Result<(), EngineError>
    where
        Self: Sized;

    /// Merges two partial results row by row, as [`merge_row`](crate::merge_row) defines.
    ///
    /// # Errors
    /// A failing device.
    fn merge(&self, call: Merge<'_, Self>) -> Result<(), EngineError>
    where
        Self: Sized;

    /// What kernels have found in device-resident metadata since the plan was last written.
    ///
    /// It may wait for pending work. Engines that read only checked metadata answer
    /// [`Status::Ok`].
    ///
    /// # Errors
    /// A failing device.
    fn status(&self, plan: &Self::Plan) -> Result<Status, EngineError>;

    /// Waits for all pending work.
    ///
    /// # Errors
    /// What that work ran into.
    fn synchronize(&self) -> Result<(), EngineError>;
}

/// Who computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The engine, as in `--backend`: `reference`, `cpu`, `cuda`.
    pub name: &'static str,
    /// The kernel family or instruction set chosen.
    pub kernel: String,
    /// The device, in its own words.
    pub device: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) on {}", self.name, self.kernel, self.device)
    }
}

/// What a kernel met in metadata that only the device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Nothing to report.
    Ok,
    /// A page id was not a page of the cache; every row that would have read it is NaN.
    PageOutOfRange,
}

/// What can be known of any tensor.
pub trait TensorInfo {
    /// Format of the elements.
    fn dtype(&self) -> Dtype;
    /// Extent of each dimension, outermost first.
    fn shape(&self) -> &[usize];
}

/// What can be known of any cache.
pub trait CacheInfo {
    /// Its shape.
    fn layout(&self) -> &CacheLayout;
}

/// What can be known of any plan.
pub trait PlanInfo {
    /// What the plan was last written for.
    fn planned(&self) -> &Planned;
}

/// The record that a plan keeps of what it was made for; engines store it as it is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub(crate) problem: Problem,
    pub(crate) page_size: usize,
    pub(crate) extent: Extent,
    pub(crate) capacity: Extent,
    pub(crate) replayed: bool,
    pub(crate) pages_required: usize,
}

impl Planned {
    /// The problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Sizes of the step last written.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Largest sizes that the plan may be updated to: those asked for, or those of the first step.
    pub fn capacity(&self) -> &Extent {
        &self.capacity
    }

    /// True if calls with this plan may be recorded and replayed after an update.
    pub fn is_replayed(&self) -> bool {
        self.replayed
    }

    /// Rows that query, output and lse tensors must have at least: the step's, or the capacity's
    /// where calls are replayed for later steps.
    pub fn query_rows(&self) -> usize {
        if self.replayed { self.capacity.total_q } else { self.extent.total_q }
    }

    /// Rows that tensors of new rows must have at least.
    pub fn write_rows(&self) -> usize {
        if self.replayed { self.capacity.writes } else { self.extent.writes }
    }

    /// Pages that a cache must have.
    pub fn pages_required(&self) -> usize {
        self.pages_required
    }
}
