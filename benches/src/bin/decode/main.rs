//! Times decode attention on an engine, beside what the machine itself can do.
//!
//! Every shape is compared with the reference at a short length before it is timed. The caches are
//! as many as it takes to be larger than the processor's, and are attended in turn, so that each
//! call finds its cache in memory only.

#![allow(missing_docs, reason = "a program")]

use clap::{Parser, ValueEnum};
use grouped_attention::{
    AnyBackend, AnyCache, Append, Attend, Backend, CacheLayout, Dtype, Error, Geometry, HostTensor,
    Mask, PageId, Planning, Problem, Reference, Row, Sequence, Step, Upload,
};
use grouped_attention_cpu::ceiling::{Memory, Reading};
use grouped_attention_cpu::{CpuBackend, Kernel};
use rayon::ThreadPoolBuilder;
use std::sync::Arc;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    Reference,
    Cpu,
}

/// Times decode attention beside the machine's ceilings.
#[derive(Debug, Parser)]
struct Args {
    /// The engine.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Engine,
    /// A kernel of the cpu engine; the fastest if absent.
    #[arg(long)]
    kernel: Option<String>,
    /// mha, gqa, mqa, gta, mla or gla.
    #[arg(long, default_value = "gqa")]
    variant: String,
    /// Query heads.
    #[arg(long, default_value_t = 32)]
    h_q: usize,
    /// Cached heads.
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Head width (mha, gqa, mqa, gta) or width of a latent head (mla, gla).
    #[arg(long, alias = "d-c", default_value_t = 128)]
    d_h: usize,
    /// Width of the rope key (mla, gla).
    #[arg(long, default_value_t = 64)]
    rope: usize,
    /// Sequences.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Cached tokens of each.
    #[arg(long, default_value_t = 8192)]
    kv_len: usize,
    /// Query tokens of each.
    #[arg(long, default_value_t = 1)]
    q_len: usize,
    /// Tokens per page.
    #[arg(long, default_value_t = 64)]
    page_size: usize,
    /// f32, f16 or bf16.
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    /// Threads of the cpu engine; 0 for one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Times all shapes of a named table instead: `peers`.
    #[arg(long)]
    sweep: Option<String>,
    /// Only shapes of the sweep whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Calls timed for each shape.
    #[arg(long, default_value_t = 15)]
    repeats: usize,
    /// MiB of caches that are attended in turn; 0 for a single cache, which may stay in the
    /// processor's, and no reading of memory in between.
    #[arg(long, default_value_t = 768)]
    cold: usize,
}

/// One row of the table.
#[derive(Clone, Debug)]
struct Shape {
    name: String,
    geometry: Geometry,
    batch: usize,
    kv_len: usize,
    q_len: usize,
}

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("decode: {error}");
        std::process::exit(1);
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn run(args: &Args) -> Outcome<()> {
    let pool = Arc::new(ThreadPoolBuilder::new().num_threads(args.threads).build()?);
    let engine: AnyBackend = match args.backend {
        Engine::Reference => Box::new(Reference::new()),
        Engine::Cpu => {
            let builder = CpuBackend::builder().pool(Arc::clone(&pool));
            let builder = match &args.kernel {
                Some(name) => builder.kernel(name.parse::<Kernel>()?),
                None => builder,
            };
            Box::new(builder.build()?)
        }
    };
    let memory = Memory::new(Arc::clone(&pool))?;
    println!("{}", engine.identity());
    if let Some(rate) = grouped_attention_cpu::ceiling::matrix(&pool) {
        println!("matrix unit, operands in the first-level cache: {:.2} TFLOP/s", rate / 1e12);
    }
    println!(
        "{:<24} {:>9} {:>9} {:>7} {:>7} {:>7} {:>7} {:>7}",
        "shape", "median us", "best us", "GB/s", "TF/s", "B plain", "B pref", "of B"
    );
    for shape in shapes(args)? {
        check(&engine, args, &shape)?;
        time(&engine, args, &memory, &shape)?;
    }
    Ok(())
}

fn shapes(args: &Args) -> Outcome<Vec<Shape>> {
    let shape = |name: String, geometry, batch, kv_len, q_len| Shape {
        name,
        geometry,
        batch,
        kv_len,
        q_len,
    };
    match args.sweep.as_deref() {
        None => {
            let (h_q, heads, width) = (args.h_q, args.heads, args.d_h);
            let geometry = match args.variant.as_str() {
                "mha" => Geometry::mha(h_q, width)?,
                "gqa" => Geometry::gqa(h_q, heads, width)?,
                "mqa" => Geometry::mqa(h_q, width)?,
                "gta" => Geometry::gta(h_q, heads, width)?,
                "mla" => Geometry::mla(h_q, width, args.rope)?,
                "gla" => Geometry::gla(h_q, heads, width, args.rope)?,
                other => return Err(format!("unknown variant {other:?}").into()),
            };
            Ok(vec![shape("asked".into(), geometry, args.batch, args.kv_len, args.q_len)])
        }
        Some("peers") => {
            let kinds: [(&str, Geometry, &[usize]); 6] = [
                ("gqa", Geometry::gqa(32, 8, 128)?, &[1, 2, 4, 8]),
                ("gta", Geometry::gta(32, 8, 128)?, &[1, 4, 8]),
                ("mla16", Geometry::mla(16, 512, 64)?, &[1, 4]),
                ("gla16", Geometry::gla(16, 2, 256, 64)?, &[1, 4]),
                ("gla128", Geometry::gla(128, 2, 256, 64)?, &[1, 2, 4]),
                ("mla128", Geometry::mla(128, 512, 64)?, &[1, 2, 4]),
            ];
            let mut all = Vec::new();
            for (name, geometry, q_lens) in kinds {
                for &q_len in q_lens {
                    for batch in [1, 8] {
                        let name = format!("{name} B{batch} L8192 q{q_len}");
                        all.push(shape(name, geometry, batch, 8192, q_len));
                    }
                }
            }
            all.retain(|shape| shape.name.contains(&args.only));
            Ok(all)
        }
        Some(other) => Err(format!("unknown sweep {other:?}: expected peers").into()),
    }
}

/// Numbers from a seed: roughly normal, of variance 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn normal(&mut self) -> f64 {
        let word = self.next();
        let sum: u64 = (0..4).map(|i| word >> (16 * i) & 0xffff).sum();
        (sum as f64 / 65536.0 - 2.0) * 3.0_f64.sqrt()
    }

    fn tensor(&mut self, dtype: Dtype, shape: &[usize]) -> Outcome<HostTensor> {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| self.normal()).collect();
        Ok(HostTensor::from_f64(dtype, shape, &values)?)
    }
}

fn put<B: Backend>(engine: &B, host: &HostTensor) -> Result<B::Tensor, Error> {
    let mut tensor = engine.allocate(host.dtype(), host.shape())?;
    engine.upload(Upload::new(&mut tensor, host)?)?;
    Ok(tensor)
}

/// A step of equal sequences over pages in shuffled order, all of whose tokens are to be appended
/// if `fill`.
fn step(args: &Args, shape: &Shape, kv_len: usize, q_len: usize, fill: bool) -> Outcome<Step> {
    let per_sequence = kv_len.div_ceil(args.page_size);
    let mut ids: Vec<PageId> = (0..(per_sequence * shape.batch) as u32).map(PageId).collect();
    let mut random = Random(3);
    for i in (1..ids.len()).rev() {
        ids.swap(i, (random.next() % (i as u64 + 1)) as usize);
    }
    let sequences: Vec<Sequence<'_>> = (0..shape.batch)
        .map(|b| Sequence {
            q_len: if fill { kv_len } else { q_len },
            kv_len,
            pages: &ids[b * per_sequence..][..per_sequence],
        })
        .collect();
    let step = Step::new(args.page_size, &sequences, Mask::Causal)?;
    Ok(if fill { step.appending()? } else { step })
}

fn problem(args: &Args, shape: &Shape) -> Outcome<Problem> {
    let scale = 1.0 / (shape.geometry.width_k() as f64).sqrt();
    Ok(Problem::new(shape.geometry, args.dtype, scale)?)
}

/// A full cache of random rows; a short run of them, repeated where the cache is long.
fn cache<B: Backend>(engine: &B, args: &Args, shape: &Shape, kv_len: usize) -> Outcome<B::Cache> {
    let problem = problem(args, shape)?;
    let filling = step(args, shape, kv_len, 0, true)?;
    let pages = filling.pages_required();
    let layout = CacheLayout::new(shape.geometry, args.dtype, args.page_size, pages)?;
    let mut cache = engine.create_cache(layout)?;
    let mut random = Random(7);
    for writes in filling.writes().chunks(1024) {
        let part = Step::new(args.page_size, &[], Mask::Causal)?.writing(writes.to_vec())?;
        let plan = engine.plan(Planning::new(&problem, &part))?;
        let heads = shape.geometry.heads();
        let [first, second] = match shape.geometry.row() {
            Row::Separate { d_k, d_v, .. } => [vec![1024, heads, d_k], vec![1024, heads, d_v]],
            Row::Tied { s, r, .. } => [vec![1024, heads, s], vec![1024, r]],
        };
        let first = put(engine, &random.tensor(args.dtype, &first)?)?;
        let second = put(engine, &random.tensor(args.dtype, &second)?)?;
        engine.append(Append::new(&plan, &mut cache, &first, Some(&second))?)?;
    }
    Ok(cache)
}

/// Compares the engine with the reference on the shape, shortened.
fn check(engine: &AnyBackend, args: &Args, shape: &Shape) -> Outcome<()> {
    let kv_len = shape.kv_len.min(300).max(shape.q_len);
    let got = attended(engine, args, shape, kv_len)?;
    let want = attended(&Reference::new(), args, shape, kv_len)?;
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(a, b)| a - b));
    let relative = error / norm(&mut want.iter().copied());
    if relative.is_nan() || relative > 2.0 * args.dtype.unit_roundoff() + 1e-5 {
        return Err(format!("{}: wrong by {relative:e} of its norm", shape.name).into());
    }
    Ok(())
}

fn attended<B: Backend>(
    engine: &B,
    args: &Args,
    shape: &Shape,
    kv_len: usize,
) -> Outcome<Vec<f64>> {
    let problem = problem(args, shape)?;
    let cache = cache(engine, args, shape, kv_len)?;
    let step = step(args, shape, kv_len, shape.q_len, false)?;
    let (rows, h_q) = (step.total_q(), shape.geometry.h_q());
    let queries = Random(11).tensor(args.dtype, &[rows, h_q, shape.geometry.width_k()])?;
    let q = put(engine, &queries)?;
    let mut o = engine.allocate(problem.output(), &[rows, h_q, shape.geometry.width_v()])?;
    let mut plan = engine.plan(Planning::new(&problem, &step))?;
    engine.attend(Attend::new(&mut plan, &q, &cache, &mut o, None)?)?;
    Ok(engine.download(&o)?.to_f64())
}

fn time(engine: &AnyBackend, args: &Args, memory: &Memory, shape: &Shape) -> Outcome<()> {
    let problem = problem(args, shape)?;
    let step = step(args, shape, shape.kv_len, shape.q_len, false)?;
    let tokens = shape.batch * shape.kv_len;
    let bytes = tokens * shape.geometry.row().elements() * args.dtype.bytes();
    let count = (args.cold << 20).div_ceil(bytes).max(1);
    let caches: Vec<AnyCache> =
        (0..count).map(|_| cache(engine, args, shape, shape.kv_len)).collect::<Outcome<_>>()?;
    let (rows, h_q) = (step.total_q(), shape.geometry.h_q());
    let queries = Random(11).tensor(args.dtype, &[rows, h_q, shape.geometry.width_k()])?;
    let q = put(engine, &queries)?;
    let mut o = engine.allocate(problem.output(), &[rows, h_q, shape.geometry.width_v()])?;
    let mut plan = engine.plan(Planning::new(&problem, &step))?;
    let (mut times, mut plain, mut prefetching) = (Vec::new(), Vec::new(), Vec::new());
    // A sample is long enough for the clock, and ceilings are measured between samples.
    let calls = (args.repeats.max(count)).div_ceil(args.repeats);
    let mut next = 0;
    for sample in 0..args.repeats {
        let start = Instant::now();
        for _ in 0..calls {
            let cache = &caches[next % count];
            engine.attend(Attend::new(&mut plan, &q, cache, &mut o, None)?)?;
            next += 1;
        }
        times.push(start.elapsed().as_secs_f64() / calls as f64);
        if sample % args.repeats.div_ceil(15) == 0 && args.cold > 0 {
            plain.push(memory.read(Reading::Plain));
            prefetching.push(memory.read(Reading::Prefetching));
        }
    }
    let [median, plain, prefetching] = [&mut times, &mut plain, &mut prefetching].map(|all| {
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    });
    let flops = 2 * tokens * shape.q_len * h_q;
    let flops = (flops * (shape.geometry.width_k() + shape.geometry.width_v())) as f64;
    let rate = bytes as f64 / median;
    println!(
        "{:<24} {:>9.1} {:>9.1} {:>7.2} {:>7.3} {:>7.2} {:>7.2} {:>6.1}%",
        shape.name,
        median * 1e6,
        times[0] * 1e6,
        rate / 1e9,
        flops / median / 1e12,
        plain / 1e9,
        prefetching / 1e9,
        100.0 * rate / plain.max(prefetching),
    );
    Ok(())
}
