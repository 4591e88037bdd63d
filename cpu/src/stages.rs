//! The two stages of a call: its tasks, then the joins of their parts.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Tasks and then joins, which threads take from counters. Which thread runs which is left to chance; nothing may
/// depend on it.
///
/// PERF: one call of the pool for both, since a thread without work sleeps and must be woken for a second: two threads of
/// a Xeon, B 1, L 8192, `q_len` 1, medians of 31 calls in three rounds in turn, two calls and one, us: GQA 1355, 1344; GTA
/// 851, 841; MLA with 16 heads 525, 513, with 128 1286, 1277; GLA-2 with 128 heads 856, 854.
pub(crate) struct Stages {
    tasks: Stage,
    joins: Stage,
}

struct Stage {
    count: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Stages {
    pub(crate) fn new(tasks: usize, joins: usize) -> Stages {
        Stages { tasks: Stage::new(tasks), joins: Stage::new(joins) }
    }

    /// One thread's share.
    pub(crate) fn run(&self, task: impl FnMut(usize), join: impl FnMut(usize)) {
        self.tasks.drain(task);
        if self.joins.count > 0 {
            self.tasks.wait();
            self.joins.drain(join);
        }
    }
}

impl Stage {
    fn new(count: usize) -> Stage {
        Stage { count, next: AtomicUsize::new(0), done: AtomicUsize::new(0) }
    }

    fn drain(&self, mut work: impl FnMut(usize)) {
        // Relaxed: what an index stands for is read through shared references; the counter only has to count.
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                return;
            }
            let _done = Done(&self.done);
            work(index);
        }
    }

    /// Until all is done. What is not is being done by a thread that runs, and for no longer than one task takes.
    fn wait(&self) {
        let mut turns = 0_u32;
        while self.done.load(Ordering::Acquire) < self.count {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Turns of waiting, tens of nanoseconds each, before other threads of the machine get the processor.
const SPINS: u32 = 1 << 12;

/// Counts a piece of work as done on drop, even where it panics: others wait for it.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        // Release: whoever waits sees what was written.
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Runs the stages on four threads; those in which `task` panics count as panicked.
    fn run(stages: &Stages, task: impl Fn(usize) + Sync, join: impl Fn(usize) + Sync) -> usize {
        let share = || catch_unwind(AssertUnwindSafe(|| stages.run(&task, &join))).is_err();
        std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| scope.spawn(share));
            threads.map(|thread| thread.join().expect("caught")).into_iter().filter(|x| *x).count()
        })
    }

    #[test]
    fn every_task_is_done_once_before_any_join() {
        let [tasks, joins] = [97, 31].map(|count| Vec::from_iter((0..count).map(AtomicUsize::new)));
        let stages = Stages::new(tasks.len(), joins.len());
        let task = |index: usize| {
            std::thread::yield_now();
            tasks[index].fetch_add(1000, Ordering::Relaxed);
        };
        let join = |index: usize| {
            for (i, task) in tasks.iter().enumerate() {
                assert_eq!(task.load(Ordering::Relaxed), i + 1000);
            }
            joins[index].fetch_add(1000, Ordering::Relaxed);
        };
        assert_eq!(run(&stages, task, join), 0);
        for (i, join) in joins.iter().enumerate() {
            assert_eq!(join.load(Ordering::Relaxed), i + 1000);
        }
    }

    #[test]
    fn a_task_that_panics_is_done() {
        // Without joins nobody waits, so that this test ends even where the task counts as under way.
        let stages = Stages::new(8, 0);
        let task = |index| assert_ne!(index, 3, "as planned");
        assert_eq!(run(&stages, task, |_| {}), 1);
        assert_eq!(stages.tasks.done.into_inner(), 8);
    }
}
