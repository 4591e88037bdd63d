//! What several test files share: seeded numbers, batches as plain rows, and two ways to run them.
#![allow(dead_code, reason = "every test file compiles its own copy and uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use grouped_attention::{
    Append, Attend, Attended, Backend, CacheLayout, Dtype, Geometry, HostTensor, Mask, MaskKind,
    PageId, Planning, Problem, ReferenceCache, Row, RowStats, Sequence, Slot, Step, Upload, Values,
    attend,
};
use proptest::test_runner::{Config, RngSeed};

/// Proptest's settings: the same cases on every run, unless `PROPTEST_CASES` and
/// `PROPTEST_RNG_SEED` ask for others.
pub(crate) fn config(cases: u32) -> Config {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(0x67a);
    }
    config
}

/// Numbers from a seed, so that proptest shrinks descriptions and never arrays (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// In `[-2, 2)`, with 24 significant bits or fewer: every one is an f32.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / f64::from(1 << 22) - 2.0
    }

    pub(crate) fn vector(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.unit()).collect()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.below(end + 1);
            items.swap(end, other);
        }
    }
}

/// The two parts of one cached token.
pub(crate) type CachedRow = [Vec<f64>; 2];

/// One sequence as plain rows, without pages.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    /// `[q_len, h_q, width_k]`.
    pub(crate) q: Vec<Vec<f64>>,
    /// `[kv_len]`.
    pub(crate) rows: Vec<CachedRow>,
}

impl Plain {
    pub(crate) fn random(
        numbers: &mut Numbers,
        geometry: &Geometry,
        q_len: usize,
        kv_len: usize,
    ) -> Plain {
        let [first, second] = geometry.row().parts();
        let query = geometry.h_q() * geometry.width_k();
        Plain {
            q: (0..q_len).map(|_| numbers.vector(query)).collect(),
            rows: (0..kv_len).map(|_| [numbers.vector(first), numbers.vector(second)]).collect(),
        }
    }
}

/// Queries of a batch, packed `[total_q, h_q, width_k]`.
pub(crate) fn packed(batch: &[Plain]) -> Vec<f64> {
    batch.iter().flat_map(|sequence| sequence.q.iter().flatten().copied()).collect()
}

/// Tables for sequences of these lengths over a pool of `pages` shuffled pages.
pub(crate) fn tables(
    numbers: &mut Numbers,
    page_size: usize,
    kv_lens: impl IntoIterator<Item = usize>,
) -> (Vec<Vec<PageId>>, usize) {
    let counts: Vec<usize> = kv_lens.into_iter().map(|len| len.div_ceil(page_size)).collect();
    let pages = counts.iter().sum::<usize>() + 2;
    let mut ids: Vec<PageId> = (0..pages as u32).map(PageId).collect();
    numbers.shuffle(&mut ids);
    let tables = counts
        .iter()
        .map(|&count| {
            let mut table: Vec<PageId> = ids.drain(..count).collect();
            // [S-4.4]: spare slots hold ids of no page at all.
            table.extend([PageId(u32::MAX), PageId(1 << 30)]);
            table
        })
        .collect();
    (tables, pages)
}

/// A step over a batch whose tables are given.
pub(crate) fn step_over(
    page_size: usize,
    batch: &[Plain],
    tables: &[Vec<PageId>],
    mask: MaskKind<'_>,
) -> Step {
    let sequences: Vec<Sequence<'_>> = batch
        .iter()
        .zip(tables)
        .map(|(plain, pages)| Sequence { q_len: plain.q.len(), kv_len: plain.rows.len(), pages })
        .collect();
    let mask = Mask::new(mask, batch.iter().map(|plain| plain.q.len())).unwrap();
    Step::new(page_size, &sequences, mask).unwrap()
}

/// A cache in which the step's positions hold the batch's rows and every other cell NaN.
pub(crate) fn filled(
    problem: &Problem,
    step: &Step,
    pages: usize,
    batch: &[Plain],
) -> ReferenceCache {
    let layout =
        CacheLayout::new(*problem.geometry(), problem.dtype(), step.page_size(), pages).unwrap();
    let mut cache = ReferenceCache::new(layout);
    for (span, plain) in step.spans().iter().zip(batch) {
        for (j, [first, second]) in plain.rows.iter().enumerate() {
            cache.write(step.slot(span, j), first, second);
        }
    }
    cache
}

/// The definition over a batch, on shuffled pages drawn from `seed`.
pub(crate) fn defined(
    problem: &Problem,
    mask: MaskKind<'_>,
    batch: &[Plain],
    page_size: usize,
    seed: u64,
) -> Attended {
    let lens = batch.iter().map(|plain| plain.rows.len());
    let (tables, pages) = tables(&mut Numbers(seed), page_size, lens);
    let step = step_over(page_size, batch, &tables, mask);
    let cache = filled(problem, &step, pages, batch);
    attend(problem, &step, &packed(batch), &cache)
}

/// A tensor of an engine that holds these values, rounded to its format.
pub(crate) fn tensor<B: Backend>(
    backend: &B,
    dtype: Dtype,
    shape: &[usize],
    values: &[f64],
) -> B::Tensor {
    let mut tensor = backend.allocate(dtype, shape).unwrap();
    let host = HostTensor::from_f64(dtype, shape, values).unwrap();
    backend.upload(Upload::new(&mut tensor, &host).unwrap()).unwrap();
    tensor
}

/// Rows as an engine takes them: `first` and, unless it is 0 wide, `second`.
pub(crate) fn row_tensors<B: Backend>(
    backend: &B,
    problem: &Problem,
    rows: &[CachedRow],
) -> (B::Tensor, Option<B::Tensor>) {
    let (count, dtype) = (rows.len(), problem.dtype());
    let part = |index: usize| -> Vec<f64> {
        rows.iter().flat_map(|row| row[index].iter().copied()).collect()
    };
    let (first, second) = match problem.geometry().row() {
        Row::Separate { heads, d_k, d_v } => (vec![count, heads, d_k], vec![count, heads, d_v]),
        Row::Tied { heads, s, r, .. } => (vec![count, heads, s], vec![count, r]),
    };
    let present = second.last() != Some(&0);
    (
        tensor(backend, dtype, &first, &part(0)),
        present.then(|| tensor(backend, dtype, &second, &part(1))),
    )
}

/// Appends rows to a cache at the writes of a step.
pub(crate) fn append<B: Backend>(
    backend: &B,
    problem: &Problem,
    step: &Step,
    cache: &mut B::Cache,
    rows: &[CachedRow],
) {
    let plan = backend.plan(Planning::new(problem, step)).unwrap();
    let (first, second) = row_tensors(backend, problem, rows);
    backend.append(Append::new(&plan, cache, &first, second.as_ref()).unwrap()).unwrap();
}

/// `o` and `lse` of packed queries over a cache, through the trait.
pub(crate) fn attended<B: Backend>(
    backend: &B,
    problem: &Problem,
    step: &Step,
    cache: &B::Cache,
    q: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let geometry = problem.geometry();
    let (rows, h_q) = (step.total_q(), geometry.h_q());
    let q = tensor(backend, problem.dtype(), &[rows, h_q, geometry.width_k()], q);
    let mut o = backend.allocate(problem.output(), &[rows, h_q, geometry.width_v()]).unwrap();
    let mut lse = backend.allocate(Dtype::F32, &[rows, h_q]).unwrap();
    let mut plan = backend.plan(Planning::new(problem, step)).unwrap();
    let call = Attend::new(&mut plan, &q, cache, &mut o, Some(&mut lse)).unwrap();
    backend.attend(call).unwrap();
    (backend.download(&o).unwrap().to_f64(), backend.download(&lse).unwrap().to_f64())
}

/// Writes of a batch's every cached row, for an engine that is to hold what [`filled`] holds.
pub(crate) fn writing_all(step: Step) -> Step {
    let mut writes = Vec::new();
    for span in step.spans() {
        for j in 0..span.kv_len {
            let slot: Slot = step.slot(span, j);
            writes.push(grouped_attention::Write { slot, position: j as i64 });
        }
    }
    step.writing(writes).unwrap()
}

/// Bits to compare results by; every NaN is the same.
pub(crate) fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|x| if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() }).collect()
}

/// Bits of a host tensor's elements.
pub(crate) fn host_bits(host: &HostTensor) -> Vec<u32> {
    match host.values() {
        Values::F32(values) => values.iter().map(|x| x.to_bits()).collect(),
        Values::F16(values) => values.iter().map(|x| x.to_bits().into()).collect(),
        Values::Bf16(values) => values.iter().map(|x| x.to_bits().into()).collect(),
    }
}

/// Bits of everything that attention defines, diagnostics included.
pub(crate) fn attended_bits(attended: &Attended) -> Vec<u64> {
    let stats = attended.rows.iter().flat_map(|row| {
        let RowStats { lse, score_magnitude, score_norm, concentration, value_max, .. } = *row;
        [lse, row.visible as f64, score_magnitude, score_norm, concentration, value_max]
    });
    let Attended { o, envelope, spread, deviation, .. } = attended;
    let elements = [o, envelope, spread, deviation].into_iter().flatten();
    bits(&elements.copied().chain(stats).collect::<Vec<_>>())
}
