//! Memory that belongs to somebody else, laid out their way.

use crate::driver::Driver;
use crate::layer::{PAGE_SIZE, Results, fill, gla, queries, step};
use crate::{Outcome, expect};
use grouped_attention::{
    Backend, CacheLayout, Dtype, EngineError, HostTensor, Mask, Planning, Problem, Row, Step,
    TensorInfo, Upload,
};
use grouped_attention_cuda::{CachePart, CudaBackend, CudaCache, CudaTensor, Kernels};
use std::error::Error;

const LENS: [(usize, usize); 2] = [(1, 700), (3, 40)];
const PAGES: usize = 60;

fn layout(problem: &Problem) -> Result<CacheLayout, Box<dyn Error>> {
    Ok(CacheLayout::new(*problem.geometry(), problem.dtype(), PAGE_SIZE, PAGES)?)
}

/// What the engine's own memory gives.
fn expected(
    engine: &CudaBackend,
    problem: &Problem,
    step: &Step,
) -> Result<[Vec<u64>; 2], Box<dyn Error>> {
    let mut cache = engine.create_cache(layout(problem)?)?;
    fill(engine, problem, &mut cache, &LENS, 0, 3)?;
    let q = queries(engine, problem, step.total_q())?;
    let mut results = Results::new(engine, problem, step.total_q())?;
    let mut plan = engine.plan(Planning::new(problem, step))?;
    results.attend(engine, &mut plan, &q, &cache)?;
    results.bits(engine)
}

/// One tensor `[pages, page_size, h s + r + gap]` as two parts.
fn combined_cache(
    engine: &CudaBackend,
    driver: &Driver,
    problem: &Problem,
    gap: usize,
) -> Result<CudaCache, Box<dyn Error>> {
    let Row::Tied { heads, s, r, .. } = problem.geometry().row() else {
        return Err("not a tied row".into());
    };
    let width = heads * s + r + gap;
    let address = driver.allocate(PAGES * PAGE_SIZE * width * 2)?;
    let part = |offset: usize| CachePart {
        address: address + (offset * 2) as u64,
        page_stride: PAGE_SIZE * width,
        token_stride: width,
        head_stride: s,
    };
    // SAFETY: the memory holds every row of both parts, and is never freed.
    Ok(unsafe { engine.wrap_cache(layout(problem)?, [part(0), part(heads * s)]) }?)
}

/// Queries whose rows have a gap of `gap` elements behind every head.
fn spaced(
    engine: &CudaBackend,
    driver: &Driver,
    dense: &HostTensor,
    gap: usize,
) -> Result<CudaTensor, Box<dyn Error>> {
    let &[rows, heads, width] = dense.shape() else { return Err("not [rows, h, width]".into()) };
    let address = driver.allocate(rows * heads * (width + gap) * dense.dtype().bytes())?;
    let strides = [heads * (width + gap), width + gap, 1];
    // SAFETY: the memory holds what shape and strides reach, and is never freed.
    let mut tensor =
        unsafe { engine.wrap_tensor(address, dense.dtype(), dense.shape(), &strides) }?;
    engine.upload(Upload::new(&mut tensor, dense)?)?;
    expect(engine.download(&tensor)? == *dense, "a strided tensor lost its values")?;
    Ok(tensor)
}

fn attend_foreign(
    engine: &CudaBackend,
    problem: &Problem,
    gap: usize,
) -> Result<[Vec<u64>; 2], Box<dyn Error>> {
    let driver = Driver::new()?;
    let step = step(&LENS, 0, Mask::Causal)?;
    let mut cache = combined_cache(engine, &driver, problem, gap)?;
    fill(engine, problem, &mut cache, &LENS, 0, 3)?;
    let dense = queries(engine, problem, step.total_q())?;
    let q = spaced(engine, &driver, &engine.download(&dense)?, gap)?;
    let mut results = Results::new(engine, problem, step.total_q())?;
    let o = engine.download(&results.o)?;
    results.o = spaced(engine, &driver, &o, gap)?;
    let lse = engine.download(&results.lse)?;
    let strides = [1, lse.shape()[0]];
    let address = driver.allocate(4 * lse.shape().iter().product::<usize>())?;
    // SAFETY: the memory holds the transposed tensor, and is never freed.
    results.lse = unsafe { engine.wrap_tensor(address, Dtype::F32, lse.shape(), &strides) }?;
    let mut plan = engine.plan(Planning::new(problem, &step))?;
    results.attend(engine, &mut plan, &q, &cache)?;
    expect(results.lse.shape() == lse.shape(), "shapes are kept")?;
    results.bits(engine)
}

pub(crate) fn combined(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new()?;
    // SAFETY: the stream is never destroyed.
    let elsewhere = unsafe { engine.on_stream(driver.stream()?) };
    let problem = gla()?;
    let expected = expected(engine, &problem, &step(&LENS, 0, Mask::Causal)?)?;
    for gap in [0, 8, 40] {
        let found = attend_foreign(&elsewhere, &problem, gap)?;
        expect(found == expected, format!("a gap of {gap} elements changes the bits"))?;
    }
    Ok(())
}

/// Rows that begin between multiples of 16 bytes: the naive kernel takes them, others say so.
pub(crate) fn misaligned(engine: &CudaBackend) -> Outcome {
    let problem = gla()?;
    let naive = CudaBackend::with_kernels(0, Kernels::Naive)?;
    let is_naive = engine.identity().name == naive.identity().name;
    match attend_foreign(engine, &problem, 3) {
        Ok(found) if is_naive => {
            let expected = expected(engine, &problem, &step(&LENS, 0, Mask::Causal)?)?;
            expect(found == expected, "misaligned rows change the bits")
        }
        Err(error) if !is_naive => {
            let error = error.downcast::<EngineError>()?;
            expect(matches!(*error, EngineError::Unsupported(_)), error)
        }
        other => Err(format!("unexpected: {:?}", other.map(|_| "results")).into()),
    }
}
