//! Which requests run in the next step: a state machine without a clock, a model or pages.
//!
//! ```text
//! waiting --admit--> prefilling --> decoding --> done
//!    ^                   |             |
//!    |                preempt       preempt
//!    +---- admit ---- preempted <------+        (cancel leads from anywhere to done)
//! ```
//!
//! One rule decides who yields: *a request takes pages from those younger than itself, youngest
//! first; one that finds nobody younger waits*. So the oldest request always gets on, and whatever
//! fits the pool alone is answered at last.
//!
//! A step's tokens go, in this order, to the next token of requests that decode, to the chunks of
//! those that prefill, to admissions, and to drafts: speculation uses what nobody else could.

use std::collections::BTreeMap;

/// A request of one server. Later requests have larger ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

/// Where a request stands. One that is done is no longer known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not admitted yet.
    Waiting,
    /// More than one of its tokens still lacks a cache row.
    Prefilling,
    /// Only its last token lacks a row: each step yields a token.
    Decoding,
    /// It has lost its pages and waits to be admitted again.
    Preempted,
}

/// What a scheduler has to go by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) page_size: usize,
    /// Pages of the pool.
    pub(super) pages: usize,
    /// Tokens of a step.
    pub(super) budget: usize,
}

/// Pages at the time of a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) free: usize,
    /// Held by nothing but the prefix index.
    pub(super) reclaimable: usize,
}

/// What to do next. Each but the last is to be carried out, told to the scheduler, and followed by
/// another question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Drop a prefix that nobody uses.
    Reclaim,
    /// Take a request's pages.
    Preempt(RequestId),
    /// Give a request its place in the caches.
    Admit(RequestId),
    /// Run this step. Nothing to run means nothing to do.
    Run(Vec<Share>),
}

/// One request's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) request: RequestId,
    /// Tokens of the text, from its first one without a row.
    pub(super) tokens: usize,
    /// Tokens of the draft behind them.
    pub(super) draft: usize,
}

/// The lengths of one request, in tokens.
#[derive(Clone, Copy, Debug)]
struct Job {
    /// Prompt and answer so far.
    text: usize,
    /// Prompt and whole answer.
    end: usize,
    /// Tokens that have a cache row.
    rows: usize,
    /// Proposed after the text.
    draft: usize,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Running,
    Preempted,
}

impl Job {
    fn pending(&self) -> usize {
        self.text - self.rows
    }

    /// Rows that the job will soon have: those of its text and of one token more. The answer's
    /// last token never gets one.
    fn ahead(&self) -> usize {
        (self.text + 1).min(self.end - 1)
    }
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Scheduler {
    limits: Limits,
    /// Oldest first.
    jobs: BTreeMap<RequestId, Job>,
    next: u64,
}

/// A step being put together.
struct Batch {
    shares: Vec<Share>,
    tokens_left: usize,
    pages_left: usize,
}

impl Scheduler {
    pub(super) fn new(limits: Limits) -> Scheduler {
        Scheduler { limits, jobs: BTreeMap::new(), next: 0 }
    }

    /// A new request, last in line, or the pages that it would need and the pool lacks.
    pub(super) fn submit(&mut self, prompt: usize, tokens: usize) -> Result<RequestId, usize> {
        let end = prompt.saturating_add(tokens);
        let needed = self.pages(end - 1);
        if needed > self.limits.pages {
            return Err(needed);
        }
        let id = RequestId(self.next);
        self.next += 1;
        self.jobs.insert(id, Job { text: prompt, end, rows: 0, draft: 0, place: Place::Waiting });
        Ok(id)
    }

    /// A request is in the caches, with `rows` rows.
    pub(super) fn admitted(&mut self, request: RequestId, rows: usize) {
        self.update(request, |job| (job.rows, job.place) = (rows, Place::Running));
    }

    /// A request has lost its pages.
    pub(super) fn preempted(&mut self, request: RequestId) {
        self.update(request, |job| (job.rows, job.place) = (0, Place::Preempted));
    }

    /// A request has `rows` rows now, its text is `text` tokens long, and `draft` more are proposed.
    pub(super) fn advanced(&mut self, request: RequestId, rows: usize, text: usize, draft: usize) {
        self.update(request, |job| (job.rows, job.text, job.draft) = (rows, text, draft));
    }

    /// A request is answered or cancelled.
    pub(super) fn remove(&mut self, request: RequestId) {
        self.jobs.remove(&request);
    }

    fn update(&mut self, request: RequestId, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.get_mut(&request) {
            change(job);
            debug_assert!(job.rows < job.text && job.text + job.draft < job.end, "{job:?}");
        }
    }

    /// Where a request stands; `None` once it is done.
    pub(super) fn phase(&self, request: RequestId) -> Option<Phase> {
        let job = self.jobs.get(&request)?;
        Some(match job.place {
            Place::Waiting => Phase::Waiting,
            Place::Preempted => Phase::Preempted,
            Place::Running if job.pending() == 1 => Phase::Decoding,
            Place::Running => Phase::Prefilling,
        })
    }

    /// Every request that is not done, oldest first.
    pub(super) fn requests(&self) -> impl ExactSizeIterator<Item = RequestId> + '_ {
        self.jobs.keys().copied()
    }

    /// What to do next. `shared` says how many tokens of a request's text, whole pages of them, the
    /// prefix index could supply.
    pub(super) fn decide(&self, memory: Memory, shared: impl Fn(RequestId) -> usize) -> Decision {
        let mut batch =
            Batch { shares: Vec::new(), tokens_left: self.limits.budget, pages_left: memory.free };
        let (decoding, prefilling): (Vec<_>, Vec<_>) =
            self.running().partition(|(_, job)| job.pending() == 1);
        for (id, job) in decoding.into_iter().chain(prefilling) {
            if let Some(first) = self.share(&mut batch, id, job, memory) {
                return first;
            }
        }
        if let Some(first) = self.admission(&batch, memory, shared) {
            return first;
        }
        self.add_drafts(&mut batch);
        Decision::Run(batch.shares)
    }

    /// Gives a running request its part of the step, or says what has to be done before.
    fn share(
        &self,
        batch: &mut Batch,
        id: RequestId,
        job: &Job,
        memory: Memory,
    ) -> Option<Decision> {
        let wanted = job.pending().min(batch.tokens_left);
        let fit = self.room(job.rows, batch.pages_left).min(wanted);
        if fit < wanted && memory.reclaimable > 0 {
            return Some(Decision::Reclaim);
        }
        if fit > 0 {
            batch.pages_left -= self.growth(job.rows, job.rows + fit);
            batch.tokens_left -= fit;
            batch.shares.push(Share { request: id, tokens: fit, draft: 0 });
            return None;
        }
        // Not one token fits. With tokens left this is for want of pages.
        let (youngest, _) = self.running().next_back()?;
        (wanted > 0 && youngest > id).then_some(Decision::Preempt(youngest))
    }

    /// Admits the oldest request outside the caches if what the running ones will soon need leaves
    /// room for all of its text. Nobody is preempted for it.
    fn admission(
        &self,
        batch: &Batch,
        memory: Memory,
        shared: impl Fn(RequestId) -> usize,
    ) -> Option<Decision> {
        let (&id, job) = self.jobs.iter().find(|(_, job)| job.place != Place::Running)?;
        let (all, reserved) = (self.pages(job.ahead()), self.reserved(batch));
        if batch.tokens_left == 0 {
            None
        } else if all - self.pages(shared(id)) + reserved <= batch.pages_left {
            Some(Decision::Admit(id))
        } else {
            // The prefix it would share may be among what is reclaimed, so all of its pages count.
            let reachable = batch.pages_left + memory.reclaimable;
            (memory.reclaimable > 0 && all + reserved <= reachable).then_some(Decision::Reclaim)
        }
    }

    /// Adds as much of each draft as tokens and pages remain for.
    fn add_drafts(&self, batch: &mut Batch) {
        let mut pages_left = batch.pages_left.saturating_sub(self.reserved(batch));
        for share in &mut batch.shares {
            let Some(job) = self.jobs.get(&share.request) else { continue };
            let rows = job.rows + share.tokens;
            if rows < job.text {
                continue;
            }
            share.draft = job.draft.min(batch.tokens_left).min(self.room(rows, pages_left));
            batch.tokens_left -= share.draft;
            pages_left -= self.growth(rows, rows + share.draft);
        }
    }

    /// Pages that the running requests will soon need beyond this step's.
    fn reserved(&self, batch: &Batch) -> usize {
        let after = |id, job: &Job| {
            let share = batch.shares.iter().find(|share| share.request == id);
            job.rows + share.map_or(0, |share| share.tokens)
        };
        self.running().map(|(id, job)| self.growth(after(id, job), job.ahead())).sum()
    }

    fn running(&self) -> impl DoubleEndedIterator<Item = (RequestId, &Job)> {
        let running = |(_, job): &(_, &Job)| job.place == Place::Running;
        self.jobs.iter().map(|(&id, job)| (id, job)).filter(running)
    }

    fn pages(&self, rows: usize) -> usize {
        rows.div_ceil(self.limits.page_size)
    }

    /// Pages to take for growing from `rows` to `more` rows.
    fn growth(&self, rows: usize, more: usize) -> usize {
        self.pages(more).saturating_sub(self.pages(rows))
    }

    /// Rows that can be added with `pages` more pages.
    fn room(&self, rows: usize, pages: usize) -> usize {
        (self.pages(rows) + pages) * self.limits.page_size - rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: fn(RequestId) -> usize = |_| 0;

    fn scheduler(pages: usize, budget: usize) -> Scheduler {
        Scheduler::new(Limits { page_size: 4, pages, budget })
    }

    fn free(free: usize) -> Memory {
        Memory { free, reclaimable: 0 }
    }

    fn run(request: RequestId, tokens: usize, draft: usize) -> Share {
        Share { request, tokens, draft }
    }

    #[test]
    fn decoding_comes_before_prefilling_before_admission_before_drafts() {
        let mut scheduler = scheduler(100, 8);
        let [old, young, new] = [20, 9, 3].map(|prompt| scheduler.submit(prompt, 9).unwrap());
        scheduler.admitted(old, 4);
        scheduler.admitted(young, 0);
        scheduler.advanced(young, 9, 10, 3);
        let decision = scheduler.decide(free(92), NONE);
        assert_eq!(decision, Decision::Run(vec![run(young, 1, 0), run(old, 7, 0)]));

        scheduler.advanced(old, 18, 20, 0);
        assert_eq!(scheduler.decide(free(92), NONE), Decision::Admit(new));
        scheduler.admitted(new, 0);
        let Decision::Run(batch) = scheduler.decide(free(92), NONE) else { unreachable!() };
        assert_eq!(batch, [run(young, 1, 2), run(old, 2, 0), run(new, 3, 0)]);
        assert_eq!(scheduler.phase(young), Some(Phase::Decoding));
        assert_eq!(scheduler.phase(new), Some(Phase::Prefilling));
    }

    #[test]
    fn pages_are_taken_from_the_youngest_and_only_by_an_older_one() {
        let mut scheduler = scheduler(6, 8);
        let ids = [8, 8, 8].map(|prompt| scheduler.submit(prompt, 9).unwrap());
        for id in ids {
            scheduler.admitted(id, 0);
            scheduler.advanced(id, 8, 9, 0);
        }
        // All three need a third page.
        assert_eq!(scheduler.decide(free(0), NONE), Decision::Preempt(ids[2]));
        scheduler.preempted(ids[2]);
        assert_eq!(scheduler.phase(ids[2]), Some(Phase::Preempted));
        let both = vec![run(ids[0], 1, 0), run(ids[1], 1, 0)];
        assert_eq!(scheduler.decide(free(2), NONE), Decision::Run(both));
        // The younger of two waits rather than take from the older.
        let oldest = vec![run(ids[0], 1, 0)];
        assert_eq!(scheduler.decide(free(1), NONE), Decision::Run(oldest));
    }

    #[test]
    fn unused_prefixes_go_before_any_request() {
        let mut scheduler = scheduler(4, 8);
        let id = scheduler.submit(8, 9).unwrap();
        // Nine rows are three pages; one is free and two would be.
        assert_eq!(scheduler.decide(Memory { free: 1, reclaimable: 2 }, NONE), Decision::Reclaim);
        assert_eq!(
            scheduler.decide(Memory { free: 1, reclaimable: 1 }, NONE),
            Decision::Run(vec![])
        );
        // With its first page shared, two suffice.
        assert_eq!(scheduler.decide(free(2), |_| 4), Decision::Admit(id));
        scheduler.admitted(id, 4);
        scheduler.advanced(id, 8, 9, 0);
        assert_eq!(scheduler.decide(Memory { free: 0, reclaimable: 1 }, NONE), Decision::Reclaim);
    }

    #[test]
    fn drafts_take_no_page_that_somebody_will_need() {
        let mut scheduler = scheduler(8, 16);
        let [old, young] = [7, 14].map(|prompt| scheduler.submit(prompt, 9).unwrap());
        scheduler.admitted(old, 0);
        scheduler.advanced(old, 6, 7, 5);
        scheduler.admitted(young, 0);
        scheduler.advanced(young, 15, 16, 0);
        // After this step `old` has 7 rows and one cell of its page left; `young` has 16 and will
        // need a fifth page.
        let batch = |draft| Decision::Run(vec![run(old, 1, draft), run(young, 1, 0)]);
        assert_eq!(scheduler.decide(free(1), NONE), batch(1));
        assert_eq!(scheduler.decide(free(2), NONE), batch(5));
    }

    #[test]
    fn what_cannot_fit_alone_is_refused() {
        let mut scheduler = scheduler(3, 8);
        // 13 tokens need 12 rows: the last one is never fed.
        assert!(scheduler.submit(4, 9).is_ok());
        assert_eq!(scheduler.submit(5, 9), Err(4));
        assert_eq!(scheduler.submit(1, usize::MAX), Err(usize::MAX.div_ceil(4)));
    }
}
