//! `oracle attend` against attention written down here, over the same file.

use crate::program::Folder;
use crate::tensors::{Tensors, numbers};
use safetensors::Dtype;

/// Sequences of 3, 0 and 5 tokens in pages of 2, out of order, with NaN in every cell that is not
/// used and impossible ids in every slot that is not.
pub(crate) struct Sizes {
    pub(crate) h_q: usize,
    pub(crate) h: usize,
    /// d_k and d_v, or none for a tied row.
    pub(crate) separate: Option<[usize; 2]>,
    /// s, n, r of a tied row.
    pub(crate) tied: [usize; 3],
}

pub(crate) const MHA: Sizes = Sizes { h_q: 2, h: 2, separate: Some([3, 3]), tied: [0; 3] };
pub(crate) const GQA: Sizes = Sizes { h_q: 4, h: 2, separate: Some([3, 5]), tied: [0; 3] };
pub(crate) const MQA: Sizes = Sizes { h_q: 3, h: 1, separate: Some([4, 2]), tied: [0; 3] };
pub(crate) const GTA: Sizes = Sizes { h_q: 6, h: 2, separate: None, tied: [6, 3, 3] };
pub(crate) const MLA: Sizes = Sizes { h_q: 3, h: 1, separate: None, tied: [5, 5, 2] };
pub(crate) const GLA: Sizes = Sizes { h_q: 4, h: 2, separate: None, tied: [4, 4, 2] };
pub(crate) const NO_ROPE: Sizes = Sizes { h_q: 4, h: 2, separate: None, tied: [4, 3, 0] };
const ALL: [Sizes; 7] = [MHA, GQA, MQA, GTA, MLA, GLA, NO_ROPE];

const PAGES: usize = 6;
const PAGE_SIZE: usize = 2;
const Q_LENS: [i32; 3] = [2, 1, 3];
const KV_LENS: [i32; 3] = [3, 0, 5];
const TABLE: [[i32; 4]; 3] = [[4, 1, -7, 99], [-1, -1, -1, -1], [0, 5, 2, i32::MIN]];
const TREE: [i32; 6] = [-1, -1, -1, -1, 0, 0];

impl Sizes {
    pub(crate) fn width_k(&self) -> usize {
        let [_, n, r] = self.tied;
        self.separate.map_or(n + r, |[d_k, _]| d_k)
    }

    pub(crate) fn width_v(&self) -> usize {
        self.separate.map_or(self.tied[0], |[_, d_v]| d_v)
    }

    /// A case in f64.
    pub(crate) fn case(&self, mask: &str) -> Tensors {
        let total_q = Q_LENS.iter().sum::<i32>() as usize;
        let queries = [total_q, self.h_q, self.width_k()];
        let file = Tensors::default()
            .f64("q", &queries, &numbers(1, queries.iter().product()))
            .i32("q_lens", &[3], &Q_LENS)
            .i64("kv_lens", &[3], &KV_LENS.map(i64::from))
            .i32("page_table", &[3, 4], TABLE.as_flattened())
            .meta("scale", "0.7")
            .meta("mask", mask);
        let file = if mask == "tree" { file.i32("tree_parents", &[6], &TREE) } else { file };
        let part = |file: Tensors, name: &str, tail: &[usize]| {
            let shape = [&[PAGES, PAGE_SIZE], tail].concat();
            file.f64(name, &shape, &poisoned(tail.iter().product(), name.len() as u64))
        };
        match (self.separate, self.tied) {
            (Some([d_k, d_v]), _) => {
                part(part(file, "cache_k", &[self.h, d_k]), "cache_v", &[self.h, d_v])
            }
            (None, [s, _, 0]) => part(file, "cache_state", &[self.h, s]),
            (None, [s, _, r]) => part(part(file, "cache_state", &[self.h, s]), "cache_rope", &[r]),
        }
    }
}

fn slot(sequence: usize, position: usize) -> usize {
    TABLE[sequence][position / PAGE_SIZE] as usize * PAGE_SIZE + position % PAGE_SIZE
}

/// Rows of `width` numbers, NaN where no token is.
fn poisoned(width: usize, seed: u64) -> Vec<f64> {
    let random = numbers(seed, PAGES * PAGE_SIZE * width);
    let mut values = vec![f64::NAN; random.len()];
    for (sequence, &kv_len) in KV_LENS.iter().enumerate() {
        for position in 0..kv_len as usize {
            let at = slot(sequence, position) * width..(slot(sequence, position) + 1) * width;
            values[at.clone()].copy_from_slice(&random[at]);
        }
    }
    values
}

fn sees(mask: &str, sequence: usize, t: usize, j: usize) -> bool {
    let (q_len, kv_len) = (Q_LENS[sequence] as usize, KV_LENS[sequence] as usize);
    let first: usize = Q_LENS[..sequence].iter().sum::<i32>() as usize;
    match mask {
        "full" => true,
        "causal" => j + q_len <= kv_len + t,
        _ => {
            let prefix = kv_len - q_len;
            let mut at = t as i32;
            while at >= 0 && prefix + at as usize != j {
                at = TREE[first + at as usize];
            }
            j < prefix || at >= 0
        }
    }
}

/// o, lse and envelope `[S-3.1] [S-3.2] [S-3.3] [S-7.4]`.
fn attention(sizes: &Sizes, file: &Tensors, mask: &str) -> [Vec<f64>; 3] {
    let (width_k, width_v, group) = (sizes.width_k(), sizes.width_v(), sizes.h_q / sizes.h);
    let q = file.floats("q");
    let row = |name: &str, token: usize, head: usize, heads: usize, width: usize| {
        file.floats(name)[(token * heads + head) * width..][..width].to_vec()
    };
    let key = |token: usize, head: usize| match (sizes.separate, sizes.tied) {
        (Some([d_k, _]), _) => row("cache_k", token, head, sizes.h, d_k),
        (None, [s, n, 0]) => row("cache_state", token, head, sizes.h, s)[..n].to_vec(),
        (None, [s, n, r]) => {
            let state = row("cache_state", token, head, sizes.h, s);
            [&state[..n], &row("cache_rope", token, 0, 1, r)].concat()
        }
    };
    let value = |token: usize, head: usize| match sizes.separate {
        Some([_, d_v]) => row("cache_v", token, head, sizes.h, d_v),
        None => row("cache_state", token, head, sizes.h, sizes.tied[0]),
    };
    let [mut o, mut lse, mut envelope] = [Vec::new(), Vec::new(), Vec::new()];
    let mut rows = q.chunks_exact(width_k);
    for (sequence, &q_len) in Q_LENS.iter().enumerate() {
        for t in 0..q_len as usize {
            for i in 0..sizes.h_q {
                let query = rows.next().unwrap();
                let visible: Vec<usize> = (0..KV_LENS[sequence] as usize)
                    .filter(|&j| sees(mask, sequence, t, j))
                    .map(|j| slot(sequence, j))
                    .collect();
                let weight = |&token: &usize| -> f64 {
                    let products = key(token, i / group).into_iter().zip(query);
                    (0.7 * products.map(|(k, q)| k * q).sum::<f64>()).exp()
                };
                let weights: Vec<f64> = visible.iter().map(weight).collect();
                let sum: f64 = weights.iter().sum();
                lse.push(sum.ln());
                for column in 0..width_v {
                    let values = visible.iter().map(|&token| value(token, i / group)[column]);
                    let terms: Vec<f64> = values.zip(&weights).map(|(v, p)| p / sum * v).collect();
                    o.push(terms.iter().sum());
                    envelope.push(terms.iter().map(|x| x.abs()).sum());
                }
            }
        }
    }
    [o, lse, envelope]
}

fn close(got: &[f64], expected: &[f64]) -> bool {
    let near = |(a, b): (&f64, &f64)| a == b || (a - b).abs() < 1e-14;
    got.len() == expected.len() && got.iter().zip(expected).all(near)
}

// [S-2.10] [S-3.1] [S-3.9] [S-3.13] [S-3.14] [S-3.19] [S-4.4]
#[test]
fn every_variant_and_mask_is_attention_as_written_here() {
    for sizes in &ALL {
        for mask in ["causal", "full", "tree"] {
            let folder = Folder::new();
            let mut case = sizes.case(mask);
            if mask == "tree" {
                // A tree needs its draft in the cache: the empty sequence has no query then.
                case = without_empty_sequence(case);
            }
            folder.put("case", &case);
            assert_eq!(folder.succeed("attend case -o out"), "");
            let out = folder.get("out");
            let rows = case.shape("q")[0];
            assert_eq!(out.shape("o"), [rows, sizes.h_q, sizes.width_v()]);
            assert_eq!(out.shape("lse"), [rows, sizes.h_q]);
            let mut expected = attention(sizes, &sizes.case(mask), mask);
            if mask == "tree" {
                let lens = [sizes.h_q * sizes.width_v(), sizes.h_q, sizes.h_q * sizes.width_v()];
                for (part, len) in expected.iter_mut().zip(lens) {
                    part.drain(2 * len..3 * len);
                }
            }
            for (name, expected) in ["o", "lse", "envelope"].into_iter().zip(&expected) {
                assert_eq!(out.dtype(name), Dtype::F64);
                assert!(close(&out.floats(name), expected), "{name}, {mask}, h_q {}", sizes.h_q);
            }
        }
    }
}

/// The same case with a second sequence that asks nothing.
fn without_empty_sequence(case: Tensors) -> Tensors {
    let q = case.floats("q");
    let [total_q, h_q, width] = case.shape("q") else { panic!("q is [total_q, h_q, width]") };
    let (shape, row) = ([total_q - 1, *h_q, *width], h_q * width);
    let rest = [&q[..2 * row], &q[3 * row..]].concat();
    let parents = [&TREE[..2], &TREE[3..]].concat();
    case.f64("q", &shape, &rest).i32("q_lens", &[3], &[2, 0, 3]).i32("tree_parents", &[5], &parents)
}

// [S-1.5]
#[test]
fn dtype_rounds_the_inputs_and_not_the_results() {
    let folder = Folder::new();
    let mut case = GLA.case("full");
    folder.put("case", &case);
    folder.succeed("attend case -o out --dtype bf16");
    for name in ["q", "cache_state", "cache_rope"] {
        let rounded: Vec<f64> =
            case.floats(name).iter().map(|&x| grouped_attention::Dtype::Bf16.round(x)).collect();
        let shape = case.shape(name).to_vec();
        assert_ne!(case.floats(name), rounded);
        case = case.f64(name, &shape, &rounded);
    }
    folder.put("rounded", &case);
    folder.succeed("attend rounded -o expected");
    assert_eq!(folder.get("out"), folder.get("expected"));
    assert_eq!(folder.get("out").dtype("o"), Dtype::F64);
}

#[test]
fn formats_may_be_mixed() {
    let folder = Folder::new();
    let case = MQA.case("causal");
    let values = case.floats("cache_v");
    let halves: Vec<u8> =
        values.iter().flat_map(|&x| half::f16::from_f64(x).to_le_bytes()).collect();
    let widened: Vec<f64> = values.iter().map(|&x| half::f16::from_f64(x).to_f64()).collect();
    let shape = case.shape("cache_v").to_vec();
    folder.put("mixed", &case.clone().with("cache_v", Dtype::F16, &shape, halves));
    folder.put("wide", &case.f64("cache_v", &shape, &widened));
    folder.succeed("attend mixed -o out");
    folder.succeed("attend wide -o expected");
    assert_eq!(folder.get("out"), folder.get("expected"));
}

#[test]
fn other_tensors_are_noted() {
    let folder = Folder::new();
    folder.put("case", &MQA.case("full").f64("attention_mask", &[1], &[0.0]));
    let ran = folder.run("attend case -o out");
    assert_eq!(ran.status, 0);
    insta::assert_snapshot!(ran.stderr, @"note: case: tensor attention_mask is ignored");
}

#[test]
fn an_old_result_is_replaced_and_nothing_else_is_left() {
    let folder = Folder::new();
    folder.put("case", &MQA.case("full"));
    std::fs::write(folder.path("out"), "old").unwrap();
    folder.succeed("attend case -o out");
    assert_eq!(folder.names(), ["case", "out"]);
    assert_eq!(folder.get("out").shape("lse"), [6, 3]);
}

/// A batch of nobody `[S-3.13]`.
#[test]
fn no_sequence_is_a_case() {
    let folder = Folder::new();
    let case = GLA
        .case("causal")
        .f64("q", &[0, 4, 6], &[])
        .i32("q_lens", &[0], &[])
        .i32("kv_lens", &[0], &[])
        .i32("page_table", &[0, 7], &[]);
    folder.put("case", &case);
    folder.succeed("attend case -o out");
    assert_eq!(folder.get("out").shape("o"), [0, 4, 4]);
}
