//! Answers that a reader can check by hand, for the definition and for the reference engine.
#![allow(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod common;

use approx::assert_relative_eq;
use common::{
    Numbers, Plain, append, attended, bits, defined, filled, packed, step_over, tables, writing_all,
};
use grouped_attention::{
    Attended, Backend, CacheLayout, Dtype, Geometry, MaskKind, PageId, Problem, Reference,
    ReferenceCache, Slot, attend,
};

fn problem(geometry: Geometry, scale: f64) -> Problem {
    Problem::new(geometry, Dtype::F32, scale).unwrap()
}

/// One head of width 1 over scalar keys and values, full mask.
fn scalars(scale: f64, q: f64, keys_values: &[(f64, f64)]) -> Attended {
    let plain = Plain {
        q: vec![vec![q]],
        rows: keys_values.iter().map(|&(k, v)| [vec![k], vec![v]]).collect(),
    };
    defined(&problem(Geometry::mha(1, 1).unwrap(), scale), MaskKind::Full, &[plain], 2, 1)
}

/// What [`defined`] computes, through the trait, with outputs in f32.
fn engine(
    problem: &Problem,
    mask: MaskKind<'_>,
    batch: &[Plain],
    page_size: usize,
) -> (Vec<f64>, Vec<f64>) {
    let lens = batch.iter().map(|plain| plain.rows.len());
    let (tables, pages) = tables(&mut Numbers(7), page_size, lens);
    let step = writing_all(step_over(page_size, batch, &tables, mask));
    let layout = CacheLayout::new(*problem.geometry(), problem.dtype(), page_size, pages).unwrap();
    let mut cache = Reference.create_cache(layout).unwrap();
    let rows: Vec<_> = batch.iter().flat_map(|plain| plain.rows.clone()).collect();
    append(&Reference, problem, &step, &mut cache, &rows);
    attended(&Reference, problem, &step, &cache, &packed(batch))
}

// [S-3.1] [S-3.2] [S-3.3]
#[test]
fn one_token_is_its_value_and_its_score() {
    let out = scalars(0.5, 3.0, &[(2.0, 7.0)]);
    assert_eq!(out.o, [7.0]);
    assert_eq!(out.rows[0].lse, 0.5 * 3.0 * 2.0);
    assert_eq!(out.rows[0].visible, 1);
}

// [S-3.2] [S-3.3]
#[test]
fn equal_keys_give_the_mean_of_the_values() {
    let out = scalars(0.5, 3.0, &[(2.0, 1.0), (2.0, 2.0), (2.0, 6.0), (2.0, -1.0)]);
    assert_eq!(out.o, [2.0]);
    assert_eq!(out.rows[0].lse, 3.0 + 4f64.ln());
}

// [S-3.2]
#[test]
fn one_score_far_above_the_others_takes_all() {
    let out = scalars(1.0, 1000.0, &[(0.0, 5.0), (1.0, 7.0), (0.5, 9.0)]);
    assert_eq!(out.o, [7.0]);
    assert_eq!(out.rows[0].lse, 1000.0);
}

// [S-3.2] [S-3.3]
#[test]
fn scores_that_are_logarithms_give_rational_weights() {
    let (ln2, ln3) = (2f64.ln(), 3f64.ln());
    // The cache keeps f32, so the logarithms stand in the query: keys are one-hot.
    let plain = Plain {
        q: vec![vec![0.0, ln2, ln3]],
        rows: (0..3)
            .map(|j| {
                let one_hot = |c| if c == j { 1.0 } else { 0.0 };
                [(0..3).map(one_hot).collect(), vec![10.0 * (j + 1) as f64]]
            })
            .collect(),
    };
    let geometry = Geometry::separate(1, 1, 3, 1).unwrap();
    let out = defined(&problem(geometry, 1.0), MaskKind::Full, &[plain], 2, 2);
    assert_relative_eq!(out.o[0], (10.0 + 2.0 * 20.0 + 3.0 * 30.0) / 6.0, max_relative = 1e-15);
    assert_relative_eq!(out.rows[0].lse, 6f64.ln(), max_relative = 1e-15);
}

// [S-3.3] [S-3.5]: the scale is inside the scores, lse included.
#[test]
fn the_scale_multiplies_the_scores_and_not_the_lse() {
    let tokens = [(1.0, 0.0), (2.0, 1.0)];
    for scale in [0.125, 1.0, 4.0] {
        let out = scalars(scale, 1.0, &tokens);
        let sigmoid = 1.0 / (1.0 + (-scale).exp());
        assert_relative_eq!(out.o[0], sigmoid, max_relative = 1e-15);
        let lse = (scale.exp() + (2.0 * scale).exp()).ln();
        assert_relative_eq!(out.rows[0].lse, lse, max_relative = 1e-15);
    }
    // Doubling the query is doubling the scale.
    assert_eq!(scalars(2.0, 1.0, &tokens).o, scalars(1.0, 2.0, &tokens).o);
}

// [S-3.8] [S-3.14]
#[test]
fn rows_that_see_nothing_are_zero_and_minus_infinity() {
    let geometry = Geometry::gqa(2, 1, 2).unwrap();
    let mut numbers = Numbers(3);
    let empty = Plain::random(&mut numbers, &geometry, 2, 0);
    let short = Plain::random(&mut numbers, &geometry, 3, 1);
    let value = short.rows[0][1].clone();
    let problem = problem(geometry, 1.0);
    let batch = [empty, short];
    let out = defined(&problem, MaskKind::Causal, &batch, 3, 4);
    let (o, lse) = engine(&problem, MaskKind::Causal, &batch, 3);
    // Rows of (sequence, t, head): only t = 2 of the second sequence sees its one token.
    for row in 0..8 {
        assert_eq!(bits(&out.o[row * 2..][..2]), bits(&[0.0, 0.0]), "row {row}");
        assert_eq!(out.envelope[row * 2..][..2], [0.0, 0.0]);
        assert_eq!(out.spread[row * 2..][..2], [0.0, 0.0]);
        assert_eq!(out.deviation[row * 2..][..2], [0.0, 0.0]);
        let stats = out.rows[row];
        assert_eq!((stats.lse, stats.visible), (f64::NEG_INFINITY, 0));
        let scores = (stats.score_magnitude, stats.score_norm, stats.value_max);
        assert_eq!((scores, stats.concentration), ((0.0, 0.0, 0.0), 0.0));
        assert_eq!(bits(&o[row * 2..][..2]), bits(&[0.0, 0.0]));
        assert_eq!(lse[row], f64::NEG_INFINITY);
    }
    for row in 8..10 {
        assert_eq!(out.o[row * 2..][..2], value);
        assert_eq!(o[row * 2..][..2], value);
        assert_eq!(out.rows[row].visible, 1);
    }
    // Under full, queries past the cache see the token too. [S-3.12]
    let full = defined(&problem, MaskKind::Full, &batch[1..], 3, 4);
    assert!(full.o.chunks(2).all(|o| o == value));
}

// [S-2.4] [S-2.5] [S-3.4] [S-1.2]
#[test]
fn a_tied_key_is_the_states_prefix_then_the_shared_rope() {
    // h = 2, s = 3, n = 2, r = 1: state_0 = (1, 2, 3), state_1 = (4, 5, 6), rope = (7).
    let layout =
        CacheLayout::new(Geometry::tied(4, 2, 3, 2, 1).unwrap(), Dtype::F32, 1, 1).unwrap();
    let mut cache = ReferenceCache::new(layout);
    let slot = Slot { page: PageId(0), row: 0 };
    cache.write(slot, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[7.0]);
    let key = |head| cache.key(slot, head).collect::<Vec<_>>();
    assert_eq!((key(0), key(1)), (vec![1.0, 2.0, 7.0], vec![4.0, 5.0, 7.0]));
    assert_eq!(cache.value(slot, 0), [1.0, 2.0, 3.0]);
    assert_eq!(cache.value(slot, 1), [4.0, 5.0, 6.0]);
    // Each query picks one element of its head's key: heads 0, 1 read state_0 and 2, 3 state_1.
    let plain = Plain {
        q: vec![vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]],
        rows: vec![[vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], vec![7.0]]],
    };
    let problem = problem(*layout.geometry(), 1.0);
    let out = defined(&problem, MaskKind::Causal, &[plain], 1, 5);
    assert_eq!(out.rows.iter().map(|row| row.lse).collect::<Vec<_>>(), [1.0, 2.0, 5.0, 7.0]);
    assert_eq!(out.o, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 4.0, 5.0, 6.0]);
}

// [S-2.6]: GTA's, MLA's and GLA's widths.
#[test]
fn the_named_variants_score_prefix_and_rope() {
    for (geometry, n, r) in [
        (Geometry::gta(2, 1, 4).unwrap(), 2, 2),
        (Geometry::mla(2, 4, 2).unwrap(), 4, 2),
        (Geometry::gla(2, 2, 4, 3).unwrap(), 4, 3),
    ] {
        let heads = geometry.heads();
        let state: Vec<f64> = (0..heads * 4).map(|c| c as f64 + 1.0).collect();
        let rope: Vec<f64> = (0..r).map(|c| 100.0 + c as f64).collect();
        let plain =
            Plain { q: vec![vec![1.0; 2 * (n + r)]], rows: vec![[state.clone(), rope.clone()]] };
        let problem = problem(geometry, 0.5);
        let out = defined(&problem, MaskKind::Causal, &[plain], 1, 6);
        for i in 0..2 {
            let state = &state[geometry.cached_head(i) * 4..][..4];
            let score = state[..n].iter().sum::<f64>() + rope.iter().sum::<f64>();
            assert_eq!(out.rows[i].lse, 0.5 * score, "{geometry}");
            assert_eq!(out.o[i * 4..][..4], *state, "{geometry}");
        }
    }
}

// [S-3.17]: o is rounded to the output's format, lse to f32, each once.
#[test]
fn the_engine_rounds_the_definition_once() {
    let mut numbers = Numbers(8);
    for dtype in Dtype::ALL {
        let geometry = Geometry::gla(4, 2, 4, 2).unwrap();
        let mut plain = Plain::random(&mut numbers, &geometry, 2, 5);
        let round = |values: &mut Vec<f64>| values.iter_mut().for_each(|x| *x = dtype.round(*x));
        plain.q.iter_mut().for_each(round);
        plain.rows.iter_mut().flatten().for_each(round);
        for f32_output in [false, true] {
            let problem = Problem::new(geometry, dtype, 0.3).unwrap();
            let problem = if f32_output { problem.f32_output() } else { problem };
            let exact = defined(&problem, MaskKind::Causal, &[plain.clone()], 2, 9);
            let (o, lse) = engine(&problem, MaskKind::Causal, &[plain.clone()], 2);
            let output = if f32_output { Dtype::F32 } else { dtype };
            let rounded: Vec<f64> = exact.o.iter().map(|&x| output.round(x)).collect();
            assert_eq!(o, rounded);
            for (lse, row) in lse.iter().zip(&exact.rows) {
                assert_eq!(*lse, Dtype::F32.round(row.lse));
            }
        }
    }
}

// [S-3.18]
#[test]
fn nan_and_infinity_stay_in_their_row() {
    let geometry = Geometry::gqa(2, 2, 2).unwrap();
    let problem = problem(geometry, 1.0);
    let clean = Plain::random(&mut Numbers(10), &geometry, 3, 4);
    let base = defined(&problem, MaskKind::Causal, std::slice::from_ref(&clean), 2, 11);
    for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        // A query element of (t = 1, head 0): row 2 alone.
        let mut queries = clean.clone();
        queries.q[1][0] = poison;
        assert_only_rows_differ(&problem, &queries, &base, &[2]);
        // A value of head 1 at position 3, which only t = 2 sees: row 5 alone.
        let mut cached = clean.clone();
        cached.rows[3][1][2] = poison;
        let out = assert_only_rows_differ(&problem, &cached, &base, &[5]);
        assert!(!out.o[10].is_finite());
        // The other element of that value is untouched, and so is the lse.
        assert_eq!((out.o[11], out.rows[5].lse), (base.o[11], base.rows[5].lse));
    }
    // A NaN key of head 0 at position 2: t = 1 and t = 2 see it.
    let mut cached = clean.clone();
    cached.rows[2][0][1] = f64::NAN;
    let out = assert_only_rows_differ(&problem, &cached, &base, &[2, 4]);
    assert!(out.rows[2].lse.is_nan() && out.o[4..6].iter().all(|o| o.is_nan()));
}

fn assert_only_rows_differ(
    problem: &Problem,
    plain: &Plain,
    base: &Attended,
    rows: &[usize],
) -> Attended {
    let out = defined(problem, MaskKind::Causal, std::slice::from_ref(plain), 2, 11);
    for row in 0..base.rows.len() {
        let same = bits(&out.o[row * 2..][..2]) == bits(&base.o[row * 2..][..2]);
        assert_eq!(same, !rows.contains(&row), "row {row}");
        if same {
            assert_eq!(out.rows[row], base.rows[row]);
            let part = row * 2..row * 2 + 2;
            assert_eq!(out.envelope[part.clone()], base.envelope[part.clone()]);
            assert_eq!(out.spread[part.clone()], base.spread[part.clone()]);
            assert_eq!(out.deviation[part.clone()], base.deviation[part]);
        }
    }
    out
}

// [S-3.18]: what IEEE arithmetic gives.
#[test]
fn infinite_scores_and_values_do_what_ieee_says() {
    // A score of -inf has weight 0.
    let out = scalars(1.0, 1.0, &[(f64::NEG_INFINITY, 5.0), (0.0, 7.0)]);
    assert_eq!((out.o[0], out.rows[0].lse), (7.0, 0.0));
    // Scores that are all -inf are not an empty row: the row saw something.
    assert!(scalars(1.0, 1.0, &[(f64::NEG_INFINITY, 5.0)]).o[0].is_nan());
    assert!(scalars(1.0, 1.0, &[(f64::INFINITY, 5.0)]).o[0].is_nan());
    let out = scalars(1.0, 1.0, &[(0.0, f64::INFINITY), (0.0, 1.0)]);
    assert_eq!((out.o[0], out.rows[0].lse), (f64::INFINITY, 2f64.ln()));
    assert!(scalars(1.0, 1.0, &[(0.0, f64::INFINITY), (0.0, f64::NEG_INFINITY)]).o[0].is_nan());
}

// [S-3.19] [S-4.4]
#[test]
fn cells_and_slots_that_nobody_sees_change_nothing() {
    let geometry = Geometry::gla(2, 1, 3, 2).unwrap();
    let problem = problem(geometry, 1.0);
    // Causal with q_len = kv_len = 3 on pages of 4: row 3 of the page is behind the end.
    let plain = Plain::random(&mut Numbers(12), &geometry, 3, 3);
    let batch = [plain.clone()];
    let step = |spare: &[PageId]| {
        let table = [&[PageId(1)], spare].concat();
        step_over(4, &batch, &[table], MaskKind::Causal)
    };
    let reference = step(&[]);
    let mut cache = filled(&problem, &reference, 3, &batch);
    let base = attend(&problem, &reference, &packed(&batch), &cache);
    assert!(base.o.iter().all(|o| o.is_finite()));
    for garbage in [0.0, 1e30, f64::INFINITY, f64::NAN] {
        for slot in [(0, 0), (0, 3), (1, 3), (2, 1)] {
            let slot = Slot { page: PageId(slot.0), row: slot.1 };
            cache.write(slot, &[garbage; 3], &[garbage; 2]);
        }
        for spare in [&[][..], &[PageId(u32::MAX)], &[PageId(0), PageId(7)]] {
            let out = attend(&problem, &step(spare), &packed(&batch), &cache);
            assert_eq!(out, base);
        }
    }
    // A position that t = 0 does not see may be NaN too.
    let mut hidden = plain;
    hidden.rows[2] = [vec![f64::NAN; 3], vec![f64::NAN; 2]];
    let out = defined(&problem, MaskKind::Causal, &[hidden], 4, 1);
    assert_eq!(out.o[..2 * 2 * 3], base.o[..2 * 2 * 3]);
}

// [S-7.4] [S-7.5]
#[test]
fn envelope_and_diagnostics_by_hand() {
    // Two equal scores: p = 1/2 each. q = (1, -2), k = (2, 1) and (-4, -2); both scores are 0.
    let plain = Plain {
        q: vec![vec![1.0, -2.0]],
        rows: vec![[vec![2.0, 1.0], vec![3.0, -1.0]], [vec![-4.0, -2.0], vec![-5.0, -1.0]]],
    };
    let problem = problem(Geometry::mha(1, 2).unwrap(), 0.5);
    let out = defined(&problem, MaskKind::Full, std::slice::from_ref(&plain), 1, 13);
    assert_eq!(out.o, [-1.0, -1.0]);
    // A = (|3| + |-5|) / 2 and (1 + 1) / 2.
    assert_eq!(out.envelope, [4.0, 1.0]);
    // D^2 = (1/4) (3 + 1)^2 + (1/4) (-5 + 1)^2 = 8, and 0.
    assert_eq!(out.spread, [8f64.sqrt(), 0.0]);
    // M = (|3 + 1| + |-5 + 1|) / 2, and 0; C = 1/4 + 1/4.
    assert_eq!(out.deviation, [4.0, 0.0]);
    assert_eq!(out.rows[0].concentration, 0.5);
    let row = out.rows[0];
    assert_eq!(row.lse, 2f64.ln());
    assert_eq!(row.visible, 2);
    // S = 0.5 (|-4| + |4|) of the second key.
    assert_eq!(row.score_magnitude, 4.0);
    // R^2 = 0^2 + 0.5^2 (16 + 16) of the second key.
    assert_eq!(row.score_norm, 8f64.sqrt());
    assert_eq!(row.value_max, 5.0);
    // A score that is not 0 counts in R: q k = (2, -2 * -1.5 = 3), s = 2.5, products 4 and 9.
    let plain = Plain { q: vec![vec![1.0, -2.0]], rows: vec![[vec![2.0, -1.5], vec![0.0; 2]]] };
    let row = defined(&problem, MaskKind::Full, &[plain], 1, 13).rows[0];
    assert_eq!(row.score_norm, (2.5f64 * 2.5 + 0.25 * 13.0).sqrt());
    assert_eq!((row.score_magnitude, row.lse), (2.5, 2.5));
}
