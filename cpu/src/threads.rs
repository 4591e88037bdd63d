//! On which threads tasks run.

use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefMutIterator, ParallelIterator};
use std::sync::Arc;

/// A rayon pool: the caller's, or whichever is current.
#[derive(Clone, Debug)]
pub(crate) enum Threads {
    /// The pool of the calling thread, or rayon's global one.
    Current,
    /// This one.
    Pool(Arc<ThreadPool>),
}

impl Threads {
    pub(crate) fn count(&self) -> usize {
        match self {
            Threads::Current => rayon::current_num_threads(),
            Threads::Pool(pool) => pool.current_num_threads(),
        }
    }

    /// Runs `work` once for each item, at the same time where threads are free.
    pub(crate) fn each<T: Send>(&self, items: &mut [T], work: impl Fn(&mut T) + Sync + Send) {
        let run = || items.par_iter_mut().with_max_len(1).for_each(work);
        match self {
            Threads::Current => run(),
            Threads::Pool(pool) => pool.install(run),
        }
    }
}
