//! Prompts whose pages are kept so that later requests can share them.

use super::texts::Texts;
use crate::lm::DecodeError;
use grouped_attention::{PageId, PageTables, SequenceId};
use std::collections::HashMap;

/// Whole pages of prompts, each held by a text of its own.
///
/// A text that shares pages costs none, so a prefix is free while a request uses it; afterwards it
/// occupies pages until they are wanted.
#[derive(Debug, Default)]
pub(super) struct PrefixIndex {
    entries: Vec<Entry>,
    /// Counts uses; larger is more recent.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    /// A whole number of pages.
    bytes: Vec<u8>,
    text: SequenceId,
    used: u64,
}

impl PrefixIndex {
    /// Tokens, whole pages of them, that `bytes` begins with and that some entry holds. The last
    /// byte is never among them: its logits are yet to be computed.
    pub(super) fn shared(&self, bytes: &[u8], page_size: usize) -> usize {
        self.best(bytes, page_size).map_or(0, |(_, len)| len)
    }

    /// A text that starts with what `bytes` shares with an entry, empty if that is nothing.
    pub(super) fn fork<T: Texts>(
        &mut self,
        texts: &mut T,
        bytes: &[u8],
    ) -> Result<SequenceId, DecodeError> {
        let Some((at, len)) = self.best(bytes, texts.tables().page_size()) else {
            return Ok(texts.insert());
        };
        self.touch(at);
        texts.fork_prefix(self.entries[at].text, len)
    }

    /// Keeps the whole pages among the first `len` bytes of a text that starts with `bytes`.
    pub(super) fn keep<T: Texts>(
        &mut self,
        texts: &mut T,
        text: SequenceId,
        bytes: &[u8],
        len: usize,
    ) -> Result<(), DecodeError> {
        let page_size = texts.tables().page_size();
        let bytes = &bytes[..len.min(bytes.len()) / page_size * page_size];
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(at) = self.entries.iter().position(|entry| entry.bytes.starts_with(bytes)) {
            self.touch(at);
            return Ok(());
        }
        // Entries that this one goes on from have no more to offer.
        let (old, rest) = self.entries.drain(..).partition(|entry| bytes.starts_with(&entry.bytes));
        self.entries = rest;
        for entry in old {
            texts.remove(entry.text)?;
        }
        let text = texts.fork_prefix(text, bytes.len())?;
        self.entries.push(Entry { bytes: bytes.to_vec(), text, used: 0 });
        self.touch(self.entries.len() - 1);
        Ok(())
    }

    /// Pages that nothing but entries hold.
    pub(super) fn reclaimable(&self, tables: &PageTables) -> Result<usize, DecodeError> {
        Ok(self.unused(tables)?.len())
    }

    /// Drops the entry that was used longest ago, of those that hold a page nobody else does.
    pub(super) fn reclaim<T: Texts>(&mut self, texts: &mut T) -> Result<(), DecodeError> {
        let unused = self.unused(texts.tables())?;
        let holders = |entry: &&Entry| {
            let pages = texts.tables().pages(entry.text);
            pages.is_ok_and(|pages| pages.iter().any(|page| unused.contains_key(page)))
        };
        let oldest = self.entries.iter().filter(holders).min_by_key(|entry| entry.used);
        if let Some(text) = oldest.map(|entry| entry.text) {
            self.entries.retain(|entry| entry.text != text);
            texts.remove(text)?;
        }
        Ok(())
    }

    /// Drops every entry.
    pub(super) fn clear<T: Texts>(&mut self, texts: &mut T) -> Result<(), DecodeError> {
        self.entries.drain(..).try_for_each(|entry| texts.remove(entry.text))
    }

    /// The entry that shares most whole pages with `bytes`, and how many tokens they hold.
    fn best(&self, bytes: &[u8], page_size: usize) -> Option<(usize, usize)> {
        let most = bytes.len().saturating_sub(1);
        let common = |entry: &Entry| {
            let pairs = entry.bytes.iter().zip(&bytes[..most]);
            pairs.take_while(|(a, b)| a == b).count() / page_size * page_size
        };
        let lengths = self.entries.iter().map(common).enumerate();
        lengths.filter(|&(_, len)| len > 0).max_by_key(|&(_, len)| len)
    }

    fn touch(&mut self, at: usize) {
        self.clock += 1;
        self.entries[at].used = self.clock;
    }

    /// Pages all of whose users are entries, with the number of those.
    fn unused(&self, tables: &PageTables) -> Result<HashMap<PageId, usize>, DecodeError> {
        let mut holders = HashMap::new();
        for entry in &self.entries {
            for &page in tables.pages(entry.text).map_err(grouped_attention::Error::from)? {
                *holders.entry(page).or_insert(0) += 1;
            }
        }
        holders.retain(|&page, count| tables.users(page) == Some(*count));
        Ok(holders)
    }
}
