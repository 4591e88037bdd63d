//! The engines that compute on the processor: the reference and the cpu engine.

use crate::check::Seeds;
use crate::measure::{Measured, median};
use crate::options::{Engine, Options};
use crate::rig::{Outcome, Rig, Stage};
use crate::workload::Workload;
use grouped_attention::{
    AnyBackend, AnyCache, AnyPlan, Append, Backend, Error, Mask, Planning, Reference, Step, Upload,
    Write,
};
use grouped_attention_benches::results::Ceilings;
use grouped_attention_cpu::ceiling::{Matrix, Memory, Reading, multiply_adds};
use grouped_attention_cpu::{CpuBackend, Kernel};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;
use std::time::Instant;

/// Rows appended at a time.
const CHUNK: usize = 4096;
/// Samples of the machine's rates before the first workload, and at most so many among a run's calls.
const READS: usize = 5;
/// Shortest sample: several calls are timed together where one is faster than clocks are good for.
const SAMPLE_SECONDS: f64 = 100e-6;

pub(crate) struct Host {
    engine: AnyBackend,
    pool: Arc<ThreadPool>,
    memory: Memory,
    arithmetic: Arithmetic,
}

/// What the engine multiplies with.
enum Arithmetic {
    Matrix(Matrix),
    /// FLOP/s of multiply-adds, measured once: a sample takes longer than most calls.
    MultiplyAdds(f64),
}

/// Rates of the machine, sample by sample.
#[derive(Default)]
struct Samples {
    plain: Vec<f64>,
    prefetching: Vec<f64>,
    matrix: Vec<f64>,
}

impl Host {
    pub(crate) fn new(options: &Options) -> Outcome<Host> {
        let pool = Arc::new(ThreadPoolBuilder::new().num_threads(options.threads).build()?);
        let engine: AnyBackend = if options.backend == Engine::Reference {
            Box::new(Reference::new())
        } else {
            let builder = CpuBackend::builder().pool(Arc::clone(&pool));
            let builder = match &options.kernel {
                Some(name) => builder.kernel(name.parse::<Kernel>()?),
                None => builder,
            };
            Box::new(builder.build()?)
        };
        let memory = Memory::new(Arc::clone(&pool))?;
        let arithmetic = match Matrix::new(Arc::clone(&pool)) {
            Some(matrix) => Arithmetic::Matrix(matrix),
            None => Arithmetic::MultiplyAdds(multiply_adds(&pool)?),
        };
        Ok(Host { engine, pool, memory, arithmetic })
    }

    fn sample(&self, samples: &mut Samples, reading: bool) {
        if reading {
            samples.plain.push(self.memory.read(Reading::Plain));
            samples.prefetching.push(self.memory.read(Reading::Prefetching));
        }
        samples.matrix.push(match &self.arithmetic {
            Arithmetic::Matrix(matrix) => matrix.rate(),
            Arithmetic::MultiplyAdds(rate) => *rate,
        });
    }

    /// Times of so many calls, and the machine's rates between them.
    fn timed(
        &self,
        stage: &mut Stage<'_, AnyBackend>,
        options: &Options,
    ) -> Result<Measured, Error> {
        let start = Instant::now();
        stage.attend(0)?;
        let once = start.elapsed().as_secs_f64();
        let calls = (SAMPLE_SECONDS / once).ceil().max(1.0) as usize;
        let (mut samples, mut next) = (Samples::default(), 1);
        let mut runs = Vec::new();
        for _ in 0..options.runs.get() {
            let mut times = Vec::new();
            for sample in 0..options.repeats.get() {
                let start = Instant::now();
                for _ in 0..calls {
                    stage.attend(next)?;
                    next += 1;
                }
                times.push(start.elapsed().as_secs_f64() / calls as f64);
                // The machine's rates change from one moment to the next, so they are read in
                // between.
                if sample % options.repeats.get().div_ceil(READS) == 0 {
                    self.sample(&mut samples, options.cold > 0);
                }
            }
            runs.push(times);
        }
        Ok(Measured { runs, ceilings: samples.rates() })
    }
}

impl Samples {
    fn rates(&self) -> Ceilings {
        let rate = |samples: &[f64]| (!samples.is_empty()).then(|| median(samples));
        Ceilings {
            read: rate(&self.plain),
            read_prefetched: rate(&self.prefetching),
            copy: None,
            matrix: rate(&self.matrix),
        }
    }
}

impl Rig for Host {
    type Engine = AnyBackend;

    fn engine(&self) -> &AnyBackend {
        &self.engine
    }

    fn fill(&self, workload: &Workload, seeds: &Seeds) -> Outcome<AnyCache> {
        self.pool.install(|| filled(&self.engine, workload, seeds)).map_err(Into::into)
    }

    fn caches(&self, workload: &Workload, options: &Options) -> usize {
        (options.cold << 20).div_ceil(workload.cache_bytes().max(1.0) as usize).max(1)
    }

    fn time(
        &self,
        stage: &mut Stage<'_, AnyBackend>,
        workload: &Workload,
        options: &Options,
    ) -> Outcome<Measured> {
        if workload.graph {
            return Err("--graph is for the cuda engine".into());
        }
        // Called by a thread of the pool, as by an engine that owns one: another thread would sleep meanwhile, and every
        // call wait for it and one of these to wake up.
        Ok(self.pool.install(|| self.timed(stage, options))?)
    }

    fn ceilings(&self) -> Outcome<Ceilings> {
        let mut samples = Samples::default();
        (0..READS).for_each(|_| self.sample(&mut samples, true));
        Ok(samples.rates())
    }

    fn kernel(&self, _plan: &AnyPlan) -> String {
        self.engine.identity().kernel
    }
}

/// A cache whose every cell of the workload's tables has been appended.
fn filled<B: Backend>(engine: &B, workload: &Workload, seeds: &Seeds) -> Result<B::Cache, Error> {
    let (problem, step) = (workload.problem()?, workload.step()?);
    let mut cache = engine.create_cache(workload.layout()?)?;
    let writes: Vec<Write> = (step.spans().iter())
        .flat_map(|span| (0..span.kv_len).map(|position| (step.slot(span, position), position)))
        .map(|(slot, position)| Write { slot, position: position as i64 })
        .collect();
    let shapes = workload.layout()?.part_shapes();
    for writes in writes.chunks(CHUNK) {
        let part = Step::new(workload.page_size, &[], Mask::Causal)?.writing(writes.to_vec())?;
        let plan = engine.plan(Planning::new(&problem, &part))?;
        let rows: Vec<usize> = writes.iter().map(|write| workload.cell(write.slot)).collect();
        let tensor = |which: usize| -> Result<B::Tensor, Error> {
            let shape = [&[rows.len()], &shapes[which][2..]].concat();
            let host = seeds.parts[which].rows(workload.dtype, &shape, &rows)?;
            let mut tensor = engine.allocate(host.dtype(), host.shape())?;
            engine.upload(Upload::new(&mut tensor, &host)?)?;
            Ok(tensor)
        };
        let (first, second) = (tensor(0)?, tensor(1)?);
        engine.append(Append::new(&plan, &mut cache, &first, Some(&second))?)?;
    }
    Ok(cache)
}

/// What an engine computes for a workload over the cache of index 0.
#[cfg(test)]
pub(crate) fn attended<B: Backend>(
    engine: &B,
    workload: &Workload,
) -> Outcome<grouped_attention::HostTensor> {
    let cache = filled(engine, workload, &Seeds::of(0))?;
    let mut stage = Stage::new(engine, workload, vec![cache])?;
    stage.attend(0)?;
    Ok(engine.download(&stage.o)?)
}
