// Producer of stages by 16-byte asynchronous copies, for any page size: every token finds its own
// row.
#pragma once

#include "ptx/copy.cuh"
#include "tile/block.cuh"
#include "tile/item.cuh"
#include "tile/ring.cuh"

constexpr i32 ROW_PRODUCER_WARPS = 4;
constexpr i32 PAGES_AHEAD = 2;
constexpr i32 ROWS_PER_COPY = 32 / VECTORS_PER_ROW;
// Arrivals on a full barrier: every thread when its copies land, and a lane a warp for the flag.
constexpr i32 ROW_PRODUCERS = ROW_PRODUCER_WARPS * 32 + ROW_PRODUCER_WARPS;

// Where one token's row lies. A row that is not `valid` (past the length, or in an illegal page) is
// not read; zeros are written in its place.
struct RowSource {
  i64 state;  // in elements from the tensor's start
  i64 rope;
  bool valid;
  bool bad;
};

constexpr i32 NO_PAGE = -1;

// The page of a token, as the table says; not looked up past the end.
__device__ __forceinline__ i32 find_page(const Batch& batch, const i32* table, i32 token,
                                         i32 kv_end) {
  return token < kv_end ? table[token / batch.page_size] : NO_PAGE;
}

__device__ __forceinline__ RowSource find_row(const Attend& a, i32 page, i32 head, i32 rope_head,
                                              i32 token, i32 kv_end) {
  const bool legal = page >= 0 && page < a.batch.pages;
  if (token >= kv_end || !legal) return {0, 0, false, token < kv_end};
  const i64 slot = token % a.batch.page_size;
  return {page * a.state.page_stride + slot * a.state.token_stride + head * a.state.head_stride,
          page * a.rope.page_stride + slot * a.rope.token_stride + rope_head * a.rope.head_stride,
          true, false};
}

// Copies BLOCKS blocks of four rows: eight lanes fill one 128-byte row of a block.
template <i32 BLOCKS, i32 ROWS>
__device__ __forceinline__ void copy_four_rows(Block<ROWS>* blocks, const u16* source, i32 row,
                                               bool valid) {
  const i32 vector = threadIdx.x % VECTORS_PER_ROW;
  const u32 destination = ptx::shared_address(blocks) + swizzled(row, vector);
#pragma unroll
  for (i32 block = 0; block < BLOCKS; ++block) {
    ptx::copy_16_or_zero(destination + block * sizeof(Block<ROWS>),
                         source + block * BLOCK_COLUMNS + vector * VECTOR_ELEMENTS, valid);
  }
}

// Called by four warps; each fills a quarter of the rows of every stage. A row's address is found
// by one lane and handed round by shuffles; its page is looked up PAGES_AHEAD stages before it is
// needed, which hides the table's latency even where every token has its own page. Where
// SECOND_HAS_HEADS the second tensor is not a rope key but has as many heads as the first.
template <bool SECOND_HAS_HEADS = false, i32 STAGES, class Stage>
__device__ __forceinline__ void load_item_rows(const Item& item, const Attend& a, Stage* stages,
                                               Ring<STAGES>& ring,
                                               Cursor<STAGES>& cursor) {
  constexpr i32 ROWS_PER_WARP = Stage::TOKENS / ROW_PRODUCER_WARPS;
  constexpr i32 ROPE_HEADS = SECOND_HAS_HEADS ? Stage::HEADS : 1;
  const i32 lane = threadIdx.x % 32;
  const i32 warp = threadIdx.x / 32 % ROW_PRODUCER_WARPS;
  const i32 lane_row = warp * ROWS_PER_WARP + lane % ROWS_PER_WARP;
  const i32* table = a.batch.page_table + item.piece.sequence * a.batch.page_table_stride;
  const u16* state_data = static_cast<const u16*>(a.state.data);
  const u16* rope_data = static_cast<const u16*>(a.rope.data);

  const i32 kv_end = item.piece.kv_end;
  i32 pages[PAGES_AHEAD];
#pragma unroll
  for (i32 i = 0; i < PAGES_AHEAD; ++i) {
    const i32 token = item.piece.kv_begin + i * Stage::TOKENS + lane_row;
    pages[i] = find_page(a.batch, table, token, kv_end);
  }
  for (i32 kv = item.piece.kv_begin; kv < kv_end; kv += Stage::TOKENS) {
    const RowSource row = find_row(a, pages[0], item.head, SECOND_HAS_HEADS ? item.head : 0,
                                   kv + lane_row, kv_end);
#pragma unroll
    for (i32 i = 1; i < PAGES_AHEAD; ++i) pages[i - 1] = pages[i];
    pages[PAGES_AHEAD - 1] =
        find_page(a.batch, table, kv + PAGES_AHEAD * Stage::TOKENS + lane_row, kv_end);
    const bool bad = __any_sync(~0u, row.bad);

    Stage& stage = stages[cursor.stage];
    ptx::mbarrier_wait(&ring.empty[cursor.stage], cursor.parity ^ 1);
#pragma unroll
    for (i32 i = 0; i < ROWS_PER_WARP; i += ROWS_PER_COPY) {
      const i32 source = i + lane / VECTORS_PER_ROW;
      const i32 to = warp * ROWS_PER_WARP + source;
      const bool valid = __shfl_sync(~0u, row.valid, source);
      const u16* state = state_data + __shfl_sync(~0u, row.state, source);
#pragma unroll
      for (i32 head = 0; head < Stage::HEADS; ++head) {
        copy_four_rows<Stage::STATE_BLOCKS>(stage.state(head), state, to,
                                            valid && item.head + head < a.h);
        state += a.state.head_stride;
      }
      if constexpr (Stage::ROPE_BLOCKS > 0) {
        const u16* rope = rope_data + __shfl_sync(~0u, row.rope, source);
#pragma unroll
        for (i32 head = 0; head < ROPE_HEADS; ++head) {
          copy_four_rows<Stage::ROPE_BLOCKS>(stage.rope() + head * Stage::ROPE_BLOCKS, rope, to,
                                             valid && (!SECOND_HAS_HEADS || item.head + head < a.h));
          rope += a.rope.head_stride;
        }
      }
    }
    ptx::mbarrier_arrive_after_copies(&ring.full[cursor.stage]);
    if (lane == 0) {
      if (bad) atomicOr(a.status, STATUS_BAD_PAGE);
      reinterpret_cast<unsigned char*>(&ring.bad_page[cursor.stage])[warp] = bad;
      ptx::mbarrier_arrive(&ring.full[cursor.stage]);
    }
    cursor.advance();
  }
}
