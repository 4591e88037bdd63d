//! One row of a table: what is attended, and what it must move and compute.

use crate::random::mix;
use grouped_attention::{
    CacheLayout, Dtype, Error, Geometry, Mask, MaskKind, PageId, Problem, Sequence, Slot, Step,
};

/// Which mask the queries of a step have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Masking {
    Causal,
    /// A binary tree of drafts: token t follows token (t - 1) / 2.
    Tree,
    Full,
}

/// What is timed.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) geometry: Geometry,
    pub(crate) dtype: Dtype,
    /// Cached tokens of each sequence, `[B]`.
    pub(crate) lens: Vec<usize>,
    pub(crate) q_len: usize,
    pub(crate) page_size: usize,
    pub(crate) masking: Masking,
    pub(crate) batch_invariant: bool,
    /// Replayed from a CUDA graph, over caches in turn.
    pub(crate) graph: bool,
}

impl Workload {
    /// `batch` equal sequences in bf16 over pages of 64, under a causal mask.
    pub(crate) fn new(
        name: impl Into<String>,
        geometry: Geometry,
        batch: usize,
        kv_len: usize,
        q_len: usize,
    ) -> Workload {
        Workload {
            name: name.into(),
            geometry,
            dtype: Dtype::Bf16,
            lens: vec![kv_len; batch],
            q_len,
            page_size: 64,
            masking: Masking::Causal,
            batch_invariant: false,
            graph: false,
        }
    }

    pub(crate) fn problem(&self) -> Result<Problem, Error> {
        let scale = 1.0 / (self.geometry.width_k() as f64).sqrt();
        let problem = Problem::new(self.geometry, self.dtype, scale)?;
        Ok(if self.batch_invariant { problem.batch_invariant() } else { problem })
    }

    /// Pages of each sequence, in an order of their own: no two neighbours lie side by side but by
    /// chance.
    pub(crate) fn tables(&self) -> Vec<Vec<PageId>> {
        let pages = |len: &usize| len.div_ceil(self.page_size);
        let total: usize = self.lens.iter().map(pages).sum();
        let mut ids: Vec<PageId> = (0..total as u32).map(PageId).collect();
        for i in (1..ids.len()).rev() {
            ids.swap(i, (mix(i as u64) % (i as u64 + 1)) as usize);
        }
        let mut rest = &ids[..];
        let mut table = |len| rest.split_off(..pages(len)).unwrap_or_default().to_vec();
        self.lens.iter().map(&mut table).collect()
    }

    /// The step whose attention is timed.
    pub(crate) fn step(&self) -> Result<Step, Error> {
        let tables = self.tables();
        let sequences: Vec<Sequence<'_>> = (self.lens.iter().zip(&tables))
            .map(|(&kv_len, pages)| Sequence { q_len: self.q_len, kv_len, pages })
            .collect();
        Ok(Step::new(self.page_size, &sequences, self.mask(sequences.len())?)?)
    }

    /// The mask over so many sequences.
    pub(crate) fn mask(&self, sequences: usize) -> Result<Mask, Error> {
        let parents: Vec<i32> = (0..self.q_len as i32).map(|t| (t - 1).div_euclid(2)).collect();
        let parents = parents.repeat(sequences);
        let kind = match self.masking {
            Masking::Causal => MaskKind::Causal,
            Masking::Full => MaskKind::Full,
            Masking::Tree => MaskKind::Tree(&parents),
        };
        Ok(Mask::new(kind, std::iter::repeat_n(self.q_len, sequences))?)
    }

    pub(crate) fn layout(&self) -> Result<CacheLayout, Error> {
        let pages = self.lens.iter().map(|len| len.div_ceil(self.page_size)).sum();
        Ok(CacheLayout::new(self.geometry, self.dtype, self.page_size, pages)?)
    }

    /// The row of a part of the cache, as an array `[pages * page_size, width]`, where a cell lies.
    pub(crate) fn cell(&self, slot: Slot) -> usize {
        slot.page.0 as usize * self.page_size + slot.row
    }

    /// Shape of the queries, `[total_q, h_q, width_k]`.
    pub(crate) fn q_shape(&self) -> [usize; 3] {
        [self.queries(), self.geometry.h_q(), self.geometry.width_k()]
    }

    /// Shape of the outputs, `[total_q, h_q, width_v]`.
    pub(crate) fn o_shape(&self) -> [usize; 3] {
        [self.queries(), self.geometry.h_q(), self.geometry.width_v()]
    }

    fn queries(&self) -> usize {
        self.lens.len() * self.q_len
    }

    fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Bytes of the cached rows, each read once, the rope key once a token.
    pub(crate) fn cache_bytes(&self) -> f64 {
        (self.tokens() * self.geometry.row().elements() * self.dtype.bytes()) as f64
    }

    /// Bytes that no engine can do without: cached rows, queries and outputs.
    pub(crate) fn bytes(&self) -> f64 {
        let elements = |shape: [usize; 3]| shape.iter().product::<usize>();
        let queries = elements(self.q_shape()) + elements(self.o_shape());
        self.cache_bytes() + (queries * self.dtype.bytes()) as f64
    }

    /// Multiplications and additions of scores and values, what a mask hides included.
    pub(crate) fn flops(&self) -> f64 {
        let widths = self.geometry.width_k() + self.geometry.width_v();
        2.0 * (self.tokens() * self.q_len * self.geometry.h_q()) as f64 * widths as f64
    }

    /// FLOPs for each byte of cache.
    pub(crate) fn intensity(&self) -> f64 {
        self.flops() / self.cache_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gla(q_len: usize) -> Workload {
        let geometry = Geometry::gla(128, 2, 256, 64).unwrap();
        Workload::new("gla", geometry, 128, 8192, q_len)
    }

    // The floors of the peers' measurements: 401 and 840 us at 3062 GB/s and 736 TFLOP/s.
    #[test]
    fn bytes_and_flops_are_those_of_the_peers_table() {
        let floor = |workload: &Workload| (workload.bytes() / 3.062e12, workload.flops() / 736e12);
        let (read, _) = floor(&gla(1));
        assert!((read * 1e6 - 401.0).abs() < 1.0, "{read}");
        let (_, multiplied) = floor(&gla(4));
        assert!((multiplied * 1e6 - 840.0).abs() < 1.0, "{multiplied}");
        assert_eq!(gla(1).cache_bytes(), 128.0 * 8192.0 * 576.0 * 2.0);
    }

    #[test]
    fn tables_name_every_page_once_in_no_order() {
        let workload = Workload { lens: vec![100, 1, 640], ..gla(1) };
        let tables = workload.tables();
        assert_eq!(tables.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 10]);
        let mut ids: Vec<u32> = tables.concat().iter().map(|page| page.0).collect();
        assert!(!ids.is_sorted());
        ids.sort_unstable();
        assert_eq!(ids, (0..13).collect::<Vec<_>>());
        assert_eq!(workload.step().unwrap().pages_required(), workload.layout().unwrap().pages());
    }

    #[test]
    fn a_tree_is_one() {
        let workload = Workload { masking: Masking::Tree, ..gla(5) };
        let Mask::Tree(tree) = workload.mask(2).unwrap() else { panic!("not a tree") };
        assert_eq!(tree.parents(), [-1, 0, 0, 1, 1, -1, 0, 0, 1, 1]);
        let short = Workload { lens: vec![4], ..workload };
        assert!(short.step().is_err());
    }
}
