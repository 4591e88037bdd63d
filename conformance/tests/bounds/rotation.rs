//! The bound of a rotated key.

use crate::model::f32;
use grouped_attention::{Dtype, Rope, RopeScaling, RopeStyle};
use grouped_attention_conformance::noise::Noise;

/// `[S-7.19]` for one element of a pair.
fn bound(pair: [f64; 2], y: f64, dtype: Dtype) -> f64 {
    let u_out = dtype.unit_roundoff();
    let spread = 4.0 * Dtype::F32.unit_roundoff() * (pair[0].abs() + pair[1].abs());
    spread * (1.0 + u_out) + u_out * y.abs() + dtype.min_subnormal() / 2.0
}

/// Both elements, in f32 from angles in f64, or with angles in f32 too.
fn rotated(pair: [f64; 2], frequency: f64, position: i64, angle_in_f32: bool) -> [f64; 2] {
    let angle = match angle_in_f32 {
        true => f32(f32(frequency) * position as f64),
        false => frequency * position as f64,
    };
    let (cos, sin) = (f32(angle.cos()), f32(angle.sin()));
    let [a, b] = pair;
    [f32(f32(a * cos) - f32(b * sin)), f32(f32(b * cos) + f32(a * sin))]
}

// [S-7.19]
#[test]
fn angles_in_f64_are_in_bound_and_angles_in_f32_are_not() {
    let (width, base) = (8, 10_000.0);
    let rope = Rope::new(RopeStyle::HalfSplit, width, base, RopeScaling::None).unwrap();
    let mut noise = Noise::new(10, &[]);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let [mut largest, mut in_f32]: [f64; 2] = [0.0; 2];
        for position in [0, 1, 77, 4095, 131_071, 1_000_003, -5] {
            let x: Vec<f64> = (0..width).map(|_| dtype.round(noise.gaussian())).collect();
            let mut exact = x.clone();
            rope.rotate(&mut exact, position);
            for i in 0..width / 2 {
                let frequency = base.powf(-2.0 * i as f64 / width as f64);
                let pair = [x[i], x[i + width / 2]];
                for (part, at) in [(0, i), (1, i + width / 2)] {
                    let ratio = |angle_in_f32| {
                        let got = rotated(pair, frequency, position, angle_in_f32)[part];
                        (dtype.round(got) - exact[at]).abs() / bound(pair, exact[at], dtype)
                    };
                    largest = largest.max(ratio(false));
                    in_f32 = in_f32.max(ratio(true));
                }
            }
        }
        assert!(largest <= 1.0 && largest > 0.1, "{dtype}: {largest}");
        assert!(in_f32 > 1.0, "{dtype}: {in_f32}");
    }
}
