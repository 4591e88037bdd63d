//! Engines behind a pointer: the same bits, and no handle of another engine.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod common;

use common::{Numbers, Plain, append, host_bits, row_tensors, tensor};
use grouped_attention::{
    AnyBackend, AnyCache, AnyTensor, Append, Attend, Backend, CacheInfo, CacheLayout, CopyRows,
    Dtype, DynBackend, EngineError, Extension, Geometry, HostTensor, MaskKind, Merge, PageTables,
    PlanInfo, Planning, Problem, ReadRows, Reference, ReferenceCache, ReferenceTensor, Rope,
    RopeScaling, RopeStyle, Status, TensorInfo, Update, Upload,
};

// Checked by the compiler: the mirror is object-safe, and a boxed engine is an engine, shareable
// between threads.
const _: fn(&dyn DynBackend) = |_| ();
const _: fn() = || {
    fn is_an_engine<B: Backend + Send + Sync>() {}
    fn is_erased<B: DynBackend>() {}
    is_an_engine::<AnyBackend>();
    is_an_engine::<Reference>();
    is_erased::<Reference>();
    is_erased::<AnyBackend>();
};

fn problem() -> Problem {
    let rope = Rope::new(RopeStyle::Interleaved, 4, 100.0, RopeScaling::None).unwrap();
    Problem::new(Geometry::gla(4, 2, 6, 4).unwrap(), Dtype::Bf16, 0.4)
        .unwrap()
        .rotating(rope)
        .unwrap()
}

/// A program that calls every method, and the bits of what it can see.
fn program<B: Backend>(backend: &B) -> Vec<u32> {
    let problem = problem();
    let geometry = *problem.geometry();
    let mut numbers = Numbers(21);
    let mut tables = PageTables::new(3, 8).unwrap();
    let layout = CacheLayout::new(geometry, Dtype::Bf16, 3, 8).unwrap();
    let mut cache = backend.create_cache(layout).unwrap();
    assert_eq!(*cache.layout(), layout);

    // A prompt, then a fork that drops a token and grows again: copies, on both paths.
    let a = tables.insert();
    tables.extend(a, 6).unwrap();
    let prompt = tables.step(&[(a, 6)], MaskKind::Causal).unwrap();
    let rows = Plain::random(&mut numbers, &geometry, 0, 6).rows;
    append(backend, &problem, &prompt, &mut cache, &rows);
    let (b, _) = tables.fork(a).unwrap();
    tables.truncate(b, 5).unwrap();
    let copies = tables.extend(b, 2).unwrap();
    assert!(!copies.is_empty());
    backend.copy_rows(CopyRows::new(&mut cache, &copies).unwrap()).unwrap();
    let step = tables.step(&[(b, 2)], MaskKind::Tree(&[-1, -1])).unwrap();
    let mut plan = backend.plan(Planning::new(&problem, &step)).unwrap();
    assert_eq!(plan.planned().extent(), step.extent());
    let rows = Plain::random(&mut numbers, &geometry, 0, 2).rows;
    let (first, second) = row_tensors(backend, &problem, &rows);
    let call = Append::rotating(&plan, &mut cache, &first, second.as_ref()).unwrap();
    backend.append(call).unwrap();

    // Attention with lse, and after an update without.
    let q = tensor(backend, Dtype::Bf16, &[2, 4, 10], &numbers.vector(80));
    let mut o = backend.allocate(Dtype::Bf16, &[2, 4, 6]).unwrap();
    let mut lse = backend.allocate(Dtype::F32, &[2, 4]).unwrap();
    let call = Attend::new(&mut plan, &q, &cache, &mut o, Some(&mut lse)).unwrap();
    backend.attend(call).unwrap();
    let later = tables.step(&[(a, 1)], MaskKind::Causal).unwrap();
    backend.update(Update::new(&mut plan, &later).unwrap()).unwrap();
    assert_eq!(plan.planned().extent(), later.extent());
    let mut later_o = backend.allocate(Dtype::Bf16, &[2, 4, 6]).unwrap();
    backend.attend(Attend::new(&mut plan, &q, &cache, &mut later_o, None).unwrap()).unwrap();
    assert_eq!(backend.status(&plan), Ok(Status::Ok));

    let other_lse = tensor(backend, Dtype::F32, &[2, 4], &numbers.vector(8));
    let slots: Vec<_> = step.writes().iter().map(|write| write.slot).collect();
    let written = backend.read_rows(ReadRows::new(&cache, &slots).unwrap()).unwrap();
    let mut bits = host_bits(&backend.download(&o).unwrap());
    bits.extend(written.iter().flat_map(host_bits));
    backend.merge(Merge::new(&mut o, &mut lse, &later_o, &other_lse).unwrap()).unwrap();
    backend.synchronize().unwrap();
    for tensor in [&o, &lse, &later_o] {
        bits.extend(host_bits(&backend.download(tensor).unwrap()));
    }
    assert_eq!((o.dtype(), o.shape()), (Dtype::Bf16, &[2, 4, 6][..]));
    bits
}

#[test]
fn a_boxed_engine_computes_the_same_bits() {
    let expected = program(&Reference);
    let finite = |bits: &&u32| f32::from_bits(**bits << 16).is_finite();
    assert_eq!(expected[..48].iter().filter(finite).count(), 48);
    let once: AnyBackend = Box::new(Reference);
    assert_eq!(program(&once), expected);
    let twice: AnyBackend = Box::new(once);
    assert_eq!(program(&twice), expected);
}

#[test]
fn a_boxed_engine_is_who_it_was() {
    let boxed: AnyBackend = Box::new(Reference::new());
    let identity = boxed.identity();
    assert_eq!(identity, Reference.identity());
    assert_eq!(identity.to_string(), "reference (f64 two-pass) on cpu");
    assert_eq!(boxed.arithmetic(&problem()), Reference.arithmetic(&problem()));
    assert_eq!(boxed.supports(&problem()), Ok(()));
    let sinks = problem().extended(Extension::Sinks);
    assert_eq!(boxed.supports(&sinks), Reference.supports(&sinks));
    assert!(boxed.supports(&sinks).is_err());
    assert_eq!(
        boxed.allocate(Dtype::F32, &[usize::MAX]).map(|_| ()),
        Reference.allocate(Dtype::F32, &[usize::MAX]).map(|_| ())
    );
}

#[test]
fn handles_give_back_the_engines_own_types() {
    let mut any = AnyTensor::new(Reference.allocate(Dtype::F32, &[2]).unwrap());
    assert_eq!(any.get::<ReferenceTensor>().unwrap().values(), [0.0, 0.0]);
    let boxed: AnyBackend = Box::new(Reference);
    let host = HostTensor::from_f64(Dtype::F32, &[2], &[1.0, 2.0]).unwrap();
    boxed.upload(Upload::new(&mut any, &host).unwrap()).unwrap();
    assert_eq!(any.get_mut::<ReferenceTensor>().unwrap().values(), [1.0, 2.0]);
    assert_eq!(any.get::<u8>().unwrap_err(), EngineError::Foreign { what: "tensor" });
    assert_eq!(any.get_mut::<u8>().unwrap_err(), EngineError::Foreign { what: "tensor" });
}

// A doubly boxed engine is another engine: its handles hold `AnyTensor`s, not `ReferenceTensor`s.
#[test]
fn handles_of_another_engine_are_foreign() {
    let home: AnyBackend = Box::new(Reference);
    let inner: AnyBackend = Box::new(Reference);
    let abroad: AnyBackend = Box::new(inner);
    let problem = problem();
    let mut tables = PageTables::new(2, 1).unwrap();
    let sequence = tables.insert();
    tables.extend(sequence, 1).unwrap();
    let step = tables.step(&[(sequence, 1)], MaskKind::Causal).unwrap();
    let layout = CacheLayout::new(*problem.geometry(), Dtype::Bf16, 2, 1).unwrap();

    let shapes = [&[1, 4, 10][..], &[1, 4, 6], &[1, 2, 6], &[1, 4]];
    let tensors = |engine: &AnyBackend| {
        shapes.map(|shape| {
            let dtype = if shape == [1, 4] { Dtype::F32 } else { Dtype::Bf16 };
            engine.allocate(dtype, shape).unwrap()
        })
    };
    // [q, o, state, lse]; the rope key is 4 wide, as lse is, but in bf16.
    let (mut home_tensors, mut far_tensors) = (tensors(&home), tensors(&abroad));
    let [home_rope, far_rope] =
        [&home, &abroad].map(|engine| engine.allocate(Dtype::Bf16, &[1, 4]).unwrap());
    let [mut home_cache, mut far_cache] =
        [&home, &abroad].map(|engine| engine.create_cache(layout).unwrap());
    let [mut home_plan, mut far_plan] =
        [&home, &abroad].map(|engine| engine.plan(Planning::new(&problem, &step)).unwrap());
    let foreign = |what| Err(EngineError::Foreign { what });

    let host = HostTensor::zeros(Dtype::F32, &[1, 4]).unwrap();
    let call = Upload::new(&mut far_tensors[3], &host).unwrap();
    assert_eq!(home.upload(call), foreign("tensor"));
    let downloaded = home.download(&far_tensors[3]).map(|_| ());
    assert_eq!(downloaded, foreign("tensor"));
    let call = Update::new(&mut far_plan, &step).unwrap();
    assert_eq!(home.update(call), foreign("plan"));
    assert_eq!(home.status(&far_plan).map(|_| ()), foreign("plan"));
    let call = CopyRows::new(&mut far_cache, &[]).unwrap();
    assert_eq!(home.copy_rows(call), foreign("cache"));
    let call = ReadRows::new(&far_cache, &[]).unwrap();
    assert_eq!(home.read_rows(call).map(|_| ()), foreign("cache"));

    for far in 0..4 {
        let plan = if far == 0 { &far_plan } else { &home_plan };
        let cache = if far == 1 { &mut far_cache } else { &mut home_cache };
        let state = if far == 2 { &far_tensors[2] } else { &home_tensors[2] };
        let rope = if far == 3 { &far_rope } else { &home_rope };
        let call = Append::new(plan, cache, state, Some(rope)).unwrap();
        assert_eq!(home.append(call), foreign(["plan", "cache", "tensor", "tensor"][far]));
    }
    for far in 0..5 {
        let [home_q, home_o, _, home_lse] = &mut home_tensors;
        let [far_q, far_o, _, far_lse] = &mut far_tensors;
        let plan = if far == 0 { &mut far_plan } else { &mut home_plan };
        let q = if far == 1 { far_q } else { home_q };
        let cache = if far == 2 { &far_cache } else { &home_cache };
        let o = if far == 3 { far_o } else { home_o };
        let lse = if far == 4 { far_lse } else { home_lse };
        let call = Attend::new(plan, q, cache, o, Some(lse)).unwrap();
        let what = ["plan", "tensor", "cache", "tensor", "tensor"][far];
        assert_eq!(home.attend(call), foreign(what));
    }
    for far in 0..4 {
        let mut parts = [
            tensors(if far == 0 { &abroad } else { &home }),
            tensors(if far == 1 { &abroad } else { &home }),
            tensors(if far == 2 { &abroad } else { &home }),
            tensors(if far == 3 { &abroad } else { &home }),
        ];
        let [o, lse, other_o, other_lse] = &mut parts;
        let call = Merge::new(&mut o[1], &mut lse[3], &other_o[1], &other_lse[3]).unwrap();
        assert_eq!(home.merge(call), foreign("tensor"));
    }
}

// A foreign handle need not come from an engine at all.
#[test]
fn handles_of_no_engine_are_foreign() {
    #[derive(Debug)]
    struct Borrowed(Vec<usize>);
    impl TensorInfo for Borrowed {
        fn dtype(&self) -> Dtype {
            Dtype::F16
        }
        fn shape(&self) -> &[usize] {
            &self.0
        }
    }
    let boxed: AnyBackend = Box::new(Reference);
    let tensor = AnyTensor::new(Borrowed(vec![3, 1]));
    assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F16, &[3, 1][..]));
    assert_eq!(boxed.download(&tensor), Err(EngineError::Foreign { what: "tensor" }));
    // A cache made by the engine's own constructor is at home.
    let layout = CacheLayout::new(*problem().geometry(), Dtype::F16, 2, 1).unwrap();
    let mut cache = AnyCache::new(ReferenceCache::new(layout));
    assert_eq!(boxed.copy_rows(CopyRows::new(&mut cache, &[]).unwrap()), Ok(()));
    assert_eq!(cache.get::<ReferenceCache>().unwrap().layout(), &layout);
    assert_eq!(cache.get::<u8>().unwrap_err(), EngineError::Foreign { what: "cache" });
}
