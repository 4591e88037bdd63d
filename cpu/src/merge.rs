//! Merging two partial results row by row, in f64 as the reference does: it runs once per output
//! element, and the roundings that count are those of the stored formats.

use crate::backend::CpuBackend;
use crate::buffer::{Element, with_element};
use grouped_attention::{Merge, TensorInfo, merge_row};

/// Runs one merge.
pub(crate) fn merge(call: Merge<'_, CpuBackend>) {
    with_element!(call.o.dtype(), E => merge_as::<E>(call),
        else unreachable!("no tensor has another format"));
}

fn merge_as<E: Element>(call: Merge<'_, CpuBackend>) {
    let width = call.o.shape()[2];
    let mut row = [0.0; 256];
    let mut other = [0.0; 256];
    let (outputs, others) = (call.o.values_mut::<E>(), call.other_o.values::<E>());
    let lses = call.lse.values_mut::<f32>().iter_mut().zip(call.other_lse.values::<f32>());
    for (index, (lse, other_lse)) in lses.enumerate() {
        let (before, other_lse) = (f64::from(*lse), f64::from(*other_lse));
        // [S-3.16]: an empty part leaves the bits of the other.
        if other_lse == f64::NEG_INFINITY {
            continue;
        }
        let elements = index * width..(index + 1) * width;
        let (o, other_o) = (&mut outputs[elements.clone()], &others[elements]);
        // Pieces of a row, since rows may be wider than any stack array.
        for (o, other_o) in o.chunks_mut(row.len()).zip(other_o.chunks(row.len())) {
            let (row, other) = (&mut row[..o.len()], &mut other[..o.len()]);
            row.iter_mut().zip(&*o).for_each(|(x, o)| *x = f64::from(o.to_f32()));
            other.iter_mut().zip(other_o).for_each(|(x, o)| *x = f64::from(o.to_f32()));
            merge_row(row, &mut before.clone(), other, other_lse);
            o.iter_mut().zip(&*row).for_each(|(o, x)| *o = E::from_f64(*x));
        }
        let mut merged = before;
        merge_row(&mut [], &mut merged, &[], other_lse);
        *lse = merged as f32;
    }
}
