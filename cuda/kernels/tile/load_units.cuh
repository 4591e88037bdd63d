// Producers of tiles in units (tile/units.cuh), through tensor maps or row by row.
//
// An item without tokens, whose sequence is empty, has one tile all the same, of which nobody sees anything.
#pragma once

#include "ptx/copy.cuh"
#include "tile/item.cuh"
#include "tile/load_boxes.cuh"
#include "tile/load_rows.cuh"
#include "tile/units.cuh"

// Called by a warp. Boxes of both maps are 5-D: (64 columns, token, block of 64 columns, head, page); one of the
// state map has the tokens of a tile and the blocks of a unit. Of pages see load_boxes.cuh.
template <class Units>
__device__ __forceinline__ void load_item_unit_boxes(const Item& item, const Batch& batch,
                                                     const TensorMap* state_map,
                                                     const TensorMap* rope_map, Units& tiles,
                                                     UnitRing<Units>& ring, UnitCursor<Units>& at,
                                                     u32* status) {
  const i32 lane = threadIdx.x % 32;
  const i32* table = batch.page_table + item.piece.sequence * batch.page_table_stride;
  const i32 kv_end = item.piece.kv_end;
  const bool brief = kv_end - item.piece.kv_begin <= SHORT_ITEM_TOKENS;
  const u64 policy = brief ? ptx::EVICT_FIRST : ptx::EVICT_NORMAL;
  i32 kv = item.piece.kv_begin;
  i32 lane_page = 0;
  for (i32 step = 0; step < item.tiles(); ++step, kv += TILE_TOKENS) {
    const i32 lane_kv = kv + lane * TILE_TOKENS;
    if (step % 32 == 0 && lane_kv < kv_end) lane_page = table[lane_kv / batch.page_size];
    const i32 page = __shfl_sync(~0u, lane_page, step % 32);
    if (lane == 0) {
      const bool empty = kv >= kv_end;
      const i32 token = kv % batch.page_size;
      const bool bad = !empty && (page < 0 || page >= batch.pages);
      if (bad) atomicOr(status, STATUS_BAD_PAGE);
#pragma unroll
      for (i32 index = 0; index < Units::TILE_UNITS; ++index) {
        // The rope key is needed before the last unit.
        if (index == Units::TILE_UNITS - 1) {
          const i32 side = at.side.stage;
          u64* full = &ring.side_full[side];
          ptx::mbarrier_wait(&ring.side_empty[side], at.side.parity ^ 1);
          ring.bad_page[side] = bad;
          if (empty || Units::ROPE_BLOCKS == 0) {
            ptx::mbarrier_arrive(full);
          } else {
            ptx::mbarrier_arrive_expect(full, Units::ROPE_BLOCKS * sizeof(Block<64>));
            ptx::copy_box_5d(tiles.sides[side].blocks, rope_map, full, ptx::EVICT_NORMAL, 0, token, 0, 0, page);
          }
        }
        const Cursor<Units::UNITS> unit = at.unit(index);
        u64* full = &ring.unit_full[unit.stage];
        ptx::mbarrier_wait(&ring.unit_empty[unit.stage], unit.parity ^ 1);
        if (empty) {
          ptx::mbarrier_arrive(full);
        } else {
          ptx::mbarrier_arrive_expect(full, sizeof(Unit));
          ptx::copy_box_5d(tiles.units[unit.stage].blocks, state_map, full, policy, 0, token,
                           index * UNIT_BLOCKS, item.head, page);
        }
      }
    }
    at.advance();
  }
}

// ROW_PRODUCERS arrivals: every thread's when what it copied so far has landed, and a lane's a warp now.
__device__ __forceinline__ void announce(u64* full) {
  ptx::mbarrier_arrive_after_copies(full);
  if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(full);
}

// Called by four warps, each of which fills a quarter of the rows of every unit. A row is found by one lane,
// its page a tile before it is needed, and handed round once a tile. The side is announced with all units but
// the last, which is: before the tensor cores may read what is announced there must be a fence.
// PERF: MLA, 128 heads, 128 sequences of 8192, pages of 1, q_len 2: rows handed round for every unit 1363 us, found
// by all lanes that copy from them 1202, and every unit announced 1209.
template <class Units>
__device__ __forceinline__ void load_item_unit_rows(const Item& item, const Attend& a, Units& tiles,
                                                    UnitRing<Units>& ring, UnitCursor<Units>& at) {
  constexpr i32 WARP_ROWS = TILE_TOKENS / ROW_PRODUCER_WARPS;
  constexpr i32 LANE_ROWS = WARP_ROWS / ROWS_PER_COPY;
  const i32 lane = threadIdx.x % 32;
  const i32 warp = threadIdx.x / 32 % ROW_PRODUCER_WARPS;
  const i32 first_row = warp * WARP_ROWS + lane / VECTORS_PER_ROW;
  const i32* table = a.batch.page_table + item.piece.sequence * a.batch.page_table_stride;
  const i32 kv_end = item.piece.kv_end;

  i32 token = item.piece.kv_begin + warp * WARP_ROWS + lane % WARP_ROWS;
  i32 next_page = find_page(a.batch, table, token, kv_end);
  for (i32 left = item.tiles(); left > 0; --left) {
    const RowSource found = find_row(a, next_page, item.head, 0, token, kv_end);
    token += TILE_TOKENS;
    next_page = find_page(a.batch, table, token, kv_end);
    const bool bad = __any_sync(~0u, found.bad);
    const u16* state[LANE_ROWS];
    const u16* rope[LANE_ROWS];
    bool valid[LANE_ROWS];
#pragma unroll
    for (i32 i = 0; i < LANE_ROWS; ++i) {
      const i32 from = i * ROWS_PER_COPY + lane / VECTORS_PER_ROW;
      state[i] = static_cast<const u16*>(a.state.data) + __shfl_sync(~0u, found.state, from);
      rope[i] = static_cast<const u16*>(a.rope.data) + __shfl_sync(~0u, found.rope, from);
      valid[i] = __shfl_sync(~0u, found.valid, from);
    }

    const auto copy_unit = [&](i32 index) {
      const Cursor<Units::UNITS> unit = at.unit(index);
      ptx::mbarrier_wait(&ring.unit_empty[unit.stage], unit.parity ^ 1);
#pragma unroll
      for (i32 i = 0; i < LANE_ROWS; ++i) {
        copy_four_rows<UNIT_BLOCKS>(tiles.units[unit.stage].blocks,
                                    state[i] + index * UNIT_BLOCKS * BLOCK_COLUMNS,
                                    first_row + i * ROWS_PER_COPY, valid[i]);
      }
    };
    constexpr i32 LAST = Units::TILE_UNITS - 1;
#pragma unroll
    for (i32 index = 0; index < LAST; ++index) copy_unit(index);
    const i32 side = at.side.stage;
    ptx::mbarrier_wait(&ring.side_empty[side], at.side.parity ^ 1);
#pragma unroll
    for (i32 i = 0; Units::ROPE_BLOCKS > 0 && i < LANE_ROWS; ++i) {
      copy_four_rows<Units::ROPE_BLOCKS>(tiles.sides[side].blocks, rope[i],
                                         first_row + i * ROWS_PER_COPY, valid[i]);
    }
    if (lane == 0) {
      if (bad) atomicOr(a.status, STATUS_BAD_PAGE);
      reinterpret_cast<unsigned char*>(&ring.bad_page[side])[warp] = bad;
    }
    announce(&ring.side_full[side]);
    copy_unit(LAST);
    announce(&ring.last_full[side]);
    at.advance();
  }
}
