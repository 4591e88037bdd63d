//! Steps of a batch of texts through the model, on an engine.

use super::model::{Block, Model};
use grouped_attention::layers::{LayerError, Projected};
use grouped_attention::{
    Append, Attend, Backend, CacheLayout, CopyRows, Dtype, EngineError, Error, Extent, Geometry,
    HostTensor, MaskKind, PageError, PageTables, Planning, Problem, Row, RowCopy, SequenceId, Step,
    TensorInfo, Update, Upload,
};
use std::time::{Duration, Instant};

/// The texts of a batch in the caches of an engine: one set of page tables, one cache a layer.
#[derive(Debug)]
pub struct Decoder<'a, B: Backend> {
    model: &'a Model,
    pub(super) backend: &'a B,
    pub(super) tables: PageTables,
    /// One per layer.
    pub(super) caches: Vec<B::Cache>,
    pub(super) problem: Problem,
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

/// Where the time of a decoder's steps went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Planning, transfers, append and attention.
    pub attention: Duration,
    /// Everything else of the model.
    pub dense: Duration,
}

impl<'a, B: Backend> Decoder<'a, B> {
    /// No text yet, and room for `pages` pages of `page_size` bytes of text.
    ///
    /// # Errors
    /// A page size of 0; what the engine lacks for the model's geometry.
    pub fn new(
        model: &'a Model,
        backend: &'a B,
        dtype: Dtype,
        page_size: usize,
        pages: usize,
    ) -> Result<Decoder<'a, B>, DecodeError> {
        let layer = model.layers().next().ok_or(DecodeError::NoLayers)?;
        let geometry = layer.geometry();
        let problem = Problem::new(geometry, dtype, layer.scale()).map_err(Error::from)?;
        // Outputs stay in f32: rounding them to the cache's format would only add noise.
        let problem = problem.f32_output();
        backend.supports(&problem).map_err(|what| Error::from(EngineError::from(what)))?;
        let tables = PageTables::new(page_size, pages).map_err(Error::from)?;
        let layout = CacheLayout::new(geometry, dtype, page_size, pages).map_err(Error::from)?;
        let caches = model
            .layers()
            .map(|_| backend.create_cache(layout))
            .collect::<Result<_, _>>()
            .map_err(Error::from)?;
        Ok(Decoder {
            model,
            backend,
            tables,
            caches,
            problem,
            plan: None,
            tensors: None,
            timing: Timing::default(),
        })
    }

    /// Which text has which pages.
    pub fn tables(&self) -> &PageTables {
        &self.tables
    }

    /// What attention computes.
    pub fn geometry(&self) -> &Geometry {
        self.problem.geometry()
    }

    /// Time spent so far.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// A new, empty text.
    pub fn insert(&mut self) -> SequenceId {
        self.tables.insert()
    }

    /// Ends a text and frees its pages.
    ///
    /// # Errors
    /// An unknown text.
    pub fn remove(&mut self, text: SequenceId) -> Result<(), DecodeError> {
        Ok(self.tables.remove(text).map_err(Error::from)?)
    }

    /// Takes the last bytes of a text back, down to `len`.
    ///
    /// # Errors
    /// An unknown text, or a length beyond it.
    pub fn truncate(&mut self, text: SequenceId, len: usize) -> Result<(), DecodeError> {
        Ok(self.tables.truncate(text, len).map_err(Error::from)?)
    }

    /// A second text that starts with the same bytes, sharing their full pages.
    ///
    /// # Errors
    /// An unknown text; no page for the copy of a partly filled one.
    pub fn fork(&mut self, text: SequenceId) -> Result<SequenceId, DecodeError> {
        let (fork, copies) = self.tables.fork(text).map_err(Error::from)?;
        self.copy(&copies)?;
        Ok(fork)
    }

    /// A second text of the first `len` bytes, sharing their full pages: free of cost where `len` is
    /// a whole number of pages.
    ///
    /// # Errors
    /// An unknown text, or a length beyond it; no page for the copy of a partly filled one.
    pub fn fork_prefix(&mut self, text: SequenceId, len: usize) -> Result<SequenceId, DecodeError> {
        let (fork, copies) = self.tables.fork_prefix(text, len).map_err(Error::from)?;
        self.copy(&copies)?;
        Ok(fork)
    }

    /// Appends bytes to several texts and returns the logits that follow each of them,
    /// `[total, 256]`, text after text: one step of the model, whatever the numbers of bytes.
    ///
    /// # Errors
    /// An unknown text; too few free pages, and then no text has changed; a failing engine.
    pub fn step(&mut self, batch: &[(SequenceId, &[u8])]) -> Result<Vec<f64>, DecodeError> {
        let start = Instant::now();
        let attention_before = self.timing.attention;
        let positions = self.begin(batch)?; // [total]

        let width = self.model.width();
        let embedding = self.model.embedding.weight();
        let mut hidden = Vec::with_capacity(positions.len() * width); // [total, D]
        for byte in batch.iter().flat_map(|(_, bytes)| *bytes) {
            hidden.extend_from_slice(&embedding[usize::from(*byte) * width..][..width]);
        }
        for (index, block) in self.model.blocks.iter().enumerate() {
            self.block(index, block, &mut hidden, &positions)?;
        }
        self.model.norm.apply(&mut hidden);
        let logits = self.model.embedding.apply(&hidden);

        let attention = self.timing.attention - attention_before;
        self.timing.dense += start.elapsed().saturating_sub(attention);
        Ok(logits)
    }

    /// Makes room in the tables, and a plan and tensors for the step; the new bytes' positions.
    fn begin(&mut self, batch: &[(SequenceId, &[u8])]) -> Result<Vec<i64>, DecodeError> {
        let start = Instant::now();
        let mut needed = 0;
        for (text, bytes) in batch {
            needed += self.tables.pages_needed(*text, bytes.len()).map_err(Error::from)?;
        }
        let free = self.tables.free_pages();
        if needed > free {
            return Err(Error::from(PageError::PoolExhausted { needed, free }).into());
        }
        let mut positions = Vec::new();
        let mut queries = Vec::with_capacity(batch.len());
        for (text, bytes) in batch {
            let first = self.tables.len(*text).map_err(Error::from)?;
            positions.extend((first..first + bytes.len()).map(|position| position as i64));
            let copies = self.tables.extend(*text, bytes.len()).map_err(Error::from)?;
            self.copy(&copies)?;
            queries.push((*text, bytes.len()));
        }
        let step = self.tables.step(&queries, MaskKind::Causal).map_err(Error::from)?;
        self.plan_for(&step)?;
        let tokens = positions.len();
        if self.tensors.as_ref().is_none_or(|tensors| tensors.tokens != tokens) {
            self.tensors = Some(self.allocate(tokens)?);
        }
        self.timing.attention += start.elapsed();
        Ok(positions)
    }

    pub(super) fn copy(&mut self, copies: &[RowCopy]) -> Result<(), DecodeError> {
        for cache in &mut self.caches {
            let call = CopyRows::new(cache, copies).map_err(Error::from)?;
            self.backend.copy_rows(call).map_err(Error::from)?;
        }
        Ok(())
    }

    /// Rewrites the plan where its capacity allows, else makes a new one with room for any length.
    fn plan_for(&mut self, step: &Step) -> Result<(), DecodeError> {
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

    /// Shapes of the two parts of `rows` new rows; a rope key 0 wide is none.
    pub(super) fn row_shapes(&self, rows: usize) -> (Vec<usize>, Option<Vec<usize>>) {
        let heads = self.geometry().heads();
        match self.geometry().row() {
            Row::Separate { d_k, d_v, .. } => {
                (vec![rows, heads, d_k], Some(vec![rows, heads, d_v]))
            }
            Row::Tied { s, r, .. } => (vec![rows, heads, s], (r > 0).then(|| vec![rows, r])),
        }
    }

    fn allocate(&self, tokens: usize) -> Result<Tensors<B>, DecodeError> {
        let (geometry, dtype) = (self.problem.geometry(), self.problem.dtype());
        let zeros =
            |dtype, shape: &[usize]| self.backend.allocate(dtype, shape).map_err(Error::from);
        let h_q = geometry.h_q();
        let (first, second) = self.row_shapes(tokens);
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
    ) -> Result<(), DecodeError> {
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
    fn attend(&mut self, index: usize, projected: &Projected) -> Result<Vec<f64>, DecodeError> {
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
) -> Result<(), DecodeError> {
    let host = HostTensor::from_f64(tensor.dtype(), tensor.shape(), values).map_err(Error::from)?;
    let call = Upload::new(tensor, &host).map_err(Error::from)?;
    Ok(backend.upload(call).map_err(Error::from)?)
}

fn add(to: &mut [f64], terms: &[f64]) {
    for (to, term) in to.iter_mut().zip(terms) {
        *to += term;
    }
}

/// Why decoding cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A model of no layers.
    #[error("the model has no layers")]
    NoLayers,
    /// Saved rows are those of another, shorter text.
    #[error("a text of {len} bytes cannot be restored from {saved} saved rows")]
    LongerThanSaved {
        /// Bytes of the text.
        len: usize,
        /// Rows on the host.
        saved: usize,
    },
    /// The engine, or what it was asked.
    #[error(transparent)]
    Attention(#[from] Error),
    /// A layer was given vectors of the wrong width.
    #[error(transparent)]
    Layer(#[from] LayerError),
}
