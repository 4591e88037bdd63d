// Packed query rows: which query a row is, and the copy of 64 of them into shared memory.
#pragma once

#include "ptx/control.cuh"
#include "ptx/copy.cuh"
#include "ptx/global.cuh"
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

// The rows of cached head `head` from `first_row` on into BLOCKS blocks, by `threads` threads of
// which the caller is number `thread`; padding rows become zeros. The caller waits, and
// synchronises.
template <i32 BLOCKS, i32 ROWS>
__device__ __forceinline__ void load_queries(Block<ROWS>* blocks, const Attend& a, const Item& item,
                                             i32 head, i32 first_row, i32 thread, i32 threads) {
  const i32 vector = thread % VECTORS_PER_ROW;
  const u16* data = static_cast<const u16*>(a.q.data);
#pragma unroll 4
  for (i32 row = thread / VECTORS_PER_ROW; row < ROWS; row += threads / VECTORS_PER_ROW) {
    const bool valid = first_row + row < item.rows && head < a.h;
    const QueryRow q = query_row(valid ? first_row + row : 0, valid ? head : 0, a.group);
    const u16* source = data + (item.piece.q_start + q.query) * a.q.row_stride +
                        q.head * a.q.head_stride + vector * VECTOR_ELEMENTS;
    const u32 destination = ptx::shared_address(blocks) + swizzled(row, vector);
#pragma unroll
    for (i32 block = 0; block < BLOCKS; ++block) {
      ptx::copy_16_or_zero(destination + block * sizeof(Block<ROWS>),
                           source + block * BLOCK_COLUMNS, valid);
    }
  }
}

// Asks for the WIDTH columns of an item's rows, by a warp, so that they are in the L2 when they are loaded.
template <i32 ROWS, i32 WIDTH>
__device__ __forceinline__ void prefetch_queries(const Attend& a, const Item& item) {
  const u16* data = static_cast<const u16*>(a.q.data);
  const i32 end = min(item.first_row + ROWS, item.rows);
#pragma unroll 1
  for (i32 row = item.first_row + ptx::opaque(threadIdx.x) % 32; row < end; row += 32) {
    const QueryRow q = query_row(row, item.head, a.group);
    ptx::prefetch_to_l2(data + (item.piece.q_start + q.query) * a.q.row_stride + q.head * a.q.head_stride,
                        WIDTH * sizeof(u16));
  }
}

// Columns first_column .. first_column + 16 STEPS of packed rows `row` and `row` + 8 as the
// thread's share of A fragments; padding rows become zeros.
template <i32 STEPS>
__device__ __forceinline__ void load_query_fragments(u32 (&q)[STEPS][4], const Attend& a,
                                                     const Item& item, i32 row, i32 first_column) {
  const u16* data = static_cast<const u16*>(a.q.data);
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {
    const bool valid = row + 8 * half < item.rows;
    const QueryRow at = query_row(valid ? row + 8 * half : 0, item.head, a.group);
    const u16* source = data + (item.piece.q_start + at.query) * a.q.row_stride +
                        at.head * a.q.head_stride + first_column + threadIdx.x % 4 * 2;
#pragma unroll
    for (i32 step = 0; step < STEPS; ++step) {
      q[step][half] = valid ? *reinterpret_cast<const u32*>(source + 16 * step) : 0;
      q[step][half + 2] = valid ? *reinterpret_cast<const u32*>(source + 16 * step + 8) : 0;
    }
  }
}
