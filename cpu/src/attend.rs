//! Attention: the schedule's tasks over the threads, then the joins.

use crate::backend::CpuBackend;
use crate::buffer::with_element;
use crate::cache::CpuCache;
use crate::disjoint::Disjoint;
use crate::kernel::Instructions;
use crate::lanes::{Job, Lanes, Unit};
use crate::output::Output;
use crate::plan::{Padded, Scratch, Steps, Workspace};
use crate::schedule::Join;
use crate::softmax::Online;
use crate::stages::Stages;
use crate::strip::LINE;
use crate::threads::Threads;
use grouped_attention::{Attend, Geometry};

/// Runs one attend.
pub(crate) fn attend(kernel: Instructions, threads: &Threads, call: Attend<'_, CpuBackend>) {
    let (steps, workspace) = call.plan.split();
    let problem = steps.problem;
    let output = Output::new(problem.output(), call.o, call.lse, problem.geometry().width_v());
    let Workspace { scratches, parts } = workspace;
    let mut shared = Shared {
        steps,
        geometry: *problem.geometry(),
        padded: Padded::new(problem.geometry().row()),
        scale_log2: (problem.scale() * std::f64::consts::LOG2_E) as f32,
        cache: call.cache,
        parts: Disjoint::new(parts.as_mut_slice()),
        output,
        interleaved: false,
    };
    with_element!(problem.dtype(), E => {
        shared.interleaved = E::INTERLEAVED;
        let q = call.q.values::<E>();
        let (tasks, joins) = (&steps.schedule.tasks, &steps.schedule.joins);
        // PERF: as many pieces as threads, since few joins there are: GLA-2, 128 heads, one sequence of 8192, two
        // threads: 100 to 140 us of 1100 went to one join by one thread.
        let pieces = scratches.len();
        let stages = Stages::new(tasks.len(), joins.len() * pieces);
        let work = |scratch: &mut Scratch| {
            stages.run(
                |index| kernel.attend(&shared, q, &tasks[index], scratch),
                |index| {
                    let join = &joins[index / pieces];
                    kernel.run(JoinRun { shared: &shared, join, piece: index % pieces, pieces });
                },
            );
        };
        match scratches.as_mut_slice() {
            [] => {}
            [scratch, others @ ..] if others.is_empty() || tasks.len() < 2 => work(scratch),
            scratches => threads.each(scratches, work),
        }
    }, else unreachable!("no plan has another format"));
}

/// Everything that all tasks of a call share.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    pub(crate) steps: Steps<'a>,
    pub(crate) geometry: Geometry,
    pub(crate) padded: Padded,
    /// The scale in base 2, rounded once.
    pub(crate) scale_log2: f32,
    pub(crate) cache: &'a CpuCache,
    /// As [`Workspace::parts`].
    pub(crate) parts: Disjoint<'a, f32>,
    pub(crate) output: Output<'a>,
    /// The order of sums, [`Unit::INTERLEAVED`] of the cache's format.
    pub(crate) interleaved: bool,
}

impl Shared<'_> {
    /// Query row `row` of a run of queries and heads: its token, and its place among `total_q *
    /// h_q` rows; `None` for a row of padding. Rows of one cached head stand together, in the
    /// order of tokens, then heads.
    pub(crate) fn place(
        &self,
        sequence: usize,
        heads: &std::ops::Range<usize>,
        queries: &std::ops::Range<usize>,
        row: usize,
    ) -> Option<(usize, usize)> {
        let (group, head_rows) = (self.geometry.group(), self.head_rows(queries.len()));
        let (head, row) = (row / head_rows, row % head_rows);
        if row >= queries.len() * group {
            return None;
        }
        let t = queries.start + row / group;
        let i = (heads.start + head) * group + row % group;
        Some((t, (self.steps.spans[sequence].q_start + t) * self.geometry.h_q() + i))
    }

    /// Rows that some queries take of one cached head, padding included.
    pub(crate) fn head_rows(&self, queries: usize) -> usize {
        (queries * self.geometry.group()).next_multiple_of(self.steps.row_align)
    }

    /// Normalises the sums of a run's rows, from `first_row` on, and writes them out.
    ///
    /// # Safety
    /// No other slice of the output may reach these rows meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn finish<L: Lanes>(
        &self,
        lanes: L,
        sequence: usize,
        heads: &std::ops::Range<usize>,
        queries: &std::ops::Range<usize>,
        first_row: usize,
        sums: &mut [f32],
    ) {
        let span = &self.steps.spans[sequence];
        let stride = self.padded.sums_stride();
        for (row, sums) in sums.chunks_exact_mut(stride).enumerate() {
            let Some((t, place)) = self.place(sequence, heads, queries, first_row + row) else {
                continue;
            };
            let mut online = online(sums);
            let lse = online.normalise(lanes, self.steps.mask.sees_any(span, t));
            // SAFETY: the caller's promise.
            unsafe { self.output.write::<L>(place, online.o, lse, self.interleaved) }
        }
    }
}

/// The sums that a row of the workspace holds: o on a unit of its own, then m and l.
#[inline(always)]
pub(crate) fn online(sums: &mut [f32]) -> Online<'_> {
    let (o, rest) = sums.split_at_mut(sums.len() - 32);
    let [m, l, ..] = rest else { unreachable!("a row ends in a unit for m and l") };
    Online { m, l, o }
}

/// Rows ahead of the one that is merged whose parts are asked for.
///
/// PERF: half of them are in another core's caches. Two threads of a Xeon, one sequence in four parts, all joins, without and
/// with, us: GLA-2 with 128 heads 20, 17, at `q_len` 4 66, 53; MLA with 128 heads 34, 33; GTA at `q_len` 4 16, 14.
const JOIN_AHEAD: usize = 2;

/// Merges the parts of some rows, a piece of a join's, in the order of their positions.
struct JoinRun<'a> {
    shared: &'a Shared<'a>,
    join: &'a Join,
    piece: usize,
    pieces: usize,
}

impl Job for JoinRun<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let JoinRun { shared, join, piece, pieces } = self;
        let stride = shared.padded.sums_stride();
        let rows = join.heads.len() * shared.head_rows(join.queries.len());
        for row in piece * rows / pieces..(piece + 1) * rows / pieces {
            if shared.place(join.sequence, &join.heads, &join.queries, row).is_none() {
                continue;
            }
            let start = |part: usize, row: usize| (join.slot + part * rows + row) * stride;
            let part = |part: usize| {
                for line in (0..stride).step_by(LINE / size_of::<f32>()) {
                    shared.parts.prefetch(lanes, start(part, row + JOIN_AHEAD) + line);
                }
                // SAFETY: the schedule gives every part rows of its own, its task is done, and this is the one piece
                // of the one join that reads these, each part once.
                unsafe { shared.parts.take(start(part, row), stride) }
            };
            let sums = part(0);
            for other in (1..join.parts).map(part) {
                let other = online(other);
                online(sums).merge(lanes, *other.m, *other.l, other.o);
            }
            // SAFETY: no other task or join writes this sequence's heads and queries, and no other piece this row.
            unsafe {
                shared.finish(lanes, join.sequence, &join.heads, &join.queries, row, sums);
            }
        }
    }
}
