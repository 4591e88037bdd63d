//! Nothing is allocated where a step's time is spent.
#![allow(clippy::unwrap_used, reason = "a test that unwraps says so by failing")]

use grouped_attention::{
    Attend, Backend, CacheLayout, Dtype, Geometry, Mask, MaskKind, PageId, Planning, Problem,
    Sequence, Step, Update,
};
use grouped_attention_cpu::CpuBackend;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every method passes its arguments on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of the whole process while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    work();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

// One test, so that no other thread allocates meanwhile.
#[test]
fn attend_and_update_allocate_nothing() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // A call from outside a pool is handed over through rayon's queue, which allocates a block for
    // every 63 such calls; from inside there is no queue.
    pool.install(|| {
        for kernel in grouped_attention_cpu::Kernel::available() {
            for dtype in Dtype::ALL {
                let engine = CpuBackend::builder().kernel(kernel).build().unwrap();
                check(&engine, Geometry::gqa(8, 2, 64).unwrap(), dtype);
                check(&engine, Geometry::gla(32, 2, 64, 32).unwrap(), dtype);
            }
        }
    });
}

fn check(engine: &CpuBackend, geometry: Geometry, dtype: Dtype) {
    let problem = Problem::new(geometry, dtype, 0.1).unwrap();
    let pages: Vec<PageId> = (0..64).map(PageId).collect();
    let sequence = |q_len, kv_len| Sequence { q_len, kv_len, pages: &pages };
    let sequences = [sequence(4, 4000), sequence(1, 70), sequence(0, 0), sequence(40, 100)];
    let tree: Vec<i32> = (0..4).chain([0]).chain(0..40).map(|t| t - 1).collect();
    let tree = Mask::new(MaskKind::Tree(&tree), [4, 1, 0, 40]).unwrap();
    let steps = [Mask::Causal, tree].map(|mask| Step::new(64, &sequences, mask).unwrap());
    let cache = engine.create_cache(CacheLayout::new(geometry, dtype, 64, 64).unwrap()).unwrap();
    let rows = steps[0].total_q();
    let q = engine.allocate(dtype, &[rows, geometry.h_q(), geometry.width_k()]).unwrap();
    let mut o = engine.allocate(dtype, &[rows, geometry.h_q(), geometry.width_v()]).unwrap();
    let mut plan = engine.plan(Planning::new(&problem, &steps[0])).unwrap();
    for step in steps.iter().chain(&steps) {
        let updating = allocations(|| {
            engine.update(Update::new(&mut plan, step).unwrap()).unwrap();
        });
        let attend = |plan: &mut _, o: &mut _| {
            engine.attend(Attend::new(plan, &q, &cache, o, None).unwrap()).unwrap();
        };
        // A thread that takes its first task ever may set up what rayon keeps for it, whenever
        // that is; what a call allocates itself, it allocates in every round.
        let rounds = (0..8).map(|_| allocations(|| attend(&mut plan, &mut o)));
        let attending = rounds.min().unwrap();
        // The record of the step is a copy of the problem, whose rope may have tables: none here.
        assert_eq!((updating, attending), (0, 0), "{engine:?} {geometry} {dtype}");
    }
}
