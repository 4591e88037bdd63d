//! The kernels of `attend`: chosen and sized when a plan is made, launched when it is used.

use crate::abi;
use crate::arguments;
use crate::backend::CudaBackend;
use crate::cache::CudaCache;
use crate::error::failed;
use crate::family::{
    Choice, Items, Kernels, SCHEDULE_BYTES, combine, naive, portable, schedule_bytes,
};
use crate::hopper::{self, Loads, MapShape, NO_MAP};
use crate::launch::{Order, pointer};
use crate::memory::DeviceBuffer;
use crate::plan::{Attention, CudaPlan, Tiled};
use crate::schedule::{Scheduler, Split};
use cudarc::driver::sys::CUtensorMap;
use grouped_attention::{CacheInfo, EngineError, Extent, Problem, Unsupported};

/// Tiles of a piece in batch-invariant mode: 2048 tokens.
const INVARIANT_TILES: usize = 32;
/// Tiles below which a piece is not worth its partial result.
const MIN_TILES: usize = 4;
/// Device memory for partial results above which sequences are cut into fewer parts.
const PARTIALS_BYTES: usize = 256 << 20;

/// A kernel that works through a schedule.
pub(crate) struct Found {
    choice: Choice,
    items: Items,
    loads: Option<Loads>,
}

impl CudaBackend {
    /// The kernel for a problem, with what it needs: the highest rung that has one.
    pub(crate) fn found(
        &self,
        problem: &Problem,
        capacity: &Extent,
        page_size: usize,
    ) -> Option<Found> {
        let device = &self.shared.device;
        if self.kernels == Kernels::Hopper
            && device.capability() == (9, 0)
            && let Some((choice, items, loads)) =
                hopper::choose(problem, capacity, page_size, device.has_fast_memory())
        {
            return Some(Found { choice, items, loads: Some(loads) });
        }
        if self.kernels == Kernels::Naive {
            return None;
        }
        let (choice, tile) = portable(problem, capacity, device.shared_bytes())?;
        Some(Found { choice, items: Items { rows: tile.rows, heads: 1 }, loads: None })
    }

    pub(crate) fn attention(
        &self,
        problem: &Problem,
        capacity: &Extent,
        page_size: usize,
    ) -> Result<Attention, EngineError> {
        let device = &self.shared.device;
        let Some(Found { choice, items, loads }) = self.found(problem, capacity, page_size) else {
            let kernel = self.shared.kernel(&naive(problem))?;
            let blocks = kernel.blocks_per_multiprocessor()?.max(1) * device.multiprocessors();
            return Ok(Attention::Naive { kernel, blocks });
        };
        let kernel = self.shared.kernel(&choice)?;
        let resident = kernel.blocks_per_multiprocessor()?;
        if resident == 0 {
            return Err(failed(format!("{} does not fit the device", choice.instance)));
        }
        let blocks = resident * device.multiprocessors();
        let slot_rows = items.rows * items.heads;
        let width_v = problem.geometry().width_v();
        let slot_bytes = slot_rows * 4 * (width_v + 1);
        let mut scheduler = scheduler(problem, capacity, items, blocks, slot_bytes);
        if loads.is_some() {
            tune_for_hopper(&mut scheduler, width_v);
        }
        let slots = scheduler.bounds(capacity).slots;
        let partials = if slots == 0 {
            None
        } else {
            let bytes = slots.saturating_mul(slot_rows * 4);
            let o = DeviceBuffer::new(device, bytes.saturating_mul(width_v))?;
            Some((o, DeviceBuffer::new(device, bytes)?))
        };
        let combine = self.shared.kernel(&combine(problem))?;
        // As many blocks as are resident together: each waits for the attention kernel, and those
        // behind them would start only when the first are done.
        let combine_blocks = combine.blocks_per_multiprocessor()?.max(1) * device.multiprocessors();
        let item_heads = items.heads;
        Ok(Attention::Tiled(Tiled {
            kernel,
            combine,
            combine_blocks,
            scheduler,
            item_heads,
            loads,
            partials,
        }))
    }

    /// Makes a replayed plan's schedule anew on the device, from the lengths that stand in its
    /// [device tables](CudaPlan::device_tables). Recorded into a graph before `attend`, it makes
    /// replays follow lengths that the host never sees.
    ///
    /// Lengths beyond the plan's capacity are reported by
    /// [`status`](grouped_attention::Backend::status), and nothing is computed for them.
    ///
    /// # Errors
    /// A plan that was not made by
    /// [`Planning::replayed`](grouped_attention::Planning::replayed), or of some thousand
    /// sequences; a failing device.
    pub fn reschedule(&self, plan: &mut CudaPlan) -> Result<(), EngineError> {
        self.check_plan(plan)?;
        let unsupported = |what: String| Err(Unsupported::Other { what }.into());
        let Some(argument) = arguments::scheduling(plan) else {
            return Ok(());
        };
        let Some(kernel) = &plan.scheduling else {
            return unsupported("scheduling on the device for a plan that is not replayed".into());
        };
        let sequences = plan.planned.capacity().sequences;
        let teams = plan.attention.scheduler().map_or(0, |scheduler| scheduler.teams);
        if schedule_bytes(sequences, teams) > SCHEDULE_BYTES {
            return unsupported(format!("scheduling {sequences} sequences on the device"));
        }
        // SAFETY: the plan's sections have the capacities that the argument says, and outlive the
        // launch, since freeing waits.
        unsafe { kernel.launch(&self.stream, 1, [pointer(&argument)], Order::After) }?;
        Ok(())
    }

    /// Maps of states and rope keys; they hold addresses alone, so making them costs the host little
    /// and the device nothing.
    fn tensor_maps(
        &self,
        loads: Loads,
        cache: &CudaCache,
    ) -> Result<[CUtensorMap; 2], EngineError> {
        let Loads::Boxes { state, rope } = loads else {
            return Ok([NO_MAP; 2]);
        };
        let layout = cache.layout();
        let widths = layout.geometry().row().part_heads();
        let map = |which: usize, copied| {
            let (heads, width) = widths[which];
            let part = &cache.parts()[which];
            let (pages, page_size) = (layout.pages(), layout.page_size());
            let shape = MapShape::new(part, pages, page_size, heads, width, copied);
            self.shared.device.tensor_map(&shape)
        };
        Ok([map(0, state)?, rope.map_or(Ok(NO_MAP), |copied| map(1, copied))?])
    }

    pub(crate) fn launch_tiled(
        &self,
        plan: &CudaPlan,
        tiled: &Tiled,
        argument: &abi::Attend,
        cache: &CudaCache,
    ) -> Result<(), EngineError> {
        let scheduler = &tiled.scheduler;
        // Schedules of replayed plans change without the host.
        let nothing_cut = !plan.planned.is_replayed() && plan.schedule.slots == 0;
        let blocks = scheduler.teams * scheduler.team;
        let kernel = &tiled.kernel;
        if let Some(loads) = tiled.loads {
            let maps = self.tensor_maps(loads, cache)?;
            let arguments = [pointer(argument), pointer(&maps[0]), pointer(&maps[1])];
            // Where kernels follow each other, as layers do in a graph, setting up hides behind the end
            // of the one before. PERF: GLA, q_len 1, replayed, in this order / after: B 1, L 65536
            // 35.9 / 36.8 us, B 16, L 8192 63.3 / 63.7.
            // SAFETY: as in `attend`; the plan's schedule was made for this grid, and the kernel waits
            // for what comes before it until it reads anything.
            unsafe { kernel.launch(&self.stream, blocks, arguments, Order::Overlapping) }?;
        } else {
            // SAFETY: as above.
            unsafe { kernel.launch(&self.stream, blocks, [pointer(argument)], Order::After) }?;
        }
        if tiled.partials.is_none() || nothing_cut {
            return Ok(());
        }
        let merge = abi::Combine {
            out: argument.out,
            schedule: argument.schedule,
            partials: argument.partials,
            group: argument.group,
            h: argument.h,
            o_is_f32: argument.o_is_f32,
            reserved: 0,
        };
        let overlaps = self.shared.device.capability().0 >= 9;
        let order = if overlaps { Order::Overlapping } else { Order::After };
        // SAFETY: as above; the kernel waits for the attention kernel before it reads.
        unsafe {
            tiled.combine.launch(&self.stream, tiled.combine_blocks, [pointer(&merge)], order)
        }?;
        Ok(())
    }
}

/// Costs as the Hopper kernels have them, and how many numbers of teams are tried.
fn tune_for_hopper(scheduler: &mut Scheduler, width_v: usize) {
    // PERF: 64 ragged sequences of GLA, an item as 4 / 6 / 8 / 10 / 14 tiles: q_len 1 345 / 342 / 340 /
    // 340 / 346 us, q_len 2 368 / 361 / 356 / 354 / 360. Tiles of MLA are as long again: at q_len 2,
    // 128 equal sequences, 4 / 8: 921 / 935; and so are its partial results: on 33 teams, cut, 916, on
    // 32, whole, 898.
    let (item_tiles, cut_cost) = if width_v > 256 { (4, 64) } else { (8, 16) };
    scheduler.item_tiles = item_tiles;
    scheduler.split = match scheduler.split {
        Split::Invariant { .. } => Split::Invariant { unit_tiles: 128 },
        Split::Balanced { min_tiles, .. } => Split::Balanced {
            min_tiles,
            candidates: (scheduler.teams / 8).max(1),
            saturation: scheduler.teams,
            cut_cost,
        },
    };
}

/// How portable kernels share a step: as many teams as blocks fit the device at a time, a team as
/// large as a usual sequence has lanes, so that lanes of one range run side by side.
fn scheduler(
    problem: &Problem,
    capacity: &Extent,
    items: Items,
    blocks: usize,
    slot_bytes: usize,
) -> Scheduler {
    let geometry = problem.geometry();
    let usual_q_len = capacity.total_q.div_ceil(capacity.sequences.max(1));
    let row_tiles = (usual_q_len * geometry.group()).div_ceil(items.rows).max(1);
    let head_blocks = geometry.heads().div_ceil(items.heads);
    let mut scheduler = Scheduler {
        group: geometry.group(),
        head_blocks,
        item_rows: items.rows,
        teams: 1,
        team: (head_blocks * row_tiles).min(blocks),
        item_tiles: 2,
        split: Split::Balanced {
            min_tiles: MIN_TILES,
            candidates: 1,
            saturation: usize::MAX,
            cut_cost: 0,
        },
    };
    if problem.is_batch_invariant() {
        scheduler.split = Split::Invariant { unit_tiles: INVARIANT_TILES };
        scheduler.teams = (blocks / scheduler.team).max(1);
        return scheduler;
    }
    loop {
        scheduler.teams = (blocks / scheduler.team).max(1);
        let bytes = scheduler.bounds(capacity).slots.saturating_mul(slot_bytes);
        if bytes <= PARTIALS_BYTES || scheduler.team >= blocks {
            return scheduler;
        }
        // Larger teams are fewer, and fewer teams cut less.
        scheduler.team = (scheduler.team * 2).min(blocks);
    }
}
