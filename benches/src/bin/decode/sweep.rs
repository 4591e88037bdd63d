//! Named tables of workloads.

use crate::lens::{Distribution, Lens};
use crate::workload::Workload;
use grouped_attention::{Geometry, InvalidGeometry};

/// A table that `--sweep` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sweep {
    /// Shapes of the CPU peers' measurements, at 8192 tokens.
    Peers,
    /// The shapes of the paper's kernel benchmarks.
    Paper,
    /// The shapes that the Hopper kernels are held to.
    H100,
    /// Layers of real models, and of those in conformance/models.
    Models,
}

/// What a row is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// Microseconds.
    Micros(f64),
    /// A share of the floor.
    Share(f64),
    /// Times the row of this index.
    Times { row: usize, factor: f64 },
}

/// One row: a workload, and on the H100 what it is held to.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) workload: Workload,
    pub(crate) goal: Option<Goal>,
    /// False for a row that a filter leaves out.
    pub(crate) asked: bool,
}

impl Entry {
    pub(crate) fn new(workload: Workload, goal: Option<Goal>) -> Entry {
        Entry { workload, goal, asked: true }
    }
}

/// What a row must reach, what it aims at, and what was best before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Goal {
    pub(crate) peers: &'static str,
    pub(crate) must: Bound,
    pub(crate) aim: Bound,
}

impl Sweep {
    pub(crate) fn entries(self) -> Result<Vec<Entry>, InvalidGeometry> {
        let plain = |workloads: Vec<Workload>| {
            workloads.into_iter().map(|workload| Entry::new(workload, None)).collect()
        };
        Ok(match self {
            Sweep::Peers => plain(peers()?),
            Sweep::Paper => plain(paper()?),
            Sweep::H100 => h100()?,
            Sweep::Models => plain(models()?),
        })
    }
}

fn peers() -> Result<Vec<Workload>, InvalidGeometry> {
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
                all.push(Workload::new(name, geometry, batch, 8192, q_len));
            }
        }
    }
    Ok(all)
}

/// The paper's section 5.3 (figures 4 and 15), B.5 (page size) and B.6 (tables 44 and 45, whose head
/// count is not stated: 128 here): MLA against GLA with two latent heads, of which each of two devices
/// has one.
fn paper() -> Result<Vec<Workload>, InvalidGeometry> {
    let mla = Geometry::mla(128, 512, 64)?;
    let mut all = Vec::new();
    for (name, geometry) in [("mla", mla), ("gla2", Geometry::gla(128, 2, 256, 64)?)] {
        for q_len in [1, 2] {
            for kv_len in [1024, 2048, 4096, 8192, 16384, 32768, 65536] {
                let title = format!("{name} B128 L{kv_len} q{q_len}");
                all.push(Workload::new(title, geometry, 128, kv_len, q_len));
            }
        }
        let title = format!("{name} B128 L8192 q2 page 1");
        all.push(Workload { page_size: 1, ..Workload::new(title, geometry, 128, 8192, 2) });
    }
    for (name, geometry) in [("mla", mla), ("gla2 half", Geometry::gla(64, 1, 256, 64)?)] {
        for kv_len in [2048, 8192, 32768, 131_072] {
            let title = format!("{name} B1 L{kv_len} q1");
            all.push(Workload::new(title, geometry, 1, kv_len, 1));
        }
        for longest in [8192, 16384, 32768, 65536] {
            let title = format!("{name} B16 15xL1024+L{longest} q1");
            let mut lens = vec![1024; 15];
            lens.push(longest);
            all.push(Workload { lens, ..Workload::new(title, geometry, 0, 0, 1) });
        }
    }
    Ok(all)
}

fn h100() -> Result<Vec<Entry>, InvalidGeometry> {
    use Bound::{Micros, Share, Times};
    let gla = Geometry::gla(128, 2, 256, 64)?;
    let half = Geometry::gla(64, 1, 256, 64)?;
    let mla = Geometry::mla(128, 512, 64)?;
    let shard = Geometry::mla(16, 512, 64)?;
    let gta = Geometry::gta(128, 8, 128)?;
    let gqa = Geometry::gqa(128, 8, 128)?;
    let equal = |name: &str, geometry, batch, q_len| {
        let title = format!("{name}, B {batch}, L 8192, q_len {q_len}");
        Workload::new(title, geometry, batch, 8192, q_len)
    };
    let mut all = Vec::new();
    let mut add = |workload, peers, must, aim| {
        all.push(Entry::new(workload, Some(Goal { peers, must, aim })));
    };
    add(equal("GLA-2", gla, 128, 1), "FA3 507", Micros(438.0), Share(0.96));
    add(equal("GLA-2", gla, 128, 2), "FlashMLA on MLA 921, FA3 537", Micros(485.0), Micros(460.0));
    add(equal("GLA-2", gla, 128, 4), "FA3 929", Micros(910.0), Micros(880.0));
    add(equal("GLA half", half, 128, 1), "FA3 259", Micros(240.0), Micros(228.0));
    add(equal("GLA half", half, 128, 2), "FA3 267", Micros(250.0), Micros(232.0));
    add(equal("MLA", mla, 128, 1), "FlashMLA 529", Micros(529.0), Micros(480.0));
    add(equal("MLA", mla, 128, 2), "FlashMLA 921", Micros(921.0), Micros(870.0));
    add(equal("MLA h_q 16", shard, 128, 1), "FlashMLA 441, FA3 420", Micros(415.0), Micros(405.0));
    add(equal("GTA", gta, 128, 1), "FA3 on GQA 1420", Micros(830.0), Micros(770.0));
    add(equal("GTA", gta, 128, 2), "FA3 on GQA 1431", Micros(840.0), Micros(770.0));
    add(equal("GLA-2", gla, 16, 1), "FA3 89", Micros(70.0), Micros(58.0));
    add(equal("GLA-2", gla, 16, 2), "FA3 99", Micros(75.0), Micros(62.0));
    let long = Workload::new("GLA-2, B 1, L 65536, q_len 1, graph", gla, 1, 65536, 1);
    let long = Workload { graph: true, ..long };
    add(long, "FA3 59 flushed, 50 replayed", Micros(42.0), Micros(34.0));
    let lens = Distribution::LogUniform { low: 256, high: 65536 }.lengths(64, 1);
    for q_len in [1, 2] {
        let title = format!("GLA-2, 64 ragged 256 to 65536, q_len {q_len}");
        let ragged = Workload { lens: lens.clone(), ..Workload::new(title, gla, 0, 0, q_len) };
        add(ragged, "–", Share(0.85), Share(0.92));
    }
    for (page_size, must, aim) in [(16, 1.03, 1.02), (1, 1.06, 1.04)] {
        let workload = equal("GLA-2", gla, 128, 1);
        let name = format!("{}, page {page_size}", workload.name);
        let peers = if page_size == 1 { "FA3 528" } else { "–" };
        let [must, aim] = [must, aim].map(|factor| Times { row: 0, factor });
        add(Workload { name, page_size, ..workload }, peers, must, aim);
    }
    let workload = equal("GLA-2", gla, 128, 1);
    let name = format!("{}, batch-invariant", workload.name);
    let slower = Times { row: 0, factor: 1.0 / 0.85 };
    add(Workload { name, batch_invariant: true, ..workload }, "–", slower, slower);
    add(equal("GQA", gqa, 128, 1), "FA3 1420", Micros(1430.0), Micros(1415.0));
    Ok(all)
}

fn models() -> Result<Vec<Workload>, InvalidGeometry> {
    let mut all = Vec::new();
    let kinds = [
        ("DeepSeek-V3 MLA", Geometry::mla(128, 512, 64)?),
        ("DeepSeek-V3 as GLA-2", Geometry::gla(128, 2, 256, 64)?),
        ("Mistral-Small-4-like 320/256", Geometry::mla(32, 256, 64)?),
        ("Llama-3-8B GQA", Geometry::gqa(32, 8, 128)?),
        ("Llama-3-8B as GTA", Geometry::gta(32, 8, 128)?),
    ];
    for (name, geometry) in kinds {
        for (batch, q_len) in [(1, 1), (1, 2), (8, 1), (8, 2)] {
            let title = format!("{name}, B {batch}, L 8192, q_len {q_len}");
            all.push(Workload::new(title, geometry, batch, 8192, q_len));
        }
    }
    // Their context is 2048.
    let trained = [
        ("gqa", Geometry::gqa(8, 4, 32)?),
        ("gta", Geometry::gta(8, 4, 32)?),
        ("mla", Geometry::mla(8, 128, 16)?),
        ("gla", Geometry::gla(8, 2, 64, 16)?),
    ];
    for (name, geometry) in trained {
        let title = format!("conformance/models {name}, B 8, L 2048, q_len 1");
        all.push(Workload::new(title, geometry, 8, 2048, 1));
    }
    Ok(all)
}

impl Distribution {
    fn lengths(self, batch: usize, seed: u64) -> Vec<usize> {
        Lens::Drawn { distribution: self, seed }.lengths(batch).unwrap_or_default()
    }
}
