//! A workload against a clock: who arrives when, what comes out when.

use super::scheduler::RequestId;
use super::server::{Counters, ServeError, Server, ServerStep};
use super::texts::Texts;
use super::workload::Arrival;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Tells the time of a replay.
pub trait Clock {
    /// Time since the start.
    fn now(&mut self) -> Duration;

    /// Lets time pass until `time`, when nothing is to be done before.
    fn skip_to(&mut self, time: Duration);
}

/// The machine's time, without the time that a server is idle: that is skipped, not waited for.
#[derive(Debug)]
pub struct WallClock {
    start: Instant,
    skipped: Duration,
}

impl WallClock {
    /// A clock that starts now.
    pub fn start() -> WallClock {
        WallClock { start: Instant::now(), skipped: Duration::ZERO }
    }
}

impl Clock for WallClock {
    fn now(&mut self) -> Duration {
        self.start.elapsed() + self.skipped
    }

    fn skip_to(&mut self, time: Duration) {
        let idle = time.saturating_sub(self.now());
        self.skipped += idle;
    }
}

/// How a request ended.
#[derive(Debug)]
pub enum Outcome {
    /// The answer is whole.
    Answered,
    /// It was called off before.
    Cancelled,
    /// The server would not have it.
    Refused(ServeError),
}

/// One request's story.
#[derive(Debug)]
pub struct Record {
    /// When it came.
    pub at: Duration,
    /// The answer, or what there was of it.
    pub answer: Vec<u8>,
    /// When bytes came out, and how many.
    pub emissions: Vec<(Duration, usize)>,
    /// How it ended.
    pub outcome: Outcome,
}

/// The server after a step.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    /// When the step began.
    pub began: Duration,
    /// When it ended.
    pub at: Duration,
    /// Pages that requests hold.
    pub pages: usize,
    /// Requests that took part in the step.
    pub running: usize,
    /// Requests that are not done.
    pub open: usize,
    /// Tokens of the step.
    pub tokens: usize,
}

/// All that a replay saw.
#[derive(Debug)]
pub struct Replay {
    /// One per arrival, in their order.
    pub records: Vec<Record>,
    /// One per step.
    pub gauges: Vec<Gauge>,
    /// The server's totals.
    pub counters: Counters,
}

/// Serves a workload, sorted by arrival, to its end. `watch` is told of every step and of how many
/// requests are done.
///
/// # Errors
/// A failing engine. A request that the server refuses is recorded as such.
pub fn replay<T: Texts>(
    server: &mut Server<T>,
    arrivals: &[Arrival],
    clock: &mut impl Clock,
    mut watch: impl FnMut(&Gauge, usize),
) -> Result<Replay, ServeError> {
    let mut run = Run::new(arrivals);
    loop {
        let now = clock.now();
        run.arrive(server, now);
        run.cancel(server, now)?;
        if server.is_idle() {
            match arrivals.get(run.records.len()) {
                Some(next) => clock.skip_to(next.at),
                None => break,
            }
            continue;
        }
        let step = server.step()?;
        let gauge = run.observe(server, &step, now, clock.now())?;
        watch(&gauge, run.records.len() - run.open.len());
    }
    Ok(Replay { records: run.records, gauges: run.gauges, counters: server.counters() })
}

/// A replay under way.
struct Run<'a> {
    arrivals: &'a [Arrival],
    /// Of those that have arrived.
    records: Vec<Record>,
    /// Requests not done, with their index among the arrivals.
    open: HashMap<RequestId, usize>,
    gauges: Vec<Gauge>,
}

impl<'a> Run<'a> {
    fn new(arrivals: &'a [Arrival]) -> Run<'a> {
        Run { arrivals, records: Vec::new(), open: HashMap::new(), gauges: Vec::new() }
    }

    fn arrive<T: Texts>(&mut self, server: &mut Server<T>, now: Duration) {
        while let Some(arrival) = self.arrivals.get(self.records.len())
            && arrival.at <= now
        {
            // Whoever is still open in the end was cancelled.
            let outcome = match server.submit(&arrival.request) {
                Ok(id) => {
                    self.open.insert(id, self.records.len());
                    Outcome::Cancelled
                }
                Err(error) => Outcome::Refused(error),
            };
            let (answer, emissions) = (Vec::new(), Vec::new());
            self.records.push(Record { at: arrival.at, answer, emissions, outcome });
        }
    }

    fn cancel<T: Texts>(
        &mut self,
        server: &mut Server<T>,
        now: Duration,
    ) -> Result<(), ServeError> {
        let due = |index: usize| self.arrivals[index].cancel.is_some_and(|at| at <= now);
        let due: Vec<RequestId> =
            self.open.iter().filter(|(_, index)| due(**index)).map(|(id, _)| *id).collect();
        for id in due {
            self.open.remove(&id);
            server.cancel(id)?;
        }
        Ok(())
    }

    fn observe<T: Texts>(
        &mut self,
        server: &Server<T>,
        step: &ServerStep,
        began: Duration,
        now: Duration,
    ) -> Result<Gauge, ServeError> {
        for emitted in &step.emitted {
            let Some(&index) = self.open.get(&emitted.request) else { continue };
            let record = &mut self.records[index];
            record.answer.extend_from_slice(&emitted.bytes);
            record.emissions.push((now, emitted.bytes.len()));
            if emitted.done {
                record.outcome = Outcome::Answered;
                self.open.remove(&emitted.request);
            }
        }
        let gauge = Gauge {
            began,
            at: now,
            pages: server.pages_in_use()?,
            running: step.requests,
            open: self.open.len(),
            tokens: step.tokens,
        };
        self.gauges.push(gauge);
        Ok(gauge)
    }
}
