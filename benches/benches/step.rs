//! What a step costs beside attention: page tables, planning, merging.
//!
//! `cargo bench -p grouped-attention-benches --bench step`

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "a benchmark of legal calls")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use grouped_attention::{
    Backend, Dtype, Extent, Geometry, HostTensor, MaskKind, Merge, PageTables, Planning, Problem,
    SequenceId, Step, Update, Upload,
};
use grouped_attention_cpu::CpuBackend;

/// A decode batch: 128 sequences of 8192 tokens in pages of 64.
const SEQUENCES: usize = 128;
const KV_LEN: usize = 8192;
const PAGE_SIZE: usize = 64;

fn batch() -> (PageTables, Vec<(SequenceId, usize)>) {
    let pages = SEQUENCES * (KV_LEN / PAGE_SIZE + 1);
    let mut tables = PageTables::new(PAGE_SIZE, pages).unwrap();
    let queries: Vec<_> = (0..SEQUENCES).map(|_| (tables.insert(), 1)).collect();
    for (sequence, _) in &queries {
        tables.extend(*sequence, KV_LEN).unwrap();
    }
    (tables, queries)
}

fn step(tables: &PageTables, queries: &[(SequenceId, usize)]) -> Step {
    tables.step(queries, MaskKind::Causal).unwrap()
}

fn page_tables(criterion: &mut Criterion) {
    let (mut tables, queries) = batch();
    criterion.bench_function("tables/step", |bencher| bencher.iter(|| step(&tables, &queries)));
    criterion.bench_function("tables/extend-truncate", |bencher| {
        bencher.iter(|| {
            for (sequence, _) in &queries {
                tables.extend(*sequence, 1).unwrap();
                tables.truncate(*sequence, KV_LEN).unwrap();
            }
        });
    });
}

fn planning(criterion: &mut Criterion) {
    let (tables, queries) = batch();
    let step = step(&tables, &queries);
    let problem = |geometry| Problem::new(geometry, Dtype::Bf16, 0.1).unwrap();
    let engine = CpuBackend::new();
    for (name, geometry) in [
        ("gqa", Geometry::gqa(32, 8, 128).unwrap()),
        ("gla", Geometry::gla(128, 2, 256, 64).unwrap()),
    ] {
        let problem = problem(geometry);
        let capacity = Extent { max_kv_len: 2 * KV_LEN, ..*step.extent() };
        let call = Planning::with_capacity(&problem, &step, capacity).unwrap();
        let mut plan = engine.plan(call.clone()).unwrap();
        criterion.bench_function(&format!("plan/new/{name}"), |bencher| {
            bencher.iter(|| engine.plan(call.clone()).unwrap());
        });
        criterion.bench_function(&format!("plan/update/{name}"), |bencher| {
            bencher.iter(|| engine.update(Update::new(&mut plan, &step).unwrap()).unwrap());
        });
    }
}

fn merging(criterion: &mut Criterion) {
    let engine = CpuBackend::new();
    let shape = [SEQUENCES, 128, 256]; // [rows, h_q, d_v]
    let elements: usize = shape.iter().product();
    let tensor = |shape: &[usize], seed: usize| {
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|i: usize| ((i * 37 + seed) % 101) as f64 / 50.0 - 1.0)
            .collect();
        let host = HostTensor::from_f64(Dtype::F32, shape, &values).unwrap();
        let mut tensor = engine.allocate(Dtype::F32, shape).unwrap();
        engine.upload(Upload::new(&mut tensor, &host).unwrap()).unwrap();
        tensor
    };
    let (mut o, other_o) = (tensor(&shape, 1), tensor(&shape, 2));
    let (mut lse, other_lse) = (tensor(&shape[..2], 3), tensor(&shape[..2], 4));
    let mut group = criterion.benchmark_group("merge");
    // Two parts read and one written.
    group.throughput(Throughput::Bytes((3 * 4 * elements) as u64));
    group.bench_function("gla", |bencher| {
        bencher.iter(|| {
            let call = Merge::new(&mut o, &mut lse, &other_o, &other_lse).unwrap();
            engine.merge(call).unwrap();
        });
    });
    group.finish();
}

criterion_group!(benches, page_tables, planning, merging);
criterion_main!(benches);
