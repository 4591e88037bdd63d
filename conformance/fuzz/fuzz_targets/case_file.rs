//! Case files and result files: an error or a case that can be computed, never a panic, and no more
//! memory than the file has a right to.
//!
//! An input that begins with 0 is a file behind that byte; any other describes a legal file and what
//! is done to it.
#![no_main]

use arbitrary::{Result, Unstructured};
use grouped_attention_conformance::file::{CaseFile, Format, ResultFile, Writer};
use grouped_attention_fuzz::file::{File, corrupt};
use grouped_attention_fuzz::memory::within;
use libfuzzer_sys::fuzz_target;

/// A legal case of a few small sequences.
fn legal(input: &mut Unstructured<'_>) -> Result<File> {
    let mut file = File::default();
    let (h, group) = (input.int_in_range(1..=3)?, input.int_in_range(1..=3)?);
    let h_q = h * group;
    let (page_size, pages) = (input.int_in_range(1..=4)?, input.int_in_range(1..=6)?);
    let format: u8 = input.arbitrary()?;
    let seed: u64 = input.arbitrary()?;
    let sequences: usize = input.int_in_range(0..=3)?;
    let slots: usize = input.int_in_range(0..=4)?;
    let kv_lens = (0..sequences)
        .map(|_| input.int_in_range(0..=slots * page_size))
        .collect::<Result<Vec<usize>>>()?;
    let q_lens = kv_lens
        .iter()
        .map(|&kv_len| input.int_in_range(0..=kv_len.min(3)))
        .collect::<Result<Vec<usize>>>()?;
    let total_q: usize = q_lens.iter().sum();
    let table = (0..sequences * slots)
        .map(|_| input.int_in_range(0..=pages as i32 - 1))
        .collect::<Result<Vec<i32>>>()?;
    let width_k = if input.arbitrary()? {
        let (d_k, d_v) = (input.int_in_range(1..=4)?, input.int_in_range(1..=4)?);
        file.floats("cache_k", format, &[pages, page_size, h, d_k], seed);
        file.floats("cache_v", format / 4, &[pages, page_size, h, d_v], !seed);
        d_k
    } else {
        let (s, r) = (input.int_in_range(1..=4)?, input.int_in_range(0..=3)?);
        file.floats("cache_state", format, &[pages, page_size, h, s], seed);
        if r > 0 {
            file.floats("cache_rope", format / 4, &[pages, page_size, r], !seed);
        }
        input.int_in_range(usize::from(r == 0)..=s)? + r
    };
    file.floats("q", format / 16, &[total_q, h_q, width_k], seed.rotate_left(9));
    let integers = |lens: &[usize]| lens.iter().map(|&len| len as i32).collect::<Vec<i32>>();
    file.integers("q_lens", &[sequences], &integers(&q_lens));
    file.integers("kv_lens", &[sequences], &integers(&kv_lens));
    file.integers("page_table", &[sequences, slots], &table);
    let mask = *input.choose(&["causal", "full", "tree"])?;
    if mask == "tree" {
        let mut parents = Vec::new();
        for &q_len in &q_lens {
            for t in 0..q_len as i32 {
                parents.push(input.int_in_range(-1..=t - 1)?);
            }
        }
        file.integers("tree_parents", &[total_q], &parents);
    }
    file.metadata.insert("mask".to_owned(), mask.to_owned());
    file.metadata.insert("scale".to_owned(), "0.25".to_owned());
    Ok(file)
}

/// The file, and whether it must be accepted.
fn file(data: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (&kind, rest) = data.split_first()?;
    if kind == 0 {
        return Some((rest.to_vec(), false));
    }
    let mut input = Unstructured::new(rest);
    let mut file = legal(&mut input).ok()?;
    let mutations = usize::from(kind % 4);
    for _ in 0..mutations {
        file.mutate(&mut input).ok()?;
    }
    let edits = usize::from(kind / 4 % 4);
    let mut bytes = file.to_bytes();
    corrupt(&mut bytes, edits, &mut input).ok()?;
    Some((bytes, mutations + edits == 0))
}

fn cheap(case: &CaseFile) -> bool {
    let geometry = case.geometry();
    let step = case.step();
    let products: usize = step.spans().iter().map(|span| span.q_len * span.kv_len).sum();
    let rows = products.max(step.total_q()).saturating_mul(geometry.h_q());
    rows.saturating_mul(geometry.width_k() + geometry.width_v()) <= 1 << 20
}

fuzz_target!(|data: &[u8]| {
    let Some((bytes, must)) = file(data) else { return };
    within(bytes.len(), || {
        let case = match CaseFile::parse(&bytes) {
            Ok(case) => case,
            Err(error) => {
                assert!(!must, "{error}");
                assert!(!error.to_string().is_empty());
                return;
            }
        };
        if !cheap(&case) {
            return;
        }
        let attended = case.attend().expect("what parses can be computed");
        let result = ResultFile::exact(&case, attended);
        let mut writer = Writer::new();
        result.write_to(&mut writer);
        let written = writer.to_bytes();
        let read = ResultFile::parse(&written, &case).expect("what is written can be read");
        assert_eq!(read.o.values.len(), result.o.values.len());
        // The bytes as somebody's result: any shape but the right one is refused.
        let _ = ResultFile::parse(&bytes, &case);
        let mut rounded = case.clone();
        rounded.round(Format::Bf16);
        let mut writer = Writer::new();
        rounded.write_to(&mut writer);
        let again = CaseFile::parse(&writer.to_bytes()).expect("what is written can be read");
        assert_eq!(again.step(), case.step());
    });
});
