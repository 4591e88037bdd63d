//! The reference as an engine: plain storage in f64, and the definition for its only kernel.

use crate::arithmetic::Arithmetic;
use crate::attend::attend;
use crate::backend::{Backend, CacheInfo, Identity, PlanInfo, Planned, Status, TensorInfo};
use crate::call::{Append, Attend, CopyRows, Merge, Planning, ReadRows, Update, Upload};
use crate::dtype::Dtype;
use crate::error::EngineError;
use crate::geometry::Row;
use crate::layout::CacheLayout;
use crate::merge::merge_row;
use crate::pages::{RowCopy, Slot};
use crate::problem::{Problem, Unsupported};
use crate::step::{Step, Write};
use crate::tensor::{HostTensor, checked_elements};

/// The engine that other engines are compared with. Right, readable, and slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Reference {
    /// The reference engine. It needs nothing and cannot fail to start.
    pub fn new() -> Reference {
        Reference
    }
}

/// A tensor of the reference: values of its format, held in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Row-major; each a value of `dtype`.
    values: Vec<f64>,
}

impl ReferenceTensor {
    /// The elements, row-major; each a value of the tensor's format.
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

impl TensorInfo for ReferenceTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// A cache of the reference. Cells hold NaN until they are written, so that reading one that
/// nobody wrote shows.
#[derive(Clone, Debug)]
pub struct ReferenceCache {
    layout: CacheLayout,
    /// Keys `[pages, page_size, h, d_k]` or states `[pages, page_size, h, s]`.
    first: Vec<f64>,
    /// Values `[pages, page_size, h, d_v]` or rope keys `[pages, page_size, r]`.
    second: Vec<f64>,
}

impl ReferenceCache {
    /// A cache in which every cell is NaN.
    ///
    /// # Panics
    /// If memory runs out: [`Backend::create_cache`] answers that with an error.
    pub fn new(layout: CacheLayout) -> ReferenceCache {
        Reference.create_cache(layout).expect("memory for the cache")
    }

    /// `K_g` of one cached token, `[width_k]` `[S-2.4]`.
    pub fn key(&self, slot: Slot, head: usize) -> impl Iterator<Item = f64> + '_ {
        let (head_part, shared_part) = match self.layout.geometry().row() {
            Row::Separate { d_k, .. } => (&self.first(slot)[head * d_k..][..d_k], &[][..]),
            Row::Tied { s, n, .. } => (&self.first(slot)[head * s..][..n], self.second(slot)),
        };
        head_part.iter().chain(shared_part).copied()
    }

    /// `V_g` of one cached token, `[width_v]`.
    pub fn value(&self, slot: Slot, head: usize) -> &[f64] {
        match self.layout.geometry().row() {
            Row::Separate { d_v, .. } => &self.second(slot)[head * d_v..][..d_v],
            Row::Tied { s, .. } => &self.first(slot)[head * s..][..s],
        }
    }

    /// The first part of one row: keys `[h, d_k]` or states `[h, s]`.
    pub fn first(&self, slot: Slot) -> &[f64] {
        let width = self.layout.geometry().row().parts()[0];
        &self.first[self.token(slot) * width..][..width]
    }

    /// The second part of one row: values `[h, d_v]` or the rope key `[r]`.
    pub fn second(&self, slot: Slot) -> &[f64] {
        let width = self.layout.geometry().row().parts()[1];
        &self.second[self.token(slot) * width..][..width]
    }

    /// Overwrites one row, rounding each element to the cache's format.
    ///
    /// # Panics
    /// If the parts do not have the row's widths, or the slot is not one of the cache.
    pub fn write(&mut self, slot: Slot, first: &[f64], second: &[f64]) {
        let dtype = self.layout.dtype();
        let rounded = |part: &[f64]| -> Vec<f64> { part.iter().map(|&x| dtype.round(x)).collect() };
        self.write_exact(slot, &rounded(first), &rounded(second));
    }

    /// Overwrites one row with numbers as they are, whatever the cache's format: for
    /// [`attend`](crate::attend()) of real numbers, which no engine's format holds.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    pub fn write_exact(&mut self, slot: Slot, first: &[f64], second: &[f64]) {
        let token = self.token(slot);
        let widths = self.layout.geometry().row().parts();
        // The widths place the row, so a part of another width would land in another token's cells.
        assert_eq!([first.len(), second.len()], widths, "the parts of a row");
        for (cells, values) in [(&mut self.first, first), (&mut self.second, second)] {
            cells[token * values.len()..][..values.len()].copy_from_slice(values);
        }
    }

    fn token(&self, slot: Slot) -> usize {
        // In a flat array a row past the page would be the next page's.
        assert!(slot.row < self.layout.page_size(), "{slot:?} leaves its page");
        slot.page.0 as usize * self.layout.page_size() + slot.row
    }

    fn copy(&mut self, copy: &RowCopy) {
        let (from, to) = (self.token(copy.from), self.token(copy.to));
        let widths = self.layout.geometry().row().parts();
        for (cells, width) in [&mut self.first, &mut self.second].into_iter().zip(widths) {
            cells.copy_within(from * width..(from + copy.rows) * width, to * width);
        }
    }
}

impl CacheInfo for ReferenceCache {
    fn layout(&self) -> &CacheLayout {
        &self.layout
    }
}

/// An array of one value; a layout or shape has checked that its bytes can be addressed.
fn all(value: f64, elements: usize) -> Result<Vec<f64>, EngineError> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(elements)
        .map_err(|_| EngineError::OutOfMemory { bytes: elements * size_of::<f64>() })?;
    values.resize(elements, value);
    Ok(values)
}

/// A plan of the reference: the step itself.
#[derive(Clone, Debug)]
pub struct ReferencePlan {
    planned: Planned,
    step: Step,
}

impl ReferencePlan {
    /// The step that the plan was last written for.
    pub fn step(&self) -> &Step {
        &self.step
    }
}

impl PlanInfo for ReferencePlan {
    fn planned(&self) -> &Planned {
        &self.planned
    }
}

impl Backend for Reference {
    type Tensor = ReferenceTensor;
    type Cache = ReferenceCache;
    type Plan = ReferencePlan;

    fn identity(&self) -> Identity {
        Identity { name: "reference", kernel: "f64 two-pass".into(), device: "cpu".into() }
    }

    fn supports(&self, problem: &Problem) -> Result<(), Unsupported> {
        match problem.extension() {
            Some(extension) => Err(Unsupported::Extension(extension)),
            None => Ok(()),
        }
    }

    fn arithmetic(&self, _problem: &Problem) -> Arithmetic {
        Arithmetic::F64
    }

    fn allocate(&self, dtype: Dtype, shape: &[usize]) -> Result<ReferenceTensor, EngineError> {
        let elements =
            checked_elements(shape).map_err(|_| EngineError::OutOfMemory { bytes: usize::MAX })?;
        Ok(ReferenceTensor { dtype, shape: shape.to_vec(), values: all(0.0, elements)? })
    }

    fn upload(&self, call: Upload<'_, Self>) -> Result<(), EngineError> {
        call.tensor.values = call.host.to_f64();
        Ok(())
    }

    fn download(&self, tensor: &ReferenceTensor) -> Result<HostTensor, EngineError> {
        Ok(HostTensor::from_f64(tensor.dtype, &tensor.shape, &tensor.values)
            .expect("a tensor's values fill its shape"))
    }

    fn create_cache(&self, layout: CacheLayout) -> Result<ReferenceCache, EngineError> {
        let tokens = layout.pages() * layout.page_size();
        let [first, second] = layout.geometry().row().parts();
        Ok(ReferenceCache {
            layout,
            first: all(f64::NAN, tokens * first)?,
            second: all(f64::NAN, tokens * second)?,
        })
    }

    fn plan(&self, call: Planning<'_>) -> Result<ReferencePlan, EngineError> {
        self.supports(call.problem)?;
        Ok(ReferencePlan { planned: call.planned(), step: call.step.clone() })
    }

    fn update(&self, call: Update<'_, Self>) -> Result<(), EngineError> {
        *call.plan = ReferencePlan { planned: call.planned(), step: call.step.clone() };
        Ok(())
    }

    fn append(&self, call: Append<'_, Self>) -> Result<(), EngineError> {
        let [first, second] = call.cache.layout.geometry().row().parts();
        let problem = call.plan.planned.problem();
        for (index, &Write { slot, position }) in call.plan.step.writes().iter().enumerate() {
            let mut first = call.first.values[index * first..][..first].to_vec();
            let mut second = match call.second {
                Some(tensor) => tensor.values[index * second..][..second].to_vec(),
                None => Vec::new(),
            };
            if call.rotating {
                let rope = problem.rope().expect("a rotating append has a rope");
                // [S-4.8]: every key where keys stand apart, else the one rope key.
                match problem.geometry().row() {
                    Row::Separate { d_k, .. } => {
                        first.chunks_exact_mut(d_k).for_each(|key| rope.rotate(key, position));
                    }
                    Row::Tied { .. } => rope.rotate(&mut second, position),
                }
            }
            call.cache.write(slot, &first, &second);
        }
        Ok(())
    }

    fn copy_rows(&self, call: CopyRows<'_, Self>) -> Result<(), EngineError> {
        call.copies.iter().for_each(|copy| call.cache.copy(copy));
        Ok(())
    }

    fn read_rows(&self, call: ReadRows<'_, Self>) -> Result<[HostTensor; 2], EngineError> {
        let ReadRows { cache, slots } = call;
        let [first, second] = cache.layout.part_shapes().map(|shape| {
            let row = &shape[2..];
            [&[slots.len()], row].concat()
        });
        let host = |shape: &[usize], values: Vec<f64>| {
            HostTensor::from_f64(cache.layout.dtype(), shape, &values)
                .expect("each slot gives a row of the cache's widths")
        };
        Ok([
            host(&first, slots.iter().flat_map(|&slot| cache.first(slot)).copied().collect()),
            host(&second, slots.iter().flat_map(|&slot| cache.second(slot)).copied().collect()),
        ])
    }

    fn attend(&self, call: Attend<'_, Self>) -> Result<(), EngineError> {
        let ReferencePlan { planned, step } = call.plan;
        let problem = planned.problem();
        let geometry = problem.geometry();
        let queries = step.total_q() * geometry.h_q() * geometry.width_k();
        let attended = attend(problem, step, &call.q.values[..queries], call.cache);
        for (o, value) in call.o.values.iter_mut().zip(&attended.o) {
            *o = problem.output().round(*value);
        }
        if let Some(lse) = call.lse {
            for (lse, row) in lse.values.iter_mut().zip(&attended.rows) {
                *lse = Dtype::F32.round(row.lse);
            }
        }
        Ok(())
    }

    fn merge(&self, call: Merge<'_, Self>) -> Result<(), EngineError> {
        let d_v = call.o.shape[2];
        let dtype = call.o.dtype;
        let rows = call.lse.values.iter_mut().zip(&call.other_lse.values);
        for (row, (lse, &other_lse)) in rows.enumerate() {
            let elements = row * d_v..(row + 1) * d_v;
            let o = &mut call.o.values[elements.clone()];
            merge_row(o, lse, &call.other_o.values[elements], other_lse);
            *lse = Dtype::F32.round(*lse);
            o.iter_mut().for_each(|o| *o = dtype.round(*o));
        }
        Ok(())
    }

    fn status(&self, _plan: &ReferencePlan) -> Result<Status, EngineError> {
        Ok(Status::Ok)
    }

    fn synchronize(&self) -> Result<(), EngineError> {
        Ok(())
    }
}
