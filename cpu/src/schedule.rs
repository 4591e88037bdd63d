//! Cutting a step into tasks.
//!
//! A task is one sequence, a run of its cached heads, a run of its queries, and a range of its
//! positions. Every task reads its range of the cache once, whatever the number of queries: all
//! query heads of a cached head and all query tokens of the task are the rows of one tile. Ranges
//! of one tile that different tasks cover are joined afterwards, in the order of the positions.
//!
//! The planner is a pure function of lengths and sizes: no thread, clock or address enters.

use crate::visibility::Visibility;
use grouped_attention::{Extent, Span};
use std::ops::Range;

/// What the planner knows of problem, kernel and machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Cached heads.
    pub(crate) heads: usize,
    /// Query heads of one cached head.
    pub(crate) group: usize,
    /// Width of a key.
    pub(crate) width_k: usize,
    /// Width of a value.
    pub(crate) width_v: usize,
    /// Bytes that one token takes in the cache.
    pub(crate) token_bytes: usize,
    /// Arithmetic operations that a thread does while a byte arrives from memory.
    pub(crate) flops_per_byte: usize,
    /// The rows of a head are padded to a multiple of this.
    pub(crate) row_align: usize,
    /// Threads that will run the tasks.
    pub(crate) threads: usize,
    /// True if sums must be cut by the sequence's own length alone.
    pub(crate) batch_invariant: bool,
}

/// Positions that are scored together. Ranges begin at multiples of it, so that how a block is cut
/// depends neither on pages nor on neighbours.
pub(crate) const BLOCK: usize = 64;

/// As [`BLOCK`], for the matrix unit: sums pass through its registers once a block, and their way
/// to the cache and back must not cost more than the products in between.
pub(crate) const MATRIX_BLOCK: usize = 4 * BLOCK;

/// Elements of `o` that a task keeps, but for what [`FULL_ROWS`] has it keep: 256 KiB, an eighth of a common L2 cache. Queries take
/// as much or more, probabilities and two blocks of the cache as well.
///
/// PERF: two threads of a Xeon, L 8192, three rounds in turn, 2^18 / 2^17 / 2^16, us. The matrix kernel, B 8: MLA with 128
/// heads, `q_len` 4, 32323 / 30928 / 30627, 2 16290 / 16346 / 16458; GLA-2 with 128 heads, 4, 19095 / 18974 / 18733, B 1
/// 2528 / 2526 / 2465. GQA, 512 queries after 512 tokens 7479 / 7155 / 7023, AVX-512 25009 / 22341 / 22166; MLA with 16
/// heads, 128 queries after 896 tokens 2471 / 2276 / 2286, AVX-512 14611 / 13563 / 13597.
const MAX_STATE: usize = 1 << 16;

/// Rows of one head that a task takes before it splits the heads: enough to make a block of the
/// cache, once it is there, compute-bound on any kernel.
const FULL_ROWS: usize = 256;

/// Tasks per thread that a large step is cut into, so that a thread that is held up leaves its
/// share to the others.
const TASKS_PER_THREAD: usize = 4;

/// Fewest positions of a part.
const MIN_PART: usize = 4 * BLOCK;

/// A part's attending costs at least so many times what writing and joining its sums does.
///
/// PERF: `decode --sweep peers`, B 1, L 8192, two cores, TFLOP/s with 8 / 32 (which leaves one
/// sequence of 128 heads to one thread): MLA-128 q_len 1 1.09 / 0.70, 2 1.25 / 0.84, 4 1.61 / 0.94;
/// GLA-2 128 heads q_len 1 0.84 / 0.87, 2 1.14 / 0.71, 4 1.18 / 0.78.
const PART_WORTH: usize = 8;

/// A part weighs at least as much as a thread reads while another wakes up, in bytes.
///
/// PERF: `generate` (8 query heads on 2 latent heads of 64, up to 2000 tokens, two threads of a Zen 4), µs of
/// attention a token with 2^19 / without: 315 / 536.
const HANDOVER: usize = 1 << 19;

/// Most parts of a sequence in batch-invariant mode.
const MAX_INVARIANT_PARTS: usize = 16;

/// One unit of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    /// Index of the sequence.
    pub(crate) sequence: usize,
    /// Cached heads.
    pub(crate) heads: Range<usize>,
    /// Query tokens, local to the sequence.
    pub(crate) queries: Range<usize>,
    /// Positions of the cache.
    pub(crate) positions: Range<usize>,
    /// The first of the workspace's rows that its sums go to, or `None` where it is the whole
    /// result and goes straight to the output.
    pub(crate) slot: Option<usize>,
}

/// Parts that become one result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    /// Index of the sequence.
    pub(crate) sequence: usize,
    /// Cached heads.
    pub(crate) heads: Range<usize>,
    /// Query tokens, local to the sequence.
    pub(crate) queries: Range<usize>,
    /// The first of the workspace's rows that hold the parts, in the order of their positions.
    pub(crate) slot: usize,
    /// Number of parts.
    pub(crate) parts: usize,
}

/// The tasks of one step, and what must be joined when they are done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) tasks: Vec<Task>,
    pub(crate) joins: Vec<Join>,
}

/// Largest sizes of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) tasks: usize,
    pub(crate) joins: usize,
    /// Query tokens of one task.
    pub(crate) queries: usize,
    /// Rows of all heads of one task.
    pub(crate) rows: usize,
    /// Rows of all parts that are to be joined.
    pub(crate) slot_rows: usize,
}

impl Sizes {
    /// Rows that some queries take of one head, padding included.
    fn head_rows(&self, queries: usize) -> usize {
        queries.saturating_mul(self.group).next_multiple_of(self.row_align)
    }

    /// Query tokens that a task takes at most, and the heads it takes of so many.
    fn tile(&self) -> (usize, usize) {
        let rows = MAX_STATE.div_ceil(self.width_v);
        let all_heads = rows / (self.heads * self.group);
        let wanted = FULL_ROWS.div_ceil(self.group);
        // All heads of a token stand together in memory, so they are parted only where that
        // leaves a head fewer rows than it wants.
        if all_heads >= wanted {
            return (all_heads, self.heads);
        }
        let heads = (rows / (wanted * self.group)).clamp(1, self.heads);
        (wanted, heads)
    }

    /// Query tokens and heads of a task, for a sequence of `q_len` queries.
    fn tile_for(&self, q_len: usize) -> (usize, usize) {
        let (queries, heads) = self.tile();
        if q_len >= queries {
            return (queries, heads);
        }
        let rows = MAX_STATE.div_ceil(self.width_v);
        (queries, (rows / (q_len.max(1) * self.group)).clamp(1, self.heads))
    }

    /// Cost of one position for a task, in bytes of memory traffic: what it reads, and its
    /// arithmetic.
    fn weight(&self, heads: usize, queries: usize) -> usize {
        let flops = 2 * heads * self.group * queries * (self.width_k + self.width_v);
        (self.token_bytes * heads).div_ceil(self.heads) + flops / self.flops_per_byte
    }

    /// Fewest positions of a part of a tile, for joining to stay far cheaper than attending.
    fn min_part(&self, heads: usize, queries: usize) -> usize {
        // Every sum is written once and read once.
        let sums = heads * self.head_rows(queries) * self.width_v * 2 * size_of::<f32>();
        let worth = (PART_WORTH * sums).max(HANDOVER);
        (worth / self.weight(heads, queries)).max(MIN_PART)
    }

    /// The most that any schedule within an extent needs.
    pub(crate) fn bounds(&self, extent: &Extent) -> Bounds {
        // Capacities are the caller's numbers: what overflows is out of memory later.
        let (queries, _) = self.tile();
        let queries = queries.min(extent.max_q_len).max(1);
        let limit = MAX_STATE.div_ceil(self.width_v).max(queries * self.group);
        let rows = (queries * self.group * self.heads).min(limit);
        // Each head of a task may be padded.
        let rows = rows + self.heads * (self.row_align - 1);
        // A tile per started run of queries, times the runs of heads it may be parted into.
        let runs = extent.sequences.saturating_add(extent.total_q / queries);
        let tiles = runs.saturating_mul(self.heads);
        let (parts, slot_rows) = if self.batch_invariant {
            let parts = invariant_parts(extent.max_kv_len);
            // Every tile pads its heads.
            let all_rows = extent.total_q.saturating_mul(self.group * self.heads);
            let all_rows = all_rows.saturating_add(tiles.saturating_mul(self.row_align - 1));
            let slot_rows = if parts > 1 { all_rows.saturating_mul(parts) } else { 0 };
            (tiles.saturating_mul(parts), slot_rows)
        } else {
            // A tile of weight w in a step of weight W goes into at most 2 n w / W parts if into
            // more than one, and these sum to 2 n.
            let parts = 2 * TASKS_PER_THREAD * self.threads;
            (parts, if self.threads > 1 { parts * rows } else { 0 })
        };
        Bounds {
            tasks: tiles.saturating_add(parts),
            joins: tiles.min(parts),
            queries,
            rows,
            slot_rows,
        }
    }
}

/// Parts of each of some tiles that are alike: as few as give every thread as many, or, where that takes more tasks than a
/// large step has, that many. Every part is written and joined, and nobody asks for its first rows in time.
///
/// PERF: B 1, L 8192, two threads of a Xeon, two for each thread and one, medians of four rounds in turn, us: GQA 1167, 1155;
/// GTA at `q_len` 4 765, 735; MLA with 16 heads 421, 413, at 4 775, 720; GLA-2 with 128 heads at 4 2401, 2339. Four and two,
/// before: GQA 1526, 1480; MLA with 16 heads 700, 648; GLA-2 with 128 heads 1002, 960.
fn even_parts(tiles: usize, threads: usize) -> usize {
    let most = (TASKS_PER_THREAD * threads / tiles).max(1);
    (1..=most).find(|parts| (tiles * parts).is_multiple_of(threads)).unwrap_or(most)
}

/// Parts of a sequence in batch-invariant mode: a function of its length alone.
fn invariant_parts(kv_len: usize) -> usize {
    (kv_len / (4 * MIN_PART)).clamp(1, MAX_INVARIANT_PARTS)
}

/// Writes the schedule of a step. Allocates nothing that [`Sizes::bounds`] has made room for.
pub(crate) fn schedule(sizes: &Sizes, spans: &[Span], mask: &Visibility, out: &mut Schedule) {
    out.tasks.clear();
    out.joins.clear();
    let tiles =
        || spans.iter().enumerate().flat_map(move |(index, span)| tiles(sizes, index, span));
    let weight = |tile: &Tile| {
        let end = mask.visible_end(&spans[tile.sequence], &tile.queries);
        end.saturating_mul(sizes.weight(tile.heads.len(), tile.queries.len()))
    };
    let total = tiles().fold(0_usize, |sum, tile| sum.saturating_add(weight(&tile)));
    let alone = spans.iter().filter(|span| span.q_len > 0).count() == 1;
    let all_tiles = if alone { tiles().count() } else { 0 };
    let share = total.div_ceil(TASKS_PER_THREAD * sizes.threads).max(1);
    let mut next_slot = 0;
    for tile in tiles() {
        let span = &spans[tile.sequence];
        let end = mask.visible_end(span, &tile.queries);
        let length = if sizes.batch_invariant {
            // The visible end depends on the tile's queries; the cut may not.
            span.kv_len.div_ceil(invariant_parts(span.kv_len))
        } else if sizes.threads == 1 {
            end
        } else {
            let weight = weight(&tile);
            let parts = match alone {
                true => even_parts(all_tiles, sizes.threads),
                false => weight.div_ceil(share),
            };
            let shortest = sizes.min_part(tile.heads.len(), tile.queries.len());
            // As many equal parts as are long enough, and as many for each thread.
            // PERF: B 1, L 8192, two threads of a Xeon, five parts, which was as many as are long enough, and four,
            // us: GLA-2, 128 heads, q_len 4 3595, 3862 and 3068, 3189; MLA, 128 heads, q_len 2 3010, 3032 and 2486,
            // 2491.
            let parts = parts.min(end / shortest).max(1);
            let even = parts - if parts > sizes.threads { parts % sizes.threads } else { 0 };
            end.div_ceil(even)
        };
        let length = length.next_multiple_of(BLOCK).max(BLOCK);
        // A tile that sees nothing is a task too: it writes empty rows.
        let parts = end.div_ceil(length).max(1);
        let rows = tile.heads.len() * sizes.head_rows(tile.queries.len());
        let first_slot = next_slot;
        for part in 0..parts {
            let slot = (parts > 1).then_some(next_slot);
            next_slot += slot.map_or(0, |_| rows);
            out.tasks.push(Task {
                sequence: tile.sequence,
                heads: tile.heads.clone(),
                queries: tile.queries.clone(),
                positions: part * length..((part + 1) * length).min(end),
                slot,
            });
        }
        if parts > 1 {
            let Tile { sequence, heads, queries } = tile;
            out.joins.push(Join { sequence, heads, queries, slot: first_slot, parts });
        }
    }
}

/// The rows of one or more tasks: a run of heads and a run of queries.
struct Tile {
    sequence: usize,
    heads: Range<usize>,
    queries: Range<usize>,
}

fn tiles(sizes: &Sizes, sequence: usize, span: &Span) -> impl Iterator<Item = Tile> + use<> {
    let (queries, heads) = sizes.tile_for(span.q_len);
    let (q_len, all_heads) = (span.q_len, sizes.heads);
    (0..q_len).step_by(queries).flat_map(move |q| {
        (0..all_heads).step_by(heads).map(move |h| Tile {
            sequence,
            heads: h..(h + heads).min(all_heads),
            queries: q..(q + queries).min(q_len),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use grouped_attention::{Mask, MaskKind};
    use proptest::prelude::*;

    const GQA: Sizes = Sizes {
        heads: 8,
        group: 4,
        width_k: 128,
        width_v: 128,
        token_bytes: 4096,
        flops_per_byte: 16,
        row_align: 1,
        threads: 2,
        batch_invariant: false,
    };

    fn spans(lens: &[(usize, usize)]) -> Vec<Span> {
        let mut q_start = 0;
        let span = |&(q_len, kv_len): &(usize, usize)| {
            let span = Span { q_start, q_len, kv_len, page_start: 0 };
            q_start += q_len;
            span
        };
        lens.iter().map(span).collect()
    }

    fn planned(sizes: &Sizes, lens: &[(usize, usize)], mask: &Mask) -> Schedule {
        let (mut visibility, spans) = (Visibility::default(), spans(lens));
        visibility.write(mask, &spans);
        let mut out = Schedule::default();
        schedule(sizes, &spans, &visibility, &mut out);
        out
    }

    fn extent(lens: &[(usize, usize)]) -> Extent {
        let q_lens = lens.iter().map(|&(q_len, _)| q_len);
        Extent {
            sequences: lens.len(),
            total_q: q_lens.clone().sum(),
            max_q_len: q_lens.max().unwrap_or(0),
            max_kv_len: lens.iter().map(|&(_, kv_len)| kv_len).max().unwrap_or(0),
            writes: 0,
        }
    }

    #[test]
    fn one_long_sequence_uses_every_thread() {
        let sizes = Sizes { threads: 16, ..GQA };
        let schedule = planned(&sizes, &[(1, 32768)], &Mask::Causal);
        assert_eq!(schedule.joins.len(), 1);
        assert!(schedule.tasks.len() >= 16);
        let longest = schedule.tasks.iter().map(|task| task.positions.len()).max();
        assert!(longest <= Some(32768 / 16));
    }

    #[test]
    fn many_short_sequences_are_not_split() {
        let schedule = planned(&GQA, &[(1, 500); 300], &Mask::Causal);
        assert_eq!((schedule.tasks.len(), schedule.joins.len()), (300, 0));
    }

    #[test]
    fn a_long_sequence_among_short_ones_is_split() {
        let mut lens = vec![(1, 100); 20];
        lens.push((1, 50_000));
        let schedule = planned(&GQA, &lens, &Mask::Causal);
        assert_eq!(schedule.joins.len(), 1);
        assert_eq!(schedule.joins[0].sequence, 20);
        assert!(schedule.joins[0].parts >= GQA.threads);
    }

    #[test]
    fn one_thread_splits_nothing() {
        let schedule = planned(&Sizes { threads: 1, ..GQA }, &[(1, 100_000)], &Mask::Causal);
        assert_eq!((schedule.tasks.len(), schedule.joins.len()), (1, 0));
    }

    #[test]
    fn causal_tasks_end_where_their_last_query_does() {
        let schedule = planned(&GQA, &[(512, 512)], &Mask::Causal);
        for task in &schedule.tasks {
            assert!(task.positions.end <= task.queries.end);
        }
    }

    fn sizes() -> impl Strategy<Value = Sizes> {
        (1_usize..20, 1_usize..130, 1_usize..600, 1_usize..600, 1_usize..20, any::<bool>())
            .prop_map(|(heads, group, width_k, width_v, threads, batch_invariant)| Sizes {
                heads,
                group,
                width_k,
                width_v,
                token_bytes: 2 * heads * (width_k + width_v),
                flops_per_byte: 16,
                row_align: if width_k % 2 == 0 { 16 } else { 1 },
                threads,
                batch_invariant,
            })
    }

    fn lens() -> impl Strategy<Value = Vec<(usize, usize)>> {
        let length = (0_usize..5, prop_oneof![0_usize..300, 0_usize..40_000]);
        let long = (0_usize..600, 0_usize..2000);
        prop_oneof![prop::collection::vec(length, 0..8), prop::collection::vec(long, 0..3)]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        // [S-3.20]: every row meets every position it sees once, within the promised bounds.
        #[test]
        fn tasks_cover_the_step_once(sizes in sizes(), lens in lens(), kind in 0..3) {
            let mask = match kind {
                0 => Mask::Causal,
                1 => Mask::Full,
                _ => {
                    prop_assume!(lens.iter().all(|&(q_len, kv_len)| q_len <= kv_len));
                    let q_lens = lens.iter().map(|&(q_len, _)| q_len);
                    let parents = vec![-1; q_lens.clone().sum()];
                    Mask::new(MaskKind::Tree(&parents), q_lens).unwrap()
                }
            };
            let schedule = planned(&sizes, &lens, &mask);
            let bounds = sizes.bounds(&extent(&lens));
            prop_assert!(schedule.tasks.len() <= bounds.tasks);
            prop_assert!(schedule.joins.len() <= bounds.joins);
            let mut covered = std::collections::HashMap::new();
            let mut slots = Vec::new();
            for task in &schedule.tasks {
                let rows = task.heads.len() * sizes.head_rows(task.queries.len());
                prop_assert!(rows <= bounds.rows && task.queries.len() <= bounds.queries);
                prop_assert!(task.positions.start % BLOCK == 0);
                prop_assert!(task.slot.is_none_or(|slot| slot + rows <= bounds.slot_rows));
                slots.extend(task.slot.map(|slot| (slot, rows)));
                for head in task.heads.clone() {
                    for t in task.queries.clone() {
                        // Tasks of a row come in the order of their positions, without gaps.
                        let end = covered.entry((task.sequence, head, t)).or_insert(0);
                        prop_assert_eq!(*end, task.positions.start);
                        *end = task.positions.end;
                    }
                }
            }
            prop_assert!(slots.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0));
            let joined: usize = schedule.joins.iter().map(|join| join.parts).sum();
            prop_assert_eq!(joined, slots.len());
            for (sequence, &(q_len, kv_len)) in lens.iter().enumerate() {
                for t in 0..q_len {
                    let last = (0..kv_len).rev().find(|&j| match &mask {
                        Mask::Tree(_) => true,
                        mask => mask.sees(0, q_len, kv_len, t, j),
                    });
                    for head in 0..sizes.heads {
                        let end = covered[&(sequence, head, t)];
                        prop_assert!(end <= kv_len && last.is_none_or(|last| last < end));
                    }
                }
            }
        }

        // [S-3.21]
        #[test]
        fn invariant_cuts_ignore_neighbours(sizes in sizes(), lens in lens(), other in lens()) {
            let sizes = Sizes { batch_invariant: true, ..sizes };
            let cuts = |lens: &[(usize, usize)], index: usize| {
                let tasks = planned(&sizes, lens, &Mask::Causal).tasks.into_iter();
                let own = tasks.filter(|task| task.sequence == index);
                own.map(|task| (task.heads, task.queries, task.positions)).collect::<Vec<_>>()
            };
            let both = [other.clone(), lens.clone()].concat();
            for index in 0..lens.len() {
                prop_assert_eq!(cuts(&lens, index), cuts(&both, other.len() + index));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod by_hand;
