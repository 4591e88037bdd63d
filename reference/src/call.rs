//! Calls: the arguments of [`Backend`] methods, checked against each other.
//!
//! Engines read the public fields; only the constructors here can make one.

use crate::backend::{Backend, CacheInfo, PlanInfo, Planned, TensorInfo};
use crate::dtype::Dtype;
use crate::geometry::{Geometry, Row};
use crate::pages::{PageId, RowCopy, Slot};
use crate::problem::Problem;
use crate::step::{Extent, Step};
use crate::tensor::HostTensor;

/// Arguments of [`Backend::upload`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Upload<'a, B: Backend> {
    /// Overwritten.
    pub tensor: &'a mut B::Tensor,
    /// Same shape and format.
    pub host: &'a HostTensor,
}

impl<'a, B: Backend> Upload<'a, B> {
    /// Host values for a tensor.
    ///
    /// # Errors
    /// A shape or format that differs.
    pub fn new(tensor: &'a mut B::Tensor, host: &'a HostTensor) -> Result<Self, InvalidCall> {
        check_dtype("host", host.dtype(), tensor.dtype())?;
        if host.shape() != tensor.shape() {
            return Err(InvalidCall::Shape {
                tensor: "host",
                expected: tensor.shape().to_vec(),
                got: host.shape().to_vec(),
            });
        }
        Ok(Upload { tensor, host })
    }
}

/// Arguments of [`Backend::plan`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Planning<'a> {
    /// What every layer computes.
    pub problem: &'a Problem,
    /// The step.
    pub step: &'a Step,
    capacity: Option<Extent>,
    replayed: bool,
}

impl<'a> Planning<'a> {
    /// A plan for this step; updates may not exceed its sizes.
    pub fn new(problem: &'a Problem, step: &'a Step) -> Planning<'a> {
        Planning { problem, step, capacity: None, replayed: false }
    }

    /// A plan with room for later steps.
    ///
    /// # Errors
    /// A step that exceeds the capacity already; a capacity past `i32::MAX`, which no step reaches.
    pub fn with_capacity(
        problem: &'a Problem,
        step: &'a Step,
        capacity: Extent,
    ) -> Result<Planning<'a>, InvalidCall> {
        check_capacity(step, &capacity)?;
        if let Some((what, capacity)) = capacity.past_any_step() {
            return Err(InvalidCall::CapacityTooLarge { what, capacity });
        }
        Ok(Planning { problem, step, capacity: Some(capacity), replayed: false })
    }

    /// A plan whose calls are recorded once and replayed for later steps, as a CUDA graph is.
    ///
    /// A replayed call reads the tensors it was recorded with, so they must be large enough for
    /// every step to come: query, output and lse tensors have `capacity.total_q` rows, tensors of
    /// new rows `capacity.writes`.
    ///
    /// # Errors
    /// As [`with_capacity`](Self::with_capacity).
    pub fn replayed(
        problem: &'a Problem,
        step: &'a Step,
        capacity: Extent,
    ) -> Result<Planning<'a>, InvalidCall> {
        Ok(Planning { replayed: true, ..Self::with_capacity(problem, step, capacity)? })
    }

    /// The record that the plan must keep.
    pub fn planned(&self) -> Planned {
        Planned {
            problem: self.problem.clone(),
            page_size: self.step.page_size(),
            extent: *self.step.extent(),
            capacity: self.capacity.unwrap_or(*self.step.extent()),
            replayed: self.replayed,
            pages_required: self.step.pages_required(),
        }
    }
}

/// Arguments of [`Backend::update`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Update<'a, B: Backend> {
    /// Rewritten.
    pub plan: &'a mut B::Plan,
    /// The new step, within the plan's capacity.
    pub step: &'a Step,
}

impl<'a, B: Backend> Update<'a, B> {
    /// Another step for a plan.
    ///
    /// # Errors
    /// Another page size; a step that exceeds the plan's capacity.
    pub fn new(plan: &'a mut B::Plan, step: &'a Step) -> Result<Self, InvalidCall> {
        let planned = plan.planned();
        if planned.page_size() != step.page_size() {
            return Err(InvalidCall::PageSize {
                expected: planned.page_size(),
                got: step.page_size(),
            });
        }
        check_capacity(step, planned.capacity())?;
        Ok(Update { plan, step })
    }

    /// The record that the plan must keep from now on.
    pub fn planned(&self) -> Planned {
        let old = self.plan.planned();
        Planned {
            problem: old.problem.clone(),
            page_size: old.page_size,
            extent: *self.step.extent(),
            capacity: old.capacity,
            replayed: old.replayed,
            pages_required: self.step.pages_required(),
        }
    }
}

/// Arguments of [`Backend::append`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Append<'a, B: Backend> {
    /// Says which cell each row goes to.
    pub plan: &'a B::Plan,
    /// Written.
    pub cache: &'a mut B::Cache,
    /// Keys `[writes, h, d_k]` or states `[writes, h, s]`, in the cache's format.
    pub first: &'a B::Tensor,
    /// Values `[writes, h, d_v]` or rope keys `[writes, r]`; absent where r = 0.
    pub second: Option<&'a B::Tensor>,
    /// True if the rope key is to be turned by the problem's rope at the writes' positions.
    pub rotating: bool,
}

impl<'a, B: Backend> Append<'a, B> {
    /// Rows as they are: the rope key is rotated already.
    ///
    /// `first` and `second` are keys and values, or states and rope keys; a tied row with r = 0 has
    /// no second part.
    ///
    /// # Errors
    /// A plan for another geometry, format or page size than the cache's; a page past the cache; a
    /// tensor of the wrong format or shape.
    pub fn new(
        plan: &'a B::Plan,
        cache: &'a mut B::Cache,
        first: &'a B::Tensor,
        second: Option<&'a B::Tensor>,
    ) -> Result<Self, InvalidCall> {
        let planned = plan.planned();
        check_cache(planned, cache)?;
        let (rows, dtype) = (planned.write_rows(), planned.problem().dtype());
        let geometry = planned.problem().geometry();
        let heads = geometry.heads();
        let tails: [(_, &[usize]); 2] = match geometry.row() {
            Row::Separate { d_k, d_v, .. } => [("key", &[heads, d_k]), ("value", &[heads, d_v])],
            Row::Tied { s, r, .. } => [("state", &[heads, s]), ("rope", &[r])],
        };
        let [(first_name, first_tail), (second_name, second_tail)] = tails;
        check_tensor(first_name, first, dtype, rows, first_tail)?;
        match second {
            None if second_tail == [0] => {}
            None => return Err(InvalidCall::Missing { tensor: second_name }),
            Some(second) => check_tensor(second_name, second, dtype, rows, second_tail)?,
        }
        Ok(Append { plan, cache, first, second, rotating: false })
    }

    /// Rows whose rope key (for separate rows the key) is turned on the way in, by the problem's
    /// rope at each write's position.
    ///
    /// # Errors
    /// As [`new`](Self::new); a problem without a rope.
    pub fn rotating(
        plan: &'a B::Plan,
        cache: &'a mut B::Cache,
        first: &'a B::Tensor,
        second: Option<&'a B::Tensor>,
    ) -> Result<Self, InvalidCall> {
        if plan.planned().problem().rope().is_none() {
            return Err(InvalidCall::NoRope);
        }
        Ok(Append { rotating: true, ..Self::new(plan, cache, first, second)? })
    }
}

/// Arguments of [`Backend::copy_rows`].
#[derive(Debug)]
#[non_exhaustive]
pub struct CopyRows<'a, B: Backend> {
    /// Read and written.
    pub cache: &'a mut B::Cache,
    /// In order; no run leaves its page or overlaps its own source.
    pub copies: &'a [RowCopy],
}

impl<'a, B: Backend> CopyRows<'a, B> {
    /// Copies that page tables asked for.
    ///
    /// # Errors
    /// A page past the cache, a run that leaves its page, a run onto itself.
    pub fn new(cache: &'a mut B::Cache, copies: &'a [RowCopy]) -> Result<Self, InvalidCall> {
        let (pages, page_size) = (cache.layout().pages(), cache.layout().page_size());
        for copy in copies {
            for Slot { page, row } in [copy.from, copy.to] {
                if page.0 as usize >= pages {
                    return Err(InvalidCall::PageOutOfRange { page, pages });
                }
                let end = row.checked_add(copy.rows);
                if row >= page_size || end.is_none_or(|end| end > page_size) {
                    return Err(InvalidCall::CopyBeyondPage { copy: *copy, page_size });
                }
            }
            let apart = copy.from.row.abs_diff(copy.to.row) >= copy.rows;
            if copy.from.page == copy.to.page && !apart {
                return Err(InvalidCall::CopyOntoItself { copy: *copy });
            }
        }
        Ok(CopyRows { cache, copies })
    }
}

/// Arguments of [`Backend::read_rows`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ReadRows<'a, B: Backend> {
    /// Read.
    pub cache: &'a B::Cache,
    /// Any cells of the cache, in any order.
    pub slots: &'a [Slot],
}

impl<'a, B: Backend> ReadRows<'a, B> {
    /// Rows to copy to the host.
    ///
    /// # Errors
    /// A page past the cache, a row past the page size.
    pub fn new(cache: &'a B::Cache, slots: &'a [Slot]) -> Result<Self, InvalidCall> {
        let (pages, page_size) = (cache.layout().pages(), cache.layout().page_size());
        for &slot in slots {
            if slot.page.0 as usize >= pages {
                return Err(InvalidCall::PageOutOfRange { page: slot.page, pages });
            }
            if slot.row >= page_size {
                return Err(InvalidCall::RowBeyondPage { slot, page_size });
            }
        }
        Ok(ReadRows { cache, slots })
    }
}

/// Arguments of [`Backend::attend`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Attend<'a, B: Backend> {
    /// Says who sees what; its workspace is written.
    pub plan: &'a mut B::Plan,
    /// `[>= total_q, h_q, width_k]`, in the cache's format, laid out `[nope | rope]`.
    pub q: &'a B::Tensor,
    /// Read.
    pub cache: &'a B::Cache,
    /// `[>= total_q, h_q, width_v]`, in the problem's output format.
    pub o: &'a mut B::Tensor,
    /// `[>= total_q, h_q]`, f32, natural logarithm; not computed where absent.
    pub lse: Option<&'a mut B::Tensor>,
}

impl<'a, B: Backend> Attend<'a, B> {
    /// Attention of `q` over `cache` into `o` and `lse`.
    ///
    /// # Errors
    /// A plan for another geometry, format or page size than the cache's; a page past the cache; a
    /// tensor of the wrong format or shape.
    pub fn new(
        plan: &'a mut B::Plan,
        q: &'a B::Tensor,
        cache: &'a B::Cache,
        o: &'a mut B::Tensor,
        lse: Option<&'a mut B::Tensor>,
    ) -> Result<Self, InvalidCall> {
        let planned = plan.planned();
        check_cache(planned, cache)?;
        let (rows, problem) = (planned.query_rows(), planned.problem());
        let geometry = problem.geometry();
        let h_q = geometry.h_q();
        check_tensor("q", q, problem.dtype(), rows, &[h_q, geometry.width_k()])?;
        check_tensor("o", o, problem.output(), rows, &[h_q, geometry.width_v()])?;
        if let Some(lse) = lse.as_deref() {
            check_tensor("lse", lse, Dtype::F32, rows, &[h_q])?;
        }
        Ok(Attend { plan, q, cache, o, lse })
    }
}

/// Arguments of [`Backend::merge`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Merge<'a, B: Backend> {
    /// `[rows, h_q, d_v]`; becomes the merged output.
    pub o: &'a mut B::Tensor,
    /// `[rows, h_q]`, f32; becomes the merged lse.
    pub lse: &'a mut B::Tensor,
    /// The other part's output, shaped and formatted as `o`.
    pub other_o: &'a B::Tensor,
    /// The other part's lse.
    pub other_lse: &'a B::Tensor,
}

impl<'a, B: Backend> Merge<'a, B> {
    /// Merges the other part into `o` and `lse`.
    ///
    /// # Errors
    /// Shapes that differ; an output that is not `[rows, h_q, d_v]`; an lse that is not f32.
    pub fn new(
        o: &'a mut B::Tensor,
        lse: &'a mut B::Tensor,
        other_o: &'a B::Tensor,
        other_lse: &'a B::Tensor,
    ) -> Result<Self, InvalidCall> {
        let &[rows, h_q, d_v] = o.shape() else {
            return Err(InvalidCall::Rank { tensor: "o", expected: 3, got: o.shape().to_vec() });
        };
        for (tensor, part) in [("lse", &*lse), ("other_lse", other_lse)] {
            check_dtype(tensor, part.dtype(), Dtype::F32)?;
            check_shape(tensor, part.shape(), &[rows, h_q])?;
        }
        check_dtype("other_o", other_o.dtype(), o.dtype())?;
        check_shape("other_o", other_o.shape(), &[rows, h_q, d_v])?;
        Ok(Merge { o, lse, other_o, other_lse })
    }
}

fn check_capacity(step: &Step, capacity: &Extent) -> Result<(), InvalidCall> {
    match step.extent().beyond(capacity) {
        None => Ok(()),
        Some((what, got, capacity)) => Err(InvalidCall::Capacity { what, capacity, got }),
    }
}

fn check_cache(planned: &Planned, cache: &impl CacheInfo) -> Result<(), InvalidCall> {
    let (layout, problem) = (cache.layout(), planned.problem());
    if layout.geometry().row() != problem.geometry().row() {
        return Err(InvalidCall::Geometry {
            expected: *problem.geometry(),
            got: *layout.geometry(),
        });
    }
    check_dtype("cache", layout.dtype(), problem.dtype())?;
    if layout.page_size() != planned.page_size() {
        return Err(InvalidCall::PageSize {
            expected: planned.page_size(),
            got: layout.page_size(),
        });
    }
    let required = planned.pages_required();
    if required > layout.pages() {
        // The largest id is named; smaller ones may be out of range too.
        let page = PageId(required as u32 - 1);
        return Err(InvalidCall::PageOutOfRange { page, pages: layout.pages() });
    }
    Ok(())
}

fn check_dtype(tensor: &'static str, got: Dtype, expected: Dtype) -> Result<(), InvalidCall> {
    if got == expected { Ok(()) } else { Err(InvalidCall::Dtype { tensor, expected, got }) }
}

fn check_shape(tensor: &'static str, got: &[usize], expected: &[usize]) -> Result<(), InvalidCall> {
    if got == expected {
        return Ok(());
    }
    Err(InvalidCall::Shape { tensor, expected: expected.to_vec(), got: got.to_vec() })
}

/// Checks for `[>= rows, tail..]`.
fn check_tensor(
    name: &'static str,
    tensor: &impl TensorInfo,
    dtype: Dtype,
    rows: usize,
    tail: &[usize],
) -> Result<(), InvalidCall> {
    check_dtype(name, tensor.dtype(), dtype)?;
    match tensor.shape() {
        [got, rest @ ..] if *got >= rows && rest == tail => Ok(()),
        got => {
            let expected = [&[rows], tail].concat();
            Err(InvalidCall::Shape { tensor: name, expected, got: got.to_vec() })
        }
    }
}

/// Why arguments are not a call.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCall {
    /// A tensor or cache of another format.
    #[error("{tensor} is {got}, expected {expected}")]
    Dtype {
        /// Which argument.
        tensor: &'static str,
        /// The format it must have.
        expected: Dtype,
        /// The format it has.
        got: Dtype,
    },
    /// A tensor of another shape. Where the first extent counts rows, more are accepted.
    #[error("{tensor} is {got:?}, expected {expected:?}")]
    Shape {
        /// Which argument.
        tensor: &'static str,
        /// The shape it must have.
        expected: Vec<usize>,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// A tensor of another number of dimensions.
    #[error("{tensor} is {got:?}, expected {expected} dimensions")]
    Rank {
        /// Which argument.
        tensor: &'static str,
        /// Dimensions it must have.
        expected: usize,
        /// The shape it has.
        got: Vec<usize>,
    },
    /// A part of the rows that only r = 0 can do without.
    #[error("{tensor} is missing")]
    Missing {
        /// Which argument.
        tensor: &'static str,
    },
    /// Plan and cache keep different rows.
    #[error("the cache is {got}, the plan is for {expected}")]
    Geometry {
        /// The plan's geometry.
        expected: Geometry,
        /// The cache's geometry.
        got: Geometry,
    },
    /// Plan and cache, or plan and step, have different pages.
    #[error("the page size is {got}, expected {expected}")]
    PageSize {
        /// The plan's page size.
        expected: usize,
        /// The other page size.
        got: usize,
    },
    /// A page that the cache does not have.
    #[error("page {} is out of range: the cache has {pages}", page.0)]
    PageOutOfRange {
        /// The page.
        page: PageId,
        /// Pages of the cache.
        pages: usize,
    },
    /// A step larger than the plan was made for.
    #[error("{what} is {got}, and the plan's capacity is {capacity}")]
    Capacity {
        /// Which size.
        what: &'static str,
        /// What was planned for.
        capacity: usize,
        /// What the step has.
        got: usize,
    },
    /// A capacity that no step can fill; engines reserve memory for it.
    #[error("a capacity of {capacity} {what} is past 2^31")]
    CapacityTooLarge {
        /// Which size.
        what: &'static str,
        /// What was asked for.
        capacity: usize,
    },
    /// A rotating append under a problem that has no rope.
    #[error("a rotating append needs a problem with a rope")]
    NoRope,
    /// A row that its page does not have.
    #[error("row {} of page {} is past a page of {page_size} rows", slot.row, slot.page.0)]
    RowBeyondPage {
        /// The slot.
        slot: Slot,
        /// Tokens per page.
        page_size: usize,
    },
    /// A copy that leaves its page.
    #[error("a copy of {copy} leaves a page of {page_size} rows")]
    CopyBeyondPage {
        /// The copy.
        copy: RowCopy,
        /// Tokens per page.
        page_size: usize,
    },
    /// A copy whose source and destination overlap.
    #[error("a copy of {copy} overlaps itself")]
    CopyOntoItself {
        /// The copy.
        copy: RowCopy,
    },
}
