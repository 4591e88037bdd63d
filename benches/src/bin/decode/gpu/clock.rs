//! Events of the device around what it does.

use super::device::Device;
use crate::rig::Outcome;
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;

impl Device {
    /// Seconds that each of `count` calls takes on the device, `before` done ahead of each. All are
    /// issued before the first is waited for.
    pub(super) fn times(
        &self,
        count: usize,
        mut before: impl FnMut() -> Outcome<()>,
        mut call: impl FnMut() -> Outcome<()>,
    ) -> Outcome<Vec<f64>> {
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            before()?;
            let start = self.now()?;
            call()?;
            pairs.push((start, self.now()?));
        }
        self.stream.synchronize()?;
        pairs.iter().map(|(start, end)| Ok(f64::from(start.elapsed_ms(end)?) / 1e3)).collect()
    }

    fn now(&self) -> Outcome<CudaEvent> {
        Ok(self.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?)
    }
}
