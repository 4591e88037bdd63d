//! One task: some rows over one range of positions, block by block.

use crate::ahead::{Ahead, Lines};
use crate::attend::{Shared, online};
use crate::buffer::Buffer;
#[cfg(feature = "faer")]
use crate::dense;
use crate::lanes::{Job, Lanes, Unit};
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::pairs::Pairs;
use crate::plan::Scratch;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::prepared::Prepared;

use crate::rows::{Matrix, accumulate, accumulate_seen, finite, scores, widen_row};
use crate::schedule::{BLOCK, Task};
use crate::strip::{Located, Strip};
use crate::visibility::low_bits;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use grouped_attention::Dtype;
use grouped_attention::Row;

/// A task, to be run with some instruction set.
pub(crate) struct TaskRun<'a, E> {
    pub(crate) shared: &'a Shared<'a>,
    /// Queries `[total_q, h_q, width_k]`.
    pub(crate) q: &'a [E],
    pub(crate) task: &'a Task,
    pub(crate) scratch: &'a mut Scratch,
    /// Where bf16 is multiplied in pairs.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) pairs: Option<Pairs>,
}

impl<E: Unit> Job for TaskRun<'_, E> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let TaskRun { shared, q, task, scratch, .. } = self;
        // Other formats take the path of every instruction set.
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        let pairs = self.pairs.filter(|_| E::DTYPE == Dtype::Bf16);
        let stride = shared.padded.sums_stride();
        let rows = task.heads.len() * shared.head_rows(task.queries.len());
        let Scratch { sums, offsets, sees, q: packed, scores, lines, .. } = scratch;
        #[cfg(feature = "faer")]
        let wide = scratch.wide.as_mut_slice();
        let sums = match task.slot {
            None => &mut sums.as_mut_slice()[..rows * stride],
            // SAFETY: the schedule gives every part rows of its own, and joins come later.
            Some(slot) => unsafe { shared.parts.take(slot * stride, rows * stride) },
        };
        sums.chunks_exact_mut(stride).for_each(|sums| online(sums).init());
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        let widened = pairs.is_none();
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let widened = true;
        if widened {
            let widen = |row: &[E], out: &mut [f32]| widen_row(lanes, row, out);
            pack(shared, task, q, rows, packed.as_mut_slice(), widen);
        } else {
            let copy = |row: &[E], out: &mut [E]| out[..row.len()].copy_from_slice(row);
            pack(shared, task, q, rows, packed.as_mut_slice(), copy);
        }
        let mut work = Work {
            q: packed,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            pairs,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            prepared: &mut scratch.prepared,
            scores: scores.as_mut_slice(),
            #[cfg(feature = "faer")]
            wide,
            lines,
        };
        let mut first = task.positions.start;
        while first < task.positions.end {
            let count = (task.positions.end - first).min(BLOCK);
            let clear = clear(shared, task, first, count);
            if clear < count {
                see(shared, task, first, count, sees);
            }
            // The next block too, to ask for its rows in time.
            let both = (task.positions.end - first).min(2 * BLOCK);
            let located = locate::<E>(shared, task.sequence, first, both, offsets);
            let [(a, next_a), (b, next_b)] = located.map(|part| part.split_at(count));
            let block =
                Block { shared, task, positions: [a, b], next: [next_a, next_b], clear, sees };
            for head in 0..task.heads.len() {
                block.attend(lanes, head, &mut work, sums);
            }
            first += count;
        }
        if task.slot.is_none() {
            // SAFETY: no other task or join writes this sequence's heads and queries.
            unsafe { shared.finish(lanes, task.sequence, &task.heads, &task.queries, 0, sums) }
        }
    }
}

/// Packs the task's queries, `[rows, q_stride]`, piece by piece with `write`. What pads a piece to whole
/// units is never written, and stays zero.
#[inline(always)]
fn pack<E: Unit, T>(
    shared: &Shared<'_>,
    task: &Task,
    q: &[E],
    rows: usize,
    packed: &mut [T],
    write: impl Fn(&[E], &mut [T]),
) {
    let (width, padded) = (shared.geometry.width_k(), shared.padded);
    let split = key_widths(shared.geometry.row())[0];
    for (row, out) in packed.chunks_exact_mut(padded.q_stride()).take(rows).enumerate() {
        let Some((_, place)) = shared.place(task.sequence, &task.heads, &task.queries, row) else {
            continue;
        };
        let (nope, rope) = q[place * width..][..width].split_at(split);
        write(nope, out);
        write(rope, &mut out[padded.key[0]..]);
    }
}

/// Elements of a key that come from the first part of a cache row, and from the second.
pub(crate) fn key_widths(row: Row) -> [usize; 2] {
    match row {
        Row::Separate { d_k, .. } => [d_k, 0],
        Row::Tied { n, r, .. } => [n, r],
    }
}

/// `count` positions from `first` on in both parts of the cache.
#[inline(always)]
pub(crate) fn locate<'a, E: Unit>(
    shared: &Shared<'a>,
    sequence: usize,
    first: usize,
    count: usize,
    offsets: &'a mut [Box<[usize]>; 2],
) -> [Located<'a, E>; 2] {
    let steps = shared.steps;
    let pages = &steps.page_ids[steps.spans[sequence].page_start..];
    let [one, two] = offsets;
    let locate = |part, offsets| Located::new(part, pages, steps.page_size, first, offsets);
    [
        locate(shared.cache.first(), &mut one[..count]),
        locate(shared.cache.second(), &mut two[..count]),
    ]
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

/// One head's keys of some positions, as their two pieces, and its values.
#[inline(always)]
pub(crate) fn strips<'a, E: Unit>(
    row: Row,
    [first, second]: [Located<'a, E>; 2],
    head: usize,
) -> ([Strip<'a, E>; 2], Strip<'a, E>) {
    let [one, two] = key_widths(row);
    let values = match row {
        Row::Separate { d_v, .. } => second.strip(head, d_v),
        Row::Tied { s, .. } => first.strip(head, s),
    };
    // Where keys are separate the second piece is empty; the rope key has one head.
    ([first.strip(head, one), second.strip(0, two)], values)
}

/// Work that the weights of a block's row are, beside products.
const WEIGHING: usize = 8;

/// Up to [`BLOCK`] positions, for all heads of a task.
struct Block<'a, E> {
    shared: &'a Shared<'a>,
    task: &'a Task,
    positions: [Located<'a, E>; 2],
    /// The positions after these, as far as they are known.
    next: [Located<'a, E>; 2],
    /// Leading positions that all queries see.
    clear: usize,
    /// What each query sees, if not all see all.
    sees: &'a [u64],
}

/// A task's queries, and room for what a block makes of them; see [`Scratch`].
struct Work<'a> {
    q: &'a Buffer,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pairs: Option<Pairs>,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    prepared: &'a mut Prepared,
    scores: &'a mut [f32],
    #[cfg(feature = "faer")]
    wide: &'a mut [f32],
    lines: &'a mut Lines,
}

impl<'a, E: Unit> Block<'a, E> {
    /// Adds the block to the sums of one head's rows.
    #[inline(always)]
    fn attend<L: Lanes>(&self, lanes: L, head: usize, work: &mut Work<'_>, sums: &mut [f32]) {
        let padded = self.shared.padded;
        let rows = self.task.queries.len() * self.shared.geometry.group();
        let head_rows = self.shared.head_rows(self.task.queries.len());
        let first_query = head * head_rows * padded.q_stride();
        let stride = padded.sums_stride();
        let sums = &mut sums[head * head_rows * stride..][..rows * stride];
        let row = self.shared.geometry.row();
        let (keys, values) = strips(row, self.positions, self.task.heads.start + head);
        let next = work.lines.of(self.next_reads(head));
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Some(pairs) = work.pairs
            && let [Some(nope), Some(rope), Some(bf16_values)] =
                [keys[0], keys[1], values].map(Strip::as_bf16)
        {
            let ahead = &mut Ahead::new(next, self.work::<L>(rows));
            let q = &work.q.as_slice()[first_query..];
            let q = Matrix { cells: q, stride: padded.q_stride() };
            let keys = [(nope, 0), (rope, padded.key[0])];
            // SAFETY: `pairs` proves the features.
            unsafe { pairs.scores(q, rows, keys, work.scores, ahead, work.prepared) }
            let p = self.weigh(lanes, rows, values.len(), work.scores, sums, ahead);
            if !self.add_seen(lanes, p, values, sums) {
                // SAFETY: as above.
                unsafe { pairs.round(rows, work.scores) }
                let p = &*work.scores;
                // SAFETY: as above.
                unsafe {
                    pairs.accumulate(p, rows, bf16_values, sums, stride, ahead, work.prepared);
                }
            }
            return;
        }
        let q = Matrix { cells: &work.q.as_slice()[first_query..], stride: padded.q_stride() };
        #[cfg(feature = "faer")]
        if rows >= L::DENSE_ROWS {
            let ahead = &mut Ahead::new(next, rows * WEIGHING);
            let wide = dense::Wide::new(lanes, row, keys, values, work.wide);
            wide.scores(q, rows, work.scores);
            let p = self.weigh(lanes, rows, values.len(), work.scores, sums, ahead);
            if !self.add_seen(lanes, p, values, sums) {
                wide.accumulate(p, rows, sums, stride);
            }
            return;
        }
        let ahead = &mut Ahead::new(next, self.work::<L>(rows));
        let keys = [(keys[0], padded.key[0]), (keys[1], padded.key[1])];
        scores(lanes, q, rows, keys, work.scores, BLOCK, ahead);
        let p = self.weigh(lanes, rows, values.len(), work.scores, sums, ahead);
        if !self.add_seen(lanes, p, values, sums) {
            accumulate(lanes, p, rows, values, sums, stride, ahead);
        }
    }

    /// How much work the block is for one head's rows: a unit is the product of one position, so many elements of it as are
    /// loaded together, and four rows.
    #[inline(always)]
    fn work<L: Lanes>(&self, rows: usize) -> usize {
        let padded = self.shared.padded;
        let units = (padded.q_stride() + padded.value) / L::UNIT;
        self.positions[0].len() * rows.div_ceil(4) * units + rows * WEIGHING
    }

    /// Turns scores into probabilities, which `m` and `l` of the sums then hold, and `o` is scaled
    /// for. Meanwhile what is due is asked for.
    #[inline(always)]
    fn weigh<'s, L: Lanes>(
        &self,
        lanes: L,
        rows: usize,
        count: usize,
        scores: &'s mut [f32],
        sums: &mut [f32],
        ahead: &mut Ahead<'_>,
    ) -> Matrix<'s> {
        self.hide(count, rows, scores);
        let (padded_count, scale) = (count.next_multiple_of(16), self.shared.scale_log2);
        let stride = self.shared.padded.sums_stride();
        let rows = sums.chunks_exact_mut(stride).zip(scores.chunks_exact_mut(BLOCK));
        for (sums, scores) in rows {
            ahead.ask(lanes, WEIGHING);
            online(sums).push(lanes, &mut scores[..padded_count], scale);
        }
        Matrix { cells: scores, stride: BLOCK }
    }

    /// Where values that some rows do not see are not finite, adds to each row what it sees, and
    /// answers true: 0 times infinity is NaN, so they must not meet.
    #[inline(always)]
    fn add_seen<L: Lanes>(
        &self,
        lanes: L,
        p: Matrix<'_>,
        values: Strip<'_, E>,
        sums: &mut [f32],
    ) -> bool {
        if self.clear == values.len() || finite(values.after(self.clear)) {
            return false;
        }
        let group = self.shared.geometry.group();
        let stride = self.shared.padded.sums_stride();
        for (row, sums) in sums.chunks_exact_mut(stride).enumerate() {
            let p = &p.cells[row * BLOCK..];
            accumulate_seen(lanes, p, self.sees[row / group], values, online(sums).o);
        }
        true
    }

    /// What the next head reads, or the first of the next block: keys and values, or the rope keys
    /// of a new block and states.
    #[inline(always)]
    fn next_reads(&self, head: usize) -> [Strip<'a, E>; 2] {
        let (row, heads) = (self.shared.geometry.row(), &self.task.heads);
        let last = head + 1 == heads.len();
        let (positions, next) = match last {
            true => (self.next, heads.start),
            false => (self.positions, heads.start + head + 1),
        };
        let ([keys, rope], values) = strips(row, positions, next);
        match row {
            Row::Separate { .. } => [keys, values],
            Row::Tied { .. } if last => [rope, values],
            Row::Tied { .. } => [rope.none(), values],
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
