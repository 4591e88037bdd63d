//! The command line, and the workloads that it asks for.

use crate::lens::Lens;
use crate::sweep::{Entry, Sweep};
use crate::workload::{Masking, Workload};
use clap::{Parser, ValueEnum};
use grouped_attention::{Dtype, Geometry, Variant};
use std::num::NonZeroUsize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Reference,
    Cpu,
    Cuda,
}

/// What is done between two calls, so that the second does not find the first one's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flush {
    /// Writes memory larger than the device's caches.
    Write,
    /// Reads it.
    Read,
    /// Nothing.
    None,
}

/// Times decode attention beside what the machine itself can do in the same run.
///
/// Every shape is compared with the reference on a sample of its rows before it is timed.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// The engine
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) backend: Engine,
    /// A kernel of the cpu engine; the fastest if absent
    #[arg(long)]
    pub(crate) kernel: Option<String>,
    /// mha, gqa, mqa, gta, mla or gla
    #[arg(long, default_value = "gqa")]
    variant: Variant,
    /// Query heads
    #[arg(long, default_value_t = 32)]
    h_q: usize,
    /// Cached heads (gqa, gta, gla)
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// Head width (mha, gqa, mqa, gta) or width of a latent head (mla, gla); 128, 512 or 256 if
    /// absent
    #[arg(long, alias = "d-c")]
    d_h: Option<usize>,
    /// Width of the rope key (mla, gla)
    #[arg(long, default_value_t = 64)]
    rope: usize,
    /// Sequences
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Cached tokens of each
    #[arg(long, default_value_t = 8192)]
    kv_len: usize,
    /// Query tokens of each
    #[arg(long, default_value_t = 1)]
    q_len: usize,
    /// Tokens per page
    #[arg(long, default_value_t = 64)]
    page_size: usize,
    /// f32, f16 or bf16
    #[arg(long, default_value = "bf16")]
    dtype: Dtype,
    /// Mask of the query tokens
    #[arg(long, value_enum, default_value = "causal")]
    mask: Masking,
    /// Cached tokens in place of --kv-len: a file, uniform:LO:HI:SEED, loguniform:LO:HI:SEED or
    /// lognormal:MEAN:SIGMA:SEED
    #[arg(long)]
    lens: Option<Lens>,
    /// Sums that do not depend on the batch
    #[arg(long)]
    batch_invariant: bool,
    /// Replay a CUDA graph that attends several caches in turn (cuda)
    #[arg(long)]
    graph: bool,
    /// Threads of the cpu engine; 0 for one per core
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Number of the CUDA device
    #[arg(long, default_value_t = 0)]
    pub(crate) device: usize,
    /// Time all shapes of a table in place of the one that the options above describe
    #[arg(long, value_enum)]
    pub(crate) sweep: Option<Sweep>,
    /// Only shapes of the sweep whose name contains this
    #[arg(long, default_value = "")]
    pub(crate) only: String,
    /// Calls of a run, whose median is taken
    #[arg(long, default_value = "11")]
    pub(crate) repeats: NonZeroUsize,
    /// Runs of a shape, whose medians are reported with their spread
    #[arg(long, default_value = "3")]
    pub(crate) runs: NonZeroUsize,
    /// What is done between two calls (cuda)
    #[arg(long, value_enum, default_value = "write")]
    pub(crate) flush: Flush,
    /// MiB of caches that are attended in turn (cpu and reference); 0 for a single cache, which may
    /// stay in the processor's
    #[arg(long, default_value_t = 768)]
    pub(crate) cold: usize,
    /// Print one JSON document; the table goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    /// Every shape to be timed.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Box<dyn std::error::Error>> {
        let Some(sweep) = self.sweep else {
            return Ok(vec![Entry::new(self.workload()?, None)]);
        };
        let mut entries = sweep.entries()?;
        if !entries.iter().any(|entry| entry.workload.name.contains(&self.only)) {
            let names: Vec<&str> = entries.iter().map(|entry| &*entry.workload.name).collect();
            return Err(format!("no shape is named {:?}; there are {names:#?}", self.only).into());
        }
        // Rows that others are compared with stay where they are; what is not asked for is skipped.
        for entry in &mut entries {
            entry.asked = entry.workload.name.contains(&self.only);
        }
        Ok(entries)
    }

    fn workload(&self) -> Result<Workload, Box<dyn std::error::Error>> {
        let lens = match &self.lens {
            Some(lens) => lens.lengths(self.batch)?,
            None => vec![self.kv_len; self.batch],
        };
        let lengths = match &self.lens {
            None => format!("L {}", self.kv_len),
            Some(_) => {
                let range = (lens.iter().min(), lens.iter().max());
                format!("L {} to {}", range.0.unwrap_or(&0), range.1.unwrap_or(&0))
            }
        };
        let geometry = self.geometry()?;
        let name = format!("{geometry}, B {}, {lengths}, q_len {}", lens.len(), self.q_len);
        Ok(Workload {
            name,
            geometry,
            dtype: self.dtype,
            lens,
            q_len: self.q_len,
            page_size: self.page_size,
            masking: self.mask,
            batch_invariant: self.batch_invariant,
            graph: self.graph,
        })
    }

    fn geometry(&self) -> Result<Geometry, grouped_attention::InvalidGeometry> {
        let (h_q, heads, width) = (self.h_q, self.heads, |usual| self.d_h.unwrap_or(usual));
        match self.variant {
            Variant::Mha => Geometry::mha(h_q, width(128)),
            Variant::Gqa => Geometry::gqa(h_q, heads, width(128)),
            Variant::Mqa => Geometry::mqa(h_q, width(128)),
            Variant::Gta => Geometry::gta(h_q, heads, width(128)),
            Variant::Mla => Geometry::mla(h_q, width(512), self.rope),
            Variant::Gla => Geometry::gla(h_q, heads, width(256), self.rope),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn workload(line: &str) -> Workload {
        let words = line.split_whitespace();
        let options = Options::try_parse_from(std::iter::once("decode").chain(words)).unwrap();
        options.entries().unwrap().remove(0).workload
    }

    #[test]
    fn the_command_line_describes_a_workload() {
        Options::command().debug_assert();
        let gla = workload("--variant gla --h-q 128 --heads 2 --batch 128 --q-len 2");
        assert_eq!(gla.geometry, Geometry::gla(128, 2, 256, 64).unwrap());
        assert_eq!((gla.lens.len(), gla.lens[0], gla.q_len), (128, 8192, 2));
        let mla = workload("--variant mla --h-q 32 --d-c 256 --rope 64 --dtype f16 --mask tree");
        assert_eq!(mla.geometry, Geometry::mla(32, 256, 64).unwrap());
        assert_eq!((mla.dtype, mla.masking), (Dtype::F16, Masking::Tree));
        let ragged = workload("--lens loguniform:256:65536:1 --batch 64 --page-size 16 --graph");
        assert_eq!((ragged.lens.len(), ragged.page_size, ragged.graph), (64, 16, true));
    }

    #[test]
    fn a_filter_keeps_the_rows_that_others_are_compared_with() {
        let options =
            Options::try_parse_from(["decode", "--sweep", "h100", "--only", "page 1"]).unwrap();
        let entries = options.entries().unwrap();
        assert_eq!(entries.len(), Sweep::H100.entries().unwrap().len());
        assert!(entries.iter().any(|entry| entry.asked) && !entries[0].asked);
        let none = Options { only: "nothing".into(), ..options };
        assert!(none.entries().unwrap_err().to_string().contains("no shape"));
    }
}
