//! The engine against the reference, over small random problems of every kind.
#![allow(clippy::unwrap_used, reason = "a test that unwraps says so by failing")]

use grouped_attention::{
    AnyBackend, Append, Attend, Backend, CacheLayout, CopyRows, Dtype, Extent, Geometry,
    HostTensor, Mask, MaskKind, Merge, PageId, Planning, Problem, Reference, Rope, RopeScaling,
    RopeStyle, Row, RowCopy, Sequence, Slot, Step, Update, Upload, Write,
};
use grouped_attention_cpu::{CpuBackend, CpuCache, Kernel, Strides};
use half::bf16;
use proptest::prelude::*;
use std::ptr::NonNull;

/// Numbers from a seed, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Roughly normal: the sum of four uniform numbers, scaled to variance 1.
    fn normal(&mut self) -> f64 {
        let uniform = |r: &mut Random| (r.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let sum: f64 = (0..4).map(|_| uniform(self)).sum();
        (sum - 2.0) * 3.0_f64.sqrt()
    }

    fn tensor(&mut self, dtype: Dtype, shape: &[usize]) -> HostTensor {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| self.normal()).collect();
        HostTensor::from_f64(dtype, shape, &values).unwrap()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Masked {
    Causal,
    Full,
    Tree,
}

#[derive(Clone, Debug)]
struct Case {
    geometry: Geometry,
    dtype: Dtype,
    page_size: usize,
    lens: Vec<(usize, usize)>, // (q_len, kv_len)
    mask: Masked,
    batch_invariant: bool,
    f32_output: bool,
    rotating: bool,
    seed: u64,
}

impl Case {
    fn problem(&self) -> Problem {
        let scale = 1.0 / (self.geometry.width_k() as f64).sqrt();
        let mut problem = Problem::new(self.geometry, self.dtype, scale).unwrap();
        if self.batch_invariant {
            problem = problem.batch_invariant();
        }
        if self.f32_output {
            problem = problem.f32_output();
        }
        if self.rotating {
            let width = problem.rotated_width();
            let style = [RopeStyle::HalfSplit, RopeStyle::Interleaved][self.seed as usize % 2];
            let rope = Rope::new(style, width, 10_000.0, RopeScaling::None).unwrap();
            problem = problem.rotating(rope).unwrap();
        }
        problem
    }

    fn mask(&self, random: &mut Random) -> Mask {
        let q_lens = self.lens.iter().map(|&(q_len, _)| q_len);
        match self.mask {
            Masked::Causal => Mask::Causal,
            Masked::Full => Mask::Full,
            Masked::Tree => {
                let parents: Vec<i32> = q_lens
                    .clone()
                    .flat_map(|q_len| (0..q_len).map(|t| t as i32).collect::<Vec<_>>())
                    .map(|t| random.below(t as usize + 1) as i32 - 1)
                    .collect();
                Mask::new(MaskKind::Tree(&parents), q_lens).unwrap()
            }
        }
    }

    /// Tables over shuffled pages, and the number of pages of a cache with as many again unused.
    fn tables(&self, random: &mut Random) -> (Vec<Vec<PageId>>, usize) {
        let counts: Vec<usize> =
            self.lens.iter().map(|&(_, kv_len)| kv_len.div_ceil(self.page_size)).collect();
        let pages = 2 * counts.iter().sum::<usize>() + 3;
        let mut ids: Vec<PageId> = (0..pages as u32).map(PageId).collect();
        for i in (1..pages).rev() {
            ids.swap(i, random.below(i + 1));
        }
        let mut ids = ids.into_iter();
        // The slot behind the last used page names a page that does not exist.
        let spare = PageId(u32::MAX);
        let table = |&count: &usize| ids.by_ref().take(count).chain([spare]).collect();
        (counts.iter().map(table).collect(), pages)
    }
}

/// Results of one engine: outputs and lse, and both again from a plan made for another step and
/// then updated.
fn run<B: Backend>(backend: &B, case: &Case) -> [Vec<f64>; 2] {
    let mut random = Random(case.seed);
    let problem = case.problem();
    let geometry = case.geometry;
    let (tables, pages) = case.tables(&mut random);
    let mask = case.mask(&mut random);
    let sequences: Vec<Sequence<'_>> = case
        .lens
        .iter()
        .zip(&tables)
        .map(|(&(q_len, kv_len), pages)| Sequence { q_len, kv_len, pages })
        .collect();
    let step = Step::new(case.page_size, &sequences, mask).unwrap();
    let layout = CacheLayout::new(geometry, case.dtype, case.page_size, pages).unwrap();
    let mut cache = backend.create_cache(layout).unwrap();
    fill(backend, &problem, &step, &mut cache, pages, &mut random);

    let rows = step.total_q() + 2;
    let (h_q, width_k, width_v) = (geometry.h_q(), geometry.width_k(), geometry.width_v());
    let q = put(backend, &random.tensor(case.dtype, &[rows, h_q, width_k]));
    let sentinel = HostTensor::from_f64(
        problem.output(),
        &[rows, h_q, width_v],
        &vec![7.0; rows * h_q * width_v],
    );
    let mut o = put(backend, &sentinel.unwrap());
    let mut lse = put(
        backend,
        &HostTensor::from_f64(Dtype::F32, &[rows, h_q], &vec![7.0; rows * h_q]).unwrap(),
    );
    // A plan for no sequence, brought to this step: what update leaves must be what plan makes.
    let empty = Step::new(case.page_size, &[], Mask::Causal).unwrap();
    let capacity = Extent { total_q: rows, ..*step.extent() };
    let planning = Planning::with_capacity(&problem, &empty, capacity).unwrap();
    let mut plan = backend.plan(planning).unwrap();
    backend.update(Update::new(&mut plan, &step).unwrap()).unwrap();
    let call = Attend::new(&mut plan, &q, &cache, &mut o, Some(&mut lse)).unwrap();
    backend.attend(call).unwrap();
    [o, lse].map(|tensor| backend.download(&tensor).unwrap().to_f64())
}

fn put<B: Backend>(backend: &B, host: &HostTensor) -> B::Tensor {
    let mut tensor = backend.allocate(host.dtype(), host.shape()).unwrap();
    backend.upload(Upload::new(&mut tensor, host).unwrap()).unwrap();
    tensor
}

/// Appends NaN to every cell, then numbers to those that the step reads.
fn fill<B: Backend>(
    backend: &B,
    problem: &Problem,
    step: &Step,
    cache: &mut B::Cache,
    pages: usize,
    random: &mut Random,
) {
    let page_size = step.page_size();
    let every = |page: u32| (0..page_size).map(move |row| Slot { page: PageId(page), row });
    let cells: Vec<Slot> = (0..pages as u32).flat_map(every).collect();
    let poison = vec![f64::NAN; cells.len() * problem.geometry().row().elements()];
    append(backend, problem, page_size, cache, &cells, |n| poison[..n].to_vec(), false);
    let read: Vec<Slot> =
        step.spans().iter().flat_map(|span| (0..span.kv_len).map(|j| step.slot(span, j))).collect();
    let rotating = problem.rope().is_some();
    let numbers = |n: usize| (0..n).map(|_| random.normal()).collect();
    append(backend, problem, page_size, cache, &read, numbers, rotating);
}

fn append<B: Backend>(
    backend: &B,
    problem: &Problem,
    page_size: usize,
    cache: &mut B::Cache,
    slots: &[Slot],
    mut numbers: impl FnMut(usize) -> Vec<f64>,
    rotating: bool,
) {
    let position = |index: usize| (index as i64 * 37) % 1000 - 100;
    let writes = slots
        .iter()
        .enumerate()
        .map(|(index, &slot)| Write { slot, position: position(index) })
        .collect();
    let step = Step::new(page_size, &[], Mask::Causal).unwrap().writing(writes).unwrap();
    let plan = backend.plan(Planning::new(problem, &step)).unwrap();
    let heads = problem.geometry().heads();
    let shapes = match problem.geometry().row() {
        Row::Separate { d_k, d_v, .. } => {
            [vec![slots.len(), heads, d_k], vec![slots.len(), heads, d_v]]
        }
        Row::Tied { s, r, .. } => [vec![slots.len(), heads, s], vec![slots.len(), r]],
    };
    let [first, second] = shapes.map(|shape| {
        let values = numbers(shape.iter().product());
        put(backend, &HostTensor::from_f64(problem.dtype(), &shape, &values).unwrap())
    });
    let call = if rotating {
        Append::rotating(&plan, cache, &first, Some(&second)).unwrap()
    } else {
        Append::new(&plan, cache, &first, Some(&second)).unwrap()
    };
    backend.append(call).unwrap();
}

/// A simple bound; the derived one is the conformance suite's. Scores and values here are of order
/// 1, so f32 sums err by far less than 1e-5, and matrix kernels round probabilities to bf16.
fn agree(case: &Case, engine: &CpuBackend, got: &[Vec<f64>; 2], want: &[Vec<f64>; 2]) {
    let problem = case.problem();
    let inner = 2e-5 + 2.0 * engine.arithmetic(&problem).probability;
    let outer = problem.output().unit_roundoff() * 2.1;
    for (what, bound, (got, want)) in
        [("o", inner + outer, (&got[0], &want[0])), ("lse", 2e-5, (&got[1], &want[1]))]
    {
        assert_eq!(got.len(), want.len());
        for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
            let same = got == want || (got.is_nan() && want.is_nan());
            let near = (got - want).abs() <= bound * (1.0 + want.abs());
            assert!(same || near, "{what}[{index}]: {got}, expected {want}\n{case:?}");
        }
    }
}

fn geometries() -> impl Strategy<Value = Geometry> {
    let separate = (1_usize..4, 1_usize..7, 1_usize..80, 1_usize..80)
        .prop_map(|(h, g, k, v)| Geometry::separate(h * g, h, k, v).unwrap());
    let tied = (1_usize..4, 1_usize..20, 1_usize..80, 0_usize..80, 0_usize..20).prop_map(
        |(h, g, s, n, r)| {
            let (n, r) = (n.min(s), 2 * r);
            Geometry::tied(h * g, h, s, n, if n == 0 { r.max(2) } else { r }).unwrap()
        },
    );
    let real = prop::sample::select(vec![
        Geometry::gqa(8, 2, 128).unwrap(),
        Geometry::gta(8, 2, 64).unwrap(),
        Geometry::mla(16, 128, 32).unwrap(),
        Geometry::gla(32, 2, 64, 32).unwrap(),
    ]);
    prop_oneof![separate, tied, real]
}

fn cases() -> impl Strategy<Value = Case> {
    let lens = prop_oneof![
        prop::collection::vec((0_usize..6, 0_usize..150), 0..5),
        prop::collection::vec((0_usize..40, 0_usize..700), 1..3),
    ];
    let masks = prop::sample::select(vec![Masked::Causal, Masked::Full, Masked::Tree]);
    let page_sizes = prop::sample::select(vec![1, 2, 7, 16, 64, 100]);
    (
        (geometries(), prop::sample::select(Dtype::ALL.to_vec()), page_sizes, lens, masks),
        (any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>()),
    )
        .prop_map(|((geometry, dtype, page_size, mut lens, mask), flags)| {
            let (batch_invariant, f32_output, rotating, seed) = flags;
            if mask == Masked::Tree {
                lens.iter_mut().for_each(|(q_len, kv_len)| *kv_len += *q_len);
            }
            let width = match geometry.row() {
                Row::Separate { d_k, .. } => d_k,
                Row::Tied { r, .. } => r,
            };
            let rotating = rotating && width % 2 == 0;
            Case {
                geometry,
                dtype,
                page_size,
                lens,
                mask,
                batch_invariant,
                f32_output,
                rotating,
                seed,
            }
        })
}

/// Few rows a cached head, and pages, widths and lengths of whole tiles: values are multiplied as they lie, and a
/// tile has four rows, eight or sixteen.
fn few_rows() -> impl Strategy<Value = Case> {
    // The last is wider than sums of few rows are put in order for.
    let widths = prop::sample::select(vec![1_usize, 2, 3, 17]);
    let separate = (1_usize..4, 1_usize..7, 1_usize..3, widths)
        .prop_map(|(h, g, k, v)| Geometry::separate(h * g, h, 64 * k, 64 * v).unwrap());
    let tied =
        (1_usize..4, 1_usize..7, 1_usize..4, 0_usize..4, 0_usize..2).prop_map(|(h, g, s, n, r)| {
            let (n, r) = (64 * n.min(s), 64 * r);
            Geometry::tied(h * g, h, 64 * s, n, if n == 0 { 64 } else { r }).unwrap()
        });
    // Some with a rest, which is packed after blocks that were not.
    let rest = prop::sample::select(vec![0, 0, 0, 7]);
    let lens = prop::collection::vec((1_usize..6, 1_usize..24, rest), 1..4);
    let masks = prop::sample::select(vec![Masked::Causal, Masked::Full, Masked::Tree]);
    let pages = prop::sample::select(vec![32, 64, 96]);
    (prop_oneof![separate, tied], pages, lens, masks, any::<bool>(), any::<u64>()).prop_map(
        |(geometry, page_size, lens, mask, f32_output, seed)| Case {
            geometry,
            dtype: Dtype::Bf16,
            page_size,
            lens: lens.into_iter().map(|(q_len, steps, rest)| (q_len, 32 * steps + rest)).collect(),
            mask,
            batch_invariant: false,
            f32_output,
            rotating: false,
            seed,
        },
    )
}

/// Every engine of this crate that the machine can run.
fn engines() -> Vec<CpuBackend> {
    let engine =
        |(kernel, threads)| CpuBackend::builder().kernel(kernel).threads(threads).build().unwrap();
    Kernel::available().into_iter().zip([1, 3, 2, 3, 2]).map(engine).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    // [S-3.1] [S-3.2] [S-3.3] [S-3.7] [S-3.9] [S-3.13] [S-3.14] [S-3.19] [S-4.2] [S-4.4] [S-4.8]
    #[test]
    fn as_the_reference(case in cases()) {
        let want = run(&Reference::new(), &case);
        for engine in engines() {
            agree(&case, &engine, &run(&engine, &case), &want);
        }
    }

    #[test]
    fn few_rows_as_the_reference(case in few_rows()) {
        let want = run(&Reference::new(), &case);
        for engine in engines() {
            agree(&case, &engine, &run(&engine, &case), &want);
        }
    }

    // [S-3.21]
    #[test]
    fn bits_do_not_depend_on_neighbours_or_pages(
        case in cases(),
        page_size in prop_oneof![1_usize..70, Just(64)],
    ) {
        let case = Case { batch_invariant: true, ..case };
        let Some(&last) = case.lens.last() else { return Ok(()) };
        // The last sequence's numbers must be drawn alike, so it is the only one with numbers.
        let alone = Case { lens: vec![last], page_size, rotating: false, ..case.clone() };
        let lens = vec![(0, 0), last, (0, 333)];
        if case.mask == Masked::Tree {
            return Ok(());
        }
        for engine in engines() {
            let one = results_of(&engine, &alone, 0);
            let other = Case { lens: lens.clone(), rotating: false, ..case.clone() };
            prop_assert_eq!(&one, &results_of(&engine, &other, 1));
        }
    }
}

/// Bits of one sequence's outputs, whose cache and queries depend on its lengths alone.
fn results_of(engine: &CpuBackend, case: &Case, index: usize) -> Vec<u64> {
    let mut random = Random(case.seed);
    let problem = case.problem();
    let (tables, pages) = case.tables(&mut random);
    let sequences: Vec<Sequence<'_>> = case
        .lens
        .iter()
        .zip(&tables)
        .map(|(&(q_len, kv_len), pages)| Sequence { q_len, kv_len, pages })
        .collect();
    let mask = if case.mask == Masked::Full { Mask::Full } else { Mask::Causal };
    let step = Step::new(case.page_size, &sequences, mask).unwrap();
    let layout = CacheLayout::new(case.geometry, case.dtype, case.page_size, pages).unwrap();
    let mut cache = engine.create_cache(layout).unwrap();
    let span = &step.spans()[index];
    let slots: Vec<Slot> = (0..span.kv_len).map(|j| step.slot(span, j)).collect();
    let mut random = Random(case.seed ^ 1);
    let numbers = |n: usize| (0..n).map(|_| random.normal()).collect();
    append(engine, &problem, case.page_size, &mut cache, &slots, numbers, false);
    let rows = step.total_q();
    let (h_q, width_k) = (case.geometry.h_q(), case.geometry.width_k());
    let q = put(engine, &random.tensor(case.dtype, &[rows, h_q, width_k]));
    let mut o = engine.allocate(problem.output(), &[rows, h_q, case.geometry.width_v()]).unwrap();
    let mut plan = engine.plan(Planning::new(&problem, &step)).unwrap();
    engine.attend(Attend::new(&mut plan, &q, &cache, &mut o, None).unwrap()).unwrap();
    engine.download(&o).unwrap().to_f64().into_iter().map(f64::to_bits).collect()
}

// [S-3.18]
#[test]
fn what_is_not_finite_stays_in_its_column() {
    let problem = Problem::new(Geometry::gqa(8, 2, 128).unwrap(), Dtype::Bf16, 0.1).unwrap();
    let ids: Vec<PageId> = (0..11).rev().map(PageId).collect();
    fn run<B: Backend>(
        backend: &B,
        problem: &Problem,
        step: &Step,
        slots: &[Slot],
        odd: f64,
    ) -> Vec<f64> {
        let page_size = step.page_size();
        let layout = CacheLayout::new(*problem.geometry(), problem.dtype(), page_size, 11).unwrap();
        let mut cache = backend.create_cache(layout).unwrap();
        let (mut random, mut part) = (Random(5), 0);
        let numbers = |n: usize| {
            let mut numbers: Vec<f64> = (0..n).map(|_| random.normal()).collect();
            part += 1;
            if part == 2 {
                // Column 3 of the first head, 100 of the second.
                numbers[(10 * 2) * 128 + 3] = odd;
                numbers[(300 * 2 + 1) * 128 + 100] = -odd;
            }
            numbers
        };
        append(backend, problem, page_size, &mut cache, slots, numbers, false);
        let q = put(backend, &Random(6).tensor(problem.dtype(), &[step.total_q(), 8, 128]));
        let mut o = backend.allocate(problem.output(), &[step.total_q(), 8, 128]).unwrap();
        let mut plan = backend.plan(Planning::new(problem, step)).unwrap();
        backend.attend(Attend::new(&mut plan, &q, &cache, &mut o, None).unwrap()).unwrap();
        backend.download(&o).unwrap().to_f64()
    }
    // Whole pages and few rows: tiles of values as they lie in the cache, of four, eight and sixteen rows. Many rows:
    // keys turned, and values side by side with nothing beside the last.
    for q_len in [1, 2, 4, 8] {
        let (kv_len, page_size) = (701, 64);
        let sequence = Sequence { q_len, kv_len, pages: &ids };
        let step = Step::new(page_size, &[sequence], Mask::Causal).unwrap();
        let slots: Vec<Slot> = (0..kv_len).map(|j| step.slot(&step.spans()[0], j)).collect();
        for odd in [1.0, f64::INFINITY, f64::NAN] {
            let want = run(&Reference::new(), &problem, &step, &slots, odd);
            let strange = want.iter().filter(|x| !x.is_finite()).count();
            assert_eq!(strange, if odd == 1.0 { 0 } else { q_len * 8 });
            for engine in engines() {
                let got = run(&engine, &problem, &step, &slots, odd);
                for (index, (&got, &want)) in got.iter().zip(&want).enumerate() {
                    let same = got == want || (got.is_nan() && want.is_nan());
                    let near = (got - want).abs() <= 0.02 * (1.0 + want.abs());
                    assert!(same || near, "{odd}: o[{index}] is {got}, expected {want}");
                }
            }
        }
    }
}

// [S-3.15] [S-3.16]
#[test]
fn merges_as_the_reference() {
    fn merged<B: Backend>(backend: &B, dtype: Dtype, width: usize) -> [Vec<f64>; 2] {
        let mut random = Random(5);
        let shape = [3, 2, width];
        let mut o = put(backend, &random.tensor(dtype, &shape));
        let other_o = put(backend, &random.tensor(dtype, &shape));
        let empty = f64::NEG_INFINITY;
        let lse = [0.5, empty, -3.0, 80.0, empty, 1.0];
        let other_lse = [0.25, 1.0, empty, -80.0, empty, 1.0];
        let [mut lse, other_lse] = [lse, other_lse]
            .map(|lse| put(backend, &HostTensor::from_f64(Dtype::F32, &[3, 2], &lse).unwrap()));
        backend.merge(Merge::new(&mut o, &mut lse, &other_o, &other_lse).unwrap()).unwrap();
        [o, lse].map(|tensor| backend.download(&tensor).unwrap().to_f64())
    }
    for (dtype, width) in Dtype::ALL.into_iter().flat_map(|dtype| [(dtype, 300), (dtype, 0)]) {
        assert_eq!(
            merged(&CpuBackend::new(), dtype, width),
            merged(&Reference::new(), dtype, width)
        );
    }
}

// [S-4.11]
#[test]
fn copies_rows_as_the_reference() {
    fn attended<B: Backend>(backend: &B) -> Vec<f64> {
        let geometry = Geometry::gta(4, 2, 8).unwrap();
        let problem = Problem::new(geometry, Dtype::F16, 0.5).unwrap().f32_output();
        let layout = CacheLayout::new(geometry, Dtype::F16, 4, 3).unwrap();
        let mut cache = backend.create_cache(layout).unwrap();
        let slot = |page, row| Slot { page: PageId(page), row };
        let slots: Vec<Slot> = (0..8).map(|i| slot(i / 4, i as usize % 4)).collect();
        let mut random = Random(9);
        let numbers = |n: usize| (0..n).map(|_| random.normal()).collect();
        append(backend, &problem, 4, &mut cache, &slots, numbers, false);
        let copies = [
            RowCopy { from: slot(0, 1), to: slot(2, 0), rows: 3 },
            RowCopy { from: slot(2, 2), to: slot(2, 3), rows: 1 },
            RowCopy { from: slot(1, 0), to: slot(1, 2), rows: 2 },
        ];
        backend.copy_rows(CopyRows::new(&mut cache, &copies).unwrap()).unwrap();
        let pages = [PageId(2), PageId(1)];
        let sequence = Sequence { q_len: 1, kv_len: 8, pages: &pages };
        let step = Step::new(4, &[sequence], Mask::Causal).unwrap();
        let q = put(backend, &random.tensor(Dtype::F16, &[1, 4, 8]));
        let mut o = backend.allocate(Dtype::F32, &[1, 4, 8]).unwrap();
        let mut plan = backend.plan(Planning::new(&problem, &step)).unwrap();
        backend.attend(Attend::new(&mut plan, &q, &cache, &mut o, None).unwrap()).unwrap();
        backend.download(&o).unwrap().to_f64()
    }
    let engine: AnyBackend = Box::new(CpuBackend::new());
    for (got, want) in attended(&engine).iter().zip(attended(&Reference::new())) {
        assert!((got - want).abs() < 1e-5, "{got}, expected {want}");
    }
}

/// A cache over one combined array `[pages, page_size, h s + r]` that the caller owns, with room
/// between rows: nothing but the rows may be written, and attention must be that of a cache of the
/// engine's own. [S-2.10]
#[test]
fn foreign_caches_are_read_and_written_in_place() {
    let geometry = Geometry::gla(16, 2, 32, 32).unwrap();
    let problem = Problem::new(geometry, Dtype::Bf16, 0.1).unwrap().f32_output();
    let (page_size, pages, row, gap) = (16, 5, 96, 7);
    let layout = CacheLayout::new(geometry, Dtype::Bf16, page_size, pages).unwrap();
    for kernel in Kernel::available() {
        let engine = CpuBackend::builder().kernel(kernel).build().unwrap();
        let sentinel = bf16::from_f32(-1e30);
        let mut cells = vec![sentinel; pages * page_size * (row + gap)];
        let start = cells.as_mut_ptr();
        let strides = Strides { page: page_size * (row + gap), token: row + gap, head: 32 };
        let part = |first: usize| {
            NonNull::new(start.wrapping_add(first).cast::<u8>()).expect("within the array")
        };
        // SAFETY: rows of 64 + 32 elements lie within the array and apart, all of it is
        // initialised, and `cells` is not touched while the cache lives.
        let mut foreign =
            unsafe { CpuCache::from_raw_parts(layout, (part(0), strides), (part(64), strides)) };
        let mut own = engine.create_cache(layout).unwrap();
        let slot = |i: usize| Slot { page: PageId((4 - i / 16) as u32), row: i % 16 };
        let slots: Vec<Slot> = (0..70).map(slot).collect();
        for cache in [&mut foreign, &mut own] {
            let mut random = Random(3);
            let numbers = |n: usize| (0..n).map(|_| random.normal()).collect();
            append(&engine, &problem, page_size, cache, &slots, numbers, false);
        }
        let ids: Vec<PageId> = (0..5).rev().map(PageId).collect();
        let sequence = Sequence { q_len: 3, kv_len: 70, pages: &ids };
        let step = Step::new(page_size, &[sequence], Mask::Causal).unwrap();
        let q = put(&engine, &Random(4).tensor(Dtype::Bf16, &[3, 16, 64]));
        let attended = [&foreign, &own].map(|cache| {
            let mut o = engine.allocate(Dtype::F32, &[3, 16, 32]).unwrap();
            let mut plan = engine.plan(Planning::new(&problem, &step)).unwrap();
            engine.attend(Attend::new(&mut plan, &q, cache, &mut o, None).unwrap()).unwrap();
            engine.download(&o).unwrap().to_f64()
        });
        assert_eq!(attended[0], attended[1], "{kernel}");
        drop(foreign);
        let written: Vec<usize> =
            slots.iter().map(|slot| slot.page.0 as usize * page_size + slot.row).collect();
        for (token, cells) in cells.chunks_exact(row + gap).enumerate() {
            let (row, gap) = cells.split_at(row);
            assert!(gap.iter().all(|x| *x == sentinel), "{kernel}");
            assert_eq!(row.contains(&sentinel), !written.contains(&token), "{kernel}");
        }
    }
}

/// What is not read may lie anywhere, even where no number can. [S-2.10]
#[test]
fn a_rope_key_of_no_width_has_no_address() {
    let geometry = Geometry::tied(4, 1, 16, 16, 0).unwrap();
    let problem = Problem::new(geometry, Dtype::F32, 0.25).unwrap();
    let layout = CacheLayout::new(geometry, Dtype::F32, 4, 1).unwrap();
    let mut cells = [1.0_f32; 64];
    let start = NonNull::from(&mut cells).cast::<u8>();
    let strides = Strides { page: 64, token: 16, head: 16 };
    let nowhere = (NonNull::<u8>::dangling(), Strides { page: 0, token: 0, head: 0 });
    // SAFETY: 4 rows of 16 elements are the whole array, which is not touched while the cache lives;
    // the second part has no elements.
    let cache = unsafe { CpuCache::from_raw_parts(layout, (start, strides), nowhere) };
    let sequence = Sequence { q_len: 1, kv_len: 4, pages: &[PageId(0)] };
    let step = Step::new(4, &[sequence], Mask::Causal).unwrap();
    let engine = CpuBackend::new();
    let q = put(&engine, &HostTensor::from_f64(Dtype::F32, &[1, 4, 16], &[1.0; 64]).unwrap());
    let mut o = engine.allocate(Dtype::F32, &[1, 4, 16]).unwrap();
    let mut plan = engine.plan(Planning::new(&problem, &step)).unwrap();
    engine.attend(Attend::new(&mut plan, &q, &cache, &mut o, None).unwrap()).unwrap();
    assert_eq!(engine.download(&o).unwrap().to_f64(), [1.0; 64]);
}

#[test]
fn kernels_are_forced_and_named() {
    for kernel in Kernel::available() {
        let engine = CpuBackend::builder().kernel(kernel).build().unwrap();
        assert_eq!((engine.kernel(), engine.identity().kernel), (kernel, kernel.to_string()));
        assert_eq!(kernel.to_string().parse(), Ok(kernel));
    }
    assert!(
        "sse9"
            .parse::<Kernel>()
            .unwrap_err()
            .contains("portable, neon, avx2, avx512, avx512bf16, amx")
    );
}
