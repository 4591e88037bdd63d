// Producer of stages through tensor maps: one box of states and one of rope keys a stage. For page
// sizes that are multiples of a stage's tokens, so that a stage lies in one page.
#pragma once

#include "ptx/copy.cuh"
#include "tile/item.cuh"
#include "tile/ring.cuh"

// Arrivals on a full barrier: the thread that announces the bytes.
constexpr i32 BOX_PRODUCERS = 1;

// States of items of at most this many tokens are to leave the L2 first, and what else is there (the
// queries, the rope key that another head's item reads next, other items' partial results) stays.
// PERF: GLA, q_len 1, B 1, L 65536 (17 tiles an item): 40.4 -> 36.7 us; B 16, L 8192 (32 tiles):
// 73.9 -> 72.7. Long items lose: 128 tiles 242.9 -> 245.5, two of them 423 -> 432. With the rope key
// leaving first too: 37.1, 72.6, 249.7, 441.
constexpr i32 SHORT_ITEM_TOKENS = 40 * TILE_TOKENS;

constexpr i32 NO_LIMIT = 1 << 20;

// Called by a warp. Both maps are 5-D: (64 columns, token, block of 64 columns, head, page); a box of the
// state map has a stage's tokens and the item's heads.
//
// Page ids are fetched for 32 stages at a time, one a lane, so the table's latency is paid once in
// 32. A page id outside the cache is passed on as it is: the copy engine reads nothing outside the
// tensor and fills in zeros, and the stage is flagged. At most UNDER_WAY stages are asked for and
// not yet there. Where SECOND_HAS_HEADS the second map is not a rope key's but has the item's heads, as
// the first does.
template <bool SECOND_HAS_HEADS = false, i32 UNDER_WAY = NO_LIMIT, i32 STAGES, class Stage>
__device__ __forceinline__ void load_item_boxes(const Item& item, const Batch& batch,
                                                const TensorMap* state_map,
                                                const TensorMap* rope_map, Stage* stages,
                                                Ring<STAGES>& ring,
                                                Cursor<STAGES>& cursor, u32* status) {
  const i32 lane = threadIdx.x % 32;
  const i32* table = batch.page_table + item.piece.sequence * batch.page_table_stride;
  const bool brief = item.piece.kv_end - item.piece.kv_begin <= SHORT_ITEM_TOKENS;
  const u64 state_policy = brief ? ptx::EVICT_FIRST : ptx::EVICT_NORMAL;
  i32 lane_page = 0;
  i32 step = 0;
  for (i32 kv = item.piece.kv_begin; kv < item.piece.kv_end; kv += Stage::TOKENS, ++step) {
    const i32 lane_kv = kv + lane * Stage::TOKENS;
    if (step % 32 == 0 && lane_kv < item.piece.kv_end) lane_page = table[lane_kv / batch.page_size];
    const i32 page = __shfl_sync(~0u, lane_page, step % 32);
    if (lane == 0) {
      const i32 token = kv % batch.page_size;
      const bool bad = page < 0 || page >= batch.pages;
      if (bad) atomicOr(status, STATUS_BAD_PAGE);
      Stage& stage = stages[cursor.stage];
      u64* full = &ring.full[cursor.stage];
      if constexpr (UNDER_WAY < STAGES) {
        const Cursor<STAGES> earlier = cursor.back(UNDER_WAY);
        ptx::mbarrier_wait(&ring.full[earlier.stage], earlier.parity);
      }
      ptx::mbarrier_wait(&ring.empty[cursor.stage], cursor.parity ^ 1);
      ring.bad_page[cursor.stage] = bad;
      ptx::mbarrier_arrive_expect(full, sizeof(Stage));
      ptx::copy_box_5d(stage.state(0), state_map, full, state_policy, 0, token, 0, item.head, page);
      if (Stage::ROPE_BLOCKS > 0) {
        ptx::copy_box_5d(stage.rope(), rope_map, full,
                         SECOND_HAS_HEADS ? state_policy : ptx::EVICT_NORMAL, 0, token, 0,
                         SECOND_HAS_HEADS ? item.head : 0, page);
      }
    }
    cursor.advance();
  }
}
