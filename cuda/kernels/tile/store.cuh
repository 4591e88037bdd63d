// Results from registers to global memory: finished ones in the caller's layout, partial ones to
// their slot.
#pragma once

#include "abi.cuh"
#include "ptx/global.cuh"
#include "tile/item.cuh"
#include "tile/queries.cuh"

// Writes the thread's part of one row: columns 8 i + {0, 1} of `row`, from the pairs 4 i + 2 half
// of accumulator `o`.
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
__device__ __forceinline__ void store_row_16(u16* row, const float (&o)[R], i32 half,
                                             float factor) {
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

// `row` is the packed row of cached head `head`, `slot_row` its place among the `slot_rows` of a
// slot.
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

// Where the 64 rows of a warpgroup's result begin in the caller's layout, if it is final and of 16-bit
// numbers; null: padding.
// PERF: not at the end, where nothing hides the divisions. tied_sm90 finds them while the first tile is on its
// way: GLA, 128 sequences of 8192, q_len 2 / 4 440.9 / 804.2 -> 439.1 / 800.5 us; tied_wide_sm90 while the last
// tile's P is: MLA, q_len 1 / 2, a launch right after the other, 496.2 / 931.6 -> 487.6 / 928.2.
struct ResultRows {
  u16* at[64];
};

__device__ __forceinline__ bool stores_16(const Attend& a, const Item& item) {
  return item.slot < 0 && !a.o_is_f32;
}

// Each warp of the group its own 16: packed rows from `first_row` on.
__device__ __forceinline__ void find_rows(ResultRows& rows, const Attend& a, const Item& item,
                                          i32 first_row, i32 slot_rows, i32 d_v) {
  const i32 lane = threadIdx.x % 32;
  if (lane >= 16 || !stores_16(a, item)) return;
  const i32 index = threadIdx.x % 128 / 32 * 16 + lane;
  const i32 row = first_row + index;
  const bool padding = row >= item.rows;
  rows.at[index] = padding ? nullptr
                           : row_place(a, item, item.head, row, row - item.first_row, slot_rows,
                                       d_v).o_16;
}

// The 16 rows of a warp of a warpgroup as 16-byte stores, whole rows at a time, by way of the
// warp's own 16 rows of `scratch` (a block for every 64 columns).
// PERF: 4-byte stores straight from the registers take 4 us for a CTA's 128 rows of 256 where every
// CTA finishes at once; half of every sector they write is somebody else's. A store through a pointer of which
// the compiler does not know that it is not to shared memory makes the next row's loads wait for it: a warp's
// rows 2030 cycles instead of 940; half at q_len 1 / 2 244.0 / 250.9 -> 242.9 / 250.4 us, eight rows at a time
// instead of four 242.9 / 251.0; MLA, with rows found early, 487.6 / 928.2 -> 487.9 / 921.3.
template <class T, i32 R>
__device__ __forceinline__ void store_warp_rows_16(Block<64>* scratch, const ResultRows& rows,
                                                   i32 first_column, const float (&o)[R],
                                                   const float (&factor)[2]) {
  constexpr i32 VECTORS = R / 4;  // of a row of 2 R columns
  const i32 lane = threadIdx.x % 32;
  const i32 warp_row = threadIdx.x % 128 / 32 * 16;
#pragma unroll
  for (i32 k = 0; k < R / 8; ++k) {
    const u32 piece[4] = {T::pack(o[8 * k] * factor[0], o[8 * k + 1] * factor[0]),
                          T::pack(o[8 * k + 2] * factor[1], o[8 * k + 3] * factor[1]),
                          T::pack(o[8 * k + 4] * factor[0], o[8 * k + 5] * factor[0]),
                          T::pack(o[8 * k + 6] * factor[1], o[8 * k + 7] * factor[1])};
    ptx::stmatrix_x4(ptx::shared_address(scratch + k / 4) +
                         swizzled(warp_row + lane % 16, k % 4 * 2 + lane / 16),
                     piece);
  }
  __syncwarp();
  const i32 vector = lane % VECTORS;
  const char* block = reinterpret_cast<const char*>(scratch + vector / VECTORS_PER_ROW);
  first_column += vector * VECTOR_ELEMENTS;
#pragma unroll 4
  for (i32 first = 0; first < 16; first += 32 / VECTORS) {
    const i32 row = warp_row + first + lane / VECTORS;
    const uint4 value =
        *reinterpret_cast<const uint4*>(block + swizzled(row, vector % VECTORS_PER_ROW));
    ptx::store_16_unless_null(rows.at[row], first_column, value);
  }
}

// The 64 rows of a warpgroup: columns first_column .. first_column + 2 R of packed rows first_row
// on, which `find_rows` has found. `scratch` holds nothing that is still needed, by any warp of the
// group.
template <class T, i32 R>
__device__ __forceinline__ void store_group(const Attend& a, const Item& item,
                                            const ResultRows& rows, i32 first_row, i32 slot_rows,
                                            i32 d_v, i32 first_column, Block<64>* scratch,
                                            const float (&o)[R], const float (&factor)[2],
                                            const float (&lse_log2)[2], bool stores_lse) {
  const bool packed = stores_16(a, item);
  if (packed) {
    store_warp_rows_16<T>(scratch, rows, first_column, o, factor);
    if (!stores_lse || a.out.lse == nullptr) return;
  }
  const i32 lane = threadIdx.x % 32;
  const i32 warp_row = first_row + threadIdx.x % 128 / 32 * 16;
#pragma unroll
  for (i32 half = 0; half < 2; ++half) {
    const i32 row = warp_row + lane / 4 + 8 * half;
    if (row >= item.rows) continue;
    const RowPlace place = row_place(a, item, item.head, row, row - item.first_row, slot_rows, d_v);
    if (!packed) {
      store_row_f32(place.o_f32 + first_column + lane % 4 * 2, o, half, factor[half]);
    }
    if (stores_lse && lane % 4 == 0) store_lse(place, lse_log2[half]);
  }
}
