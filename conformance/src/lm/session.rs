//! One text being decoded: caches, page tables, and steps through the model.

use super::model::{Block, Model};
use grouped_attention::layers::{LayerError, Projected};
use grouped_attention::{
    Append, Attend, Backend, CacheLayout, CopyRows, Dtype, EngineError, Error, Extent, Geometry,
    HostTensor, MaskKind, PageTables, Planning, Problem, Row, SequenceId, Step, TensorInfo, Update,
    Upload,
};
use std::time::{Duration, Instant};

/// A text in the caches of an engine.
#[derive(Debug)]
pub struct Session<'a, B: Backend> {
    model: &'a Model,
    backend: &'a B,
    tables: PageTables,
    sequence: SequenceId,
    /// One per layer.
    caches: Vec<B::Cache>,
    problem: Problem,
    plan: Option<B::Plan>,
    tensors: Option<Tensors<B>>,
    timing: Timing,
}

/// Engine tensors of one step's shape, kept while the shape stays.
#[derive(Debug)]
struct Tensors<B: Backend> {
    tokens: usize,
    q: B::Tensor,              // [tokens, h_q, width K]
    first: B::Tensor,          // [tokens, h, d_k] or [tokens, h, s]
    second: Option<B::Tensor>, // [tokens, h, d_v] or [tokens, r]
    o: B::Tensor,              // [tokens, h_q, width V]
}

/// Where the time of a session went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Planning, transfers, append and attention.
    pub attention: Duration,
    /// Everything else of the model.
    pub dense: Duration,
}

impl<'a, B: Backend> Session<'a, B> {
    /// An empty text with room for `tokens` bytes in pages of `page_size`.
    ///
    /// # Errors
    /// A page size of 0; what the engine lacks for the model's geometry.
    pub fn new(
        model: &'a Model,
        backend: &'a B,
        dtype: Dtype,
        page_size: usize,
        tokens: usize,
    ) -> Result<Session<'a, B>, SessionError> {
        let layer = model.layers().next().ok_or(SessionError::NoLayers)?;
        let geometry = layer.geometry();
        let problem = Problem::new(geometry, dtype, layer.scale()).map_err(Error::from)?;
        // Outputs stay in f32: rounding them to the cache's format would only add noise.
        let problem = problem.f32_output();
        backend.supports(&problem).map_err(|what| Error::from(EngineError::from(what)))?;
        let pages = if page_size == 0 { 0 } else { tokens.div_ceil(page_size) };
        let mut tables = PageTables::new(page_size, pages).map_err(Error::from)?;
        let layout = CacheLayout::new(geometry, dtype, page_size, pages).map_err(Error::from)?;
        let caches = model
            .layers()
            .map(|_| backend.create_cache(layout))
            .collect::<Result<_, _>>()
            .map_err(Error::from)?;
        let sequence = tables.insert();
        Ok(Session {
            model,
            backend,
            tables,
            sequence,
            caches,
            problem,
            plan: None,
            tensors: None,
            timing: Timing::default(),
        })
    }

    /// Bytes in the caches.
    ///
    /// # Panics
    /// Never: the session's sequence stays in its tables.
    pub fn len(&self) -> usize {
        self.tables.len(self.sequence).expect("the session's sequence is in its tables")
    }

    /// True before the first byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What attention computes.
    pub fn geometry(&self) -> &Geometry {
        self.problem.geometry()
    }

    /// Time spent so far.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Appends bytes and returns the logits that follow each of them, `[T, 256]`: one step, all
    /// bytes at once.
    ///
    /// # Errors
    /// More bytes than there is room for; a failing engine.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Vec<f64>, SessionError> {
        let start = Instant::now();
        let attention_before = self.timing.attention;
        let first = self.len();
        let positions: Vec<i64> = (first..first + bytes.len()).map(|at| at as i64).collect();
        self.begin(bytes.len())?;

        let width = self.model.width();
        let embedding = self.model.embedding.weight();
        let mut hidden: Vec<f64> = bytes
            .iter()
            .flat_map(|&byte| &embedding[usize::from(byte) * width..][..width])
            .copied()
            .collect(); // [T, D]
        for (index, block) in self.model.blocks.iter().enumerate() {
            self.block(index, block, &mut hidden, &positions)?;
        }
        self.model.norm.apply(&mut hidden);
        let logits = self.model.embedding.apply(&hidden);

        let attention = self.timing.attention - attention_before;
        self.timing.dense += start.elapsed().saturating_sub(attention);
        Ok(logits)
    }

    /// Takes the last bytes back, down to `len`.
    ///
    /// # Errors
    /// A length beyond the text.
    pub fn truncate(&mut self, len: usize) -> Result<(), SessionError> {
        Ok(self.tables.truncate(self.sequence, len).map_err(Error::from)?)
    }

    /// Makes room in the tables, and a plan and tensors for a step of `tokens`.
    fn begin(&mut self, tokens: usize) -> Result<(), SessionError> {
        let start = Instant::now();
        let copies = self.tables.extend(self.sequence, tokens).map_err(Error::from)?;
        for cache in &mut self.caches {
            let call = CopyRows::new(cache, &copies).map_err(Error::from)?;
            self.backend.copy_rows(call).map_err(Error::from)?;
        }
        let step =
            self.tables.step(&[(self.sequence, tokens)], MaskKind::Causal).map_err(Error::from)?;
        self.plan_for(&step)?;
        if self.tensors.as_ref().is_none_or(|tensors| tensors.tokens != tokens) {
            self.tensors = Some(self.allocate(tokens)?);
        }
        self.timing.attention += start.elapsed();
        Ok(())
    }

    /// Rewrites the plan where its capacity allows, else makes a new one.
    fn plan_for(&mut self, step: &Step) -> Result<(), SessionError> {
        if let Some(plan) = &mut self.plan
            && let Ok(call) = Update::<B>::new(plan, step)
        {
            return Ok(self.backend.update(call).map_err(Error::from)?);
        }
        let room = self.tables.pages_total() * self.tables.page_size();
        let capacity = Extent { max_kv_len: room, ..*step.extent() };
        let call = Planning::with_capacity(&self.problem, step, capacity).map_err(Error::from)?;
        self.plan = Some(self.backend.plan(call).map_err(Error::from)?);
        Ok(())
    }

    fn allocate(&self, tokens: usize) -> Result<Tensors<B>, SessionError> {
        let (geometry, dtype) = (self.problem.geometry(), self.problem.dtype());
        let zeros =
            |dtype, shape: &[usize]| self.backend.allocate(dtype, shape).map_err(Error::from);
        let (h_q, heads) = (geometry.h_q(), geometry.heads());
        let (first, second) = match geometry.row() {
            Row::Separate { d_k, d_v, .. } => {
                (vec![tokens, heads, d_k], Some(vec![tokens, heads, d_v]))
            }
            Row::Tied { s, r, .. } => (vec![tokens, heads, s], (r > 0).then(|| vec![tokens, r])),
        };
        Ok(Tensors {
            tokens,
            q: zeros(dtype, &[tokens, h_q, geometry.width_k()])?,
            first: zeros(dtype, &first)?,
            second: second.map(|shape| zeros(dtype, &shape)).transpose()?,
            o: zeros(Dtype::F32, &[tokens, h_q, geometry.width_v()])?,
        })
    }

    /// One transformer block over `hidden` `[T, D]`, in place.
    fn block(
        &mut self,
        index: usize,
        block: &Block,
        hidden: &mut [f64],
        positions: &[i64],
    ) -> Result<(), SessionError> {
        let mut x = hidden.to_vec();
        block.attention_norm.apply(&mut x);
        let projected = block.attention.project(&x, positions)?;
        let attended = self.attend(index, &projected)?;
        add(hidden, &block.attention.output(&attended)?);

        let mut x = hidden.to_vec();
        block.mlp_norm.apply(&mut x);
        add(hidden, &block.mlp.apply(&x));
        Ok(())
    }

    /// Append and attention of one layer on the engine, `[T, h_q, width V]`.
    fn attend(&mut self, index: usize, projected: &Projected) -> Result<Vec<f64>, SessionError> {
        let start = Instant::now();
        let (Some(plan), Some(tensors)) = (&mut self.plan, &mut self.tensors) else {
            unreachable!("begin() made both");
        };
        let cache = &mut self.caches[index];
        let [first, second] = projected.rows.parts();
        write(self.backend, &mut tensors.q, &projected.queries)?;
        write(self.backend, &mut tensors.first, first)?;
        if let Some(tensor) = &mut tensors.second {
            write(self.backend, tensor, second)?;
        }
        let append = Append::new(plan, cache, &tensors.first, tensors.second.as_ref());
        self.backend.append(append.map_err(Error::from)?).map_err(Error::from)?;
        let attend = Attend::new(plan, &tensors.q, cache, &mut tensors.o, None);
        self.backend.attend(attend.map_err(Error::from)?).map_err(Error::from)?;
        let attended = self.backend.download(&tensors.o).map_err(Error::from)?.to_f64();
        self.timing.attention += start.elapsed();
        Ok(attended)
    }
}

/// Rounds `values` to the tensor's format and overwrites it.
fn write<B: Backend>(
    backend: &B,
    tensor: &mut B::Tensor,
    values: &[f64],
) -> Result<(), SessionError> {
    let host = HostTensor::from_f64(tensor.dtype(), tensor.shape(), values).map_err(Error::from)?;
    let call = Upload::new(tensor, &host).map_err(Error::from)?;
    Ok(backend.upload(call).map_err(Error::from)?)
}

fn add(to: &mut [f64], terms: &[f64]) {
    for (to, term) in to.iter_mut().zip(terms) {
        *to += term;
    }
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A model of no layers.
    #[error("the model has no layers")]
    NoLayers,
    /// The engine, or what it was asked.
    #[error(transparent)]
    Attention(#[from] Error),
    /// A layer was given vectors of the wrong width.
    #[error(transparent)]
    Layer(#[from] LayerError),
}
