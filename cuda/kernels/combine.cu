// combine.cu: merges the partial results of sequences that were cut, in the order of their parts.
//
//     w_p = 2^(lse_p - max lse),   o = sum_p w_p o_p / sum_p w_p,   lse = max lse + log2 sum_p w_p
//
// grid     what is resident together (all of it waits for the attention kernel); rows of a lane with
//          few parts take a warp each, those with many a CTA, or two where that leaves none waiting; its
//          warps share the parts out and are added up in order
// host     launched behind the attention kernel on its stream, if possible as a programmatic
//          dependent, which hides the launch
//
// The order of every sum is fixed by the number of parts, so the result is the same in every run.
// An empty part has lse -inf and weight 0. Compiled with -D: GA_DV (width of a row of o), GA_BF16
// (0 or 1).
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
  // Into which a row of many parts may be cut.
  static constexpr i32 MOST_SLICES = CHUNKS % 2 == 0 ? 2 : 1;
  static constexpr i32 WARPS = 16;
  // Parts whose values are fetched before the first is used, and added up against one maximum. Of the width
  // alone: bits must not depend on how many rows there are, which decides whether they are cut.
  static constexpr i32 IN_FLIGHT = CHUNKS > 2 ? 2 : 4;
  // The loop is bound by the latency of those loads. Told to fit two CTAs an SM, ptxas has the
  // registers to keep them all in flight; told nothing, it saves registers instead.
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

// The parts of one row that were merged so far: this lane's columns of chunk after chunk. Times
// 2^max.
template <i32 CHUNKS>
struct Merged {
  Vector o[CHUNKS];
  float weight;
  float max;  // of their lse; -inf: all were empty

  __device__ __forceinline__ void init() {
    *this = {};
    max = -infinity();
  }

  // Against a maximum of -inf every weight is 2^-inf = 0, so that empty parts change nothing.
  static __device__ __forceinline__ float weight_of(float lse, float max) {
    return max == -infinity() ? 0.0f : ptx::exp2(lse - max);
  }

  __device__ __forceinline__ void scale(float factor) {
    weight *= factor;
#pragma unroll
    for (i32 i = 0; i < CHUNKS * Traits::VECTOR; ++i) {
      o[i / Traits::VECTOR].x[i % Traits::VECTOR] *= factor;
    }
  }

  __device__ __forceinline__ void add(const Vector (&term)[CHUNKS], float term_weight,
                                      float factor) {
    weight += term_weight * factor;
#pragma unroll
    for (i32 i = 0; i < CHUNKS * Traits::VECTOR; ++i) {
      o[i / Traits::VECTOR].x[i % Traits::VECTOR] +=
          factor * term[i / Traits::VECTOR].x[i % Traits::VECTOR];
    }
  }

  __device__ __forceinline__ void merge(const Merged& other) {
    const float larger = fmaxf(max, other.max);
    scale(weight_of(max, larger));
    add(other.o, other.weight, weight_of(other.max, larger));
    max = larger;
  }
};

struct Rows {
  const float* o;    // part 0 of the row; each further part lies a slot further
  const float* lse;  // likewise
  i32 parts;
  i32 slot_rows;
};

// This lane's first column of a chunk.
__device__ __forceinline__ i32 lane_column(i32 chunk) {
  return chunk * Traits::COLUMNS + threadIdx.x % 32 * Traits::VECTOR;
}

// Merges parts first, first + step, .. in this order, IN_FLIGHT at a time, of the row's chunks from
// `first_chunk` on.
template <i32 CHUNKS>
__device__ __forceinline__ void merge_parts(Merged<CHUNKS>& merged, const Rows& rows, i32 first_chunk,
                                            i32 first, i32 step) {
  for (i32 part = first; part < rows.parts; part += step * Traits::IN_FLIGHT) {
    float lse[Traits::IN_FLIGHT];
    Vector value[Traits::IN_FLIGHT][CHUNKS];
#pragma unroll
    for (i32 k = 0; k < Traits::IN_FLIGHT; ++k) {
      const i32 p = part + k * step;
      lse[k] = p < rows.parts ? rows.lse[i64(p) * rows.slot_rows] : -infinity();
#pragma unroll
      for (i32 c = 0; c < CHUNKS; ++c) {
        const i32 column = lane_column(first_chunk + c);
        const float* at = rows.o + i64(p) * rows.slot_rows * Traits::D_V + column;
        value[k][c] = {};
        if (p < rows.parts && column < Traits::D_V) {
          value[k][c] = *reinterpret_cast<const Vector*>(at);
        }
      }
    }
    float larger = merged.max;
#pragma unroll
    for (i32 k = 0; k < Traits::IN_FLIGHT; ++k) larger = fmaxf(larger, lse[k]);
    merged.scale(merged.weight_of(merged.max, larger));
    merged.max = larger;
#pragma unroll
    for (i32 k = 0; k < Traits::IN_FLIGHT; ++k) {
      // Not weight_of: a NaN here, of a sequence with an illegal page, is to come through.
      const float weight = ptx::exp2(lse[k] - (larger == -infinity() ? 0.0f : larger));
      merged.add(value[k], 1.0f, weight);
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

__device__ __forceinline__ void store_16(u16* o, const Vector& value, float factor) {
  if constexpr (Traits::VECTOR == 4) {
    if (reinterpret_cast<u64>(o) % 8 == 0) {
      *reinterpret_cast<uint2*>(o) =
          make_uint2(Number::pack(value.x[0] * factor, value.x[1] * factor),
                     Number::pack(value.x[2] * factor, value.x[3] * factor));
      return;
    }
  }
  for (i32 v = 0; v < Traits::VECTOR; ++v) o[v] = Number::pack(value.x[v] * factor, 0.0f);
}

template <i32 CHUNKS>
__device__ __forceinline__ void store(const Combine& c, const Place& place, i32 first_chunk,
                                      const Merged<CHUNKS>& merged) {
  const float weight = merged.max == NO_MAXIMUM ? not_a_number() : merged.weight;
  const float factor = weight == 0.0f ? 0.0f : 1.0f / weight;
  const i64 row = place.token * c.out.o_row_stride + place.head * c.out.o_head_stride;
#pragma unroll
  for (i32 chunk = 0; chunk < CHUNKS; ++chunk) {
    const i32 column = lane_column(first_chunk + chunk);
    const Vector& value = merged.o[chunk];
    if (column >= Traits::D_V) continue;
    if (c.o_is_f32) {
      float* o = static_cast<float*>(c.out.o) + row + column;
      for (i32 v = 0; v < Traits::VECTOR; ++v) o[v] = value.x[v] * factor;
    } else {
      store_16(static_cast<u16*>(c.out.o) + row + column, value, factor);
    }
  }
  if (first_chunk == 0 && threadIdx.x % 32 == 0 && c.out.lse != nullptr) {
    c.out.lse[place.token * c.out.lse_row_stride + place.head * c.out.lse_head_stride] =
        weight == 0.0f ? -infinity() : (merged.max + ptx::log2(weight)) * LN_2;
  }
}

// Walks rows i, i + step, .. of a list of lanes, or their slices. The entry of the list is fetched a step
// ahead, the first one before there is anything to merge.
template <i32 SLICES>
struct Walk {
  const Combine& c;
  const Merge* first;
  i32 direction;  // of the list, in memory
  i32 slot_rows;
  i32 rows;
  i32 step;
  i32 i;
  Merge merge;

  __device__ __forceinline__ Walk(const Combine& c, const Merge* first, i32 direction, i32 lanes,
                                  i32 begin, i32 step)
      : c(c), first(first), direction(direction), step(step), i(begin) {
    slot_rows = c.schedule.item_heads * c.schedule.item_rows;
    rows = lanes * slot_rows * SLICES;
    fetch();
  }

  __device__ __forceinline__ void fetch() {
    if (i < rows) merge = first[i / (slot_rows * SLICES) * direction];
  }

  __device__ __forceinline__ bool done() const { return i >= rows; }

  __device__ __forceinline__ i32 slice() const { return i % SLICES; }

  __device__ __forceinline__ Place next() {
    const Place place = find_place(c, merge, i / SLICES % slot_rows);
    i += step;
    fetch();
    return place;
  }
};

// Lanes with few parts: a warp a row.
__device__ __forceinline__ void merge_rows(const Combine& c, i32 lanes) {
  // Neighbouring rows go to different SMs, so that few rows are spread over all of them.
  // PERF: GLA, B 16, L 8192, q_len 1 / 2: 77.1 / 84.2 us with eight CTAs an SM, most of which wait for
  // a place and find nothing to do; 75.9 / 82.6 with two.
  Walk<1> walk(c, c.schedule.merges, 1, lanes, threadIdx.x / 32 * gridDim.x + blockIdx.x,
               gridDim.x * Traits::WARPS);
  ptx::wait_for_dependencies();
  while (!walk.done()) {
    const Place place = walk.next();
    if (!place.valid) continue;
    Merged<Traits::CHUNKS> merged;
    merged.init();
    merge_parts(merged, place.rows, 0, 0, 1);
    store(c, place, 0, merged);
  }
}

using Shared = Merged<Traits::CHUNKS>[Traits::WARPS][32];

// Lanes with many parts, which lie at the end of the list: a CTA a slice of a row.
template <i32 SLICES>
__device__ __forceinline__ void merge_slices(const Combine& c, i32 lanes, Shared& bytes) {
  constexpr i32 CHUNKS = Traits::CHUNKS / SLICES;
  auto& shared = reinterpret_cast<Merged<CHUNKS>(&)[Traits::WARPS][32]>(bytes);
  const i32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Walk<SLICES> walk(c, c.schedule.merges + c.schedule.merge_capacity - 1, -1, lanes, blockIdx.x,
                    gridDim.x);
  ptx::wait_for_dependencies();
  while (!walk.done()) {
    const i32 first_chunk = walk.slice() * CHUNKS;
    const Place place = walk.next();
    if (!place.valid) continue;
    Merged<CHUNKS> merged;
    merged.init();
    merge_parts(merged, place.rows, first_chunk, warp, Traits::WARPS);
    shared[warp][lane] = merged;
    __syncthreads();
    if (warp == 0) {
#pragma unroll 1
      for (i32 other = 1; other < Traits::WARPS; ++other) merged.merge(shared[other][lane]);
      store(c, place, first_chunk, merged);
    }
    __syncthreads();
  }
}

// PERF: B 1, L 65536, replayed, a CTA a row / two where all of them run at once / one for every 128 columns:
// GLA, 128 rows of 66 parts 35.5 / 35.2 / 35.1 us; q_len 2, whose 256 rows are as many as there are CTAs, 42.5 /
// 42.7 / 44.8; MLA, 128 rows 48.6 / 48.2 / 50.3, 16 heads 41.5 / 40.6 / -.
__device__ __forceinline__ void merge_long_rows(const Combine& c, i32 lanes) {
  __shared__ Shared shared;
  const i32 rows = lanes * c.schedule.item_heads * c.schedule.item_rows;
  if (Traits::MOST_SLICES > 1 && rows * Traits::MOST_SLICES <= gridDim.x) {
    merge_slices<Traits::MOST_SLICES>(c, lanes, shared);
  } else {
    merge_slices<1>(c, lanes, shared);
  }
}

extern "C" __global__ void __launch_bounds__(Traits::WARPS * 32, Traits::MIN_BLOCKS)
    combine(const __grid_constant__ Combine c) {
  // The schedule was complete before the attention kernel began; only its results are waited for.
  // Not kept in registers meanwhile, of which there are none to spare.
  const MergeCounts* counts = c.schedule.merge_counts;
  ptx::launch_dependents();
  if (counts->many > 0) merge_long_rows(c, counts->many);
  merge_rows(c, counts->few);
}
