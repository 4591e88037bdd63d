//! One decode step of a ragged batch: lengths, page tables, mask, and where new rows go.
//!
//! A step is bookkeeping alone and the same for every layer of a model. An engine turns it into a
//! plan once ([`Backend::plan`](crate::Backend::plan)) and reuses the plan for each layer.

use crate::mask::{InvalidMask, Mask};
use crate::pages::{PageId, Slot};

/// One sequence of a step, as it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Query tokens of this step; 0 is legal.
    pub q_len: usize,
    /// Tokens in the cache, normally the new ones included; 0 is legal.
    pub kv_len: usize,
    /// Pages in order of position. Only the first `ceil(kv_len / page_size)` are looked at: what
    /// follows may hold any value `[S-4.4]`.
    pub pages: &'a [PageId],
}

/// Where a new row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// The cell.
    pub slot: Slot,
    /// The position that a rotating append turns the rope key by: any integer, gaps included. For
    /// a drafted tree it is the prefix plus the depth, not the place in the cache.
    pub position: i64,
}

/// One sequence of a legal step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// First query of the sequence among the `total_q` of the step.
    pub q_start: usize,
    /// Query tokens.
    pub q_len: usize,
    /// Tokens in the cache.
    pub kv_len: usize,
    /// First of its `ceil(kv_len / page_size)` entries in [`Step::page_ids`].
    pub page_start: usize,
}

/// A legal step: every length is covered by its table, every tree is one, every write has a cell
/// of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    page_size: usize,
    spans: Vec<Span>,
    page_ids: Vec<PageId>,
    mask: Mask,
    writes: Vec<Write>,
    extent: Extent,
}

/// The sizes of a step, or the largest sizes that a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Sequences, the empty ones included.
    pub sequences: usize,
    /// Query tokens of all sequences, `total_q`.
    pub total_q: usize,
    /// Query tokens of the sequence that has most.
    pub max_q_len: usize,
    /// Cached tokens of the sequence that has most.
    pub max_kv_len: usize,
    /// Rows to append.
    pub writes: usize,
}

impl Extent {
    /// The first size in which `self` exceeds `capacity`, as (name, size, capacity).
    pub(crate) fn beyond(&self, capacity: &Extent) -> Option<(&'static str, usize, usize)> {
        let sizes = self.sizes().into_iter().zip(capacity.sizes());
        sizes
            .map(|((what, size), (_, capacity))| (what, size, capacity))
            .find(|(_, size, capacity)| size > capacity)
    }

    /// The first size that no step can have, as (name, size).
    pub(crate) fn past_any_step(&self) -> Option<(&'static str, usize)> {
        self.sizes().into_iter().find(|(_, size)| *size > i32::MAX as usize)
    }

    fn sizes(&self) -> [(&'static str, usize); 5] {
        [
            ("sequences", self.sequences),
            ("total_q", self.total_q),
            ("max_q_len", self.max_q_len),
            ("max_kv_len", self.max_kv_len),
            ("writes", self.writes),
        ]
    }
}

impl Step {
    /// A step that appends nothing; see [`appending`](Self::appending).
    ///
    /// No sequence at all is legal, and such a step does nothing.
    ///
    /// # Errors
    /// A page size of 0; a length that its pages do not cover; sizes past `i32::MAX`; a mask made
    /// for other query lengths; a tree over a sequence with fewer cached tokens than queries.
    pub fn new(
        page_size: usize,
        sequences: &[Sequence<'_>],
        mask: Mask,
    ) -> Result<Step, InvalidStep> {
        if page_size == 0 {
            return Err(InvalidStep::PageSizeZero);
        }
        let mut step = Step {
            page_size,
            spans: Vec::with_capacity(sequences.len()),
            page_ids: Vec::new(),
            mask,
            writes: Vec::new(),
            extent: Extent {
                sequences: sequences.len(),
                total_q: 0,
                max_q_len: 0,
                max_kv_len: 0,
                writes: 0,
            },
        };
        for (index, sequence) in sequences.iter().enumerate() {
            step.push(index, sequence)?;
        }
        // The mask may have been made for other lengths of the same sum, and a parent that is legal
        // there may be its own ancestor here.
        if let Mask::Tree(tree) = &step.mask {
            tree.check(sequences.iter().map(|sequence| sequence.q_len))?;
        }
        Ok(step)
    }

    fn push(&mut self, index: usize, sequence: &Sequence<'_>) -> Result<(), InvalidStep> {
        let &Sequence { q_len, kv_len, pages } = sequence;
        let needed = kv_len.div_ceil(self.page_size);
        let Some(used) = pages.get(..needed) else {
            return Err(InvalidStep::TableTooShort {
                sequence: index,
                kv_len,
                pages: pages.len(),
                page_size: self.page_size,
            });
        };
        if matches!(self.mask, Mask::Tree(_)) && q_len > kv_len {
            return Err(InvalidStep::TreeBeyondCache { sequence: index, q_len, kv_len });
        }
        let total_q = self.extent.total_q.saturating_add(q_len);
        let page_start = self.page_ids.len();
        // Devices index queries, tokens and table entries with 31 bits.
        let largest = total_q.max(kv_len).max(page_start.saturating_add(needed));
        if largest > i32::MAX as usize {
            return Err(InvalidStep::TooLarge { sequence: index, q_len, kv_len });
        }
        if let Some(page) = used.iter().find(|page| page.0 > i32::MAX as u32) {
            return Err(InvalidStep::PageId { sequence: index, page: *page });
        }
        self.spans.push(Span { q_start: self.extent.total_q, q_len, kv_len, page_start });
        self.page_ids.extend_from_slice(used);
        self.extent.total_q = total_q;
        self.extent.max_q_len = self.extent.max_q_len.max(q_len);
        self.extent.max_kv_len = self.extent.max_kv_len.max(kv_len);
        Ok(())
    }

    /// The same step, appending one row per query token at the end of each sequence: positions
    /// `kv_len - q_len .. kv_len`, rotated by those positions, or under a tree mask by the prefix
    /// plus the depth in the draft.
    ///
    /// # Errors
    /// More queries than cached tokens; two writes to one cell.
    pub fn appending(self) -> Result<Step, InvalidStep> {
        // Before the list is made: queries alone cost nothing, and there may be 2^31 of them.
        let beyond = self.spans.iter().position(|span| span.q_len > span.kv_len);
        if let Some(sequence) = beyond {
            let Span { q_len, kv_len, .. } = self.spans[sequence];
            return Err(InvalidStep::AppendBeyond { sequence, q_len, kv_len });
        }
        let mut writes = Vec::with_capacity(self.total_q());
        for span in &self.spans {
            let Span { q_start, q_len, kv_len, .. } = *span;
            let prefix = kv_len - q_len;
            let depths = match &self.mask {
                Mask::Causal | Mask::Full => None,
                Mask::Tree(tree) => Some(tree.depths(q_start, q_len)),
            };
            for t in 0..q_len {
                let position = prefix + depths.as_ref().map_or(t, |depths| depths[t] - 1);
                writes.push(Write { slot: self.slot(span, prefix + t), position: position as i64 });
            }
        }
        self.writing(writes)
    }

    /// The same step, appending rows at the given cells, in the order of the rows.
    ///
    /// # Errors
    /// A row past the page size; two writes to one cell.
    pub fn writing(mut self, writes: Vec<Write>) -> Result<Step, InvalidStep> {
        for (index, write) in writes.iter().enumerate() {
            if write.slot.row >= self.page_size {
                return Err(InvalidStep::RowBeyondPage {
                    write: index,
                    row: write.slot.row,
                    page_size: self.page_size,
                });
            }
            if write.slot.page.0 > i32::MAX as u32 {
                return Err(InvalidStep::PageId { sequence: index, page: write.slot.page });
            }
        }
        let mut cells: Vec<(Slot, usize)> =
            writes.iter().enumerate().map(|(index, write)| (write.slot, index)).collect();
        cells.sort_unstable();
        if let Some(pair) = cells.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let (slot, writes) = (pair[0].0, [pair[0].1, pair[1].1]);
            return Err(InvalidStep::WrittenTwice { slot, writes });
        }
        if writes.len() > i32::MAX as usize {
            return Err(InvalidStep::TooManyWrites { writes: writes.len() });
        }
        self.extent.writes = writes.len();
        self.writes = writes;
        Ok(self)
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// The sequences, `[B]`.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Page ids of all sequences one after another; see [`Span::page_start`].
    pub fn page_ids(&self) -> &[PageId] {
        &self.page_ids
    }

    /// Pages of one sequence, `[ceil(kv_len / page_size)]`.
    pub fn pages(&self, span: &Span) -> &[PageId] {
        &self.page_ids[span.page_start..][..span.kv_len.div_ceil(self.page_size)]
    }

    /// The mask.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// Where new rows go, one per row to append.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Sizes of this step.
    pub fn extent(&self) -> &Extent {
        &self.extent
    }

    /// Query tokens of all sequences.
    pub fn total_q(&self) -> usize {
        self.extent.total_q
    }

    /// Pages that a cache must have for every id of this step to be one of them.
    pub fn pages_required(&self) -> usize {
        let read = self.page_ids.iter();
        let written = self.writes.iter().map(|write| &write.slot.page);
        read.chain(written).map(|page| page.0 as usize + 1).max().unwrap_or(0)
    }

    /// The cell of a cached position `[S-4.3]`.
    ///
    /// # Panics
    /// If the position is in no page of the sequence, or the span is of another step.
    pub fn slot(&self, span: &Span, position: usize) -> Slot {
        debug_assert!(position < span.kv_len);
        Slot { page: self.pages(span)[position / self.page_size], row: position % self.page_size }
    }

    /// True if query `t` of a sequence may see its cached position `j`.
    pub fn sees(&self, span: &Span, t: usize, j: usize) -> bool {
        self.mask.sees(span.q_start, span.q_len, span.kv_len, t, j)
    }
}

/// Why lengths, tables and mask are not a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidStep {
    /// Pages must hold at least one token.
    #[error("the page size is 0")]
    PageSizeZero,
    /// The table does not reach the length.
    #[error(
        "sequence {sequence} has {kv_len} tokens, and its {pages} pages of {page_size} tokens do \
         not cover them"
    )]
    TableTooShort {
        /// Sequence of the batch.
        sequence: usize,
        /// Cached tokens.
        kv_len: usize,
        /// Pages in its table.
        pages: usize,
        /// Tokens per page.
        page_size: usize,
    },
    /// Under a tree mask the draft is part of the cache.
    #[error("sequence {sequence} has a tree of {q_len} queries over {kv_len} cached tokens")]
    TreeBeyondCache {
        /// Sequence of the batch.
        sequence: usize,
        /// Query tokens.
        q_len: usize,
        /// Cached tokens.
        kv_len: usize,
    },
    /// Counts are 31 bits wide on devices.
    #[error("sequence {sequence} (q_len {q_len}, kv_len {kv_len}) takes the step past 2^31")]
    TooLarge {
        /// Sequence of the batch.
        sequence: usize,
        /// Query tokens.
        q_len: usize,
        /// Cached tokens.
        kv_len: usize,
    },
    /// Page ids are 31 bits wide on devices.
    #[error("entry {sequence} has page id {}, past 2^31", page.0)]
    PageId {
        /// Sequence or write of the batch.
        sequence: usize,
        /// The id.
        page: PageId,
    },
    /// The mask is not one over these queries.
    #[error(transparent)]
    Mask(#[from] InvalidMask),
    /// New rows go to the end of the cached tokens, so there are no more of them.
    #[error("sequence {sequence} would append {q_len} rows within {kv_len} cached tokens")]
    AppendBeyond {
        /// Sequence of the batch.
        sequence: usize,
        /// Query tokens.
        q_len: usize,
        /// Cached tokens.
        kv_len: usize,
    },
    /// A write names a row that its page does not have.
    #[error("write {write} goes to row {row} of a page of {page_size}")]
    RowBeyondPage {
        /// Index of the write.
        write: usize,
        /// Row within the page.
        row: usize,
        /// Tokens per page.
        page_size: usize,
    },
    /// Two writes of one step go to one cell.
    #[error(
        "writes {} and {} both go to row {} of page {}", writes[0], writes[1], slot.row, slot.page.0
    )]
    WrittenTwice {
        /// The cell.
        slot: Slot,
        /// Indices of the two writes, the earlier first.
        writes: [usize; 2],
    },
    /// Counts are 31 bits wide on devices.
    #[error("a step of {writes} writes")]
    TooManyWrites {
        /// Rows to append.
        writes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    // [S-1.1] [S-1.3] [S-1.4] [S-4.3]
    #[test]
    fn sequences_are_packed_one_after_another() {
        let tables = [[PageId(4), PageId(2)], [PageId(9), PageId(9)], [PageId(0), PageId(1)]];
        let lens = [(2, 5), (0, 0), (3, 3)];
        let sequences: Vec<Sequence<'_>> = lens
            .into_iter()
            .zip(&tables)
            .map(|((q_len, kv_len), pages)| Sequence { q_len, kv_len, pages })
            .collect();
        let step = Step::new(3, &sequences, Mask::Causal).unwrap();
        let span = |q_start, q_len, kv_len, page_start| Span { q_start, q_len, kv_len, page_start };
        assert_eq!(step.spans(), [span(0, 2, 5, 0), span(2, 0, 0, 2), span(2, 3, 3, 2)]);
        // Only the pages that the lengths use, so that spare entries cannot matter.
        assert_eq!(step.page_ids(), [PageId(4), PageId(2), PageId(0)]);
        let [first, empty, last] = [0, 1, 2].map(|index| &step.spans()[index]);
        assert_eq!(step.pages(first), [PageId(4), PageId(2)]);
        assert_eq!((step.pages(empty), step.pages(last)), (&[][..], &[PageId(0)][..]));
        assert_eq!(step.slot(first, 4), Slot { page: PageId(2), row: 1 });
        assert_eq!((step.page_size(), step.total_q(), step.pages_required()), (3, 5, 5));
        assert!(step.sees(last, 1, 1) && !step.sees(last, 1, 2));
    }
}
