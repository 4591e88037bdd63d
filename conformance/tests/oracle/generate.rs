//! `oracle gen` and `oracle list`.

use crate::program::Folder;
use safetensors::Dtype;

#[test]
fn every_listed_case_is_generated_attended_and_judged() {
    let folder = Folder::new();
    let list = folder.succeed("list");
    let entries: Vec<&str> = list.lines().collect();
    let mut written = 0;
    for entry in entries.chunks_exact(3) {
        let (name, line) = (entry[0], entry[1].trim());
        // Past 2^31 elements, no file is small enough to be passed around.
        if line.split_whitespace().any(|word| word == "far") {
            let ran = folder.run(&format!("gen {name} -o far"));
            assert_eq!((ran.status, ran.stdout.as_str()), (2, ""));
            assert!(ran.stderr.contains("past 2^31 elements"), "{}", ran.stderr);
            continue;
        }
        folder.succeed(&format!("gen {name} -o case"));
        assert_eq!(folder.get("case").metadata["case"], line, "{name}");
        folder.succeed("attend case -o out");
        folder.succeed("compare case out --arithmetic f64");
        written += 1;
    }
    assert!(written >= 40, "{written}");
    assert_eq!(folder.names(), ["case", "out"]);
}

#[test]
fn a_line_may_be_one_word_or_many() {
    let folder = Folder::new();
    let line = "gta h_q=4 h=2 s=8 n=4 r=4 q=2 kv=9 mask=tree:chain scale=0.3 dtype=f16 seed=7";
    folder.succeed(&format!("gen {line} -o many"));
    assert_eq!(folder.run_words(&["gen", line, "-o", "one"]).status, 0);
    assert_eq!(
        std::fs::read(folder.path("many")).unwrap(),
        std::fs::read(folder.path("one")).unwrap()
    );
    let case = folder.get("one");
    assert_eq!((case.dtype("q"), case.dtype("cache_rope")), (Dtype::F16, Dtype::F16));
    assert_eq!(case.shape("cache_state")[1..], [16, 2, 8]);
    assert_eq!(case.integers("tree_parents"), [-1, 0]);
    assert_eq!(case.metadata["mask"], "tree");
    // Slots that no length covers hold an id that no cache has.
    assert_eq!(case.integers("page_table").last(), Some(&-1));
}

#[test]
fn names_and_lines_that_are_no_case() {
    let folder = Folder::new();
    let error = |words: &str| {
        let ran = folder.run(&format!("gen {words} -o case"));
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""));
        ran.stderr
    };
    insta::assert_snapshot!(error("no-such-case"), @"error: no-such-case is not in the corpus");
    insta::assert_snapshot!(error("gla h_q=4 h=2 s=8 n=8 r=4 kv=5 scale=1"), @r#"error: "gla h_q=4 h=2 s=8 n=8 r=4 kv=5 scale=1": q= is missing"#);
    insta::assert_snapshot!(error("gla h_q=4 h=3 s=8 n=8 r=4 q=1 kv=5 scale=1"), @r#"error: "gla h_q=4 h=3 s=8 n=8 r=4 q=1 kv=5 scale=1": 3 cached heads do not divide 4 query heads"#);
    insta::assert_snapshot!(error("gla h_q=2 h=2 s=8 n=8 r=4 dtype=bf16 page=16 q=1 kv=5 scale=1 far"), @r#"error: "gla h_q=2 h=2 s=8 n=8 r=4 dtype=bf16 page=16 q=1 kv=5 mask=causal scale=1 fill=gaussian do=attend seed=0 far": its cache reaches past 2^31 elements, so a file of it would have 6 GB: judge an engine by it in memory, through the suite"#);
    insta::assert_snapshot!(error("mla h_q=1 h=1 s=8 n=8 r=1 page=1000000000000 q=1 kv=3 scale=1"), @r#"error: "mla h_q=1 h=1 s=8 n=8 r=1 dtype=f32 page=1000000000000 q=1 kv=3 mask=causal scale=1 fill=gaussian do=attend seed=0": its cache has 18000000000000 elements, and files of at most 268435456 are made: judge an engine by it in memory, through the suite"#);
    assert!(
        error("mha h_q=1 h=1 d_k=8 d_v=8 q=1 kv=3000000000 scale=1").contains("files of at most")
    );
    assert!(folder.names().is_empty());
}

/// A reader that has gone away is no failure; a device that is full is one, in a sentence.
#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written() {
    let run = |shell: &str| {
        let script = shell.replace("oracle", env!("CARGO_BIN_EXE_oracle"));
        std::process::Command::new("bash").args(["-c", &script]).output().unwrap()
    };
    let closed = run("oracle list | true; exit ${PIPESTATUS[0]}");
    assert_eq!((closed.status.code(), closed.stderr.as_slice()), (Some(0), &b""[..]));
    let full = run("oracle list > /dev/full");
    assert_eq!(full.status.code(), Some(2));
    let said = String::from_utf8(full.stderr).unwrap();
    assert!(said.starts_with("error: standard output: ") && said.lines().count() == 1, "{said}");
}
