//! `--backend`: engines on the same files.

use crate::attend::{GLA, GQA, NO_ROPE};
use crate::program::Folder;
use safetensors::Dtype;

/// Lines whose rows are longer than any tile.
const LINES: [&str; 4] = [
    "gqa h_q=6 h=2 d_k=16 d_v=16 page=3 q=2,1,0,4 kv=300,7,5,4 scale=0.25 seed=1",
    "gta h_q=4 h=2 s=16 n=8 r=8 page=16 q=3,5 kv=40,9 mask=tree:random scale=0.25 seed=2",
    "mla h_q=8 h=1 s=64 n=64 r=16 page=64 q=1,2 kv=130,1 mask=full scale=0.1 seed=3",
    "gla h_q=8 h=2 s=32 n=32 r=8 page=1 q=1,1 kv=0,77 scale=0.15 seed=4",
];

// [S-2.6] [S-7.12]
#[cfg(feature = "engines")]
#[test]
fn the_cpu_engine_is_in_bound() {
    let folder = Folder::new();
    for line in LINES {
        for (dtype, stored) in [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::BF16)] {
            folder.succeed(&format!("gen {line} dtype={dtype} -o case"));
            folder.succeed("attend case -o out --backend cpu");
            assert_eq!(
                (folder.get("out").dtype("o"), folder.get("out").dtype("lse")),
                (stored, Dtype::F32)
            );
            folder.succeed(&format!("compare case out --arithmetic {dtype}"));
        }
    }
}

/// NaN in every unused cell and impossible ids in every unused slot `[S-3.19] [S-4.4]`.
#[cfg(feature = "engines")]
#[test]
fn an_engine_is_given_what_the_file_uses() {
    let folder = Folder::new();
    for sizes in [GQA, GLA, NO_ROPE] {
        folder.put("case", &sizes.case("full"));
        folder.succeed("attend case -o out --backend cpu --dtype f16");
        folder.succeed("compare case out --arithmetic f16 --dtype f16");
    }
}

#[test]
fn an_engine_needs_one_format() {
    let folder = Folder::new();
    folder.put("case", &GQA.case("full"));
    let refused = |words: &str| {
        let ran = folder.run(words);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
        ran.stderr
    };
    if cfg!(feature = "engines") {
        insta::assert_snapshot!(refused("attend case -o out --backend cpu"), @"error: case: q is F64 and cache_k is F64: an engine needs one of f32, f16, bf16 (--dtype)");
    }
    assert!(refused("attend case -o out --backend abacus").contains("invalid value 'abacus'"));
    assert_eq!(folder.names(), ["case"]);
}

/// A machine without a GPU is not a bad file: the status says so.
#[test]
fn an_engine_that_is_not_there_has_a_status_of_its_own() {
    let folder = Folder::new();
    folder.put("case", &GQA.case("full"));
    let ran = folder.run("attend case -o out --backend cuda --dtype bf16");
    if ran.status == 0 {
        assert_eq!(folder.get("out").dtype("o"), Dtype::BF16);
        return;
    }
    assert_eq!(ran.status, 3, "{}", ran.stderr);
    assert!(ran.stderr.starts_with("error: cuda is not available: "), "{}", ran.stderr);
    assert_eq!(folder.names(), ["case"]);
}
