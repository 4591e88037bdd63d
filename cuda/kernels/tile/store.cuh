// Results from registers to global memory: finished ones in the caller's layout, partial ones to
// their slot.
#pragma once

#include "abi.cuh"
#include "tile/item.cuh"
#include "tile/queries.cuh"

// Writes the thread's part of one row: columns 8 i + {0, 1} of `row`, from the pairs 4 i + 2 half of
// accumulator `o`.
template <i32 R>
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

// Where one row of a result goes.
struct RowPlace {
  float* o_f32;  // null: `o_16`
  u16* o_16;
  float* lse;       // null: not wanted
  float lse_scale;  // from base 2
};

// `row` is the packed row of cached head `head`, `slot_row` its place among the `slot_rows` of a slot.
__device__ __forceinline__ RowPlace row_place(const Attend& a, const Item& item, i32 head, i32 row,
                                              i32 slot_row, i32 slot_rows, i32 d_v) {
  if (item.slot >= 0) {
    const i64 index = i64(item.slot) * slot_rows + slot_row;
    return {a.partials.o + index * d_v, nullptr, a.partials.lse + index, 1.0f};
  }
  const QueryRow q = query_row(row, head, a.group);
  const i64 token = item.piece.q_start + q.query;
  const i64 at = token * a.out.o_row_stride + q.head * a.out.o_head_stride;
  float* lse = a.out.lse;
  if (lse != nullptr) lse += token * a.out.lse_row_stride + q.head * a.out.lse_head_stride;
  if (a.o_is_f32) return {static_cast<float*>(a.out.o) + at, nullptr, lse, LN_2};
  return {nullptr, static_cast<u16*>(a.out.o) + at, lse, LN_2};
}

// One of the thread's rows, its columns from `first_column` on.
template <class T, i32 R>
__device__ __forceinline__ void store_row(const RowPlace& place, i32 first_column,
                                          const float (&o)[R], i32 half, float factor) {
  if (place.o_f32 != nullptr) {
    store_row_f32(place.o_f32 + first_column, o, half, factor);
  } else {
    store_row_16<T>(place.o_16 + first_column, o, half, factor);
  }
}

__device__ __forceinline__ void store_lse(const RowPlace& place, float lse_log2) {
  if (place.lse != nullptr) *place.lse = lse_log2 * place.lse_scale;
}
