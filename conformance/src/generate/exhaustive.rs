//! Every case up to a small size.
//!
//! | | default | extensive |
//! |---|---|---|
//! | cached tokens of one sequence | 0..=5 | 0..=6 |
//! | queries | 0..=3 | 0..=4 |
//! | page sizes | 1, 2, 3 | 1, 2, 3, 4 |
//! | page tables | every order of the pages | every order of the pages |
//! | masks | causal, full, every tree | causal, full, every tree |
//! | two sequences | lengths 0..=3, queries 0..=2 | lengths 0..=4, queries 0..=3 |
//!
//! for one small geometry of each variant. [`Bucket::cases`] is the list, smallest first, so the
//! first that fails is the smallest that fails. Numbers of cases are asserted below.

use crate::case::{Case, Lens};
use crate::draft::{Draft, MaskShape};
use grouped_attention::{Geometry, InvalidGeometry, Variant};

/// Sizes up to which every case is made.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    kv: usize,
    q: usize,
    pages: usize,
    pair_kv: usize,
    pair_q: usize,
}

const DEFAULT: Bounds = Bounds { kv: 5, q: 3, pages: 3, pair_kv: 3, pair_q: 2 };
const EXTENSIVE: Bounds = Bounds { kv: 6, q: 4, pages: 4, pair_kv: 4, pair_q: 3 };

/// All cases of one variant, of one or of two sequences.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    variant: Variant,
    bounds: Bounds,
    pairs: bool,
}

/// Every bucket.
pub fn buckets(extensive: bool) -> Vec<Bucket> {
    let bounds = if extensive { EXTENSIVE } else { DEFAULT };
    let both = |variant| [false, true].map(|pairs| Bucket { variant, bounds, pairs });
    Variant::ALL.into_iter().flat_map(both).collect()
}

impl Bucket {
    /// The variant.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The word for trial names.
    pub fn name(&self) -> &'static str {
        if self.pairs { "two-sequences" } else { "one-sequence" }
    }

    /// The cases, smallest first.
    ///
    /// # Panics
    /// Never: the small geometries are legal.
    pub fn cases(&self) -> impl Iterator<Item = Case> + use<> {
        let Bucket { variant, bounds, pairs } = *self;
        let geometry = smallest(variant).expect("small geometries are legal");
        let shapes = if pairs { two_sequences(bounds) } else { one_sequence(bounds) };
        shapes.into_iter().enumerate().map(move |(index, shape)| {
            let Shape { lens, mask, page_size, places } = shape;
            let case = Case::new(geometry, 0, 0, 0.4);
            Case { lens, mask, page_size, places, seed: index as u64, ..case }
        })
    }
}

/// Two query heads, and two cached heads where the variant has several; widths that differ.
fn smallest(variant: Variant) -> Result<Geometry, InvalidGeometry> {
    match variant {
        Variant::Mha => Geometry::separate(2, 2, 2, 3),
        Variant::Gqa => Geometry::separate(4, 2, 2, 3),
        Variant::Mqa => Geometry::separate(2, 1, 2, 3),
        Variant::Gta => Geometry::tied(2, 2, 3, 1, 2),
        Variant::Mla => Geometry::tied(2, 1, 2, 2, 1),
        Variant::Gla => Geometry::tied(4, 2, 2, 2, 1),
    }
}

#[derive(Clone, Debug)]
struct Shape {
    lens: Vec<Lens>,
    mask: MaskShape,
    page_size: usize,
    places: Vec<u32>,
}

fn one_sequence(bounds: Bounds) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for kv in 0..=bounds.kv {
        for q in 0..=bounds.q {
            for page_size in 1..=bounds.pages {
                for places in permutations(kv.div_ceil(page_size) as u32) {
                    for mask in masks(&[Lens { q, kv }]) {
                        let (lens, places) = (vec![Lens { q, kv }], places.clone());
                        shapes.push(Shape { lens, mask, page_size, places });
                    }
                }
            }
        }
    }
    shapes
}

fn two_sequences(bounds: Bounds) -> Vec<Shape> {
    let each = (0..=bounds.pair_kv)
        .flat_map(|kv| (0..=bounds.pair_q).map(move |q| Lens { q, kv }))
        .collect::<Vec<_>>();
    let mut shapes = Vec::new();
    for &first in &each {
        for &second in &each {
            for page_size in 1..=2 {
                let lens = vec![first, second];
                for mask in masks(&lens) {
                    let (lens, places) = (lens.clone(), Vec::new());
                    shapes.push(Shape { lens, mask, page_size, places });
                }
            }
        }
    }
    shapes
}

/// Causal, full, and every forest over the drafts where trees are legal.
fn masks(lens: &[Lens]) -> Vec<MaskShape> {
    let mut masks = vec![MaskShape::Causal, MaskShape::Full];
    if lens.iter().all(|lens| lens.q <= lens.kv) {
        let mut forests = vec![Vec::new()];
        for token in lens.iter().flat_map(|lens| 0..lens.q as i32) {
            let longer = |forest: Vec<i32>| {
                (-1..token).map(move |parent| [forest.as_slice(), &[parent]].concat())
            };
            forests = forests.into_iter().flat_map(longer).collect();
        }
        masks.extend(forests.into_iter().map(|parents| MaskShape::Tree(Draft::Explicit(parents))));
    }
    masks
}

/// Every order of `0..n`.
fn permutations(n: u32) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new()];
    for last in 0..n {
        let longer = |shorter: Vec<u32>| {
            (0..=shorter.len()).map(move |at| {
                let mut longer = shorter.clone();
                longer.insert(at, last);
                longer
            })
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_case_is_there_once() {
        assert_eq!(permutations(4).len(), 24);
        assert_eq!(masks(&[Lens { q: 3, kv: 3 }]).len(), 2 + 6);
        assert_eq!(masks(&[Lens { q: 3, kv: 2 }]).len(), 2);
        let count = |bounds, pairs| {
            let bucket = Bucket { variant: Variant::Mqa, bounds, pairs };
            let mut lines: Vec<String> =
                bucket.cases().map(|case| Case { seed: 0, ..case }.to_string()).collect();
            let all = lines.len();
            lines.sort_unstable();
            lines.dedup();
            assert_eq!(lines.len(), all);
            all
        };
        assert_eq!(count(DEFAULT, false), 3075);
        assert_eq!(count(DEFAULT, true), 818);
        assert_eq!(count(EXTENSIVE, false), 39478);
        assert_eq!(count(EXTENSIVE, true), 3058);
    }
}
