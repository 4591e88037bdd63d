//! Lengths, page tables and mask of a case file, as a step.

use super::error::FileError;
use super::tensors::TensorFile;
use grouped_attention::{Mask, MaskKind, PageId, Sequence, Step};

/// What a step is made over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    /// Pages of the cache.
    pub(super) pages: usize,
    /// Tokens per page, positive.
    pub(super) page_size: usize,
}

/// Reads the step of `total_q` queries.
pub(super) fn step(
    file: &mut TensorFile<'_>,
    total_q: usize,
    pool: Pool,
) -> Result<Step, FileError> {
    let q_lens = lengths(file, "q_lens")?;
    let kv_lens = lengths(file, "kv_lens")?;
    if kv_lens.len() != q_lens.len() {
        return Err(FileError::Shape {
            tensor: "kv_lens".to_owned(),
            expected: format!("[{}], as q_lens has", q_lens.len()),
            got: vec![kv_lens.len()],
        });
    }
    // Each is below 2^31, so the sum of any number that fits a file fits 64 bits.
    let asked: usize = q_lens.iter().sum();
    if asked != total_q {
        return Err(FileError::Shape {
            tensor: "q_lens".to_owned(),
            expected: format!("lengths that sum to the {total_q} queries of q, not to {asked}"),
            got: vec![q_lens.len()],
        });
    }
    let pages = page_table(file, &kv_lens, pool)?;
    let mask = mask(file, &q_lens)?;
    let sequences: Vec<Sequence<'_>> = q_lens
        .iter()
        .zip(&kv_lens)
        .zip(&pages)
        .map(|((&q_len, &kv_len), pages)| Sequence { q_len, kv_len, pages })
        .collect();
    Step::new(pool.page_size, &sequences, mask).map_err(FileError::refused("kv_lens"))
}

/// `[B]` numbers of tokens.
fn lengths(file: &mut TensorFile<'_>, tensor: &'static str) -> Result<Vec<usize>, FileError> {
    file.shape_of_rank::<1>(tensor, "[B]")?;
    let length = |(index, value): (usize, i64)| {
        let length = i32::try_from(value).ok().and_then(|value| usize::try_from(value).ok());
        length.ok_or_else(|| FileError::Element {
            tensor,
            index: vec![index],
            value,
            expected: "a number of tokens, 0 to 2^31 - 1".to_owned(),
        })
    };
    file.integers(tensor)?.into_iter().enumerate().map(length).collect()
}

/// The pages that each sequence uses. Slots behind them may hold any value `[S-4.4]`.
fn page_table(
    file: &mut TensorFile<'_>,
    kv_lens: &[usize],
    pool: Pool,
) -> Result<Vec<Vec<PageId>>, FileError> {
    let shape = file.shape_of_rank::<2>("page_table", "[B, max_pages]")?;
    let [sequences, slots] = shape;
    if sequences != kv_lens.len() {
        return Err(FileError::Shape {
            tensor: "page_table".to_owned(),
            expected: format!("[{}, max_pages], as q_lens has", kv_lens.len()),
            got: shape.to_vec(),
        });
    }
    let table = file.integers("page_table")?;
    let mut pages = Vec::with_capacity(sequences);
    for (sequence, &kv_len) in kv_lens.iter().enumerate() {
        let used = kv_len.div_ceil(pool.page_size);
        if used > slots {
            return Err(FileError::Element {
                tensor: "kv_lens",
                index: vec![sequence],
                value: kv_len as i64,
                expected: format!(
                    "at most what the {slots} slots of page_table cover with pages of {} tokens",
                    pool.page_size
                ),
            });
        }
        let row = &table[sequence * slots..][..used];
        pages.push(used_pages(sequence, row, pool.pages)?);
    }
    Ok(pages)
}

fn used_pages(sequence: usize, row: &[i64], pages: usize) -> Result<Vec<PageId>, FileError> {
    let page = |(slot, &value): (usize, &i64)| {
        let page = u32::try_from(value).ok().filter(|&page| (page as usize) < pages);
        page.map(PageId).ok_or_else(|| FileError::Element {
            tensor: "page_table",
            index: vec![sequence, slot],
            value,
            expected: format!(
                "one of the {pages} pages, since sequence {sequence} uses its first {} slots",
                row.len()
            ),
        })
    };
    row.iter().enumerate().map(page).collect()
}

/// Values of the key `mask`.
const MASKS: &str = "causal, tree or full";

fn mask(file: &mut TensorFile<'_>, q_lens: &[usize]) -> Result<Mask, FileError> {
    let lens = q_lens.iter().copied();
    match file.metadata("mask", MASKS)? {
        "causal" => Ok(Mask::Causal),
        "full" => Ok(Mask::Full),
        "tree" => {
            let parents = tree_parents(file)?;
            Mask::new(MaskKind::Tree(&parents), lens).map_err(FileError::refused("tree_parents"))
        }
        value => Err(FileError::Value { key: "mask", expected: MASKS, value: value.to_owned() }),
    }
}

/// `[total_q]`, as many as there are: the mask counts them.
fn tree_parents(file: &mut TensorFile<'_>) -> Result<Vec<i32>, FileError> {
    let tensor = "tree_parents";
    file.shape_of_rank::<1>(tensor, "[total_q]")?;
    let parent = |(index, value): (usize, i64)| {
        i32::try_from(value).map_err(|_| FileError::Element {
            tensor,
            index: vec![index],
            value,
            expected: "a parent below 2^31, or -1 for a root".to_owned(),
        })
    };
    file.integers(tensor)?.into_iter().enumerate().map(parent).collect()
}
