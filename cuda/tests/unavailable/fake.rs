//! A machine whose driver is there and cannot be used: the engine says why and nothing panics.
//!
//! The driver is a library of this folder, put before any real one; each engine is made in a process
//! of its own, since a driver is loaded once.

use grouped_attention_cuda::CudaBackend;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/unavailable/driver.rs");
const REPORT: &str = "the engine says: ";

/// Compiles the driver and gives the library's path.
fn driver(folder: &str, options: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(&folder).expect("a folder below target/");
    let library = folder.join("libcuda.so.1");
    // The compiler that these tests were compiled by.
    let beside = Path::new(env!("CARGO")).with_file_name("rustc");
    let compiler = if beside.exists() { beside } else { "rustc".into() };
    let status = Command::new(compiler)
        .args(["--edition=2024", "--crate-type=cdylib", "--crate-name=cuda"])
        .args(["-Anon_snake_case", "-Cpanic=abort"])
        .args(options)
        .arg("-o")
        .args([library.as_path(), Path::new(SOURCE)])
        .status();
    assert!(status.expect("the Rust compiler").success(), "the fake driver does not compile");
    library
}

/// What a process answers that finds this driver and has these variables.
fn answer(library: &Path, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["fake::make_an_engine", "--exact", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", library.parent().expect("a file in a folder"))
        .env("GROUPED_ATTENTION_NVRTC", "/no-such-folder/libnvrtc.so")
        .envs(variables.iter().copied())
        .output()
        .expect("this program again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let report = text.lines().find_map(|line| line.split_once(REPORT));
    report.unwrap_or_else(|| panic!("no report in {text}")).1.to_owned()
}

#[test]
#[ignore = "run by the others, in a process of its own"]
fn make_an_engine() {
    let answer = match CudaBackend::new(0) {
        Ok(engine) => format!("{engine:?}"),
        Err(error) => error.to_string(),
    };
    println!("\n{REPORT}{answer}");
}

#[test]
fn whatever_ails_the_driver_is_said() {
    let library = driver("driver", &[]);
    let path = library.to_str().unwrap();
    let nvrtc = "GROUPED_ATTENTION_NVRTC";
    for (variable, reason) in [
        (
            ("FAKE_VERSION", "11080"),
            "the NVIDIA driver is too old: it supports CUDA 11.8, and 12.0 is needed",
        ),
        (("FAKE_INIT", "100"), "no CUDA device was found"),
        (("FAKE_INIT", "999"), "cuInit failed with CUDA_ERROR_UNKNOWN (999)"),
        // A status that no binding knows, as a driver of tomorrow may have.
        (("FAKE_INIT", "4242"), "cuInit failed with an unknown error (4242)"),
        (("FAKE_DEVICES", "0"), "no CUDA device was found"),
        (
            ("FAKE_CAPABILITY", "7"),
            "Fake (cuda:0, sm_70) has compute capability 7.0, and 8.0 is needed",
        ),
        (
            (nvrtc, "/no-such-folder/libnvrtc.so.13"),
            "GROUPED_ATTENTION_NVRTC=/no-such-folder/libnvrtc.so.13: cannot be loaded",
        ),
        ((nvrtc, path), &format!("{nvrtc}={path}: it has no nvrtcVersion")),
    ] {
        let answer = answer(&library, &[variable]);
        assert_eq!(answer, format!("cuda is not available: {reason}"), "{variable:?}");
    }
}

#[test]
fn a_function_that_an_old_driver_lacks_is_named() {
    let answer = answer(&driver("old-driver", &["--cfg", "old"]), &[]);
    let reason = "the NVIDIA driver is too old: it has no cuLaunchKernelEx";
    assert_eq!(answer, format!("cuda is not available: {reason}"));
}
