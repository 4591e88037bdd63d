//! What of a plan lives on the device: lengths, tables, mask, schedule and writes, in memory whose
//! addresses never change, so that captured launches read whatever was written last.

use crate::abi::{LaneMerge, MaskCode, MergeCounts, Piece, TREE_WORD_BITS, Turn, Write};
use crate::driver::Address;
use crate::error::DriverError;
use crate::memory::{DeviceBuffer, PinnedBuffer};
use crate::schedule::{Bounds, Schedule};
use crate::stream::{Event, Stream};
use grouped_attention::{EngineError, Extent, Mask, Rope, Step};
use std::ops::Range;

/// Sections begin at multiples of this many bytes.
const ALIGNMENT: usize = 16;

/// A plain number or struct of numbers without padding, to be copied as its bytes.
///
/// # Safety
/// Every byte of the type must be initialised.
unsafe trait Plain: Copy {}
// SAFETY: numbers have no padding.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: eight or two numbers of four bytes.
unsafe impl Plain for Piece {}
// SAFETY: as above.
unsafe impl Plain for LaneMerge {}
// SAFETY: as above.
unsafe impl Plain for MergeCounts {}
// SAFETY: as above.
unsafe impl Plain for Write {}
// SAFETY: as above.
unsafe impl Plain for Turn {}

fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` promises initialised bytes, and any byte is a u8.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Byte ranges of the sections, sized by the plan's capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) status: Range<usize>,
    pub(crate) merge_counts: Range<usize>,
    pub(crate) write_count: Range<usize>,
    pub(crate) q_starts: Range<usize>,
    pub(crate) kv_lens: Range<usize>,
    pub(crate) team_pieces: Range<usize>,
    pub(crate) pieces: Range<usize>,
    pub(crate) merges: Range<usize>,
    pub(crate) writes: Range<usize>,
    pub(crate) turns: Range<usize>,
    pub(crate) tree: Range<usize>,
    /// Like the tree large and only partly used, so both stand last.
    pub(crate) page_table: Range<usize>,
    /// Entries of the list of merges.
    pub(crate) max_merges: usize,
    /// Entries of a row of the page table.
    pub(crate) max_pages: usize,
    /// Words of a row of the tree.
    pub(crate) tree_words: usize,
}

/// What a layout is sized by beside the extent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) page_size: usize,
    pub(crate) teams: usize,
    pub(crate) bounds: Bounds,
    /// Pairs of a rotated row.
    pub(crate) pairs: usize,
}

impl Layout {
    /// # Errors
    /// Out of memory where the sizes overflow.
    pub(crate) fn new(extent: &Extent, sizes: &Sizes) -> Result<Layout, EngineError> {
        let mut end = 0_usize;
        let mut section = |counts: &[usize], bytes: usize| {
            let begin = end;
            counts
                .iter()
                .try_fold(bytes, |product, &count| product.checked_mul(count))
                .and_then(|bytes| begin.checked_add(bytes)?.checked_next_multiple_of(ALIGNMENT))
                .map(|next| {
                    end = next;
                    begin..next
                })
                .ok_or(EngineError::OutOfMemory { bytes: usize::MAX })
        };
        let max_pages = extent.max_kv_len.div_ceil(sizes.page_size);
        // A sequence of one query sees all of its cache under any mask.
        let longest = if extent.max_q_len > 1 { extent.max_q_len } else { 0 };
        let tree_words = longest.div_ceil(TREE_WORD_BITS);
        Ok(Layout {
            status: section(&[1], 4)?,
            merge_counts: section(&[1], size_of::<MergeCounts>())?,
            write_count: section(&[1], 4)?,
            q_starts: section(&[extent.sequences + 1], 4)?,
            kv_lens: section(&[extent.sequences], 4)?,
            team_pieces: section(&[sizes.teams + 1], 4)?,
            pieces: section(&[sizes.bounds.pieces], size_of::<Piece>())?,
            merges: section(&[sizes.bounds.merges], size_of::<LaneMerge>())?,
            writes: section(&[extent.writes], size_of::<Write>())?,
            turns: section(&[extent.writes, sizes.pairs], size_of::<Turn>())?,
            tree: section(&[extent.total_q, tree_words], 4)?,
            page_table: section(&[extent.sequences, max_pages], 4)?,
            max_merges: sizes.bounds.merges,
            max_pages,
            tree_words,
        })
    }

    fn bytes(&self) -> usize {
        self.page_table.end
    }
}

/// The sections on the device, and the page-locked copy that they are written from.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) layout: Layout,
    device: DeviceBuffer,
    staging: PinnedBuffer,
    /// Happens when the staging memory may be written again.
    copied: Event,
    /// Sequences that the plan was sized for; those a step lacks are padded with empty ones.
    sequences: usize,
}

impl Resident {
    /// # Errors
    /// Out of memory, a failing device.
    pub(crate) fn new(
        stream: &Stream,
        layout: Layout,
        sequences: usize,
    ) -> Result<Resident, EngineError> {
        let device = DeviceBuffer::new(stream.device(), layout.bytes())?;
        let staging = PinnedBuffer::new(stream.device(), layout.bytes())?;
        let copied = Event::new(stream.device())?;
        Ok(Resident { layout, device, staging, copied, sequences })
    }

    /// Where a section lies on the device.
    pub(crate) fn address(&self, section: &Range<usize>) -> Address {
        self.device.address() + section.start as u64
    }

    /// Writes a step and its schedule.
    ///
    /// # Errors
    /// A failing device.
    pub(crate) fn write(
        &mut self,
        stream: &Stream,
        step: &Step,
        schedule: &Schedule,
        rope: Option<&Rope>,
        mask: MaskCode,
    ) -> Result<(), DriverError> {
        self.copied.wait()?;
        let Resident { layout, staging, .. } = self;
        let (few, many) = (schedule.merges.len() as i32, schedule.long_merges.len() as i32);
        put(staging, &layout.status, 0, &[0_u32]);
        put(staging, &layout.merge_counts, 0, &[MergeCounts { few, many }]);
        put(staging, &layout.write_count, 0, &[step.writes().len() as i32]);
        put(staging, &layout.team_pieces, 0, &schedule.team_pieces);
        put(staging, &layout.pieces, 0, &schedule.pieces);
        put(staging, &layout.merges, 0, &schedule.merges);
        for (index, merge) in schedule.long_merges.iter().enumerate() {
            put(staging, &layout.merges, layout.max_merges - 1 - index, &[*merge]);
        }
        self.put_lengths(step);
        self.put_writes(step, rope);
        self.put_page_table(step);
        let tree = if mask == MaskCode::Tree {
            self.put_tree(step);
            step.total_q() * self.layout.tree_words * 4
        } else {
            0
        };
        let pages = step.spans().len() * self.layout.max_pages * 4;
        let Layout { tree: Range { start: tree_start, .. }, page_table, .. } = &self.layout;
        let used = [
            0..*tree_start,
            *tree_start..tree_start + tree,
            page_table.start..page_table.start + pages,
        ];
        let copied = used.into_iter().try_for_each(|range| self.copy(stream, range));
        // Also where one of them failed: those before it still read the staging memory.
        copied.and(self.copied.record(stream))
    }

    fn put_lengths(&mut self, step: &Step) {
        let mut q_starts: Vec<i32> = step.spans().iter().map(|span| span.q_start as i32).collect();
        q_starts.resize(self.sequences + 1, step.total_q() as i32);
        let mut kv_lens: Vec<i32> = step.spans().iter().map(|span| span.kv_len as i32).collect();
        kv_lens.resize(self.sequences, 0);
        put(&mut self.staging, &self.layout.q_starts, 0, &q_starts);
        put(&mut self.staging, &self.layout.kv_lens, 0, &kv_lens);
    }

    fn put_writes(&mut self, step: &Step, rope: Option<&Rope>) {
        let Resident { layout, staging, .. } = self;
        for (index, write) in step.writes().iter().enumerate() {
            let cell = Write { page: write.slot.page.0 as i32, row: write.slot.row as i32 };
            put(staging, &layout.writes, index, &[cell]);
            if let Some(rope) = rope {
                let turn = |(cos, sin): (f64, f64)| Turn { cos: cos as f32, sin: sin as f32 };
                let turns: Vec<Turn> = rope.cos_sin(write.position).map(turn).collect();
                put(staging, &layout.turns, index * turns.len(), &turns);
            }
        }
    }

    /// Any mask as words: bit d of query t says that t sees draft token d. What lies before the
    /// draft is seen by all, so causal is the chain and full is every bit.
    fn put_tree(&mut self, step: &Step) {
        let words = self.layout.tree_words;
        let mut rows = Vec::new();
        for span in step.spans() {
            rows.clear();
            rows.resize(span.q_len * words, 0);
            write_tree(&mut rows, step.mask(), span.q_start, words);
            put(&mut self.staging, &self.layout.tree, span.q_start * words, &rows);
        }
    }

    fn put_page_table(&mut self, step: &Step) {
        let Resident { layout, staging, .. } = self;
        for (index, span) in step.spans().iter().enumerate() {
            let ids: Vec<i32> = step.pages(span).iter().map(|page| page.0 as i32).collect();
            put(staging, &layout.page_table, index * layout.max_pages, &ids);
        }
    }

    fn copy(&self, stream: &Stream, range: Range<usize>) -> Result<(), DriverError> {
        let to = self.device.address() + range.start as u64;
        let from = self.staging.pointer().wrapping_byte_add(range.start);
        // SAFETY: the range lies in both buffers, which have one size; `copied` guards the host's.
        unsafe { stream.copy_to_device(to, from, range.len()) }
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // The staging memory must not be freed under a copy; if the device fails there is none.
        let _ = self.copied.wait();
    }
}

/// Values into a section of the staging memory, from its element `index` on.
fn put<T: Plain>(staging: &mut PinnedBuffer, section: &Range<usize>, index: usize, values: &[T]) {
    let bytes = bytes_of(values);
    let section = &mut staging.as_bytes_mut()[section.clone()];
    section[index * size_of::<T>()..][..bytes.len()].copy_from_slice(bytes);
}

/// A draft's words, `[q_len, words]`, which are 0 before. Parents come before their children, so a row
/// is its parent's and one bit more.
fn write_tree(rows: &mut [u32], mask: &Mask, draft: usize, words: usize) {
    for t in 0..rows.len().checked_div(words).unwrap_or(0) {
        let (before, row) = rows.split_at_mut(t * words);
        let row = &mut row[..words];
        let seen = match mask {
            Mask::Full => {
                row.fill(u32::MAX);
                continue;
            }
            Mask::Tree(tree) => usize::try_from(tree.parents()[draft + t]).ok(),
            Mask::Causal => t.checked_sub(1),
        };
        if let Some(parent) = seen {
            row.copy_from_slice(&before[parent * words..][..words]);
        }
        row[t / TREE_WORD_BITS] |= 1 << (t % TREE_WORD_BITS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grouped_attention::MaskKind;
    use proptest::prelude::*;

    fn extent() -> Extent {
        Extent { sequences: 3, total_q: 9, max_q_len: 40, max_kv_len: 100, writes: 5 }
    }

    fn sizes() -> Sizes {
        let bounds = Bounds { pieces: 7, merges: 2, slots: 4 };
        Sizes { page_size: 16, teams: 4, bounds, pairs: 32 }
    }

    #[test]
    fn sections_do_not_overlap() {
        let layout = Layout::new(&extent(), &sizes()).unwrap();
        let sections = [
            &layout.status,
            &layout.merge_counts,
            &layout.write_count,
            &layout.q_starts,
            &layout.kv_lens,
            &layout.team_pieces,
            &layout.pieces,
            &layout.merges,
            &layout.writes,
            &layout.turns,
            &layout.tree,
            &layout.page_table,
        ];
        assert!(sections.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(sections.iter().all(|section| section.start % ALIGNMENT == 0));
        assert_eq!((layout.max_pages, layout.tree_words), (7, 2));
        assert!(layout.page_table.len() >= 3 * 7 * 4 && layout.tree.len() >= 9 * 2 * 4);
    }

    #[test]
    fn sizes_that_overflow_are_out_of_memory() {
        let extent = Extent { sequences: usize::MAX / 8, max_kv_len: 1 << 30, ..extent() };
        assert_eq!(
            Layout::new(&extent, &sizes()),
            Err(EngineError::OutOfMemory { bytes: usize::MAX })
        );
    }

    proptest! {
        /// The words say what the reference's mask says, also where there are more queries than
        /// cached tokens.
        // [S-3.7] [S-3.8] [S-3.9] [S-3.12]
        #[test]
        fn words_are_the_mask(
            q_len in 1..70_usize, extra in -40..40_isize, kind in 0..3_u8, seed in any::<u64>(),
        ) {
            let parents: Vec<i32> = (0..q_len as i32)
                .map(|t| (seed.rotate_left(t as u32) % (t as u64 + 1)) as i32 - 1)
                .collect();
            let kind = match kind {
                0 => MaskKind::Causal,
                1 => MaskKind::Full,
                _ => MaskKind::Tree(&parents),
            };
            let kv_len = (q_len as isize + extra).max(0) as usize;
            prop_assume!(!matches!(kind, MaskKind::Tree(_)) || kv_len >= q_len);
            let mask = Mask::new(kind, [q_len]).unwrap();
            let words = q_len.div_ceil(TREE_WORD_BITS);
            let mut rows = vec![0; q_len * words];
            write_tree(&mut rows, &mask, 0, words);
            for (t, row) in rows.chunks_exact(words).enumerate() {
                for j in 0..kv_len {
                    let draft = (j + q_len).checked_sub(kv_len);
                    let sees = draft.is_none_or(|d| {
                        row[d / TREE_WORD_BITS] >> (d % TREE_WORD_BITS) & 1 == 1
                    });
                    prop_assert_eq!(sees, mask.sees(0, q_len, kv_len, t, j), "t {} j {}", t, j);
                }
            }
        }
    }
}
