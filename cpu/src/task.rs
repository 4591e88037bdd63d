//! One task: some rows over one range of positions, block by block.

use crate::attend::{Shared, online};
use crate::cache::Part;
use crate::lanes::{Job, Lanes, Unit};
use crate::plan::Scratch;
use crate::rows::{Matrix, Strip, accumulate, accumulate_seen, finite, scores, widen_row};
use crate::schedule::{BLOCK, Task};
use crate::visibility::low_bits;
use grouped_attention::Row;

/// A task, to be run with some instruction set.
pub(crate) struct TaskRun<'a, E> {
    pub(crate) shared: &'a Shared<'a>,
    /// Queries `[total_q, h_q, width_k]`.
    pub(crate) q: &'a [E],
    pub(crate) task: &'a Task,
    pub(crate) scratch: &'a mut Scratch,
}

impl<E: Unit> Job for TaskRun<'_, E> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let TaskRun { shared, q, task, scratch } = self;
        let stride = shared.padded.sums_stride();
        let rows = task.heads.len() * shared.head_rows(task.queries.len());
        let Scratch { sums, offsets, sees, q: packed, scores, .. } = scratch;
        let sums = match task.slot {
            None => &mut sums.as_mut_slice()[..rows * stride],
            // SAFETY: the schedule gives every part rows of its own, and joins come later.
            Some(slot) => unsafe { shared.parts.take(slot * stride, rows * stride) },
        };
        sums.chunks_exact_mut(stride).for_each(|sums| online(sums).init());
        pack(lanes, shared, task, q, rows, packed.as_mut_slice());
        let mut work = Work { q: packed.as_slice(), scores: scores.as_mut_slice() };
        let mut first = task.positions.start;
        while first < task.positions.end {
            let count = (task.positions.end - first).min(BLOCK);
            let clear = clear(shared, task, first, count);
            if clear < count {
                see(shared, task, first, count, sees);
            }
            // The next block too, to ask for its rows in time.
            let both = (task.positions.end - first).min(2 * BLOCK);
            let [a, b] = locate(shared, task.sequence, first, both, offsets);
            let block = Block {
                shared,
                task,
                offsets: [&a[..count], &b[..count]],
                next: [&a[count..], &b[count..]],
                clear,
                sees,
            };
            for head in 0..task.heads.len() {
                block.attend::<L, E>(lanes, head, &mut work, sums);
            }
            first += count;
        }
        if task.slot.is_none() {
            // SAFETY: no other task or join writes this sequence's heads and queries.
            unsafe { shared.finish(lanes, task.sequence, &task.heads, &task.queries, sums) }
        }
    }
}

/// Writes the task's queries in f32, in the order of the units, `[rows, q_stride]`.
#[inline(always)]
fn pack<L: Lanes, E: Unit>(
    lanes: L,
    shared: &Shared<'_>,
    task: &Task,
    q: &[E],
    rows: usize,
    packed: &mut [f32],
) {
    let (width, padded) = (shared.geometry.width_k(), shared.padded);
    let split = key_widths(shared.geometry.row())[0];
    for (row, out) in packed.chunks_exact_mut(padded.q_stride()).take(rows).enumerate() {
        let Some((_, place)) = shared.place(task.sequence, &task.heads, &task.queries, row) else {
            continue;
        };
        let (nope, rope) = q[place * width..][..width].split_at(split);
        widen_row(lanes, nope, out);
        widen_row(lanes, rope, &mut out[padded.key[0]..]);
    }
}

/// Elements of a key that come from the first part of a cache row, and from the second.
pub(crate) fn key_widths(row: Row) -> [usize; 2] {
    match row {
        Row::Separate { d_k, .. } => [d_k, 0],
        Row::Tied { n, r, .. } => [n, r],
    }
}

/// Where `count` positions from `first` on begin in both parts of the cache.
#[inline(always)]
pub(crate) fn locate<'a>(
    shared: &Shared<'_>,
    sequence: usize,
    first: usize,
    count: usize,
    offsets: &'a mut [Box<[usize]>; 2],
) -> [&'a [usize]; 2] {
    let (span, page_size) = (&shared.steps.spans[sequence], shared.steps.page_size);
    let pages = &shared.steps.page_ids[span.page_start..];
    let mut j = 0;
    while j < count {
        let (page, token) = ((first + j) / page_size, (first + j) % page_size);
        let run = (page_size - token).min(count - j);
        let page = pages[page].0 as usize;
        for (offsets, part) in offsets.iter_mut().zip([shared.cache.first(), shared.cache.second()])
        {
            let (start, stride) = (part.offset(page, token), part.token_stride());
            for (i, offset) in offsets[j..j + run].iter_mut().enumerate() {
                *offset = start + i * stride;
            }
        }
        j += run;
    }
    let [a, b] = offsets;
    [&a[..count], &b[..count]]
}

/// How many of `count` positions from `first` on all queries of a task see: the leading ones.
pub(crate) fn clear(shared: &Shared<'_>, task: &Task, first: usize, count: usize) -> usize {
    let span = &shared.steps.spans[task.sequence];
    shared.steps.mask.common_end(span, &task.queries).saturating_sub(first).min(count)
}

/// Writes what each query sees of up to [`BLOCK`] positions, `[queries]`.
pub(crate) fn see(shared: &Shared<'_>, task: &Task, first: usize, count: usize, sees: &mut [u64]) {
    let (mask, span) = (shared.steps.mask, &shared.steps.spans[task.sequence]);
    for (bits, t) in sees.iter_mut().zip(task.queries.clone()) {
        *bits = mask.bits(span, t, first) & low_bits(count);
    }
}

/// One head's keys of a block, as their two pieces, and its values.
#[inline(always)]
pub(crate) fn strips<'a, E: Unit>(
    shared: &Shared<'a>,
    offsets: [&'a [usize]; 2],
    head: usize,
) -> ([Strip<'a, E>; 2], Strip<'a, E>) {
    let (first, second) = (shared.cache.first(), shared.cache.second());
    let strip = |part: &'a Part, index: usize, head: usize, width| Strip {
        cells: part.cells::<E>(),
        offsets: offsets[index],
        head: head * part.head_stride(),
        width,
    };
    let row = shared.geometry.row();
    let [one, two] = key_widths(row);
    let values = match row {
        Row::Separate { d_v, .. } => strip(second, 1, head, d_v),
        Row::Tied { s, .. } => strip(first, 0, head, s),
    };
    // Where keys are separate the second piece is empty; the rope key has one head.
    ([strip(first, 0, head, one), strip(second, 1, 0, two)], values)
}

/// Up to [`BLOCK`] positions, for all heads of a task.
struct Block<'a> {
    shared: &'a Shared<'a>,
    task: &'a Task,
    offsets: [&'a [usize]; 2],
    /// The positions after these, as far as they are known.
    next: [&'a [usize]; 2],
    /// Leading positions that all queries see.
    clear: usize,
    /// What each query sees, if not all see all.
    sees: &'a [u64],
}

/// A task's queries, and room for what a block makes of them; see [`Scratch`].
struct Work<'a> {
    q: &'a [f32],
    scores: &'a mut [f32],
}

impl<'a> Block<'a> {
    /// Adds the block to the sums of one head's rows.
    #[inline(always)]
    fn attend<L: Lanes, E: Unit>(
        &self,
        lanes: L,
        head: usize,
        work: &mut Work<'_>,
        sums: &mut [f32],
    ) {
        let padded = self.shared.padded;
        let rows = self.task.queries.len() * self.shared.geometry.group();
        let head_rows = self.shared.head_rows(self.task.queries.len());
        let q = &work.q[head * head_rows * padded.q_stride()..];
        let q = Matrix { cells: q, stride: padded.q_stride() };
        let sums = &mut sums[head * head_rows * padded.sums_stride()..];
        let sums = &mut sums[..rows * padded.sums_stride()];
        let (keys, values) = strips::<E>(self.shared, self.offsets, self.task.heads.start + head);
        let keys = [(keys[0], padded.key[0]), (keys[1], padded.key[1])];
        let [while_scoring, while_adding] = self.ahead(head, values);
        scores(lanes, q, rows, keys, work.scores, BLOCK, while_scoring);
        self.hide(keys[0].0.len(), rows, work.scores);
        let padded_count = keys[0].0.len().next_multiple_of(16);
        let scale = self.shared.scale_log2;
        for (sums, scores) in
            sums.chunks_exact_mut(padded.sums_stride()).zip(work.scores.chunks_exact_mut(BLOCK))
        {
            online(sums).push(lanes, &mut scores[..padded_count], scale);
        }
        let p = Matrix { cells: work.scores, stride: BLOCK };
        let group = self.shared.geometry.group();
        match self.clear < values.len() {
            // 0 times infinity is NaN: values that some rows do not see must not meet them.
            true if !finite(values.after(self.clear)) => {
                for (row, sums) in sums.chunks_exact_mut(padded.sums_stride()).enumerate() {
                    let p = &p.cells[row * BLOCK..];
                    accumulate_seen(lanes, p, self.sees[row / group], values, online(sums).o);
                }
            }
            _ => accumulate(lanes, p, rows, values, sums, padded.sums_stride(), while_adding),
        }
    }

    /// What to ask for from memory while scores are formed, and while values are added: this
    /// head's values, then the next head's keys. Where states are both, they come with the keys.
    #[inline(always)]
    fn ahead<E: Unit>(&self, head: usize, values: Strip<'a, E>) -> [Strip<'a, E>; 2] {
        let heads = &self.task.heads;
        let ([keys, _], next_values) = if head + 1 < heads.len() {
            strips(self.shared, self.offsets, heads.start + head + 1)
        } else {
            strips(self.shared, self.next, heads.start)
        };
        match self.shared.geometry.row() {
            Row::Separate { .. } => [values, keys],
            Row::Tied { .. } => [Strip { offsets: &[], ..values }, next_values],
        }
    }

    /// Gives what rows do not see, and what pads the block to whole vectors, a score of -inf.
    #[inline(always)]
    fn hide(&self, count: usize, rows: usize, scores: &mut [f32]) {
        let group = self.shared.geometry.group();
        for (row, scores) in scores.chunks_exact_mut(BLOCK).take(rows).enumerate() {
            scores[count..].fill(f32::NEG_INFINITY);
            if self.clear < count {
                let bits = self.sees[row / group];
                for (j, score) in scores[..count].iter_mut().enumerate().skip(self.clear) {
                    if bits >> j & 1 == 0 {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}
