//! A grid over the axes of a case, thinned so that every pair of values still meets.
//!
//! The full product of the axes below has more than two million points. Bugs mostly need one or
//! two settings to meet, so the default run takes points until every pair of values of every two
//! axes occurs in one of them, and the extensive run until every triple does. Long sequences are
//! shortened where heads and widths make them dear.

use super::corpus::Named;
use super::shape::{Family, affordable, fitted};
use crate::budget::Budget;
use crate::case::{Case, Lens};
use crate::draft::{Draft, MaskShape};
use crate::fill::{Fill, Place};
use crate::noise::Noise;
use crate::scenario::Scenario;
use grouped_attention::Dtype;
use std::collections::HashSet;

const GROUPS: [usize; 10] = [1, 2, 3, 5, 6, 7, 8, 16, 64, 128];
/// (width of a key or state, of the rope key): odd, small, vector-sized, matrix-sized, published.
const WIDTHS: [(usize, usize); 6] = [(5, 3), (8, 4), (16, 8), (40, 12), (64, 32), (128, 64)];
const PAGES: [usize; 7] = [1, 2, 3, 7, 16, 64, 128];
/// Format of queries and cache, and whether outputs are f32.
const FORMATS: [(Dtype, bool); 5] = [
    (Dtype::F32, false),
    (Dtype::Bf16, false),
    (Dtype::F16, false),
    (Dtype::Bf16, true),
    (Dtype::F16, true),
];
const MASKS: [MaskShape; 5] = [
    MaskShape::Causal,
    MaskShape::Full,
    MaskShape::Tree(Draft::Random),
    MaskShape::Tree(Draft::Roots),
    MaskShape::Tree(Draft::Binary),
];
const FILLS: [Fill; 14] = [
    Fill::Gaussian,
    Fill::Needle(Place::BeforeLast(0)),
    Fill::Needle(Place::BeforeLast(1)),
    Fill::Needle(Place::At(0)),
    Fill::Needle(Place::Edges),
    Fill::Large,
    Fill::Cancelling,
    Fill::Ties,
    Fill::Denormal,
    Fill::Rising,
    Fill::Nan(Place::BeforeLast(0)),
    Fill::Nan(Place::At(0)),
    Fill::Infinity(Place::BeforeLast(1)),
    Fill::NanQuery,
];
/// Shapes of batches: see [`lens`].
const BATCHES: usize = 8;
/// Plain, shared pages, no lse, batch-invariant.
const MODES: usize = 4;
/// Multiples of `1 / sqrt(width_k)`: never that number itself.
const SCALES: [f64; 3] = [0.8, 1.7, 0.3];

const AXES: [usize; 10] = [
    Family::ALL.len(),
    GROUPS.len(),
    WIDTHS.len(),
    PAGES.len(),
    FORMATS.len(),
    MASKS.len(),
    Scenario::ALL.len(),
    FILLS.len(),
    BATCHES,
    MODES,
];

/// One value of each axis.
type Point = [usize; AXES.len()];

/// What the oracle may compute for one case: about 10 ms.
const FLOPS: usize = 12_000_000;

/// Cases of the grid, each under a number and the words that set it apart.
pub fn grid(budget: &Budget) -> Vec<Named> {
    let strength = if budget.extensive { 3 } else { 2 };
    let named = |(index, point): (usize, Point)| {
        let case = case(point, budget.seed.wrapping_add(index as u64));
        let name = format!("grid-{index:04}-{}-{}-{}", case.dtype, case.scenario, case.fill);
        let why = "every pair of settings meets somewhere in the grid".to_owned();
        Named { name: name.replace(':', "-"), why, case }
    };
    covering(strength, budget.seed).into_iter().enumerate().map(named).collect()
}

fn case(point: Point, seed: u64) -> Case {
    let [family, group, width, page, format, mask, scenario, fill, batch, mode] = point;
    let mut noise = Noise::new(seed, &[0x6772_6964]);
    let (width, rope) = WIDTHS[width];
    let heads = 1 + noise.below(3);
    let geometry = Family::ALL[family].geometry(GROUPS[group], heads, width, rope);
    let scale = SCALES[noise.below(SCALES.len())] / (geometry.width_k() as f64).sqrt();
    // Three digits are enough, and a line is to be read.
    let scale = (scale * 1000.0).round().max(1.0) / 1000.0;
    let mut case = Case::new(geometry, 0, 0, scale);
    case.page_size = PAGES[page];
    (case.dtype, case.f32_output) = FORMATS[format];
    case.mask = MASKS[mask].clone();
    case.scenario = Scenario::ALL[scenario];
    case.fill = FILLS[fill];
    case.lens = lens(batch, PAGES[page], &mut noise);
    case.seed = seed;
    match mode {
        1 => case.shared = true,
        2 => case.no_lse = true,
        3 => case.invariant = true,
        _ => {}
    }
    affordable(fitted(case), FLOPS)
}

/// Lengths of a batch, around the page size where that is the point.
fn lens(batch: usize, page: usize, noise: &mut Noise) -> Vec<Lens> {
    let pairs: Vec<(usize, usize)> = match batch {
        0 => vec![(1, 37)],
        1 => vec![(1, 0), (0, 5), (3, page), (8, 2 * page + 1), (2, 33)],
        2 => vec![(1, page.saturating_sub(1)), (1, page), (1, page + 1), (1, 2 * page)],
        3 => vec![(1, 2049)],
        4 => vec![(2, 257), (1, 64), (4, 130)],
        5 => (0..17).map(|_| (1, noise.below(21))).collect(),
        6 => vec![(3, 2), (8, 5), (2, 2), (5, 0)],
        _ => (0..4).map(|_| (noise.below(9), noise.below(300))).collect(),
    };
    pairs.into_iter().map(|(q, kv)| Lens { q, kv }).collect()
}

/// Points in which every combination of values of every `strength` axes occurs: each is made to
/// have one combination that is missing, and is the best of a few at having more.
fn covering(strength: usize, seed: u64) -> Vec<Point> {
    const CANDIDATES: usize = 12;
    let mut noise = Noise::new(seed, &[0x636f_7665, strength as u64]);
    let subsets = subsets(strength);
    let mut missing: HashSet<(usize, Vec<usize>)> = HashSet::new();
    let mut queue = Vec::new();
    for (index, axes) in subsets.iter().enumerate() {
        for values in combinations(axes) {
            missing.insert((index, values.clone()));
            queue.push((index, values));
        }
    }
    noise.shuffle(&mut queue);
    let mut points = Vec::new();
    while let Some(wanted) = queue.pop() {
        if !missing.contains(&wanted) {
            continue;
        }
        let candidate = |noise: &mut Noise| {
            let mut point: Point = AXES.map(|values| noise.below(values));
            subsets[wanted.0].iter().zip(&wanted.1).for_each(|(&axis, &value)| point[axis] = value);
            point
        };
        let has = |point: &Point| -> Vec<(usize, Vec<usize>)> {
            let of = |axes: &Vec<usize>| axes.iter().map(|&axis| point[axis]).collect();
            let all = subsets.iter().map(of).enumerate();
            all.filter(|combination| missing.contains(combination)).collect()
        };
        let best =
            (0..CANDIDATES).map(|_| candidate(&mut noise)).max_by_key(|point| has(point).len());
        let point = best.expect("there is a candidate");
        for combination in has(&point) {
            missing.remove(&combination);
        }
        points.push(point);
    }
    points
}

/// Every choice of `strength` axes.
fn subsets(strength: usize) -> Vec<Vec<usize>> {
    let mut subsets = vec![Vec::new()];
    for _ in 0..strength {
        let longer = |subset: Vec<usize>| {
            let first = subset.last().map_or(0, |last| last + 1);
            (first..AXES.len()).map(move |axis| [subset.as_slice(), &[axis]].concat())
        };
        subsets = subsets.into_iter().flat_map(longer).collect();
    }
    subsets
}

/// Every combination of values of some axes.
fn combinations(axes: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for &axis in axes {
        let longer = |values: Vec<usize>| {
            (0..AXES[axis]).map(move |value| [values.as_slice(), &[value]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;

    #[test]
    fn every_pair_of_values_meets() {
        let points = covering(2, 0);
        for axes in subsets(2) {
            for values in combinations(&axes) {
                let has = |point: &&Point| axes.iter().zip(&values).all(|(&a, &v)| point[a] == v);
                assert!(points.iter().any(|point| has(&point)), "{axes:?} {values:?}");
            }
        }
        let product: usize = AXES.iter().product();
        assert!(points.len() < 400 && product > 2_000_000, "{} of {product}", points.len());
    }

    #[test]
    fn every_point_is_a_legal_case() {
        for (index, point) in covering(2, 1).into_iter().enumerate() {
            let case = case(point, index as u64);
            assert!(Script::new(&case).is_ok(), "{case}: {:?}", Script::new(&case).err());
            assert_eq!(case.to_string().parse::<Case>().as_ref(), Ok(&case));
        }
    }
}
