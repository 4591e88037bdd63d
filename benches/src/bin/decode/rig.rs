//! An engine on the bench: what is made before the clock starts, and what the clock is.

use crate::check::{Seeds, check};
use crate::measure::Measured;
use crate::options::Options;
use crate::workload::Workload;
use grouped_attention::{Attend, Backend, Error, Planning, Upload};
use grouped_attention_benches::results::Ceilings;
use std::error::Error as StdError;

pub(crate) type Outcome<T> = Result<T, Box<dyn StdError>>;

/// An engine, and how it is filled and timed on its machine.
pub(crate) trait Rig {
    type Engine: Backend;

    fn engine(&self) -> &Self::Engine;

    /// A full cache of numbers from two seeds.
    fn fill(&self, workload: &Workload, seeds: &Seeds)
    -> Outcome<<Self::Engine as Backend>::Cache>;

    /// Caches that are attended in turn.
    fn caches(&self, workload: &Workload, options: &Options) -> usize;

    /// The times of calls on a stage that has been attended before.
    fn time(
        &self,
        stage: &mut Stage<'_, Self::Engine>,
        workload: &Workload,
        options: &Options,
    ) -> Outcome<Measured>;

    /// What the machine can do, before any workload.
    fn ceilings(&self) -> Outcome<Ceilings>;

    /// The kernel that a plan runs.
    fn kernel(&self, plan: &<Self::Engine as Backend>::Plan) -> String;
}

/// All that a call needs.
#[derive(Debug)]
pub(crate) struct Stage<'a, B: Backend> {
    pub(crate) engine: &'a B,
    pub(crate) plan: B::Plan,
    pub(crate) caches: Vec<B::Cache>,
    pub(crate) q: B::Tensor,
    pub(crate) o: B::Tensor,
}

impl<'a, B: Backend> Stage<'a, B> {
    /// Queries and outputs on the engine, and a plan.
    pub(crate) fn new(engine: &'a B, workload: &Workload, caches: Vec<B::Cache>) -> Outcome<Self> {
        let (problem, step) = (workload.problem()?, workload.step()?);
        let queries = Seeds::of(0).queries.tensor(workload.dtype, &workload.q_shape())?;
        let mut q = engine.allocate(queries.dtype(), queries.shape())?;
        engine.upload(Upload::new(&mut q, &queries)?)?;
        let o = engine.allocate(problem.output(), &workload.o_shape())?;
        let plan = engine.plan(Planning::new(&problem, &step))?;
        Ok(Stage { engine, plan, caches, q, o })
    }

    /// Attends one of the caches.
    pub(crate) fn attend(&mut self, cache: usize) -> Result<(), Error> {
        let cache = &self.caches[cache % self.caches.len()];
        Ok(self.engine.attend(Attend::new(&mut self.plan, &self.q, cache, &mut self.o, None)?)?)
    }
}

/// One workload timed.
#[derive(Clone, Debug)]
pub(crate) struct Timed {
    pub(crate) measured: Measured,
    pub(crate) kernel: String,
}

/// Checks a workload, then times it.
pub(crate) fn run<R: Rig>(rig: &R, workload: &Workload, options: &Options) -> Outcome<Timed> {
    let caches = (0..rig.caches(workload, options))
        .map(|cache| rig.fill(workload, &Seeds::of(cache)))
        .collect::<Outcome<_>>()?;
    let mut stage = Stage::new(rig.engine(), workload, caches)?;
    stage.attend(0)?;
    check(workload, &Seeds::of(0), &rig.engine().download(&stage.o)?)?;
    let kernel = rig.kernel(&stage.plan);
    let measured = rig.time(&mut stage, workload, options)?;
    Ok(Timed { measured, kernel })
}
