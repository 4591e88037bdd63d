//! A right engine to break: f32 attention in tiles with a running maximum, as kernels do it.
//!
//! Every decision that a kernel can get wrong is a function in [`Bend`], so a broken engine is the
//! right one with a function or two replaced.

use grouped_attention::{
    Append, Arithmetic, Attend, Backend, CacheInfo, CacheLayout, CopyRows, Dtype, EngineError,
    Geometry, HostTensor, Identity, Merge, PlanInfo, Planned, Planning, Problem, ReadRows, Row,
    RowCopy, Slot, Span, Status, Step, TensorInfo, Unsupported, Update, Upload, Write,
};

/// Positions per update of the running maximum.
const TILE: usize = 64;
/// Positions per split.
const SPLIT: usize = 256;

/// The decisions. Each field is right in [`RIGHT`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bend {
    /// The arithmetic that is declared.
    pub(crate) declared: fn() -> Arithmetic,
    /// What a plan is made for, given the step asked for.
    pub(crate) step: fn(&Step) -> Step,
    /// What an updated plan is for, given the old step and the new one.
    pub(crate) update: fn(&Step, &Step) -> Step,
    /// Cached tokens of a sequence.
    pub(crate) kv_len: fn(&Step, usize) -> usize,
    /// Whether query `t` sees position `j`.
    pub(crate) sees: fn(&Step, &Span, usize, usize) -> bool,
    /// The page and row of a position.
    pub(crate) slot: fn(&Step, &Span, usize) -> Slot,
    /// First element of a token's row, where attention reads it.
    pub(crate) offset: fn(u64, u64) -> u64,
    /// The cached head of a query head.
    pub(crate) head: fn(&Geometry, usize) -> usize,
    /// The key of a head, from both parts of a row.
    pub(crate) key: fn(&Geometry, usize, &[f32], &[f32]) -> Vec<f32>,
    /// The value of a head.
    pub(crate) value: fn(&Geometry, usize, &[f32], &[f32]) -> Vec<f32>,
    /// Factor of the scores.
    pub(crate) scale: fn(&Problem) -> f32,
    /// What the running maximum starts as.
    pub(crate) lowest: f32,
    /// Masked positions get this probability and are multiplied; skipped if absent.
    pub(crate) masked: Option<f32>,
    /// Probability of a scaled score below a maximum.
    pub(crate) exp: fn(f32) -> f32,
    /// A probability as it meets a value.
    pub(crate) rounded: fn(f32) -> f32,
    /// A sum after each addition.
    pub(crate) summed: fn(f32) -> f32,
    /// Factors of the numerator and the normaliser after a new maximum.
    pub(crate) rescale: fn(f32) -> (f32, f32),
    /// Splits that are combined, of how many.
    pub(crate) splits: fn(usize) -> usize,
    /// Positions per split, given the sequences of the step.
    pub(crate) split: fn(usize) -> usize,
    /// Output of a row with no visible position, and its lse.
    pub(crate) empty: (f32, f32),
    /// lse from the maximum, in units of log2, and the normaliser.
    pub(crate) lse: fn(f32, f32) -> f32,
    /// The output row a query row is written to, given rows and heads.
    pub(crate) row: fn(usize, usize, usize) -> usize,
    /// Rows written, of how many.
    pub(crate) rows: fn(usize) -> usize,
    /// Columns of a row written, of how many.
    pub(crate) columns: fn(usize) -> usize,
    /// A number as it is stored in an output format.
    pub(crate) store: fn(Dtype, f64) -> f64,
    /// A number as it is loaded from a cache.
    pub(crate) load: fn(Dtype, f32) -> f32,
    /// What an append does for each write.
    pub(crate) write: fn(&Write) -> Write,
    /// Whether a cell is overwritten, given its old first element.
    pub(crate) overwrites: fn(f32) -> bool,
    /// Whether the rope turns: the first part, the second part.
    pub(crate) turns: fn(&Geometry) -> (bool, bool),
    /// Copies that are made, in order.
    pub(crate) copies: fn(&[RowCopy]) -> Vec<RowCopy>,
    /// Weights of two parts in a merge, and the merged lse.
    pub(crate) merge: fn(f32, f32) -> (f32, f32, f32),
}

/// Nothing bent.
pub(crate) const RIGHT: Bend = Bend {
    declared: || Arithmetic { batch_invariant: true, ..Arithmetic::f32(2f64.powi(-22), TILE / 4) },
    step: Step::clone,
    update: |_, new| new.clone(),
    kv_len: |step, sequence| step.spans()[sequence].kv_len,
    sees: |step, span, t, j| step.sees(span, t, j),
    slot: |step, span, j| step.slot(span, j),
    offset: |token, width| token * width,
    head: |geometry, i| geometry.cached_head(i),
    key: |geometry, head, first, second| match geometry.row() {
        Row::Separate { d_k, .. } => first[head * d_k..][..d_k].to_vec(),
        Row::Tied { s, n, .. } => [&first[head * s..][..n], second].concat(),
    },
    value: |geometry, head, first, second| match geometry.row() {
        Row::Separate { d_v, .. } => second[head * d_v..][..d_v].to_vec(),
        Row::Tied { s, .. } => first[head * s..][..s].to_vec(),
    },
    scale: |problem| problem.scale() as f32,
    lowest: f32::NEG_INFINITY,
    masked: None,
    exp: f32::exp2,
    rounded: |p| p,
    summed: |sum| sum,
    rescale: |factor| (factor, factor),
    splits: |splits| splits,
    split: |_| SPLIT,
    empty: (0.0, f32::NEG_INFINITY),
    lse: |max, sum| (max + sum.log2()) * std::f32::consts::LN_2,
    row: |row, _, _| row,
    rows: |rows| rows,
    columns: |columns| columns,
    store: Dtype::round,
    load: |_, x| x,
    write: |write| *write,
    overwrites: |_| true,
    turns: |geometry| match geometry.row() {
        Row::Separate { .. } => (true, false),
        Row::Tied { .. } => (false, true),
    },
    copies: <[RowCopy]>::to_vec,
    merge: |a, b| {
        let max = a.max(b);
        let lse = max + ((a - max).exp() + (b - max).exp()).ln();
        ((a - lse).exp(), (b - lse).exp(), lse)
    },
};

/// The engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flash(pub(crate) Bend);

/// A tensor: numbers of its format, as f64.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl TensorInfo for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// A cache: bits, in memory that the system maps when it is written.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    layout: CacheLayout,
    parts: [Cells; 2],
}

/// Elements as bits, since a vector of integer zeros costs no memory until it is written.
#[derive(Clone, Debug)]
enum Cells {
    Two(Vec<u16>),
    Four(Vec<u32>),
}

impl Cells {
    fn new(dtype: Dtype, elements: usize) -> Cells {
        match dtype.bytes() {
            2 => Cells::Two(vec![0; elements]),
            _ => Cells::Four(vec![0; elements]),
        }
    }

    fn get(&self, dtype: Dtype, at: usize) -> f32 {
        match (self, dtype) {
            (Cells::Two(bits), Dtype::F16) => half::f16::from_bits(bits[at]).to_f32(),
            (Cells::Two(bits), _) => half::bf16::from_bits(bits[at]).to_f32(),
            (Cells::Four(bits), _) => f32::from_bits(bits[at]),
        }
    }

    fn set(&mut self, dtype: Dtype, at: usize, x: f32) {
        match (self, dtype) {
            (Cells::Two(bits), Dtype::F16) => bits[at] = half::f16::from_f32(x).to_bits(),
            (Cells::Two(bits), _) => bits[at] = half::bf16::from_f32(x).to_bits(),
            (Cells::Four(bits), _) => bits[at] = x.to_bits(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Cells::Two(bits) => bits.len(),
            Cells::Four(bits) => bits.len(),
        }
    }
}

impl CacheInfo for Cache {
    fn layout(&self) -> &CacheLayout {
        &self.layout
    }
}

impl Cache {
    /// Where one part of a row begins; an offset that is off stays in the cache, as it would on a
    /// device that has other tensors behind it.
    fn start(&self, bend: &Bend, part: usize, slot: Slot) -> usize {
        let width = self.layout.geometry().row().parts()[part];
        let token = slot.page.0 as u64 * self.layout.page_size() as u64 + slot.row as u64;
        let room = (self.parts[part].len() + 1).saturating_sub(width).max(1) as u64;
        ((bend.offset)(token, width as u64) % room) as usize
    }

    fn part(&self, bend: &Bend, part: usize, slot: Slot) -> Vec<f32> {
        let start = self.start(bend, part, slot);
        let width = self.layout.geometry().row().parts()[part];
        let dtype = self.layout.dtype();
        let load = |at| (bend.load)(dtype, self.parts[part].get(dtype, at));
        (start..start + width).map(load).collect()
    }

    fn write(&mut self, bend: &Bend, part: usize, slot: Slot, values: &[f64]) {
        let (start, dtype) = (self.start(&RIGHT, part, slot), self.layout.dtype());
        if values.is_empty() || !(bend.overwrites)(self.parts[part].get(dtype, start)) {
            return;
        }
        for (at, &x) in (start..).zip(values) {
            self.parts[part].set(dtype, at, dtype.round(x) as f32);
        }
    }
}

/// A plan: the step.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    planned: Planned,
    step: Step,
}

impl PlanInfo for Plan {
    fn planned(&self) -> &Planned {
        &self.planned
    }
}

/// The running sums of one row: maximum in units of log2, normaliser, numerator.
struct State {
    max: f32,
    sum: f32,
    numerator: Vec<f32>,
    visible: bool,
}

impl State {
    fn new(bend: &Bend, width: usize) -> State {
        State { max: bend.lowest, sum: 0.0, numerator: vec![0.0; width], visible: false }
    }

    fn raise(&mut self, bend: &Bend, max: f32) {
        // From nothing there is nothing to rescale, and -inf - -inf would be NaN.
        let factor = if self.max == max { 1.0 } else { (bend.exp)(self.max - max) };
        let (numerator, sum) = (bend.rescale)(factor);
        self.numerator.iter_mut().for_each(|o| *o *= numerator);
        self.sum *= sum;
        self.max = max;
    }

    /// Scaled scores with their values; `None` for a masked position that is multiplied all the
    /// same.
    fn push(&mut self, bend: &Bend, tile: &[(Option<f32>, &[f32])]) {
        let seen = || tile.iter().filter_map(|(x, _)| *x);
        if tile.is_empty() {
            return;
        }
        self.visible |= seen().next().is_some();
        let max = seen().fold(self.max, f32::max);
        self.raise(bend, max);
        for (x, value) in tile {
            let p = match x {
                Some(x) => (bend.exp)(x - max),
                None => bend.masked.unwrap_or(0.0),
            };
            self.sum = (bend.summed)(self.sum + p);
            let p = (bend.rounded)(p);
            for (o, v) in self.numerator.iter_mut().zip(*value) {
                *o = (bend.summed)(*o + p * v);
            }
        }
    }

    fn merge(&mut self, bend: &Bend, mut other: State) {
        let max = self.max.max(other.max);
        self.raise(bend, max);
        other.raise(bend, max);
        self.sum += other.sum;
        self.visible |= other.visible;
        self.numerator.iter_mut().zip(other.numerator).for_each(|(o, other)| *o += other);
    }
}

/// One cached head of one sequence: key and value of each position that some query reads.
struct Lines(Vec<Option<(Vec<f32>, Vec<f32>)>>);

impl Flash {
    /// What the queries of a sequence read of one head. Unseen rows are read by engines that
    /// multiply what is masked, and by no other.
    fn lines(&self, at: At<'_>, head: usize) -> Lines {
        let Flash(bend) = self;
        let At { problem, step, sequence, cache } = at;
        let (geometry, span) = (problem.geometry(), &step.spans()[sequence]);
        let line = |j| {
            let seen = (0..span.q_len).any(|t| (bend.sees)(step, span, t, j));
            (seen || bend.masked.is_some()).then(|| {
                let slot = (bend.slot)(step, span, j);
                let [first, second] = [0, 1].map(|part| cache.part(bend, part, slot));
                let key = (bend.key)(geometry, head, &first, &second);
                (key, (bend.value)(geometry, head, &first, &second))
            })
        };
        Lines((0..(bend.kv_len)(step, sequence)).map(line).collect())
    }

    /// Output and lse of one query row.
    fn attend_row(&self, at: At<'_>, t: usize, lines: &Lines, query: &[f64]) -> (Vec<f32>, f32) {
        let Flash(bend) = self;
        let At { problem, step, sequence, .. } = at;
        let span = &step.spans()[sequence];
        let width_v = problem.geometry().width_v();
        let factor = (bend.scale)(problem) * std::f32::consts::LOG2_E;
        let query: Vec<f32> = query.iter().map(|q| *q as f32).collect();
        let split = (bend.split)(step.spans().len());
        let mut all = State::new(bend, width_v);
        let splits = (bend.splits)(lines.0.len().div_ceil(split));
        for lines in lines.0.chunks(split).enumerate().take(splits) {
            let mut state = State::new(bend, width_v);
            for (index, tile) in lines.1.chunks(TILE).enumerate() {
                let start = lines.0 * split + index * TILE;
                let mut scored: Vec<(Option<f32>, &[f32])> = Vec::with_capacity(TILE);
                for (j, line) in (start..).zip(tile) {
                    let Some((key, value)) = line else { continue };
                    let sees = (bend.sees)(step, span, t, j);
                    if sees || bend.masked.is_some() {
                        let products = query.iter().zip(key);
                        let dot = products.fold(0.0, |sum, (q, k)| (bend.summed)(sum + q * k));
                        scored.push((sees.then_some(dot * factor), value));
                    }
                }
                state.push(bend, &scored);
            }
            all.merge(bend, state);
        }
        if !all.visible {
            return (vec![bend.empty.0; width_v], bend.empty.1);
        }
        let o = all.numerator.iter().map(|o| o / all.sum).collect();
        (o, (bend.lse)(all.max, all.sum))
    }
}

/// Where a row is computed.
#[derive(Clone, Copy)]
struct At<'a> {
    problem: &'a Problem,
    step: &'a Step,
    sequence: usize,
    cache: &'a Cache,
}

impl Backend for Flash {
    type Tensor = Tensor;
    type Cache = Cache;
    type Plan = Plan;

    fn identity(&self) -> Identity {
        Identity { name: "flash", kernel: "tiles of 64".into(), device: "test".into() }
    }

    fn supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        problem.extension().map_or(Ok(()), |extension| Err(Unsupported::Extension(extension)))
    }

    fn arithmetic(&self, _problem: &Problem) -> Arithmetic {
        (self.0.declared)()
    }

    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<Tensor, EngineError> {
        let elements = shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
        let mut values = Vec::new();
        match elements.map(|elements| (values.try_reserve_exact(elements), elements)) {
            Some((Ok(()), elements)) => values.resize(elements, 0.0),
            _ => return Err(EngineError::OutOfMemory { bytes: usize::MAX }),
        }
        Ok(Tensor { dtype, shape: shape.to_vec(), values })
    }

    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError> {
        call.tensor.values = call.host.to_f64();
        Ok(())
    }

    fn download(&self, tensor: &Tensor) -> Result<HostTensor, EngineError> {
        Ok(HostTensor::from_f64(tensor.dtype, &tensor.shape, &tensor.values)
            .expect("a tensor's values fill its shape"))
    }

    fn create_cache(&self, layout: CacheLayout) -> Result<Cache, EngineError> {
        let tokens = layout.pages() * layout.page_size();
        let widths = layout.geometry().row().parts();
        let parts = widths.map(|width| Cells::new(layout.dtype(), tokens * width));
        Ok(Cache { layout, parts })
    }

    fn plan(&self, call: Planning<'_>) -> Result<Plan, EngineError> {
        self.supports(call.problem)?;
        Ok(Plan { planned: call.planned(), step: (self.0.step)(call.step) })
    }

    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError> {
        let step = (self.0.update)(&call.plan.step, &(self.0.step)(call.step));
        *call.plan = Plan { planned: call.planned(), step };
        Ok(())
    }

    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError> {
        let problem = call.plan.planned.problem();
        let geometry = problem.geometry();
        let turns = if call.rotating { (self.0.turns)(geometry) } else { (false, false) };
        let widths = geometry.row().parts();
        for (index, write) in call.plan.step.writes().iter().enumerate() {
            let write = (self.0.write)(write);
            let tensors = [Some(call.first), call.second];
            for part in 0..2 {
                let Some(tensor) = tensors[part] else { continue };
                let mut row = tensor.values[index * widths[part]..][..widths[part]].to_vec();
                if if part == 0 { turns.0 } else { turns.1 } {
                    let rope = problem.rope().expect("a rotating append has a rope");
                    let width = rope.width().max(1);
                    row.chunks_exact_mut(width).for_each(|key| rope.rotate(key, write.position));
                }
                call.cache.write(&self.0, part, write.slot, &row);
            }
        }
        Ok(())
    }

    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Result<(), EngineError> {
        for copy in (self.0.copies)(call.copies) {
            for row in 0..copy.rows {
                let at = |slot: Slot| Slot { row: slot.row + row, ..slot };
                for part in 0..2 {
                    let values = call.cache.part(&RIGHT, part, at(copy.from));
                    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
                    call.cache.write(&RIGHT, part, at(copy.to), &values);
                }
            }
        }
        Ok(())
    }

    fn read_rows(&self, call: ReadRows<'_, Self>) -> Result<[HostTensor; 2], EngineError> {
        let dtype = call.cache.layout.dtype();
        let widths = call.cache.layout.geometry().row().parts();
        Ok([0, 1].map(|part| {
            let rows = call.slots.iter().flat_map(|&slot| call.cache.part(&RIGHT, part, slot));
            let values: Vec<f64> = rows.map(f64::from).collect();
            HostTensor::from_f64(dtype, &[call.slots.len(), widths[part]], &values)
                .expect("rows fill their shape")
        }))
    }

    fn attend(&self, mut call: Attend<'_, Self>) -> Result<(), EngineError> {
        let Flash(bend) = self;
        let Plan { planned, step } = call.plan;
        let problem = planned.problem();
        let (h_q, width_k) = (problem.geometry().h_q(), problem.geometry().width_k());
        let width_v = problem.geometry().width_v();
        let all = step.total_q() * h_q;
        for (sequence, span) in step.spans().iter().enumerate() {
            let at = At { problem, step, sequence, cache: call.cache };
            for i in 0..if span.q_len == 0 { 0 } else { h_q } {
                let lines = self.lines(at, (bend.head)(problem.geometry(), i));
                for t in 0..span.q_len {
                    let row = (span.q_start + t) * h_q + i;
                    let query = &call.q.values[row * width_k..][..width_k];
                    let (o, lse) = self.attend_row(at, t, &lines, query);
                    let to = (bend.row)(row, all, h_q);
                    if to >= (bend.rows)(all) {
                        continue;
                    }
                    let written = (bend.columns)(width_v);
                    for (cell, &o) in call.o.values[to * width_v..][..written].iter_mut().zip(&o) {
                        *cell = (bend.store)(problem.output(), f64::from(o));
                    }
                    if let Some(tensor) = &mut call.lse {
                        tensor.values[to] = f64::from(lse);
                    }
                }
            }
        }
        // A kernel that rounds rows up to its tile writes what is left of its registers.
        for row in all..(bend.rows)(all) {
            call.o.values[row * width_v..][..width_v].fill(0.0);
        }
        Ok(())
    }

    fn merge(&self, call: Merge<'_, Self>) -> Result<(), EngineError> {
        let (width_v, dtype) = (call.o.shape[2], call.o.dtype);
        for row in 0..call.lse.values.len() {
            let (a, b) = (call.lse.values[row] as f32, call.other_lse.values[row] as f32);
            let (weight, other_weight, lse) = match (a == f32::NEG_INFINITY, b == f32::NEG_INFINITY)
            {
                (_, true) => (1.0, 0.0, a),
                (true, false) => (0.0, 1.0, b),
                (false, false) => (self.0.merge)(a, b),
            };
            call.lse.values[row] = f64::from(lse);
            for at in row * width_v..(row + 1) * width_v {
                let (o, other) = (call.o.values[at] as f32, call.other_o.values[at] as f32);
                let merged = o * weight + other * other_weight;
                // An empty part's weight of 0 must not meet what the other part holds.
                let merged = match (weight, other_weight) {
                    (1.0, 0.0) => o,
                    (0.0, 1.0) => other,
                    _ => merged,
                };
                call.o.values[at] = dtype.round(f64::from(merged));
            }
        }
        Ok(())
    }

    fn status(&self, _plan: &Plan) -> Result<Status, EngineError> {
        Ok(Status::Ok)
    }

    fn synchronize(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
