// The unit of shared memory: some rows (tokens, or queries) of 64 16-bit elements, in the 128-byte
// swizzle that the copy engine writes, wgmma reads and ldmatrix reads without bank conflicts.
//
// One layout serves both products. Read with K along the columns it is an operand of Q K^T; read
// with K along the rows (the MN-major view) the same bytes are V in P V, so a cached row that is
// key and value at once is loaded once and stored once.
#pragma once

#include "ptx/shared.cuh"

constexpr i32 BLOCK_COLUMNS = 64;
constexpr i32 BLOCK_ROW_BYTES = BLOCK_COLUMNS * 2;
constexpr i32 VECTOR_BYTES = 16;
constexpr i32 VECTOR_ELEMENTS = 8;
constexpr i32 VECTORS_PER_ROW = BLOCK_ROW_BYTES / VECTOR_BYTES;

template <i32 ROWS_>
struct alignas(1024) Block {
  static constexpr i32 ROWS = ROWS_;
  u32 pair[ROWS][BLOCK_COLUMNS / 2];
};

// Byte offset within a block of 16-byte vector `vector` of row `row`.
__device__ __forceinline__ u32 swizzled(i32 row, i32 vector) {
  return row * BLOCK_ROW_BYTES + ((vector ^ (row & 7)) * VECTOR_BYTES);
}

// wgmma operand descriptors. Only the low word varies; it holds the address, and the stride between
// the 64-column blocks of an MN-major operand.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout
namespace descriptor {  // of blocks of 64 rows

constexpr u32 SWIZZLE_128B = 1u << 30;
constexpr u32 ROW_GROUP_STRIDE = 8 * BLOCK_ROW_BYTES >> 4;  // from 8 rows to the next 8
constexpr u64 HIGH_WORD = u64(SWIZZLE_128B | ROW_GROUP_STRIDE) << 32;

// What to add to the low word: for the next block, and for the next k16 step, which is 16 columns
// on in the K-major view and 16 rows down in the MN-major one.
constexpr u32 BLOCK_STEP = sizeof(Block<64>) >> 4;
constexpr u32 K_MAJOR_STEP = 16 * 2 >> 4;
constexpr u32 MN_MAJOR_STEP = 16 * BLOCK_ROW_BYTES >> 4;

__device__ __forceinline__ u64 full(u32 low) { return HIGH_WORD | low; }

// 64 rows x 16 columns, K along the columns. The leading dimension's stride is not used.
__device__ __forceinline__ u32 k_major(const Block<64>* block) {
  return (ptx::shared_address(block) & 0x3ffff) >> 4;
}

// 16 rows x any number of columns, K along the rows; the next 64 columns lie one block further.
__device__ __forceinline__ u32 mn_major(const Block<64>* block) {
  return BLOCK_STEP << 16 | (ptx::shared_address(block) & 0x3ffff) >> 4;
}

}  // namespace descriptor
