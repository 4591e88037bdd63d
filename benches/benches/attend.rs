//! Attention of the cpu engine on small steps, each of which one piece of it dominates.
//!
//! `cargo bench -p grouped-attention-benches --bench attend`
//!
//! * `case/NAME`: a case of the conformance corpus, by the name that its trials have.
//! * `softmax/WIDTH`: rows so narrow that exponentials outweigh products.
//! * `gather/PAGE`: the same rows in pages of 64, 16 and 1, in shuffled order.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "a benchmark of legal calls")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use grouped_attention::{
    AnyBackend, AnyCache, AnyPlan, AnyTensor, Append, Attend, Backend, CopyRows, Dtype, Geometry,
    HostTensor, PlanInfo, Planning, Update, Upload,
};
use grouped_attention_conformance::generate::corpus;
use grouped_attention_conformance::{Case, Lens, Op, Script};
use grouped_attention_cpu::CpuBackend;

/// Cases with the widths of models.
const CASES: [&str; 5] =
    ["gqa-full-width", "gta-full-width", "mla-full-width", "gla-full-width", "mla-group-128"];

/// The last attention of a case, ready to be made again.
struct Call {
    engine: AnyBackend,
    plan: AnyPlan,
    cache: AnyCache,
    q: AnyTensor,
    o: AnyTensor,
}

impl Call {
    /// Runs a case up to its last attention, as the suite does.
    fn new(case: &Case) -> Call {
        let engine: AnyBackend = Box::new(CpuBackend::new());
        let script = Script::new(case).unwrap();
        let put = |host: &HostTensor| {
            let mut tensor = engine.allocate(host.dtype(), host.shape()).unwrap();
            engine.upload(Upload::new(&mut tensor, host).unwrap()).unwrap();
            tensor
        };
        let mut cache = engine.create_cache(script.layout).unwrap();
        let (mut plan, mut queries): (Option<AnyPlan>, _) = (None, None);
        for op in &script.ops {
            match op {
                Op::Plan { step, .. } => {
                    plan = Some(engine.plan(Planning::new(&script.problem, step)).unwrap());
                }
                Op::Update { step } => {
                    let plan = plan.as_mut().unwrap();
                    engine.update(Update::new(plan, step).unwrap()).unwrap();
                }
                Op::Append { first, second, rotating } => {
                    let (first, second) = (put(first), second.as_ref().map(put));
                    let (plan, second) = (plan.as_ref().unwrap(), second.as_ref());
                    let call = if *rotating { Append::rotating } else { Append::new };
                    engine.append(call(plan, &mut cache, &first, second).unwrap()).unwrap();
                }
                Op::Copy(copies) => {
                    engine.copy_rows(CopyRows::new(&mut cache, copies).unwrap()).unwrap();
                }
                Op::Attend { q, .. } => queries = Some(put(q)),
                Op::Merge => {}
                Op::Layer(_) => unreachable!("only `do=serve` has two layers, and none is timed"),
            }
        }
        let (plan, q) = (plan.unwrap(), queries.unwrap());
        let rows = plan.planned().query_rows();
        let shape = [rows, case.geometry.h_q(), case.geometry.width_v()];
        let o = engine.allocate(script.problem.output(), &shape).unwrap();
        Call { engine, plan, cache, q, o }
    }

    fn attend(&mut self) {
        let call = Attend::new(&mut self.plan, &self.q, &self.cache, &mut self.o, None).unwrap();
        self.engine.attend(call).unwrap();
    }
}

/// A bf16 case of one sequence in general position.
fn case(geometry: Geometry, page_size: usize, kv: usize) -> Case {
    let scale = 1.0 / (geometry.width_k() as f64).sqrt();
    let case = Case::new(geometry, 1, kv, scale);
    Case { dtype: Dtype::Bf16, page_size, lens: vec![Lens { q: 1, kv }], ..case }
}

fn cases(criterion: &mut Criterion) {
    for name in CASES {
        let case = corpus::find(name).unwrap().case;
        let mut call = Call::new(&case);
        criterion.bench_function(&format!("case/{name}"), |bencher| {
            bencher.iter(|| call.attend());
        });
    }
}

fn softmax(criterion: &mut Criterion) {
    const KV_LEN: usize = 4096;
    const H_Q: usize = 64;
    let mut group = criterion.benchmark_group("softmax");
    // One exponential a position and query head.
    group.throughput(Throughput::Elements((KV_LEN * H_Q) as u64));
    for width in [16, 64] {
        let mut call = Call::new(&case(Geometry::mqa(H_Q, width).unwrap(), 64, KV_LEN));
        group.bench_function(width.to_string(), |bencher| bencher.iter(|| call.attend()));
    }
    group.finish();
}

fn gather(criterion: &mut Criterion) {
    const KV_LEN: usize = 4096;
    let geometry = Geometry::gla(16, 2, 256, 64).unwrap();
    let bytes = KV_LEN * geometry.row().elements() * Dtype::Bf16.bytes();
    let mut group = criterion.benchmark_group("gather");
    group.throughput(Throughput::Bytes(bytes as u64));
    for page_size in [64, 16, 1] {
        let mut call = Call::new(&case(geometry, page_size, KV_LEN));
        group.bench_function(page_size.to_string(), |bencher| bencher.iter(|| call.attend()));
    }
    group.finish();
}

criterion_group!(benches, cases, softmax, gather);
criterion_main!(benches);
