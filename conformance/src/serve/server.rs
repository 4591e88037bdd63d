//! The loop body of continuous batching: requests in, one step of all of them, bytes out.

use super::prefixes::PrefixIndex;
use super::scheduler::{Decision, Limits, Memory, Phase, RequestId, Scheduler, Share};
use super::texts::Texts;
use crate::lm::{DecodeError, Sampler, VOCABULARY, prompt_lookup};
use grouped_attention::{Error, SequenceId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is asked for. The answer is a function of these fields and the model alone: not of what
/// else the server does.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Text to continue; at least one byte.
    pub prompt: Vec<u8>,
    /// Bytes wanted; at least one.
    pub tokens: usize,
    /// 0 takes the likeliest byte each time.
    pub temperature: f64,
    /// Decides the draws.
    pub seed: u64,
}

/// What becomes of a preempted request's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// They are dropped, and computed again from the text.
    Recompute,
    /// They are copied to the host, and back.
    Swap,
}

/// How a server works.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Tokens of one step, of all requests together; at least one.
    pub budget: usize,
    /// Longest draft that is checked in one step; 0 decodes byte by byte.
    pub speculate: usize,
    /// What becomes of a preempted request's rows.
    pub preemption: Preemption,
}

/// What a server has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps of the model.
    pub steps: usize,
    /// Tokens that went through it, those of rejected drafts included.
    pub computed: usize,
    /// Of these, tokens whose rows a preemption had dropped.
    pub recomputed: usize,
    /// Tokens whose rows were another request's already.
    pub shared: usize,
    /// Drafted tokens that were checked.
    pub drafted: usize,
    /// Drafted tokens that were accepted.
    pub accepted: usize,
    /// Times that a request has lost its pages.
    pub preemptions: usize,
    /// Rows copied to the host.
    pub rows_out: usize,
    /// Rows copied back.
    pub rows_in: usize,
    /// Time that those copies took.
    pub moving: Duration,
}

/// New bytes of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Whose.
    pub request: RequestId,
    /// The next bytes of the answer, at least one.
    pub bytes: Vec<u8>,
    /// True if they are the last ones.
    pub done: bool,
}

/// What one step was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStep {
    /// Requests that took part.
    pub requests: usize,
    /// Tokens that went through the model; 0 if there was nothing to do.
    pub tokens: usize,
    /// What came out.
    pub emitted: Vec<Emitted>,
}

/// A request being served.
#[derive(Debug)]
struct Active<S> {
    /// Prompt and answer so far.
    text: Vec<u8>,
    prompt: usize,
    /// Length of the text when the answer is whole.
    end: usize,
    /// What may come next.
    draft: Vec<u8>,
    sampler: Sampler,
    rows: Rows<S>,
    /// Tokens whose rows have been computed or shared at some time.
    reached: usize,
}

#[derive(Debug)]
enum Rows<S> {
    Nowhere,
    Cached(SequenceId),
    Host { saved: S, len: usize },
}

/// Serves requests over the pages of one model's caches.
#[derive(Debug)]
pub struct Server<T: Texts> {
    texts: T,
    scheduler: Scheduler,
    prefixes: PrefixIndex,
    options: ServerOptions,
    active: BTreeMap<RequestId, Active<T::Saved>>,
    counters: Counters,
}

impl<T: Texts> Server<T> {
    /// A server that owns all pages of `texts`, which must have no text yet.
    ///
    /// # Errors
    /// A step of no tokens.
    pub fn new(texts: T, options: ServerOptions) -> Result<Server<T>, ServeError> {
        if options.budget == 0 {
            return Err(ServeError::NoBudget);
        }
        let tables = texts.tables();
        let limits = Limits {
            page_size: tables.page_size(),
            pages: tables.free_pages(),
            budget: options.budget,
        };
        Ok(Server {
            scheduler: Scheduler::new(limits),
            prefixes: PrefixIndex::default(),
            active: BTreeMap::new(),
            counters: Counters::default(),
            texts,
            options,
        })
    }

    /// Puts a request last in line.
    ///
    /// # Errors
    /// An empty prompt; no token wanted; more tokens than the whole pool has room for.
    pub fn submit(&mut self, request: &Request) -> Result<RequestId, ServeError> {
        if request.prompt.is_empty() {
            return Err(ServeError::EmptyPrompt);
        }
        if request.tokens == 0 {
            return Err(ServeError::NothingWanted);
        }
        let prompt = request.prompt.len();
        let id = self.scheduler.submit(prompt, request.tokens).map_err(|needed| {
            ServeError::TooLarge { needed, pages: self.texts.tables().pages_total() }
        })?;
        let active = Active {
            text: request.prompt.clone(),
            prompt,
            end: prompt + request.tokens,
            draft: Vec::new(),
            sampler: Sampler::new(request.temperature, request.seed),
            rows: Rows::Nowhere,
            reached: 0,
        };
        self.active.insert(id, active);
        Ok(id)
    }

    /// Ends a request early. False if it is done already.
    ///
    /// # Errors
    /// None that a caller can cause: the tables would have to have lost the text.
    pub fn cancel(&mut self, request: RequestId) -> Result<bool, ServeError> {
        self.scheduler.remove(request);
        let Some(active) = self.active.remove(&request) else { return Ok(false) };
        if let Rows::Cached(text) = active.rows {
            self.texts.remove(text)?;
        }
        Ok(true)
    }

    /// True if no request is waiting for anything.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// Where a request stands; `None` once it is done.
    pub fn phase(&self, request: RequestId) -> Option<Phase> {
        self.scheduler.phase(request)
    }

    /// Every request that is not done, oldest first.
    pub fn requests(&self) -> impl ExactSizeIterator<Item = RequestId> + '_ {
        self.scheduler.requests()
    }

    /// Totals so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The model's texts.
    pub fn texts(&self) -> &T {
        &self.texts
    }

    /// Pages that requests hold; what only the prefix index keeps is not among them.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn pages_in_use(&self) -> Result<usize, ServeError> {
        let Memory { free, reclaimable } = self.memory()?;
        Ok(self.texts.tables().pages_total() - free - reclaimable)
    }

    /// Forgets all prefixes, so that their pages are free.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn forget_prefixes(&mut self) -> Result<(), ServeError> {
        Ok(self.prefixes.clear(&mut self.texts)?)
    }

    /// Preempts and admits as the pages allow, then runs one step of the model.
    ///
    /// # Errors
    /// A failing engine.
    pub fn step(&mut self) -> Result<ServerStep, ServeError> {
        let batch = loop {
            let memory = self.memory()?;
            let page_size = self.texts.tables().page_size();
            let shared = |id| {
                let active = self.active.get(&id);
                active.map_or(0, |active| self.prefixes.shared(&active.text, page_size))
            };
            match self.scheduler.decide(memory, shared) {
                Decision::Reclaim => self.prefixes.reclaim(&mut self.texts)?,
                Decision::Preempt(request) => self.preempt(request)?,
                Decision::Admit(request) => self.admit(request)?,
                Decision::Run(batch) => break batch,
            }
        };
        debug_assert!(self.is_idle() || !batch.is_empty(), "the oldest request always gets on");
        if batch.is_empty() { Ok(ServerStep::default()) } else { self.run(&batch) }
    }

    fn memory(&self) -> Result<Memory, DecodeError> {
        let tables = self.texts.tables();
        Ok(Memory { free: tables.free_pages(), reclaimable: self.prefixes.reclaimable(tables)? })
    }

    fn preempt(&mut self, request: RequestId) -> Result<(), ServeError> {
        self.scheduler.preempted(request);
        self.counters.preemptions += 1;
        let Some(active) = self.active.get_mut(&request) else { return Ok(()) };
        let Rows::Cached(text) = active.rows else { return Ok(()) };
        let len = self.texts.tables().len(text).map_err(Error::from)?;
        active.rows = match self.options.preemption {
            Preemption::Swap if len > 0 => {
                let start = Instant::now();
                let saved = self.texts.save(text)?;
                self.counters.moving += start.elapsed();
                self.counters.rows_out += len;
                Rows::Host { saved, len }
            }
            _ => Rows::Nowhere,
        };
        Ok(self.texts.remove(text)?)
    }

    /// Gives a request a text: what it shares with a prefix, and what the host keeps beyond.
    fn admit(&mut self, request: RequestId) -> Result<(), ServeError> {
        let Some(active) = self.active.get_mut(&request) else { return Ok(()) };
        let text = self.prefixes.fork(&mut self.texts, &active.text)?;
        let mut len = self.texts.tables().len(text).map_err(Error::from)?;
        self.counters.shared += len;
        if let Rows::Host { saved, len: all } = &active.rows
            && *all > len
        {
            let start = Instant::now();
            self.texts.restore(text, saved)?;
            self.counters.moving += start.elapsed();
            self.counters.rows_in += all - len;
            len = *all;
        }
        active.rows = Rows::Cached(text);
        active.reached = active.reached.max(len);
        self.scheduler.admitted(request, len);
        Ok(())
    }

    fn run(&mut self, batch: &[Share]) -> Result<ServerStep, ServeError> {
        let mut fed: Vec<(SequenceId, Vec<u8>)> = Vec::with_capacity(batch.len());
        for share in batch {
            let active = &self.active[&share.request];
            let Rows::Cached(text) = active.rows else { unreachable!("only the admitted run") };
            let rows = self.texts.tables().len(text).map_err(Error::from)?;
            let certain = &active.text[rows..][..share.tokens];
            fed.push((text, [certain, &active.draft[..share.draft]].concat()));
        }
        let steps: Vec<_> = fed.iter().map(|(text, bytes)| (*text, bytes.as_slice())).collect();
        let logits = self.texts.step(&steps)?; // [total, 256]

        let mut step = ServerStep { requests: batch.len(), ..ServerStep::default() };
        let mut logits = logits.as_slice();
        for (share, (text, bytes)) in batch.iter().zip(&fed) {
            let (own, rest) = logits.split_at(bytes.len() * VOCABULARY);
            logits = rest;
            step.tokens += bytes.len();
            step.emitted.extend(self.advance(share, *text, own)?);
        }
        self.counters.steps += 1;
        self.counters.computed += step.tokens;
        Ok(step)
    }

    /// Takes one request on by its logits `[tokens + draft, 256]`.
    fn advance(
        &mut self,
        share: &Share,
        text: SequenceId,
        logits: &[f64],
    ) -> Result<Option<Emitted>, ServeError> {
        let request = share.request;
        let Some(active) = self.active.get_mut(&request) else { return Ok(None) };
        let fed = self.texts.tables().len(text).map_err(Error::from)?;
        let rows = fed - share.draft;
        let before = rows - share.tokens;
        self.counters.recomputed += rows.min(active.reached) - before.min(active.reached);
        active.reached = active.reached.max(rows);
        if before < active.prompt {
            self.prefixes.keep(&mut self.texts, text, &active.text[..active.prompt], rows)?;
        }
        if rows < active.text.len() {
            self.scheduler.advanced(request, rows, active.text.len(), 0);
            return Ok(None);
        }
        let last = (share.tokens - 1) * VOCABULARY;
        let accepted = active.accept(share.draft, &logits[last..]);
        self.counters.drafted += share.draft;
        self.counters.accepted += accepted;

        let bytes = active.text[rows..].to_vec();
        let done = active.text.len() == active.end;
        if done {
            self.active.remove(&request);
            self.scheduler.remove(request);
            self.texts.remove(text)?;
        } else {
            // The last byte drawn has no row yet; all before it agree with the text.
            let rows = active.text.len() - 1;
            self.texts.truncate(text, rows)?;
            active.reached = active.reached.max(rows);
            let most = self.options.speculate.min(active.end - active.text.len() - 1);
            active.draft = prompt_lookup(&active.text, most).to_vec();
            self.scheduler.advanced(request, rows, active.text.len(), active.draft.len());
        }
        Ok(Some(Emitted { request, bytes, done }))
    }
}

impl<S> Active<S> {
    /// Draws the next byte, and more for as long as the draft foretold the one before; the number
    /// of drafted bytes that were right. Each is drawn from the logits before it, in order, exactly
    /// as without a draft.
    fn accept(&mut self, drafted: usize, logits: &[f64]) -> usize {
        let mut accepted = 0;
        for logits in logits.chunks_exact(VOCABULARY) {
            let byte = self.sampler.next(logits);
            self.text.push(byte);
            let foretold = self.draft[..drafted].get(accepted) == Some(&byte);
            if foretold {
                accepted += 1;
            }
            if !foretold || self.text.len() == self.end {
                break;
            }
        }
        accepted
    }
}

/// Why a request or a server is refused, or a step fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Nothing would ever run.
    #[error("a step needs a budget of at least one token")]
    NoBudget,
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// There is nothing to do.
    #[error("no token is wanted")]
    NothingWanted,
    /// The request could not be served even alone.
    #[error("the request needs {needed} pages, and the whole pool has {pages}")]
    TooLarge {
        /// Pages that its rows would take.
        needed: usize,
        /// Pages of the pool.
        pages: usize,
    },
    /// The model or its engine.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl From<Error> for ServeError {
    fn from(error: Error) -> ServeError {
        ServeError::Decode(error.into())
    }
}
