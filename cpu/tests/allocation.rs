//! Nothing is allocated where a step's time is spent.
#![allow(clippy::unwrap_used, reason = "a test that unwraps says so by failing")]

use grouped_attention::{
    Append, Attend, Backend, CacheLayout, Dtype, Geometry, Mask, MaskKind, PageId, Planning,
    Problem, Rope, RopeScaling, RopeStyle, Row, Sequence, Step, Update,
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
fn a_step_allocates_nothing() {
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
    let (turned, shapes) = match geometry.row() {
        Row::Separate { heads, d_k, d_v } => (d_k, [vec![heads, d_k], vec![heads, d_v]]),
        Row::Tied { heads, s, r, .. } => (r, [vec![heads, s], vec![r]]),
    };
    let rope = Rope::new(RopeStyle::HalfSplit, turned, 1e4, RopeScaling::None).unwrap();
    let problem = Problem::new(geometry, dtype, 0.1).unwrap().rotating(rope).unwrap();
    // Pages apart, so that every sequence may append its queries' rows.
    let pages: Vec<PageId> = (0..67).map(PageId).collect();
    let sequence = |q_len, kv_len, first: usize| Sequence { q_len, kv_len, pages: &pages[first..] };
    let sequences =
        [sequence(4, 4000, 0), sequence(1, 70, 63), sequence(0, 0, 0), sequence(40, 100, 65)];
    let tree: Vec<i32> = (0..4).chain([0]).chain(0..40).map(|t| t - 1).collect();
    let tree = Mask::new(MaskKind::Tree(&tree), [4, 1, 0, 40]).unwrap();
    let steps = [Mask::Causal, tree]
        .map(|mask| Step::new(64, &sequences, mask).unwrap().appending().unwrap());
    let layout = CacheLayout::new(geometry, dtype, 64, pages.len()).unwrap();
    let mut cache = engine.create_cache(layout).unwrap();
    let rows = steps[0].total_q();
    let tensor = |shape: &[usize]| engine.allocate(dtype, &[&[rows], shape].concat()).unwrap();
    let [first, second] = shapes.map(|shape| tensor(&shape));
    let q = tensor(&[geometry.h_q(), geometry.width_k()]);
    let mut o = tensor(&[geometry.h_q(), geometry.width_v()]);
    let mut plan = engine.plan(Planning::new(&problem, &steps[0])).unwrap();
    for step in steps.iter().chain(&steps) {
        let updating = allocations(|| {
            engine.update(Update::new(&mut plan, step).unwrap()).unwrap();
        });
        let appending = allocations(|| {
            let append = Append::rotating(&plan, &mut cache, &first, Some(&second)).unwrap();
            engine.append(append).unwrap();
        });
        let attend = |plan: &mut _, o: &mut _| {
            engine.attend(Attend::new(plan, &q, &cache, o, None).unwrap()).unwrap();
        };
        // A thread that takes its first task ever may set up what rayon keeps for it, whenever
        // that is; what a call allocates itself, it allocates in every round.
        let rounds = (0..8).map(|_| allocations(|| attend(&mut plan, &mut o)));
        let attending = rounds.min().unwrap();
        let all = (updating, appending, attending);
        assert_eq!(all, (0, 0, 0), "{engine:?} {geometry} {dtype}");
    }
}
