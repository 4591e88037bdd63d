//! The engine: [`Backend`] on a CUDA device.

use crate::abi;
use crate::abi::TILE_TOKENS;
use crate::cache::{CachePart, CudaCache};
use crate::device::Device;
use crate::disk::DiskCache;
use crate::driver::{Copy2d, MEMORY_DEVICE};
use crate::error::{ENGINE, failed, unavailable};
use crate::family::{Choice, Items, Kernels, combine, naive, plain, portable};
use crate::hopper::{self, Loads, MapShape, NO_MAP};
use crate::jit::{Instance, architecture, build};
use crate::launch::{Kernel, Order, pointer};
use crate::memory::DeviceBuffer;
use crate::nvrtc::Compiler;
use crate::plan::{Attention, CudaPlan, Tiled, mask_code};
use crate::resident::{Layout, Resident, Sizes};
use crate::schedule::{Bounds, Schedule, Scheduler, Split};
use crate::stream::Stream;
use crate::tensor::CudaTensor;
use grouped_attention::{
    Append, Arithmetic, Attend, Backend, CacheInfo, CacheLayout, CopyRows, Dtype, EngineError,
    Extent, HostTensor, Identity, Merge, Planned, Planning, Problem, ReadRows, RopeStyle, Row,
    RowCopy, Slot, Status, Step, TensorInfo, Unsupported, Update, Upload, Values, ValuesMut,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest relative error of `ex2.approx`.
const EXP_ERROR: f64 = 1.0 / (1 << 22) as f64;
/// Positions that the naive kernel takes per update of its maximum.
const NAIVE_CHUNK: usize = 128;
/// Depth to which every tensor core since sm_80 adds products up before it rounds.
const MATRIX_STEP: usize = 8;
/// Fewest tokens that a kernel of any family takes per update of its maximum.
const SMALLEST_TILE: usize = 16;
/// Tiles of a piece in batch-invariant mode: 2048 tokens.
const INVARIANT_TILES: usize = 32;
/// Tiles below which a piece is not worth its partial result.
const MIN_TILES: usize = 4;
/// Device memory for partial results above which sequences are cut into fewer parts.
const PARTIALS_BYTES: usize = 256 << 20;

/// An attention engine on one CUDA device and one stream.
///
/// Work is asynchronous on the stream. Engines are cheap to [`clone`](Clone::clone) and to put
/// [on another stream](Self::on_stream); all that come from one share its compiled kernels.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    shared: Arc<Shared>,
    stream: Arc<Stream>,
    kernels: Kernels,
}

/// What the engines of one device share.
#[derive(Debug)]
struct Shared {
    device: Arc<Device>,
    compiler: &'static Compiler,
    disk: DiskCache,
    loaded: Mutex<HashMap<Instance, Arc<Kernel>>>,
}

impl Shared {
    /// A kernel, compiled and loaded if this is its first use.
    fn kernel(&self, choice: &Choice) -> Result<Arc<Kernel>, EngineError> {
        // A panic elsewhere leaves the table as it was.
        let loaded = || self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded().get(&choice.instance) {
            return Ok(kernel.clone());
        }
        // Compiled without the lock, so that threads with different kernels do not wait for each
        // other; of two with the same one, the later takes the earlier's.
        let architecture = architecture(self.device.capability());
        let cubin =
            build(self.compiler, &self.disk, &architecture, &choice.instance).map_err(failed)?;
        let kernel = Kernel::load(&self.device, &choice.instance, &cubin, choice.shared_bytes)?;
        Ok(loaded().entry(choice.instance.clone()).or_insert(Arc::new(kernel)).clone())
    }
}

impl CudaBackend {
    /// An engine on a device, with a stream of its own and the fastest kernels.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] where the driver or NVRTC is missing or too old, or there is no
    /// such device.
    pub fn new(ordinal: usize) -> Result<CudaBackend, EngineError> {
        CudaBackend::with_kernels(ordinal, Kernels::Hopper)
    }

    /// An engine that goes no further than one rung of the ladder of kernels.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn with_kernels(ordinal: usize, kernels: Kernels) -> Result<CudaBackend, EngineError> {
        let device = Device::open(ordinal)?;
        let (major, minor) = device.capability();
        if major < 8 {
            return Err(unavailable(format!(
                "{device} has compute capability {major}.{minor}, and 8.0 is needed"
            )));
        }
        let compiler = Compiler::for_driver(device.driver_version()).map_err(unavailable)?;
        let stream = Arc::new(Stream::new(&device)?);
        let disk = DiskCache::from_environment();
        let shared = Shared { device, compiler, disk, loaded: Mutex::default() };
        Ok(CudaBackend { shared: Arc::new(shared), stream, kernels })
    }

    /// The same engine on a stream of the caller's, given as its `CUstream` handle.
    ///
    /// # Safety
    /// The handle must be a stream of this engine's device, created in the device's primary
    /// context, and must live as long as the engine, its clones, and the plans they make.
    pub unsafe fn on_stream(&self, stream: u64) -> CudaBackend {
        // SAFETY: the caller promises what `foreign` asks for.
        let stream = Arc::new(unsafe { Stream::foreign(&self.shared.device, stream) });
        CudaBackend { stream, ..self.clone() }
    }

    /// Number of the device.
    pub fn ordinal(&self) -> usize {
        self.shared.device.ordinal()
    }

    /// A tensor in a caller's memory.
    ///
    /// Strides count elements. Kernels need the elements of the last dimension side by side, and
    /// tensor-core kernels need 16-byte alignment of address and strides; calls with other tensors
    /// are answered by [`EngineError::Unsupported`].
    ///
    /// # Errors
    /// A number of strides other than that of the dimensions, sizes that overflow.
    ///
    /// # Safety
    /// The memory must be this device's, hold every element that shape and strides reach, outlive
    /// the tensor and all work on it, and not be used otherwise while that work is pending.
    pub unsafe fn wrap_tensor(
        &self,
        address: u64,
        dtype: Dtype,
        shape: &[usize],
        strides: &[usize],
    ) -> Result<CudaTensor, EngineError> {
        check_strides(shape, strides)?;
        Ok(CudaTensor::foreign(&self.shared.device, dtype, shape, strides, address))
    }

    /// A cache in a caller's memory.
    ///
    /// # Errors
    /// Pages or strides past what kernels can index.
    ///
    /// # Safety
    /// As for [`wrap_tensor`](Self::wrap_tensor), for both parts.
    pub unsafe fn wrap_cache(
        &self,
        layout: CacheLayout,
        parts: [CachePart; 2],
    ) -> Result<CudaCache, EngineError> {
        check_layout(&layout)?;
        for (part, shape) in parts.iter().zip(layout.part_shapes()) {
            let strides = match shape.len() {
                4 => vec![part.page_stride, part.token_stride, part.head_stride, 1],
                _ => vec![part.page_stride, part.token_stride, 1],
            };
            check_strides(&shape, &strides)?;
        }
        Ok(CudaCache::new(&self.shared.device, layout, parts, None))
    }

    fn check_device(&self, device: &Arc<Device>, what: &'static str) -> Result<(), EngineError> {
        if device.ordinal() == self.ordinal() { Ok(()) } else { Err(EngineError::Foreign { what }) }
    }

    fn check_tensor(&self, tensor: &CudaTensor, what: &'static str) -> Result<(), EngineError> {
        self.check_device(&tensor.device, what)?;
        if tensor.has_dense_rows() {
            return Ok(());
        }
        Err(other(format!("a gap between the elements of a row of {what}")))
    }

    /// The kernel for a problem, with what it needs: the highest rung that has one.
    fn found(&self, problem: &Problem, capacity: &Extent, page_size: usize) -> Option<Found> {
        let device = &self.shared.device;
        if self.kernels == Kernels::Hopper
            && device.capability() == (9, 0)
            && let Some((choice, items, loads)) = hopper::choose(problem, capacity, page_size)
        {
            return Some(Found { choice, items, loads: Some(loads) });
        }
        if self.kernels == Kernels::Naive {
            return None;
        }
        let (choice, tile) = portable(problem, capacity, device.shared_bytes())?;
        Some(Found { choice, items: Items { rows: tile.rows, heads: 1 }, loads: None })
    }

    fn attention(
        &self,
        problem: &Problem,
        capacity: &Extent,
        page_size: usize,
    ) -> Result<Attention, EngineError> {
        let device = &self.shared.device;
        let Some(Found { choice, items, loads }) = self.found(problem, capacity, page_size) else {
            let kernel = self.shared.kernel(&naive(problem))?;
            let blocks = kernel.blocks_per_multiprocessor()?.max(1) * device.multiprocessors();
            return Ok(Attention::Naive { kernel, blocks });
        };
        let kernel = self.shared.kernel(&choice)?;
        let resident = kernel.blocks_per_multiprocessor()?;
        if resident == 0 {
            return Err(failed(format!("{} does not fit the device", choice.instance)));
        }
        let blocks = resident * device.multiprocessors();
        let slot_rows = items.rows * items.heads;
        let width_v = problem.geometry().width_v();
        let slot_bytes = slot_rows * 4 * (width_v + 1);
        let mut scheduler = scheduler(problem, capacity, items, blocks, slot_bytes);
        if loads.is_some() {
            tune_for_hopper(&mut scheduler);
        }
        let slots = scheduler.bounds(capacity).slots;
        let partials = if slots == 0 {
            None
        } else {
            let rows = slots * slot_rows;
            let o = DeviceBuffer::new(device, rows * 4 * width_v)?;
            Some((o, DeviceBuffer::new(device, rows * 4)?))
        };
        let combine = self.shared.kernel(&combine(problem))?;
        let item_heads = items.heads;
        Ok(Attention::Tiled(Tiled { kernel, combine, scheduler, item_heads, loads, partials }))
    }

    fn write(&self, plan: &mut CudaPlan, step: &Step) -> Result<(), EngineError> {
        if let Some(scheduler) = plan.attention.scheduler() {
            scheduler.schedule(step.spans(), &mut plan.schedule);
        }
        let rope = plan.planned.problem().rope();
        plan.mask = mask_code(&plan.planned, step.mask());
        plan.resident.write(&self.stream, step, &plan.schedule, rope, plan.mask)?;
        Ok(())
    }
}

/// A kernel that works through a schedule.
struct Found {
    choice: Choice,
    items: Items,
    loads: Option<Loads>,
}

/// Costs as the Hopper kernels have them, and how many numbers of teams are tried.
fn tune_for_hopper(scheduler: &mut Scheduler) {
    scheduler.item_tiles = 4;
    scheduler.split = match scheduler.split {
        Split::Invariant { .. } => Split::Invariant { unit_tiles: 128 },
        Split::Balanced { min_tiles, .. } => Split::Balanced {
            min_tiles,
            candidates: (scheduler.teams / 8).max(1),
            saturation: scheduler.teams,
            cut_cost: 16,
        },
    };
}

/// How portable kernels share a step: as many teams as blocks fit the device at a time, a team as
/// large as a usual sequence has lanes, so that lanes of one range run side by side.
fn scheduler(
    problem: &Problem,
    capacity: &Extent,
    items: Items,
    blocks: usize,
    slot_bytes: usize,
) -> Scheduler {
    let geometry = problem.geometry();
    let usual_q_len = capacity.total_q.div_ceil(capacity.sequences.max(1));
    let row_tiles = (usual_q_len * geometry.group()).div_ceil(items.rows).max(1);
    let head_blocks = geometry.heads().div_ceil(items.heads);
    let mut scheduler = Scheduler {
        group: geometry.group(),
        head_blocks,
        item_rows: items.rows,
        teams: 1,
        team: (head_blocks * row_tiles).min(blocks),
        item_tiles: 2,
        split: Split::Balanced {
            min_tiles: MIN_TILES,
            candidates: 1,
            saturation: usize::MAX,
            cut_cost: 0,
        },
    };
    if problem.is_batch_invariant() {
        scheduler.split = Split::Invariant { unit_tiles: INVARIANT_TILES };
        scheduler.teams = (blocks / scheduler.team).max(1);
        return scheduler;
    }
    loop {
        scheduler.teams = (blocks / scheduler.team).max(1);
        let bytes = scheduler.bounds(capacity).slots.saturating_mul(slot_bytes);
        if bytes <= PARTIALS_BYTES || scheduler.team >= blocks {
            return scheduler;
        }
        // Larger teams are fewer, and fewer teams cut less.
        scheduler.team = (scheduler.team * 2).min(blocks);
    }
}

fn other(what: String) -> EngineError {
    Unsupported::Other { what }.into()
}

/// Strides for every dimension, and no element past what an address can reach.
fn check_strides(shape: &[usize], strides: &[usize]) -> Result<(), EngineError> {
    if shape.len() != strides.len() {
        return Err(other(format!("{} strides for {} dimensions", strides.len(), shape.len())));
    }
    let last = shape.iter().zip(strides).try_fold(0_usize, |last, (extent, stride)| {
        last.checked_add(extent.saturating_sub(1).checked_mul(*stride)?)
    });
    match last {
        Some(last) if last <= isize::MAX as usize / 8 => Ok(()),
        _ => Err(other(format!("a tensor of shape {shape:?} with strides {strides:?}"))),
    }
}

fn check_layout(layout: &CacheLayout) -> Result<(), EngineError> {
    if layout.page_size() > i32::MAX as usize {
        return Err(other(format!("a page of {} tokens", layout.page_size())));
    }
    check_geometry(layout.geometry()).map_err(EngineError::from)
}

/// Kernels index the elements of a row with 31 bits.
fn check_geometry(geometry: &grouped_attention::Geometry) -> Result<(), Unsupported> {
    let (h_q, k, v) = (geometry.h_q(), geometry.width_k(), geometry.width_v());
    let widest = geometry.row().elements().max(h_q * k).max(h_q * v);
    if widest <= i32::MAX as usize {
        return Ok(());
    }
    let reason = format!("a row of {widest} elements");
    Err(Unsupported::Geometry { geometry: *geometry, reason })
}

impl Backend for CudaBackend {
    type Tensor = CudaTensor;
    type Cache = CudaCache;
    type Plan = CudaPlan;

    fn identity(&self) -> Identity {
        let (name, kernel) = match self.kernels {
            Kernels::Naive => ("cuda-naive", "naive"),
            Kernels::Portable => ("cuda-portable", "sm_80"),
            Kernels::Hopper if self.shared.device.capability() == (9, 0) => (ENGINE, "sm_90a"),
            Kernels::Hopper => (ENGINE, "sm_80"),
        };
        Identity { name, kernel: kernel.into(), device: self.shared.device.to_string() }
    }

    fn supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        if let Some(extension) = problem.extension() {
            return Err(Unsupported::Extension(extension));
        }
        for dtype in [problem.dtype(), problem.output()] {
            if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
                return Err(Unsupported::Dtype { dtype });
            }
        }
        check_geometry(problem.geometry())
    }

    fn arithmetic(&self, problem: &Problem) -> Arithmetic {
        let anything = Extent { sequences: 1, total_q: 1, max_q_len: 1, max_kv_len: 0, writes: 0 };
        // Whether a kernel is found depends on the smallest shape alone, which q_len 1 has too.
        let tiled = self.found(problem, &anything, 1).is_some();
        let arithmetic = if tiled {
            Arithmetic {
                // Matrix units truncate what they add.
                accumulation: 2.0 * Dtype::F32.unit_roundoff(),
                truncates: true,
                parts: MAX_PARTS,
                ..Arithmetic::matrix(problem.dtype(), MATRIX_STEP, EXP_ERROR, SMALLEST_TILE)
            }
        } else {
            Arithmetic::f32(EXP_ERROR, NAIVE_CHUNK)
        };
        Arithmetic {
            flushes_subnormals: true,
            batch_invariant: !tiled || problem.is_batch_invariant(),
            ..arithmetic
        }
    }

    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<CudaTensor, EngineError> {
        let too_large = EngineError::OutOfMemory { bytes: usize::MAX };
        let host_bytes = HostTensor::zeros(dtype, &[0]).map(|_| dtype.bytes());
        let bytes = shape
            .iter()
            .try_fold(host_bytes.unwrap_or(4), |bytes, &extent| bytes.checked_mul(extent))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or(too_large)?;
        let storage = DeviceBuffer::new(&self.shared.device, bytes)?;
        // SAFETY: the buffer has these bytes.
        unsafe { self.stream.clear(storage.address(), bytes) }?;
        Ok(CudaTensor::owned(&self.shared.device, dtype, shape, storage))
    }

    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError> {
        self.check_device(&call.tensor.device, "tensor")?;
        let bytes = first_byte(call.host.values());
        let (starts, run) = call.tensor.runs();
        let size = call.tensor.dtype().bytes();
        for (index, start) in starts.iter().enumerate() {
            let to = call.tensor.address() + (start * size) as u64;
            let from = bytes.wrapping_add(index * run * size).cast();
            // SAFETY: runs cover the tensor, whose shape is the host's, and are waited for below.
            unsafe { self.stream.copy_to_device(to, from, run * size) }?;
        }
        // The values are read before this returns, which copies from pageable memory do not promise.
        self.stream.synchronize()?;
        Ok(())
    }

    fn download(&self, tensor: &CudaTensor) -> Result<HostTensor, EngineError> {
        self.check_device(&tensor.device, "tensor")?;
        let mut host = HostTensor::zeros(tensor.dtype(), tensor.shape())
            .map_err(|_| EngineError::OutOfMemory { bytes: usize::MAX })?;
        let bytes = first_byte_mut(host.values_mut());
        let (starts, run) = tensor.runs();
        let size = tensor.dtype().bytes();
        for (index, start) in starts.iter().enumerate() {
            let from = tensor.address() + (start * size) as u64;
            let to = bytes.wrapping_add(index * run * size).cast();
            // SAFETY: runs cover the tensor, whose shape is the host's, and are waited for below.
            unsafe { self.stream.copy_to_host(to, from, run * size) }?;
        }
        self.stream.synchronize()?;
        Ok(host)
    }

    fn create_cache(&self, layout: CacheLayout) -> Result<CudaCache, EngineError> {
        check_layout(&layout)?;
        let size = layout.dtype().bytes();
        let tokens = layout.pages() * layout.page_size();
        let [first, second] = layout.geometry().row().parts().map(|width| tokens * width * size);
        // The second part begins where it is aligned for every kernel.
        let first = first.next_multiple_of(256);
        let storage = DeviceBuffer::new(&self.shared.device, first + second)?;
        let addresses = [storage.address(), storage.address() + first as u64];
        let heads = layout.geometry().heads();
        let widths = match layout.geometry().row() {
            Row::Separate { d_k, d_v, .. } => [(heads, d_k), (heads, d_v)],
            Row::Tied { s, r, .. } => [(heads, s), (1, r)],
        };
        let part = |which: usize| {
            let (heads, width) = widths[which];
            CachePart::dense(addresses[which], layout.page_size(), heads, width)
        };
        Ok(CudaCache::new(&self.shared.device, layout, [part(0), part(1)], Some(storage)))
    }

    fn plan(&self, call: Planning<'_>) -> Result<CudaPlan, EngineError> {
        self.supports(call.problem)?;
        let planned = call.planned();
        if planned.page_size() > i32::MAX as usize {
            return Err(other(format!("a page of {} tokens", planned.page_size())));
        }
        let (problem, capacity) = (call.problem, *planned.capacity());
        let attention = self.attention(problem, &capacity, planned.page_size())?;
        let mask = mask_code(&planned, call.step.mask());
        let nothing = Bounds { pieces: 0, merges: 0, slots: 0 };
        let sizes = Sizes {
            page_size: planned.page_size(),
            teams: attention.scheduler().map_or(0, |scheduler| scheduler.teams),
            bounds: attention.scheduler().map_or(nothing, |found| found.bounds(&capacity)),
            pairs: problem.rope().map_or(0, |rope| rope.width() / 2),
        };
        let layout = Layout::new(&capacity, &sizes)?;
        let resident = Resident::new(&self.stream, layout, capacity.sequences)?;
        let append = self.shared.kernel(&plain("append", problem.dtype()))?;
        let device = self.shared.device.clone();
        let schedule = Schedule::default();
        let mut plan = CudaPlan { device, planned, resident, attention, append, mask, schedule };
        self.write(&mut plan, call.step)?;
        Ok(plan)
    }

    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError> {
        self.check_device(&call.plan.device, "plan")?;
        call.plan.planned = call.planned();
        self.write(call.plan, call.step)
    }

    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError> {
        self.check_device(&call.plan.device, "plan")?;
        self.check_device(&call.cache.device, "cache")?;
        self.check_tensor(call.first, "first")?;
        if let Some(second) = call.second {
            self.check_tensor(second, "second")?;
        }
        let argument = append_argument(&call);
        let elements: usize = argument
            .part
            .iter()
            .map(|part| (part.heads * part.width).unsigned_abs() as usize)
            .sum();
        let work = call.plan.planned.write_rows() * elements;
        let blocks = self.blocks(work.div_ceil(256));
        // SAFETY: plan, cache and tensors are of this device and outlive the launch, since freeing
        // waits; the call has checked their shapes, and writes name distinct cells.
        unsafe {
            call.plan.append.launch(&self.stream, blocks, [pointer(&argument)], Order::After)
        }?;
        Ok(())
    }

    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Result<(), EngineError> {
        self.check_device(&call.cache.device, "cache")?;
        for copy in call.copies {
            self.copy_one(call.cache, copy)?;
        }
        Ok(())
    }

    fn read_rows(&self, call: ReadRows<'_, Self>) -> Result<[HostTensor; 2], EngineError> {
        self.check_device(&call.cache.device, "cache")?;
        let first = self.read_part(call.cache, call.slots, 0)?;
        Ok([first, self.read_part(call.cache, call.slots, 1)?])
    }

    fn attend(&self, call: Attend<'_, Self>) -> Result<(), EngineError> {
        self.check_device(&call.plan.device, "plan")?;
        self.check_device(&call.cache.device, "cache")?;
        self.check_tensor(call.q, "q")?;
        self.check_tensor(call.o, "o")?;
        if let Some(lse) = call.lse.as_deref() {
            self.check_device(&lse.device, "lse")?;
        }
        let argument = attend_argument(&call);
        match &call.plan.attention {
            Attention::Naive { kernel, blocks } => {
                // SAFETY: plan, cache and tensors are of this device and outlive the launch, since
                // freeing waits; the call has checked their shapes.
                unsafe {
                    kernel.launch(&self.stream, *blocks, [pointer(&argument)], Order::After)
                }?;
            }
            Attention::Tiled(tiled) => {
                if !(call.q.is_aligned() && call.o.is_aligned() && call.cache.is_aligned()) {
                    return Err(other("a tensor that is not aligned to 16 bytes".into()));
                }
                self.launch_tiled(tiled, &argument, call.cache)?;
            }
        }
        Ok(())
    }

    fn merge(&self, call: Merge<'_, Self>) -> Result<(), EngineError> {
        for (tensor, what) in [(&*call.o, "o"), (call.other_o, "other_o")] {
            self.check_tensor(tensor, what)?;
        }
        for (tensor, what) in [(&*call.lse, "lse"), (call.other_lse, "other_lse")] {
            self.check_device(&tensor.device, what)?;
        }
        let part = |o: &CudaTensor, lse: &CudaTensor| abi::Part {
            o: o.address(),
            lse: lse.address(),
            o_row_stride: o.stride(0),
            o_head_stride: o.stride(1),
            lse_row_stride: lse.stride(0),
            lse_head_stride: lse.stride(1),
        };
        let &[rows, h_q, d_v] = call.o.shape() else {
            return Ok(());
        };
        if h_q.max(d_v) > i32::MAX as usize {
            return Err(other(format!("an output of shape {:?}", call.o.shape())));
        }
        let argument = abi::MergeParts {
            into: part(call.o, call.lse),
            other: part(call.other_o, call.other_lse),
            rows: rows as i64,
            h_q: h_q as i32,
            d_v: d_v as i32,
        };
        let kernel = self.shared.kernel(&plain("merge", call.o.dtype()))?;
        let blocks = self.blocks((rows * h_q).div_ceil(8));
        // SAFETY: the tensors are of this device and outlive the launch, since freeing waits; the
        // call has checked their shapes.
        unsafe { kernel.launch(&self.stream, blocks, [pointer(&argument)], Order::After) }?;
        Ok(())
    }

    fn status(&self, plan: &CudaPlan) -> Result<Status, EngineError> {
        self.check_device(&plan.device, "plan")?;
        let mut word = 0_u32;
        let from = plan.resident.address(&plan.resident.layout.status);
        // SAFETY: both are one word, and the copy is waited for below.
        unsafe { self.stream.copy_to_host((&raw mut word).cast(), from, 4) }?;
        self.stream.synchronize()?;
        let bad_page = word & abi::STATUS_BAD_PAGE != 0;
        Ok(if bad_page { Status::PageOutOfRange } else { Status::Ok })
    }

    fn synchronize(&self) -> Result<(), EngineError> {
        self.stream.synchronize()?;
        Ok(())
    }
}

/// Most parts that a sequence is cut into, by blocks that fit the largest devices at a time.
const MAX_PARTS: usize = 4096;

impl CudaBackend {
    /// Blocks for kernels that loop over their work: no more than keep the device busy.
    fn blocks(&self, wanted: usize) -> usize {
        wanted.min(self.shared.device.multiprocessors() * 16)
    }

    /// Maps of states and rope keys; they hold addresses alone, so making them costs the host little
    /// and the device nothing.
    fn tensor_maps(
        &self,
        loads: Loads,
        cache: &CudaCache,
    ) -> Result<[abi::TensorMap; 2], EngineError> {
        let Loads::Boxes { state, rope } = loads else {
            return Ok([NO_MAP; 2]);
        };
        let (layout, widths) = (cache.layout(), cache.part_widths());
        let map = |which: usize, copied| {
            let (heads, width) = widths[which];
            let part = &cache.parts()[which];
            let (pages, page_size) = (layout.pages(), layout.page_size());
            let shape = MapShape::new(part, pages, page_size, heads, width, copied);
            self.shared.device.tensor_map(&shape)
        };
        Ok([map(0, state)?, rope.map_or(Ok(NO_MAP), |copied| map(1, copied))?])
    }

    fn launch_tiled(
        &self,
        tiled: &Tiled,
        argument: &abi::Attend,
        cache: &CudaCache,
    ) -> Result<(), EngineError> {
        let scheduler = &tiled.scheduler;
        let blocks = scheduler.teams * scheduler.team;
        let kernel = &tiled.kernel;
        if let Some(loads) = tiled.loads {
            let maps = self.tensor_maps(loads, cache)?;
            let arguments = [pointer(argument), pointer(&maps[0]), pointer(&maps[1])];
            // SAFETY: as in `attend`; the plan's schedule was made for this grid.
            unsafe { kernel.launch(&self.stream, blocks, arguments, Order::After) }?;
        } else {
            // SAFETY: as above.
            unsafe { kernel.launch(&self.stream, blocks, [pointer(argument)], Order::After) }?;
        }
        if tiled.partials.is_none() {
            return Ok(());
        }
        let merge = abi::Combine {
            out: argument.out,
            schedule: argument.schedule,
            partials: argument.partials,
            group: argument.group,
            h: argument.h,
            o_is_f32: argument.o_is_f32,
            reserved: 0,
        };
        let overlaps = self.shared.device.capability().0 >= 9;
        let order = if overlaps { Order::Overlapping } else { Order::After };
        let blocks = self.shared.device.multiprocessors() * 8;
        // SAFETY: as above; the kernel waits for the attention kernel before it reads.
        unsafe { tiled.combine.launch(&self.stream, blocks, [pointer(&merge)], order) }?;
        Ok(())
    }

    /// One part of the rows at `slots`, `[slots, h, width]` or `[slots, r]`.
    fn read_part(
        &self,
        cache: &CudaCache,
        slots: &[Slot],
        which: usize,
    ) -> Result<HostTensor, EngineError> {
        let (part, dtype) = (cache.parts()[which], cache.layout().dtype());
        let (heads, width) = cache.part_widths()[which];
        let shape = [&[slots.len()], &cache.layout().part_shapes()[which][2..]].concat();
        let mut host = HostTensor::zeros(dtype, &shape)
            .map_err(|_| EngineError::OutOfMemory { bytes: usize::MAX })?;
        let bytes = first_byte_mut(host.values_mut());
        let size = dtype.bytes();
        for (index, slot) in slots.iter().enumerate() {
            let row = part.row(slot.page.0 as usize, slot.row, size);
            for head in 0..heads {
                let from = row + (head * part.head_stride * size) as u64;
                let to = bytes.wrapping_add((index * heads + head) * width * size).cast();
                // SAFETY: the call has checked the slots, the tensor has a place for each, and the
                // copies are waited for below.
                unsafe { self.stream.copy_to_host(to, from, width * size) }?;
            }
        }
        self.stream.synchronize()?;
        Ok(host)
    }

    fn copy_one(&self, cache: &CudaCache, copy: &RowCopy) -> Result<(), EngineError> {
        let size = cache.layout().dtype().bytes();
        for (part, (heads, width)) in cache.parts().iter().zip(cache.part_widths()) {
            if width == 0 || copy.rows == 0 {
                continue;
            }
            // One rectangle a head, or one for all where they lie side by side.
            let dense = heads == 1 || part.head_stride == width;
            let (blocks, width) = if dense { (1, heads * width) } else { (heads, width) };
            for block in 0..blocks {
                let offset = (block * part.head_stride * size) as u64;
                let row = |slot: Slot| part.row(slot.page.0 as usize, slot.row, size) + offset;
                let pitch = part.token_stride * size;
                let (from, to) = (row(copy.from), row(copy.to));
                let rectangle = rectangle(from, to, pitch, width * size, copy.rows);
                // SAFETY: the call has checked that both runs lie in pages of the cache.
                unsafe { self.stream.copy_2d(&rectangle) }?;
            }
        }
        Ok(())
    }
}

fn first_byte(values: &Values) -> *const u8 {
    match values {
        Values::F32(values) => values.as_ptr().cast(),
        Values::F16(values) => values.as_ptr().cast(),
        Values::Bf16(values) => values.as_ptr().cast(),
    }
}

fn first_byte_mut(values: ValuesMut<'_>) -> *mut u8 {
    match values {
        ValuesMut::F32(values) => values.as_mut_ptr().cast(),
        ValuesMut::F16(values) => values.as_mut_ptr().cast(),
        ValuesMut::Bf16(values) => values.as_mut_ptr().cast(),
    }
}

fn rectangle(from: u64, to: u64, pitch: usize, width_bytes: usize, height: usize) -> Copy2d {
    let nothing = std::ptr::null_mut();
    // A single row has no pitch to speak of, and one cached token may be a whole page apart.
    let pitch = if height == 1 { width_bytes } else { pitch };
    Copy2d {
        from_x: 0,
        from_y: 0,
        from_memory: MEMORY_DEVICE,
        from_host: nothing,
        from_device: from,
        from_array: nothing,
        from_pitch: pitch,
        to_x: 0,
        to_y: 0,
        to_memory: MEMORY_DEVICE,
        to_host: nothing,
        to_device: to,
        to_array: nothing,
        to_pitch: pitch,
        width_bytes,
        height,
    }
}

fn append_argument(call: &Append<'_, CudaBackend>) -> abi::Append {
    let parts = call.cache.parts();
    let widths = call.cache.part_widths();
    let part = |which: usize, tensor: Option<&CudaTensor>| {
        let (heads, width) = widths[which];
        tensor.filter(|_| width > 0).map_or_else(abi::NewRows::default, |tensor| abi::NewRows {
            data: tensor.address(),
            cells: parts[which].address,
            row_stride: tensor.stride(0),
            // Rope keys are [writes, r]: one head.
            head_stride: if tensor.shape().len() == 3 { tensor.stride(1) } else { 0 },
            page_stride: parts[which].page_stride as i64,
            token_stride: parts[which].token_stride as i64,
            cell_head_stride: if heads > 1 { parts[which].head_stride as i64 } else { 0 },
            heads: heads as i32,
            width: width as i32,
        })
    };
    let problem = call.plan.planned.problem();
    let rotated = match problem.geometry().row() {
        _ if !call.rotating => -1,
        Row::Separate { .. } => 0,
        Row::Tied { .. } => 1,
    };
    let interleaved = problem.rope().is_some_and(|rope| rope.style() == RopeStyle::Interleaved);
    let (resident, layout) = (&call.plan.resident, &call.plan.resident.layout);
    abi::Append {
        part: [part(0, Some(call.first)), part(1, call.second)],
        writes: resident.address(&layout.writes),
        write_count: resident.address(&layout.write_count),
        turns: resident.address(&layout.turns),
        status: resident.address(&layout.status),
        pages: call.cache.layout().pages() as i32,
        rotated,
        interleaved: i32::from(interleaved),
        reserved: 0,
    }
}

fn attend_argument(call: &Attend<'_, CudaBackend>) -> abi::Attend {
    let plan = &*call.plan;
    let planned: &Planned = &plan.planned;
    let (problem, geometry) = (planned.problem(), planned.problem().geometry());
    let [state, rope] = call.cache.parts();
    let lse = call.lse.as_deref();
    abi::Attend {
        q: abi::Queries {
            data: call.q.address(),
            row_stride: call.q.stride(0),
            head_stride: call.q.stride(1),
        },
        state: state.to_abi(),
        rope: rope.to_abi(),
        out: abi::Outputs {
            o: call.o.address(),
            lse: lse.map_or(0, CudaTensor::address),
            o_row_stride: call.o.stride(0),
            o_head_stride: call.o.stride(1),
            lse_row_stride: lse.map_or(0, |lse| lse.stride(0)),
            lse_head_stride: lse.map_or(0, |lse| lse.stride(1)),
        },
        batch: batch_argument(plan, call.cache),
        schedule: schedule_argument(plan),
        partials: partials_argument(plan),
        status: plan.resident.address(&plan.resident.layout.status),
        scale_log2: (problem.scale() * std::f64::consts::LOG2_E) as f32,
        h_q: geometry.h_q() as i32,
        h: geometry.heads() as i32,
        group: geometry.group() as i32,
        o_is_f32: i32::from(problem.output() == Dtype::F32),
        reserved: 0,
    }
}

fn batch_argument(plan: &CudaPlan, cache: &CudaCache) -> abi::Batch {
    let (resident, layout) = (&plan.resident, &plan.resident.layout);
    abi::Batch {
        q_starts: resident.address(&layout.q_starts),
        kv_lens: resident.address(&layout.kv_lens),
        page_table: resident.address(&layout.page_table),
        tree: resident.address(&layout.tree),
        page_table_stride: layout.max_pages as i64,
        tree_stride: layout.tree_words as i64,
        batch: plan.planned.capacity().sequences as i32,
        pages: cache.layout().pages() as i32,
        page_size: plan.planned.page_size() as i32,
        mask: plan.mask,
    }
}

fn schedule_argument(plan: &CudaPlan) -> abi::Schedule {
    let Attention::Tiled(Tiled { scheduler, item_heads, .. }) = &plan.attention else {
        return abi::Schedule::default();
    };
    let (resident, layout) = (&plan.resident, &plan.resident.layout);
    abi::Schedule {
        team_pieces: resident.address(&layout.team_pieces),
        pieces: resident.address(&layout.pieces),
        merge_counts: resident.address(&layout.merge_counts),
        merges: resident.address(&layout.merges),
        teams: scheduler.teams as i32,
        team: scheduler.team as i32,
        head_blocks: scheduler.head_blocks as i32,
        item_heads: *item_heads as i32,
        item_rows: scheduler.item_rows as i32,
        merge_capacity: layout.max_merges as i32,
    }
}

fn partials_argument(plan: &CudaPlan) -> abi::Partials {
    match &plan.attention {
        Attention::Tiled(Tiled { partials: Some((o, lse)), .. }) => {
            abi::Partials { o: o.address(), lse: lse.address() }
        }
        _ => abi::Partials::default(),
    }
}

/// The unit of schedules is a whole number of every kernel's steps.
const _: () = assert!(TILE_TOKENS.is_multiple_of(SMALLEST_TILE));
