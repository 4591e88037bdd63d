//! What the cache holds when a script has run.

use super::Fault;
use crate::compare::distance;
use crate::fill::TokenRow;
use crate::script::Script;
use grouped_attention::{Arithmetic, Dtype};

/// Cells of tokens hold their rows, bit for bit but for what a rotation may be off, and cells that
/// were only ever poisoned hold NaN still `[S-4.7] [S-4.9] [S-7.19]`.
pub(super) fn judge(
    script: &Script,
    arithmetic: Arithmetic,
    parts: [&[f64]; 2],
) -> Result<(), Fault> {
    let dtype = script.problem.dtype();
    let widths = script.problem.geometry().row().parts();
    let flushes = arithmetic.flushes_subnormals && dtype != Dtype::F16;
    let eta = if flushes { 2f64.powi(-126) } else { dtype.min_subnormal() / 2.0 };
    for (index, &slot) in script.audit.slots.iter().enumerate() {
        let stored = script.audit.rows.get(index);
        for part in 0..2 {
            let got = &parts[part][index * widths[part]..][..widths[part]];
            let row = stored.map(|stored| part_of(&stored.row, part));
            let rotation = stored.and_then(|stored| stored.rotation.as_ref());
            let rotation = rotation.map(|rotation| part_of(rotation, part));
            for (element, &got) in got.iter().enumerate() {
                let expected = row.map_or(f64::NAN, |row| row[element]);
                let per_roundoff = rotation.map_or(0.0, |rotation| rotation[element]);
                let near = if per_roundoff == 0.0 {
                    let rounded = dtype.round(expected);
                    rounded.to_bits() == got.to_bits() || (rounded.is_nan() && got.is_nan())
                } else {
                    let u_out = dtype.unit_roundoff();
                    let turned = arithmetic.vector * per_roundoff * (1.0 + u_out);
                    distance(expected, got) <= turned + u_out * expected.abs() + eta
                };
                if !near {
                    return Err(Fault::Stored { slot, part, element, expected, got });
                }
            }
        }
    }
    Ok(())
}

fn part_of(row: &TokenRow, part: usize) -> &[f64] {
    if part == 0 { &row.first } else { &row.second }
}
