//! Every bad file gets one sentence that names the tensor and what is wrong with it.

use crate::attend::{GLA, GQA, MQA, NO_ROPE};
use crate::program::Folder;
use crate::tensors::Tensors;
use safetensors::Dtype;

/// The sentence that the program says of a case, which it must refuse without a trace.
fn error(file: &Tensors) -> String {
    let folder = Folder::new();
    folder.put("case", file);
    refused(&folder, "attend case -o out")
}

fn refused(folder: &Folder, words: &str) -> String {
    let before = folder.names();
    let ran = folder.run(words);
    assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
    assert_eq!(folder.names(), before);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    ran.stderr
}

fn gqa() -> Tensors {
    GQA.case("causal")
}

fn gla() -> Tensors {
    GLA.case("causal")
}

#[test]
fn containers() {
    let folder = Folder::new();
    let error = |bytes: &[u8]| {
        std::fs::write(folder.path("case"), bytes).unwrap();
        refused(&folder, "attend case -o out")
    };
    insta::assert_snapshot!(error(b""), @"error: case: not a safetensors file: header too small");
    insta::assert_snapshot!(error(b"not a safetensors file"), @"error: case: not a safetensors file: header too large");
    let bytes = gqa().to_bytes();
    insta::assert_snapshot!(error(&bytes[..bytes.len() - 1]), @"error: case: not a safetensors file: incomplete metadata, file not fully covered");
    let header = r#"{"q":{"dtype":"F64","shape":[4294967296,4294967296,2],"data_offsets":[0,0]}}"#;
    let huge = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    insta::assert_snapshot!(error(&huge), @"error: case: not a safetensors file: overflow computing buffer size from shape and/or element type");
}

#[test]
fn places() {
    let folder = Folder::new();
    folder.put("case", &gqa());
    insta::assert_snapshot!(refused(&folder, "attend absent -o out"), @"error: absent: No such file or directory (os error 2)");
    insta::assert_snapshot!(refused(&folder, "attend case -o absent/out"), @"error: absent/out: No such file or directory (os error 2)");
    std::fs::create_dir(folder.path("folder")).unwrap();
    insta::assert_snapshot!(refused(&folder, "attend case -o folder"), @"error: folder: not a regular file");
}

// [S-3.5]
#[test]
fn metadata() {
    insta::assert_snapshot!(error(&gqa().without("scale")), @"error: case: metadata scale is missing: expected a finite positive number, the model's softmax scale");
    insta::assert_snapshot!(error(&gqa().meta("scale", "auto")), @r#"error: case: metadata scale is "auto": expected a finite positive number, the model's softmax scale"#);
    for scale in ["0", "-0.5", "inf", "nan", "1e-60", "1e60"] {
        assert!(error(&gqa().meta("scale", scale)).contains("metadata scale is"), "{scale}");
    }
    insta::assert_snapshot!(error(&gqa().without("mask")), @"error: case: metadata mask is missing: expected causal, tree or full");
    insta::assert_snapshot!(error(&gqa().meta("mask", "window")), @r#"error: case: metadata mask is "window": expected causal, tree or full"#);
}

#[test]
fn missing_tensors() {
    for name in ["q", "q_lens", "kv_lens", "page_table", "cache_k", "cache_v"] {
        let error = error(&gqa().without(name));
        assert!(error.starts_with(&format!("error: case: tensor {name} is missing")), "{error}");
    }
    insta::assert_snapshot!(error(&gla().without("cache_state")), @"error: case: tensor cache_state is missing: expected [pages, page_size, h, s], or cache_k and cache_v");
    // The rope key may be absent, and then the query is all nope.
    insta::assert_snapshot!(error(&gla().without("cache_rope")), @"error: case: tensor q: the key takes n = 6 elements of a state of s = 4");
    insta::assert_snapshot!(error(&gqa().meta("mask", "tree")), @"error: case: tensor tree_parents is missing: expected [total_q]");
}

// [S-2.9] [S-4.2]
#[test]
fn shapes() {
    insta::assert_snapshot!(error(&gqa().f64("q", &[6, 12], &[0.0; 72])), @"error: case: tensor q has shape [6, 12]: expected [total_q, h_q, width of a key]");
    insta::assert_snapshot!(error(&gqa().f64("q", &[6, 4, 2], &[0.0; 48])), @"error: case: tensor q has shape [6, 4, 2]: expected [total_q, h_q, 3], the width of keys in cache_k");
    insta::assert_snapshot!(error(&gqa().f64("q", &[6, 3, 3], &[0.0; 54])), @"error: case: tensor q: 2 cached heads do not divide 3 query heads");
    insta::assert_snapshot!(error(&gqa().f64("q", &[6, 0, 3], &[])), @"error: case: tensor q: h_q must be positive");
    insta::assert_snapshot!(error(&gqa().f64("cache_v", &[6, 2, 1, 5], &[0.0; 60])), @"error: case: tensor cache_v has shape [6, 2, 1, 5]: expected [pages, page_size, 2, d_v], as cache_k has 2 heads");
    insta::assert_snapshot!(error(&gqa().f64("cache_v", &[5, 2, 2, 5], &[0.0; 100])), @"error: case: tensor cache_v has shape [5, 2, 2, 5]: expected 6 pages of 2 tokens, as cache_k has");
    let empty = gqa().f64("cache_k", &[6, 0, 2, 3], &[]).f64("cache_v", &[6, 0, 2, 5], &[]);
    insta::assert_snapshot!(error(&empty), @"error: case: tensor cache_k has shape [6, 0, 2, 3]: expected pages of at least one token");
    insta::assert_snapshot!(error(&gla().f64("cache_rope", &[3, 4, 2], &[0.0; 24])), @"error: case: tensor cache_rope has shape [3, 4, 2]: expected 6 pages of 2 tokens, as cache_state has");
    insta::assert_snapshot!(error(&gla().f64("cache_rope", &[6, 2, 1, 2], &[0.0; 24])), @"error: case: tensor cache_rope has shape [6, 2, 1, 2]: expected [pages, page_size, r]");
    insta::assert_snapshot!(error(&gla().f64("cache_rope", &[6, 2, 7], &[0.0; 84])), @"error: case: tensor q has shape [6, 4, 6]: expected [total_q, h_q, n + r], and cache_rope says r = 7");
    insta::assert_snapshot!(error(&NO_ROPE.case("full").f64("q", &[6, 4, 5], &[0.0; 120])), @"error: case: tensor q: the key takes n = 5 elements of a state of s = 4");
    let both = gla().f64("cache_v", &[6, 2, 2, 4], &[0.0; 96]);
    insta::assert_snapshot!(error(&both), @"error: case: the file has both cache_state and cache_v: a cache is states and rope keys, or keys and values");
}

#[test]
fn formats() {
    insta::assert_snapshot!(error(&gqa().i32("q", &[6, 4, 3], &[0; 72])), @"error: case: tensor q is I32: expected F64, F32, F16 or BF16");
    insta::assert_snapshot!(error(&gqa().f64("q_lens", &[3], &[2.0, 1.0, 3.0])), @"error: case: tensor q_lens is F64: expected I32 or I64");
    let bytes = gqa().with("cache_k", Dtype::U8, &[6, 2, 2, 3], vec![0; 72]);
    insta::assert_snapshot!(error(&bytes), @"error: case: tensor cache_k is U8: expected F64, F32, F16 or BF16");
}

// [S-4.17] [S-4.18]
#[test]
fn lengths_and_tables() {
    insta::assert_snapshot!(error(&gqa().i32("q_lens", &[3], &[2, 1, 2])), @"error: case: tensor q_lens has shape [3]: expected lengths that sum to the 6 queries of q, not to 5");
    insta::assert_snapshot!(error(&gqa().i32("q_lens", &[3], &[2, 5, -1])), @"error: case: q_lens[2] is -1: expected a number of tokens, 0 to 2^31 - 1");
    insta::assert_snapshot!(error(&gqa().i32("kv_lens", &[2], &[3, 0])), @"error: case: tensor kv_lens has shape [2]: expected [3], as q_lens has");
    insta::assert_snapshot!(error(&gqa().i32("kv_lens", &[3], &[3, 0, 9])), @"error: case: kv_lens[2] is 9: expected at most what the 4 slots of page_table cover with pages of 2 tokens");
    insta::assert_snapshot!(error(&gqa().i64("kv_lens", &[3], &[3, 0, 1 << 40])), @"error: case: kv_lens[2] is 1099511627776: expected a number of tokens, 0 to 2^31 - 1");
    insta::assert_snapshot!(error(&gqa().i64("kv_lens", &[3], &[3, -1, 5])), @"error: case: kv_lens[1] is -1: expected a number of tokens, 0 to 2^31 - 1");
    insta::assert_snapshot!(error(&gqa().i32("page_table", &[2, 4], &[0; 8])), @"error: case: tensor page_table has shape [2, 4]: expected [3, max_pages], as q_lens has");
    insta::assert_snapshot!(error(&gqa().i32("page_table", &[12], &[0; 12])), @"error: case: tensor page_table has shape [12]: expected [B, max_pages]");
    let table = |id: i64| gqa().i64("page_table", &[3, 3], &[4, 1, -1, -1, -1, -1, 0, 5, id]);
    insta::assert_snapshot!(error(&table(6)), @"error: case: page_table[2, 2] is 6: expected one of the 6 pages, since sequence 2 uses its first 3 slots");
    insta::assert_snapshot!(error(&table(-1)), @"error: case: page_table[2, 2] is -1: expected one of the 6 pages, since sequence 2 uses its first 3 slots");
    insta::assert_snapshot!(error(&table(1 << 32)), @"error: case: page_table[2, 2] is 4294967296: expected one of the 6 pages, since sequence 2 uses its first 3 slots");
}

// [S-3.10]
#[test]
fn trees() {
    let tree = |parents: &[i32]| {
        gqa().meta("mask", "tree").i32("q_lens", &[3], &[3, 0, 3]).i32(
            "tree_parents",
            &[parents.len()],
            parents,
        )
    };
    insta::assert_snapshot!(error(&tree(&[-1, 0, 1, -1, 0])), @"error: case: tensor tree_parents: a tree mask over 6 queries has 5 parents");
    insta::assert_snapshot!(error(&tree(&[-1, 1, 0, -1, 0, 0])), @"error: case: tensor tree_parents: token 1 of sequence 0's draft has parent 1: expected -1 or an index below 1");
    insta::assert_snapshot!(error(&tree(&[-1, 0, 0, -2, 0, 0])), @"error: case: tensor tree_parents: token 0 of sequence 2's draft has parent -2: expected -1 or an index below 0");
    let beyond = tree(&[-1, 0, 0, -1, 0, 0]).i32("kv_lens", &[3], &[2, 0, 5]);
    insta::assert_snapshot!(error(&beyond), @"error: case: tensor kv_lens: sequence 0 has a tree of 3 queries over 2 cached tokens");
    let far = tree(&[]).i64("tree_parents", &[6], &[-1, 0, 0, 1 << 40, 0, 0]);
    insta::assert_snapshot!(error(&far), @"error: case: tree_parents[3] is 1099511627776: expected a parent below 2^31, or -1 for a root");
}

/// Small files that would make large results `[S-1.6]`.
#[test]
fn absurd_sizes() {
    let wide = MQA
        .case("full")
        .f64("cache_k", &[0, 1, 1, 4], &[])
        .f64("cache_v", &[0, 1, 1, 1 << 28], &[])
        .i32("kv_lens", &[3], &[0, 0, 0]);
    insta::assert_snapshot!(error(&wide), @"error: case: the output would take 154618822656 bytes, and a file of this size may ask for 16847360");
    let wider = wide.f64("cache_v", &[0, 1, 1, 1 << 40], &[]);
    insta::assert_snapshot!(error(&wider), @"error: case: tensor q: h_q = 3 over Separate { heads: 1, d_k: 4, d_v: 1099511627776 } has 2^31 elements a token or more");
    // One page stands in a table a thousand times.
    let long = MQA
        .case("full")
        .f64("cache_k", &[1, 1000, 1, 4], &[0.0; 4000])
        .f64("cache_v", &[1, 1000, 1, 2], &[0.0; 2000])
        .i32("kv_lens", &[3], &[1_000_000, 0, 0])
        .i32("page_table", &[3, 1000], &[0; 3000]);
    insta::assert_snapshot!(error(&long), @"error: case: one row's scores would take 32000000 bytes, and a file of this size may ask for 20686336");
}

#[test]
fn results() {
    let folder = Folder::new();
    folder.put("case", &gqa());
    folder.succeed("attend case -o exact");
    let error = |result: Tensors| {
        folder.put("out", &result);
        refused(&folder, "compare case out --arithmetic f32")
    };
    let exact = || folder.get("exact");
    insta::assert_snapshot!(error(exact().without("o")), @"error: out: tensor o is missing: expected [total_q, h_q, width of a value]");
    insta::assert_snapshot!(error(exact().f64("o", &[6, 5, 4], &[0.0; 120])), @"error: out: tensor o has shape [6, 5, 4]: expected [6, 4, 5], which the case makes of [total_q, h_q, width of a value]");
    insta::assert_snapshot!(error(exact().i32("o", &[6, 4, 5], &[0; 120])), @"error: out: tensor o is I32: expected F64, F32, F16 or BF16");
    insta::assert_snapshot!(error(exact().f64("lse", &[4, 6], &[0.0; 24])), @"error: out: tensor lse has shape [4, 6]: expected [6, 4], which the case makes of [total_q, h_q]");
    assert_eq!(folder.run("compare case exact").status, 2);
}
