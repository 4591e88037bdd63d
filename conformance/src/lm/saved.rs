//! Moving a text's cache rows to the host and back, as a preemption does.

use super::decoder::{DecodeError, Decoder};
use grouped_attention::{
    Append, Backend, Error, HostTensor, Mask, Planning, ReadRows, SequenceId, Slot, Step, Upload,
    Values, Write,
};

/// The cache rows of a text on the host, bit for bit.
#[derive(Clone, Debug)]
pub struct SavedRows {
    len: usize,
    /// Per layer `[len, h, d_k]` and `[len, h, d_v]`, or `[len, h, s]` and `[len, r]`.
    layers: Vec<[HostTensor; 2]>,
}

impl SavedRows {
    /// Bytes of text whose rows these are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<B: Backend> Decoder<'_, B> {
    /// Copies a text's rows of all layers to the host. The text stays as it is.
    ///
    /// # Errors
    /// An unknown text; a failing engine.
    pub fn save(&self, text: SequenceId) -> Result<SavedRows, DecodeError> {
        let len = self.tables.len(text).map_err(Error::from)?;
        let slots = self.slots(text, 0)?;
        let layers = self.caches.iter().map(|cache| {
            let call = ReadRows::new(cache, &slots).map_err(Error::from)?;
            Ok(self.backend.read_rows(call).map_err(Error::from)?)
        });
        Ok(SavedRows { len, layers: layers.collect::<Result<_, DecodeError>>()? })
    }

    /// Lengthens a text that starts like the saved one to all of it: the rows it lacks come from
    /// the host.
    ///
    /// # Errors
    /// An unknown text, or one longer than the saved one; too few free pages, and then the text
    /// has not changed; a failing engine.
    pub fn restore(&mut self, text: SequenceId, saved: &SavedRows) -> Result<(), DecodeError> {
        let first = self.tables.len(text).map_err(Error::from)?;
        let Some(rows) = saved.len.checked_sub(first) else {
            return Err(DecodeError::LongerThanSaved { len: first, saved: saved.len });
        };
        let copies = self.tables.extend(text, rows).map_err(Error::from)?;
        self.copy(&copies)?;
        let writes = self.slots(text, first)?.into_iter().zip(first as i64..);
        let writes = writes.map(|(slot, position)| Write { slot, position }).collect();
        // No query: the step is there to write.
        let step = Step::new(self.tables.page_size(), &[], Mask::Causal)
            .and_then(|step| step.writing(writes))
            .map_err(Error::from)?;
        let plan = self.backend.plan(Planning::new(&self.problem, &step)).map_err(Error::from)?;
        let (first_shape, second_shape) = self.row_shapes(rows);
        for (index, [states, rest]) in saved.layers.iter().enumerate() {
            let states = self.upload_tail(states, first, &first_shape)?;
            let rest = second_shape.as_ref().map(|shape| self.upload_tail(rest, first, shape));
            let rest = rest.transpose()?;
            let cache = &mut self.caches[index];
            let call = Append::new(&plan, cache, &states, rest.as_ref()).map_err(Error::from)?;
            self.backend.append(call).map_err(Error::from)?;
        }
        Ok(())
    }

    /// The cells of a text's rows, from position `first` on.
    fn slots(&self, text: SequenceId, first: usize) -> Result<Vec<Slot>, DecodeError> {
        let page_size = self.tables.page_size();
        let pages = self.tables.pages(text).map_err(Error::from)?;
        let len = self.tables.len(text).map_err(Error::from)?;
        let slot = |position| Slot { page: pages[position / page_size], row: position % page_size };
        Ok((first..len).map(slot).collect())
    }

    /// An engine's tensor of a host tensor's rows from `first` on.
    fn upload_tail(
        &self,
        host: &HostTensor,
        first: usize,
        shape: &[usize],
    ) -> Result<B::Tensor, DecodeError> {
        let skip = first * shape[1..].iter().product::<usize>();
        let values = match host.values() {
            Values::F32(values) => Values::F32(values[skip..].to_vec()),
            Values::F16(values) => Values::F16(values[skip..].to_vec()),
            Values::Bf16(values) => Values::Bf16(values[skip..].to_vec()),
        };
        let tail = HostTensor::new(shape, values).map_err(Error::from)?;
        let mut tensor = self.backend.allocate(tail.dtype(), shape).map_err(Error::from)?;
        let call = Upload::new(&mut tensor, &tail).map_err(Error::from)?;
        self.backend.upload(call).map_err(Error::from)?;
        Ok(tensor)
    }
}
