// Results from registers to global memory: finished ones in the caller's layout, partial ones to
// their slot.
#pragma once

#include "abi.cuh"
#include "tile/item.cuh"
#include "tile/queries.cuh"

// Writes the thread's part of one row: COLUMNS / 4 values of accumulator `o` (element pairs
// 4 i + 2 half) as columns first_column + 8 i + {0, 1}.
template <class T, i32 R>
__device__ __forceinline__ void store_row_f32(float* row, const float (&o)[R], i32 half,
                                              float factor) {
#pragma unroll
  for (i32 i = 0; i < R / 4; ++i) {
    *reinterpret_cast<float2*>(row + 8 * i) =
        make_float2(o[4 * i + 2 * half] * factor, o[4 * i + 2 * half + 1] * factor);
  }
}

template <class T, i32 R>
__device__ __forceinline__ void store_row_16(u16* row, const float (&o)[R], i32 half, float factor) {
#pragma unroll
  for (i32 i = 0; i < R / 4; ++i) {
    *reinterpret_cast<u32*>(row + 8 * i) =
        T::pack(o[4 * i + 2 * half] * factor, o[4 * i + 2 * half + 1] * factor);
  }
}

// One of the thread's rows. `row` is the packed row, `slot_row` its place in the item's slot,
// `first_column` the thread's first column of o.
template <class T, i32 R>
__device__ __forceinline__ void store_row(const Attend& a, const Item& item, i32 head, i32 row,
                                          i32 slot_row, i32 first_column, i32 d_v, i32 slot_rows,
                                          const float (&o)[R], i32 half, float factor,
                                          float lse_log2, bool writes_lse) {
  if (item.slot >= 0) {
    const i64 index = i64(item.slot) * slot_rows + slot_row;
    store_row_f32<T>(a.partials.o + index * d_v + first_column, o, half, factor);
    if (writes_lse) a.partials.lse[index] = lse_log2;
    return;
  }
  const QueryRow q = query_row(row, head, a.group);
  const i64 token = item.piece.q_start + q.query;
  const i64 at = token * a.out.o_row_stride + q.head * a.out.o_head_stride + first_column;
  if (a.o_is_f32) {
    store_row_f32<T>(static_cast<float*>(a.out.o) + at, o, half, factor);
  } else {
    store_row_16<T>(static_cast<u16*>(a.out.o) + at, o, half, factor);
  }
  if (writes_lse && a.out.lse != nullptr) {
    a.out.lse[token * a.out.lse_row_stride + q.head * a.out.lse_head_stride] = lse_log2 * LN_2;
  }
}
