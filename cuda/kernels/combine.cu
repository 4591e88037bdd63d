// combine.cu: merges the partial results of sequences that were cut, in the order of their parts.
//
//     w_p = 2^(lse_p - max lse),   o = sum_p w_p o_p / sum_p w_p,   lse = max lse + log2 sum_p w_p
//
// grid     any; rows of a lane with few parts take a warp each, those with many a CTA, whose warps
//          share the parts out and are added up in order
// host     launched behind the attention kernel on its stream, if possible as a programmatic
//          dependent, which hides the launch
//
// The order of every sum is fixed by the number of parts, so the result is the same in every run. An
// empty part has lse -inf and weight 0. Compiled with -D: GA_DV (width of a row of o), GA_BF16 (0 or 1).
#include "abi.cuh"
#include "ptx/control.cuh"
#include "tile/number.cuh"
#include "tile/queries.cuh"

struct Traits {
  static constexpr i32 D_V = GA_DV;
  // Columns of one load: 16 bytes where rows are aligned to it.
  static constexpr i32 VECTOR = D_V % 4 == 0 ? 4 : 1;
  static constexpr i32 COLUMNS = 32 * VECTOR;  // of a row, a warp at a time
  static constexpr i32 CHUNKS = (D_V + COLUMNS - 1) / COLUMNS;
  static constexpr i32 WARPS = 8;
  // Parts whose values are fetched before the first is used.
  static constexpr i32 IN_FLIGHT = CHUNKS > 2 ? 4 : 8;
  // The loop is bound by the latency of those loads, not by the number of warps: with two CTAs an SM
  // ptxas has the registers to keep them all in flight, where it would otherwise save registers instead.
  static constexpr i32 MIN_BLOCKS = 2;
};

using Number =
#if GA_BF16
    Bf16;
#else
    F16;
#endif

struct alignas(4 * Traits::VECTOR) Vector {
  float x[Traits::VECTOR];
};

// A running sum over parts of one row: this lane's columns of chunk after chunk.
struct Sum {
  Vector o[Traits::CHUNKS];
  float weight;
};

struct Rows {
  const float* o;    // part 0 of the row; each further part lies a slot further
  const float* lse;  // likewise
  i32 parts;
  i32 slot_rows;
};

__device__ __forceinline__ float warp_max(float x) {
  for (i32 lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

// The base of the exponentials: the largest lse, or 0 where every part is empty.
__device__ __forceinline__ float exponent_base(const Rows& rows) {
  float max = -infinity();
  for (i32 part = threadIdx.x % 32; part < rows.parts; part += 32) {
    max = fmaxf(max, rows.lse[i64(part) * rows.slot_rows]);
  }
  max = warp_max(max);
  return max == -infinity() ? 0.0f : max;
}

// Adds parts first, first + step, .. in this order.
__device__ __forceinline__ void add_parts(Sum& sum, const Rows& rows, float base, i32 first,
                                          i32 step) {
  const i32 lane_column = threadIdx.x % 32 * Traits::VECTOR;
  for (i32 part = first; part < rows.parts; part += step * Traits::IN_FLIGHT) {
    float lse[Traits::IN_FLIGHT];
    Vector value[Traits::IN_FLIGHT][Traits::CHUNKS];
#pragma unroll
    for (i32 k = 0; k < Traits::IN_FLIGHT; ++k) {
      const i32 p = part + k * step;
      lse[k] = p < rows.parts ? rows.lse[i64(p) * rows.slot_rows] : -infinity();
#pragma unroll
      for (i32 c = 0; c < Traits::CHUNKS; ++c) {
        const i32 column = c * Traits::COLUMNS + lane_column;
        const float* at = rows.o + i64(p) * rows.slot_rows * Traits::D_V + column;
        value[k][c] = {};
        if (p < rows.parts && column < Traits::D_V) {
          value[k][c] = *reinterpret_cast<const Vector*>(at);
        }
      }
    }
#pragma unroll
    for (i32 k = 0; k < Traits::IN_FLIGHT; ++k) {
      const float weight = ptx::exp2(lse[k] - base);
      sum.weight += weight;
#pragma unroll
      for (i32 c = 0; c < Traits::CHUNKS; ++c) {
        for (i32 v = 0; v < Traits::VECTOR; ++v) sum.o[c].x[v] += weight * value[k][c].x[v];
      }
    }
  }
}

// One row of a lane, as the caller knows it.
struct Place {
  Rows rows;
  i64 token;
  i32 head;
  bool valid;  // not padding
};

__device__ __forceinline__ Place find_place(const Combine& c, const Merge& merge, i32 slot_row) {
  const Schedule& schedule = c.schedule;
  const i32 slot_rows = schedule.item_heads * schedule.item_rows;
  const i32 head =
      merge.lane % schedule.head_blocks * schedule.item_heads + slot_row / schedule.item_rows;
  const i32 row =
      merge.lane / schedule.head_blocks * schedule.item_rows + slot_row % schedule.item_rows;
  const QueryRow q = query_row(row, head, c.group);
  const i64 first = i64(merge.slot) * slot_rows + slot_row;
  return {{c.partials.o + first * Traits::D_V, c.partials.lse + first, merge.parts, slot_rows},
          merge.q_start + q.query,
          q.head,
          head < c.h && row < merge.q_len * c.group};
}

__device__ __forceinline__ void store(const Combine& c, const Place& place, const Sum& sum,
                                      float base) {
  const float factor = sum.weight == 0.0f ? 0.0f : 1.0f / sum.weight;
  const i64 row = place.token * c.out.o_row_stride + place.head * c.out.o_head_stride;
#pragma unroll
  for (i32 i = 0; i < Traits::CHUNKS * Traits::VECTOR; ++i) {
    const i32 column = i / Traits::VECTOR * Traits::COLUMNS + threadIdx.x % 32 * Traits::VECTOR +
                       i % Traits::VECTOR;
    if (column >= Traits::D_V) continue;
    const float value = sum.o[i / Traits::VECTOR].x[i % Traits::VECTOR] * factor;
    if (c.o_is_f32) {
      static_cast<float*>(c.out.o)[row + column] = value;
    } else {
      static_cast<u16*>(c.out.o)[row + column] = Number::pack(value, 0.0f);
    }
  }
  if (threadIdx.x % 32 == 0 && c.out.lse != nullptr) {
    c.out.lse[place.token * c.out.lse_row_stride + place.head * c.out.lse_head_stride] =
        sum.weight == 0.0f ? -infinity() : (base + ptx::log2(sum.weight)) * LN_2;
  }
}

// Lanes with few parts: a warp a row.
__device__ __forceinline__ void merge_rows(const Combine& c, i32 slot_rows) {
  const i32 rows = c.schedule.merge_counts->few * slot_rows;
  for (i32 i = blockIdx.x * Traits::WARPS + threadIdx.x / 32; i < rows;
       i += gridDim.x * Traits::WARPS) {
    const Place place = find_place(c, c.schedule.merges[i / slot_rows], i % slot_rows);
    if (!place.valid) continue;
    Sum sum = {};
    const float base = exponent_base(place.rows);
    add_parts(sum, place.rows, base, 0, 1);
    store(c, place, sum, base);
  }
}

// Lanes with many parts, which lie at the end of the list: a CTA a row.
__device__ __forceinline__ void merge_long_rows(const Combine& c, i32 slot_rows) {
  __shared__ Sum sums[Traits::WARPS][32];
  const i32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const i32 rows = c.schedule.merge_counts->many * slot_rows;
  for (i32 i = blockIdx.x; i < rows; i += gridDim.x) {
    const Merge* merge = c.schedule.merges + c.schedule.merge_capacity - 1 - i / slot_rows;
    const Place place = find_place(c, *merge, i % slot_rows);
    if (!place.valid) continue;
    Sum sum = {};
    const float base = exponent_base(place.rows);
    add_parts(sum, place.rows, base, warp, Traits::WARPS);
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0) {
      for (i32 other = 1; other < Traits::WARPS; ++other) {
        const Sum& term = sums[other][lane];
        sum.weight += term.weight;
#pragma unroll
        for (i32 chunk = 0; chunk < Traits::CHUNKS; ++chunk) {
          for (i32 v = 0; v < Traits::VECTOR; ++v) sum.o[chunk].x[v] += term.o[chunk].x[v];
        }
      }
      store(c, place, sum, base);
    }
    __syncthreads();
  }
}

extern "C" __global__ void __launch_bounds__(Traits::WARPS * 32, Traits::MIN_BLOCKS)
    combine(const __grid_constant__ Combine c) {
  ptx::wait_for_dependencies();
  const i32 slot_rows = c.schedule.item_heads * c.schedule.item_rows;
  merge_long_rows(c, slot_rows);
  merge_rows(c, slot_rows);
}
