//! Page tables: which page of a cache holds which tokens of which sequence.
//!
//! One set of tables serves every layer of a model `[S-4.1]`. The tables hold no rows: where an
//! operation moves tokens (fork, copy on write, keep), it answers with the [`RowCopy`]s that the
//! caller applies to each layer's cache, before anything else is written there.

use crate::mask::{Mask, MaskKind};
use crate::step::{InvalidStep, Sequence, Step};
use std::fmt;

/// A page of a cache. Ids index the page dimension of every layer's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// One row of one page: where a single token's row lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The page.
    pub page: PageId,
    /// Row within the page, less than the page size.
    pub row: usize,
}

/// Copies `rows` consecutive rows from one slot to another within every layer's cache.
///
/// A list of copies takes effect in its order, each complete before the next begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowCopy {
    /// First row read.
    pub from: Slot,
    /// First row written.
    pub to: Slot,
    /// Number of rows; both runs stay within their page.
    pub rows: usize,
}

/// `2 rows from row 0 of page 7 to row 1 of page 3`.
impl fmt::Display for RowCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RowCopy { from, to, rows } = self;
        let (page, to_page) = (from.page.0, to.page.0);
        write!(
            f,
            "{rows} rows from row {} of page {page} to row {} of page {to_page}",
            from.row, to.row
        )
    }
}

/// A sequence of [`PageTables`]. Handles are never reused within one set of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Hands out pages and counts how many tables hold each.
///
/// Pages that were never handed out are not listed anywhere, so that a pool costs what is used of
/// it and the largest legal one can be made.
#[derive(Clone, Debug)]
struct PagePool {
    total: usize,
    /// Pages that came back, the next one to hand out last.
    returned: Vec<PageId>,
    /// Users of each page that was ever handed out, the lowest ids; 0 exactly for those returned.
    users: Vec<u32>,
}

impl PagePool {
    fn new(total: usize) -> PagePool {
        PagePool { total, returned: Vec::new(), users: Vec::new() }
    }

    fn free(&self) -> usize {
        self.total - self.users.len() + self.returned.len()
    }

    fn users(&self, page: PageId) -> Option<usize> {
        let page = page.0 as usize;
        (page < self.total).then(|| self.users.get(page).map_or(0, |&users| users as usize))
    }

    /// A page for one user. The caller has checked that one is free.
    fn take(&mut self) -> PageId {
        if let Some(page) = self.returned.pop() {
            self.users[page.0 as usize] = 1;
            return page;
        }
        // A pool has at most i32::MAX pages.
        let page = PageId(self.users.len() as u32);
        self.users.push(1);
        page
    }

    fn share(&mut self, page: PageId) {
        self.users[page.0 as usize] += 1;
    }

    fn release(&mut self, page: PageId) {
        let users = &mut self.users[page.0 as usize];
        *users -= 1;
        if *users == 0 {
            self.returned.push(page);
        }
    }

    fn shared(&self, page: PageId) -> bool {
        self.users[page.0 as usize] > 1
    }
}

/// One sequence: its pages in order of position, and its length.
#[derive(Clone, Debug, Default)]
struct Table {
    pages: Vec<PageId>,
    len: usize,
}

/// Page tables of any number of sequences over one pool of pages.
///
/// ```
/// use grouped_attention::{MaskKind, PageTables};
/// let mut tables = PageTables::new(16, 64)?;
/// let sequence = tables.insert();
/// tables.extend(sequence, 20)?;                     // 20 tokens: two pages
/// let step = tables.step(&[(sequence, 20)], MaskKind::Causal)?; // all 20 are queries
/// assert_eq!(step.total_q(), 20);
/// tables.truncate(sequence, 16)?;                   // the second page is free again
/// assert_eq!(tables.free_pages(), 63);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PageTables {
    page_size: usize,
    pool: PagePool,
    /// Sorted by id, since ids only grow.
    sequences: Vec<(SequenceId, Table)>,
    next: u64,
}

impl PageTables {
    /// Tables over `pages` pages of `page_size` tokens, with no sequence yet.
    ///
    /// # Errors
    /// A page size of 0; a pool of more than `i32::MAX` pages or tokens past `usize`.
    pub fn new(page_size: usize, pages: usize) -> Result<PageTables, PageError> {
        if page_size == 0 {
            return Err(PageError::PageSizeZero);
        }
        if pages > i32::MAX as usize || page_size.checked_mul(pages).is_none() {
            return Err(PageError::PoolTooLarge { pages, page_size });
        }
        let pool = PagePool::new(pages);
        Ok(PageTables { page_size, pool, sequences: Vec::new(), next: 0 })
    }

    /// Tokens per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages of the pool, free or not.
    pub fn pages_total(&self) -> usize {
        self.pool.total
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.pool.free()
    }

    /// How many sequences hold a page; `None` for an id outside the pool.
    pub fn users(&self, page: PageId) -> Option<usize> {
        self.pool.users(page)
    }

    /// A new, empty sequence.
    pub fn insert(&mut self) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.push((id, Table::default()));
        id
    }

    /// Ends a sequence and gives its pages back.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn remove(&mut self, sequence: SequenceId) -> Result<(), PageError> {
        let index = self.index(sequence)?;
        let (_, table) = self.sequences.remove(index);
        for page in table.pages {
            self.pool.release(page);
        }
        Ok(())
    }

    /// Sequences in the order of their creation.
    pub fn sequences(&self) -> impl ExactSizeIterator<Item = SequenceId> + '_ {
        self.sequences.iter().map(|(id, _)| *id)
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn len(&self, sequence: SequenceId) -> Result<usize, PageError> {
        Ok(self.table(sequence)?.len)
    }

    /// True if no sequence exists.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Pages of a sequence in order of position: token p is row `p % page_size` of page
    /// `pages[p / page_size]` `[S-4.3]`.
    ///
    /// # Errors
    /// An unknown sequence.
    pub fn pages(&self, sequence: SequenceId) -> Result<&[PageId], PageError> {
        Ok(&self.table(sequence)?.pages)
    }

    /// Pages that [`extend`](Self::extend) by `tokens` would take from the pool.
    ///
    /// # Errors
    /// An unknown sequence; a length that overflows.
    pub fn pages_needed(&self, sequence: SequenceId, tokens: usize) -> Result<usize, PageError> {
        let table = self.table(sequence)?;
        let len = self.checked_len(sequence, table.len, tokens)?;
        let grown = len.div_ceil(self.page_size).saturating_sub(table.pages.len());
        Ok(grown + self.shared_in(table, table.len, len).len())
    }

    /// Lengthens a sequence by `tokens`, taking pages as needed. The new tokens' rows hold garbage
    /// until they are appended.
    ///
    /// If the first new token falls into a page that another sequence uses, the page is replaced
    /// by a fresh one, and the rows before it must be copied there: the caller applies the
    /// returned copies to every layer's cache before it appends.
    ///
    /// # Errors
    /// An unknown sequence, a length that overflows, too few free pages. Nothing changes then.
    pub fn extend(
        &mut self,
        sequence: SequenceId,
        tokens: usize,
    ) -> Result<Vec<RowCopy>, PageError> {
        let needed = self.pages_needed(sequence, tokens)?;
        self.check_free(needed)?;
        let index = self.index(sequence)?;
        let old = self.sequences[index].1.len;
        let new = old + tokens;
        let copies = self.unshare(index, old, new, old);
        let table = &mut self.sequences[index].1;
        while table.pages.len() * self.page_size < new {
            table.pages.push(self.pool.take());
        }
        table.len = new;
        Ok(copies)
    }

    /// Shortens a sequence to `len` tokens and gives back the pages past it.
    ///
    /// # Errors
    /// An unknown sequence, or one that is shorter already.
    pub fn truncate(&mut self, sequence: SequenceId, len: usize) -> Result<(), PageError> {
        let index = self.index(sequence)?;
        let table = &mut self.sequences[index].1;
        if len > table.len {
            return Err(PageError::TruncateBeyond { sequence, len, current: table.len });
        }
        for page in table.pages.split_off(len.div_ceil(self.page_size)) {
            self.pool.release(page);
        }
        table.len = len;
        Ok(())
    }

    /// Accepts a path of a drafted tree: of the last `draft` tokens, those at the indices `path`
    /// (strictly increasing, local to the draft) stay, directly behind the prefix; the rest is
    /// truncated. The caller applies the returned copies, in order, to every layer's cache.
    ///
    /// # Errors
    /// An unknown sequence, a draft longer than the sequence, a path that leaves the draft or does
    /// not increase, too few free pages to unshare what is written. Nothing changes then.
    pub fn keep(
        &mut self,
        sequence: SequenceId,
        draft: usize,
        path: &[usize],
    ) -> Result<Vec<RowCopy>, PageError> {
        let index = self.index(sequence)?;
        let current = self.sequences[index].1.len;
        let Some(prefix) = current.checked_sub(draft) else {
            return Err(PageError::DraftBeyond { sequence, draft, current });
        };
        let increasing = path.windows(2).all(|pair| pair[0] < pair[1]);
        if !increasing || path.last().is_some_and(|&last| last >= draft) {
            return Err(PageError::InvalidPath { draft, path: path.to_vec() });
        }
        // Tokens that already stand where the path puts them are not moved, nor their pages copied.
        let still = path.iter().enumerate().take_while(|(to, from)| to == *from).count();
        let (first, end) = (prefix + still, prefix + path.len());
        let shared = self.shared_in(&self.sequences[index].1, first, end).len();
        self.check_free(shared)?;
        // Read before the pages are swapped: the moved rows still come from the old ones.
        let sources: Vec<Slot> =
            path[still..].iter().map(|&from| self.slot(index, prefix + from)).collect();
        let mut copies = self.unshare(index, first, end, first);
        for (to, from) in (first..end).zip(sources) {
            copies.push(RowCopy { from, to: self.slot(index, to), rows: 1 });
        }
        self.truncate(sequence, end)?;
        Ok(copies)
    }

    /// A second sequence with the same tokens. Full pages are shared; the last one, if partly
    /// filled, is copied, so that both may grow `[S-4.15]`.
    ///
    /// # Errors
    /// An unknown sequence; no free page for the copy. Nothing changes then.
    pub fn fork(&mut self, sequence: SequenceId) -> Result<(SequenceId, Vec<RowCopy>), PageError> {
        self.fork_prefix(sequence, self.len(sequence)?)
    }

    /// A second sequence with the first `len` tokens. Their full pages are shared; a last, partly
    /// filled one is copied. A prefix of whole pages therefore takes no page and copies nothing.
    ///
    /// ```
    /// # use grouped_attention::PageTables;
    /// let mut tables = PageTables::new(16, 4)?;
    /// let sequence = tables.insert();
    /// tables.extend(sequence, 40)?;
    /// let (prefix, copies) = tables.fork_prefix(sequence, 32)?;
    /// assert_eq!(tables.pages(prefix)?, &tables.pages(sequence)?[..2]);
    /// assert_eq!((copies.len(), tables.free_pages()), (0, 1));
    /// # Ok::<(), grouped_attention::PageError>(())
    /// ```
    ///
    /// # Errors
    /// An unknown sequence, or one that is shorter; no free page for the copy. Nothing changes
    /// then.
    pub fn fork_prefix(
        &mut self,
        sequence: SequenceId,
        len: usize,
    ) -> Result<(SequenceId, Vec<RowCopy>), PageError> {
        let table = self.table(sequence)?;
        if len > table.len {
            return Err(PageError::TruncateBeyond { sequence, len, current: table.len });
        }
        let (full, partial) = (len / self.page_size, len % self.page_size);
        let mut pages = table.pages[..full].to_vec();
        let last = (partial > 0).then(|| table.pages[full]);
        self.check_free(usize::from(partial > 0))?;
        for &page in &pages {
            self.pool.share(page);
        }
        let mut copies = Vec::new();
        if let Some(last) = last {
            let fresh = self.pool.take();
            copies.push(page_copy(last, fresh, partial));
            pages.push(fresh);
        }
        let id = self.insert();
        let index = self.index(id)?;
        self.sequences[index].1 = Table { pages, len };
        Ok((id, copies))
    }

    /// A step in which the last `q_len` tokens of each listed sequence are queries, and their rows
    /// are the ones to append: positions `len - q_len .. len`. One that only reads is
    /// [`reading_step`](Self::reading_step).
    ///
    /// # Errors
    /// An unknown sequence, one listed twice with queries, more queries than tokens, writes into a
    /// page that another sequence uses, what [`Step::new`] rejects.
    pub fn step(
        &self,
        queries: &[(SequenceId, usize)],
        mask: MaskKind<'_>,
    ) -> Result<Step, PageError> {
        let mut sequences = Vec::with_capacity(queries.len());
        for &(id, q_len) in queries {
            let table = self.table(id)?;
            let Some(first) = table.len.checked_sub(q_len) else {
                return Err(PageError::DraftBeyond {
                    sequence: id,
                    draft: q_len,
                    current: table.len,
                });
            };
            if let Some(&at) = self.shared_in(table, first, table.len).first() {
                return Err(PageError::SharedPage { sequence: id, page: table.pages[at] });
            }
            sequences.push(Sequence { q_len, kv_len: table.len, pages: &table.pages });
        }
        Ok(self.attending(&sequences, mask)?.appending()?)
    }

    /// A step in which `q_len` queries of each listed sequence attend to its tokens and no rows are
    /// appended. Pages may be shared, and under [`MaskKind::Full`] there may be more queries than
    /// tokens: those of all requests that share a prefix attend to it at once.
    ///
    /// ```
    /// # use grouped_attention::{MaskKind, PageTables};
    /// let mut tables = PageTables::new(16, 4)?;
    /// let prefix = tables.insert();
    /// tables.extend(prefix, 32)?;
    /// let step = tables.reading_step(&[(prefix, 40)], MaskKind::Full)?;
    /// assert_eq!((step.total_q(), step.spans()[0].kv_len, step.writes().len()), (40, 32, 0));
    /// # Ok::<(), grouped_attention::PageError>(())
    /// ```
    ///
    /// # Errors
    /// An unknown sequence, what [`Mask::new`] and [`Step::new`] reject.
    pub fn reading_step(
        &self,
        queries: &[(SequenceId, usize)],
        mask: MaskKind<'_>,
    ) -> Result<Step, PageError> {
        let sequence = |&(id, q_len): &(SequenceId, usize)| {
            let table = self.table(id)?;
            Ok(Sequence { q_len, kv_len: table.len, pages: &table.pages })
        };
        let sequences: Vec<Sequence<'_>> =
            queries.iter().map(sequence).collect::<Result<_, PageError>>()?;
        self.attending(&sequences, mask)
    }

    fn attending(&self, sequences: &[Sequence<'_>], mask: MaskKind<'_>) -> Result<Step, PageError> {
        let q_lens = sequences.iter().map(|sequence| sequence.q_len);
        let mask = Mask::new(mask, q_lens).map_err(InvalidStep::from)?;
        Ok(Step::new(self.page_size, sequences, mask)?)
    }

    fn index(&self, sequence: SequenceId) -> Result<usize, PageError> {
        self.sequences
            .binary_search_by_key(&sequence, |(id, _)| *id)
            .map_err(|_| PageError::UnknownSequence { sequence })
    }

    fn table(&self, sequence: SequenceId) -> Result<&Table, PageError> {
        Ok(&self.sequences[self.index(sequence)?].1)
    }

    fn checked_len(
        &self,
        sequence: SequenceId,
        len: usize,
        tokens: usize,
    ) -> Result<usize, PageError> {
        len.checked_add(tokens)
            .filter(|&len| len <= i32::MAX as usize)
            .ok_or(PageError::LengthOverflow { sequence, len, tokens })
    }

    fn check_free(&self, needed: usize) -> Result<(), PageError> {
        let free = self.free_pages();
        if needed > free { Err(PageError::PoolExhausted { needed, free }) } else { Ok(()) }
    }

    /// Indices into the table of pages that hold positions `first..end` and have another user.
    fn shared_in(&self, table: &Table, first: usize, end: usize) -> Vec<usize> {
        if first >= end {
            return Vec::new();
        }
        let pages = first / self.page_size..end.div_ceil(self.page_size).min(table.pages.len());
        pages.filter(|&at| self.pool.shared(table.pages[at])).collect()
    }

    /// Replaces shared pages under positions `first..end` by fresh ones, and says which rows before
    /// `live` must follow. The caller has checked that enough pages are free.
    fn unshare(&mut self, index: usize, first: usize, end: usize, live: usize) -> Vec<RowCopy> {
        let mut copies = Vec::new();
        for at in self.shared_in(&self.sequences[index].1, first, end) {
            let fresh = self.pool.take();
            let old = std::mem::replace(&mut self.sequences[index].1.pages[at], fresh);
            self.pool.release(old);
            let rows = live.saturating_sub(at * self.page_size).min(self.page_size);
            if rows > 0 {
                copies.push(page_copy(old, fresh, rows));
            }
        }
        copies
    }

    fn slot(&self, index: usize, position: usize) -> Slot {
        let table = &self.sequences[index].1;
        Slot { page: table.pages[position / self.page_size], row: position % self.page_size }
    }
}

fn page_copy(from: PageId, to: PageId, rows: usize) -> RowCopy {
    RowCopy { from: Slot { page: from, row: 0 }, to: Slot { page: to, row: 0 }, rows }
}

/// What page tables refuse. Nothing has changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// Pages must hold at least one token.
    #[error("the page size is 0")]
    PageSizeZero,
    /// Page ids are 31 bits wide on devices, token counts fit `usize`.
    #[error("{pages} pages of {page_size} tokens are more than a pool can have")]
    PoolTooLarge {
        /// Pages asked for.
        pages: usize,
        /// Tokens per page.
        page_size: usize,
    },
    /// Too few free pages.
    #[error("the pool is exhausted: {needed} pages needed, {free} free")]
    PoolExhausted {
        /// Pages the operation needs.
        needed: usize,
        /// Pages that are free.
        free: usize,
    },
    /// No such sequence, or it was removed.
    #[error("sequence {sequence} is not in these page tables")]
    UnknownSequence {
        /// The handle.
        sequence: SequenceId,
    },
    /// Lengths are 31 bits wide on devices.
    #[error("sequence {sequence} cannot grow from {len} by {tokens} tokens")]
    LengthOverflow {
        /// The sequence.
        sequence: SequenceId,
        /// Its length.
        len: usize,
        /// Tokens to add.
        tokens: usize,
    },
    /// Truncation does not lengthen.
    #[error("sequence {sequence} has {current} tokens and cannot be truncated to {len}")]
    TruncateBeyond {
        /// The sequence.
        sequence: SequenceId,
        /// Length asked for.
        len: usize,
        /// Length it has.
        current: usize,
    },
    /// More draft or query tokens than the sequence has.
    #[error("sequence {sequence} has {current} tokens, fewer than the {draft} of its draft")]
    DraftBeyond {
        /// The sequence.
        sequence: SequenceId,
        /// Draft or query tokens.
        draft: usize,
        /// Length it has.
        current: usize,
    },
    /// A kept path must increase strictly and stay inside the draft.
    #[error("path {path:?} does not increase strictly within a draft of {draft} tokens")]
    InvalidPath {
        /// Tokens of the draft.
        draft: usize,
        /// The path as given.
        path: Vec<usize>,
    },
    /// A write would change what another sequence reads.
    #[error("sequence {sequence} would write into page {}, which another sequence uses", page.0)]
    SharedPage {
        /// The writing sequence.
        sequence: SequenceId,
        /// The page.
        page: PageId,
    },
    /// The step itself is not legal.
    #[error(transparent)]
    Step(#[from] InvalidStep),
}
