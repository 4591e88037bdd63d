// Producer of tiles through tensor maps: one box of states and one of rope keys a tile. For page sizes
// that are multiples of the tile, so that a tile lies in one page.
#pragma once

#include "ptx/copy.cuh"
#include "tile/item.cuh"
#include "tile/ring.cuh"

// Arrivals on a full barrier: the thread that announces the bytes.
constexpr i32 BOX_PRODUCERS = 1;

// Called by one warp. Both maps are 5-D: (64 columns, token, block of 64 columns, head, page).
//
// Page ids are fetched 32 tiles at a time, one a lane, so the table's latency is paid once in 32
// tiles. A page id outside the cache is passed on as it is: the copy engine reads nothing outside the
// tensor and fills in zeros, and the tile is flagged.
template <i32 STAGES, class Stage>
__device__ __forceinline__ void load_item_boxes(const Item& item, const Batch& batch,
                                                const TensorMap* state_map,
                                                const TensorMap* rope_map, Stage* stages,
                                                Ring<STAGES>& ring, Cursor<STAGES>& cursor,
                                                u32* status) {
  const i32 lane = threadIdx.x % 32;
  const i32 tiles = item.tiles();
  const i32* table = batch.page_table + item.piece.sequence * batch.page_table_stride;
  i32 lane_page = 0;
  for (i32 tile = 0; tile < tiles; ++tile) {
    const i32 kv = item.piece.kv_begin + tile * TILE_TOKENS;
    if (tile % 32 == 0 && tile + lane < tiles) {
      lane_page = table[(kv + lane * TILE_TOKENS) / batch.page_size];
    }
    const i32 page = __shfl_sync(~0u, lane_page, tile % 32);
#if GA_PREFETCH
    const i32 ahead = __shfl_sync(~0u, lane_page, (tile + GA_PREFETCH) % 32);
    if (lane == 0 && tile + GA_PREFETCH < tiles && tile % 32 + GA_PREFETCH < 32) {
      const i32 token = (kv + GA_PREFETCH * TILE_TOKENS) % batch.page_size;
      ptx::prefetch_box_5d(state_map, 0, token, 0, item.head, ahead);
      if (item.head == 0) ptx::prefetch_box_5d(rope_map, 0, token, 0, 0, ahead);
    }
#endif
    if (lane == 0) {
      const i32 token = kv % batch.page_size;
      const bool bad = page < 0 || page >= batch.pages;
      if (bad) atomicOr(status, STATUS_BAD_PAGE);
      u64* full = &ring.full[cursor.stage];
      Stage& stage = stages[cursor.stage];
      ptx::mbarrier_wait(&ring.empty[cursor.stage], cursor.parity ^ 1);
      ring.bad_page[cursor.stage] = bad;
      ptx::mbarrier_arrive_expect(full, sizeof(Stage));
      ptx::copy_box_5d(stage.state(), state_map, full, 0, token, 0, item.head, page);
      if constexpr (Stage::ROPE_BLOCKS > 0) {
        ptx::copy_box_5d(stage.rope(), rope_map, full, 0, token, 0, 0, page);
      }
    }
    cursor.advance();
  }
}
