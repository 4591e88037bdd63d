//! What the machine itself can do, measured: the ceilings that an engine's figures stand beside.

use crate::buffer::Buffer;
use crate::kernel::{Instructions, choose};
use crate::lanes::{Job, Lanes};
use crate::threads::Threads;
use grouped_attention::EngineError;
use rayon::ThreadPool;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Loads alone; the processor's own prefetchers do what they can.
    Plain,
    /// Each load asks for the cache line 4 KiB ahead.
    Prefetching,
}

/// Memory to read, larger than any cache, so that reads of it come from DRAM.
#[derive(Debug)]
pub struct Memory {
    buffer: Buffer,
    pool: Arc<ThreadPool>,
    instructions: Instructions,
}

/// Bytes that are read: far past last-level caches.
const BYTES: usize = 768 << 20;

impl Memory {
    /// Takes and touches the memory, to be read by all threads of a pool.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(pool: Arc<ThreadPool>) -> Result<Memory, EngineError> {
        let mut buffer = Buffer::zeroed::<f32>(BYTES / size_of::<f32>())?;
        // Pages that were never written share one page of zeros.
        buffer.as_mut_slice::<f32>().iter_mut().step_by(1024).for_each(|x| *x = 1.0);
        let (_, instructions) =
            choose(None).map_err(|reason| EngineError::Unavailable { engine: "cpu", reason })?;
        Ok(Memory { buffer, pool, instructions })
    }

    /// Reads all of it once and answers bytes per second.
    pub fn read(&self, reading: Reading) -> f64 {
        let threads = self.pool.current_num_threads();
        let all = self.buffer.as_slice::<f32>();
        let mut shares: Vec<&[f32]> = all.chunks(all.len().div_ceil(threads)).collect();
        let start = Instant::now();
        Threads::Pool(Arc::clone(&self.pool)).each(&mut shares, |share| {
            self.instructions.run(Sum { share, reading });
        });
        BYTES as f64 / start.elapsed().as_secs_f64()
    }
}

/// Products of bf16: of tiles whose operands stay in the first-level cache, or of pairs between registers
/// where that is what the engine chooses.
pub struct Matrix {
    multiply: Box<dyn Fn() -> f64 + Send + Sync>,
    pool: Arc<ThreadPool>,
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matrix").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl Matrix {
    /// `None` where the engine would multiply neither tiles nor pairs.
    pub fn new(pool: Arc<ThreadPool>) -> Option<Matrix> {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use crate::{amx::Amx, matrix, pairs::Pairs};
            let multiply: Box<dyn Fn() -> f64 + Send + Sync> = match Amx::detect() {
                Ok(amx) => Box::new(move || matrix::multiply(amx, 1000)),
                Err(_) => {
                    let pairs = Pairs::detect().filter(|_| Pairs::pay())?;
                    // SAFETY: `pairs` proves the features.
                    Box::new(move || unsafe { pairs.multiply(10_000) })
                }
            };
            Some(Matrix { multiply, pool })
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            let _ = pool;
            None
        }
    }

    /// Multiplies on all threads of the pool at once, for a few milliseconds, and answers operations
    /// per second.
    pub fn rate(&self) -> f64 {
        let mut rates = vec![0.0; self.pool.current_num_threads()];
        Threads::Pool(Arc::clone(&self.pool)).each(&mut rates, |rate| {
            let start = Instant::now();
            let mut operations = 0.0;
            while start.elapsed() < SAMPLE {
                operations += (self.multiply)();
            }
            *rate = operations / start.elapsed().as_secs_f64();
        });
        rates.iter().sum()
    }
}

/// How long [`Matrix::rate`] multiplies.
const SAMPLE: Duration = Duration::from_millis(3);

struct Sum<'a> {
    share: &'a [f32],
    reading: Reading,
}

impl Job for Sum<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        const AHEAD: usize = 4096 / size_of::<f32>();
        let mut sums = [lanes.splat(0.0); 8];
        for (index, chunk) in self.share.chunks_exact(8 * L::LANES).enumerate() {
            if self.reading == Reading::Prefetching {
                for line in 0..L::LANES / 2 {
                    lanes.prefetch_near(self.share, index * 8 * L::LANES + AHEAD + line * 16);
                }
            }
            for (sum, x) in sums.iter_mut().zip(chunk.chunks_exact(L::LANES)) {
                *sum = lanes.add(*sum, lanes.load(x));
            }
        }
        std::hint::black_box(sums.map(|sum| lanes.sum(sum)));
    }
}

/// FLOP/s of fused multiply-adds between registers, f32 in the widest vectors that the processor
/// has, by all threads of a pool: the best of a few samples.
///
/// # Errors
/// A kernel forced by the environment that the processor does not have.
pub fn multiply_adds(pool: &Arc<ThreadPool>) -> Result<f64, EngineError> {
    let (_, instructions) =
        choose(None).map_err(|reason| EngineError::Unavailable { engine: "cpu", reason })?;
    let sample = || {
        let mut flops = vec![0_usize; pool.current_num_threads()];
        let start = Instant::now();
        Threads::Pool(Arc::clone(pool))
            .each(&mut flops, |flops| instructions.run(MultiplyAdds { flops }));
        flops.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64()
    };
    Ok((0..SAMPLES).map(|_| sample()).fold(0.0, f64::max))
}

/// Samples of [`multiply_adds`], each tens of milliseconds long.
const SAMPLES: usize = 9;

struct MultiplyAdds<'a> {
    flops: &'a mut usize,
}

impl Job for MultiplyAdds<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        // More chains than latency times units (4 x 2 and below), no more than registers.
        const CHAINS: usize = 12;
        const STEPS: usize = 1 << 22;
        let [factor, term] = [0.5, 0.5].map(|x| lanes.splat(std::hint::black_box(x)));
        let mut sums = [lanes.splat(0.0); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = lanes.fma(*sum, factor, term);
            }
        }
        std::hint::black_box(sums.map(|sum| lanes.sum(sum)));
        *self.flops = 2 * CHAINS * STEPS * L::LANES;
    }
}
