//! The CUDA engine on a stream of the bench's own, timed by the device's events.

mod blas;
mod clock;
mod device;

use crate::check::Seeds;
use crate::measure::Measured;
use crate::options::Options;
use crate::random::Random;
use crate::rig::{Outcome, Rig, Stage};
use crate::workload::Workload;
use device::Device;
use grouped_attention::{Backend, CacheInfo};
use grouped_attention_benches::results::Ceilings;
use grouped_attention_cuda::{CudaBackend, CudaCache, CudaPlan};

/// Caches that a graph attends in turn are larger together than any device's own cache.
const ROTATION_BYTES: usize = 256 << 20;
/// Calls of attention in a graph at least, so that its launch weighs little.
const GRAPH_CALLS: usize = 16;
/// Calls before the first that is timed: clocks rise, and power settles.
const WARM_UP: usize = 10;

pub(crate) struct Gpu {
    engine: CudaBackend,
    device: Device,
    ceilings: Ceilings,
}

impl Gpu {
    pub(crate) fn new(options: &Options) -> Outcome<Gpu> {
        // The engine looks for the driver first, and says what is missing.
        let engine = CudaBackend::new(options.device)?;
        let device = Device::new(options.device)?;
        // SAFETY: the stream was created in the device's primary context; `engine` is dropped before
        // `device`, which holds it, and so are all plans, which borrow the rig.
        let engine = unsafe { engine.on_stream(device.stream_handle()) };
        let ceilings = device.ceilings()?;
        Ok(Gpu { engine, device, ceilings })
    }
}

impl Rig for Gpu {
    type Engine = CudaBackend;

    fn engine(&self) -> &CudaBackend {
        &self.engine
    }

    fn fill(&self, workload: &Workload, seeds: &Seeds) -> Outcome<CudaCache> {
        let cache = self.engine.create_cache(workload.layout()?)?;
        let layout = cache.layout();
        let shapes = layout.part_shapes();
        for ((part, shape), random) in cache.parts().iter().zip(shapes).zip(seeds.parts) {
            let Random { seed } = random;
            let elements: usize = shape.iter().product();
            // SAFETY: a cache that the engine makes is dense, so the part has these elements at its
            // address, in the cache's format.
            unsafe { self.device.fill(part.address, elements, seed, layout.dtype()) }?;
        }
        Ok(cache)
    }

    fn caches(&self, workload: &Workload, _options: &Options) -> usize {
        if !workload.graph {
            return 1;
        }
        1 + ROTATION_BYTES.div_ceil(workload.cache_bytes().max(1.0) as usize)
    }

    fn time(
        &self,
        stage: &mut Stage<'_, CudaBackend>,
        workload: &Workload,
        options: &Options,
    ) -> Outcome<Measured> {
        let (repeats, count) = (options.repeats.get(), stage.caches.len());
        let mut runs = Vec::new();
        if workload.graph {
            let calls = GRAPH_CALLS.next_multiple_of(count);
            let graph = self.device.record(|| {
                (0..calls).try_for_each(|call| stage.attend(call)).map_err(Into::into)
            })?;
            for _ in 0..WARM_UP {
                graph.launch()?;
            }
            for _ in 0..options.runs.get() {
                let times = self.device.times(repeats, || Ok(()), || Ok(graph.launch()?))?;
                runs.push(times.into_iter().map(|time| time / calls as f64).collect());
            }
        } else {
            let flush = || self.device.flush(options.flush);
            self.device.times(WARM_UP, flush, || Ok(stage.attend(0)?))?;
            for _ in 0..options.runs.get() {
                runs.push(self.device.times(repeats, flush, || Ok(stage.attend(0)?))?);
            }
        }
        Ok(Measured { runs, ceilings: self.ceilings })
    }

    fn ceilings(&self) -> Outcome<Ceilings> {
        self.device.ceilings()
    }

    fn kernel(&self, plan: &CudaPlan) -> String {
        self.engine.kernel(plan).unwrap_or_else(|| "unknown".into())
    }
}
