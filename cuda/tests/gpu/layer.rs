//! A layer with random contents: what most trials begin with.

use crate::Outcome;
use grouped_attention::{
    Append, Attend, Backend, CacheLayout, Dtype, Geometry, HostTensor, Mask, PageId, Planning,
    Problem, Sequence, Step, Upload,
};
use grouped_attention_cuda::{CudaBackend, CudaCache, CudaPlan, CudaTensor};
use std::error::Error;
use std::fmt;

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

/// A problem and a page size: what chooses a kernel and how it loads.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) problem: Problem,
    pub(crate) page_size: usize,
}

/// A case for each family of kernels that an engine may choose. Hopper kernels copy whole boxes of
/// pages that hold whole tiles, and rows one by one of others: they come with one of each.
pub(crate) fn families() -> Result<Vec<Case>, Box<dyn Error>> {
    let (gla, gta) = (Geometry::gla(16, 2, 256, 64)?, Geometry::gta(16, 8, 128)?);
    let (mla, gqa) = (Geometry::mla(16, 512, 64)?, Geometry::gqa(16, 4, 128)?);
    let cases = [
        (Geometry::gla(8, 2, 64, 32)?, 16), // tied_sm80
        (Geometry::gqa(8, 2, 128)?, 16),    // separate_sm80
        (gla, 64),                          // tied_sm90
        (gla, 16),
        (gta, 16), // tied_heads_sm90
        (gta, 8),
        (mla, 64), // tied_wide_sm90
        (mla, 16),
        (gqa, 16), // separate_heads_sm90
        (gqa, 4),
    ];
    let case = |(geometry, page_size)| -> Result<Case, Box<dyn Error>> {
        Ok(Case { problem: Problem::new(geometry, Dtype::Bf16, 0.125)?, page_size })
    };
    cases.into_iter().map(case).collect()
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.problem.is_batch_invariant() { ", batch-invariant" } else { "" };
        write!(f, "{}, pages of {}{mode}", self.problem.geometry(), self.page_size)
    }
}

impl Case {
    pub(crate) fn batch_invariant(self) -> Case {
        Case { problem: self.problem.batch_invariant(), ..self }
    }

    /// Pages that hold sequences of these lengths.
    pub(crate) fn pages(&self, lens: &[(usize, usize)]) -> usize {
        lens.iter().map(|(_, kv_len)| kv_len.div_ceil(self.page_size)).sum()
    }

    pub(crate) fn cache(
        &self,
        engine: &CudaBackend,
        pages: usize,
    ) -> Result<CudaCache, Box<dyn Error>> {
        Ok(engine.create_cache(self.layout(pages)?)?)
    }

    pub(crate) fn layout(&self, pages: usize) -> Result<CacheLayout, Box<dyn Error>> {
        let problem = &self.problem;
        Ok(CacheLayout::new(*problem.geometry(), problem.dtype(), self.page_size, pages)?)
    }

    /// Sequences (q_len, kv_len) over consecutive pages from `first_page` on.
    pub(crate) fn step(
        &self,
        lens: &[(usize, usize)],
        first_page: u32,
        mask: Mask,
    ) -> Result<Step, Box<dyn Error>> {
        let mut next = first_page;
        let tables: Vec<Vec<PageId>> = lens
            .iter()
            .map(|&(_, kv_len)| {
                let begin = next;
                next += kv_len.div_ceil(self.page_size) as u32;
                (begin..next).map(PageId).collect()
            })
            .collect();
        let sequences: Vec<Sequence<'_>> = lens
            .iter()
            .zip(&tables)
            .map(|(&(q_len, kv_len), pages)| Sequence { q_len, kv_len, pages })
            .collect();
        Ok(Step::new(self.page_size, &sequences, mask)?)
    }

    /// `rows` random rows to append: keys and values `[rows, h, width]`, or states and rope keys
    /// `[rows, r]`.
    pub(crate) fn rows(&self, rows: usize, seed: u64) -> Result<[HostTensor; 2], Box<dyn Error>> {
        let shapes = self.layout(rows)?.part_shapes();
        let part = |which: usize| {
            let shape = [&[rows], &shapes[which][2..]].concat();
            random(self.problem.dtype(), &shape, seed + which as u64)
        };
        Ok([part(0)?, part(1)?])
    }

    /// Fills the rows that a step's sequences read, as if they were new, and gives them in the order
    /// of sequences and positions.
    pub(crate) fn fill(
        &self,
        engine: &CudaBackend,
        cache: &mut CudaCache,
        lens: &[(usize, usize)],
        first_page: u32,
        rows: &[HostTensor; 2],
    ) -> Outcome {
        let all: Vec<(usize, usize)> = lens.iter().map(|&(_, kv_len)| (kv_len, kv_len)).collect();
        let step = self.step(&all, first_page, Mask::Causal)?.appending()?;
        let plan = engine.plan(Planning::new(&self.problem, &step))?;
        let (first, second) = (upload(engine, &rows[0])?, upload(engine, &rows[1])?);
        engine.append(Append::new(&plan, cache, &first, Some(&second))?)?;
        Ok(engine.synchronize()?)
    }

    /// A cache of `pages` pages in which the rows that a step's sequences read are random.
    pub(crate) fn filled(
        &self,
        engine: &CudaBackend,
        pages: usize,
        lens: &[(usize, usize)],
        first_page: u32,
        seed: u64,
    ) -> Result<CudaCache, Box<dyn Error>> {
        let mut cache = self.cache(engine, pages)?;
        let tokens = lens.iter().map(|(_, kv_len)| kv_len).sum();
        self.fill(engine, &mut cache, lens, first_page, &self.rows(tokens, seed)?)?;
        Ok(cache)
    }

    /// Random queries `[rows, h_q, n + r]`.
    pub(crate) fn queries(&self, rows: usize) -> Result<HostTensor, Box<dyn Error>> {
        let geometry = self.problem.geometry();
        let shape = [rows, geometry.h_q(), geometry.width_k()];
        random(self.problem.dtype(), &shape, 77)
    }
}

/// Outputs of a step: o and lse.
pub(crate) struct Results {
    pub(crate) o: CudaTensor,
    pub(crate) lse: CudaTensor,
}

impl Results {
    /// What the elements hold before there is a result.
    pub(crate) const NOTHING: f64 = 12352.0;

    /// With room for `rows` queries.
    pub(crate) fn new(
        engine: &CudaBackend,
        problem: &Problem,
        rows: usize,
    ) -> Result<Results, Box<dyn Error>> {
        let geometry = problem.geometry();
        let shape = [rows, geometry.h_q(), geometry.width_v()];
        let poison = |dtype, shape: &[usize]| -> Result<CudaTensor, Box<dyn Error>> {
            let values = vec![Results::NOTHING; shape.iter().product()];
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
