//! A layer with random contents: what most trials begin with.

use crate::Outcome;
use grouped_attention::{
    Append, Attend, Backend, CacheLayout, Dtype, Geometry, HostTensor, Mask, PageId, Planning,
    Problem, Sequence, Step, Upload,
};
use grouped_attention_cuda::{CudaBackend, CudaCache, CudaPlan, CudaTensor};
use std::error::Error;

pub(crate) const PAGE_SIZE: usize = 16;

/// Numbers in [-1, 1), the same for the same seed.
pub(crate) fn random(
    dtype: Dtype,
    shape: &[usize],
    seed: u64,
) -> Result<HostTensor, Box<dyn Error>> {
    let mut state = seed;
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((mixed ^ mixed >> 31) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect();
    Ok(HostTensor::from_f64(dtype, shape, &values)?)
}

pub(crate) fn upload(
    engine: &CudaBackend,
    host: &HostTensor,
) -> Result<CudaTensor, Box<dyn Error>> {
    let mut tensor = engine.allocate(host.dtype(), host.shape())?;
    engine.upload(Upload::new(&mut tensor, host)?)?;
    Ok(tensor)
}

/// Bits of a tensor's elements, so that NaN equals itself.
pub(crate) fn bits(engine: &CudaBackend, tensor: &CudaTensor) -> Result<Vec<u64>, Box<dyn Error>> {
    Ok(engine.download(tensor)?.to_f64().into_iter().map(f64::to_bits).collect())
}

/// Sequences over consecutive pages from `first_page` on.
pub(crate) fn step(
    lens: &[(usize, usize)],
    first_page: u32,
    mask: Mask,
) -> Result<Step, Box<dyn Error>> {
    let mut next = first_page;
    let tables: Vec<Vec<PageId>> = lens
        .iter()
        .map(|&(_, kv_len)| {
            let begin = next;
            next += kv_len.div_ceil(PAGE_SIZE) as u32;
            (begin..next).map(PageId).collect()
        })
        .collect();
    let sequences: Vec<Sequence<'_>> = lens
        .iter()
        .zip(&tables)
        .map(|(&(q_len, kv_len), pages)| Sequence { q_len, kv_len, pages })
        .collect();
    Ok(Step::new(PAGE_SIZE, &sequences, mask)?)
}

/// GLA with widths that the tensor-core kernels take.
pub(crate) fn gla() -> Result<Problem, Box<dyn Error>> {
    Ok(Problem::new(Geometry::gla(8, 2, 64, 32)?, Dtype::Bf16, 0.125)?)
}

/// Fills the rows that a step's sequences read, from `seed`, by appending them as if they were new.
pub(crate) fn fill(
    engine: &CudaBackend,
    problem: &Problem,
    cache: &mut CudaCache,
    lens: &[(usize, usize)],
    first_page: u32,
    seed: u64,
) -> Outcome {
    let all: Vec<(usize, usize)> = lens.iter().map(|&(_, kv_len)| (kv_len, kv_len)).collect();
    let step = step(&all, first_page, Mask::Causal)?.appending()?;
    let plan = engine.plan(Planning::new(problem, &step))?;
    let rows = step.writes().len();
    let shapes = CacheLayout::new(*problem.geometry(), problem.dtype(), 1, rows)?.part_shapes();
    let part = |which: usize| {
        let shape = [&[rows], &shapes[which][2..]].concat();
        random(problem.dtype(), &shape, seed + which as u64)
    };
    let (first, second) = (upload(engine, &part(0)?)?, upload(engine, &part(1)?)?);
    engine.append(Append::new(&plan, cache, &first, Some(&second))?)?;
    Ok(engine.synchronize()?)
}

/// Outputs of a step: o and lse.
pub(crate) struct Results {
    pub(crate) o: CudaTensor,
    pub(crate) lse: CudaTensor,
}

impl Results {
    /// With room for `rows` queries, holding a number that no result is.
    pub(crate) fn new(
        engine: &CudaBackend,
        problem: &Problem,
        rows: usize,
    ) -> Result<Results, Box<dyn Error>> {
        let geometry = problem.geometry();
        let shape = [rows, geometry.h_q(), geometry.width_v()];
        let poison = |dtype, shape: &[usize]| -> Result<CudaTensor, Box<dyn Error>> {
            let values = vec![12345.0; shape.iter().product()];
            upload(engine, &HostTensor::from_f64(dtype, shape, &values)?)
        };
        Ok(Results { o: poison(problem.output(), &shape)?, lse: poison(Dtype::F32, &shape[..2])? })
    }

    pub(crate) fn attend(
        &mut self,
        engine: &CudaBackend,
        plan: &mut CudaPlan,
        q: &CudaTensor,
        cache: &CudaCache,
    ) -> Outcome {
        let call = Attend::new(plan, q, cache, &mut self.o, Some(&mut self.lse))?;
        Ok(engine.attend(call)?)
    }

    pub(crate) fn bits(&self, engine: &CudaBackend) -> Result<[Vec<u64>; 2], Box<dyn Error>> {
        Ok([bits(engine, &self.o)?, bits(engine, &self.lse)?])
    }
}

/// Queries of a step.
pub(crate) fn queries(
    engine: &CudaBackend,
    problem: &Problem,
    rows: usize,
) -> Result<CudaTensor, Box<dyn Error>> {
    let geometry = problem.geometry();
    let shape = [rows, geometry.h_q(), geometry.width_k()];
    upload(engine, &random(problem.dtype(), &shape, 77)?)
}
