//! The engine.

use crate::append::append;
use crate::attend::attend;
use crate::cache::CpuCache;
use crate::kernel::{Instructions, Kernel, best, choose};
use crate::lanes::EXP_ERROR;
use crate::merge::merge;
use crate::plan::CpuPlan;
use crate::schedule::BLOCK;
use crate::tensor::CpuTensor;
use crate::threads::Threads;
use grouped_attention::{
    Append, Arithmetic, Attend, Backend, CacheLayout, CopyRows, Dtype, EngineError, HostTensor,
    Identity, Merge, Planning, Problem, ReadRows, Status, Unsupported, Update, Upload,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;

/// Decode attention on the processor's cores.
///
/// ```
/// use grouped_attention::Backend;
/// use grouped_attention_cpu::CpuBackend;
/// let engine = CpuBackend::new();
/// assert_eq!(engine.identity().name, "cpu");
/// ```
#[derive(Clone, Debug)]
pub struct CpuBackend {
    kernel: Kernel,
    instructions: Instructions,
    threads: Threads,
}

impl Default for CpuBackend {
    fn default() -> CpuBackend {
        CpuBackend::new()
    }
}

impl CpuBackend {
    /// An engine with the best kernel the machine has, on the rayon pool it is called from: the
    /// one whose thread calls, or the global one.
    ///
    /// The environment variable `GROUPED_ATTENTION_CPU_KERNEL` may name another kernel. One that
    /// does not exist or that the machine lacks is warned of in `tracing` and not used;
    /// [`builder`](Self::builder) makes it an error.
    pub fn new() -> CpuBackend {
        CpuBackend::builder().build().unwrap_or_else(|error| {
            tracing::warn!(%error, "the best kernel runs instead");
            let (kernel, instructions) = best();
            CpuBackend { kernel, instructions, threads: Threads::Current }
        })
    }

    /// An engine that runs on this pool, otherwise as [`new`](Self::new).
    pub fn with_pool(pool: Arc<ThreadPool>) -> CpuBackend {
        CpuBackend { threads: Threads::Pool(pool), ..CpuBackend::new() }
    }

    /// An engine with a pool of its own, of `threads` threads; 0 means one per core. Otherwise as
    /// [`builder`](Self::builder).
    ///
    /// # Errors
    /// The machine refuses the threads; the environment names a kernel that cannot run.
    pub fn with_threads(threads: usize) -> Result<CpuBackend, EngineError> {
        CpuBackend::builder().threads(threads).build()
    }

    /// An engine whose kernel or threads are chosen.
    pub fn builder() -> CpuBackendBuilder {
        CpuBackendBuilder::default()
    }

    /// The kernel that was chosen.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }
}

/// Choices for a [`CpuBackend`].
#[derive(Clone, Debug, Default)]
pub struct CpuBackendBuilder {
    kernel: Option<Kernel>,
    threads: Option<Choice>,
}

#[derive(Clone, Debug)]
enum Choice {
    Pool(Arc<ThreadPool>),
    Count(usize),
}

impl CpuBackendBuilder {
    /// Runs this kernel, and none other.
    pub fn kernel(self, kernel: Kernel) -> CpuBackendBuilder {
        CpuBackendBuilder { kernel: Some(kernel), ..self }
    }

    /// Runs on this pool.
    pub fn pool(self, pool: Arc<ThreadPool>) -> CpuBackendBuilder {
        CpuBackendBuilder { threads: Some(Choice::Pool(pool)), ..self }
    }

    /// Runs on a pool of its own, of `threads` threads; 0 means one per core.
    pub fn threads(self, threads: usize) -> CpuBackendBuilder {
        CpuBackendBuilder { threads: Some(Choice::Count(threads)), ..self }
    }

    /// The engine.
    ///
    /// # Errors
    /// A kernel that this machine cannot run, also where none was chosen and
    /// `GROUPED_ATTENTION_CPU_KERNEL` names it; threads that it refuses.
    pub fn build(self) -> Result<CpuBackend, EngineError> {
        let unavailable = |reason| EngineError::Unavailable { engine: "cpu", reason };
        let (kernel, instructions) = choose(self.kernel).map_err(unavailable)?;
        let threads = match self.threads {
            None => Threads::Current,
            Some(Choice::Pool(pool)) => Threads::Pool(pool),
            Some(Choice::Count(threads)) => {
                let pool = ThreadPoolBuilder::new().num_threads(threads).build();
                Threads::Pool(Arc::new(pool.map_err(|error| unavailable(error.to_string()))?))
            }
        };
        Ok(CpuBackend { kernel, instructions, threads })
    }
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Cache = CpuCache;
    type Plan = CpuPlan;

    fn identity(&self) -> Identity {
        Identity {
            name: "cpu",
            kernel: self.kernel.to_string(),
            device: format!("{}, {} threads", crate::machine::name(), self.threads.count()),
        }
    }

    fn supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        match (problem.extension(), problem.dtype()) {
            (Some(extension), _) => Err(Unsupported::Extension(extension)),
            (None, Dtype::F32 | Dtype::F16 | Dtype::Bf16) => Ok(()),
            (None, dtype) => Err(Unsupported::Dtype { dtype }),
        }
    }

    fn arithmetic(&self, problem: &Problem) -> Arithmetic {
        // Every block but a part's last is whole, each part has a block at least, and joining a
        // part is one more update: at most twice as many updates as blocks.
        Arithmetic {
            product: if self.instructions.fused() { 0.0 } else { Dtype::F32.unit_roundoff() },
            // The exponential and the matrix library's tails may flush what is subnormal.
            flushes_subnormals: true,
            batch_invariant: problem.is_batch_invariant(),
            probability: match self.instructions.rounds_probabilities(problem.dtype()) {
                true => Dtype::Bf16.unit_roundoff(),
                false => 0.0,
            },
            ..Arithmetic::f32(EXP_ERROR, BLOCK / 2)
        }
    }

    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<CpuTensor, EngineError> {
        CpuTensor::zeroed(dtype, shape)
    }

    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError> {
        call.tensor.upload(call.host);
        Ok(())
    }

    fn download(&self, tensor: &CpuTensor) -> Result<HostTensor, EngineError> {
        Ok(tensor.download())
    }

    fn create_cache(&self, layout: CacheLayout) -> Result<CpuCache, EngineError> {
        CpuCache::zeroed(layout)
    }

    fn plan(&self, call: Planning<'_>) -> Result<CpuPlan, EngineError> {
        self.supports(call.problem)?;
        CpuPlan::new(&call, self.instructions, self.threads.count())
    }

    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError> {
        CpuPlan::update(call);
        Ok(())
    }

    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError> {
        append(call);
        Ok(())
    }

    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Result<(), EngineError> {
        call.cache.copy_rows(call.copies);
        Ok(())
    }

    fn read_rows(&self, call: ReadRows<'_, Self>) -> Result<[HostTensor; 2], EngineError> {
        Ok(call.cache.read_rows(call.slots))
    }

    fn attend(&self, call: Attend<'_, Self>) -> Result<(), EngineError> {
        attend(self.instructions, &self.threads, call);
        Ok(())
    }

    fn merge(&self, call: Merge<'_, Self>) -> Result<(), EngineError> {
        merge(call);
        Ok(())
    }

    fn status(&self, _plan: &CpuPlan) -> Result<Status, EngineError> {
        // Page ids were checked on the host, and this engine reads those very ones.
        Ok(Status::Ok)
    }

    fn synchronize(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
