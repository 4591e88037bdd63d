//! Memory that belongs to somebody else, laid out their way.

use crate::driver::Driver;
use crate::layer::{Case, Results, families, upload};
use crate::{Outcome, expect};
use grouped_attention::{
    Backend, Dtype, EngineError, HostTensor, Mask, Planning, Row, TensorInfo, Upload,
};
use grouped_attention_cuda::{CachePart, CudaBackend, CudaCache, CudaTensor, Kernels};
use std::error::Error;

const LENS: [(usize, usize); 2] = [(1, 700), (3, 40)];

/// Those whose cache may be one tensor.
fn tied() -> Result<impl Iterator<Item = Case>, Box<dyn Error>> {
    let is_tied = |case: &Case| matches!(case.problem.geometry().row(), Row::Tied { .. });
    Ok(families()?.into_iter().filter(is_tied))
}

/// What the engine's own memory gives.
fn expected(engine: &CudaBackend, case: &Case) -> Result<[Vec<u64>; 2], Box<dyn Error>> {
    let cache = case.filled(engine, case.pages(&LENS), &LENS, 0, 3)?;
    let step = case.step(&LENS, 0, Mask::Causal)?;
    let q = upload(engine, &case.queries(step.total_q())?)?;
    let mut results = Results::new(engine, &case.problem, step.total_q())?;
    let mut plan = engine.plan(Planning::new(&case.problem, &step))?;
    results.attend(engine, &mut plan, &q, &cache)?;
    results.bits(engine)
}

/// One tensor `[pages, page_size, h s + r + gap]` as two parts.
fn combined_cache(
    engine: &CudaBackend,
    driver: &Driver,
    case: &Case,
    gap: usize,
) -> Result<CudaCache, Box<dyn Error>> {
    let Row::Tied { heads, s, r, .. } = case.problem.geometry().row() else {
        return Err("not a tied row".into());
    };
    let width = heads * s + r + gap;
    let layout = case.layout(case.pages(&LENS))?;
    let address = driver.allocate(layout.pages() * layout.page_size() * width * 2)?;
    let part = |offset: usize| CachePart {
        address: address + (offset * 2) as u64,
        page_stride: layout.page_size() * width,
        token_stride: width,
        head_stride: s,
    };
    // SAFETY: the memory holds every row of both parts, and is never freed.
    Ok(unsafe { engine.wrap_cache(layout, [part(0), part(heads * s)]) }?)
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
    case: &Case,
    gap: usize,
) -> Result<[Vec<u64>; 2], Box<dyn Error>> {
    let driver = Driver::new(engine.ordinal())?;
    let step = case.step(&LENS, 0, Mask::Causal)?;
    let mut cache = combined_cache(engine, &driver, case, gap)?;
    let tokens = LENS.iter().map(|(_, kv_len)| kv_len).sum();
    case.fill(engine, &mut cache, &LENS, 0, &case.rows(tokens, 3)?)?;
    let q = spaced(engine, &driver, &case.queries(step.total_q())?, gap)?;
    let mut results = Results::new(engine, &case.problem, step.total_q())?;
    let o = engine.download(&results.o)?;
    results.o = spaced(engine, &driver, &o, gap)?;
    let lse = engine.download(&results.lse)?;
    let strides = [1, lse.shape()[0]];
    let address = driver.allocate(4 * lse.shape().iter().product::<usize>())?;
    // SAFETY: the memory holds the transposed tensor, and is never freed.
    results.lse = unsafe { engine.wrap_tensor(address, Dtype::F32, lse.shape(), &strides) }?;
    let mut plan = engine.plan(Planning::new(&case.problem, &step))?;
    results.attend(engine, &mut plan, &q, &cache)?;
    expect(results.lse.shape() == lse.shape(), "shapes are kept")?;
    results.bits(engine)
}

pub(crate) fn combined(engine: &CudaBackend) -> Outcome {
    let driver = Driver::new(engine.ordinal())?;
    // SAFETY: the stream is never destroyed.
    let elsewhere = unsafe { engine.on_stream(driver.stream()?) };
    for case in tied()? {
        let expected = expected(engine, &case)?;
        for gap in [0, 8, 40] {
            let found = attend_foreign(&elsewhere, &case, gap)?;
            expect(found == expected, format!("{case}: a gap of {gap} elements changes the bits"))?;
        }
    }
    Ok(())
}

/// Rows that begin between multiples of 16 bytes: the naive kernel takes them, others say so.
pub(crate) fn misaligned(engine: &CudaBackend) -> Outcome {
    let naive = CudaBackend::with_kernels(engine.ordinal(), Kernels::Naive)?;
    let is_naive = engine.identity().name == naive.identity().name;
    for case in tied()? {
        match attend_foreign(engine, &case, 3) {
            Ok(found) if is_naive => {
                let expected = expected(engine, &case)?;
                expect(found == expected, format!("{case}: misaligned rows change the bits"))?;
            }
            Err(error) if !is_naive => {
                let error = error.downcast::<EngineError>()?;
                expect(matches!(*error, EngineError::Unsupported(_)), error)?;
            }
            other => {
                return Err(format!("{case}: unexpected {:?}", other.map(|_| "results")).into());
            }
        }
    }
    Ok(())
}
