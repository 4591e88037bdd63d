//! An allocator that knows how much one input may ask for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// The system's allocator, which ends the process where an input takes more than it is allowed.
#[derive(Debug)]
pub struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

/// True while an input is being run. libFuzzer has one thread, and so have the targets.
static COUNTING: AtomicBool = AtomicBool::new(false);
/// Bytes that the input may still take.
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Bytes that any input may take, whatever its size.
const FLOOR: usize = 64 << 20;
/// Bytes for each byte of the input.
const FACTOR: usize = 256;

/// Runs something on an input of so many bytes; the process ends if it holds more memory at a time
/// than such an input may ask for.
pub fn within<T>(bytes: usize, run: impl FnOnce() -> T) -> T {
    LEFT.store(FLOOR + FACTOR * bytes, Relaxed);
    COUNTING.store(true, Relaxed);
    let result = run();
    COUNTING.store(false, Relaxed);
    result
}

fn take(bytes: usize) {
    if COUNTING.load(Relaxed) && LEFT.fetch_sub(bytes.min(LEFT.load(Relaxed)), Relaxed) < bytes {
        COUNTING.store(false, Relaxed);
        panic!("an allocation of {bytes} bytes is more than the input may ask for");
    }
}

fn give_back(bytes: usize) {
    if COUNTING.load(Relaxed) {
        LEFT.fetch_add(bytes, Relaxed);
    }
}

// SAFETY: every method hands its arguments to the system's allocator unchanged and returns what
// that returned. A panic on the way out of memory unwinds into libFuzzer's hook, which aborts.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise about the layout is the one that System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the pointer came from System, by way of this allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        take(size);
        give_back(layout.size());
        // SAFETY: as in `dealloc`; the caller promises a legal size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
