//! Engines of two devices of one process, and two of one.

use crate::layer::{Case, Results, families, upload};
use crate::repeat::{at_once, once};
use crate::{Outcome, expect};
use grouped_attention::{Backend, EngineError, Mask, Planning};
use grouped_attention_cuda::{CudaBackend, CudaCache, CudaPlan, CudaTensor, Kernels};
use std::error::Error;

const LENS: [(usize, usize); 1] = [(1, 40)];

/// What is printed of a device, without its number.
fn name(engine: &CudaBackend) -> String {
    engine.identity().device.split(" (").next().unwrap_or_default().to_owned()
}

/// Both devices compute, one after the other and both at once; alike, where they are alike.
pub(crate) fn both_compute(first: &CudaBackend, second: &CudaBackend) -> Outcome {
    for case in families()? {
        let expected = [once(first, &case, 0)?, once(second, &case, 0)?];
        if name(first) == name(second) {
            expect(expected[0] == expected[1], format!("{case}: the devices' bits differ"))?;
        }
        let engines = [first.clone(), second.clone()];
        for (found, expected) in at_once(&engines, &case).into_iter().zip(expected) {
            expect(found? == expected, format!("{case}: other bits beside the other device"))?;
        }
    }
    Ok(())
}

/// Nor does an engine take what another one of the same device made: nothing orders their streams.
pub(crate) fn second_engine(engine: &CudaBackend) -> Outcome {
    strangers_are_refused(engine, &CudaBackend::with_kernels(engine.ordinal(), Kernels::Naive)?)
}

/// Nothing of one engine is taken by the other.
pub(crate) fn strangers_are_refused(first: &CudaBackend, second: &CudaBackend) -> Outcome {
    let case = &families()?[0];
    let (mut own, mut other) = (Parts::new(first, case)?, Parts::new(second, case)?);
    own.results.attend(first, &mut own.plan, &own.q, &own.cache)?;
    let refused = |outcome: Outcome, what| {
        let error: Box<dyn Error> = match outcome {
            Ok(()) => return Err(format!("a foreign {what} passes").into()),
            Err(error) => error,
        };
        let error = error.downcast::<EngineError>()?;
        expect(matches!(*error, EngineError::Foreign { .. }), format!("{what}: {error}"))
    };
    let foreign_plan = own.results.attend(first, &mut other.plan, &own.q, &own.cache);
    refused(foreign_plan, "plan")?;
    refused(own.results.attend(first, &mut own.plan, &other.q, &own.cache), "query")?;
    refused(own.results.attend(first, &mut own.plan, &own.q, &other.cache), "cache")?;
    refused(other.results.attend(first, &mut own.plan, &own.q, &own.cache), "output")?;
    own.results.attend(first, &mut own.plan, &own.q, &own.cache)
}

/// What an attend takes.
struct Parts {
    cache: CudaCache,
    plan: CudaPlan,
    q: CudaTensor,
    results: Results,
}

impl Parts {
    fn new(engine: &CudaBackend, case: &Case) -> Result<Parts, Box<dyn Error>> {
        let step = case.step(&LENS, 0, Mask::Causal)?;
        Ok(Parts {
            cache: case.filled(engine, case.pages(&LENS), &LENS, 0, 1)?,
            plan: engine.plan(Planning::new(&case.problem, &step))?,
            q: upload(engine, &case.queries(step.total_q())?)?,
            results: Results::new(engine, &case.problem, step.total_q())?,
        })
    }
}
