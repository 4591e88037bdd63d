//! Merging two partial results: [`merge_row`].

/// Merges one row in place: `o [d_v]` and `lse` become those of both parts together, which saw
/// disjoint sets of positions `[S-3.15]`.
///
/// ```text
/// m   = max(lse_a, lse_b)
/// lse = m + ln(e^(lse_a - m) + e^(lse_b - m))
/// o   = o_a e^(lse_a - lse) + o_b e^(lse_b - lse)
/// ```
///
/// An empty part (`lse = -inf`) changes nothing, and two empty parts give an empty one `[S-3.16]`.
///
/// # Panics
/// If the outputs differ in length.
pub fn merge_row(o: &mut [f64], lse: &mut f64, other_o: &[f64], other_lse: f64) {
    assert_eq!(o.len(), other_o.len(), "both parts are [d_v]");
    // Copying an empty part's neighbour keeps its bits, and keeps NaN out of -inf - -inf.
    if other_lse == f64::NEG_INFINITY {
        return;
    }
    if *lse == f64::NEG_INFINITY {
        o.copy_from_slice(other_o);
        *lse = other_lse;
        return;
    }
    let max = lse.max(other_lse);
    let merged = max + ((*lse - max).exp() + (other_lse - max).exp()).ln();
    let (weight, other_weight) = ((*lse - merged).exp(), (other_lse - merged).exp());
    for (o, other) in o.iter_mut().zip(other_o) {
        *o = *o * weight + other * other_weight;
    }
    *lse = merged;
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    // [S-3.15]
    #[test]
    fn two_halves_of_a_softmax_make_the_whole() {
        // Scores ln 1, ln 2 | ln 3 over values 10, 20 | 30.
        let (mut o, mut lse) = (vec![(10.0 + 2.0 * 20.0) / 3.0], 3.0_f64.ln());
        merge_row(&mut o, &mut lse, &[30.0], 3.0_f64.ln());
        assert_relative_eq!(o[0], (10.0 + 40.0 + 90.0) / 6.0, max_relative = 1e-15);
        assert_relative_eq!(lse, 6.0_f64.ln(), max_relative = 1e-15);
    }

    // [S-3.16]
    #[test]
    fn empty_parts_change_nothing() {
        let (mut o, mut lse) = (vec![1.5], 0.25);
        merge_row(&mut o, &mut lse, &[0.0], f64::NEG_INFINITY);
        assert_eq!((o[0], lse), (1.5, 0.25));
        let (mut o, mut lse) = (vec![0.0], f64::NEG_INFINITY);
        merge_row(&mut o, &mut lse, &[1.5], 0.25);
        assert_eq!((o[0], lse), (1.5, 0.25));
        let (mut o, mut lse) = (vec![0.0], f64::NEG_INFINITY);
        merge_row(&mut o, &mut lse, &[0.0], f64::NEG_INFINITY);
        assert_eq!((o[0], lse), (0.0, f64::NEG_INFINITY));
    }

    #[test]
    fn far_apart_parts_do_not_overflow() {
        let (mut o, mut lse) = (vec![1.0], -1e300);
        merge_row(&mut o, &mut lse, &[2.0], 1e300);
        assert_eq!((o[0], lse), (2.0, 1e300));
    }
}
