//! What the compiler says of every kernel that is shipped, on machines that have no GPU.
//!
//! `.ci/kernels` installs NVRTC and runs this over the shapes listed in `.ci/kernels.list`, with the
//! choices that the engine itself makes for them on each architecture.

use crate::family::{Choice, combine, naive, plain, portable, schedule};
use crate::hopper;
use crate::jit::compile_verbosely;
use crate::nvrtc::Compiler;
use grouped_attention::{Dtype, Extent, Geometry, Problem};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const LIST: &str = include_str!("../../.ci/kernels.list");

/// Architectures with the shared memory that a block of theirs may have.
const ARCHITECTURES: [(&str, usize); 3] =
    [("sm_80", 163 << 10), ("sm_89", 99 << 10), ("sm_90a", 227 << 10)];

/// Bytes that `tied_wide_sm90` keeps on the stack from item to item: its accumulators leave no registers.
const WIDE_SPILLS: usize = 16;
/// Bytes that `combine` spills on sm_80 at s = 256.
const COMBINE_SPILLS: usize = 8;

/// Remarks of ptxas after which a kernel is slower than it looks.
const REMARKS: [&str; 4] = ["setmaxnreg", "serialized", "C75", "Potential Performance Loss"];

/// A line of the list.
struct Shape {
    problem: Problem,
    q_len: usize,
    /// Bytes of spills that are known and small.
    spills: usize,
}

fn shapes() -> impl Iterator<Item = Shape> {
    LIST.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(shape)
}

/// `row heads group n r s q dtype spills`
fn shape(line: &str) -> Shape {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [row, heads, group, n, r, s, q_len, dtype, spills] = fields[..] else {
        panic!("{line}: expected nine fields");
    };
    let number = |text: &str| text.parse::<usize>().unwrap_or_else(|_| panic!("{line}: {text}"));
    let (heads, h_q) = (number(heads), number(heads) * number(group));
    let geometry = match row {
        "tied" => Geometry::tied(h_q, heads, number(s), number(n), number(r)),
        "separate" => Geometry::separate(h_q, heads, number(n), number(s)),
        _ => panic!("{line}: a row is tied or separate"),
    };
    let dtype: Dtype = dtype.parse().unwrap();
    Shape {
        problem: Problem::new(geometry.unwrap(), dtype, 1.0).unwrap(),
        q_len: number(q_len),
        spills: number(spills),
    }
}

fn choices(shape: &Shape, architecture: &str, shared_limit: usize) -> Vec<(Choice, usize)> {
    let q_len = shape.q_len;
    let capacity =
        Extent { sequences: 1, total_q: q_len, max_q_len: q_len, max_kv_len: 1, writes: 0 };
    let mut choices = vec![
        (naive(&shape.problem), 0),
        (plain("append", shape.problem.dtype()), 0),
        (plain("merge", shape.problem.dtype()), 0),
        (schedule(), 0),
    ];
    if let Some((choice, _)) = portable(&shape.problem, &capacity, shared_limit) {
        choices.extend([(choice, shape.spills), (combine(&shape.problem), COMBINE_SPILLS)]);
    }
    if architecture == "sm_90a" {
        let found = [(1, false), (64, false), (64, true)].map(|(page_size, fast_memory)| {
            hopper::choose(&shape.problem, &capacity, page_size, fast_memory)
        });
        choices.extend(found.into_iter().flatten().map(|(choice, ..)| {
            let wide = choice.instance.kernel == "tied_wide_sm90";
            (choice, if wide { WIDE_SPILLS } else { 0 })
        }));
    }
    choices
}

/// Numbers that stand before `what` in a compiler's log.
fn numbers(log: &str, what: &str) -> Vec<usize> {
    let before = log.match_indices(what).map(|(at, _)| log[..at].trim_end());
    before.filter_map(|text| text.rsplit([' ', '\n']).next()?.parse().ok()).collect()
}

/// What is wrong with a kernel, by its log.
fn complaint(log: &str, allowed: usize) -> Option<String> {
    let stack: usize = numbers(log, "bytes stack frame").into_iter().sum();
    let spills: usize = numbers(log, "bytes spill stores").into_iter().sum();
    // Spilled registers are on the stack too, in whole words of eight bytes.
    if spills > allowed || stack > allowed.next_multiple_of(8) {
        return Some(format!("{spills} bytes spilled, {stack} on the stack, {allowed} allowed"));
    }
    REMARKS.iter().find(|remark| log.contains(**remark)).map(|remark| format!("{remark}:\n{log}"))
}

/// A kernel on an architecture, with the spills it is allowed.
type Job = (&'static str, Choice, usize);

fn jobs() -> Vec<Job> {
    let mut seen = BTreeSet::new();
    let mut jobs = Vec::new();
    for shape in shapes() {
        for (architecture, shared_limit) in ARCHITECTURES {
            for (choice, allowed) in choices(&shape, architecture, shared_limit) {
                if seen.insert(format!("{architecture} {}", choice.instance)) {
                    jobs.push((architecture, choice, allowed));
                }
            }
        }
    }
    jobs
}

/// Compiles a kernel, prints what it takes, and says what is wrong with it.
fn complaint_of(compiler: &Compiler, (architecture, choice, allowed): &Job) -> Option<String> {
    let name = format!("{architecture} {}", choice.instance);
    let log = match compile_verbosely(compiler, architecture, &choice.instance) {
        Ok(compiled) => compiled.log,
        Err(log) => return Some(format!("{name}: {log}")),
    };
    let (registers, spills) = (numbers(&log, "registers"), numbers(&log, "bytes spill stores"));
    println!("{name}: registers {registers:?}, spills {spills:?}");
    complaint(&log, *allowed).map(|what| format!("{name}: {what}"))
}

#[test]
#[ignore = "needs NVRTC and minutes: .ci/kernels"]
fn every_listed_kernel_compiles_cleanly() {
    let compiler = Compiler::for_driver(13_000).unwrap();
    let (jobs, next, complaints) = (jobs(), AtomicUsize::new(0), Mutex::new(Vec::new()));
    // Several at a time, as the threads of an engine compile.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    complaints.lock().unwrap().extend(complaint_of(compiler, job));
                }
            });
        }
    });
    println!("{} kernels", jobs.len());
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_list_is_well_formed_and_covers_the_families() {
    let kernels: BTreeSet<&str> = shapes()
        .flat_map(|shape| choices(&shape, "sm_90a", ARCHITECTURES[2].1))
        .map(|(choice, _)| choice.instance.kernel)
        .collect();
    let all = [
        "append",
        "combine",
        "merge",
        "naive",
        "schedule",
        "separate_heads_sm90",
        "separate_sm80",
        "tied_heads_sm90",
        "tied_sm80",
        "tied_sm90",
        "tied_wide_sm90",
    ];
    assert_eq!(kernels, BTreeSet::from(all));
}

#[test]
fn logs_are_read() {
    let log = "ptxas info    : Function properties for naive\n    \
               8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n\
               ptxas info    : Used 127 registers, used 1 barriers";
    assert_eq!(numbers(log, "registers"), [127]);
    assert_eq!(complaint(log, 4), None);
    assert!(complaint(log, 0).unwrap().starts_with("4 bytes spilled, 8 on the stack"));
    assert!(complaint("(C7507) setmaxnreg ignored", 0).is_some());
}
