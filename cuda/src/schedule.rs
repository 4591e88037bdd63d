//! How a step's work is cut into pieces for teams of blocks: pure arithmetic, no device.
//!
//! The algorithm stands in kernels/abi.cuh under "Scheduling", with the words used here. The device
//! has a form of it too, so both are in integers and agree bit for bit.

use crate::abi::{FEW_PARTS, LaneMerge, Piece, TILE_TOKENS};
use grouped_attention::{Extent, Span};

/// How a kernel works through a step, for [`Scheduler::schedule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheduler {
    /// Query heads that share a cached head.
    pub(crate) group: usize,
    /// Blocks of cached heads that items are made for.
    pub(crate) head_blocks: usize,
    /// Packed rows of an item.
    pub(crate) item_rows: usize,
    /// Teams.
    pub(crate) teams: usize,
    /// Blocks in a team.
    pub(crate) team: usize,
    /// What an item costs beside its tiles, in tiles.
    pub(crate) item_tiles: usize,
    /// Where sequences are cut.
    pub(crate) split: Split,
}

/// Where sequences are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// So that all teams have as much to do; depends on the whole batch.
    Balanced {
        /// Fewest tiles of a piece.
        min_tiles: usize,
        /// How many numbers of teams are tried, from the largest down.
        candidates: usize,
        /// Teams beyond which memory sets the pace.
        saturation: usize,
        /// What a cut costs, in 64ths of a tile.
        cut_cost: usize,
    },
    /// At multiples of this many tiles, whatever surrounds the sequence `[S-3.21]`.
    Invariant {
        /// Tiles of a piece.
        unit_tiles: usize,
    },
}

/// A schedule, as kernels read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// `[teams + 1]`, the first piece of each team.
    pub(crate) team_pieces: Vec<i32>,
    pub(crate) pieces: Vec<Piece>,
    /// Of lanes with at most [`FEW_PARTS`] parts.
    pub(crate) merges: Vec<LaneMerge>,
    /// Of lanes with more; they lie at the end of the list on the device, the last one first.
    pub(crate) long_merges: Vec<LaneMerge>,
    /// Partial results.
    pub(crate) slots: usize,
}

/// Upper bounds on the parts of any schedule within an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) pieces: usize,
    pub(crate) merges: usize,
    pub(crate) slots: usize,
}

/// Where a team begins: before tile `tile` of sequence `sequence`.
type Boundary = (usize, usize);

impl Scheduler {
    fn lanes(&self, q_len: usize) -> usize {
        self.head_blocks * (q_len * self.group).div_ceil(self.item_rows)
    }

    fn passes(&self, q_len: usize) -> usize {
        self.lanes(q_len).div_ceil(self.team)
    }

    /// What no schedule of a step within `extent` exceeds; where that passes all numbers, the largest,
    /// for which there is no memory.
    pub(crate) fn bounds(&self, extent: &Extent) -> Bounds {
        let tiles = extent.max_kv_len.div_ceil(TILE_TOKENS).max(1);
        let sequences = extent.sequences.min(extent.total_q);
        let lanes = self.lanes(extent.max_q_len);
        // Rounding up to whole items adds less than one a sequence.
        let rows = (extent.total_q * self.group).div_ceil(self.item_rows) + sequences;
        let all_lanes = self.head_blocks.saturating_mul(rows).min(sequences.saturating_mul(lanes));
        match self.split {
            Split::Balanced { min_tiles, .. } => {
                // A cut leaves a piece of min_tiles on both sides.
                let cuts = if tiles < 2 * min_tiles { 0 } else { self.teams - 1 };
                let cut = cuts.min(sequences);
                let merges = cut.saturating_mul(lanes).min(all_lanes);
                let slots = merges.saturating_add(cuts.saturating_mul(lanes));
                Bounds { pieces: sequences + cuts, merges, slots }
            }
            Split::Invariant { unit_tiles } => {
                let parts = tiles.div_ceil(unit_tiles);
                let merges = if parts > 1 { all_lanes } else { 0 };
                let pieces = sequences.saturating_mul(parts);
                Bounds { pieces, merges, slots: merges.saturating_mul(parts) }
            }
        }
    }

    /// Schedules a step, reusing the memory of `schedule`.
    pub(crate) fn schedule(&self, spans: &[Span], schedule: &mut Schedule) {
        schedule.team_pieces.clear();
        schedule.pieces.clear();
        schedule.merges.clear();
        schedule.long_merges.clear();
        schedule.slots = 0;
        match self.split {
            Split::Balanced { .. } => self.balance(spans, schedule),
            Split::Invariant { unit_tiles } => self.cut_evenly(spans, unit_tiles, schedule),
        }
    }

    fn balance(&self, spans: &[Span], schedule: &mut Schedule) {
        let line = Line::new(self, spans);
        let teams = self.best_teams(&line);
        let boundaries: Vec<Boundary> =
            (0..=teams).map(|team| line.boundary(team, teams)).collect();
        let mut cuts = boundaries.iter().filter(|boundary| boundary.1 > 0).peekable();
        let mut starts: Vec<Boundary> = Vec::new();
        for (b, span) in live(spans) {
            let mut ends = Vec::new();
            while let Some(&&(_, tile)) = cuts.peek().filter(|cut| cut.0 == b) {
                cuts.next();
                if ends.last() != Some(&tile) {
                    ends.push(tile);
                }
            }
            starts.push((b, 0));
            starts.extend(ends.iter().map(|&tile| (b, tile)));
            ends.push(tiles(span));
            self.push_pieces(b, span, &ends, schedule);
        }
        let first_piece =
            |boundary: &Boundary| starts.partition_point(|start| start < boundary) as i32;
        schedule.team_pieces.extend(boundaries[..teams].iter().map(first_piece));
        let pieces = schedule.pieces.len() as i32;
        schedule.team_pieces.resize(self.teams + 1, pieces);
    }

    /// The number of teams of least cost, the largest of equals.
    fn best_teams(&self, line: &Line) -> usize {
        let Split::Balanced { candidates, saturation, cut_cost, .. } = self.split else {
            return self.teams;
        };
        let fewest = (self.teams + 1).saturating_sub(candidates).max(1);
        let cost = |&teams: &usize| {
            let cuts = (0..teams).filter(|&team| line.boundary(team, teams).1 > 0).count();
            line.total().div_ceil(teams.min(saturation)) * 64 + cut_cost * cuts
        };
        (fewest..=self.teams).rev().min_by_key(cost).unwrap_or(self.teams)
    }

    fn cut_evenly(&self, spans: &[Span], unit_tiles: usize, schedule: &mut Schedule) {
        let mut starts = Vec::new();
        let mut end = 0;
        for (b, span) in live(spans) {
            let parts = tiles(span).div_ceil(unit_tiles);
            let mut ends: Vec<usize> = (1..parts).map(|part| part * unit_tiles).collect();
            ends.push(tiles(span));
            let passes = self.passes(span.q_len);
            let piece = passes * (unit_tiles + self.item_tiles);
            starts.extend((0..parts).map(|part| end + part * piece));
            end += passes * (tiles(span) + parts * self.item_tiles);
            self.push_pieces(b, span, &ends, schedule);
        }
        for team in 0..self.teams {
            let from = team * end / self.teams;
            schedule.team_pieces.push(starts.partition_point(|&start| start < from) as i32);
        }
        schedule.team_pieces.push(schedule.pieces.len() as i32);
    }

    /// The pieces of one sequence, which end before the tiles `ends`.
    fn push_pieces(&self, b: usize, span: &Span, ends: &[usize], schedule: &mut Schedule) {
        let (parts, lanes) = (ends.len(), self.lanes(span.q_len));
        let cut = parts > 1;
        let first_slot = schedule.slots;
        if cut {
            schedule.slots += lanes * parts;
            let long = parts > FEW_PARTS;
            let merges = if long { &mut schedule.long_merges } else { &mut schedule.merges };
            merges.extend((0..lanes).map(|lane| LaneMerge {
                q_start: span.q_start as i32,
                q_len: span.q_len as i32,
                lane: lane as i32,
                slot: (first_slot + lane * parts) as i32,
                parts: parts as i32,
                reserved: [0; 3],
            }));
        }
        let mut begin = 0;
        for (part, &end) in ends.iter().enumerate() {
            schedule.pieces.push(Piece {
                sequence: b as i32,
                kv_begin: (begin * TILE_TOKENS) as i32,
                kv_end: (end * TILE_TOKENS).min(span.kv_len) as i32,
                kv_len: span.kv_len as i32,
                q_start: span.q_start as i32,
                q_len: span.q_len as i32,
                slot: if cut { (first_slot + part) as i32 } else { -1 },
                parts: parts as i32,
            });
            begin = end;
        }
    }
}

fn tiles(span: &Span) -> usize {
    span.kv_len.div_ceil(TILE_TOKENS).max(1)
}

/// Sequences that have queries; the others have no work.
fn live(spans: &[Span]) -> impl Iterator<Item = (usize, &Span)> {
    spans.iter().enumerate().filter(|(_, span)| span.q_len > 0)
}

/// The sequences one after another, each as long as its work.
struct Line {
    /// `[sequences + 1]`.
    starts: Vec<usize>,
    /// Tiles and passes of each sequence.
    sequences: Vec<(usize, usize)>,
    min_tiles: usize,
}

impl Line {
    fn new(scheduler: &Scheduler, spans: &[Span]) -> Line {
        let min_tiles = match scheduler.split {
            Split::Balanced { min_tiles, .. } => min_tiles,
            Split::Invariant { .. } => 1,
        };
        let sequences: Vec<(usize, usize)> =
            spans.iter().map(|span| (tiles(span), scheduler.passes(span.q_len))).collect();
        // With two teams or more a sequence every part is an item, and charging the last one alone
        // would cut unevenly.
        let cut_often = 2 * live(spans).count() <= scheduler.teams;
        let charge = if cut_often { 0 } else { scheduler.item_tiles };
        let mut starts = vec![0];
        let mut end = 0;
        for &(tiles, passes) in &sequences {
            end += passes * (tiles + charge);
            starts.push(end);
        }
        Line { starts, sequences, min_tiles }
    }

    fn total(&self) -> usize {
        self.starts[self.sequences.len()]
    }

    /// Where team `team` of `teams` begins.
    fn boundary(&self, team: usize, teams: usize) -> Boundary {
        let x = team * self.total() / teams;
        if x >= self.total() {
            return (self.sequences.len(), 0);
        }
        let b = self.starts.partition_point(|&start| start <= x) - 1;
        let (tiles, passes) = self.sequences[b];
        let tile = tiles.min((x - self.starts[b]) / passes);
        match tile {
            _ if tile < self.min_tiles => (b, 0),
            _ if tiles - tile < self.min_tiles => (b + 1, 0),
            _ => (b, tile),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spans(lens: &[(usize, usize)]) -> Vec<Span> {
        let mut q_start = 0;
        let span = |&(q_len, kv_len): &(usize, usize)| {
            let span = Span { q_start, q_len, kv_len, page_start: 0 };
            q_start += q_len;
            span
        };
        lens.iter().map(span).collect()
    }

    fn extent(lens: &[(usize, usize)]) -> Extent {
        Extent {
            sequences: lens.len(),
            total_q: lens.iter().map(|len| len.0).sum(),
            max_q_len: lens.iter().map(|len| len.0).max().unwrap_or(0),
            max_kv_len: lens.iter().map(|len| len.1).max().unwrap_or(0),
            writes: 0,
        }
    }

    fn run(scheduler: &Scheduler, lens: &[(usize, usize)]) -> Schedule {
        let mut schedule = Schedule::default();
        scheduler.schedule(&spans(lens), &mut schedule);
        schedule
    }

    const BALANCED: Scheduler = Scheduler {
        group: 4,
        head_blocks: 2,
        item_rows: 16,
        teams: 3,
        team: 2,
        item_tiles: 0,
        split: Split::Balanced { min_tiles: 1, candidates: 1, saturation: 3, cut_cost: 0 },
    };

    #[test]
    fn one_sequence_is_cut_evenly_among_teams() {
        let schedule = run(&BALANCED, &[(1, 9 * 64)]);
        assert_eq!(schedule.team_pieces, [0, 1, 2, 3]);
        let ranges: Vec<_> =
            schedule.pieces.iter().map(|piece| (piece.kv_begin, piece.kv_end)).collect();
        assert_eq!(ranges, [(0, 192), (192, 384), (384, 576)]);
        // Two lanes of three parts each, a lane's slots side by side.
        assert_eq!(schedule.slots, 6);
        let slots: Vec<_> = schedule.pieces.iter().map(|piece| piece.slot).collect();
        assert_eq!(slots, [0, 1, 2]);
        let merges: Vec<_> = schedule.merges.iter().map(|merge| (merge.lane, merge.slot)).collect();
        assert_eq!(merges, [(0, 0), (1, 3)]);
    }

    /// An item's cost is no reason to make the last part of every sequence shorter.
    #[test]
    fn few_equal_sequences_are_cut_into_equal_parts() {
        let scheduler = Scheduler { teams: 8, item_tiles: 4, ..BALANCED };
        let schedule = run(&scheduler, &[(1, 64 * 128), (0, 64), (1, 64 * 128)]);
        let tiles = schedule.pieces.iter().map(|piece| (piece.kv_end - piece.kv_begin) / 64);
        assert_eq!(tiles.collect::<Vec<_>>(), [32; 8]);
    }

    #[test]
    fn whole_sequences_need_no_merge() {
        let schedule = run(&BALANCED, &[(1, 64), (0, 500), (1, 64), (1, 0)]);
        assert_eq!(schedule.team_pieces, [0, 1, 2, 3]);
        assert!(schedule.merges.is_empty() && schedule.slots == 0);
        assert_eq!(
            schedule.pieces[2],
            Piece { sequence: 3, q_start: 2, q_len: 1, slot: -1, parts: 1, ..Piece::default() }
        );
    }

    #[test]
    fn nothing_to_do_is_a_schedule() {
        for lens in [&[][..], &[(0, 100)]] {
            let schedule = run(&BALANCED, lens);
            assert_eq!(schedule.team_pieces, [0; 4]);
            assert!(schedule.pieces.is_empty());
        }
    }

    /// The largest extent that a plan may ask for has bounds, if none that memory can hold.
    #[test]
    fn bounds_of_the_largest_extent_do_not_wrap() {
        let most = i32::MAX as usize;
        let extent =
            Extent { sequences: most, total_q: most, max_q_len: most, max_kv_len: most, writes: 0 };
        for split in [BALANCED.split, Split::Invariant { unit_tiles: 1 }] {
            let scheduler = Scheduler { group: 1 << 20, head_blocks: 128, split, ..BALANCED };
            let bounds = scheduler.bounds(&extent);
            assert!(bounds.merges >= most && bounds.slots >= bounds.merges, "{bounds:?}");
        }
    }

    fn lens() -> impl Strategy<Value = Vec<(usize, usize)>> {
        let q_len = prop_oneof![Just(0), 1..4_usize, 1..200_usize];
        let kv_len = prop_oneof![0..130_usize, 0..20_000_usize];
        prop::collection::vec((q_len, kv_len), 0..12)
    }

    fn split() -> impl Strategy<Value = Split> {
        prop_oneof![
            (1..6_usize, 1..20_usize, 1..200_usize, 0..200_usize).prop_map(
                |(min_tiles, candidates, saturation, cut_cost)| Split::Balanced {
                    min_tiles,
                    candidates,
                    saturation,
                    cut_cost
                }
            ),
            (1..40_usize).prop_map(|unit_tiles| Split::Invariant { unit_tiles }),
        ]
    }

    prop_compose! {
        fn scheduler()(
            group in 1..40_usize, head_blocks in 1..5_usize, item_rows in 1..65_usize,
            teams in 1..140_usize, team in 1..9_usize, item_tiles in 0..5_usize, split in split(),
        ) -> Scheduler {
            Scheduler { group, head_blocks, item_rows, teams, team, item_tiles, split }
        }
    }

    proptest! {
        /// Every tile of every sequence with queries is in one piece, and every piece in one team.
        #[test]
        fn pieces_cover_the_batch_once(scheduler in scheduler(), lens in lens()) {
            let schedule = run(&scheduler, &lens);
            let teams = &schedule.team_pieces;
            prop_assert_eq!(teams.len(), scheduler.teams + 1);
            prop_assert_eq!(teams[0], 0);
            prop_assert!(teams.is_sorted());
            prop_assert_eq!(teams[scheduler.teams] as usize, schedule.pieces.len());
            let mut pieces = schedule.pieces.iter();
            for (b, span) in live(&spans(&lens)) {
                let mut end = 0;
                loop {
                    let piece = pieces.next().unwrap();
                    prop_assert_eq!(piece.sequence as usize, b);
                    prop_assert_eq!(piece.kv_begin, end);
                    prop_assert!(piece.kv_end > end || span.kv_len == 0);
                    end = piece.kv_end;
                    if end as usize == span.kv_len {
                        break;
                    }
                    prop_assert_eq!(end as usize % TILE_TOKENS, 0);
                }
            }
            prop_assert!(pieces.next().is_none());
        }

        /// The slots of all pieces and lanes are those of the merges, each used once.
        #[test]
        fn slots_are_written_and_merged_once(scheduler in scheduler(), lens in lens()) {
            let schedule = run(&scheduler, &lens);
            let mut written = vec![0; schedule.slots];
            for piece in schedule.pieces.iter().filter(|piece| piece.slot >= 0) {
                for lane in 0..scheduler.lanes(piece.q_len as usize) as i32 {
                    written[(piece.slot + lane * piece.parts) as usize] += 1;
                }
            }
            let mut merged = vec![0; schedule.slots];
            for merge in schedule.merges.iter().chain(&schedule.long_merges) {
                (0..merge.parts).for_each(|part| merged[(merge.slot + part) as usize] += 1);
            }
            prop_assert!(written.iter().chain(&merged).all(|&count| count == 1));
        }

        #[test]
        fn bounds_hold(scheduler in scheduler(), lens in lens()) {
            let schedule = run(&scheduler, &lens);
            let bounds = scheduler.bounds(&extent(&lens));
            prop_assert!(schedule.pieces.len() <= bounds.pieces);
            let merges = schedule.merges.len() + schedule.long_merges.len();
            prop_assert!(merges <= bounds.merges);
            prop_assert!(schedule.slots <= bounds.slots);
        }

        // [S-3.21]
        #[test]
        fn invariant_cuts_ignore_neighbours(
            scheduler in scheduler(), unit_tiles in 1..40_usize, lens in lens(),
            own in (1..9_usize, 0..20_000_usize),
        ) {
            let scheduler = Scheduler { split: Split::Invariant { unit_tiles }, ..scheduler };
            let alone = run(&scheduler, &[own]);
            let mut among = lens.clone();
            among.push(own);
            let among = run(&scheduler, &among);
            let ranges = |schedule: &Schedule, b: usize| {
                let own = schedule.pieces.iter().filter(|piece| piece.sequence as usize == b);
                own.map(|piece| (piece.kv_begin, piece.kv_end)).collect::<Vec<_>>()
            };
            prop_assert_eq!(ranges(&alone, 0), ranges(&among, lens.len()));
        }
    }
}
