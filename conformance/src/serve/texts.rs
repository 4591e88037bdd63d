//! What a server needs of a model: texts in caches, steps over them, and rows that come and go.

use crate::lm::{DecodeError, Decoder, SavedRows};
use grouped_attention::{Backend, PageTables, SequenceId};

/// Texts of a model in the pages of its caches.
///
/// [`Decoder`] is the one that computes; a test may put any function of the bytes in its place.
pub trait Texts {
    /// A text's rows on the host.
    type Saved;

    /// Which text has which pages.
    fn tables(&self) -> &PageTables;

    /// A new, empty text.
    fn insert(&mut self) -> SequenceId;

    /// Ends a text and frees its pages.
    ///
    /// # Errors
    /// An unknown text.
    fn remove(&mut self, text: SequenceId) -> Result<(), DecodeError>;

    /// Takes the last bytes of a text back, down to `len`.
    ///
    /// # Errors
    /// An unknown text, or a length beyond it.
    fn truncate(&mut self, text: SequenceId, len: usize) -> Result<(), DecodeError>;

    /// A second text of the first `len` bytes, sharing their full pages.
    ///
    /// # Errors
    /// An unknown text, or a length beyond it; no page for the copy of a partly filled one.
    fn fork_prefix(&mut self, text: SequenceId, len: usize) -> Result<SequenceId, DecodeError>;

    /// Appends bytes to several texts and returns the logits that follow each of them,
    /// `[total, 256]`.
    ///
    /// # Errors
    /// An unknown text; too few free pages; a failing engine.
    fn step(&mut self, batch: &[(SequenceId, &[u8])]) -> Result<Vec<f64>, DecodeError>;

    /// Copies a text's rows to the host.
    ///
    /// # Errors
    /// An unknown text; a failing engine.
    fn save(&self, text: SequenceId) -> Result<Self::Saved, DecodeError>;

    /// Lengthens a text that starts like the saved one to all of it.
    ///
    /// # Errors
    /// An unknown text; too few free pages; a failing engine.
    fn restore(&mut self, text: SequenceId, saved: &Self::Saved) -> Result<(), DecodeError>;
}

impl<B: Backend> Texts for Decoder<'_, B> {
    type Saved = SavedRows;

    fn tables(&self) -> &PageTables {
        self.tables()
    }

    fn insert(&mut self) -> SequenceId {
        self.insert()
    }

    fn remove(&mut self, text: SequenceId) -> Result<(), DecodeError> {
        self.remove(text)
    }

    fn truncate(&mut self, text: SequenceId, len: usize) -> Result<(), DecodeError> {
        self.truncate(text, len)
    }

    fn fork_prefix(&mut self, text: SequenceId, len: usize) -> Result<SequenceId, DecodeError> {
        self.fork_prefix(text, len)
    }

    fn step(&mut self, batch: &[(SequenceId, &[u8])]) -> Result<Vec<f64>, DecodeError> {
        self.step(batch)
    }

    fn save(&self, text: SequenceId) -> Result<SavedRows, DecodeError> {
        self.save(text)
    }

    fn restore(&mut self, text: SequenceId, saved: &SavedRows) -> Result<(), DecodeError> {
        self.restore(text, saved)
    }
}
