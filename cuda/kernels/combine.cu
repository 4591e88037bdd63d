// combine.cu: merges the partial results of sequences that were cut, in the order of their parts.
//
//     w_p = 2^(lse_p - max lse),   o = sum_p w_p o_p / sum_p w_p,   lse = max lse + log2 sum_p w_p
//
// grid     any; a warp takes 32 columns of one row at a time
// host     launched behind the attention kernel on its stream, if possible as a programmatic
//          dependent, which hides the launch
//
// The order of the sum is fixed by the schedule, so the result is the same in every run. An empty part
// has lse -inf and weight 0. Compiled with -D: GA_DV (width of a row of o), GA_BF16 (0 or 1).
#include "abi.cuh"
#include "ptx/control.cuh"
#include "tile/number.cuh"
#include "tile/queries.cuh"

struct Traits {
  static constexpr i32 D_V = GA_DV;
  // Columns a lane: a 16-byte load where rows are aligned to it.
  static constexpr i32 VECTOR = D_V % 4 == 0 ? 4 : 1;
  static constexpr i32 COLUMNS = 32 * VECTOR;  // of a row, one warp at a time
  static constexpr i32 CHUNKS = (D_V + COLUMNS - 1) / COLUMNS;
  // PERF: parts whose values are fetched before the first is used; the loop is bound by latency.
  static constexpr i32 IN_FLIGHT = 8;
  static constexpr i32 THREADS = 256;
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

struct Merged {
  Vector o;
  float lse_log2;
};

__device__ __forceinline__ float warp_max(float x) {
  for (i32 lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  return x;
}

__device__ __forceinline__ float warp_sum(float x) {
  for (i32 lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  return x;
}

// A lane's columns of one row: `o` and `lse` of part 0; each further part lies a slot further.
__device__ __forceinline__ Merged merge_parts(const float* o, const float* lse, i32 parts,
                                              i32 slot_rows) {
  const i32 lane = threadIdx.x % 32;
  float max = -infinity();
  for (i32 part = lane; part < parts; part += 32) max = fmaxf(max, lse[i64(part) * slot_rows]);
  max = warp_max(max);
  const float base = max == -infinity() ? 0.0f : max;

  Vector sum = {};
  float total = 0.0f;
  for (i32 first = 0; first < parts; first += 32) {
    const i32 count = min(32, parts - first);
    const float weight =
        lane < count ? ptx::exp2(lse[i64(first + lane) * slot_rows] - base) : 0.0f;
    total += warp_sum(weight);
    for (i32 i = 0; i < count; i += Traits::IN_FLIGHT) {
      Vector value[Traits::IN_FLIGHT];
#pragma unroll
      for (i32 k = 0; k < Traits::IN_FLIGHT; ++k) {
        const i64 part = min(first + i + k, parts - 1);
        value[k] = *reinterpret_cast<const Vector*>(o + part * slot_rows * Traits::D_V);
      }
#pragma unroll
      for (i32 k = 0; k < Traits::IN_FLIGHT; ++k) {
        const float w = __shfl_sync(~0u, weight, i + k);
        // A part past the last has weight 0, but may hold a NaN.
        if (i + k < count) {
          for (i32 v = 0; v < Traits::VECTOR; ++v) sum.x[v] += w * value[k].x[v];
        }
      }
    }
  }
  const float factor = total == 0.0f ? 0.0f : 1.0f / total;
  for (i32 v = 0; v < Traits::VECTOR; ++v) sum.x[v] *= factor;
  return {sum, total == 0.0f ? -infinity() : base + ptx::log2(total)};
}

__device__ __forceinline__ void store(const Combine& c, i64 token, i32 head, i32 column,
                                      const Merged& merged) {
  const i64 at = token * c.out.o_row_stride + head * c.out.o_head_stride + column;
  for (i32 v = 0; v < Traits::VECTOR; ++v) {
    if (c.o_is_f32) {
      static_cast<float*>(c.out.o)[at + v] = merged.o.x[v];
    } else {
      static_cast<u16*>(c.out.o)[at + v] = Number::pack(merged.o.x[v], 0.0f);
    }
  }
  if (column == 0 && c.out.lse != nullptr) {
    c.out.lse[token * c.out.lse_row_stride + head * c.out.lse_head_stride] =
        merged.lse_log2 * LN_2;
  }
}

extern "C" __global__ void __launch_bounds__(Traits::THREADS)
    combine(const __grid_constant__ Combine c) {
  ptx::wait_for_dependencies();
  const i32 slot_rows = c.schedule.item_heads * c.schedule.item_rows;
  const i32 units = *c.schedule.merge_count * slot_rows * Traits::CHUNKS;
  const i32 warps = gridDim.x * Traits::THREADS / 32;

  for (i32 unit = (blockIdx.x * Traits::THREADS + threadIdx.x) / 32; unit < units; unit += warps) {
    const i32 unit_row = unit / Traits::CHUNKS;
    const i32 column =
        unit % Traits::CHUNKS * Traits::COLUMNS + threadIdx.x % 32 * Traits::VECTOR;
    const Merge merge = c.schedule.merges[unit_row / slot_rows];
    const i32 slot_row = unit_row % slot_rows;

    // Which query, and whether the slot's row is one
    const i32 head = merge.lane % c.schedule.head_blocks * c.schedule.item_heads +
                     slot_row / c.schedule.item_rows;
    const i32 row = merge.lane / c.schedule.head_blocks * c.schedule.item_rows +
                    slot_row % c.schedule.item_rows;
    if (head >= c.h || row >= merge.q_len * c.group) continue;
    const QueryRow q = query_row(row, head, c.group);

    const i64 first = i64(merge.slot) * slot_rows + slot_row;
    const bool inside = column < Traits::D_V;
    const Merged merged = merge_parts(c.partials.o + first * Traits::D_V + (inside ? column : 0),
                                      c.partials.lse + first, merge.parts, slot_rows);
    if (inside) store(c, merge.q_start + q.query, q.head, column, merged);
  }
}
