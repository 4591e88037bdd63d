//! Chapter 7 of the specification, clause by clause, against a small f32 engine written here.
//!
//! The suite judges engines by bounds; these tests judge the bounds: a right engine stays inside,
//! the habits that a clause asks for are the ones that keep it there, and what a clause warns of
//! happens.
#![allow(clippy::unwrap_used, reason = "a test that unwraps says what it expects by failing")]

use grouped_attention::{
    Arithmetic, Attended, CacheLayout, Dtype, Geometry, Mask, PageId, Problem, ReferenceCache,
    Rope, RopeScaling, RopeStyle, Sequence, Step, attend, merge_row,
};
use grouped_attention_conformance::{Expected, RowTolerance, Tolerance, compare};
use proptest::prelude::*;

const U: f64 = 1.0 / (1 << 24) as f64;
/// Two units in the last place of f32, what the platform's exp2 keeps easily.
const EXP: f64 = 1.0 / (1 << 22) as f64;

/// Uniform bits, by SplitMix64.
struct Noise(u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 * f64::EPSILON / 2.0
    }

    /// A standard normal number, rounded to f32.
    fn normal(&mut self) -> f32 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    fn normals(&mut self, count: usize, deviation: f32) -> Vec<f32> {
        (0..count).map(|_| deviation * self.normal()).collect()
    }
}

/// One query over `n` positions: q `[w]`, keys `[n, w]`, values `[n, d]`.
struct Row {
    scale: f64,
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    n: usize,
    d: usize,
}

impl Row {
    fn normal(seed: u64, n: usize, w: usize, d: usize, deviation: f32) -> Row {
        let mut noise = Noise(seed);
        Row {
            scale: 1.0 / (w as f64).sqrt(),
            q: noise.normals(w, deviation),
            keys: noise.normals(n * w, 1.0),
            values: noise.normals(n * d, 1.0),
            n,
            d,
        }
    }

    fn w(&self) -> usize {
        self.q.len()
    }

    fn step(&self) -> Step {
        let sequence = Sequence { q_len: 1, kv_len: self.n, pages: &[PageId(0)] };
        Step::new(self.n, &[sequence], Mask::Full).unwrap()
    }

    /// What is exact, by the definition.
    fn exact(&self) -> Attended {
        let geometry = Geometry::separate(1, 1, self.w(), self.d).unwrap();
        let problem = Problem::new(geometry, Dtype::F32, self.scale).unwrap();
        let layout = CacheLayout::new(geometry, Dtype::F32, self.n, 1).unwrap();
        let mut cache = ReferenceCache::new(layout);
        let step = self.step();
        for j in 0..self.n {
            let slot = step.slot(&step.spans()[0], j);
            cache.write(slot, &wide(self.key(j)), &wide(self.value(j)));
        }
        attend(&problem, &step, &wide(&self.q), &cache)
    }

    fn key(&self, j: usize) -> &[f32] {
        &self.keys[j * self.w()..][..self.w()]
    }

    fn value(&self, j: usize) -> &[f32] {
        &self.values[j * self.d..][..self.d]
    }

    /// Scores times log2(e), as an engine holds them `[S-7.9]`.
    fn scores(&self) -> Vec<f32> {
        let factor = (self.scale as f32) * std::f32::consts::LOG2_E;
        (0..self.n).map(|j| dot(&self.q, self.key(j)) * factor).collect()
    }

    fn tolerance(&self, arithmetic: Arithmetic, output: Dtype) -> Tolerance {
        let largest = |values: &[f32]| values.iter().fold(0.0, |m, x| x.abs().max(m)).into();
        Tolerance {
            arithmetic,
            output,
            dtype: Dtype::F32,
            width_k: self.w(),
            scale: self.scale,
            q_max: largest(&self.q),
            k_max: largest(&self.keys),
            general_position: true,
            f64_results: false,
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// A chain of fused multiply-adds.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| a.mul_add(*b, sum))
}

/// How the engine below may be built.
#[derive(Clone, Copy)]
struct Habits {
    /// Format of probabilities as they meet values.
    probability: Dtype,
    /// The softmax sum takes probabilities after they were rounded, against `[S-7.10]`.
    sums_rounded: bool,
    /// Positions per update of the maximum.
    tile: usize,
}

const F32: Habits = Habits { probability: Dtype::F32, sums_rounded: false, tile: 16 };

/// Attention in f32 as engines do it: running maximum, base 2, rescaling. `o [d]` and lse.
fn engine(row: &Row, habits: Habits) -> (Vec<f64>, f64) {
    let scores = row.scores();
    let (mut max, mut sum, mut o) = (f32::NEG_INFINITY, 0_f32, vec![0_f32; row.d]);
    for first in (0..row.n).step_by(habits.tile) {
        let tile = first..(first + habits.tile).min(row.n);
        let larger = scores[tile.clone()].iter().copied().fold(max, f32::max);
        let factor = (max - larger).exp2();
        (max, sum) = (larger, sum * factor);
        o.iter_mut().for_each(|o| *o *= factor);
        for j in tile {
            let p = (scores[j] - max).exp2();
            let rounded = habits.probability.round(p.into()) as f32;
            sum += if habits.sums_rounded { rounded } else { p };
            for (o, v) in o.iter_mut().zip(row.value(j)) {
                *o = rounded.mul_add(*v, *o);
            }
        }
    }
    let lse = f64::from(max.mul_add(std::f32::consts::LN_2, sum.ln()));
    (o.iter().map(|o| f64::from(o / sum)).collect(), lse)
}

fn arithmetic(habits: Habits) -> Arithmetic {
    match habits.probability {
        Dtype::F32 => Arithmetic::f32(EXP, habits.tile),
        narrow => Arithmetic::matrix(narrow, 1, EXP, habits.tile),
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// Largest ratios of error to bound: elements, residual, lse.
fn ratios(row: &Row, exact: &Attended, bounds: &RowTolerance, o: &[f64], lse: f64) -> [f64; 3] {
    assert!(bounds.applies());
    let elements = (0..row.d).map(|c| {
        (o[c] - exact.o[c]).abs() / bounds.element(exact.envelope[c], exact.spread[c], exact.o[c])
    });
    let residual = bounds.residual(&exact.envelope, &exact.spread, &exact.o);
    [
        elements.fold(0.0, f64::max),
        distance(o, &exact.o) / residual,
        (lse - exact.rows[0].lse).abs() / bounds.lse(),
    ]
}

// [S-7.6]
#[test]
fn any_order_of_a_sum_stays_within_the_plain_bound() {
    for seed in 0..50 {
        let mut terms = Noise(seed).normals(1000, 1.0);
        terms[500..].fill(0.1); // equal terms round equally
        let exact: f64 = terms.iter().map(|&x| f64::from(x)).sum();
        let magnitude: f64 = terms.iter().map(|&x| f64::from(x.abs())).sum();
        let bound = (terms.len() as f64 * U).exp_m1() * magnitude;
        let lanes: f32 = (0..8).map(|lane| terms[lane..].iter().step_by(8).sum::<f32>()).sum();
        for sum in [terms.iter().sum::<f32>(), terms.iter().rev().sum(), pairwise(&terms), lanes] {
            assert!((f64::from(sum) - exact).abs() <= bound, "seed {seed}");
        }
    }
}

fn pairwise(terms: &[f32]) -> f32 {
    match terms {
        [term] => *term,
        _ => {
            let (a, b) = terms.split_at(terms.len() / 2);
            pairwise(a) + pairwise(b)
        }
    }
}

// [S-7.7]
#[test]
fn random_sums_stay_within_the_sharp_bound_and_equal_terms_need_not() {
    let sharp = |terms: &[f32]| {
        let exact: f64 = terms.iter().map(|&x| f64::from(x)).sum();
        let squares: f64 = terms.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let n = terms.len() as f64;
        let bound = 3.0 * U * n.sqrt() * (exact * exact + squares).sqrt();
        (f64::from(terms.iter().sum::<f32>()) - exact).abs() / bound
    };
    let worst = (0..400).map(|seed| sharp(&Noise(seed).normals(4096, 1.0))).fold(0.0, f64::max);
    assert!(worst <= 1.0, "{worst}");
    // Condition (b): terms that round alike add their errors up.
    assert!(sharp(&[0.1; 100_000]) > 1.0);
}

// [S-7.8]
#[test]
fn scores_stay_within_delta() {
    for (seed, w) in (0..200).zip([1, 4, 64, 576].into_iter().cycle()) {
        let row = Row::normal(seed, 8, w, 1, 3.0);
        for (j, score) in row.scores().into_iter().enumerate() {
            let products = row.q.iter().zip(row.key(j)).map(|(&q, &k)| f64::from(q) * f64::from(k));
            let exact = row.scale * products.clone().sum::<f64>();
            let magnitude = row.scale * products.map(f64::abs).sum::<f64>();
            let delta = ((w + 8) as f64 * U).exp_m1() * magnitude;
            let got = f64::from(score) * std::f64::consts::LN_2;
            assert!((got - exact).abs() <= delta, "seed {seed}, w {w}");
        }
    }
}

// [S-7.9]
#[test]
fn factors_of_successive_maxima_telescope() {
    let mut noise = Noise(9);
    let mut maxima: Vec<f32> = noise.normals(64, 20.0);
    maxima.sort_by(f32::total_cmp);
    let x = maxima[0] - 1.0;
    let steps = maxima.windows(2).map(|pair| (pair[0] - pair[1]).exp2());
    let weight: f32 = steps.fold((x - maxima[0]).exp2(), |weight, factor| weight * factor);
    let exact = f64::from(x - maxima[63]).exp2();
    // One exponential and one product each, and the roundings of the differences, which telescope.
    let range = f64::from(maxima[63] - maxima[0]) + 1.0;
    let bound = exact * (64.0 * (EXP + U) + 2.0 * U * range * std::f64::consts::LN_2);
    assert!((f64::from(weight) - exact).abs() <= bound);
}

// [S-7.10]
#[test]
fn the_softmax_sum_takes_probabilities_before_they_are_rounded() {
    let right = Habits { probability: Dtype::Bf16, ..F32 };
    let wrong = Habits { sums_rounded: true, ..right };
    let mut caught = 0;
    for seed in 0..40 {
        let row = Row::normal(seed, 24, 16, 8, 1.0);
        let exact = row.exact();
        let bounds = row.tolerance(arithmetic(right), Dtype::F32).row(&exact.rows[0], 0.0);
        let (o, lse) = engine(&row, right);
        assert!(ratios(&row, &exact, &bounds, &o, lse).iter().all(|&ratio| ratio <= 1.0));
        let (o, lse) = engine(&row, wrong);
        caught += usize::from(ratios(&row, &exact, &bounds, &o, lse)[2] > 1.0);
    }
    assert!(caught >= 35, "rounding before the sum shows in lse, {caught} of 40 times");
}

proptest! {
    // [S-7.11]
    #[test]
    fn a_quotient_of_perturbed_sums_obeys_the_lemma(
        terms in prop::collection::vec((0.01..1.0, -10.0..10.0_f64, -1.0..1.0, -1.0..1.0), 1..20),
        alpha in 0.0..0.5,
        beta in 0.0..0.9,
    ) {
        let [mut total, mut o, mut envelope, mut numerator, mut normaliser] = [0.0_f64; 5];
        for (p, v, a, b) in terms {
            total += p;
            o += p * v;
            envelope += p * v.abs();
            numerator += p * (1.0 + alpha * a) * v;
            normaliser += p * (1.0 + beta * b);
        }
        let (o, envelope) = (o / total, envelope / total);
        let error = (numerator / normaliser - o).abs();
        prop_assert!(error <= (alpha * envelope + beta * o.abs()) / (1.0 - beta) + 1e-12);
    }
}

// [S-7.12] [S-7.13] [S-7.14] [S-7.15]
#[test]
fn a_right_engine_stays_within_every_bound_and_a_lost_position_does_not() {
    for probability in Dtype::ALL {
        let habits = Habits { probability, ..F32 };
        for (seed, n) in (0..60).zip([1, 2, 17, 300].into_iter().cycle()) {
            let row = Row::normal(seed, n, 32, 16, 1.0);
            let exact = row.exact();
            let bounds = row.tolerance(arithmetic(habits), Dtype::F32).row(&exact.rows[0], 0.0);
            let (o, lse) = engine(&row, habits);
            let found = ratios(&row, &exact, &bounds, &o, lse);
            assert!(found.iter().all(|&ratio| ratio <= 1.0), "{probability} {seed}: {found:?}");
            if n == 17 {
                let (o, lse) = engine(&Row { n: n - 1, ..row }, habits);
                let row = Row::normal(seed, n, 32, 16, 1.0);
                let found = ratios(&row, &exact, &bounds, &o, lse);
                assert!(found[2] > 1.0, "{probability} {seed}: a lost position shows in lse");
            }
        }
    }
}

// [S-7.15]
#[test]
fn a_zeroed_row_exceeds_its_residual() {
    let row = Row::normal(3, 200, 32, 64, 1.0);
    let exact = row.exact();
    let habits = Habits { probability: Dtype::Bf16, ..F32 };
    let bounds = row.tolerance(arithmetic(habits), Dtype::Bf16).row(&exact.rows[0], 0.0);
    let zeros = vec![0.0; row.d];
    assert!(ratios(&row, &exact, &bounds, &zeros, exact.rows[0].lse)[1] > 1.0);
}

// [S-7.16]
#[test]
fn merging_in_f32_stays_within_its_bound() {
    let mut noise = Noise(16);
    for _ in 0..500 {
        let [lse_a, lse_b] = [0; 2].map(|_| 8.0 * noise.normal());
        let (a, b) = (noise.normals(8, 1.0), noise.normals(8, 1.0));
        let (mut o, mut lse) = (wide(&a), f64::from(lse_a));
        merge_row(&mut o, &mut lse, &wide(&b), lse_b.into());

        let (larger, smaller) = (lse_a.max(lse_b), lse_a.min(lse_b));
        let merged = larger + (1.0 + (smaller - larger).exp()).ln();
        let [weight_a, weight_b] = [lse_a, lse_b].map(|part| (part - merged).exp());
        let tolerance = Row::normal(0, 1, 1, 1, 1.0).tolerance(arithmetic(F32), Dtype::F32);
        let bound = tolerance.merge(lse_a.into(), lse_b.into(), lse);
        assert!((f64::from(merged) - lse).abs() <= bound.lse());
        for c in 0..8 {
            let got = f64::from(a[c] * weight_a + b[c] * weight_b);
            let envelope = (f64::from(lse_a) - lse).exp() * f64::from(a[c].abs())
                + (f64::from(lse_b) - lse).exp() * f64::from(b[c].abs());
            assert!((got - o[c]).abs() <= bound.element(envelope, o[c]));
        }
    }
}

// [S-7.17] [S-7.18]
#[test]
fn outputs_below_the_smallest_subnormal_may_vanish_and_no_more() {
    let mut row = Row::normal(18, 9, 8, 4, 1.0);
    row.values.iter_mut().for_each(|v| *v *= 1e-8);
    let exact = row.exact();
    let bounds = row.tolerance(arithmetic(F32), Dtype::F16).row(&exact.rows[0], 0.0);
    for c in 0..row.d {
        let bound = bounds.element(exact.envelope[c], exact.spread[c], exact.o[c]);
        let half = Dtype::F16.min_subnormal() / 2.0;
        assert!((Dtype::F16.round(exact.o[c]) - exact.o[c]).abs() <= bound);
        assert!(bound < 1.01 * half, "{bound:e} is not far above {half:e}");
    }
}

// [S-7.19]
#[test]
fn a_rotation_in_f32_with_f64_angles_stays_within_its_bound() {
    let rope = Rope::new(RopeStyle::HalfSplit, 64, 10_000.0, RopeScaling::None).unwrap();
    let mut noise = Noise(19);
    for position in [0, 1, 4095, 1_000_003] {
        let x = noise.normals(64, 2.0);
        let mut exact = wide(&x);
        rope.rotate(&mut exact, position);
        for (i, (cos, sin)) in rope.cos_sin(position).into_iter().enumerate() {
            let (cos, sin, a, b) = (cos as f32, sin as f32, x[i], x[i + 32]);
            let bound = 4.0 * U * f64::from(a.abs() + b.abs());
            assert!((f64::from(a * cos - b * sin) - exact[i]).abs() <= bound);
            assert!((f64::from(b * cos + a * sin) - exact[i + 32]).abs() <= bound);
        }
    }
}

// [S-7.3]
#[test]
fn outside_the_domain_numbers_say_nothing() {
    let mut row = Row::normal(20, 4, 8, 4, 1.0);
    let tolerance = |row: &Row| {
        row.tolerance(arithmetic(F32), Dtype::F32).row(&row.exact().rows[0], 0.0).applies()
    };
    assert!(tolerance(&row));
    row.q[0] = 1e30;
    row.keys[0] = 1e30;
    assert!(!tolerance(&row), "products of 1e60 leave f32");
}

// [S-7.20]
#[test]
fn what_is_finite_on_one_side_alone_is_a_violation() {
    let mut row = Row::normal(21, 6, 8, 4, 1.0);
    let judge = |row: &Row, o: &[f64], lse: f64| {
        let (attended, step) = (row.exact(), row.step());
        let expected =
            Expected { attended: &attended, step: &step, h_q: 1, width_v: 4, score_slack: &[] };
        compare(&expected, o, Some(&[lse]), &row.tolerance(arithmetic(F32), Dtype::F32))
    };
    let exact = row.exact();
    assert!(judge(&row, &exact.o, exact.rows[0].lse).passed());
    for wrong in [f64::NAN, f64::INFINITY] {
        let mut o = exact.o.clone();
        o[2] = wrong;
        assert!(!judge(&row, &o, exact.rows[0].lse).passed(), "{wrong} in o");
        assert!(!judge(&row, &exact.o, wrong).passed(), "{wrong} for lse");
    }
    // A NaN that the row sees in one column must reach that column, and leaves lse alone.
    row.values[2] = f32::NAN;
    let seen = row.exact();
    assert!(judge(&row, &seen.o, seen.rows[0].lse).passed());
    assert!(!judge(&row, &exact.o, exact.rows[0].lse).passed(), "a NaN was lost");
}
