//! Tasks on the matrix unit: bf16 caches, rows in tiles of sixteen.
//!
//! ```text
//! S^T [positions, rows] = K Q^T     K as it lies in the cache, Q^T packed once per task
//! P   [rows, positions]             online softmax down the columns of S^T, a row to a lane
//! O  += P V                         V packed once per block and head, for all rows, or as it lies
//! ```
//!
//! Scores come out transposed because a key row of the cache is a tile row as it lies, while the
//! other operand of `tdpbf16ps` must be in pairs. Softmax likes that: with a query row to a lane,
//! its maximum and sum take no step across lanes. What it costs is a transposition of P on the way
//! to bf16, 16 by 16 words at a time.

use crate::ahead::{Ahead, Lines};
use crate::amx::{Amx, Asked, DEPTH, Height, ROWS, SPREAD, Tile, Tiles, values_1x4};
use crate::attend::{Shared, online};
use crate::buffer::Buffer;
use crate::columns::{Columns, STRETCH, Seen, WEIGHING};
use crate::few::{self, WIDEST, by_rows, by_units};
use crate::keys::Keys;
use crate::lanes::{Avx512, Job, Lanes};
use crate::pack::{COLUMN_TILES, COLUMNS, load, pack_values, store, transpose};
use crate::plan::{Padded, Scratch, UNIT, with_capacity};
use crate::product::{InPlace, Product};
use crate::rows::finite;
use crate::schedule::{BLOCK, Bounds, MATRIX_BLOCK, Task};
use crate::strip::{Located, Strip};
use crate::task::{clear, key_widths, locate, see, strips};
use grouped_attention::{EngineError, Row};
use half::bf16;
use std::arch::x86_64::*;

/// Tiles of 32 positions in a block.
pub(crate) const STEPS: usize = MATRIX_BLOCK / DEPTH;
/// Words of 64 positions in a block.
const WORDS: usize = MATRIX_BLOCK / BLOCK;

impl Shared<'_> {
    /// True if tasks of so many queries run on the matrix unit. Parts of one result must agree, so
    /// nothing but the problem, its pages and the queries may decide it.
    pub(crate) fn on_matrix(&self, queries: usize) -> bool {
        self.steps.row_align > 1 && queries * self.geometry.group() >= self.matrix_rows()
    }

    /// Rows of a cached head from which the matrix unit is faster than AVX-512. Tied keys are values, so it has twice the
    /// products for an element of the cache; where values must be packed it does more for rows of padding.
    ///
    /// PERF: two threads of a Xeon, d 128, L 8192, `q_len` 1, AVX-512 and here, medians of three rounds, us. GTA, one row: B 1 741,
    /// 696, B 8 5888, 5385; two: 745, 703, 5897, 5365. GQA, two rows: 1158, 1207, 8980, 9409; four: 1164, 1200, 9226, 9384;
    /// eight: 1431, 1276, 11311, 9696. From the caches, one thread, 512 and 4096 tokens: two rows 71, 645 and 64, 682; four 91, 742
    /// and 66, 685, so that these lose there what decoding gains, which reads memory. Packed, one thread, 4 rows, best of 40 calls on each of three processors: GTA 2016, 1876,
    /// 2839 and 1782, 1744, 1792; GQA 2660, 2623, 2624 and 2760, 2593, 2809.
    fn matrix_rows(&self) -> usize {
        match (self.geometry.row(), self.values_lie_in_tiles()) {
            (Row::Tied { .. }, true) => 1,
            (Row::Tied { .. }, false) => 4,
            (Row::Separate { .. }, true) => 5,
            (Row::Separate { .. }, false) => 8,
        }
    }

    /// True if whole blocks of values lie as tiles do. In batch-invariant mode they are packed all the same, since
    /// pages decide how they lie, and the order of sums follows that.
    fn values_lie_in_tiles(&self) -> bool {
        !self.steps.problem.is_batch_invariant()
            && self.steps.page_size.is_multiple_of(DEPTH)
            && self.geometry.width_v().is_multiple_of(COLUMNS)
    }
}

/// How what is asked for is shared out among the scores, the weights and the values of one tile of rows.
///
/// PERF: two threads of a Xeon, B 8, L 8192, medians of three rounds of 5 calls, us, (8, 8, 48) / (16, 16, 32) / (20, 12, 32) / (24, 8, 32):
/// GTA 5510 / 5685 / 5653 / 5497, at `q_len` 4 6595 / 6323 / 6343 / 6472; MLA with 16 heads 3695 / 3637 / 3255 / 3564; GLA-2
/// with 16 heads 3380 / 3428 / 3373 / 3354. Nothing while weighing 4 to 15 % more.
const SHARES: [usize; 3] = [20, 12, 32];

/// What one thread needs for a task on the matrix unit.
#[derive(Debug)]
pub(crate) struct MatrixScratch {
    /// Queries in pairs, `[row tiles, depth]`.
    queries: Vec<Tile<u32>>,
    /// Scores of two row tiles, `[2, MATRIX_BLOCK, 16]`, or, dense, of one of fewer rows.
    scores: Buffer,
    /// Probabilities of one head, `[row tiles, STEPS]` tiles of `[row, position]`, or, where values
    /// are multiplied as they lie, `[STEPS, SPREAD]`; behind a tile of zeros.
    probabilities: Vec<Tile<u32>>,
    /// Some columns of one head's values in pairs of positions, `[STEPS, COLUMN_TILES]`.
    values: Vec<Tile<u32>>,
    /// Keys of one head where they do not lie as tiles need them, `[MATRIX_BLOCK, q_stride]`.
    keys: Buffer,
    /// Maxima and sums of each row tile.
    columns: Vec<Columns>,
    /// What is asked for meanwhile.
    lines: Lines,
}

impl MatrixScratch {
    pub(crate) fn new(padded: Padded, bounds: &Bounds) -> Result<MatrixScratch, EngineError> {
        let row_tiles = bounds.rows.div_ceil(ROWS);
        let depth = padded.q_stride() / DEPTH;
        let probabilities = STEPS * row_tiles.max(SPREAD);
        Ok(MatrixScratch {
            queries: filled(Tile([[0; 16]; ROWS]), row_tiles * depth)?,
            scores: Buffer::zeroed::<f32>(2 * MATRIX_BLOCK * ROWS)?,
            probabilities: filled(Tile([[0; 16]; ROWS]), 1 + probabilities)?,
            values: filled(Tile([[0; 16]; ROWS]), STEPS * COLUMN_TILES)?,
            keys: Buffer::zeroed::<bf16>(MATRIX_BLOCK * padded.q_stride())?,
            columns: filled(Columns::EMPTY, row_tiles)?,
            lines: Lines::new(padded)?,
        })
    }
}

fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, EngineError> {
    let mut items = with_capacity(count)?;
    items.resize(count, value);
    Ok(items)
}

/// A task, to be run on the matrix unit.
#[derive(Clone, Copy)]
pub(crate) struct MatrixRun<'a> {
    pub(crate) shared: &'a Shared<'a>,
    /// Queries `[total_q, h_q, width_k]`.
    pub(crate) q: &'a [bf16],
    pub(crate) task: &'a Task,
}

/// Normalises and writes a task that is a whole result.
struct Finish<'a, 'b> {
    shared: &'a Shared<'a>,
    task: &'a Task,
    sums: &'b mut [f32],
}

impl Job for Finish<'_, '_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Task { sequence, heads, queries, .. } = self.task;
        // SAFETY: no other task or join writes this sequence's heads and queries.
        unsafe { self.shared.finish(lanes, *sequence, heads, queries, 0, self.sums) }
    }
}

impl MatrixRun<'_> {
    pub(crate) fn run(self, lanes: Avx512, amx: Amx, scratch: &mut Scratch) {
        let Self { shared, task, .. } = self;
        let stride = shared.padded.sums_stride();
        let rows = task.heads.len() * shared.head_rows(task.queries.len());
        let Scratch { sums, offsets, sees, matrix, .. } = scratch;
        let matrix = matrix.as_mut().expect("plans for the matrix unit have its scratch");
        let sums = match task.slot {
            None => &mut sums.as_mut_slice()[..rows * stride],
            // SAFETY: the schedule gives every part rows of its own, and joins come later.
            Some(slot) => unsafe { shared.parts.take(slot * stride, rows * stride) },
        };
        let tiles = amx.tiles();
        let one_tile = shared.head_rows(task.queries.len()) == ROWS;
        let in_place = (one_tile && shared.values_lie_in_tiles()).then(|| self.height());
        // SAFETY: `amx` proves the features.
        let nan = unsafe { self.attend(lanes, in_place, &tiles, matrix, offsets, sees, sums) };
        // Where values lie in the cache zeros meet the neighbours of columns, and 0 times infinity is
        // NaN. Whatever else is NaN is so again.
        if in_place.is_some() && nan {
            // SAFETY: as above.
            unsafe { self.attend(lanes, None, &tiles, matrix, offsets, sees, sums) };
        }
        drop(tiles);
        if task.slot.is_none() {
            lanes.vectorize(Finish { shared, task, sums });
        }
    }

    /// How many rows of a head's one tile count. Sixteen where sums of fewer would not fit the room in which they are
    /// [put in order](by_rows).
    fn height(self) -> Height {
        let Self { shared, task, .. } = self;
        match shared.padded.value {
            ..=WIDEST => Height::of(task.queries.len() * shared.geometry.group()),
            _ => Height::Sixteen,
        }
    }

    /// With values as they lie in the cache, `in_place`, where one tile of rows is all, of which so many count. Answers
    /// whether any of their numbers is NaN then.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn attend(
        self,
        lanes: Avx512,
        in_place: Option<Height>,
        tiles: &Tiles,
        scratch: &mut MatrixScratch,
        offsets: &mut [Box<[usize]>; 2],
        sees: &mut [u64],
        sums: &mut [f32],
    ) -> bool {
        let Self { shared, task, .. } = self;
        let stride = shared.padded.sums_stride();
        for sums in sums.chunks_exact_mut(ROWS * stride) {
            let numbers = match in_place {
                Some(height) if height.is_few() => few::numbers(height, sums.len()),
                _ => sums.len(),
            };
            sums[..numbers].fill(0.0);
        }
        scratch.columns[..sums.len() / (ROWS * stride)].fill(Columns::EMPTY);
        self.pack_queries(&mut scratch.queries);
        let mut first = task.positions.start;
        while first < task.positions.end {
            let mut count = (task.positions.end - first).min(MATRIX_BLOCK);
            if in_place.is_some() && count > BLOCK {
                // What follows is packed, and few.
                count -= count % BLOCK;
            }
            let clear = clear(shared, task, first, count);
            if clear < count {
                for (word, sees) in
                    sees.chunks_exact_mut(task.queries.len()).take(WORDS).enumerate()
                {
                    let start = (word * BLOCK).min(count);
                    see(shared, task, first + start, (count - start).min(BLOCK), sees);
                }
            }
            // The next block too, to ask for its rows in time.
            let both = (task.positions.end - first).min(2 * MATRIX_BLOCK);
            let located = locate(shared, task.sequence, first, both, offsets);
            let [(a, next_a), (b, next_b)] = located.map(|part| part.split_at(count));
            let block = Block {
                run: self,
                lanes,
                tiles,
                positions: [a, b],
                next: [next_a, next_b],
                sees,
                clear,
                count,
                fresh: first == task.positions.start,
                in_place,
            };
            for head in 0..task.heads.len() {
                block.attend(head, scratch, sums);
            }
            first += count;
        }
        let (room, mut nan) = (scratch.scores.as_mut_slice(), false);
        for (sums, columns) in sums.chunks_exact_mut(ROWS * stride).zip(&scratch.columns) {
            if let Some(height) = in_place.filter(|height| height.is_few()) {
                by_rows(height, sums, room);
            }
            nan |= in_place.is_some_and(|height| any_nan(&sums[..height.rows() * stride]));
            for (row, sums) in sums.chunks_exact_mut(stride).enumerate() {
                let online = online(sums);
                (*online.m, *online.l) = (columns.m[row], columns.l[row]);
            }
        }
        nan
    }

    /// Packs the task's queries in pairs of elements: a tile for 16 rows and 32 elements, row i of
    /// which holds elements 2i and 2i + 1 of every query.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn pack_queries(self, out: &mut [Tile<u32>]) {
        let Self { shared, q, task } = self;
        let width = shared.geometry.width_k();
        let widths = key_widths(shared.geometry.row());
        let head_rows = shared.head_rows(task.queries.len());
        let mut out = out.iter_mut();
        for row in (0..head_rows * task.heads.len()).step_by(ROWS) {
            let places: [_; ROWS] = std::array::from_fn(|i| {
                shared.place(task.sequence, &task.heads, &task.queries, row + i)
            });
            for (piece, skip) in widths.into_iter().zip([0, widths[0]]) {
                for element in (0..piece).step_by(DEPTH) {
                    let mut words = [_mm512_setzero_si512(); ROWS];
                    for (words, place) in words.iter_mut().zip(places) {
                        if let Some((_, place)) = place {
                            let query = &q[place * width..][..width];
                            *words = load(&query[skip + element..skip + piece]);
                        }
                    }
                    let tile = out.next().expect("tiles for every row and depth");
                    for (row, words) in tile.0.iter_mut().zip(transpose(words)) {
                        store(row, words);
                    }
                }
            }
        }
    }
}

/// Up to [`MATRIX_BLOCK`] positions, for all heads of a task.
struct Block<'a> {
    run: MatrixRun<'a>,
    lanes: Avx512,
    tiles: &'a Tiles,
    positions: [Located<'a, bf16>; 2],
    /// The positions after these, as far as they are known.
    next: [Located<'a, bf16>; 2],
    /// What queries see, `[words, queries]`, if not all see all of it.
    sees: &'a [u64],
    /// Leading positions that all queries see.
    clear: usize,
    count: usize,
    /// Whether it is the task's first, for which nobody has asked.
    fresh: bool,
    /// Whether values may be multiplied as they lie: one tile of rows, of which so many count.
    in_place: Option<Height>,
}

impl Block<'_> {
    /// Adds the block to the sums of one head's rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn attend(&self, head: usize, scratch: &mut MatrixScratch, sums: &mut [f32]) {
        let MatrixRun { shared, task, .. } = self.run;
        let MatrixScratch { queries, scores, probabilities, values, keys, columns, lines } =
            scratch;
        let scores = scores.as_mut_slice().as_chunks_mut().0;
        let head_strips = strips(shared.geometry.row(), self.positions, task.heads.start + head);
        let (strips, value_strip) = head_strips;
        let row_tiles = shared.head_rows(task.queries.len()) / ROWS;
        let depth = shared.padded.q_stride() / DEPTH;
        let stride = shared.padded.sums_stride();
        let steps = self.count.div_ceil(DEPTH);
        let queries = &queries[head * row_tiles * depth..][..row_tiles * depth];
        let columns = &mut columns[head * row_tiles..][..row_tiles];
        let sums = &mut sums[head * row_tiles * ROWS * stride..][..row_tiles * ROWS * stride];
        // 0 times infinity is NaN: values that some rows do not see must not meet them.
        let keep = self.clear < self.count && !finite(value_strip.after(self.clear));
        let keys = Keys::new(strips, shared.steps.page_size, shared.padded, keys.as_mut_slice());
        // With more rows so little of the time is spent here that it gains nothing.
        let keep_awake = || {
            if self.in_place.is_some() {
                self.tiles.keep_awake();
            }
        };
        keep_awake();
        let pairs = lines.of(self.ahead(head));
        keep_awake();
        let fresh = (self.fresh && head == 0).then_some(strips);
        if !keep && let Some(values) = self.in_place(value_strip) {
            let p = &mut probabilities[..1 + steps * SPREAD];
            let scores = &mut scores[..MATRIX_BLOCK];
            let [columns] = columns else {
                unreachable!("values in place are of one tile of rows")
            };
            return self.attend_few(
                (keys, fresh, values),
                pairs,
                queries,
                (scores, p),
                columns,
                sums,
            );
        }
        let probabilities = &mut probabilities[1..];
        let few = self.in_place.filter(|height| height.is_few());
        if let Some(height) = few {
            by_rows(height, sums, scores.as_flattened_mut());
        }
        let lanes = self.lanes;
        let mut ahead = Ahead::new(pairs, self.work(row_tiles, depth));
        for (pair, columns) in columns.chunks_mut(2).enumerate() {
            let queries = &queries[2 * pair * depth..];
            let fresh = fresh.filter(|_| pair == 0);
            let asked = |products| ahead.with_products(lanes, products, products);
            match columns {
                [_] => keys.score_one(
                    (lanes, self.tiles),
                    Height::Sixteen,
                    queries,
                    scores,
                    fresh,
                    asked,
                ),
                _ => keys.score_two((lanes, self.tiles), queries, scores, fresh, asked),
            }
            for (i, columns) in columns.iter_mut().enumerate() {
                let tile = 2 * pair + i;
                let scores = &mut scores[i * MATRIX_BLOCK..][..MATRIX_BLOCK];
                let masks = self.masks(tile);
                let seen = Seen { clear: self.clear, masks: &masks[..self.count] };
                let sums = &mut sums[tile * ROWS * stride..][..ROWS * stride];
                let p = (false, &mut probabilities[tile * STEPS..][..steps]);
                let scale = shared.scale_log2;
                columns.push(Height::Sixteen, scores, seen, scale, keep, p, sums, |_| {
                    ahead.ask(lanes, WEIGHING);
                });
                if keep {
                    accumulate_seen(scores, seen.masks, value_strip, sums);
                }
            }
        }
        let values = &mut values[..steps * COLUMN_TILES];
        let columns = if keep { 0 } else { shared.padded.value };
        for column in (0..columns).step_by(COLUMNS) {
            pack_values(value_strip, column, values, (self.tiles, lanes, &mut ahead));
            let product = Product { tiles: self.tiles, probabilities, values, column };
            for (row_tile, sums) in sums.chunks_exact_mut(ROWS * stride).enumerate() {
                product.add(row_tile, sums, (lanes, &mut ahead));
            }
        }
        if let Some(height) = few {
            by_units(height, sums, scores.as_flattened_mut());
        }
    }

    /// As [`attend`](Self::attend), for one tile of rows, with values as they lie in the cache. Probabilities go behind
    /// the first tile of `p`, whose zeros stand before them.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn attend_few(
        &self,
        (keys, fresh, values): (Keys<'_>, Option<[Strip<'_, bf16>; 2]>, InPlace<'_>),
        pairs: &[usize],
        queries: &[Tile<u32>],
        (scores, p): (&mut [[f32; ROWS]], &mut [Tile<u32>]),
        columns: &mut Columns,
        sums: &mut [f32],
    ) {
        let MatrixRun { shared, .. } = self.run;
        let height = values.height();
        let (lanes, steps, rows) = (self.lanes, self.count / DEPTH, height.rows());
        let [of_scores, of_weights, of_values] = SHARES;
        let mut ahead = Ahead::new(pairs, SHARES.iter().sum::<usize>() * steps);
        keys.score_one((lanes, self.tiles), height, queries, scores, fresh, |products| {
            ahead.with_products(lanes, of_scores * (BLOCK / DEPTH), products)
        });
        let masks = self.masks(0);
        let seen = Seen { clear: self.clear, masks: &masks[..self.count] };
        let scale = shared.scale_log2;
        // No divisions in what is called so often.
        let stretches = DEPTH * rows / ROWS / STRETCH;
        let (of_stretch, mut sleepy) = (of_weights / stretches, 0);
        let out = (true, &mut p[1..]);
        columns.push(height, scores, seen, scale, false, out, sums, |stretch| {
            if stretch == sleepy {
                self.tiles.keep_awake();
                sleepy += stretches * (BLOCK / DEPTH);
            }
            ahead.ask(lanes, of_stretch);
        });
        values.add(self.tiles, p, sums, (lanes, &mut ahead, of_values * steps));
    }

    /// Values as they lie in the cache, where tiles can be loaded from there and one tile of rows would
    /// have to bear the cost of packing alone.
    ///
    /// PERF: one thread of a Xeon, L 8192, best of 50 calls in three rounds, packed and as they lie, us: MLA
    /// with 16 heads 1159, 1012; GLA-2 with 16 heads 1176, 1065; GQA at `q_len` 4 3889, 3397; GTA at
    /// `q_len` 4 2652, 2248. With two tiles of rows packing is cheaper: GLA-2 with 16 heads, `q_len` 4,
    /// 1466, 1563; GQA, `q_len` 8, 4375, 4684.
    fn in_place<'s>(&self, strip: Strip<'s, bf16>) -> Option<InPlace<'s>> {
        let height = self.in_place.filter(|_| self.count.is_multiple_of(DEPTH))?;
        Some(InPlace::new(strip, height))
    }

    /// What attending is, for so many tiles of rows with keys of so many tiles, in products and what takes as long.
    fn work(&self, row_tiles: usize, depth: usize) -> usize {
        let steps = self.count.div_ceil(DEPTH);
        let parts = self.run.shared.padded.value.div_ceil(COLUMNS);
        let products = row_tiles * steps * (2 * depth + parts * COLUMN_TILES);
        // A pair of rows of values takes as long to pack as a product.
        products + steps * DEPTH / 2 * parts + WEIGHING * DEPTH / STRETCH * row_tiles * steps
    }

    /// What the next head reads, or the first of the next block.
    fn next(&self, head: usize) -> ([Strip<'_, bf16>; 2], Strip<'_, bf16>) {
        let MatrixRun { shared, task, .. } = self.run;
        let (heads, last) = (&task.heads, head + 1 == task.heads.len());
        let (positions, next) = if last { (self.next, 0) } else { (self.positions, head + 1) };
        strips(shared.geometry.row(), positions, heads.start + next)
    }

    /// What is read next: by the next head, or by the first of the next block, keys and values, or the
    /// rope keys of a new block and states; and a task's first values, which nobody could ask for.
    fn ahead(&self, head: usize) -> [Strip<'_, bf16>; 3] {
        let MatrixRun { shared, task, .. } = self.run;
        let (row, heads) = (shared.geometry.row(), task.heads.start);
        let last = head + 1 == task.heads.len();
        let ([keys, rope], values) = self.next(head);
        match row {
            Row::Separate { .. } if self.fresh && head == 0 => {
                [strips(row, self.positions, heads).1, keys, values]
            }
            Row::Separate { .. } => [keys, values, values.none()],
            Row::Tied { .. } if last => [rope, values, values.none()],
            Row::Tied { .. } => [values, values.none(), values.none()],
        }
    }

    /// Which rows of a row tile see each position, a row to a bit.
    fn masks(&self, tile: usize) -> [u16; MATRIX_BLOCK] {
        let MatrixRun { shared, task, .. } = self.run;
        let queries = task.queries.len();
        let mut masks = [u16::MAX; MATRIX_BLOCK];
        for (j, mask) in masks[..self.count].iter_mut().enumerate().skip(self.clear) {
            *mask = 0;
            for lane in 0..ROWS {
                let t = (tile * ROWS + lane) / shared.geometry.group();
                // Rows of padding see nothing.
                if t < queries {
                    let bit = self.sees[j / BLOCK * queries + t] >> (j % BLOCK) & 1;
                    *mask |= (bit as u16) << lane;
                }
            }
        }
        masks
    }
}

/// Whether any number is NaN.
#[target_feature(enable = "avx512f")]
fn any_nan(sums: &[f32]) -> bool {
    let (vectors, []) = sums.as_chunks() else { unreachable!("sums are whole units") };
    let mut nan = 0;
    for vector in vectors {
        let x = load_f32(vector);
        nan |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    }
    nan != 0
}

/// Sixteen numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(x: &[f32; ROWS]) -> __m512 {
    // SAFETY: the array is as long as the load.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// Adds probabilities times values for what each of sixteen rows sees, and touches nothing else.
fn accumulate_seen(p: &[[f32; ROWS]], masks: &[u16], values: Strip<'_, bf16>, sums: &mut [f32]) {
    let stride = sums.len() / ROWS;
    for (row, sums) in sums.chunks_exact_mut(stride).enumerate() {
        for (j, _) in masks.iter().enumerate().filter(|(_, mask)| *mask >> row & 1 == 1) {
            let p = p[j][row];
            for (unit, v) in sums.chunks_exact_mut(UNIT).zip(values.row(j).chunks(UNIT)) {
                let (even, odd) = unit.split_at_mut(UNIT / 2);
                for (i, v) in v.iter().enumerate() {
                    let o = if i % 2 == 0 { &mut even[i / 2] } else { &mut odd[i / 2] };
                    *o = p.mul_add(v.to_f32(), *o);
                }
            }
        }
    }
}

/// Multiplies tiles that stay in the first-level cache, `rounds` times; answers the operations.
pub(crate) fn multiply(amx: Amx, rounds: usize) -> f64 {
    // Gaussian-like bits: zeros would draw less power and run faster than any real data.
    let mut word = 0x9e37_79b9_u32;
    let mut random = || {
        word ^= word << 13;
        word ^= word >> 17;
        word ^= word << 5;
        // Two bf16 of either sign with exponents around 0.
        word & 0x80ff_80ff | 0x3f00_3f00
    };
    let mut tile = || Tile(std::array::from_fn(|_| std::array::from_fn(|_| random())));
    let p: [Tile<u32>; STEPS] = std::array::from_fn(|_| tile());
    let v: [[Tile<u32>; COLUMN_TILES]; STEPS] =
        std::array::from_fn(|_| std::array::from_fn(|_| tile()));
    let mut sums = [[0.0_f32; COLUMNS]; ROWS];
    let tiles = amx.tiles();
    let (p, v): (_, *const Tile<u32>) = (p.as_ptr(), v.as_ptr().cast());
    let (out, stride) = (sums.as_mut_ptr().cast(), COLUMNS * size_of::<f32>());
    for _ in 0..rounds {
        // SAFETY: the arrays are as long as the tiles that are read and written.
        unsafe { values_1x4(&tiles, p, v, STEPS, out, stride, Asked::NOTHING) }
    }
    std::hint::black_box(&sums);
    (rounds * STEPS * COLUMN_TILES * 2 * ROWS * ROWS * DEPTH) as f64
}
