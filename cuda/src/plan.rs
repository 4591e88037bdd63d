//! A plan on a device: what one step's launches read, and which kernels they are.

use crate::abi::MaskCode;
use crate::device::Device;
use crate::driver::Address;
use crate::launch::Kernel;
use crate::memory::DeviceBuffer;
use crate::resident::Resident;
use crate::schedule::{Schedule, Scheduler};
use grouped_attention::{Extent, Mask, PlanInfo, Planned};
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
    pub(crate) mask: PlannedMask,
    /// Host memory for schedules, reused by every update.
    pub(crate) schedule: Schedule,
}

/// The kernels of `attend`.
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
    pub(crate) scheduler: Scheduler,
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

/// How a plan's kernels are told the mask. The kind is an argument of captured launches, so it must
/// not change where plans are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlannedMask {
    /// No sequence ever has two queries: every mask shows all of the cache.
    Full,
    /// Words per query, which can say any mask.
    Words,
    /// The kind itself. Words for long drafts would outweigh the queries.
    Kind(MaskCode),
}

impl PlannedMask {
    /// Longest draft whose mask is always kept as words.
    const MAX_DRAFT: usize = 64;

    pub(crate) fn new(mask: &Mask, capacity: &Extent) -> PlannedMask {
        match (mask, capacity.max_q_len) {
            (_, 0 | 1) => PlannedMask::Full,
            (_, ..=Self::MAX_DRAFT) | (Mask::Tree(_), _) => PlannedMask::Words,
            (Mask::Causal, _) => PlannedMask::Kind(MaskCode::Causal),
            (Mask::Full, _) => PlannedMask::Kind(MaskCode::Full),
        }
    }

    /// True if a step with this mask can be written to the plan.
    pub(crate) fn takes(self, mask: &Mask) -> bool {
        match (self, mask) {
            (PlannedMask::Full | PlannedMask::Words, _) => true,
            (PlannedMask::Kind(kind), Mask::Causal) => kind == MaskCode::Causal,
            (PlannedMask::Kind(kind), Mask::Full) => kind == MaskCode::Full,
            (PlannedMask::Kind(_), Mask::Tree(_)) => false,
        }
    }

    pub(crate) fn code(self) -> MaskCode {
        match self {
            PlannedMask::Full => MaskCode::Full,
            PlannedMask::Words => MaskCode::Tree,
            PlannedMask::Kind(kind) => kind,
        }
    }
}

/// Where a plan keeps what a serving engine may rewrite on the device itself, between replays of a
/// graph.
///
/// The schedule stays that of the last update, so lengths on the device are not among these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTables {
    /// Page ids, i32 `[sequences, row_stride]`. Ids outside the cache are found by the kernels.
    pub page_table: Address,
    /// Entries of a row.
    pub row_stride: usize,
    /// The status word, u32: 0, or bit 0 set if a page id was out of range. Kernels only set it.
    pub status: Address,
}

impl CudaPlan {
    /// Addresses of what may be rewritten on the device.
    pub fn device_tables(&self) -> DeviceTables {
        let layout = &self.resident.layout;
        DeviceTables {
            page_table: self.resident.address(&layout.page_table),
            row_stride: layout.max_pages,
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
    use grouped_attention::MaskKind;

    #[test]
    fn short_drafts_take_any_mask() {
        let extent =
            |max_q_len| Extent { sequences: 1, total_q: 1, max_q_len, max_kv_len: 1, writes: 0 };
        let tree = Mask::new(MaskKind::Tree(&[-1]), [1]).unwrap();
        for mask in [Mask::Causal, Mask::Full, tree.clone()] {
            assert_eq!(PlannedMask::new(&mask, &extent(1)), PlannedMask::Full);
            assert_eq!(PlannedMask::new(&mask, &extent(64)), PlannedMask::Words);
        }
        let long = PlannedMask::new(&Mask::Causal, &extent(65));
        assert!(long.takes(&Mask::Causal) && !long.takes(&Mask::Full) && !long.takes(&tree));
        assert_eq!(PlannedMask::new(&tree, &extent(65)), PlannedMask::Words);
    }
}
