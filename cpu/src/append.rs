//! Writing new rows into a cache, rotated on the way in if asked.

use crate::backend::CpuBackend;
use crate::buffer::{Element, with_element};
use crate::cache::Part;
use crate::plan::CpuPlan;
use crate::tensor::CpuTensor;
use grouped_attention::{Append, PlanInfo, RopeStyle, Row, Write};

/// Runs one append.
pub(crate) fn append(call: Append<'_, CpuBackend>) {
    let plan: &CpuPlan = call.plan;
    let problem = plan.planned().problem();
    let rotation = problem.rope().filter(|_| call.rotating).map(|rope| Rotation {
        style: rope.style(),
        turns: plan.turns(),
        pairs: rope.width() / 2,
    });
    // [S-4.8]: every key where keys stand apart, else the one rope key.
    let rotations = match problem.geometry().row() {
        Row::Separate { .. } => [rotation, None],
        Row::Tied { .. } => [None, rotation],
    };
    let rows = [Some(call.first), call.second];
    with_element!(problem.dtype(), E => {
        for ((part, rows), rotation) in call.cache.parts_mut().iter_mut().zip(rows).zip(rotations) {
            if let Some(rows) = rows {
                append_part::<E>(part, rows, plan.writes(), rotation);
            }
        }
    }, else unreachable!("no plan has another format"));
}

/// How rows are rotated on the way in.
#[derive(Clone, Copy)]
struct Rotation<'a> {
    style: RopeStyle,
    /// Cosine and sine of each pair's angle, `[writes, pairs]`.
    turns: &'a [(f64, f64)],
    pairs: usize,
}

/// Writes `rows` `[writes, heads, width]` to their cells.
fn append_part<E: Element>(
    part: &mut Part,
    rows: &CpuTensor,
    writes: &[Write],
    rotation: Option<Rotation<'_>>,
) {
    let (heads, width) = (part.heads, part.width);
    if width == 0 {
        return;
    }
    let head_stride = part.head_stride();
    let rows = rows.values::<E>().chunks_exact(heads * width);
    for (index, (row, write)) in rows.zip(writes).enumerate() {
        let offset = part.offset(write.slot.page.0 as usize, write.slot.row);
        let cells = part.cells_mut::<E>();
        for (head, row) in row.chunks_exact(width).enumerate() {
            let cells = &mut cells[offset + head * head_stride..][..width];
            match rotation {
                None => cells.copy_from_slice(row),
                Some(Rotation { style, turns, pairs }) => {
                    rotate_into(cells, row, style, &turns[index * pairs..][..pairs]);
                }
            }
        }
    }
}

/// Turns one vector in f64, so that the only rounding that counts is the cache's `[S-7.19]`.
fn rotate_into<E: Element>(cells: &mut [E], row: &[E], style: RopeStyle, turns: &[(f64, f64)]) {
    for (i, &(cos, sin)) in turns.iter().enumerate() {
        let (first, second) = match style {
            RopeStyle::HalfSplit => (i, i + turns.len()),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (f64::from(row[first].to_f32()), f64::from(row[second].to_f32()));
        cells[first] = E::from_f64(a * cos - b * sin);
        cells[second] = E::from_f64(b * cos + a * sin);
    }
}
