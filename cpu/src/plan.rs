//! The plan of one step: what the schedule reads of it, the schedule, and the workspace.

use crate::ahead::Lines;
use crate::backend::CpuBackend;
use crate::buffer::Buffer;
use crate::kernel::Instructions;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::matrix::MatrixScratch;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::prepared::Prepared;
use crate::schedule::{BLOCK, Bounds, MATRIX_BLOCK, Schedule, Sizes, schedule};
use crate::task::key_widths;
use crate::visibility::Visibility;
use grouped_attention::{
    EngineError, Extent, PageId, PlanInfo, Planned, Planning, Problem, Rope, Row, Span, Step,
    Update, Write,
};

/// The plan of one step, for all layers that share it.
#[derive(Debug)]
pub struct CpuPlan {
    planned: Planned,
    step: StepCopy,
    sizes: Sizes,
    schedule: Schedule,
    workspace: Workspace,
}

/// The step's contents, in memory that later steps reuse.
#[derive(Debug)]
struct StepCopy {
    spans: Vec<Span>,
    page_ids: Vec<PageId>,
    writes: Vec<Write>,
    /// Cosine and sine of the angles that each write's row is turned by, `[writes, r / 2]`: for all
    /// layers once.
    turns: Vec<(f64, f64)>,
    mask: Visibility,
}

/// Everything that attending writes beside its outputs.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// One per thread.
    pub(crate) scratches: Vec<Scratch>,
    /// Sums of parts, `[slot_rows, 2 + o_stride]`: m, l, o.
    pub(crate) parts: Buffer,
}

/// What one thread needs for a task.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Queries in the order of the units, `[rows, q_stride]`.
    pub(crate) q: Buffer,
    /// Scores, then probabilities of one head, `[rows of a head, BLOCK]`.
    pub(crate) scores: Buffer,
    /// Sums, `[rows, 2 + o_stride]`.
    pub(crate) sums: Buffer,
    /// Where each position of two blocks begins in both parts of the cache, `[2, 2 MATRIX_BLOCK]`.
    pub(crate) offsets: [Box<[usize]>; 2],
    /// Positions of a block that each query token sees, as bits, `[words, queries]`.
    pub(crate) sees: Box<[u64]>,
    /// A block in f32, [`dense::Wide`](crate::dense::Wide).
    #[cfg(feature = "faer")]
    pub(crate) wide: Buffer,
    /// What is asked for meanwhile.
    pub(crate) lines: Lines,
    /// Where bf16 is multiplied in pairs.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) prepared: Prepared,
    /// Where the matrix unit may run.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) matrix: Option<MatrixScratch>,
}

const _: () = assert!(BLOCK == u64::BITS as usize, "a block's positions are the bits of a word");

/// Widths in memory: whole units of every instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Padded {
    /// Key elements taken from the first part of a row, and from the second.
    pub(crate) key: [usize; 2],
    /// Value elements.
    pub(crate) value: usize,
}

/// The widest unit, in elements.
pub(crate) const UNIT: usize = 32;

impl Padded {
    pub(crate) fn new(row: Row) -> Padded {
        Padded {
            key: key_widths(row).map(|width| width.next_multiple_of(UNIT)),
            value: row.width_v().next_multiple_of(UNIT),
        }
    }

    /// Elements from one packed query or key to the next.
    pub(crate) fn q_stride(&self) -> usize {
        self.key[0] + self.key[1]
    }

    /// Elements from one row's sums to the next: m, l and o, `o` on a unit of its own.
    pub(crate) fn sums_stride(&self) -> usize {
        self.value + UNIT
    }
}

impl PlanInfo for CpuPlan {
    fn planned(&self) -> &Planned {
        &self.planned
    }
}

impl CpuPlan {
    pub(crate) fn new(
        call: &Planning<'_>,
        kernel: Instructions,
        threads: usize,
    ) -> Result<CpuPlan, EngineError> {
        let planned = call.planned();
        let sizes = sizes(call.problem, kernel, threads);
        let capacity = *planned.capacity();
        let bounds = sizes.bounds(&capacity);
        let mut plan = CpuPlan {
            step: StepCopy::with_capacity(&capacity, planned.page_size(), call.problem.rope())?,
            sizes,
            schedule: Schedule {
                tasks: with_capacity(bounds.tasks)?,
                joins: with_capacity(bounds.joins)?,
            },
            workspace: Workspace::new(call.problem, &bounds, sizes.row_align, threads)?,
            planned,
        };
        plan.write(call.step);
        Ok(plan)
    }

    /// Rewrites the plan for another step within its capacity; allocates nothing.
    pub(crate) fn update(call: Update<'_, CpuBackend>) {
        let planned = call.planned();
        call.plan.planned = planned;
        call.plan.write(call.step);
    }

    fn write(&mut self, step: &Step) {
        self.step.write(step, self.planned.problem().rope());
        schedule(&self.sizes, &self.step.spans, &self.step.mask, &mut self.schedule);
    }

    pub(crate) fn writes(&self) -> &[Write] {
        &self.step.writes
    }

    pub(crate) fn turns(&self) -> &[(f64, f64)] {
        &self.step.turns
    }

    /// The parts that attending reads, and the workspace that it writes.
    pub(crate) fn split(&mut self) -> (Steps<'_>, &mut Workspace) {
        let steps = Steps {
            problem: self.planned.problem(),
            page_size: self.planned.page_size(),
            spans: &self.step.spans,
            page_ids: &self.step.page_ids,
            mask: &self.step.mask,
            row_align: self.sizes.row_align,
            schedule: &self.schedule,
        };
        (steps, &mut self.workspace)
    }
}

/// What attending reads of a plan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) page_size: usize,
    pub(crate) spans: &'a [Span],
    pub(crate) page_ids: &'a [PageId],
    pub(crate) mask: &'a Visibility,
    /// As [`Sizes::row_align`].
    pub(crate) row_align: usize,
    pub(crate) schedule: &'a Schedule,
}

fn sizes(problem: &Problem, kernel: Instructions, threads: usize) -> Sizes {
    let geometry = problem.geometry();
    Sizes {
        heads: geometry.heads(),
        group: geometry.group(),
        width_k: geometry.width_k(),
        width_v: geometry.width_v(),
        token_bytes: geometry.row().elements() * problem.dtype().bytes(),
        flops_per_byte: kernel.flops_per_byte(problem.dtype()),
        row_align: kernel.row_align(problem.dtype()),
        threads,
        batch_invariant: problem.is_batch_invariant(),
    }
}

pub(crate) fn with_capacity<T>(capacity: usize) -> Result<Vec<T>, EngineError> {
    let mut items = Vec::new();
    let bytes = capacity.saturating_mul(size_of::<T>());
    items.try_reserve_exact(capacity).map_err(|_| EngineError::OutOfMemory { bytes })?;
    Ok(items)
}

impl StepCopy {
    fn with_capacity(
        capacity: &Extent,
        page_size: usize,
        rope: Option<&Rope>,
    ) -> Result<StepCopy, EngineError> {
        // A step has at most i32::MAX table entries, and memory is only taken by those written.
        let pages = capacity.max_kv_len.div_ceil(page_size);
        let entries = capacity.sequences.saturating_mul(pages).min(i32::MAX as usize);
        let pairs = rope.map_or(0, |rope| rope.width() / 2);
        Ok(StepCopy {
            spans: with_capacity(capacity.sequences)?,
            page_ids: with_capacity(entries)?,
            writes: with_capacity(capacity.writes)?,
            turns: with_capacity(capacity.writes.saturating_mul(pairs))?,
            mask: Visibility::with_paths(with_capacity(capacity.total_q)?),
        })
    }

    fn write(&mut self, step: &Step, rope: Option<&Rope>) {
        self.spans.clear();
        self.spans.extend_from_slice(step.spans());
        self.page_ids.clear();
        self.page_ids.extend_from_slice(step.page_ids());
        self.writes.clear();
        self.writes.extend_from_slice(step.writes());
        self.turns.clear();
        if let Some(rope) = rope {
            self.turns.extend(step.writes().iter().flat_map(|write| rope.cos_sin(write.position)));
        }
        self.mask.write(step.mask(), step.spans());
    }
}

impl Workspace {
    fn new(
        problem: &Problem,
        bounds: &Bounds,
        row_align: usize,
        threads: usize,
    ) -> Result<Workspace, EngineError> {
        let padded = Padded::new(problem.geometry().row());
        let scratch = |_| Scratch::new(padded, bounds, row_align > 1);
        Ok(Workspace {
            scratches: (0..threads).map(scratch).collect::<Result<_, _>>()?,
            parts: Buffer::zeroed::<f32>(bounds.slot_rows.saturating_mul(padded.sums_stride()))?,
        })
    }
}

impl Scratch {
    #[cfg_attr(
        not(all(target_arch = "x86_64", not(miri))),
        expect(unused_variables, reason = "for x86-64")
    )]
    fn new(padded: Padded, bounds: &Bounds, matrix: bool) -> Result<Scratch, EngineError> {
        Ok(Scratch {
            q: Buffer::zeroed::<f32>(bounds.rows * padded.q_stride())?,
            scores: Buffer::zeroed::<f32>(bounds.rows * BLOCK)?,
            sums: Buffer::zeroed::<f32>(bounds.rows * padded.sums_stride())?,
            offsets: [0; 2].map(|_| vec![0; 2 * MATRIX_BLOCK].into()),
            sees: vec![0; bounds.queries * (MATRIX_BLOCK / BLOCK)].into(),
            #[cfg(feature = "faer")]
            wide: Buffer::zeroed::<f32>(crate::dense::Wide::elements(padded))?,
            lines: Lines::new(padded)?,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            prepared: Prepared::new(padded)?,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            matrix: matrix.then(|| MatrixScratch::new(padded, bounds)).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Portable;
    use crate::schedule::by_hand::GQA;
    use grouped_attention::{Dtype, Geometry};

    #[test]
    fn strides_are_whole_units() {
        let row = Geometry::gla(128, 2, 250, 60).expect("legal").row();
        let padded = Padded::new(row);
        assert_eq!(padded, Padded { key: [256, 64], value: 256 });
        assert_eq!((padded.q_stride(), padded.sums_stride()), (320, 288));
    }

    #[test]
    fn sizes_are_those_of_the_problem() {
        let of = |geometry: Result<Geometry, _>, dtype| {
            let geometry = geometry.expect("a legal geometry");
            let problem = Problem::new(geometry, dtype, 1.0).expect("a legal problem");
            sizes(&problem, Instructions::Portable(Portable), 2)
        };
        assert_eq!(of(Geometry::gqa(32, 8, 128), Dtype::Bf16), GQA);
        let gla = Sizes {
            heads: 2,
            group: 64,
            width_k: 320,
            width_v: 256,
            // 2 states of 256 elements and a rope key of 64, of 4 bytes.
            token_bytes: 2304,
            ..GQA
        };
        assert_eq!(of(Geometry::gla(128, 2, 256, 64), Dtype::F32), gla);
    }
}
