//! Sizes and cuts worked out by hand: what the properties of the planner leave open, which is how
//! large its tasks are.

use super::*;
use grouped_attention::{Mask, MaskKind};

/// 32 query heads on 8, d 128, bf16: a row is 8 heads of 128 + 128 elements of 2 bytes.
pub(crate) const GQA: Sizes = Sizes {
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
const MLA: Sizes =
    Sizes { heads: 1, group: 128, width_k: 576, width_v: 512, token_bytes: 1152, ..GQA };
/// So many heads that a tile of all of them leaves each too few rows.
const MHA: Sizes = Sizes { heads: 128, group: 1, token_bytes: 65_536, ..GQA };
const INVARIANT: Sizes = Sizes { batch_invariant: true, ..GQA };

fn planned(sizes: &Sizes, lens: &[(usize, usize)], mask: &Mask) -> Schedule {
    let mut visibility = Visibility::default();
    let mut q_start = 0;
    let span = |&(q_len, kv_len): &(usize, usize)| {
        let span = Span { q_start, q_len, kv_len, page_start: 0 };
        q_start += q_len;
        span
    };
    let spans: Vec<Span> = lens.iter().map(span).collect();
    visibility.write(mask, &spans);
    let mut out = Schedule::default();
    schedule(sizes, &spans, &visibility, &mut out);
    out
}

fn cuts(schedule: &Schedule) -> Vec<Range<usize>> {
    schedule.tasks.iter().map(|task| task.positions.clone()).collect()
}

#[test]
fn rows_are_padded_head_by_head() {
    let padded = Sizes { row_align: 16, ..GQA };
    assert_eq!([0, 1, 3].map(|queries| GQA.head_rows(queries)), [0, 4, 12]);
    assert_eq!([0, 3, 4, 5].map(|queries| padded.head_rows(queries)), [0, 16, 16, 32]);
}

#[test]
fn tiles_fill_the_state_and_part_heads_where_a_head_has_too_few_rows() {
    // 2^16 / 128 = 512 rows of sums: 64 queries of two heads of 4, and a head wants 256 rows.
    assert_eq!(Sizes { heads: 2, ..GQA }.tile(), (64, 2));
    // 16 queries of all heads, and a head wants 64: so 2 of the heads.
    assert_eq!(GQA.tile(), (64, 2));
    // 128 rows, and the head wants 256.
    assert_eq!(MLA.tile(), (2, 1));
    // 4 queries of all heads, and a head wants 256: so 2 of the heads.
    assert_eq!(MHA.tile(), (256, 2));
    // ceil(2^16 / 600) = 110 rows; a head of 3 wants ceil(256 / 3) = 86 queries and has 18.
    let uneven = Sizes { heads: 2, group: 3, width_v: 600, ..GQA };
    assert_eq!(uneven.tile(), (86, 1));
    // Few queries leave room for more heads.
    assert_eq!(
        [0, 1, 16, 17, 255, 256].map(|q_len| MHA.tile_for(q_len)),
        [(256, 128), (256, 128), (256, 32), (256, 30), (256, 2), (256, 2)]
    );
    assert_eq!(MHA.tile_for(5000), (256, 2));
}

#[test]
fn weights_are_bytes_and_arithmetic() {
    // 4096 bytes, and 2 * 8 * 4 * (128 + 128) operations at 16 a byte.
    assert_eq!(GQA.weight(8, 1), 4096 + 1024);
    assert_eq!(GQA.weight(3, 2), 1536 + 768);
    // A share of a row is rounded up.
    assert_eq!(Sizes { token_bytes: 10, heads: 4, ..GQA }.weight(3, 1), 8 + 384);
    assert_eq!(MLA.weight(1, 2), 1152 + 2 * 17_408);
}

#[test]
fn parts_are_long_enough_to_be_worth_joining() {
    // 8 * 4 rows of 128 sums of 8 bytes cost what 6 positions do.
    assert_eq!(GQA.min_part(8, 1), 256);
    // 8 * 128 * 512 * 8 bytes against 1152 + 278528 / 200 a position.
    let fast = Sizes { flops_per_byte: 200, ..MLA };
    assert_eq!(fast.min_part(1, 1), 8 * 524_288 / 2544);
    // 8 heads of 32 rows: 8 * 262144 bytes against 4096 + 131072 / 400 a position.
    assert_eq!(Sizes { flops_per_byte: 400, ..GQA }.min_part(8, 8), 8 * 262_144 / 4423);
    // Padded rows are written and read too.
    let padded = Sizes { row_align: 256, ..fast };
    assert_eq!(padded.min_part(1, 1), 8 * 1_048_576 / 2544);
}

#[test]
fn blocks_are_words_of_bits_and_the_matrix_unit_takes_four() {
    assert_eq!((BLOCK, MATRIX_BLOCK), (64, 256));
}

#[test]
fn invariant_parts_follow_the_length() {
    let lens = [0, 1023, 1024, 2047, 2048, 16_383, 16_384, 17_408, 1 << 20];
    assert_eq!(lens.map(invariant_parts), [1, 1, 1, 1, 2, 15, 16, 16, 16]);
}

#[test]
fn one_sequence_is_cut_evenly() {
    // A task for each thread.
    let schedule = planned(&GQA, &[(1, 32_768)], &Mask::Causal);
    assert_eq!(cuts(&schedule), [0..16_384, 16_384..32_768]);
    assert_eq!(
        schedule.joins,
        [Join { sequence: 0, heads: 0..8, queries: 0..1, slot: 0, parts: 2 }]
    );
    // Each part has 32 rows.
    let slots: Vec<_> = schedule.tasks.iter().map(|task| task.slot).collect();
    assert_eq!(slots, [Some(0), Some(32)]);
    // Parts are no shorter than 256 positions, and whole blocks but for the last.
    assert_eq!(cuts(&planned(&GQA, &[(1, 700)], &Mask::Causal)), [0..384, 384..700]);
    assert_eq!(cuts(&planned(&GQA, &[(1, 511)], &Mask::Causal)), std::slice::from_ref(&(0..511)));
    // Three threads: 3 parts of ceil(40000 / 3), in whole blocks.
    let three = planned(&Sizes { threads: 3, ..GQA }, &[(1, 40_000)], &Mask::Causal);
    assert_eq!((three.tasks.len(), three.tasks[1].positions.clone()), (3, 13_376..26_752));
}

#[test]
fn a_sequence_is_cut_by_its_share_of_the_step() {
    // Weights 3 : 1 of 16 shares.
    let schedule = planned(&Sizes { threads: 4, ..GQA }, &[(1, 30_720), (1, 10_240)], &Mask::Full);
    let of = |sequence| schedule.tasks.iter().filter(|task| task.sequence == sequence).count();
    assert_eq!((of(0), of(1)), (12, 4));
    // The second sequence's parts lie behind the first's.
    assert_eq!(schedule.joins[1].slot, 12 * 32);
    // Arithmetic weighs as well as bytes: 16 queries of half the length.
    let schedule = planned(&GQA, &[(16, 8192), (1, 16_384)], &Mask::Full);
    // 16 queries weigh 4096 + 16384 a position, one 5120: of 8 shares 5.3 and 2.7. Three parts are one too many for
    // two threads.
    let of = |sequence| schedule.tasks.iter().filter(|task| task.sequence == sequence).count();
    assert_eq!((of(0), of(1)), (6, 2));
}

#[test]
fn tiles_of_one_sequence_share_its_tasks() {
    // Two tiles of two queries, one for each of two threads, or of four threads two; beside one of another sequence its
    // shares, four each.
    let fast = Sizes { flops_per_byte: 200, ..MLA };
    let alone = |threads| planned(&Sizes { threads, ..fast }, &[(4, 32_768), (0, 9)], &Mask::Full);
    assert_eq!(cuts(&alone(2)), [0..32_768, 0..32_768]);
    assert_eq!(cuts(&alone(4)), [0..16_384, 16_384..32_768, 0..16_384, 16_384..32_768]);
    let parts: Vec<_> = alone(4).joins.iter().map(|join| join.parts).collect();
    assert_eq!(parts, [2, 2]);
    let among = planned(&fast, &[(4, 32_768), (1, 64)], &Mask::Full);
    assert_eq!(among.tasks.len(), 4 + 4 + 1);
}

#[test]
fn threads_have_as_many_parts_each() {
    let fast = Sizes { flops_per_byte: 200, ..MLA };
    // Parts of at least 1648 positions: three, of which one thread would have two.
    assert_eq!(cuts(&planned(&fast, &[(1, 6400)], &Mask::Causal)), [0..3200, 3200..6400]);
    // Fewer than threads are as many as they are.
    let three = planned(&Sizes { threads: 4, ..fast }, &[(1, 5000)], &Mask::Causal);
    assert_eq!(cuts(&three), [0..1728, 1728..3456, 3456..5000]);
}

#[test]
fn alike_tiles_are_parted_until_threads_have_as_many() {
    let of_eight = |tiles| even_parts(tiles, 8);
    assert_eq!([1, 2, 4, 8, 16].map(of_eight), [8, 4, 2, 1, 1]);
    // Twelve in two are three each; five would take eight parts, and more tasks than four for each thread.
    assert_eq!([12, 5, 31, 33, 1000].map(of_eight), [2, 6, 1, 1, 1]);
    assert_eq!(even_parts(3, 1), 1);
}

#[test]
fn invariant_cuts_are_the_lengths_alone() {
    let schedule = planned(&INVARIANT, &[(1, 5000), (1, 1000)], &Mask::Causal);
    // 4 parts of 1250, in whole blocks.
    assert_eq!(cuts(&schedule), [0..1280, 1280..2560, 2560..3840, 3840..5000, 0..1000]);
    // Not of what its first queries see.
    let roots = Mask::new(MaskKind::Tree(&[-1, -1]), [2]).unwrap();
    assert_eq!(cuts(&planned(&INVARIANT, &[(2, 2049)], &roots)), [0..1088, 1088..2049]);
    let causal = planned(&Sizes { heads: 2, ..INVARIANT }, &[(100, 2050)], &Mask::Causal);
    assert_eq!(cuts(&causal), [0..1088, 1088..2014, 0..1088, 1088..2050]);
}

#[test]
fn rows_that_see_nothing_are_a_task() {
    let schedule = planned(&GQA, &[(2, 0)], &Mask::Causal);
    assert_eq!(cuts(&schedule), std::slice::from_ref(&(0..0)));
    assert!(schedule.joins.is_empty());
    assert!(planned(&GQA, &[(0, 9)], &Mask::Causal).tasks.is_empty());
}

#[test]
fn a_schedule_forgets_the_last_one() {
    let mut visibility = Visibility::default();
    let span = Span { q_start: 0, q_len: 1, kv_len: 32_768, page_start: 0 };
    visibility.write(&Mask::Causal, &[span]);
    let mut out = Schedule::default();
    schedule(&GQA, &[span], &visibility, &mut out);
    let first = out.clone();
    schedule(&GQA, &[span], &visibility, &mut out);
    assert_eq!(out, first);
}

#[test]
fn room_is_made_for_what_can_be_needed() {
    let extent = Extent { sequences: 3, total_q: 100, max_q_len: 70, max_kv_len: 5000, writes: 0 };
    let bounds = Bounds { tasks: 48, joins: 16, queries: 64, rows: 512, slot_rows: 16 * 512 };
    // (3 + 100 / 64) runs of queries, each parted into 8 heads at worst; 16 parts.
    assert_eq!(GQA.bounds(&extent), bounds);
    assert_eq!(Sizes { threads: 1, ..GQA }.bounds(&extent).slot_rows, 0);
    // 8 heads padded by up to 15 rows.
    let padded = Sizes { row_align: 16, ..GQA }.bounds(&extent);
    assert_eq!((padded.rows, padded.slot_rows), (632, 16 * 632));
    // 4 parts of 100 * 32 rows, and of what 32 tiles pad.
    let invariant = INVARIANT.bounds(&extent);
    assert_eq!((invariant.tasks, invariant.joins), (32 + 128, 32));
    assert_eq!(invariant.slot_rows, 4 * 3200);
    let padded = Sizes { row_align: 16, ..INVARIANT }.bounds(&extent);
    assert_eq!(padded.slot_rows, 4 * (3200 + 32 * 15));
    // One part goes to the output.
    assert_eq!(INVARIANT.bounds(&Extent { max_kv_len: 2047, ..extent }).slot_rows, 0);
    // Few queries of many heads: no more rows than the state has.
    let bounds = MHA.bounds(&Extent { max_q_len: 17, ..extent });
    assert_eq!((bounds.queries, bounds.rows), (17, 512));
    // One query of a head may be more than the state has.
    let wide = Sizes { width_v: 2048, ..MLA }.bounds(&extent);
    assert_eq!((wide.queries, wide.rows), (2, 256));
    // No query at all needs room for none, and a tile is one query at least.
    let none = GQA.bounds(&Extent { total_q: 0, max_q_len: 0, ..extent });
    assert_eq!((none.queries, none.rows), (1, 32));
    // A caller's numbers do not overflow.
    let huge = Extent {
        sequences: usize::MAX,
        total_q: usize::MAX,
        max_q_len: usize::MAX,
        max_kv_len: usize::MAX,
        writes: 0,
    };
    let bounds = Sizes { row_align: 16, ..INVARIANT }.bounds(&huge);
    assert_eq!((bounds.tasks, bounds.slot_rows), (usize::MAX, usize::MAX));
}

#[test]
fn parts_of_little_work_are_long() {
    // 288 bytes of a row, and 2 * 2 heads * 4 rows * (80 + 64) operations at 16 to the byte.
    let small = Sizes { heads: 2, group: 4, width_k: 80, width_v: 64, token_bytes: 288, ..GQA };
    assert_eq!(small.weight(2, 1), 288 + 144);
    assert_eq!(small.min_part(2, 1), (1 << 19) / 432);
    // 2000 tokens are one task, which needs no second thread to be woken.
    assert_eq!(planned(&small, &[(1, 2000)], &Mask::Causal).tasks.len(), 1);
}
