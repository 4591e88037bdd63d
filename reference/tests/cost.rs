//! Sharding and cost: the paper's tables to the digit, and the roofline by hand `[S-6.1 .. S-6.11]`.

use approx::assert_relative_eq;
use grouped_attention::cost::{
    Bound, Device, InvalidDevice, StepCost, flops_per_token, intensity, intensity_without_rope,
};
use grouped_attention::{Dtype, Geometry, InvalidSharding, Sharding, Variant};
use proptest::prelude::*;
use std::fmt::Write;

fn legal<E: std::fmt::Debug>(geometry: Result<Geometry, E>) -> Geometry {
    geometry.expect("a legal geometry")
}

/// One line per variant, one column per degree of tensor parallelism.
fn table(
    variants: &[(&str, Geometry)],
    degrees: &[usize],
    cell: impl Fn(&Sharding) -> String,
) -> String {
    let mut table = String::from("variant ");
    for degree in degrees {
        write!(table, "{:>8}", format!("TP {degree}")).expect("memory");
    }
    for (name, geometry) in variants {
        write!(table, "\n{name:8}").expect("memory");
        for &degree in degrees {
            let sharding = Sharding::new(*geometry, degree).expect("a degree that divides");
            write!(table, "{:>8}", cell(&sharding)).expect("memory");
        }
    }
    table
}

fn bytes(sharding: &Sharding) -> String {
    sharding.bytes_per_token(Dtype::Bf16).to_string()
}

/// Table 26 of the paper. Its rows "GQA-4" and "GTA-4" have 8 cached heads: the 4 is g.
#[test]
fn elements_of_a_llama_3_8b_like_layer_s_6_9() {
    let d_h = 128;
    let variants = [
        ("MHA", legal(Geometry::mha(32, d_h))),
        ("GQA-8", legal(Geometry::gqa(32, 8, d_h))),
        ("MQA", legal(Geometry::mqa(32, d_h))),
        ("MLA", legal(Geometry::mla(32, 4 * d_h, d_h / 2))),
        ("GLA-2", legal(Geometry::gla(32, 2, 2 * d_h, d_h / 2))),
        ("GTA-8", legal(Geometry::gta(32, 8, d_h))),
    ];
    let multiples =
        |sharding: &Sharding| (sharding.elements_per_token() as f64 / d_h as f64).to_string();
    insta::assert_snapshot!(table(&variants, &[1, 2, 4, 8], multiples), @r"
    variant     TP 1    TP 2    TP 4    TP 8
    MHA           64      32      16       8
    GQA-8         16       8       4       2
    MQA            2       2       2       2
    MLA          4.5     4.5     4.5     4.5
    GLA-2        4.5     2.5     2.5     2.5
    GTA-8        8.5     4.5     2.5     1.5
    ");
}

/// Tables 5, 15 and 23 of the paper, the 1.471B model.
#[test]
fn bytes_of_the_xl_model_s_6_10() {
    let variants = [
        ("MHA", legal(Geometry::mha(16, 128))),
        ("GQA-4", legal(Geometry::gqa(16, 4, 128))),
        ("GTA-4", legal(Geometry::gta(16, 4, 128))),
        ("GLA-2", legal(Geometry::gla(16, 2, 256, 64))),
        ("MLA", legal(Geometry::mla(16, 512, 64))),
    ];
    insta::assert_snapshot!(table(&variants, &[1, 2, 4], bytes), @r"
    variant     TP 1    TP 2    TP 4
    MHA         8192    4096    2048
    GQA-4       2048    1024     512
    GTA-4       1152     640     384
    GLA-2       1152     640     640
    MLA         1152    1152    1152
    ");
}

/// The same tables, the 433M model.
#[test]
fn bytes_of_the_medium_model_s_6_10() {
    let variants = [
        ("MHA", legal(Geometry::mha(16, 64))),
        ("GQA-4", legal(Geometry::gqa(16, 4, 64))),
        ("MQA", legal(Geometry::mqa(16, 64))),
        ("GTA-4", legal(Geometry::gta(16, 4, 64))),
        ("GLA-2", legal(Geometry::gla(16, 2, 128, 32))),
        ("MLA", legal(Geometry::mla(16, 256, 32))),
    ];
    insta::assert_snapshot!(table(&variants, &[1, 2], bytes), @r"
    variant     TP 1    TP 2
    MHA         4096    2048
    GQA-4       1024     512
    MQA          256     256
    GTA-4        576     320
    GLA-2        576     320
    MLA          576     576
    ");
}

/// The paper's formulas at the shape it serves.
#[test]
fn bytes_of_the_deepseek_shape_s_6_11() {
    let variants = [
        ("MLA", legal(Geometry::mla(128, 512, 64))),
        ("GLA-2", legal(Geometry::gla(128, 2, 256, 64))),
        ("GLA-4", legal(Geometry::gla(128, 4, 256, 64))),
        ("GLA-8", legal(Geometry::gla(128, 8, 256, 64))),
    ];
    insta::assert_snapshot!(table(&variants, &[1, 2, 4, 8], bytes), @r"
    variant     TP 1    TP 2    TP 4    TP 8
    MLA         1152    1152    1152    1152
    GLA-2       1152     640     640     640
    GLA-4       2176    1152     640     640
    GLA-8       4224    2176    1152     640
    ");
}

#[test]
fn duplication_factor_s_6_2() {
    let variants = [
        ("MHA", legal(Geometry::mha(32, 128))),
        ("GQA-8", legal(Geometry::gqa(32, 8, 128))),
        ("MQA", legal(Geometry::mqa(32, 128))),
        ("GLA-2", legal(Geometry::gla(32, 2, 256, 64))),
    ];
    let factor = |sharding: &Sharding| sharding.duplication().to_string();
    insta::assert_snapshot!(table(&variants, &[1, 2, 8, 16], factor), @r"
    variant     TP 1    TP 2    TP 8   TP 16
    MHA            1       1       1       1
    GQA-8          1       1       1       2
    MQA            1       2       8      16
    GLA-2          1       1       4       8
    ");
}

/// FLOPs per byte of cache in bf16, one query token: with rope as stored, and as Table 1 counts.
#[test]
fn intensity_with_and_without_rope_s_6_6_s_6_7() {
    let gla = legal(Geometry::gla(128, 2, 256, 64));
    let half = Sharding::new(gla, 2).expect("a degree that divides").device();
    let mut table = String::from("geometry                                     stored  Table 1");
    for geometry in [
        legal(Geometry::mha(32, 128)),
        legal(Geometry::gqa(32, 8, 128)),
        legal(Geometry::mqa(32, 128)),
        legal(Geometry::gta(32, 8, 128)),
        legal(Geometry::mla(128, 512, 64)),
        gla,
        half,
    ] {
        let [stored, paper] = [intensity, intensity_without_rope]
            .map(|intensity| intensity(&geometry, Dtype::Bf16, 1));
        write!(table, "\n{:42}{stored:>9.2}{paper:>9}", geometry.to_string()).expect("memory");
    }
    insta::assert_snapshot!(table, @r"
    geometry                                     stored  Table 1
    mha h_q=32 h=32 d_k=128 d_v=128                1.00        1
    gqa h_q=32 h=8 d_k=128 d_v=128                 4.00        4
    mqa h_q=32 h=1 d_k=128 d_v=128                32.00       32
    gta h_q=32 h=8 s=128 n=64 r=64                 7.53        8
    mla h_q=128 h=1 s=512 n=512 r=64             241.78      256
    gla h_q=128 h=2 s=256 n=256 r=64             128.00      128
    gla h_q=64 h=1 s=256 n=256 r=64              115.20      128
    ");
}

/// B = 128, L = 8192 on one H100: the figures that chapter 6 works out.
#[test]
fn roofline_on_an_h100_s_6_8() {
    let mut table = String::from("geometry                                  q_len      us  bound");
    for geometry in [legal(Geometry::mla(128, 512, 64)), legal(Geometry::gla(128, 2, 256, 64))] {
        for q_len in [1, 2, 4] {
            let cost = StepCost::new(&geometry, Dtype::Bf16, [(q_len, 8192); 128]);
            let roofline = Device::H100_SXM.roofline(&cost);
            let (name, microseconds) = (geometry.to_string(), roofline.seconds * 1e6);
            write!(table, "\n{name:42}{q_len:5}{microseconds:>8.0}  {:?}", roofline.bound)
                .expect("memory");
        }
    }
    insta::assert_snapshot!(table, @r"
    geometry                                  q_len      us  bound
    mla h_q=128 h=1 s=512 n=512 r=64              1     371  Memory
    mla h_q=128 h=1 s=512 n=512 r=64              2     591  Compute
    mla h_q=128 h=1 s=512 n=512 r=64              4    1181  Compute
    gla h_q=128 h=2 s=256 n=256 r=64              1     366  Memory
    gla h_q=128 h=2 s=256 n=256 r=64              2     372  Memory
    gla h_q=128 h=2 s=256 n=256 r=64              4     625  Compute
    ");
}

#[test]
fn a_step_by_hand_s_6_5() {
    // Two query heads on one tied head: keys of 3 + 2, values of 4, rows of 6.
    let geometry = legal(Geometry::tied(2, 1, 4, 3, 2));
    assert_eq!(flops_per_token(&geometry, 1), 36.0);
    let cost = StepCost::new(&geometry, Dtype::F32, [(1, 10), (3, 5), (0, 7), (2, 0)]);
    assert_eq!(cost.flops, 36.0 * 10.0 + 108.0 * 5.0);
    assert_eq!(cost.cache_bytes, 22.0 * 6.0 * 4.0);
    assert_eq!(cost.query_bytes, 6.0 * 10.0 * 4.0);
    assert_eq!(cost.output_bytes, 6.0 * 8.0 * 4.0);
    assert_eq!(cost.bytes(), 960.0);

    let device = Device::new(960.0, 450.0).expect("legal rates");
    let roofline = device.roofline(&cost);
    assert_eq!((roofline.seconds, roofline.bound), (2.0, Bound::Compute));
    let device = Device::new(480.0, 900.0).expect("legal rates");
    assert_eq!((device.bandwidth(), device.flops()), (480.0, 900.0));
    let roofline = device.roofline(&cost);
    assert_eq!((roofline.seconds, roofline.bound), (2.0, Bound::Memory));
    assert_eq!(StepCost::new(&geometry, Dtype::F32, []).bytes(), 0.0);
    assert_relative_eq!(Device::H100_SXM.ridge(), 295.0, max_relative = 1e-3);
}

#[test]
fn rates_that_no_device_has_are_named() {
    for rate in [0.0, -1.0, f64::INFINITY] {
        assert_eq!(Device::new(rate, 1.0), Err(InvalidDevice { what: "bandwidth", rate }));
        assert_eq!(Device::new(1.0, rate), Err(InvalidDevice { what: "FLOP rate", rate }));
    }
    assert!(Device::new(f64::NAN, 1.0).is_err());
}

#[test]
fn degrees_that_do_not_divide_are_named_s_6_1() {
    let gqa = legal(Geometry::gqa(24, 4, 8));
    assert_eq!(Sharding::new(gqa, 0), Err(InvalidSharding::DegreeZero));
    assert_eq!(Sharding::new(gqa, 16), Err(InvalidSharding::QueryHeads { h_q: 24, degree: 16 }));
    assert_eq!(Sharding::new(gqa, 48), Err(InvalidSharding::QueryHeads { h_q: 24, degree: 48 }));
    assert_eq!(Sharding::new(gqa, 6), Err(InvalidSharding::CachedHeads { heads: 4, degree: 6 }));
    assert_eq!(Sharding::new(gqa, 8).map(|sharding| sharding.duplication()), Ok(2));
}

#[test]
fn a_share_is_named_by_its_own_heads() {
    let variant = |geometry: Geometry, degree| {
        Sharding::new(geometry, degree).expect("a degree that divides").device().variant()
    };
    assert_eq!(variant(legal(Geometry::gqa(8, 2, 4)), 2), Variant::Mqa);
    assert_eq!(variant(legal(Geometry::gta(8, 2, 4)), 2), Variant::Gta);
    assert_eq!(variant(legal(Geometry::mla(8, 4, 2)), 2), Variant::Mla);
    assert_eq!(variant(legal(Geometry::gla(8, 2, 4, 2)), 2), Variant::Gla);
}

proptest! {
    /// Over all devices, the cached heads are kept `duplication` times [S-6.1, S-6.2].
    #[test]
    fn devices_keep_every_head_equally_often(
        heads in 1..33_usize,
        group in 1..33_usize,
        degree in 1..129_usize,
        s in 1..9_usize,
        pairs in 0..5_usize,
    ) {
        let geometry = legal(Geometry::tied(heads * group, heads, s, s, 2 * pairs));
        match Sharding::new(geometry, degree) {
            Ok(sharding) => {
                let device = sharding.device();
                prop_assert_eq!(device.heads() * degree, heads * sharding.duplication());
                prop_assert_eq!(device.h_q() * degree, geometry.h_q());
                prop_assert_eq!(sharding.duplication() == 1, heads >= degree);
                let elements = device.heads() * s + 2 * pairs;
                prop_assert_eq!(sharding.elements_per_token(), elements);
                // ceil(N g / h_q), as the paper writes it.
                let paper = (degree * geometry.group()).div_ceil(geometry.h_q());
                prop_assert_eq!(sharding.duplication(), paper);
            }
            Err(_) => prop_assert!(
                !(heads * group).is_multiple_of(degree)
                    || (!heads.is_multiple_of(degree) && !degree.is_multiple_of(heads))
            ),
        }
    }
}

/// [S-6.7]: of 3 query tokens each shared row serves 3 times as many heads.
#[test]
fn intensity_without_rope_grows_with_query_tokens() {
    let gqa = Geometry::gqa(32, 8, 128).expect("legal");
    let gta = Geometry::gta(32, 8, 128).expect("legal");
    for (q_len, separate) in [(1, 4.0), (3, 12.0)] {
        assert_eq!(intensity_without_rope(&gqa, Dtype::Bf16, q_len), separate);
        assert_eq!(intensity_without_rope(&gta, Dtype::Bf16, q_len), 2.0 * separate);
        assert_eq!(intensity_without_rope(&gta, Dtype::F32, q_len), separate);
    }
}

#[test]
fn a_sharding_knows_its_degree() {
    let sharding = Sharding::new(Geometry::gqa(32, 8, 128).expect("legal"), 4).expect("legal");
    assert_eq!(sharding.degree(), 4);
}
