//! Writing new rows into a cache, rotated on the way in if asked.

use crate::backend::CpuBackend;
use crate::buffer::{Element, with_element};
use crate::cache::Part;
use crate::plan::CpuPlan;
use crate::tensor::CpuTensor;
use grouped_attention::{Append, PlanInfo, Rope, RopeStyle, Row, Write};

/// Runs one append.
pub(crate) fn append(call: Append<'_, CpuBackend>) {
    let problem = call.plan.planned().problem();
    let rope = problem.rope().filter(|_| call.rotating);
    // [S-4.8]: every key where keys stand apart, else the one rope key.
    let ropes = match problem.geometry().row() {
        Row::Separate { .. } => [rope, None],
        Row::Tied { .. } => [None, rope],
    };
    let plan: &CpuPlan = call.plan;
    let rows = [Some(call.first), call.second];
    with_element!(problem.dtype(), E => {
        for ((part, rows), rope) in call.cache.parts_mut().iter_mut().zip(rows).zip(ropes) {
            if let Some(rows) = rows {
                append_part::<E>(part, rows, plan.writes(), rope);
            }
        }
    }, else unreachable!("no plan has another format"));
}

/// Writes `rows` `[writes, heads, width]` to their cells.
fn append_part<E: Element>(
    part: &mut Part,
    rows: &CpuTensor,
    writes: &[Write],
    rope: Option<&Rope>,
) {
    let (heads, width) = (part.heads, part.width);
    if width == 0 {
        return;
    }
    let head_stride = part.head_stride();
    let rows = rows.values::<E>().chunks_exact(heads * width);
    for (row, write) in rows.zip(writes) {
        let offset = part.offset(write.slot.page.0 as usize, write.slot.row);
        let cells = part.cells_mut::<E>();
        let angles = rope.map(|rope| (rope, rope.cos_sin(write.position)));
        for (head, row) in row.chunks_exact(width).enumerate() {
            let cells = &mut cells[offset + head * head_stride..][..width];
            match &angles {
                None => cells.copy_from_slice(row),
                Some((rope, angles)) => rotate_into(cells, row, rope, angles),
            }
        }
    }
}

/// Turns one vector in f64, so that the only rounding that counts is the cache's `[S-7.19]`.
fn rotate_into<E: Element>(cells: &mut [E], row: &[E], rope: &Rope, angles: &[(f64, f64)]) {
    for (i, &(cos, sin)) in angles.iter().enumerate() {
        let (first, second) = match rope.style() {
            RopeStyle::HalfSplit => (i, i + row.len() / 2),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (f64::from(row[first].to_f32()), f64::from(row[second].to_f32()));
        cells[first] = E::from_f64(a * cos - b * sin);
        cells[second] = E::from_f64(b * cos + a * sin);
    }
}
