//! What [`Backend`]'s "must" sentences promise, on the reference engine: capacity and updates, rows
//! beyond the step, absent outputs, and where rows go.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod common;

use common::{Numbers, Plain, append, attended, host_bits, row_tensors, tensor};
use grouped_attention::{
    Append, Attend, Backend, CacheInfo, CacheLayout, CopyRows, Dtype, Extent, Geometry, HostTensor,
    InvalidCall, MaskKind, Merge, PageId, PageTables, PlanInfo, Planning, Problem, ReadRows,
    Reference, ReferenceCache, ReferenceTensor, RowCopy, SequenceId, Slot, Step, TensorInfo,
    Update, Upload, Values, Write,
};

const PAGE_SIZE: usize = 3;
const PAGES: usize = 8;

/// GQA with h_q = 4, h_kv = 2, d_h = 3: queries and outputs `[total_q, 4, 3]`.
fn problem() -> Problem {
    Problem::new(Geometry::gqa(4, 2, 3).unwrap(), Dtype::F32, 0.6).unwrap()
}

/// Two sequences of 5 and 4 tokens whose rows are in the cache.
struct Two {
    problem: Problem,
    tables: PageTables,
    cache: ReferenceCache,
    a: SequenceId,
    b: SequenceId,
}

fn two() -> Two {
    let problem = problem();
    let layout = CacheLayout::new(*problem.geometry(), Dtype::F32, PAGE_SIZE, PAGES).unwrap();
    let mut cache = Reference.create_cache(layout).unwrap();
    let mut tables = PageTables::new(PAGE_SIZE, PAGES).unwrap();
    let (a, b) = (tables.insert(), tables.insert());
    tables.extend(a, 5).unwrap();
    tables.extend(b, 4).unwrap();
    let step = tables.step(&[(a, 5), (b, 4)], MaskKind::Causal).unwrap();
    let rows = Plain::random(&mut Numbers(31), problem.geometry(), 0, 9).rows;
    append(&Reference, &problem, &step, &mut cache, &rows);
    Two { problem, tables, cache, a, b }
}

/// A step over sequences of [`two`], of whose tokens the last are queries and none is written.
fn reading(two: &Two, queries: &[(SequenceId, usize)]) -> Step {
    two.tables.step(queries, MaskKind::Causal).unwrap().writing(vec![]).unwrap()
}

fn ones(dtype: Dtype, shape: &[usize]) -> ReferenceTensor {
    let elements = shape.iter().product();
    tensor(&Reference, dtype, shape, &vec![1.0; elements])
}

#[test]
fn allocation_is_zeros_of_the_shape() {
    for (dtype, shape) in [(Dtype::F32, &[2, 3][..]), (Dtype::Bf16, &[]), (Dtype::F16, &[0, 4])] {
        let tensor = Reference.allocate(dtype, shape).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape));
        let host = Reference.download(&tensor).unwrap();
        assert_eq!(host, HostTensor::zeros(dtype, shape).unwrap());
        assert_eq!(host.values().len(), shape.iter().product::<usize>());
        assert_eq!(host.values().is_empty(), shape.contains(&0));
    }
}

// [S-1.5] [S-4.9]: what is uploaded comes back, every bit of every number.
#[test]
fn upload_and_download_keep_every_bit() {
    let f16s: Vec<_> = (0..=u16::MAX).map(half::f16::from_bits).filter(|x| !x.is_nan()).collect();
    let bf16s: Vec<_> = (0..=u16::MAX).map(half::bf16::from_bits).filter(|x| !x.is_nan()).collect();
    let f32s = vec![0.0, -0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::INFINITY, -1.5];
    for values in [Values::F16(f16s), Values::Bf16(bf16s), Values::F32(f32s)] {
        let host = HostTensor::new(&[values.len()], values).unwrap();
        let mut tensor = Reference.allocate(host.dtype(), host.shape()).unwrap();
        Reference.upload(Upload::new(&mut tensor, &host).unwrap()).unwrap();
        let back = Reference.download(&tensor).unwrap();
        assert_eq!(host_bits(&back), host_bits(&host));
        assert_eq!(back.shape(), host.shape());
        assert_eq!(tensor.values(), host.to_f64());
    }
}

// [S-4.7]: row w goes to the cell of write w, and no other cell changes.
#[test]
fn append_writes_its_cells_and_no_other() {
    let Two { problem, mut cache, .. } = two();
    let before = cache.clone();
    let slot = |page, row| Slot { page: PageId(page), row };
    let (w0, w1) = (slot(6, 2), slot(2, 1));
    let write = |slot| Write { slot, position: 0 };
    let step = Step::new(PAGE_SIZE, &[], grouped_attention::Mask::Full).unwrap();
    let step = step.writing(vec![write(w0), write(w1)]).unwrap();
    let plan = Reference.plan(Planning::new(&problem, &step)).unwrap();
    // A third row that no write asks for: tensors may have more rows.
    let rows = Plain::random(&mut Numbers(32), problem.geometry(), 0, 3).rows;
    let (keys, values) = row_tensors(&Reference, &problem, &rows);
    let call = Append::new(&plan, &mut cache, &keys, values.as_ref()).unwrap();
    Reference.append(call).unwrap();
    for page in 0..PAGES as u32 {
        for row in 0..PAGE_SIZE {
            let at = slot(page, row);
            let expected = match at {
                _ if at == w0 => [&rows[0][0][..], &rows[0][1]],
                _ if at == w1 => [&rows[1][0][..], &rows[1][1]],
                _ => [before.first(at), before.second(at)],
            };
            assert_eq!(common::bits(cache.first(at)), common::bits(expected[0]), "{at:?}");
            assert_eq!(common::bits(cache.second(at)), common::bits(expected[1]), "{at:?}");
        }
    }
}

#[test]
fn a_fresh_cache_is_nan_so_that_reading_it_shows() {
    let layout = CacheLayout::new(Geometry::mla(2, 3, 1).unwrap(), Dtype::F32, 2, 2).unwrap();
    for cache in [ReferenceCache::new(layout), Reference.create_cache(layout).unwrap()] {
        let last = Slot { page: PageId(1), row: 1 };
        assert_eq!((cache.first(last).len(), cache.second(last).len()), (3, 1));
        assert!(cache.first(last).iter().chain(cache.second(last)).all(|x| x.is_nan()));
    }
}

#[test]
#[should_panic(expected = "the parts of a row")]
fn writing_a_row_of_another_width_panics() {
    let layout = CacheLayout::new(Geometry::mqa(1, 2).unwrap(), Dtype::F32, 2, 2).unwrap();
    ReferenceCache::new(layout).write(Slot { page: PageId(1), row: 0 }, &[1.0], &[1.0, 2.0]);
}

#[test]
#[should_panic(expected = "leaves its page")]
fn writing_past_a_page_panics() {
    let layout = CacheLayout::new(Geometry::mqa(1, 1).unwrap(), Dtype::F32, 2, 2).unwrap();
    ReferenceCache::new(layout).write(Slot { page: PageId(0), row: 2 }, &[1.0], &[1.0]);
}

#[test]
#[should_panic(expected = "page sizes of the cache and of the step")]
fn the_definition_refuses_a_cache_of_other_pages() {
    let Two { problem, tables, a, .. } = two();
    let step = tables.step(&[(a, 1)], MaskKind::Causal).unwrap();
    let layout = CacheLayout::new(*problem.geometry(), Dtype::F32, PAGE_SIZE + 1, PAGES).unwrap();
    let cache = ReferenceCache::new(layout);
    grouped_attention::attend(&problem, &step, &[0.0; 12], &cache);
}

#[test]
#[should_panic(expected = "rows of the cache and of the problem")]
fn the_definition_refuses_a_cache_of_other_rows() {
    let Two { problem, tables, a, .. } = two();
    let step = tables.step(&[(a, 1)], MaskKind::Causal).unwrap();
    let wider = Geometry::gqa(4, 2, 4).unwrap();
    let cache = ReferenceCache::new(CacheLayout::new(wider, Dtype::F32, PAGE_SIZE, PAGES).unwrap());
    grouped_attention::attend(&problem, &step, &[0.0; 12], &cache);
}

#[test]
#[should_panic(expected = "queries are [total_q, h_q, width_k]")]
fn the_definition_refuses_queries_of_another_size() {
    let Two { problem, tables, a, cache, .. } = two();
    let step = tables.step(&[(a, 1)], MaskKind::Causal).unwrap();
    grouped_attention::attend(&problem, &step, &[0.0; 13], &cache);
}

// [S-4.11]: copies take effect in their order, each complete before the next, and keep bits.
#[test]
fn copies_run_in_order() {
    let Two { mut cache, .. } = two();
    let before = cache.clone();
    let slot = |page, row| Slot { page: PageId(page), row };
    let copies = [
        RowCopy { from: slot(0, 0), to: slot(6, 1), rows: 2 },
        RowCopy { from: slot(6, 1), to: slot(7, 0), rows: 1 },
        RowCopy { from: slot(7, 0), to: slot(7, 2), rows: 1 },
        RowCopy { from: slot(0, 2), to: slot(5, 0), rows: 0 },
    ];
    Reference.copy_rows(CopyRows::new(&mut cache, &copies).unwrap()).unwrap();
    for (to, from) in [
        (slot(6, 1), slot(0, 0)),
        (slot(6, 2), slot(0, 1)),
        (slot(7, 0), slot(0, 0)),
        (slot(7, 2), slot(0, 0)),
        (slot(0, 0), slot(0, 0)),
    ] {
        assert_eq!(cache.first(to), before.first(from));
        assert_eq!(cache.second(to), before.second(from));
    }
    for untouched in [slot(6, 0), slot(7, 1), slot(5, 0)] {
        assert!(cache.first(untouched).iter().all(|x| x.is_nan()));
    }
}

// [S-4.9]: rows come back in the order of the slots, and an append puts them where they were.
#[test]
fn rows_are_read_as_they_were_written() {
    for geometry in [Geometry::gqa(4, 2, 3), Geometry::gla(4, 2, 3, 2), Geometry::mla(4, 3, 0)] {
        let geometry = geometry.unwrap();
        let problem = Problem::new(geometry, Dtype::F16, 1.0).unwrap();
        let layout = CacheLayout::new(geometry, Dtype::F16, 2, 3).unwrap();
        let mut cache = Reference.create_cache(layout).unwrap();
        let slots = [(2, 1), (0, 0), (1, 1)].map(|(page, row)| Slot { page: PageId(page), row });
        let writes = slots.map(|slot| Write { slot, position: 0 }).to_vec();
        let step = Step::new(2, &[], grouped_attention::Mask::Full).unwrap();
        let step = step.writing(writes).unwrap();
        let mut rows = Plain::random(&mut Numbers(37), &geometry, 0, 3).rows;
        rows.iter_mut().flatten().flatten().for_each(|x| *x = Dtype::F16.round(*x));
        append(&Reference, &problem, &step, &mut cache, &rows);
        // Twice the same slot is legal.
        let order = [slots[1], slots[0], slots[2], slots[0]];
        let [first, second] = Reference.read_rows(ReadRows::new(&cache, &order).unwrap()).unwrap();
        let expected: Vec<_> = [1, 0, 2, 0].map(|index| rows[index].clone()).to_vec();
        let (tensor, part) = row_tensors(&Reference, &problem, &expected);
        assert_eq!(first, Reference.download(&tensor).unwrap());
        match part {
            Some(part) => assert_eq!(second, Reference.download(&part).unwrap()),
            None => assert_eq!(second.shape(), [4, 0]),
        }
        let [none, _] = Reference.read_rows(ReadRows::new(&cache, &[]).unwrap()).unwrap();
        assert_eq!(none.shape()[0], 0);
    }
}

// Numbers that no format holds, for the definition alone.
#[test]
fn exact_rows_are_not_rounded() {
    let layout = CacheLayout::new(Geometry::mqa(1, 1).unwrap(), Dtype::Bf16, 1, 2).unwrap();
    let mut cache = ReferenceCache::new(layout);
    let (third, slot) = (1.0 / 3.0, Slot { page: PageId(1), row: 0 });
    cache.write_exact(slot, &[third], &[-third]);
    assert_eq!((cache.first(slot), cache.second(slot)), (&[third][..], &[-third][..]));
    cache.write(slot, &[third], &[-third]);
    let rounded = Dtype::Bf16.round(third);
    assert_eq!((cache.first(slot), cache.second(slot)), (&[rounded][..], &[-rounded][..]));
}

// "It must write the first total_q rows of o and lse and leave the rest as it is."
#[test]
fn rows_beyond_the_step_stay_as_they_are() {
    let mut two = two();
    let step = reading(&two, &[(two.a, 1), (two.b, 1)]);
    let q = Plain::random(&mut Numbers(33), two.problem.geometry(), 4, 0).q.concat();
    let (o_alone, lse_alone) =
        attended(&Reference, &two.problem, &step, &two.cache, &q[..2 * 4 * 3]);

    let mut plan = Reference.plan(Planning::new(&two.problem, &step)).unwrap();
    let q = tensor(&Reference, Dtype::F32, &[4, 4, 3], &q);
    let (mut o, mut lse) = (ones(Dtype::F32, &[5, 4, 3]), ones(Dtype::F32, &[3, 4]));
    let call = Attend::new(&mut plan, &q, &two.cache, &mut o, Some(&mut lse)).unwrap();
    Reference.attend(call).unwrap();
    assert_eq!(o.values()[..24], o_alone);
    assert_eq!(lse.values()[..8], lse_alone);
    assert!(o.values()[24..].iter().chain(&lse.values()[8..]).all(|&x| x == 1.0));

    // A batch of nothing does nothing. [S-3.13]
    let nothing = Step::new(PAGE_SIZE, &[], grouped_attention::Mask::Causal).unwrap();
    let mut plan = Reference.plan(Planning::new(&two.problem, &nothing)).unwrap();
    let empty = Reference.allocate(Dtype::F32, &[0, 4, 3]).unwrap();
    let before = (o.clone(), lse.clone());
    let call = Attend::new(&mut plan, &empty, &two.cache, &mut o, Some(&mut lse)).unwrap();
    Reference.attend(call).unwrap();
    assert_eq!((o, lse), before);
    let (keys, values) = row_tensors(&Reference, &two.problem, &[]);
    let cells = format!("{:?}", two.cache);
    let call = Append::new(&plan, &mut two.cache, &keys, values.as_ref()).unwrap();
    Reference.append(call).unwrap();
    assert_eq!(format!("{:?}", two.cache), cells);
}

// "lse: not computed where absent" must not change o.
#[test]
fn an_absent_lse_changes_nothing_else() {
    let two = two();
    let step = reading(&two, &[(two.a, 2), (two.b, 3)]);
    let q = Plain::random(&mut Numbers(34), two.problem.geometry(), 5, 0).q.concat();
    let (expected, _) = attended(&Reference, &two.problem, &step, &two.cache, &q);
    let mut plan = Reference.plan(Planning::new(&two.problem, &step)).unwrap();
    let q = tensor(&Reference, Dtype::F32, &[5, 4, 3], &q);
    let mut o = ones(Dtype::F32, &[5, 4, 3]);
    Reference.attend(Attend::new(&mut plan, &q, &two.cache, &mut o, None).unwrap()).unwrap();
    assert_eq!(o.values(), expected);
}

// [S-3.17]
#[test]
fn f32_outputs_are_not_rounded_to_the_caches_format() {
    let geometry = Geometry::mqa(1, 1).unwrap();
    let layout = CacheLayout::new(geometry, Dtype::Bf16, 2, 1).unwrap();
    let narrow = Problem::new(geometry, Dtype::Bf16, 1.0).unwrap();
    let wide = narrow.clone().f32_output();
    assert_eq!(
        (narrow.output(), wide.output(), wide.dtype()),
        (Dtype::Bf16, Dtype::F32, Dtype::Bf16)
    );
    let step = Step::new(
        2,
        &[grouped_attention::Sequence { q_len: 1, kv_len: 2, pages: &[PageId(0)] }],
        grouped_attention::Mask::Full,
    )
    .unwrap();
    let mut cache = Reference.create_cache(layout).unwrap();
    // Equal keys; the mean of 1 and 1 + 2^-7 is halfway between two numbers of bf16.
    cache.write(Slot { page: PageId(0), row: 0 }, &[0.0], &[1.0]);
    cache.write(Slot { page: PageId(0), row: 1 }, &[0.0], &[1.0078125]);
    assert_eq!(attended(&Reference, &narrow, &step, &cache, &[1.0]).0, [1.0]);
    assert_eq!(attended(&Reference, &wide, &step, &cache, &[1.0]).0, [1.00390625]);
}

/// Room for three sequences of two queries and seven tokens.
fn room() -> Extent {
    Extent { sequences: 3, total_q: 6, max_q_len: 2, max_kv_len: 7, writes: 6 }
}

#[test]
fn a_plan_says_what_it_was_made_for() {
    let two = two();
    let step = two.tables.step(&[(two.a, 2), (two.b, 1)], MaskKind::Causal).unwrap();
    let extent = Extent { sequences: 2, total_q: 3, max_q_len: 2, max_kv_len: 5, writes: 3 };
    assert_eq!(*step.extent(), extent);
    let plan = Reference.plan(Planning::new(&two.problem, &step)).unwrap();
    let planned = plan.planned();
    assert_eq!((planned.problem(), planned.page_size()), (&two.problem, PAGE_SIZE));
    assert_eq!((planned.extent(), planned.capacity()), (&extent, &extent));
    assert_eq!((planned.query_rows(), planned.write_rows()), (3, 3));
    assert_eq!(planned.pages_required(), 4);

    let call = Planning::with_capacity(&two.problem, &step, room()).unwrap();
    let plan = Reference.plan(call).unwrap();
    let planned = plan.planned();
    assert_eq!((planned.extent(), planned.capacity()), (&extent, &room()));
    assert_eq!((planned.query_rows(), planned.write_rows()), (3, 3));
    assert!(!planned.is_replayed());
}

// A replayed call sees later steps, so its tensors have the capacity's rows from the first on.
#[test]
fn a_replayed_plan_asks_for_the_rows_of_its_capacity() {
    let mut two = two();
    let step = two.tables.step(&[(two.a, 1)], MaskKind::Causal).unwrap();
    let (q, mut o) = (ones(Dtype::F32, &[6, 4, 3]), ones(Dtype::F32, &[5, 4, 3]));
    let rows = ones(Dtype::F32, &[5, 2, 3]);
    let shape = |tensor, expected: [usize; 3], got: [usize; 3]| {
        Err(InvalidCall::Shape { tensor, expected: expected.to_vec(), got: got.to_vec() })
    };
    let call = Planning::replayed(&two.problem, &step, room()).unwrap();
    let mut plan = Reference.plan(call).unwrap();
    for _ in 0..2 {
        let planned = plan.planned();
        assert!(planned.is_replayed());
        assert_eq!((planned.query_rows(), planned.write_rows()), (6, 6));
        let refused = Attend::<Reference>::new(&mut plan, &q, &two.cache, &mut o, None).map(|_| ());
        assert_eq!(refused, shape("o", [6, 4, 3], [5, 4, 3]));
        let refused = Append::<Reference>::new(&plan, &mut two.cache, &rows, Some(&rows));
        assert_eq!(refused.map(|_| ()), shape("key", [6, 2, 3], [5, 2, 3]));
        // An update leaves the plan replayed.
        Reference.update(Update::new(&mut plan, &step).unwrap()).unwrap();
    }
    // Without replay, the rows of the step are enough.
    let call = Planning::with_capacity(&two.problem, &step, room()).unwrap();
    let mut plan = Reference.plan(call).unwrap();
    assert!(Attend::<Reference>::new(&mut plan, &q, &two.cache, &mut o, None).is_ok());
    assert!(Append::<Reference>::new(&plan, &mut two.cache, &rows, Some(&rows)).is_ok());
}

#[test]
fn an_update_is_a_fresh_plan() {
    let mut two = two();
    let first = reading(&two, &[(two.a, 1)]);
    let call = Planning::replayed(&two.problem, &first, room()).unwrap();
    let mut plan = Reference.plan(call).unwrap();
    two.tables.truncate(two.a, 3).unwrap();
    let q = Plain::random(&mut Numbers(35), two.problem.geometry(), 6, 0).q.concat();
    let q_tensor = tensor(&Reference, Dtype::F32, &[6, 4, 3], &q);
    // Shorter, longer, reordered, and with padding sequences of no query.
    for queries in [
        vec![(two.a, 2)],
        vec![(two.b, 2), (two.a, 2)],
        vec![(two.a, 0), (two.b, 1), (two.a, 0)],
        vec![(two.b, 0)],
        vec![],
    ] {
        let step = reading(&two, &queries);
        Reference.update(Update::new(&mut plan, &step).unwrap()).unwrap();
        let planned = plan.planned();
        assert_eq!((planned.extent(), planned.capacity()), (step.extent(), &room()));
        assert_eq!(planned.pages_required(), step.pages_required());
        assert_eq!((planned.problem(), planned.page_size()), (&two.problem, PAGE_SIZE));
        let total = step.total_q() * 4;
        let (expected_o, expected_lse) =
            attended(&Reference, &two.problem, &step, &two.cache, &q[..total * 3]);
        let (mut o, mut lse) = (ones(Dtype::F32, &[6, 4, 3]), ones(Dtype::F32, &[6, 4]));
        let call = Attend::new(&mut plan, &q_tensor, &two.cache, &mut o, Some(&mut lse)).unwrap();
        Reference.attend(call).unwrap();
        assert_eq!(o.values()[..total * 3], expected_o);
        assert_eq!(lse.values()[..total], expected_lse);
        assert!(o.values()[total * 3..].iter().all(|&x| x == 1.0));
    }
}

// A capacity is what the first plan reserved; a smaller step does not shrink it, and a step past
// it is refused and leaves the plan as it was.
#[test]
fn updates_stay_within_the_first_capacity() {
    let two = two();
    let large = reading(&two, &[(two.a, 2), (two.b, 2)]);
    let mut plan = Reference.plan(Planning::new(&two.problem, &large)).unwrap();
    let small = reading(&two, &[(two.b, 1)]);
    Reference.update(Update::new(&mut plan, &small).unwrap()).unwrap();
    assert_eq!(
        (plan.planned().extent(), plan.planned().capacity()),
        (small.extent(), large.extent())
    );
    assert_eq!(plan.planned().query_rows(), 1);
    let refused =
        |step: &Step, plan: &mut _| Update::<Reference>::new(plan, step).map(|_| ()).unwrap_err();
    let three = reading(&two, &[(two.a, 1), (two.b, 1), (two.a, 0)]);
    let capacity = |what, capacity, got| InvalidCall::Capacity { what, capacity, got };
    assert_eq!(refused(&three, &mut plan), capacity("sequences", 2, 3));
    let long = reading(&two, &[(two.a, 3)]);
    assert_eq!(refused(&long, &mut plan), capacity("max_q_len", 2, 3));
    let many = reading(&two, &[(two.a, 5)]);
    assert_eq!(refused(&many, &mut plan), capacity("total_q", 4, 5));
    let writing = two.tables.step(&[(two.a, 1)], MaskKind::Causal).unwrap();
    assert_eq!(refused(&writing, &mut plan), capacity("writes", 0, 1));
    assert_eq!(plan.planned().extent(), small.extent());
    Reference.update(Update::new(&mut plan, &large).unwrap()).unwrap();
    assert_eq!(plan.planned().extent(), large.extent());
}

// After an update the pages of the new step are what a cache must have.
#[test]
fn a_call_checks_the_pages_of_the_step_last_written() {
    let mut two = two();
    let step = reading(&two, &[(two.b, 1)]);
    let call = Planning::with_capacity(&two.problem, &step, room()).unwrap();
    let mut plan = Reference.plan(call).unwrap();
    let layout = CacheLayout::new(*two.problem.geometry(), Dtype::F32, PAGE_SIZE, 4).unwrap();
    let small = Reference.create_cache(layout).unwrap();
    assert_eq!(small.layout().bytes(), 4 * PAGE_SIZE * 12 * 4);
    let (q, mut o) = (ones(Dtype::F32, &[6, 4, 3]), ones(Dtype::F32, &[6, 4, 3]));
    assert!(Attend::<Reference>::new(&mut plan, &q, &small, &mut o, None).is_ok());
    two.tables.extend(two.b, 3).unwrap();
    let step = reading(&two, &[(two.b, 1)]);
    Reference.update(Update::new(&mut plan, &step).unwrap()).unwrap();
    let refused = Attend::<Reference>::new(&mut plan, &q, &small, &mut o, None).map(|_| ());
    assert_eq!(refused, Err(InvalidCall::PageOutOfRange { page: PageId(4), pages: 4 }));
}

// [S-4.1]: one set of tables, one step and one list of copies for layers of any rows.
#[test]
fn one_set_of_tables_serves_every_layer() {
    let mut tables = PageTables::new(2, 6).unwrap();
    let a = tables.insert();
    tables.extend(a, 4).unwrap();
    let prompt = tables.step(&[(a, 4)], MaskKind::Causal).unwrap();
    let (b, _) = tables.fork(a).unwrap();
    tables.truncate(b, 3).unwrap();
    let copies = tables.extend(b, 1).unwrap();
    let step = tables.step(&[(b, 1)], MaskKind::Causal).unwrap();
    for (seed, geometry) in [Geometry::mha(2, 3), Geometry::gla(2, 2, 4, 2)].into_iter().enumerate()
    {
        let problem = Problem::new(geometry.unwrap(), Dtype::F32, 0.7).unwrap();
        let layout = CacheLayout::new(*problem.geometry(), Dtype::F32, 2, 6).unwrap();
        let mut cache = Reference.create_cache(layout).unwrap();
        let mut numbers = Numbers(seed as u64);
        let mut plain = Plain::random(&mut numbers, problem.geometry(), 1, 4);
        append(&Reference, &problem, &prompt, &mut cache, &plain.rows);
        Reference.copy_rows(CopyRows::new(&mut cache, &copies).unwrap()).unwrap();
        plain.rows[3] = Plain::random(&mut numbers, problem.geometry(), 0, 1).rows.remove(0);
        append(&Reference, &problem, &step, &mut cache, &plain.rows[3..]);
        let (o, _) = attended(&Reference, &problem, &step, &cache, &plain.q[0]);
        let alone = common::defined(&problem, MaskKind::Causal, &[plain], 3, 1);
        assert_eq!(o, alone.o.iter().map(|&x| Dtype::F32.round(x)).collect::<Vec<_>>());
    }
}

// [S-3.15] [S-3.16]: row by row as merge_row, rounded to the formats of the tensors.
#[test]
fn merging_tensors_is_merging_their_rows() {
    let mut numbers = Numbers(36);
    let none = f64::NEG_INFINITY;
    for dtype in Dtype::ALL {
        let values = |numbers: &mut Numbers| -> Vec<f64> {
            numbers.vector(4 * 2 * 3).into_iter().map(|x| dtype.round(x)).collect()
        };
        let (o, other_o) = (values(&mut numbers), values(&mut numbers));
        let lse = [0.5, -3.0, none, 2.0, none, 0.25, 1.0, none];
        let other_lse = [0.5, 2.0, 1.0, none, none, -0.75, 1e30, f64::NAN];
        let mut expected = (o.clone(), lse);
        for row in 0..8 {
            let part = &mut expected.0[row * 3..][..3];
            grouped_attention::merge_row(
                part,
                &mut expected.1[row],
                &other_o[row * 3..][..3],
                other_lse[row],
            );
            part.iter_mut().for_each(|x| *x = dtype.round(*x));
            expected.1[row] = Dtype::F32.round(expected.1[row]);
        }
        let mut merged = tensor(&Reference, dtype, &[4, 2, 3], &o);
        let mut merged_lse = tensor(&Reference, Dtype::F32, &[4, 2], &lse);
        let other = tensor(&Reference, dtype, &[4, 2, 3], &other_o);
        let other_lse = tensor(&Reference, Dtype::F32, &[4, 2], &other_lse);
        let call = Merge::new(&mut merged, &mut merged_lse, &other, &other_lse).unwrap();
        Reference.merge(call).unwrap();
        assert_eq!(common::bits(merged.values()), common::bits(&expected.0));
        assert_eq!(common::bits(merged_lse.values()), common::bits(&expected.1));
    }
}
