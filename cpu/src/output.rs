//! Where results go.

use crate::buffer::Element;
use crate::disjoint::Disjoint;
use crate::lanes::Lanes;
use crate::tensor::CpuTensor;
use grouped_attention::Dtype;
use half::{bf16, f16};

/// The tensors `o` and `lse` of a call, for threads to write rows of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output<'a> {
    /// `[rows, h_q, width_v]`.
    o: Rows<'a>,
    /// `[rows, h_q]`.
    lse: Option<Disjoint<'a, f32>>,
    width: usize,
}

#[derive(Clone, Copy, Debug)]
enum Rows<'a> {
    F32(Disjoint<'a, f32>),
    F16(Disjoint<'a, f16>),
    Bf16(Disjoint<'a, bf16>),
}

impl<'a> Output<'a> {
    pub(crate) fn new(
        dtype: Dtype,
        o: &'a mut CpuTensor,
        lse: Option<&'a mut CpuTensor>,
        width: usize,
    ) -> Output<'a> {
        let o = match dtype {
            Dtype::F32 => Rows::F32(Disjoint::new(o.values_mut())),
            Dtype::F16 => Rows::F16(Disjoint::new(o.values_mut())),
            _ => Rows::Bf16(Disjoint::new(o.values_mut())),
        };
        Output { o, lse: lse.map(|lse| Disjoint::new(lse.values_mut())), width }
    }

    /// Writes one row from sums in the order of the units.
    ///
    /// # Safety
    /// No other slice may reach this row of the tensors meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write<L: Lanes>(
        &self,
        row: usize,
        o: &[f32],
        lse: f32,
        interleaved: bool,
    ) {
        let start = row * self.width;
        match &self.o {
            Rows::F32(rows) => {
                // SAFETY: the caller's promise.
                let row = unsafe { rows.take(start, self.width) };
                narrow::<L, f32>(row, o, interleaved);
            }
            Rows::F16(rows) => {
                // SAFETY: the caller's promise.
                let row = unsafe { rows.take(start, self.width) };
                narrow::<L, f16>(row, o, interleaved);
            }
            Rows::Bf16(rows) => {
                // SAFETY: the caller's promise.
                let row = unsafe { rows.take(start, self.width) };
                narrow::<L, bf16>(row, o, interleaved);
            }
        }
        if let Some(rows) = &self.lse {
            // SAFETY: the caller's promise.
            let cell = unsafe { rows.take(row, 1) };
            cell[0] = lse;
        }
    }
}

/// Rounds a row, and puts it into the order in which it lies in memory.
#[inline(always)]
fn narrow<L: Lanes, O: Element>(row: &mut [O], o: &[f32], interleaved: bool) {
    if !interleaved {
        row.iter_mut().zip(o).for_each(|(cell, x)| *cell = O::from_f32(*x));
        return;
    }
    for (row, unit) in row.chunks_mut(L::UNIT).zip(o.chunks_exact(L::UNIT)) {
        let (even, odd) = unit.split_at(L::LANES);
        if row.len() == L::UNIT {
            // Without a rest, which the compiler would not make vectors of.
            for (pair, (even, odd)) in row.as_chunks_mut().0.iter_mut().zip(even.iter().zip(odd)) {
                *pair = [O::from_f32(*even), O::from_f32(*odd)];
            }
            continue;
        }
        for (cells, (even, odd)) in row.chunks_mut(2).zip(even.iter().zip(odd)) {
            for (cell, x) in cells.iter_mut().zip([even, odd]) {
                *cell = O::from_f32(*x);
            }
        }
    }
}
