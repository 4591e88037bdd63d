// Packed query rows: which query a row is, and the copy of 64 of them into shared memory.
#pragma once

#include "ptx/copy.cuh"
#include "tile/block.cuh"
#include "tile/item.cuh"

// Packed row `row` of cached head `head`.
struct QueryRow {
  i32 query;  // of the sequence, 0..q_len
  i32 head;   // query head
};

__device__ __forceinline__ QueryRow query_row(i32 row, i32 head, i32 group) {
  return {row / group, head * group + row % group};
}

// 64 rows from `first_row` on into BLOCKS blocks, by the 128 threads of a warpgroup; padding rows
// become zeros. The caller waits, fences and synchronises.
template <i32 BLOCKS>
__device__ __forceinline__ void load_queries(Block* blocks, const Attend& a, const Item& item,
                                             i32 first_row) {
  constexpr i32 ROWS_PER_PASS = 128 / VECTORS_PER_ROW;
  const i32 vector = threadIdx.x % VECTORS_PER_ROW;
  const u16* data = static_cast<const u16*>(a.q.data);
#pragma unroll
  for (i32 pass = 0; pass < 64 / ROWS_PER_PASS; ++pass) {
    const i32 row = pass * ROWS_PER_PASS + threadIdx.x % 128 / VECTORS_PER_ROW;
    const bool valid = first_row + row < item.rows;
    const QueryRow q = query_row(valid ? first_row + row : 0, item.head, a.group);
    const u16* source = data + (item.piece.q_start + q.query) * a.q.row_stride +
                        q.head * a.q.head_stride + vector * VECTOR_ELEMENTS;
    const u32 destination = ptx::shared_address(blocks) + swizzled(row, vector);
#pragma unroll
    for (i32 block = 0; block < BLOCKS; ++block) {
      ptx::copy_16_or_zero(destination + block * sizeof(Block), source + block * BLOCK_COLUMNS,
                           valid);
    }
  }
}
