//! The two bounds of a sum, and the quotient lemma.

use crate::model::{f32, truncated};
use grouped_attention_conformance::noise::Noise;

const U: f64 = 1.0 / (1 << 24) as f64;

/// Error of adding f32 numbers one after the other, and the terms' sum, magnitude and root-square.
fn error(terms: &[f64], add: impl Fn(f64) -> f64) -> [f64; 4] {
    let computed = terms.iter().fold(0.0, |sum, x| add(sum + x));
    let exact: f64 = terms.iter().sum();
    let magnitude = terms.iter().map(|x| x.abs()).sum();
    let squares: f64 = terms.iter().map(|x| x * x).sum();
    [(computed - exact).abs(), exact, magnitude, squares]
}

fn plain(n: usize, u: f64, magnitude: f64) -> f64 {
    (n as f64 * u).exp_m1() * magnitude
}

fn sharp(n: usize, exact: f64, squares: f64) -> f64 {
    3.0 * U * (n as f64).sqrt() * (exact * exact / 3.0 + squares).sqrt()
}

// [S-7.6]
#[test]
fn plain_holds_for_every_order_and_mode() {
    let mut noise = Noise::new(3, &[]);
    let mut closest: f64 = 0.0;
    for n in [1, 2, 17, 300, 4096] {
        let random: Vec<f64> = (0..n).map(|_| f32(noise.gaussian())).collect();
        let mut sorted = random.clone();
        sorted.sort_by(f64::total_cmp);
        let equal = vec![f32(1.0 / 3.0); n];
        let growing: Vec<f64> = (0..n).map(|j| f32(1.1_f64.powi(j as i32 % 99))).collect();
        for terms in [random, sorted, equal, growing] {
            let [rounded, _, magnitude, _] = error(&terms, f32);
            assert!(rounded <= plain(n, U, magnitude));
            // A sum that truncates has the full unit in the last place.
            let [dropped, _, magnitude, _] = error(&terms, truncated);
            let bound = plain(n, 2.0 * U, magnitude);
            assert!(dropped <= bound);
            if n > 1 {
                closest = closest.max(dropped / bound);
            }
        }
    }
    // The bound is not idle: truncation of equal terms comes near to it.
    assert!(closest > 0.2, "{closest}");
}

// [S-7.7]
#[test]
fn sharp_holds_in_general_position_and_only_there() {
    let mut noise = Noise::new(4, &[]);
    let mut worst: f64 = 0.0;
    for n in [8, 100, 1000, 8000] {
        for _ in 0..100 {
            let terms: Vec<f64> = (0..n).map(|_| f32(noise.gaussian())).collect();
            let [rounded, exact, _, squares] = error(&terms, f32);
            worst = worst.max(rounded / sharp(n, exact, squares));
        }
    }
    assert!(worst < 1.0 && worst > 0.05, "{worst}");
    // One number added to itself makes the same error again and again.
    let n = 8000;
    let [rounded, exact, magnitude, squares] = error(&vec![f32(0.7); n], f32);
    assert!(rounded > 2.0 * sharp(n, exact, squares));
    assert!(rounded <= plain(n, U, magnitude));
}

// [S-7.11]
#[test]
fn quotient_lemma() {
    let mut noise = Noise::new(5, &[]);
    let (alpha, beta, gamma) = (0.1, 0.05, 0.2);
    let mut closest: f64 = 0.0;
    for trial in 0..200 {
        let n = 1 + trial % 40;
        let weights: Vec<f64> = (0..n).map(|_| noise.gaussian().exp()).collect();
        let sum: f64 = weights.iter().sum();
        let p: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        let v: Vec<f64> = (0..n).map(|_| noise.gaussian()).collect();
        let o: f64 = p.iter().zip(&v).map(|(p, v)| p * v).sum();
        let envelope: f64 = p.iter().zip(&v).map(|(p, v)| p * v.abs()).sum();
        let deviation: f64 = p.iter().zip(&v).map(|(p, v)| p * (v - o).abs()).sum();
        let moved = gamma * deviation + (1.0 + gamma) * (alpha * envelope + beta * o.abs());
        let bound = moved / ((1.0 - gamma) * (1.0 - beta));
        // Signs of the errors at random, and those that push the quotient up.
        for adverse in [false, true] {
            let mut sign = |up: bool| match (adverse, up) {
                (true, true) => 1.0,
                (true, false) => -1.0,
                (false, _) => noise.sign(),
            };
            // What both sums share.
            let common = v.iter().map(|&v| 1.0 + gamma * sign(v > o));
            let p: Vec<f64> = p.iter().zip(common).map(|(p, common)| p * common).collect();
            let terms = p.iter().zip(&v);
            let numerator: f64 = terms.map(|(p, v)| p * (1.0 + alpha * sign(*v > 0.0)) * v).sum();
            let normaliser: f64 = p.iter().map(|p| p * (1.0 + beta * sign(o < 0.0))).sum();
            let error = (numerator / normaliser - o).abs();
            assert!(error <= bound * (1.0 + 1e-12), "{error} of {bound}");
            closest = closest.max(error / bound);
        }
    }
    assert!(closest > 0.5, "{closest}");
}
