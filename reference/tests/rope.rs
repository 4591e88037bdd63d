//! Rotary embedding against answers a person can check `[S-5.1 .. S-5.8]`.

use approx::assert_relative_eq;
use grouped_attention::{InvalidRope, Rope, RopeScaling, RopeStyle};
use proptest::prelude::*;
use std::f64::consts::PI;

const STYLES: [RopeStyle; 2] = [RopeStyle::HalfSplit, RopeStyle::Interleaved];

/// DeepSeek-V3's published parameters.
const V3: RopeScaling = RopeScaling::Yarn {
    factor: 40.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    mscale: 1.0,
    mscale_all_dim: 1.0,
    original_max_position: 4096,
    attention_factor: None,
    truncate: true,
};

/// Llama 3.1's published parameters.
const LLAMA_3_1: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position: 8192,
};

fn rope(style: RopeStyle, width: usize, base: f64, scaling: RopeScaling) -> Rope {
    Rope::new(style, width, base, scaling).expect("legal parameters")
}

/// The frequency of pair i, read off the angle at position 1 (all frequencies are at most 1).
fn frequencies(rope: &Rope) -> Vec<f64> {
    rope.cos_sin(1).map(|(cos, sin)| sin.atan2(cos)).collect()
}

#[test]
fn frequencies_are_powers_of_the_base() {
    let rope = rope(RopeStyle::HalfSplit, 8, 10_000.0, RopeScaling::None);
    for (f, expected) in frequencies(&rope).into_iter().zip([1.0, 0.1, 0.01, 0.001]) {
        assert_relative_eq!(f, expected, max_relative = 1e-14);
    }
    assert_eq!(rope.softmax_scale_factor(), 1.0);
}

#[test]
fn styles_differ_only_in_which_elements_pair() {
    let half = rope(RopeStyle::HalfSplit, 6, 50.0, RopeScaling::None);
    let interleaved = rope(RopeStyle::Interleaved, 6, 50.0, RopeScaling::None);
    let mut x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let mut y = [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]; // the pairs (1,4) (2,5) (3,6) in pair order
    half.rotate(&mut x, 7);
    interleaved.rotate(&mut y, 7);
    assert_eq!([x[0], x[3], x[1], x[4], x[2], x[5]], y);
}

#[test]
fn a_quarter_turn_swaps_with_a_sign() {
    // Pair 0 turns one radian per position, and 11 radians are 3.5 pi + 0.0044.
    let rope = rope(RopeStyle::Interleaved, 2, 10.0, RopeScaling::None);
    let mut x = [3.0, 4.0];
    rope.rotate(&mut x, 11);
    assert_relative_eq!(x[0], 4.0, epsilon = 5.0 * 0.0045);
    assert_relative_eq!(x[1], -3.0, epsilon = 5.0 * 0.0045);
    assert_relative_eq!(x[0].hypot(x[1]), 5.0, max_relative = 1e-15);
}

#[test]
fn yarn_blends_between_the_pairs_of_32_turns_and_of_one() {
    let trained = frequencies(&rope(RopeStyle::Interleaved, 64, 10_000.0, RopeScaling::None));
    let rope = rope(RopeStyle::Interleaved, 64, 10_000.0, V3);
    let scaled = frequencies(&rope);
    // 64 ln(4096 / (2 pi turns)) / (2 ln 10^4) is 10.47 at 32 turns and 22.51 at one turn.
    let (low, high) = (10, 23);
    for i in 0..32 {
        let expected = match i {
            _ if i <= low => trained[i],
            _ if i >= high => trained[i] / 40.0,
            _ => {
                let divided = (i - low) as f64 / (high - low) as f64;
                trained[i] * ((1.0 - divided) + divided / 40.0)
            }
        };
        assert_relative_eq!(scaled[i], expected, max_relative = 1e-12);
    }
}

/// YaRN by a factor of two, blending from `beta_fast` turns to one.
fn halving(beta_fast: f64) -> RopeScaling {
    RopeScaling::Yarn {
        factor: 2.0,
        beta_fast,
        beta_slow: 1.0,
        mscale: 1.0,
        mscale_all_dim: 1.0,
        original_max_position: 4096,
        attention_factor: None,
        truncate: true,
    }
}

#[test]
fn yarn_blends_past_the_last_pair() {
    let trained = frequencies(&rope(RopeStyle::HalfSplit, 8, 100.0, RopeScaling::None));
    let scaled = frequencies(&rope(RopeStyle::HalfSplit, 8, 100.0, halving(32.0)));
    // 8 ln(4096 / (2 pi turns)) / (2 ln 100) is 2.62 at 32 turns and 5.63 at one, so the blend runs
    // from pair 2 to a pair 6 that does not exist, and the last pair is a quarter of the way.
    for (i, part) in [0.0, 0.0, 0.0, 0.25].into_iter().enumerate() {
        assert_relative_eq!(scaled[i], trained[i] * (1.0 - part / 2.0), max_relative = 1e-12);
    }
}

#[test]
fn yarn_ends_its_blend_before_the_width() {
    let trained = frequencies(&rope(RopeStyle::HalfSplit, 4, 10.0, RopeScaling::None));
    let scaled = frequencies(&rope(RopeStyle::HalfSplit, 4, 10.0, halving(600.0)));
    // 4 ln(4096 / (2 pi turns)) / (2 ln 10) is 0.07 at 600 turns and 5.6 at one, which is more than
    // width - 1: the blend runs from pair 0 to a pair 3 that does not exist.
    for (i, part) in [0.0, 1.0 / 3.0].into_iter().enumerate() {
        let expected = trained[i] * (1.0 - part) + trained[i] / 2.0 * part;
        assert_relative_eq!(scaled[i], expected, max_relative = 1e-14);
    }
}

#[test]
fn yarn_moves_magnitude_from_cos_and_sin_into_the_softmax_scale() {
    let magnitude = |scaling| {
        let rope = rope(RopeStyle::Interleaved, 2, 10_000.0, scaling);
        (rope.cos_sin(0).next().expect("a pair").0, rope.softmax_scale_factor())
    };
    let yarn = |mscale, mscale_all_dim, attention_factor| RopeScaling::Yarn {
        factor: 40.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale,
        mscale_all_dim,
        original_max_position: 4096,
        attention_factor,
        truncate: true,
    };
    let m = |a: f64| 0.1 * a * 40f64.ln() + 1.0;
    assert_eq!(magnitude(yarn(1.0, 1.0, None)), (1.0, m(1.0) * m(1.0)));
    assert_eq!(magnitude(yarn(1.0, 0.0, None)), (m(1.0), 1.0));
    assert_eq!(magnitude(yarn(0.707, 1.0, None)), (m(0.707) / m(1.0), m(1.0) * m(1.0)));
    assert_eq!(magnitude(yarn(1.0, 0.0, Some(0.5))), (0.5, 1.0));
}

#[test]
fn llama3_divides_long_waves_keeps_short_ones_and_blends() {
    let trained = frequencies(&rope(RopeStyle::HalfSplit, 128, 500_000.0, RopeScaling::None));
    let scaled = frequencies(&rope(RopeStyle::HalfSplit, 128, 500_000.0, LLAMA_3_1));
    let mut seen = [0; 3];
    for (f, scaled) in trained.into_iter().zip(scaled) {
        let wavelength = 2.0 * PI / f;
        let expected = if wavelength > 8192.0 {
            seen[0] += 1;
            f / 8.0
        } else if wavelength < 2048.0 {
            seen[1] += 1;
            f
        } else {
            seen[2] += 1;
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            (1.0 - smooth) * f / 8.0 + smooth * f
        };
        assert_relative_eq!(scaled, expected, max_relative = 1e-12);
    }
    assert!(seen.into_iter().all(|count| count > 0), "{seen:?}");
}

// [S-5.22]
#[test]
fn yarn_that_overflows_is_refused() {
    let yarn = |factor, mscale, mscale_all_dim| RopeScaling::Yarn {
        factor,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale,
        mscale_all_dim,
        original_max_position: 4096,
        attention_factor: None,
        truncate: true,
    };
    for scaling in [yarn(1e308, 1e308, 1e308), yarn(1e300, 0.0, 1e307)] {
        let rope = Rope::new(RopeStyle::HalfSplit, 8, 1e4, scaling);
        assert!(matches!(rope, Err(InvalidRope::Scaling { .. })), "{scaling:?}");
    }
}

#[test]
fn width_zero_rotates_nothing() {
    for scaling in [RopeScaling::None, LLAMA_3_1, V3] {
        let rope = rope(RopeStyle::HalfSplit, 0, 10_000.0, scaling);
        rope.rotate(&mut [], 5);
        assert_eq!(rope.cos_sin(5).len(), 0);
    }
}

#[test]
fn bad_parameters_are_named() {
    let new = |width, base, scaling| Rope::new(RopeStyle::HalfSplit, width, base, scaling);
    assert_eq!(new(3, 10.0, RopeScaling::None), Err(InvalidRope::OddWidth { width: 3 }));
    let width = 1 << 40;
    assert_eq!(new(width, 10.0, RopeScaling::None), Err(InvalidRope::TooWide { width }));
    for base in [1.0, 0.0, -10.0, f64::INFINITY] {
        assert_eq!(new(2, base, RopeScaling::None), Err(InvalidRope::Base { base }));
    }
    assert!(matches!(new(2, f64::NAN, RopeScaling::None), Err(InvalidRope::Base { .. })));
    let llama = |factor, low, high, original_max_position| RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position,
    };
    let yarn = |beta_fast, beta_slow, mscale, mscale_all_dim, attention_factor| RopeScaling::Yarn {
        factor: 2.0,
        beta_fast,
        beta_slow,
        mscale,
        mscale_all_dim,
        original_max_position: 64,
        attention_factor,
        truncate: true,
    };
    for (scaling, what, value) in [
        (llama(0.5, 1.0, 4.0, 64), "factor", 0.5),
        (llama(8.0, 0.0, 4.0, 64), "low_freq_factor", 0.0),
        (llama(8.0, 4.0, 4.0, 64), "high_freq_factor", 4.0),
        (llama(8.0, 1.0, 4.0, 0), "original_max_position", 0.0),
        (yarn(32.0, 0.0, 1.0, 1.0, None), "beta_slow", 0.0),
        (yarn(0.5, 1.0, 1.0, 1.0, None), "beta_fast", 0.5),
        (yarn(32.0, 1.0, -1.0, 1.0, None), "mscale", -1.0),
        (yarn(32.0, 1.0, 1.0, f64::INFINITY, None), "mscale_all_dim", f64::INFINITY),
        (yarn(32.0, 1.0, 1.0, 1.0, Some(0.0)), "attention_factor", 0.0),
    ] {
        assert_eq!(new(2, 10.0, scaling), Err(InvalidRope::Scaling { what, value }));
    }
}

proptest! {
    /// `<R(p) x, R(q) y>` depends on p - q alone: why rope encodes relative positions.
    #[test]
    fn scores_depend_on_the_distance_alone(
        x in prop::collection::vec(-1.0..1.0, 8),
        y in prop::collection::vec(-1.0..1.0, 8),
        p in -100_000i64..100_000,
        q in -100_000i64..100_000,
        shift in -100_000i64..100_000,
    ) {
        for style in STYLES {
            for scaling in [RopeScaling::None, V3, LLAMA_3_1] {
                let rope = rope(style, 8, 10_000.0, scaling);
                let score = |p, q| {
                    let (mut x, mut y): (Vec<f64>, Vec<f64>) = (x.clone(), y.clone());
                    rope.rotate(&mut x, p);
                    rope.rotate(&mut y, q);
                    x.iter().zip(&y).map(|(a, b)| a * b).sum::<f64>()
                };
                let difference = score(p, q) - score(p + shift, q + shift);
                prop_assert!(difference.abs() < 1e-9, "{difference:e}");
            }
        }
    }

    /// A rotation by -p undoes one by p.
    #[test]
    fn negative_positions_turn_back(
        x in prop::collection::vec(-1.0..1.0, 12),
        p in -1_000_000i64..1_000_000,
    ) {
        for style in STYLES {
            let rope = rope(style, 6, 10_000.0, RopeScaling::None);
            let mut turned: Vec<f64> = x.clone();
            rope.rotate(&mut turned, p);
            rope.rotate(&mut turned, -p);
            for (a, b) in x.iter().zip(&turned) {
                prop_assert!((a - b).abs() < 1e-14);
            }
        }
    }
}
