//! One text being decoded.

use super::decoder::{DecodeError, Decoder, Timing};
use super::model::Model;
use grouped_attention::{Backend, Dtype, SequenceId};

/// A [`Decoder`] of a single text.
#[derive(Debug)]
pub struct Session<'a, B: Backend> {
    decoder: Decoder<'a, B>,
    text: SequenceId,
}

impl<'a, B: Backend> Session<'a, B> {
    /// An empty text with room for `bytes` bytes in pages of `page_size`.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn new(
        model: &'a Model,
        backend: &'a B,
        dtype: Dtype,
        page_size: usize,
        bytes: usize,
    ) -> Result<Session<'a, B>, DecodeError> {
        // A page size of 0 is the decoder's to refuse.
        let pages = bytes.div_ceil(page_size.max(1));
        let mut decoder = Decoder::new(model, backend, dtype, page_size, pages)?;
        let text = decoder.insert();
        Ok(Session { decoder, text })
    }

    /// Time spent so far.
    pub fn timing(&self) -> Timing {
        self.decoder.timing()
    }

    /// Appends bytes and returns the logits that follow each of them, `[T, 256]`.
    ///
    /// # Errors
    /// More bytes than there is room for; a failing engine.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Vec<f64>, DecodeError> {
        self.decoder.step(&[(self.text, bytes)])
    }

    /// Takes the last bytes back, down to `len`.
    ///
    /// # Errors
    /// A length beyond the text.
    pub fn truncate(&mut self, len: usize) -> Result<(), DecodeError> {
        self.decoder.truncate(self.text, len)
    }
}
