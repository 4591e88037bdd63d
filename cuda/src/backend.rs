//! The engine: [`Backend`] on a CUDA device.

use crate::abi;
use crate::abi::TILE_TOKENS;
use crate::arguments;
use crate::cache::{CachePart, CudaCache};
use crate::device::Device;
use crate::disk::DiskCache;
use crate::error::{ENGINE, failed, unavailable};
use crate::family::{self, Choice, Kernels, plain};
use crate::jit::{Instance, architecture, build};
use crate::launch::{Kernel, Order, pointer};
use crate::memory::DeviceBuffer;
use crate::nvrtc::Compiler;
use crate::plan::{Attention, CudaPlan, mask_code};
use crate::resident::{Layout, Resident, Sizes};
use crate::schedule::{Bounds, Schedule};
use crate::stream::Stream;
use crate::tensor::CudaTensor;
use grouped_attention::{
    Append, Arithmetic, Attend, Backend, CacheLayout, CopyRows, Dtype, EngineError, Extent,
    HostTensor, Identity, Merge, Planning, Problem, ReadRows, Status, Step, TensorInfo,
    Unsupported, Update, Upload,
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
/// Most parts that a sequence is cut into, by blocks that fit the largest devices at a time.
const MAX_PARTS: usize = 4096;

/// An attention engine on one CUDA device and one stream.
///
/// Work is asynchronous on the stream. Engines are cheap to [`clone`](Clone::clone) and to put
/// [on another stream](Self::on_stream); all that come from one share its compiled kernels, and take each
/// other's tensors, caches and plans. What another engine made, even on the same device, is
/// [`EngineError::Foreign`]: nothing orders the two streams.
#[derive(Clone, Debug)]
pub struct CudaBackend {
    pub(crate) shared: Arc<Shared>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) kernels: Kernels,
}

/// What the engines of one device share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) device: Arc<Device>,
    compiler: &'static Compiler,
    disk: DiskCache,
    loaded: Mutex<HashMap<Instance, Arc<Kernel>>>,
}

impl Shared {
    /// A kernel, compiled and loaded if this is its first use.
    pub(crate) fn kernel(&self, choice: &Choice) -> Result<Arc<Kernel>, EngineError> {
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

    /// Number of the device.
    pub fn ordinal(&self) -> usize {
        self.shared.device.ordinal()
    }

    /// The kernel that attends with a plan, and the constants that it was compiled with, as
    /// `tied_sm90 GA_N=256 GA_R=64`; `None` for a plan of another engine.
    pub fn kernel(&self, plan: &CudaPlan) -> Option<String> {
        let attention = match &plan.attention {
            Attention::Naive { kernel, .. } => kernel,
            Attention::Tiled(tiled) => &tiled.kernel,
        };
        let loaded = self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let found = loaded.iter().find(|(_, kernel)| Arc::ptr_eq(kernel, attention));
        found.map(|(instance, _)| instance.to_string())
    }

    pub(crate) fn check_device(
        &self,
        device: &Arc<Device>,
        what: &'static str,
    ) -> Result<(), EngineError> {
        // Every engine opens its device anew.
        let own = Arc::ptr_eq(device, &self.shared.device);
        if own { Ok(()) } else { Err(EngineError::Foreign { what }) }
    }

    fn check_tensor(&self, tensor: &CudaTensor, what: &'static str) -> Result<(), EngineError> {
        self.check_device(&tensor.device, what)?;
        if tensor.has_dense_rows() {
            return Ok(());
        }
        Err(other(format!("a gap between the elements of a row of {what}")))
    }

    /// A plan of this engine whose tables are those of its last step.
    pub(crate) fn check_plan(&self, plan: &CudaPlan) -> Result<(), EngineError> {
        self.check_device(&plan.device, "plan")?;
        if plan.written { Ok(()) } else { Err(failed("the plan's last update failed")) }
    }

    fn write(&self, plan: &mut CudaPlan, step: &Step) -> Result<(), EngineError> {
        plan.written = false;
        if let Some(scheduler) = plan.attention.scheduler() {
            scheduler.schedule(step.spans(), &mut plan.schedule);
        }
        let rope = plan.planned.problem().rope();
        plan.mask = mask_code(&plan.planned, step.mask());
        plan.resident.write(&self.stream, step, &plan.schedule, rope, plan.mask)?;
        plan.written = true;
        Ok(())
    }
}

pub(crate) fn other(what: String) -> EngineError {
    Unsupported::Other { what }.into()
}

pub(crate) fn check_layout(layout: &CacheLayout) -> Result<(), EngineError> {
    if layout.page_size() > i32::MAX as usize {
        return Err(other(format!("a page of {} tokens", layout.page_size())));
    }
    Ok(())
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
        Ok(())
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
        let bytes = shape
            .iter()
            .try_fold(dtype.bytes(), |bytes, &extent| bytes.checked_mul(extent))
            .filter(|&bytes| bytes <= isize::MAX as usize)
            .ok_or(too_large)?;
        let storage = DeviceBuffer::new(&self.shared.device, bytes)?;
        // SAFETY: the buffer has these bytes.
        unsafe { self.stream.clear(storage.address(), bytes) }?;
        Ok(CudaTensor::owned(&self.shared.device, dtype, shape, storage))
    }

    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError> {
        self.check_device(&call.tensor.device, "tensor")?;
        self.copy_in(call.tensor, call.host)
    }

    fn download(&self, tensor: &CudaTensor) -> Result<HostTensor, EngineError> {
        self.check_device(&tensor.device, "tensor")?;
        self.copy_out(tensor)
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
        let part = |which: usize| {
            let (heads, width) = layout.geometry().row().part_heads()[which];
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
        let replayed = planned.is_replayed() && attention.scheduler().is_some();
        let scheduling = replayed.then(|| self.shared.kernel(&family::schedule())).transpose()?;
        let mut plan = CudaPlan {
            device,
            planned,
            resident,
            attention,
            append,
            scheduling,
            mask,
            schedule,
            written: false,
        };
        self.write(&mut plan, call.step)?;
        Ok(plan)
    }

    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError> {
        self.check_device(&call.plan.device, "plan")?;
        call.plan.planned = call.planned();
        self.write(call.plan, call.step)
    }

    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError> {
        self.check_plan(call.plan)?;
        self.check_device(&call.cache.device, "cache")?;
        self.check_tensor(call.first, "first")?;
        if let Some(second) = call.second {
            self.check_tensor(second, "second")?;
        }
        let argument = arguments::append(&call);
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
        self.check_plan(call.plan)?;
        self.check_device(&call.cache.device, "cache")?;
        self.check_tensor(call.q, "q")?;
        self.check_tensor(call.o, "o")?;
        if let Some(lse) = call.lse.as_deref() {
            self.check_device(&lse.device, "lse")?;
        }
        let argument = arguments::attend(&call);
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
                self.launch_tiled(call.plan, tiled, &argument, call.cache)?;
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
        if word & abi::STATUS_OVER_CAPACITY != 0 {
            return Err(failed("lengths on the device are beyond the plan's capacity"));
        }
        let bad_page = word & abi::STATUS_BAD_PAGE != 0;
        Ok(if bad_page { Status::PageOutOfRange } else { Status::Ok })
    }

    fn synchronize(&self) -> Result<(), EngineError> {
        self.stream.synchronize()?;
        Ok(())
    }
}

impl CudaBackend {
    /// Blocks for kernels that loop over their work: no more than keep the device busy.
    fn blocks(&self, wanted: usize) -> usize {
        wanted.min(self.shared.device.multiprocessors() * 16)
    }
}

/// The unit of schedules is a whole number of every kernel's steps.
const _: () = assert!(TILE_TOKENS.is_multiple_of(SMALLEST_TILE));
