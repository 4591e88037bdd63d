//! Geometries by family, and fitting a description to its scenario.

use crate::case::{Case, Lens};
use crate::draft::{Draft, MaskShape};
use crate::fill::Fill;
use crate::scenario::Scenario;
use grouped_attention::{Geometry, Row, Variant};

/// A family of geometries: which kind of row, and what is special about its widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// One key per query head.
    Mha,
    /// Values as wide as keys.
    Gqa,
    /// Values of another width than keys.
    GqaUneven,
    /// One key for all.
    Mqa,
    /// Half of the state is key, as in the paper.
    Gta,
    /// A key prefix that nothing divides.
    GtaPrefix,
    /// No rope key.
    GtaNoRope,
    /// Nothing but the rope key.
    GtaRopeOnly,
    /// One latent head.
    Mla,
    /// One latent head, no rope key.
    MlaNoRope,
    /// Several latent heads.
    Gla,
}

impl Family {
    pub(super) const ALL: [Family; 11] = [
        Family::Mha,
        Family::Gqa,
        Family::GqaUneven,
        Family::Mqa,
        Family::Gta,
        Family::GtaPrefix,
        Family::GtaNoRope,
        Family::GtaRopeOnly,
        Family::Mla,
        Family::MlaNoRope,
        Family::Gla,
    ];

    /// Families whose geometries go by a variant's name.
    pub(super) fn of(variant: Variant) -> &'static [Family] {
        match variant {
            Variant::Mha => &[Family::Mha],
            Variant::Gqa => &[Family::Gqa, Family::GqaUneven],
            Variant::Mqa => &[Family::Mqa],
            Variant::Gta => {
                &[Family::Gta, Family::GtaPrefix, Family::GtaNoRope, Family::GtaRopeOnly]
            }
            Variant::Mla => &[Family::Mla, Family::MlaNoRope],
            Variant::Gla => &[Family::Gla],
        }
    }

    /// A geometry of this family: `heads` cached heads where the family has several, `group` query
    /// heads on each, `width` elements of a key or state, a rope key of `rope`.
    pub(super) fn geometry(
        self,
        group: usize,
        heads: usize,
        width: usize,
        rope: usize,
    ) -> Geometry {
        let several = heads.max(2);
        let rope = rope.max(1);
        let geometry = match self {
            // The group of MHA is 1; the number serves as that of its heads.
            Family::Mha => Geometry::separate(group, group, width, width),
            // With one query head a key, GQA would be MHA.
            Family::Gqa => Geometry::separate(several * group.max(2), several, width, width),
            Family::GqaUneven => {
                Geometry::separate(several * group.max(2), several, width, width / 2 + 3)
            }
            Family::Mqa => Geometry::separate(group.max(2), 1, width, width),
            Family::Gta => Geometry::tied(heads * group, heads, 2 * width, width, rope),
            Family::GtaPrefix => {
                Geometry::tied(heads * group, heads, width + 3, (width / 3).max(1), rope)
            }
            Family::GtaNoRope => Geometry::tied(heads * group, heads, width + 1, width, 0),
            Family::GtaRopeOnly => Geometry::tied(heads * group, heads, width, 0, rope),
            Family::Mla => Geometry::tied(group, 1, width, width, rope),
            Family::MlaNoRope => Geometry::tied(group, 1, width, width, 0),
            Family::Gla => Geometry::tied(several * group, several, width, width, rope),
        };
        geometry.expect("families have legal widths")
    }
}

/// The nearest description that is a legal case: what a scenario or mask cannot have is taken away.
pub(super) fn fitted(mut case: Case) -> Case {
    let trees = matches!(case.mask, MaskShape::Tree(_));
    if trees || case.scenario.appends() {
        for Lens { q, kv } in &mut case.lens {
            *q = (*q).min(*kv);
        }
    }
    if case.scenario == Scenario::Merge {
        case.no_lse = false;
        if trees {
            // A tree needs its whole draft in the second part, and the cut is before it.
            case.mask = MaskShape::Tree(Draft::Random);
        }
    }
    if case.shared || matches!(case.mask, MaskShape::Tree(Draft::Explicit(_))) {
        case.invariant = false;
    }
    if !matches!(case.scenario, Scenario::Attend | Scenario::Append) {
        case.invariant = false;
    }
    if matches!(case.scenario, Scenario::Rotate(_)) {
        case.geometry = turnable(case.geometry);
    }
    // NaN and infinities say nothing of bits, and an infinity in a rotated key nothing of pairs.
    if case.fill.has_non_finite() && matches!(case.scenario, Scenario::Rotate(_)) {
        case.fill = Fill::Gaussian;
    }
    case
}

/// The same geometry with an even number of elements to rotate.
fn turnable(geometry: Geometry) -> Geometry {
    let h_q = geometry.h_q();
    let even = |width: usize| width + width % 2;
    let turned = match geometry.row() {
        Row::Separate { heads, d_k, d_v } => Geometry::separate(h_q, heads, even(d_k), d_v),
        Row::Tied { heads, s, n, r } => Geometry::tied(h_q, heads, s, n, even(r)),
    };
    turned.expect("one more element is legal too")
}

/// Shortens the longest sequences until the oracle needs about `flops` for the case.
pub(super) fn affordable(mut case: Case, flops: usize) -> Case {
    while case.flops() > flops {
        let cost = |lens: &&mut Lens| lens.q * lens.kv;
        let Some(longest) = case.lens.iter_mut().max_by_key(cost) else { break };
        if longest.q > 1 && longest.q * 64 > longest.kv {
            longest.q /= 2;
        } else {
            longest.kv = longest.kv * 3 / 4;
        }
    }
    case
}
