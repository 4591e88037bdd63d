//! A case: everything that attention over a cache depends on.

use super::error::{FileError, RunError};
use super::format::Format;
use super::table::{self, Pool};
use super::tensors::{Floats, TensorFile};
use super::writer::Writer;
use crate::compare::largest_finite;
use grouped_attention::{
    Attended, CacheInfo, CacheLayout, Dtype, EngineError, Geometry, Mask, PageId, Problem,
    ReferenceCache, Row, RowStats, Slot, Step, Unsupported, attend,
};
use std::collections::BTreeMap;

/// The tensors of a case file, checked against each other.
///
/// | tensor | shape | |
/// |---|---|---|
/// | `q` | `[total_q, h_q, width K]` | `[nope | rope]` for tied rows |
/// | `q_lens`, `kv_lens` | `[B]` | integers |
/// | `page_table` | `[B, max_pages]` | integers; slots past a sequence's length hold anything |
/// | `cache_state` | `[pages, page_size, h, s]` | tied rows |
/// | `cache_rope` | `[pages, page_size, r]` | tied rows; absent for r = 0 |
/// | `cache_k` | `[pages, page_size, h_kv, d_k]` | separate rows |
/// | `cache_v` | `[pages, page_size, h_kv, d_v]` | separate rows |
/// | `tree_parents` | `[total_q]` | integers; with the tree mask |
///
/// Metadata: `scale` and `mask` (`causal`, `tree` or `full`).
#[derive(Clone, Debug)]
pub struct CaseFile {
    geometry: Geometry,
    scale: f64,
    step: Step,
    pages: usize,
    q: Floats,
    /// Keys or states.
    first: Floats,
    /// Values or rope keys; absent for a rope key of width 0.
    second: Option<Floats>,
    ignored: Vec<String>,
}

impl CaseFile {
    /// Reads a case from the bytes of a file.
    ///
    /// # Errors
    /// What is missing, misshapen or out of range, by its name.
    pub fn parse(bytes: &[u8]) -> Result<CaseFile, FileError> {
        let mut file = TensorFile::parse(bytes)?;
        let scale = scale(&file)?;
        let q_shape = file.shape_of_rank::<3>("q", "[total_q, h_q, width of a key]")?;
        let (geometry, pool) = cache_shapes(&mut file, q_shape)?;
        let step = table::step(&mut file, q_shape[0], pool)?;
        check_budget(&file, &geometry, &step)?;
        let [first, second] = part_names(&geometry);
        let case = CaseFile {
            geometry,
            scale,
            step,
            pages: pool.pages,
            q: file.floats("q")?,
            first: file.floats(first)?,
            second: match file.shape(second) {
                Some(_) => Some(file.floats(second)?),
                None => None,
            },
            ignored: file.unasked(),
        };
        // A cache must be one that engines can have, whoever computes.
        case.layout(Dtype::F32).map_err(FileError::refused(first))?;
        Ok(case)
    }

    /// A case from a problem and its tensors, to be written.
    ///
    /// # Errors
    /// A format that no file has.
    pub fn new(
        problem: &Problem,
        step: Step,
        q: Vec<f64>,
        cache: &ReferenceCache,
    ) -> Result<CaseFile, RunError> {
        let geometry = *problem.geometry();
        let layout = cache.layout();
        let format = Format::try_from(problem.dtype())
            .map_err(|dtype| EngineError::from(Unsupported::Dtype { dtype }))?;
        let (h_q, width_k) = (geometry.h_q(), geometry.width_k());
        let slots = (0..layout.pages() as u32).flat_map(|page| {
            (0..layout.page_size()).map(move |row| Slot { page: PageId(page), row })
        });
        let [mut first, mut second] = [Vec::new(), Vec::new()];
        for slot in slots {
            first.extend_from_slice(cache.first(slot));
            second.extend_from_slice(cache.second(slot));
        }
        let [first_shape, second_shape] = layout.part_shapes();
        let absent = second_shape.last() == Some(&0);
        Ok(CaseFile {
            geometry,
            scale: problem.scale(),
            pages: layout.pages(),
            q: Floats { format, shape: vec![step.total_q(), h_q, width_k], values: q },
            first: Floats { format, shape: first_shape, values: first },
            second: (!absent).then_some(Floats { format, shape: second_shape, values: second }),
            step,
            ignored: Vec::new(),
        })
    }

    /// Heads and widths.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Factor of the scores.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Lengths, page tables and mask.
    pub fn step(&self) -> &Step {
        &self.step
    }

    /// `[total_q, h_q, width K]`.
    pub fn q(&self) -> &Floats {
        &self.q
    }

    /// Names of tensors in the file that no case has.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Rounds queries and cache to a format, as an engine that computes in it would be given them.
    pub fn round(&mut self, format: Format) {
        self.q.round(format);
        self.first.round(format);
        if let Some(second) = &mut self.second {
            second.round(format);
        }
    }

    /// The one format of queries and cache.
    ///
    /// # Errors
    /// Several formats, or one that engines do not have.
    pub fn dtype(&self) -> Result<Dtype, RunError> {
        let names = part_names(&self.geometry);
        let parts = [Some(&self.first), self.second.as_ref()].into_iter().zip(names);
        let mut dtype = None;
        for (part, tensor) in parts {
            let Some(cache) = part.map(|part| part.format) else { continue };
            dtype = self.q.format.dtype().filter(|_| cache == self.q.format);
            if dtype.is_none() {
                return Err(RunError::NoFormat { q: self.q.format, tensor, cache });
            }
        }
        // There is always a first part, so the loop has set it.
        let tensor = names[0];
        dtype.ok_or(RunError::NoFormat { q: self.q.format, tensor, cache: self.first.format })
    }

    /// What is computed, by an engine of some format.
    ///
    /// # Errors
    /// A scale that no problem has; [`parse`](Self::parse) lets none pass.
    pub fn problem(&self, dtype: Dtype) -> Result<Problem, RunError> {
        Ok(Problem::new(self.geometry, dtype, self.scale)?)
    }

    /// The cache that the file holds, in some format.
    ///
    /// # Errors
    /// A cache that cannot be addressed; [`parse`](Self::parse) lets none pass.
    pub fn layout(&self, dtype: Dtype) -> Result<CacheLayout, grouped_attention::InvalidLayout> {
        CacheLayout::new(self.geometry, dtype, self.step.page_size(), self.pages)
    }

    /// What the definition says, in f64 on the numbers as they are `[S-7.1]`.
    ///
    /// # Errors
    /// A cache or scale that no engine takes; [`parse`](Self::parse) lets none pass.
    pub fn attend(&self) -> Result<Attended, RunError> {
        // NOTE: the format is a label here. Neither the definition nor `write_exact` rounds to it.
        let dtype = Dtype::F32;
        let mut cache = ReferenceCache::new(self.layout(dtype)?);
        for slot in self.used_slots() {
            let [first, second] = self.row(slot);
            cache.write_exact(slot, first, second);
        }
        Ok(attend(&self.problem(dtype)?, &self.step, &self.q.values, &cache))
    }

    /// Every cell that some sequence's length covers, each once, page by page.
    pub fn used_slots(&self) -> impl Iterator<Item = Slot> + use<> {
        let mut rows: BTreeMap<PageId, usize> = BTreeMap::new();
        let page_size = self.step.page_size();
        for span in self.step.spans() {
            for (index, &page) in self.step.pages(span).iter().enumerate() {
                let used = (span.kv_len - index * page_size).min(page_size);
                let rows = rows.entry(page).or_default();
                *rows = used.max(*rows);
            }
        }
        rows.into_iter().flat_map(|(page, rows)| (0..rows).map(move |row| Slot { page, row }))
    }

    /// The two parts of a row, `[h, d_k]` and `[h, d_v]` or `[h, s]` and `[r]`.
    pub fn row(&self, slot: Slot) -> [&[f64]; 2] {
        let token = slot.page.0 as usize * self.step.page_size() + slot.row;
        let [first, second] = self.geometry.row().parts();
        let rope = self.second.as_ref().map_or(&[][..], |part| &part.values);
        [&self.first.values[token * first..][..first], &rope[token * second..][..second]]
    }

    /// Largest magnitudes of finite query and cache elements: what a tolerance wants of queries and
    /// keys, for which any larger number will do.
    pub fn largest(&self) -> [f64; 2] {
        let row = |slot| self.row(slot).into_iter().flatten().copied();
        let cache = self.used_slots().flat_map(row);
        [largest_finite(self.q.values.iter().copied()), largest_finite(cache)]
    }

    /// Adds the case to a file. Slots of the page table that no sequence uses hold -1.
    pub fn write_to(&self, writer: &mut Writer) {
        let [first, second] = part_names(&self.geometry);
        let parts =
            [("q", Some(&self.q)), (first, Some(&self.first)), (second, self.second.as_ref())];
        for (name, tensor) in parts {
            if let Some(Floats { format, shape, values }) = tensor {
                writer.floats(name, *format, shape, values);
            }
        }
        self.write_step(writer);
        writer.metadata("scale", &self.scale.to_string());
    }

    fn write_step(&self, writer: &mut Writer) {
        let spans = self.step.spans();
        let lengths = |length: fn(&grouped_attention::Span) -> usize| -> Vec<i32> {
            spans.iter().map(|span| length(span) as i32).collect()
        };
        writer.integers("q_lens", &[spans.len()], &lengths(|span| span.q_len));
        writer.integers("kv_lens", &[spans.len()], &lengths(|span| span.kv_len));
        let pages = spans.iter().map(|span| self.step.pages(span).len());
        // One slot more than is used, so that a reader who looks at it fails.
        let slots = pages.max().unwrap_or(0) + 1;
        let mut table = vec![-1; spans.len() * slots];
        for (span, row) in spans.iter().zip(table.chunks_exact_mut(slots)) {
            for (slot, page) in row.iter_mut().zip(self.step.pages(span)) {
                *slot = page.0 as i32;
            }
        }
        writer.integers("page_table", &[spans.len(), slots], &table);
        let mask = match self.step.mask() {
            Mask::Causal => "causal",
            Mask::Full => "full",
            Mask::Tree(tree) => {
                writer.integers("tree_parents", &[tree.parents().len()], tree.parents());
                "tree"
            }
        };
        writer.metadata("mask", mask);
    }
}

/// Names of the two tensors that a row is stored in.
fn part_names(geometry: &Geometry) -> [&'static str; 2] {
    match geometry.row() {
        Row::Separate { .. } => ["cache_k", "cache_v"],
        Row::Tied { .. } => ["cache_state", "cache_rope"],
    }
}

fn scale(file: &TensorFile<'_>) -> Result<f64, FileError> {
    let expected = "a finite positive number, the model's softmax scale";
    let text = file.metadata("scale", expected)?;
    let refused = || FileError::Value { key: "scale", expected, value: text.to_owned() };
    let scale: f64 = text.trim().parse().map_err(|_| refused())?;
    // The same rule as a problem's: engines hold the scale in f32.
    let held = scale as f32;
    if held.is_finite() && held > 0.0 { Ok(scale) } else { Err(refused()) }
}

/// The kind of row and its sizes, from shapes alone.
fn cache_shapes(file: &mut TensorFile<'_>, q: [usize; 3]) -> Result<(Geometry, Pool), FileError> {
    let tied = file.shape("cache_state").is_some();
    if tied && let Some(name) = ["cache_k", "cache_v"].into_iter().find(|n| file.shape(n).is_some())
    {
        return Err(FileError::Both(
            "cache_state",
            name,
            "states and rope keys, or keys and values",
        ));
    }
    let (shape, geometry) = if tied { tied_shapes(file, q)? } else { separate_shapes(file, q)? };
    let [pages, page_size, ..] = shape;
    if page_size == 0 {
        return Err(FileError::Shape {
            tensor: part_names(&geometry)[0].to_owned(),
            expected: "pages of at least one token".to_owned(),
            got: shape.to_vec(),
        });
    }
    Ok((geometry, Pool { pages, page_size }))
}

fn tied_shapes(
    file: &mut TensorFile<'_>,
    [total_q, h_q, width_k]: [usize; 3],
) -> Result<([usize; 4], Geometry), FileError> {
    let state = file.shape_of_rank::<4>("cache_state", "[pages, page_size, h, s]")?;
    let [pages, page_size, heads, s] = state;
    let r = match file.shape("cache_rope") {
        None => 0,
        Some(_) => {
            let rope = file.shape_of_rank::<3>("cache_rope", "[pages, page_size, r]")?;
            same_pages("cache_rope", &rope, "cache_state", [pages, page_size])?;
            rope[2]
        }
    };
    let Some(n) = width_k.checked_sub(r) else {
        return Err(FileError::Shape {
            tensor: "q".to_owned(),
            expected: format!("[total_q, h_q, n + r], and cache_rope says r = {r}"),
            got: vec![total_q, h_q, width_k],
        });
    };
    let geometry = Geometry::tied(h_q, heads, s, n, r).map_err(FileError::refused("q"))?;
    Ok((state, geometry))
}

fn separate_shapes(
    file: &mut TensorFile<'_>,
    [total_q, h_q, width_k]: [usize; 3],
) -> Result<([usize; 4], Geometry), FileError> {
    if file.shape("cache_k").is_none() && file.shape("cache_v").is_none() {
        let expected = "[pages, page_size, h, s], or cache_k and cache_v";
        return Err(FileError::Missing { tensor: "cache_state".to_owned(), expected });
    }
    let keys = file.shape_of_rank::<4>("cache_k", "[pages, page_size, h_kv, d_k]")?;
    let values = file.shape_of_rank::<4>("cache_v", "[pages, page_size, h_kv, d_v]")?;
    let [pages, page_size, heads, d_k] = keys;
    same_pages("cache_v", &values, "cache_k", [pages, page_size])?;
    if values[2] != heads {
        return Err(FileError::Shape {
            tensor: "cache_v".to_owned(),
            expected: format!("[pages, page_size, {heads}, d_v], as cache_k has {heads} heads"),
            got: values.to_vec(),
        });
    }
    if width_k != d_k {
        return Err(FileError::Shape {
            tensor: "q".to_owned(),
            expected: format!("[total_q, h_q, {d_k}], the width of keys in cache_k"),
            got: vec![total_q, h_q, width_k],
        });
    }
    let geometry =
        Geometry::separate(h_q, heads, d_k, values[3]).map_err(FileError::refused("q"))?;
    Ok((keys, geometry))
}

fn same_pages(
    tensor: &'static str,
    got: &[usize],
    other: &'static str,
    pages: [usize; 2],
) -> Result<(), FileError> {
    if got[..2] == pages {
        return Ok(());
    }
    let [pages, page_size] = pages;
    let expected = format!("{pages} pages of {page_size} tokens, as {other} has");
    Err(FileError::Shape { tensor: tensor.to_owned(), expected, got: got.to_vec() })
}

/// Outputs and work space, which follow from several tensors together.
fn check_budget(file: &TensorFile<'_>, geometry: &Geometry, step: &Step) -> Result<(), FileError> {
    let rows = [step.total_q(), geometry.h_q()];
    let budget = file.budget();
    // o, envelope, spread and deviation.
    let outputs = 4 * size_of::<f64>();
    budget.allow("the output", &[rows[0], rows[1], geometry.width_v(), outputs])?;
    budget.allow("lse", &[rows[0], rows[1], size_of::<RowStats>()])?;
    // The definition lists the visible cells of a query, their scores and their weights. Pages may
    // stand in a table many times, so a length is not bounded by the cache.
    let visible = size_of::<Slot>() + 2 * size_of::<f64>();
    budget.allow("one row's scores", &[step.extent().max_kv_len, visible])
}
