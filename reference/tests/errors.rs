//! Every error that a caller can cause, caused, and its words.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod common;

use common::tensor;
use grouped_attention::{
    Append, Attend, Backend, CacheLayout, CopyRows, Dtype, EngineError, Error, Extension, Extent,
    Geometry, HostTensor, InvalidCall, InvalidGeometry, InvalidLayout, InvalidMask, InvalidProblem,
    InvalidStep, InvalidTensor, Mask, MaskKind, Merge, PageError, PageId, PageTables, Planning,
    Problem, ReadRows, Reference, RmsNorm, Rope, RopeScaling, RopeStyle, RowCopy, Sequence,
    Sharding, Slot, Step, Unsupported, Update, Upload, Values, Variant, Write,
};
use insta::assert_snapshot;

/// The error, whatever the success would be.
fn error<T, E>(result: Result<T, E>) -> E {
    result.map(|_| "no error").unwrap_err()
}

fn slot(page: u32, row: usize) -> Slot {
    Slot { page: PageId(page), row }
}

// [S-2.9] [S-1.6]
#[test]
fn geometries() {
    assert_snapshot!(error(Geometry::mha(0, 8)), @"h_q must be positive");
    assert_snapshot!(error(Geometry::gqa(4, 0, 8)), @"heads must be positive");
    assert_snapshot!(error(Geometry::mqa(4, 0)), @"d_k must be positive");
    assert_snapshot!(error(Geometry::separate(4, 2, 8, 0)), @"d_v must be positive");
    assert_snapshot!(error(Geometry::mla(4, 0, 8)), @"s must be positive");
    assert_snapshot!(error(Geometry::gta(4, 2, 0)), @"s must be positive");
    assert_snapshot!(error(Geometry::tied(4, 2, 8, 0, 0)), @"n + r must be positive");
    assert_snapshot!(
        error(Geometry::gla(6, 4, 8, 2)), @"4 cached heads do not divide 6 query heads"
    );
    assert_snapshot!(
        error(Geometry::gqa(2, 4, 8)), @"4 cached heads do not divide 2 query heads"
    );
    assert_snapshot!(
        error(Geometry::tied(4, 2, 8, 9, 0)), @"the key takes n = 9 elements of a state of s = 8"
    );
    assert_snapshot!(error(Geometry::gta(4, 2, 7)), @"GTA halves its head dim, and 7 is odd");
    let large = error(Geometry::mqa(1 << 20, 1 << 12)).to_string();
    let (row, excess) = large.split_once("} ").unwrap();
    assert_snapshot!(row, @"h_q = 1048576 over Separate { heads: 1, d_k: 4096, d_v: 4096");
    assert_snapshot!(excess, @"has 2^31 elements a token or more");
    assert_snapshot!(
        error("mha2".parse::<Variant>()),
        @r#"unknown variant "mha2": expected mha, gqa, mqa, gta, mla or gla"#
    );
}

// [S-1.6]: the bound itself is legal, one more is not, and nothing overflows past it.
#[test]
fn huge_geometries() {
    // Bound by the row, by the queries and by the outputs in turn.
    assert!(Geometry::separate(1, 1, 1 << 30, (1 << 30) - 1).is_ok());
    assert!(Geometry::separate(1, 1, 1 << 30, 1 << 30).is_err());
    assert!(Geometry::tied(1, 1, (1 << 31) - 2, 1, 1).is_ok());
    assert!(Geometry::tied(1, 1, (1 << 31) - 1, 1, 1).is_err());
    assert!(Geometry::separate(1 << 20, 1, (1 << 11) - 1, 1).is_ok());
    assert!(Geometry::separate(1 << 20, 1, 1 << 11, 1).is_err());
    assert!(Geometry::separate(1 << 20, 1, 1, (1 << 11) - 1).is_ok());
    assert!(Geometry::separate(1 << 20, 1, 1, 1 << 11).is_err());
    assert!(Geometry::tied(1 << 20, 1, 1 << 10, 1 << 10, (1 << 10) - 1).is_ok());
    assert!(Geometry::tied(1 << 20, 1, 1 << 10, 1 << 10, 1 << 10).is_err());
    let max = usize::MAX;
    for result in [
        Geometry::separate(max, max, max, max),
        Geometry::separate(max, 1, max, max),
        Geometry::separate(max, max, 1, 1),
        Geometry::tied(max, max, max, max, max),
        Geometry::tied(1, 1, max, max, max),
        Geometry::tied(max, 1, 2, 2, max),
        Geometry::gla(max, max, 2, 2),
        Geometry::gta(2, 1, max - 1),
    ] {
        assert!(matches!(result, Err(InvalidGeometry::TooLarge { .. })), "{result:?}");
    }
}

// [S-3.5]
#[test]
fn problems() {
    let geometry = Geometry::gla(4, 2, 8, 4).unwrap();
    let scaled = |scale| error(Problem::new(geometry, Dtype::F32, scale));
    assert_snapshot!(
        scaled(f64::NAN), @"a scale must be finite and positive in f32, also times log2(e), and NaN is not"
    );
    assert_snapshot!(scaled(0.0), @"a scale must be finite and positive in f32, also times log2(e), and 0 is not");
    assert_snapshot!(scaled(-0.5), @"a scale must be finite and positive in f32, also times log2(e), and -0.5 is not");
    assert_snapshot!(
        scaled(f64::INFINITY), @"a scale must be finite and positive in f32, also times log2(e), and inf is not"
    );
    // Finite and positive in f64 alone.
    assert!(matches!(scaled(1e39), InvalidProblem::Scale { .. }));
    assert!(matches!(scaled(1e-46), InvalidProblem::Scale { .. }));
    // Finite in f32 until it is multiplied by log2(e).
    assert!(matches!(scaled(3e38), InvalidProblem::Scale { .. }));
    let problem = Problem::new(geometry, Dtype::F32, 1.0).unwrap();
    let rope = Rope::new(RopeStyle::HalfSplit, 8, 100.0, RopeScaling::None).unwrap();
    assert_snapshot!(
        error(problem.rotating(rope.clone())), @"the rope turns 8 elements of a rope key of 4"
    );
    let gqa = Problem::new(Geometry::gqa(4, 2, 6).unwrap(), Dtype::F32, 1.0).unwrap();
    assert_eq!(error(gqa.rotating(rope)), InvalidProblem::RopeWidth { expected: 6, got: 8 });
}

// [S-4.2] [S-1.6]
#[test]
fn layouts() {
    let geometry = Geometry::mqa(1, 1).unwrap();
    let layout = |page_size, pages| CacheLayout::new(geometry, Dtype::Bf16, page_size, pages);
    assert_snapshot!(error(layout(0, 4)), @"the page size is 0");
    assert_snapshot!(
        error(layout(64, 1 << 31)),
        @"2147483648 pages of 64 tokens are more than a cache can have"
    );
    let max = usize::MAX;
    // 16 bytes a token as f64: 2^63 bytes are one too many, half of them are not.
    for (page_size, pages) in [(max, max), (max, 2), (1 << 59, 1), (1 << 29, 1 << 30)] {
        let got = error(layout(page_size, pages));
        assert_eq!(got, InvalidLayout::TooLarge { pages, page_size });
    }
    assert!(layout(1 << 58, 1).is_ok() && layout(max, 0).is_ok());
    assert!(layout(1, i32::MAX as usize).is_ok());
}

// [S-1.6]
#[test]
fn tensors() {
    let values = || Values::F32(vec![0.0; 3]);
    assert_snapshot!(
        error(HostTensor::new(&[2, 2], values())),
        @"a tensor of shape [2, 2] cannot hold 3 values"
    );
    assert_snapshot!(
        error(HostTensor::from_f64(Dtype::F16, &[4], &[1.0])),
        @"a tensor of shape [4] cannot hold 1 values"
    );
    assert_snapshot!(
        error(HostTensor::zeros(Dtype::Bf16, &[1 << 40, 1 << 20])),
        @"a tensor of shape [1099511627776, 1048576] does not fit in memory"
    );
    // It can be addressed, but no machine has it.
    let shape = [1 << 59];
    let expected = InvalidTensor::TooLarge { shape: shape.to_vec() };
    assert_eq!(error(HostTensor::zeros(Dtype::F32, &shape)), expected);
    for shape in [&[usize::MAX][..], &[1 << 32, 1 << 32], &[usize::MAX, usize::MAX]] {
        let expected = InvalidTensor::TooLarge { shape: shape.to_vec() };
        assert_eq!(error(HostTensor::zeros(Dtype::F32, shape)), expected);
        assert_eq!(error(HostTensor::new(shape, values())), expected);
        assert_eq!(error(HostTensor::from_f64(Dtype::F32, shape, &[])), expected);
    }
    assert_snapshot!(
        error("f64".parse::<Dtype>()), @r#"unknown dtype "f64": expected f32, f16 or bf16"#
    );
}

// [S-3.10]
#[test]
fn masks() {
    let mask = |parents: &[i32], q_lens: &[usize]| {
        error(Mask::new(MaskKind::Tree(parents), q_lens.iter().copied()))
    };
    assert_snapshot!(mask(&[-1], &[1, 1]), @"a tree mask over 2 queries has 1 parents");
    assert_snapshot!(
        mask(&[-1, 0, -1, 5], &[2, 2]),
        @"token 1 of sequence 1's draft has parent 5: expected -1 or an index below 1"
    );
    assert_snapshot!(
        mask(&[-2], &[1]),
        @"token 0 of sequence 0's draft has parent -2: expected -1 or an index below 0"
    );
    assert!(matches!(mask(&[i32::MIN], &[1]), InvalidMask::Parent { .. }));
    // Lengths whose sum overflows are too many, not a panic and not a sum that wraps to 1.
    for q_lens in [[usize::MAX, 1], [usize::MAX, 2], [1, usize::MAX]] {
        assert_eq!(mask(&[-1], &q_lens), InvalidMask::ParentCount { expected: usize::MAX, got: 1 });
    }
}

fn sequence(q_len: usize, kv_len: usize, pages: &[PageId]) -> Sequence<'_> {
    Sequence { q_len, kv_len, pages }
}

fn tree(parents: &[i32], q_lens: &[usize]) -> Mask {
    Mask::new(MaskKind::Tree(parents), q_lens.iter().copied()).unwrap()
}

// [S-4.18] [S-4.2] [S-3.10]
#[test]
fn steps() {
    let pages = [PageId(3), PageId(0)];
    let step =
        |page_size, sequences: &[Sequence<'_>], mask| error(Step::new(page_size, sequences, mask));
    assert_snapshot!(step(0, &[], Mask::Causal), @"the page size is 0");
    assert_snapshot!(
        step(4, &[sequence(1, 8, &pages), sequence(1, 9, &pages)], Mask::Causal),
        @"sequence 1 has 9 tokens, and its 2 pages of 4 tokens do not cover them"
    );
    assert_snapshot!(
        step(4, &[sequence(2, 1, &pages)], tree(&[-1, 0], &[2])),
        @"sequence 0 has a tree of 2 queries over 1 cached tokens"
    );
    assert_snapshot!(
        step(4, &[sequence(1, 1, &pages), sequence(i32::MAX as usize, 1, &pages)], Mask::Causal),
        @"sequence 1 (q_len 2147483647, kv_len 1) takes the step past 2^31"
    );
    assert_snapshot!(
        step(4, &[sequence(1, 5, &[PageId(0), PageId(1 << 31)])], Mask::Causal),
        @"entry 0 has page id 2147483648, past 2^31"
    );
    assert_snapshot!(
        step(4, &[sequence(1, 1, &pages)], tree(&[-1, 0], &[2])),
        @"a tree mask over 1 queries has 2 parents"
    );
}

// [S-1.6]
#[test]
fn huge_steps() {
    let max = usize::MAX;
    let one = [PageId(0)];
    let step = |page_size, q_len, kv_len| {
        Step::new(page_size, &[sequence(q_len, kv_len, &one)], Mask::Causal)
    };
    for (page_size, q_len, kv_len) in [(max, max, 1), (max, 1, max), (1, max, 0), (max, max, max)] {
        let expected = InvalidStep::TooLarge { sequence: 0, q_len, kv_len };
        assert_eq!(error(step(page_size, q_len, kv_len)), expected);
    }
    assert!(matches!(error(step(1, 1, max)), InvalidStep::TableTooShort { .. }));
    // 31 bits are enough, and a page may be longer than any sequence.
    let bound = i32::MAX as usize;
    assert!(step(max, bound, bound).is_ok());
    assert!(step(max, bound + 1, 0).is_err() && step(max, 0, bound + 1).is_err());
    let largest = [PageId(i32::MAX as u32)];
    let step = Step::new(1, &[sequence(0, 1, &largest)], Mask::Causal).unwrap();
    assert_eq!(step.pages_required(), 1 << 31);
}

// [S-3.10]: a mask made for other lengths with the same sum. Token 0 of sequence 1 would be its
// own parent, and its path would never end.
#[test]
fn a_tree_is_checked_against_the_lengths_of_its_step() {
    let pages = [PageId(0)];
    let mask = tree(&[-1, 0, -1, 0], &[2, 2]);
    let sequences = [sequence(1, 4, &pages), sequence(3, 4, &pages)];
    assert_snapshot!(
        error(Step::new(4, &sequences, mask.clone())),
        @"token 0 of sequence 1's draft has parent 0: expected -1 or an index below 0"
    );
    let sequences = [sequence(2, 4, &pages), sequence(0, 4, &pages), sequence(2, 4, &pages)];
    assert!(Step::new(4, &sequences, mask).is_ok());
}

// [S-4.19] [S-4.21]
#[test]
fn writes() {
    let pages = [PageId(3), PageId(0)];
    let step = || Step::new(4, &[sequence(2, 5, &pages), sequence(1, 1, &pages)], Mask::Full);
    let step = || step().unwrap();
    let writing = |slots: &[Slot]| {
        let writes = slots.iter().map(|&slot| Write { slot, position: 0 }).collect();
        error(step().writing(writes))
    };
    assert_snapshot!(
        writing(&[slot(0, 0), slot(1, 4)]), @"write 1 goes to row 4 of a page of 4"
    );
    assert_snapshot!(
        writing(&[slot(2, 1), slot(0, 3), slot(2, 2), slot(0, 3)]),
        @"writes 1 and 3 both go to row 3 of page 0"
    );
    assert_snapshot!(writing(&[slot(u32::MAX, 0)]), @"entry 0 has page id 4294967295, past 2^31");
    assert!(step().writing(vec![]).is_ok());
    let largest = Write { slot: slot(i32::MAX as u32, 3), position: i64::MIN };
    assert_eq!(step().writing(vec![largest]).map(|step| step.pages_required()), Ok(1 << 31));
    // Sequences that share their first page both append to its first row.
    let both = Step::new(4, &[sequence(1, 1, &pages), sequence(1, 1, &pages)], Mask::Causal);
    assert_snapshot!(
        error(both.unwrap().appending()), @"writes 0 and 1 both go to row 0 of page 3"
    );
    let beyond = Step::new(4, &[sequence(2, 1, &pages)], Mask::Causal).unwrap();
    assert_snapshot!(
        error(beyond.appending()), @"sequence 0 would append 2 rows within 1 cached tokens"
    );
    // 2^31 writes do not fit a test; the words do.
    assert_snapshot!(
        InvalidStep::TooManyWrites { writes: 1 << 31 }, @"a step of 2147483648 writes"
    );
}

// [S-4.10] [S-4.14] [S-4.16] [S-4.20]
#[test]
fn page_tables() {
    assert_snapshot!(error(PageTables::new(0, 4)), @"the page size is 0");
    assert_snapshot!(
        error(PageTables::new(16, 1 << 31)),
        @"2147483648 pages of 16 tokens are more than a pool can have"
    );
    let mut tables = PageTables::new(4, 3).unwrap();
    let a = tables.insert();
    tables.extend(a, 6).unwrap();
    assert_snapshot!(error(tables.extend(a, 7)), @"the pool is exhausted: 2 pages needed, 1 free");
    assert_snapshot!(
        error(tables.extend(a, usize::MAX)),
        @"sequence #0 cannot grow from 6 by 18446744073709551615 tokens"
    );
    assert_snapshot!(
        error(tables.pages_needed(a, i32::MAX as usize - 5)),
        @"sequence #0 cannot grow from 6 by 2147483642 tokens"
    );
    assert!(tables.pages_needed(a, i32::MAX as usize - 6).is_ok());
    assert_snapshot!(
        error(tables.truncate(a, 7)), @"sequence #0 has 6 tokens and cannot be truncated to 7"
    );
    assert_snapshot!(
        error(tables.keep(a, 7, &[])), @"sequence #0 has 6 tokens, fewer than the 7 of its draft"
    );
    for path in [&[1, 1][..], &[1, 0], &[3], &[usize::MAX]] {
        let expected = PageError::InvalidPath { draft: 3, path: path.to_vec() };
        assert_eq!(error(tables.keep(a, 3, path)), expected);
    }
    assert_snapshot!(
        error(tables.keep(a, 3, &[0, 3])),
        @"path [0, 3] does not increase strictly within a draft of 3 tokens"
    );
    assert_snapshot!(
        error(tables.step(&[(a, 7)], MaskKind::Causal)),
        @"sequence #0 has 6 tokens, fewer than the 7 of its draft"
    );
    assert_snapshot!(
        error(tables.step(&[(a, 2)], MaskKind::Tree(&[-1]))),
        @"a tree mask over 2 queries has 1 parents"
    );
    assert_snapshot!(
        error(tables.step(&[(a, 1), (a, 2)], MaskKind::Causal)),
        @"writes 0 and 2 both go to row 1 of page 1"
    );
    let (b, _) = tables.fork(a).unwrap();
    assert_snapshot!(error(tables.fork(a)), @"the pool is exhausted: 1 pages needed, 0 free");
    assert_snapshot!(
        error(tables.step(&[(b, 3)], MaskKind::Causal)),
        @"sequence #1 would write into page 0, which another sequence uses"
    );
    // Keeping token 1 of the last 3 moves it into the shared page.
    assert_snapshot!(
        error(tables.keep(b, 3, &[1])), @"the pool is exhausted: 1 pages needed, 0 free"
    );
    tables.remove(b).unwrap();
    let unknown = [
        error(tables.remove(b)),
        error(tables.len(b)),
        error(tables.pages(b)),
        error(tables.pages_needed(b, 1)),
        error(tables.extend(b, 1)),
        error(tables.truncate(b, 0)),
        error(tables.keep(b, 0, &[])),
        error(tables.fork(b)),
        error(tables.fork_prefix(b, 0)),
        error(tables.step(&[(b, 0)], MaskKind::Causal)),
    ];
    assert_snapshot!(unknown[0], @"sequence #1 is not in these page tables");
    assert!(unknown.iter().all(|error| *error == unknown[0]));
}

#[test]
fn huge_pools() {
    let max = usize::MAX;
    for (page_size, pages) in [(max, 2), (max, max), (1 << 60, 1 << 20)] {
        let expected = PageError::PoolTooLarge { pages, page_size };
        assert_eq!(error(PageTables::new(page_size, pages)), expected);
    }
    // The largest pool is made without listing its pages.
    let largest = i32::MAX as usize;
    let mut tables = PageTables::new(1, largest).unwrap();
    assert_eq!((tables.pages_total(), tables.free_pages()), (largest, largest));
    assert_eq!(tables.users(PageId(largest as u32 - 1)), Some(0));
    assert_eq!(tables.users(PageId(largest as u32)), None);
    let sequence = tables.insert();
    tables.extend(sequence, 3).unwrap();
    assert_eq!(tables.free_pages(), largest - 3);

    let mut tables = PageTables::new(max, 1).unwrap();
    let sequence = tables.insert();
    tables.extend(sequence, i32::MAX as usize).unwrap();
    assert_eq!(tables.free_pages(), 0);
    assert!(matches!(error(tables.extend(sequence, 1)), PageError::LengthOverflow { .. }));
}

/// What calls are made of: GLA with h_q = 2, s = 4, r = 2 over 2 pages of 4 tokens, one sequence
/// of 5 tokens of which 2 are queries and written.
struct Parts {
    problem: Problem,
    step: Step,
    cache: grouped_attention::ReferenceCache,
    plan: grouped_attention::ReferencePlan,
}

fn parts() -> Parts {
    let problem = Problem::new(Geometry::gla(2, 1, 4, 2).unwrap(), Dtype::F16, 1.0).unwrap();
    let pages = [PageId(1), PageId(0)];
    let step = Step::new(4, &[sequence(2, 5, &pages)], Mask::Causal).unwrap().appending().unwrap();
    let layout = CacheLayout::new(*problem.geometry(), Dtype::F16, 4, 2).unwrap();
    let cache = Reference.create_cache(layout).unwrap();
    let plan = Reference.plan(Planning::new(&problem, &step)).unwrap();
    Parts { problem, step, cache, plan }
}

fn zeros(dtype: Dtype, shape: &[usize]) -> grouped_attention::ReferenceTensor {
    Reference.allocate(dtype, shape).unwrap()
}

#[test]
fn uploads() {
    let mut to = zeros(Dtype::F16, &[2, 3]);
    let host = HostTensor::zeros(Dtype::F32, &[2, 3]).unwrap();
    assert_snapshot!(
        error(Upload::<Reference>::new(&mut to, &host)), @"host is f32, expected f16"
    );
    let host = HostTensor::zeros(Dtype::F16, &[3, 2]).unwrap();
    assert_snapshot!(
        error(Upload::<Reference>::new(&mut to, &host)), @"host is [3, 2], expected [2, 3]"
    );
}

#[test]
fn plans_and_updates() {
    let Parts { problem, step, mut plan, .. } = parts();
    let fits = *step.extent();
    let capacity = |capacity| error(Planning::with_capacity(&problem, &step, capacity));
    assert_snapshot!(
        capacity(Extent { sequences: 0, ..fits }), @"sequences is 1, and the plan's capacity is 0"
    );
    assert_snapshot!(
        capacity(Extent { total_q: 1, ..fits }), @"total_q is 2, and the plan's capacity is 1"
    );
    assert_snapshot!(
        capacity(Extent { max_q_len: 1, ..fits }), @"max_q_len is 2, and the plan's capacity is 1"
    );
    assert_snapshot!(
        capacity(Extent { max_kv_len: 4, ..fits }), @"max_kv_len is 5, and the plan's capacity is 4"
    );
    assert_snapshot!(
        capacity(Extent { writes: 1, ..fits }), @"writes is 2, and the plan's capacity is 1"
    );
    // [S-1.6]: engines reserve memory for a capacity.
    assert_snapshot!(
        capacity(Extent { total_q: 1 << 31, ..fits }),
        @"a capacity of 2147483648 total_q is past 2^31"
    );
    let largest = i32::MAX as usize;
    let largest = Extent {
        sequences: largest,
        total_q: largest,
        max_q_len: largest,
        max_kv_len: largest,
        writes: largest,
    };
    assert!(Planning::with_capacity(&problem, &step, largest).is_ok());
    for too_large in [
        Extent { sequences: usize::MAX, ..fits },
        Extent { max_q_len: usize::MAX, ..fits },
        Extent { max_kv_len: usize::MAX, ..fits },
        Extent { writes: usize::MAX, ..fits },
    ] {
        assert!(matches!(
            error(Planning::replayed(&problem, &step, too_large)),
            InvalidCall::CapacityTooLarge { capacity: usize::MAX, .. }
        ));
    }
    let pages = [PageId(0), PageId(1)];
    let other = Step::new(8, &[sequence(2, 5, &pages)], Mask::Causal).unwrap();
    assert_snapshot!(
        error(Update::<Reference>::new(&mut plan, &other)), @"the page size is 8, expected 4"
    );
    let longer = Step::new(4, &[sequence(2, 6, &pages)], Mask::Causal).unwrap();
    assert_snapshot!(
        error(Update::<Reference>::new(&mut plan, &longer)),
        @"max_kv_len is 6, and the plan's capacity is 5"
    );
}

#[test]
fn caches_of_another_kind() {
    let Parts { problem, mut plan, .. } = parts();
    let geometry = *problem.geometry();
    let mut caught = |geometry, dtype, page_size, pages| {
        let layout = CacheLayout::new(geometry, dtype, page_size, pages).unwrap();
        let mut cache = Reference.create_cache(layout).unwrap();
        let q = zeros(Dtype::F16, &[2, 2, 6]);
        let mut o = zeros(Dtype::F16, &[2, 2, 4]);
        let attend = error(Attend::<Reference>::new(&mut plan, &q, &cache, &mut o, None));
        let append = error(Append::<Reference>::new(&plan, &mut cache, &q, None));
        assert_eq!(attend, append);
        attend
    };
    assert_snapshot!(
        caught(Geometry::gta(2, 1, 4).unwrap(), Dtype::F16, 4, 2),
        @"the cache is gta h_q=2 h=1 s=4 n=2 r=2, the plan is for gla h_q=2 h=1 s=4 n=4 r=2"
    );
    assert_snapshot!(caught(geometry, Dtype::Bf16, 4, 2), @"cache is bf16, expected f16");
    assert_snapshot!(caught(geometry, Dtype::F16, 8, 2), @"the page size is 8, expected 4");
    // [S-4.17]
    assert_snapshot!(
        caught(geometry, Dtype::F16, 4, 1), @"page 1 is out of range: the cache has 1"
    );
}

#[test]
fn attentions() {
    let Parts { mut plan, cache, .. } = parts();
    let q = zeros(Dtype::F16, &[2, 2, 6]);
    let o = zeros(Dtype::F16, &[2, 2, 4]);
    let lse = zeros(Dtype::F32, &[2, 2]);
    let mut attend = |q: &_, o: &_, lse: Option<&_>| {
        let (mut o, mut lse): (grouped_attention::ReferenceTensor, Option<_>) =
            (Clone::clone(o), lse.cloned());
        error(Attend::<Reference>::new(&mut plan, q, &cache, &mut o, lse.as_mut()))
    };
    assert_snapshot!(
        attend(&zeros(Dtype::Bf16, &[2, 2, 6]), &o, Some(&lse)), @"q is bf16, expected f16"
    );
    // Absorbed queries are n + r wide, not the model's head dim.
    assert_snapshot!(
        attend(&zeros(Dtype::F16, &[2, 2, 4]), &o, None), @"q is [2, 2, 4], expected [2, 2, 6]"
    );
    assert_snapshot!(
        attend(&zeros(Dtype::F16, &[1, 2, 6]), &o, None), @"q is [1, 2, 6], expected [2, 2, 6]"
    );
    assert_snapshot!(
        attend(&zeros(Dtype::F16, &[]), &o, None), @"q is [], expected [2, 2, 6]"
    );
    assert_snapshot!(
        attend(&q, &zeros(Dtype::F32, &[2, 2, 4]), None), @"o is f32, expected f16"
    );
    assert_snapshot!(
        attend(&q, &zeros(Dtype::F16, &[2, 8]), None), @"o is [2, 8], expected [2, 2, 4]"
    );
    assert_snapshot!(
        attend(&q, &o, Some(&zeros(Dtype::F16, &[2, 2]))), @"lse is f16, expected f32"
    );
    assert_snapshot!(
        attend(&q, &o, Some(&zeros(Dtype::F32, &[2, 2, 1]))), @"lse is [2, 2, 1], expected [2, 2]"
    );
}

#[test]
fn appends() {
    let Parts { plan, mut cache, problem, step } = parts();
    let state = zeros(Dtype::F16, &[2, 1, 4]);
    let rope = zeros(Dtype::F16, &[2, 2]);
    let mut append = |first: &_, second: Option<&_>| {
        error(Append::<Reference>::new(&plan, &mut cache, first, second))
    };
    assert_snapshot!(append(&state, None), @"rope is missing");
    assert_snapshot!(
        append(&zeros(Dtype::F32, &[2, 1, 4]), Some(&rope)), @"state is f32, expected f16"
    );
    assert_snapshot!(
        append(&zeros(Dtype::F16, &[2, 4]), Some(&rope)), @"state is [2, 4], expected [2, 1, 4]"
    );
    assert_snapshot!(
        append(&state, Some(&zeros(Dtype::F16, &[1, 2]))), @"rope is [1, 2], expected [2, 2]"
    );
    assert_snapshot!(
        error(Append::<Reference>::rotating(&plan, &mut cache, &state, Some(&rope))),
        @"a rotating append needs a problem with a rope"
    );
    // A rotating append checks what any append checks.
    let turn = Rope::new(RopeStyle::HalfSplit, 2, 100.0, RopeScaling::None).unwrap();
    let rotating = problem.rotating(turn).unwrap();
    let plan = Reference.plan(Planning::new(&rotating, &step)).unwrap();
    assert_snapshot!(
        error(Append::<Reference>::rotating(&plan, &mut cache, &state, None)), @"rope is missing"
    );
}

// Separate rows have other names for their parts.
#[test]
fn appends_of_keys_and_values() {
    let problem = Problem::new(Geometry::gqa(2, 1, 4).unwrap(), Dtype::F32, 1.0).unwrap();
    let step = Step::new(4, &[sequence(1, 1, &[PageId(0)])], Mask::Causal).unwrap();
    let step = step.appending().unwrap();
    let layout = CacheLayout::new(*problem.geometry(), Dtype::F32, 4, 1).unwrap();
    let mut cache = Reference.create_cache(layout).unwrap();
    let plan = Reference.plan(Planning::new(&problem, &step)).unwrap();
    let good = zeros(Dtype::F32, &[1, 1, 4]);
    let wide = zeros(Dtype::F32, &[1, 1, 5]);
    let mut append = |first: &_, second: Option<&_>| {
        error(Append::<Reference>::new(&plan, &mut cache, first, second))
    };
    assert_snapshot!(append(&wide, Some(&good)), @"key is [1, 1, 5], expected [1, 1, 4]");
    assert_snapshot!(append(&good, Some(&wide)), @"value is [1, 1, 5], expected [1, 1, 4]");
    assert_snapshot!(append(&good, None), @"value is missing");
}

// [S-4.17]
#[test]
fn copies() {
    let Parts { mut cache, .. } = parts();
    let mut copy = |from, to, rows| {
        CopyRows::<Reference>::new(&mut cache, &[RowCopy { from, to, rows }]).map(|_| ())
    };
    assert_snapshot!(
        error(copy(slot(0, 0), slot(2, 0), 1)), @"page 2 is out of range: the cache has 2"
    );
    assert_snapshot!(
        error(copy(slot(7, 0), slot(0, 0), 1)), @"page 7 is out of range: the cache has 2"
    );
    assert_snapshot!(
        error(copy(slot(0, 1), slot(1, 0), 4)),
        @"a copy of 4 rows from row 1 of page 0 to row 0 of page 1 leaves a page of 4 rows"
    );
    assert_snapshot!(
        error(copy(slot(0, 0), slot(0, 1), 2)),
        @"a copy of 2 rows from row 0 of page 0 to row 1 of page 0 overlaps itself"
    );
    for (from, to, rows) in [
        (slot(0, 0), slot(1, 1), 4),
        (slot(0, 0), slot(1, 1), usize::MAX),
        // No row at all, and still a slot that no page has.
        (slot(0, 4), slot(1, 0), 0),
        (slot(0, 0), slot(1, usize::MAX), 0),
    ] {
        assert!(matches!(copy(from, to, rows), Err(InvalidCall::CopyBeyondPage { .. })));
    }
    for (from, to) in [(slot(0, 1), slot(0, 0)), (slot(0, 1), slot(0, 1))] {
        assert!(matches!(copy(from, to, 2), Err(InvalidCall::CopyOntoItself { .. })));
    }
    // Touching runs of one page are apart, equal rows of two pages too.
    for (from, to) in [(slot(0, 0), slot(0, 2)), (slot(0, 2), slot(0, 0)), (slot(0, 1), slot(1, 1))]
    {
        assert_eq!(copy(from, to, 2), Ok(()));
    }
    assert_eq!(copy(slot(0, 3), slot(0, 3), 0), Ok(()));
}

#[test]
fn reads() {
    let Parts { cache, .. } = parts();
    let read = |slots: &[Slot]| error(ReadRows::<Reference>::new(&cache, slots));
    assert_snapshot!(
        read(&[slot(0, 0), slot(2, 0)]), @"page 2 is out of range: the cache has 2"
    );
    assert_snapshot!(read(&[slot(1, 3), slot(1, 4)]), @"row 4 of page 1 is past a page of 4 rows");
    assert!(ReadRows::<Reference>::new(&cache, &[slot(1, 3)]).is_ok());
}

#[test]
fn merges() {
    let o = || zeros(Dtype::F16, &[3, 2, 4]);
    let lse = || zeros(Dtype::F32, &[3, 2]);
    let merge = |mut o, mut lse, other_o, other_lse| {
        error(Merge::<Reference>::new(&mut o, &mut lse, &other_o, &other_lse))
    };
    assert_snapshot!(
        merge(zeros(Dtype::F16, &[3, 8]), lse(), o(), lse()), @"o is [3, 8], expected 3 dimensions"
    );
    assert_snapshot!(
        merge(o(), zeros(Dtype::F16, &[3, 2]), o(), lse()), @"lse is f16, expected f32"
    );
    assert_snapshot!(
        merge(o(), zeros(Dtype::F32, &[3, 3]), o(), lse()), @"lse is [3, 3], expected [3, 2]"
    );
    assert_snapshot!(
        merge(o(), lse(), o(), zeros(Dtype::F16, &[3, 2])), @"other_lse is f16, expected f32"
    );
    // Merging is exact about rows: more of them on one side is an error here.
    assert_snapshot!(
        merge(o(), lse(), o(), zeros(Dtype::F32, &[4, 2])), @"other_lse is [4, 2], expected [3, 2]"
    );
    assert_snapshot!(
        merge(o(), lse(), zeros(Dtype::Bf16, &[3, 2, 4]), lse()),
        @"other_o is bf16, expected f16"
    );
    assert_snapshot!(
        merge(o(), lse(), zeros(Dtype::F16, &[3, 2, 5]), lse()),
        @"other_o is [3, 2, 5], expected [3, 2, 4]"
    );
}

// [S-3.22]
#[test]
fn extensions() {
    let Parts { problem, step, .. } = parts();
    let asked = |extension| {
        let problem = problem.clone().extended(extension);
        let planned = error(Reference.plan(Planning::new(&problem, &step)));
        let said = error(Reference.supports(&problem));
        assert_eq!(planned, EngineError::Unsupported(said.clone()));
        assert_eq!(planned.to_string(), said.to_string());
        said
    };
    assert_snapshot!(
        asked(Extension::SlidingWindow { window: 128 }),
        @"SlidingWindow { window: 128 } is not supported"
    );
    assert_snapshot!(
        asked(Extension::SoftCap { cap: 30.0 }), @"SoftCap { cap: 30.0 } is not supported"
    );
    assert_snapshot!(asked(Extension::Sinks), @"Sinks is not supported");
    // The reference has no other limit; engines that do say it in these words.
    assert_snapshot!(Unsupported::Dtype { dtype: Dtype::F16 }, @"f16 is not supported");
    assert_snapshot!(
        Unsupported::Geometry { geometry: *problem.geometry(), reason: "r is 2".into() },
        @"gla h_q=2 h=1 s=4 n=4 r=2 is not supported: r is 2"
    );
    assert_snapshot!(Unsupported::Other { what: "a tree".into() }, @"a tree is not supported");
}

// [S-1.6]: an address space of memory is refused in words, before any page of it is touched.
#[test]
fn memory() {
    let allocated = |shape: &[usize]| error(Reference.allocate(Dtype::F32, shape));
    assert_snapshot!(
        allocated(&[1 << 59]),
        @"out of memory: 4611686018427387904 bytes could not be allocated"
    );
    for shape in [&[usize::MAX][..], &[1 << 60], &[usize::MAX, usize::MAX]] {
        assert_eq!(allocated(shape), EngineError::OutOfMemory { bytes: usize::MAX });
    }
    let layout = CacheLayout::new(Geometry::mqa(1, 1).unwrap(), Dtype::F32, 1 << 58, 1).unwrap();
    assert_eq!(error(Reference.create_cache(layout)), EngineError::OutOfMemory { bytes: 1 << 61 });
}

#[test]
fn engine_errors() {
    let unavailable = EngineError::Unavailable { engine: "cuda", reason: "no driver".into() };
    assert_snapshot!(unavailable, @"cuda is not available: no driver");
    let device = |lost| EngineError::Device { message: "launch failed".into(), lost };
    assert_snapshot!(device(false), @"device error: launch failed");
    assert_snapshot!(device(true), @"device error: launch failed; the backend is lost");
    assert_snapshot!(
        EngineError::Foreign { what: "tensor" }, @"the tensor belongs to another engine"
    );
}

// `?` gathers every error, and gathering changes no word.
#[test]
fn gathered() {
    fn all(stage: usize) -> Result<(), Error> {
        let geometry = Geometry::gqa(4, [2, 3][usize::from(stage == 0)], 8)?;
        let problem = Problem::new(geometry, Dtype::F32, [1.0, 0.0][usize::from(stage == 1)])?;
        CacheLayout::new(geometry, Dtype::F32, usize::from(stage != 2), 1)?;
        HostTensor::zeros(Dtype::F32, &[usize::from(stage == 3) * usize::MAX])?;
        Rope::new(RopeStyle::HalfSplit, usize::from(stage == 4), 2.0, RopeScaling::None)?;
        Mask::new(MaskKind::Tree(&[-1]), [1 + usize::from(stage == 5)])?;
        let step = Step::new(usize::from(stage != 6), &[], Mask::Full)?;
        PageTables::new(1, usize::from(stage == 7) * usize::MAX)?;
        let mut to = tensor(&Reference, Dtype::F32, &[1], &[1.0]);
        let host = HostTensor::zeros(Dtype::F32, &[1 + usize::from(stage == 8)])?;
        Upload::<Reference>::new(&mut to, &host)?;
        let problem = if stage == 9 { problem.extended(Extension::Sinks) } else { problem };
        Reference.plan(Planning::new(&problem, &step))?;
        ["f32", "f64"][usize::from(stage == 10)].parse::<Dtype>()?;
        RmsNorm::new(vec![1.0], f64::from(u8::from(stage != 11)))?;
        Sharding::new(geometry, usize::from(stage != 12))?;
        let problem = if stage == 13 { problem.extended(Extension::Sinks) } else { problem };
        Reference.supports(&problem)?;
        Ok(())
    }
    let words: Vec<String> = (0..14).map(|stage| error(all(stage)).to_string()).collect();
    assert_snapshot!(words.join("\n"), @r#"
    3 cached heads do not divide 4 query heads
    a scale must be finite and positive in f32, also times log2(e), and 0 is not
    the page size is 0
    a tensor of shape [18446744073709551615] does not fit in memory
    rope rotates pairs, and its width 1 is odd
    a tree mask over 2 queries has 1 parents
    the page size is 0
    18446744073709551615 pages of 1 tokens are more than a pool can have
    host is [2], expected [1]
    Sinks is not supported
    unknown dtype "f64": expected f32, f16 or bf16
    norm eps 0 is not a finite number above 0
    a layer needs at least one device
    Sinks is not supported
    "#);
    assert_eq!(all(14), Ok(()));
    for stage in [9, 13] {
        assert!(matches!(all(stage), Err(Error::Engine(EngineError::Unsupported(_)))));
    }
}
