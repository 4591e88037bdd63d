//! A plan on a device: what one step's launches read, and which kernels they are.

use crate::abi::MaskCode;
use crate::device::Device;
use crate::driver::Address;
use crate::hopper::Loads;
use crate::launch::Kernel;
use crate::memory::DeviceBuffer;
use crate::resident::Resident;
use crate::schedule::{Schedule, Scheduler};
use grouped_attention::{Mask, PlanInfo, Planned};
use std::sync::Arc;

/// The plan of a step on a CUDA device.
///
/// Everything in it keeps its address from the moment it is made, so launches that were captured
/// into a CUDA graph see what [`update`](grouped_attention::Backend::update) writes later.
#[derive(Debug)]
pub struct CudaPlan {
    pub(crate) device: Arc<Device>,
    pub(crate) planned: Planned,
    pub(crate) resident: Resident,
    pub(crate) attention: Attention,
    pub(crate) append: Arc<Kernel>,
    /// Present where calls are replayed and kernels follow a schedule.
    pub(crate) scheduling: Option<Arc<Kernel>>,
    pub(crate) mask: MaskCode,
    /// Host memory for schedules, reused by every update.
    pub(crate) schedule: Schedule,
    /// False where writing the last step failed: the tables may then be of two steps.
    pub(crate) written: bool,
}

/// The kernels of `attend`.
#[expect(clippy::large_enum_variant, reason = "a plan has one, and few are naive")]
#[derive(Debug)]
pub(crate) enum Attention {
    Naive { kernel: Arc<Kernel>, blocks: usize },
    Tiled(Tiled),
}

/// A kernel that works through a schedule, and the one that merges what was cut.
#[derive(Debug)]
pub(crate) struct Tiled {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) combine: Arc<Kernel>,
    pub(crate) combine_blocks: usize,
    pub(crate) scheduler: Scheduler,
    /// Cached heads of an item.
    pub(crate) item_heads: usize,
    /// How a Hopper kernel reads the cache; absent for the portable ones, which take no maps.
    pub(crate) loads: Option<Loads>,
    /// Partial results `[slots, rows, d_v]` and `[slots, rows]`; absent where nothing is ever cut.
    pub(crate) partials: Option<(DeviceBuffer, DeviceBuffer)>,
}

impl Attention {
    pub(crate) fn scheduler(&self) -> Option<&Scheduler> {
        match self {
            Attention::Naive { .. } => None,
            Attention::Tiled(tiled) => Some(&tiled.scheduler),
        }
    }

    /// Bytes of device memory for partial results.
    fn workspace_bytes(&self) -> usize {
        match self {
            Attention::Tiled(Tiled { partials: Some((o, lse)), .. }) => o.bytes() + lse.bytes(),
            _ => 0,
        }
    }
}

/// How kernels are told a mask. Words of a tree can say any mask.
///
/// The kind is an argument of recorded launches, so where they are replayed it must not depend on
/// the step.
pub(crate) fn mask_code(planned: &Planned, mask: &Mask) -> MaskCode {
    match mask {
        // Every mask shows a single query all of its cache.
        _ if planned.capacity().max_q_len <= 1 => MaskCode::Full,
        _ if planned.is_replayed() => MaskCode::Tree,
        Mask::Tree(_) => MaskCode::Tree,
        Mask::Causal => MaskCode::Causal,
        Mask::Full => MaskCode::Full,
    }
}

/// Where a plan keeps what a serving engine may rewrite on the device itself, between replays of a
/// graph.
///
/// After new lengths, [`CudaBackend::reschedule`](crate::CudaBackend::reschedule) must run before
/// `attend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTables {
    /// First query of each sequence and the end of the last, i32 `[sequences + 1]`, as many as the
    /// plan's capacity has.
    pub q_starts: Address,
    /// Cached tokens of each sequence, i32 `[sequences]`.
    pub kv_lens: Address,
    /// Page ids, i32 `[sequences, row_stride]`. Ids outside the cache are found by the kernels.
    pub page_table: Address,
    /// Entries of a row.
    pub row_stride: usize,
    /// Cells of the new rows, pairs of i32: page and row within it. No two may be the same.
    pub writes: Address,
    /// The status word, u32: 0, or bit 0 set if a page id was out of range. Kernels only set it.
    pub status: Address,
}

impl CudaPlan {
    /// Addresses of what may be rewritten on the device.
    pub fn device_tables(&self) -> DeviceTables {
        let layout = &self.resident.layout;
        DeviceTables {
            q_starts: self.resident.address(&layout.q_starts),
            kv_lens: self.resident.address(&layout.kv_lens),
            page_table: self.resident.address(&layout.page_table),
            row_stride: layout.max_pages,
            writes: self.resident.address(&layout.writes),
            status: self.resident.address(&layout.status),
        }
    }

    /// Device memory that the plan holds for partial results.
    pub fn workspace_bytes(&self) -> usize {
        self.attention.workspace_bytes()
    }
}

impl PlanInfo for CudaPlan {
    fn planned(&self) -> &Planned {
        &self.planned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use grouped_attention::{Dtype, Extent, Geometry, MaskKind, Planning, Problem, Step};

    #[test]
    fn a_replayed_plan_says_every_mask_in_one_way() {
        let problem = Problem::new(Geometry::mha(1, 16).unwrap(), Dtype::Bf16, 1.0).unwrap();
        let tree = Mask::new(MaskKind::Tree(&[]), []).unwrap();
        let masks = [Mask::Causal, Mask::Full, tree];
        let codes = |max_q_len, replayed: bool| {
            masks.clone().map(|mask| {
                let step = Step::new(1, &[], mask.clone()).unwrap();
                let capacity =
                    Extent { sequences: 1, total_q: 9, max_q_len, max_kv_len: 9, writes: 0 };
                let planning = if replayed { Planning::replayed } else { Planning::with_capacity };
                mask_code(&planning(&problem, &step, capacity).unwrap().planned(), &mask)
            })
        };
        assert_eq!(codes(1, true), [MaskCode::Full; 3]);
        assert_eq!(codes(9, true), [MaskCode::Tree; 3]);
        assert_eq!(codes(9, false), [MaskCode::Causal, MaskCode::Full, MaskCode::Tree]);
    }
}
