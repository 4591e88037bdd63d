//! Calls as the structs that kernels take.

use crate::abi;
use crate::backend::CudaBackend;
use crate::cache::CudaCache;
use crate::plan::{Attention, CudaPlan, Tiled};
use crate::schedule::Split;
use crate::tensor::CudaTensor;
use grouped_attention::{Append, Attend, CacheInfo, Dtype, Planned, RopeStyle, Row, TensorInfo};

pub(crate) fn append(call: &Append<'_, CudaBackend>) -> abi::Append {
    let parts = call.cache.parts();
    let widths = call.cache.layout().geometry().row().part_heads();
    let part = |which: usize, tensor: Option<&CudaTensor>| {
        let (heads, width) = widths[which];
        tensor.filter(|_| width > 0).map_or_else(abi::NewRows::default, |tensor| abi::NewRows {
            data: tensor.address(),
            cells: parts[which].address,
            row_stride: tensor.stride(0),
            // Rope keys are [writes, r]: one head.
            head_stride: if tensor.shape().len() == 3 { tensor.stride(1) } else { 0 },
            page_stride: parts[which].page_stride as i64,
            token_stride: parts[which].token_stride as i64,
            cell_head_stride: if heads > 1 { parts[which].head_stride as i64 } else { 0 },
            heads: heads as i32,
            width: width as i32,
        })
    };
    let problem = call.plan.planned.problem();
    let rotated = match problem.geometry().row() {
        _ if !call.rotating => -1,
        Row::Separate { .. } => 0,
        Row::Tied { .. } => 1,
    };
    let interleaved = problem.rope().is_some_and(|rope| rope.style() == RopeStyle::Interleaved);
    let (resident, layout) = (&call.plan.resident, &call.plan.resident.layout);
    abi::Append {
        part: [part(0, Some(call.first)), part(1, call.second)],
        writes: resident.address(&layout.writes),
        write_count: resident.address(&layout.write_count),
        turns: resident.address(&layout.turns),
        status: resident.address(&layout.status),
        pages: call.cache.layout().pages() as i32,
        rotated,
        interleaved: i32::from(interleaved),
        reserved: 0,
    }
}

pub(crate) fn attend(call: &Attend<'_, CudaBackend>) -> abi::Attend {
    let plan = &*call.plan;
    let planned: &Planned = &plan.planned;
    let (problem, geometry) = (planned.problem(), planned.problem().geometry());
    let [state, rope] = call.cache.parts();
    let lse = call.lse.as_deref();
    abi::Attend {
        q: abi::Queries {
            data: call.q.address(),
            row_stride: call.q.stride(0),
            head_stride: call.q.stride(1),
        },
        state: state.to_abi(),
        rope: rope.to_abi(),
        out: abi::Outputs {
            o: call.o.address(),
            lse: lse.map_or(0, CudaTensor::address),
            o_row_stride: call.o.stride(0),
            o_head_stride: call.o.stride(1),
            lse_row_stride: lse.map_or(0, |lse| lse.stride(0)),
            lse_head_stride: lse.map_or(0, |lse| lse.stride(1)),
        },
        batch: batch(plan, call.cache),
        schedule: schedule(plan),
        partials: partials(plan),
        status: plan.resident.address(&plan.resident.layout.status),
        scale_log2: (problem.scale() * std::f64::consts::LOG2_E) as f32,
        h_q: geometry.h_q() as i32,
        h: geometry.heads() as i32,
        group: geometry.group() as i32,
        o_is_f32: i32::from(problem.output() == Dtype::F32),
        reserved: 0,
    }
}

fn batch(plan: &CudaPlan, cache: &CudaCache) -> abi::Batch {
    let (resident, layout) = (&plan.resident, &plan.resident.layout);
    abi::Batch {
        q_starts: resident.address(&layout.q_starts),
        kv_lens: resident.address(&layout.kv_lens),
        page_table: resident.address(&layout.page_table),
        tree: resident.address(&layout.tree),
        page_table_stride: layout.max_pages as i64,
        tree_stride: layout.tree_words as i64,
        batch: plan.planned.capacity().sequences as i32,
        pages: cache.layout().pages() as i32,
        page_size: plan.planned.page_size() as i32,
        mask: plan.mask,
    }
}

fn schedule(plan: &CudaPlan) -> abi::Schedule {
    let Attention::Tiled(Tiled { scheduler, item_heads, .. }) = &plan.attention else {
        return abi::Schedule::default();
    };
    let (resident, layout) = (&plan.resident, &plan.resident.layout);
    abi::Schedule {
        team_pieces: resident.address(&layout.team_pieces),
        pieces: resident.address(&layout.pieces),
        merge_counts: resident.address(&layout.merge_counts),
        merges: resident.address(&layout.merges),
        teams: scheduler.teams as i32,
        team: scheduler.team as i32,
        head_blocks: scheduler.head_blocks as i32,
        item_heads: *item_heads as i32,
        item_rows: scheduler.item_rows as i32,
        merge_capacity: layout.max_merges as i32,
    }
}

/// What the device's scheduler is told; absent where nothing is scheduled.
pub(crate) fn scheduling(plan: &CudaPlan) -> Option<abi::Scheduling> {
    let scheduler = plan.attention.scheduler()?;
    let (resident, layout) = (&plan.resident, &plan.resident.layout);
    let capacity = plan.planned.capacity();
    let bounds = scheduler.bounds(capacity);
    let (split, unit_tiles, [min_tiles, candidates, saturation, cut_cost]) = match scheduler.split {
        Split::Balanced { min_tiles, candidates, saturation, cut_cost } => {
            (0, 0, [min_tiles, candidates, saturation, cut_cost])
        }
        Split::Invariant { unit_tiles } => (1, unit_tiles, [1, 1, 1, 0]),
    };
    let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    Some(abi::Scheduling {
        q_starts: resident.address(&layout.q_starts),
        kv_lens: resident.address(&layout.kv_lens),
        team_pieces: resident.address(&layout.team_pieces),
        pieces: resident.address(&layout.pieces),
        merge_counts: resident.address(&layout.merge_counts),
        merges: resident.address(&layout.merges),
        status: resident.address(&layout.status),
        batch: number(capacity.sequences),
        group: number(scheduler.group),
        head_blocks: number(scheduler.head_blocks),
        item_rows: number(scheduler.item_rows),
        teams: number(scheduler.teams),
        team: number(scheduler.team),
        split,
        item_tiles: number(scheduler.item_tiles),
        unit_tiles: number(unit_tiles),
        min_tiles: number(min_tiles),
        candidates: number(candidates),
        saturation: number(saturation),
        cut_cost: number(cut_cost),
        piece_capacity: number(bounds.pieces),
        merge_capacity: number(layout.max_merges),
        slot_capacity: number(bounds.slots),
        row_capacity: number(capacity.total_q),
        q_len_capacity: number(capacity.max_q_len),
        kv_len_capacity: number(capacity.max_kv_len),
        reserved: 0,
    })
}

fn partials(plan: &CudaPlan) -> abi::Partials {
    match &plan.attention {
        Attention::Tiled(Tiled { partials: Some((o, lse)), .. }) => {
            abi::Partials { o: o.address(), lse: lse.address() }
        }
        _ => abi::Partials::default(),
    }
}
