//! `oracle compare`: right results pass, wrong ones do not.

use crate::attend::{GLA, GQA};
use crate::program::{Folder, Ran};
use crate::tensors::Tensors;

/// Long enough for a row to have something to lose.
const LINE: &str =
    "gla h_q=4 h=2 s=16 n=16 r=8 page=3 q=2,1,0 kv=60,7,5 scale=0.2 dtype=bf16 seed=5";

/// The case, and the reference's result for it.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.succeed(&format!("gen {LINE} -o case"));
    folder.succeed("attend case -o exact");
    folder
}

/// Judges the exact result after a change to it.
fn judged(folder: &Folder, words: &str, change: impl FnOnce(Tensors) -> Tensors) -> Ran {
    folder.put("changed", &change(folder.get("exact")));
    folder.run(&format!("compare case changed {words}"))
}

fn change_o(tensors: Tensors, change: impl FnOnce(&mut [f64])) -> Tensors {
    let mut o = tensors.floats("o");
    change(&mut o);
    let shape = tensors.shape("o").to_vec();
    tensors.f64("o", &shape, &o)
}

fn change_lse(tensors: Tensors, change: impl FnOnce(&mut [f64])) -> Tensors {
    let mut lse = tensors.floats("lse");
    change(&mut lse);
    let shape = tensors.shape("lse").to_vec();
    tensors.f64("lse", &shape, &lse)
}

// [S-7.12] [S-7.14]
#[test]
fn the_exact_result_passes_under_every_arithmetic() {
    let folder = folder();
    for arithmetic in ["f64", "f32", "tf32", "f16", "bf16"] {
        let ran = judged(&folder, &format!("--arithmetic {arithmetic}"), |exact| exact);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    }
}

/// Rounding an output is allowed where its format or the stated arithmetic says so `[S-7.18]`.
#[test]
fn a_rounded_result_passes_where_the_rounding_is_stated() {
    let folder = folder();
    let bf16 = |exact: Tensors| {
        let o = exact.floats("o");
        let bytes = o.iter().flat_map(|&x| half::bf16::from_f64(x).to_le_bytes()).collect();
        let shape = exact.shape("o").to_vec();
        exact.with("o", safetensors::Dtype::BF16, &shape, bytes)
    };
    assert_eq!(judged(&folder, "--arithmetic f32", bf16).status, 0);
    let widened = |exact| {
        change_o(exact, |o| o.iter_mut().for_each(|x| *x = half::bf16::from_f64(*x).to_f64()))
    };
    assert_eq!(judged(&folder, "--arithmetic bf16", widened).status, 0);
    assert_eq!(judged(&folder, "--arithmetic f32", widened).status, 1);
    assert_eq!(judged(&folder, "--arithmetic f64", widened).status, 1);
}

// [S-1.1]
#[test]
fn the_worst_element_is_named() {
    let folder = folder();
    // Token 1 of sequence 0, head 2, column 5.
    let ran =
        judged(&folder, "--arithmetic bf16", |exact| change_o(exact, |o| o[(6 * 16) + 5] = 3.0));
    assert_eq!(ran.status, 1);
    let worst = ran.stdout.lines().next().unwrap();
    assert!(
        worst.starts_with("worst o[sequence 0, token 1, head 2, column 5]: expected"),
        "{worst}"
    );
    assert!(worst.contains("got 3e0, error") && worst.contains("ratio"), "{worst}");
    assert!(ran.stdout.ends_with("2 of 216 numbers out of bound\n"), "{}", ran.stdout);
}

#[test]
fn defects_are_rejected() {
    let folder = folder();
    let row = 16;
    type Defect = fn(Tensors) -> Tensors;
    let defects: [(&str, Defect); 7] = [
        ("a zeroed row", |exact| change_o(exact, |o| o[7 * 16..8 * 16].fill(0.0))),
        ("a NaN", |exact| change_o(exact, |o| o[3] = f64::NAN)),
        ("an infinity", |exact| change_o(exact, |o| o[3] = f64::INFINITY)),
        ("two heads swapped", |exact| {
            change_o(exact, |o| {
                let (a, b) = o.split_at_mut(16);
                a.swap_with_slice(&mut b[..16]);
            })
        }),
        ("every row scaled", |exact| change_o(exact, |o| o.iter_mut().for_each(|x| *x *= 1.03))),
        ("lse in base 2", |exact| {
            change_lse(exact, |lse| lse.iter_mut().for_each(|x| *x /= std::f64::consts::LN_2))
        }),
        ("a missing lse", |exact| change_lse(exact, |lse| lse[2] = f64::NEG_INFINITY)),
    ];
    for (what, defect) in defects {
        let ran = judged(&folder, "--arithmetic bf16", defect);
        assert_eq!(ran.status, 1, "{what}: {}", ran.stdout);
    }
    // What is not changed is not what the rejections are about.
    assert_eq!(judged(&folder, "--arithmetic bf16", |exact| exact).status, 0);
    assert_eq!(folder.get("exact").shape("o"), [3, 4, row]);
}

/// Empty rows are compared exactly `[S-7.21]`: sequence 1 of these cases has a query and no token.
#[test]
fn an_empty_row_is_zero_and_minus_infinity() {
    let folder = Folder::new();
    folder.put("case", &GQA.case("causal"));
    folder.succeed("attend case -o exact");
    let [h_q, d_v] = [4, 5];
    let first = 2 * h_q;
    assert_eq!(judged(&folder, "--arithmetic bf16", |exact| exact).status, 0);
    let tiny =
        judged(&folder, "--arithmetic bf16", |exact| change_o(exact, |o| o[first * d_v] = 1e-300));
    assert_eq!(tiny.status, 1, "{}", tiny.stdout);
    let finite =
        judged(&folder, "--arithmetic bf16", |exact| change_lse(exact, |lse| lse[first] = -1e30));
    assert_eq!(finite.status, 1, "{}", finite.stdout);
}

#[test]
fn without_lse_the_output_is_judged_alone() {
    let folder = folder();
    let ran = judged(&folder, "--arithmetic f32", |exact| exact.without("lse"));
    assert_eq!(ran.status, 0);
    insta::assert_snapshot!(ran.stderr, @"note: changed: no lse, so only o is judged");
}

/// A kernel in bf16 is right about rounded inputs, not about those in the file.
#[test]
fn dtype_judges_against_rounded_inputs() {
    let folder = Folder::new();
    folder.put("case", &GLA.case("full"));
    folder.succeed("attend case -o out --dtype f16");
    assert_eq!(folder.run("compare case out --arithmetic f32 --dtype f16").status, 0);
    assert_eq!(folder.run("compare case out --arithmetic f32").status, 1);
}

/// The sharper bound sees what the plain one lets pass `[S-7.22]`.
#[test]
fn general_position_is_sharper() {
    let folder = Folder::new();
    folder.succeed("gen mqa h_q=2 h=1 d_k=64 d_v=64 q=1 kv=4000 scale=0.05 seed=3 -o case");
    folder.succeed("attend case -o exact");
    let off = |exact| change_o(exact, |o| o.iter_mut().for_each(|x| *x += 4e-5 * x.signum()));
    let words = "--arithmetic f32 --tile 64";
    assert_eq!(judged(&folder, words, off).status, 0);
    assert_eq!(judged(&folder, &format!("{words} --general-position"), off).status, 1);
    assert_eq!(judged(&folder, &format!("{words} --general-position"), |exact| exact).status, 0);
}

/// A verdict about nothing is not a pass `[S-7.3]`.
#[test]
fn an_arithmetic_without_a_bound_judges_nothing() {
    let folder = folder();
    let ran = judged(&folder, "--arithmetic f32 --vector 0.5", |exact| exact);
    assert_eq!((ran.status, ran.stdout.as_str()), (2, ""));
    insta::assert_snapshot!(ran.stderr, @r"
    note: 12 rows are outside the domain of the bounds, and not judged
    error: nothing could be judged: the stated arithmetic implies no bound for any row
    ");
}
