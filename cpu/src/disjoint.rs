//! One slice that several threads write, each its own elements.

use crate::lanes::Lanes;
use std::marker::PhantomData;

/// A slice whose elements are handed out to be written, by a promise instead of a borrow: which
/// thread writes which rows is decided by the schedule, which the compiler cannot see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `take`, whose callers promise that no element is handed out twice at
// a time, so threads share nothing.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Disjoint<'a, T> {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Asks for the cache line of an element, if there is one.
    #[inline(always)]
    pub(crate) fn prefetch<L: Lanes>(&self, lanes: L, at: usize) {
        lanes.prefetch(self.start.wrapping_add(at).addr());
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// None of them may be reachable by another slice from here while this one lives.
    pub(crate) unsafe fn take(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "within the slice");
        // SAFETY: the range is within the slice.
        let first = unsafe { self.start.add(start) };
        // SAFETY: the elements are initialised and borrowed for 'a by this value, and the caller
        // promises that no other slice reaches them.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }
}
