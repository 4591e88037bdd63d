// Attention with mma.sync and cp.async, for sm_80 and every later architecture: the schedule that
// tied_sm80.cu and separate_sm80.cu share. They differ in where a cached row keeps its key and its
// value, which `Cached` says.
//
//     S = Q K^T     rows x tokens      one warp: 16 rows x 16 tokens
//     P = 2^(S scale - max)            16-bit, through shared memory
//     O += P V      rows x s           one warp: 16 rows x s / WARPS_ACROSS columns
//
// grid     schedule.teams * schedule.team blocks, see Schedule in abi.cuh; item_heads = 1
// host     widths are multiples of 16, all pointers and strides of 16 bytes
// shared   queries, STAGES tiles of cached rows, probabilities: SharedMemory below
//
// Time runs down; a tile is TOKENS cached rows.
//
//     all warps    tile j in | S | row maxima | P, clean V where masked | O += P V | load j + STAGES
//
// Every thread loads, and the copies of the next tiles are in flight during the arithmetic.
//
// NOTE: probabilities and row maxima go through shared memory, where a layout with one warp across
// would keep them in registers; so one schedule serves widths from 16 to 576. The Hopper kernels
// are the fast ones.
#pragma once

#include "abi.cuh"
#include "ptx/copy.cuh"
#include "ptx/copy_groups.cuh"
#include "ptx/mma.cuh"
#include "ptx/shared.cuh"
#include "tile/item.cuh"
#include "tile/mask.cuh"
#include "tile/number.cuh"
#include "tile/queries.cuh"
#include "tile/weight.cuh"

constexpr i32 MATRIX = 16;
constexpr i32 VECTOR = 8;   // elements of a 16-byte copy
constexpr i32 PADDING = 8;  // a row's stride is an odd number of vectors: eight rows, all banks

using Number =
#if GA_BF16
    Bf16;
#else
    F16;
#endif

struct Traits {
  static constexpr i32 ROWS = GA_ROWS;      // packed query rows of an item
  static constexpr i32 TOKENS = GA_TOKENS;  // cached rows a tile
  static constexpr i32 STAGES = GA_STAGES;  // tiles in shared memory
  static constexpr i32 WARPS_DOWN = ROWS / MATRIX;
  static constexpr i32 WARPS_ACROSS = TOKENS / MATRIX;
  static constexpr i32 WARPS = WARPS_DOWN * WARPS_ACROSS;
  static constexpr i32 THREADS = WARPS * 32;
  static constexpr i32 TOKENS_PER_WARP = TOKENS / WARPS;
  // 16-column blocks of O that a warp adds up; the last warps may have fewer.
  static constexpr i32 COLUMN_BLOCKS = Cached::D_V / MATRIX;
  static constexpr i32 WARP_BLOCKS = (COLUMN_BLOCKS + WARPS_ACROSS - 1) / WARPS_ACROSS;

  static_assert(TOKENS % WARPS == 0 && TILE_TOKENS % TOKENS == 0);
  static_assert(Cached::D_K % MATRIX == 0 && Cached::D_V % MATRIX == 0);
  static_assert(Cached::FIRST % MATRIX == 0 && Cached::SECOND % MATRIX == 0);
};

constexpr i32 ROW_WIDTH = Cached::FIRST + Cached::SECOND;
constexpr i32 MARK_WORDS = (Cached::D_V + 31) / 32;

struct alignas(16) SharedMemory {
  u16 queries[Traits::ROWS][Cached::D_K + PADDING];
  u16 cached[Traits::STAGES][Traits::TOKENS][ROW_WIDTH + PADDING];
  u16 probabilities[Traits::ROWS][Traits::TOKENS + PADDING];
  i64 source[2][Traits::TOKENS];  // where a row's parts lie, in elements; NOWHERE: zeros
  float max[Traits::WARPS_ACROSS][Traits::ROWS];
  float sum[Traits::WARPS_ACROSS][Traits::ROWS];
  // Bit per column of o: a value that is not finite reaches it.
  u32 marks[Traits::ROWS][MARK_WORDS];
  unsigned char poison[Traits::TOKENS];  // of the tile at hand: V has elements that are not finite
  u32 bad_page;                          // an illegal page id was met
  u32 reserved[3];
};
static_assert(sizeof(SharedMemory) == GA_SHARED, "Tile::shared_bytes in family.rs");

constexpr i64 NOWHERE = -1;

// ---- Loading ------------------------------------------------------------------------------------

__device__ __forceinline__ void load_queries_sm80(SharedMemory& shared, const Attend& a,
                                                  const Item& item) {
  constexpr i32 VECTORS = Cached::D_K / VECTOR;
  const u16* data = static_cast<const u16*>(a.q.data);
  for (i32 i = threadIdx.x; i < Traits::ROWS * VECTORS; i += Traits::THREADS) {
    const i32 row = i / VECTORS, vector = i % VECTORS;
    const bool valid = item.first_row + row < item.rows;
    const QueryRow q = query_row(valid ? item.first_row + row : 0, item.head, a.group);
    const u16* source = data + (item.piece.q_start + q.query) * a.q.row_stride +
                        q.head * a.q.head_stride + vector * VECTOR;
    ptx::copy_16_or_zero(ptx::shared_address(&shared.queries[row][vector * VECTOR]), source, valid);
  }
}

// Looks a warp's share of a tile's rows up, one row a lane.
__device__ __forceinline__ void find_rows(SharedMemory& shared, const Attend& a, const Item& item,
                                          i32 kv) {
  const i32 lane = threadIdx.x % 32;
  if (lane < Traits::TOKENS_PER_WARP) {
    const i32 row = threadIdx.x / 32 * Traits::TOKENS_PER_WARP + lane;
    const i32* table = a.batch.page_table + item.piece.sequence * a.batch.page_table_stride;
    i64 first = NOWHERE, second = NOWHERE;
    if (row < item.piece.kv_end - kv) {
      const i64 page = table[(kv + row) / a.batch.page_size];
      const i64 token = (kv + row) % a.batch.page_size;
      if (page < 0 || page >= a.batch.pages) {
        shared.bad_page = 1;
      } else {
        first = page * a.state.page_stride + token * a.state.token_stride +
                item.head * a.state.head_stride;
        second = page * a.rope.page_stride + token * a.rope.token_stride +
                 (Cached::SECOND_HAS_HEADS ? item.head * a.rope.head_stride : 0);
      }
    }
    shared.source[0][row] = first;
    shared.source[1][row] = second;
  }
  __syncwarp();
}

// Copies a warp's share of the tile at `kv`; what lies past the item's end becomes zeros.
__device__ __forceinline__ void load_tile(SharedMemory& shared, const Attend& a, const Item& item,
                                          i32 kv, i32 stage) {
  constexpr i32 VECTORS = ROW_WIDTH / VECTOR;
  constexpr i32 FIRST_VECTORS = Cached::FIRST / VECTOR;
  if (kv < item.piece.kv_end) {
    find_rows(shared, a, item, kv);
    const i32 first_row = threadIdx.x / 32 * Traits::TOKENS_PER_WARP;
#pragma unroll 4
    for (i32 i = threadIdx.x % 32; i < Traits::TOKENS_PER_WARP * VECTORS; i += 32) {
      const i32 row = first_row + i / VECTORS, vector = i % VECTORS;
      const bool second = vector >= FIRST_VECTORS;
      const i64 source = shared.source[second][row];
      const i32 column = (second ? vector - FIRST_VECTORS : vector) * VECTOR;
      const u16* data = static_cast<const u16*>(second ? a.rope.data : a.state.data);
      ptx::copy_16_or_zero(ptx::shared_address(&shared.cached[stage][row][vector * VECTOR]),
                           data + (source == NOWHERE ? 0 : source + column), source != NOWHERE);
    }
    __syncwarp();  // the sources are free again
  }
  ptx::copy_commit();  // groups are counted by tiles, empty ones too
}

// ---- Masks --------------------------------------------------------------------------------------

// The pair with 0 in place of what is not finite.
__device__ __forceinline__ u32 finite_or_zero(u32 pair) {
  if (not_finite<Number>(pair & 0xffff)) pair &= 0xffff0000;
  if (not_finite<Number>(pair >> 16)) pair &= 0xffff;
  return pair;
}

// Hidden rows still enter P V, as 0 * V, which is NaN where V is not finite. So in rows hidden from
// some query, infinities and NaN become zeros, and the row is noted for `mark_poison` to give a
// NaN to whoever sees it. Rows past the end are zeros already.
__device__ __forceinline__ void clean_values(SharedMemory& shared, i32 kv, i32 stage, i32 hidden) {
  constexpr i32 VECTORS = Cached::D_V / VECTOR;
  const i32 lane = threadIdx.x % 32;
  for (i32 row = threadIdx.x / 32; row < Traits::TOKENS; row += Traits::WARPS) {
    bool poisoned = false;
    uint4* values = reinterpret_cast<uint4*>(&shared.cached[stage][row][Cached::V_BEGIN]);
    if (kv + row >= hidden) {
      for (i32 vector = lane; vector < VECTORS; vector += 32) {
        const uint4 v = values[vector];
        const uint4 clean = make_uint4(finite_or_zero(v.x), finite_or_zero(v.y),
                                       finite_or_zero(v.z), finite_or_zero(v.w));
        if (clean.x != v.x || clean.y != v.y || clean.z != v.z || clean.w != v.w) {
          values[vector] = clean;
          poisoned = true;
        }
      }
      poisoned = __any_sync(~0u, poisoned);
    }
    if (lane == 0) shared.poison[row] = poisoned;
  }
}

// ---- Products -----------------------------------------------------------------------------------

// The thread's share of a warp's 16 x 16 scores: rows lane / 4 and 8 below, as mma leaves them.
using Scores = float[8];
using Accumulator = float[Traits::WARP_BLOCKS][8];

// The warp's place: 16 rows down, and across 16 tokens of S and its columns of O.
struct Warp {
  i32 down;
  i32 across;
  i32 lane;
};

// Address of the row and vector that a lane gives to ldmatrix.x4 for a 16 x 16 block.
__device__ __forceinline__ u32 block_address(const u16* block, i32 stride, i32 lane) {
  return ptx::shared_address(block + (lane % 16) * stride + lane / 16 * VECTOR);
}

// Column of the cached row at which column `c` of a key lies.
__device__ __forceinline__ constexpr i32 key_column(i32 c) {
  return c < Cached::N ? c : c - Cached::N + Cached::FIRST;
}

__device__ __forceinline__ void compute_scores(Scores& s, SharedMemory& shared, const Warp& warp,
                                               i32 stage) {
#pragma unroll
  for (i32 i = 0; i < 8; ++i) s[i] = 0.0f;
  const u16* queries = shared.queries[warp.down * MATRIX];
  const u16* keys = shared.cached[stage][warp.across * MATRIX];
#pragma unroll 4
  for (i32 c = 0; c < Cached::D_K; c += MATRIX) {
    u32 q[4], k[4];
    ptx::ldmatrix_x4(q, block_address(queries + c, Cached::D_K + PADDING, warp.lane));
    ptx::ldmatrix_x4(k, block_address(keys + key_column(c), ROW_WIDTH + PADDING, warp.lane));
    ptx::mma<Number>(&s[0], q, k[0], k[2]);
    ptx::mma<Number>(&s[4], q, k[1], k[3]);
  }
}

__device__ __forceinline__ void add_values(Accumulator& o, SharedMemory& shared, const Warp& warp,
                                           i32 stage) {
  const u16* probabilities = shared.probabilities[warp.down * MATRIX];
#pragma unroll
  for (i32 token = 0; token < Traits::TOKENS; token += MATRIX) {
    u32 p[4];
    ptx::ldmatrix_x4(p, block_address(probabilities + token, Traits::TOKENS + PADDING, warp.lane));
    const u16* values = shared.cached[stage][token] + Cached::V_BEGIN;
#pragma unroll
    for (i32 i = 0; i < Traits::WARP_BLOCKS; ++i) {
      const i32 block = warp.across * Traits::WARP_BLOCKS + i;
      if (block >= Traits::COLUMN_BLOCKS) break;
      u32 v[4];
      ptx::ldmatrix_x4_trans(
          v, block_address(values + block * MATRIX, ROW_WIDTH + PADDING, warp.lane));
      ptx::mma<Number>(&o[i][0], p, v[0], v[1]);
      ptx::mma<Number>(&o[i][4], p, v[2], v[3]);
    }
  }
}

// ---- Softmax ------------------------------------------------------------------------------------

// Score i of a thread belongs to its row i / 2 % 2 and to this token of the warp's 16.
__device__ __forceinline__ i32 token_of(i32 i, i32 lane) {
  return i / 4 * 8 + lane % 4 * 2 + i % 2;
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// What a thread keeps of its two rows.
struct RowState {
  i32 row[2];        // in the item
  Visibility view[2];
  float max[2];      // largest unscaled score so far, the same in all threads of the row
  float sum[2];      // this thread's exponentials alone
  bool seen[2];      // this thread met a visible position
};

__device__ __forceinline__ void mask_scores_sm80(Scores& s, RowState& state, const Warp& warp,
                                                 i32 kv, i32 kv_len) {
#pragma unroll
  for (i32 i = 0; i < 8; ++i) {
    const i32 j = kv + warp.across * MATRIX + token_of(i, warp.lane);
    const bool visible = j < kv_len && state.view[i / 2 % 2].sees(j, kv_len);
    if (!visible) s[i] = -infinity();
    state.seen[i / 2 % 2] |= visible;
  }
}

// Marks what non-finite values of row `token` reach: their columns, in the rows that see it. A
// thread owns the words it marks, so marking needs no order.
__device__ __forceinline__ void mark_poisoned_row(SharedMemory& shared, const Attend& a,
                                                  const Item& item, i32 j) {
  const i64 page = a.batch.page_table[item.piece.sequence * a.batch.page_table_stride +
                                      j / a.batch.page_size];
  const Pages& part = Cached::V_IS_FIRST ? a.state : a.rope;
  const u16* values = static_cast<const u16*>(part.data) + page * part.page_stride +
                      j % a.batch.page_size * part.token_stride + item.head * part.head_stride;
  for (i32 i = threadIdx.x; i < Traits::ROWS * MARK_WORDS; i += Traits::THREADS) {
    const i32 row = min(item.first_row + i / MARK_WORDS, item.rows - 1);
    const i32 first = i % MARK_WORDS * 32;
    if (!visibility(a.batch, item.piece, row / a.group).sees(j, item.piece.kv_len)) continue;
    u32 marks = 0;
    for (i32 column = first; column < min(first + 32, Cached::D_V); ++column) {
      marks |= u32(not_finite<Number>(values[column])) << (column - first);
    }
    shared.marks[i / MARK_WORDS][i % MARK_WORDS] |= marks;
  }
}

__device__ __forceinline__ void mark_poison(SharedMemory& shared, const Attend& a,
                                            const Item& item, i32 kv) {
#pragma unroll 1
  for (i32 token = 0; token < Traits::TOKENS; ++token) {
    if (shared.poison[token]) mark_poisoned_row(shared, a, item, kv + token);
  }
}

__device__ __forceinline__ void clear_marks(SharedMemory& shared) {
  for (i32 i = threadIdx.x; i < Traits::ROWS * MARK_WORDS; i += Traits::THREADS) {
    shared.marks[i / MARK_WORDS][i % MARK_WORDS] = 0;
  }
}

// All warps of a row tell each other its maximum. The caller synchronises.
__device__ __forceinline__ void share_maxima(const Scores& s, SharedMemory& shared,
                                             const RowState& state, const Warp& warp) {
#pragma unroll
  for (i32 r = 0; r < 2; ++r) {
    float max = fmaxf(fmaxf(s[2 * r], s[2 * r + 1]), fmaxf(s[4 + 2 * r], s[5 + 2 * r]));
    max = quad_max(max);
    if (warp.lane % 4 == 0) shared.max[warp.across][state.row[r]] = max;
  }
}

// Scores to probabilities in shared memory, and the factors for what was summed before.
__device__ __forceinline__ void form_probabilities(const Scores& s, float (&correction)[2],
                                                   SharedMemory& shared, RowState& state,
                                                   const Warp& warp, float scale_log2) {
#pragma unroll
  for (i32 r = 0; r < 2; ++r) {
    const float old_max = state.max[r];
    float max = old_max;
#pragma unroll
    for (i32 across = 0; across < Traits::WARPS_ACROSS; ++across) {
      max = fmaxf(max, shared.max[across][state.row[r]]);
    }
    correction[r] = exp2_correction(old_max, max, scale_log2);
    float total = 0.0f;
#pragma unroll
    for (i32 i = 2 * r; i < 8; i += 4) {
      const float low = exp2_weight(s[i], max, scale_log2);
      const float high = exp2_weight(s[i + 1], max, scale_log2);
      total += low + high;
      const i32 token = warp.across * MATRIX + token_of(i, warp.lane);
      *reinterpret_cast<u32*>(&shared.probabilities[state.row[r]][token]) =
          Number::pack(low, high);
    }
    state.max[r] = max;
    state.sum[r] = fmaf(state.sum[r], correction[r], total);
  }
}

// ---- Items --------------------------------------------------------------------------------------

__device__ __forceinline__ RowState start_rows(const Attend& a, const Item& item,
                                               const Warp& warp) {
  RowState state;
#pragma unroll
  for (i32 r = 0; r < 2; ++r) {
    state.row[r] = warp.down * MATRIX + warp.lane / 4 + 8 * r;
    // Padding rows look at what the last row sees; nobody looks at them.
    const i32 packed = min(item.first_row + state.row[r], item.rows - 1);
    state.view[r] = visibility(a.batch, item.piece, packed / a.group);
    state.max[r] = -infinity();
    state.sum[r] = 0.0f;
    state.seen[r] = false;
  }
  return state;
}

// Where one row of the item goes: its slot, or the caller's tensors.
struct Target {
  float* f32;
  u16* half;  // null: f32
  float* lse;
};

__device__ __forceinline__ Target target(const Attend& a, const Item& item, i32 row) {
  if (item.slot >= 0) {
    const i64 index = i64(item.slot) * Traits::ROWS + row;
    return {a.partials.o + index * Cached::D_V, nullptr, a.partials.lse + index};
  }
  const QueryRow q = query_row(item.first_row + row, item.head, a.group);
  const i64 token = item.piece.q_start + q.query;
  const i64 at = token * a.out.o_row_stride + q.head * a.out.o_head_stride;
  float* lse = a.out.lse == nullptr
                   ? nullptr
                   : a.out.lse + token * a.out.lse_row_stride + q.head * a.out.lse_head_stride;
  return {static_cast<float*>(a.out.o) + at,
          a.o_is_f32 ? nullptr : static_cast<u16*>(a.out.o) + at, lse};
}

// Normalises and stores. Sums are added up warp by warp, in order.
__device__ __forceinline__ void store_rows(const Accumulator& o, SharedMemory& shared,
                                           const RowState& state, const Attend& a,
                                           const Item& item, const Warp& warp) {
#pragma unroll
  for (i32 r = 0; r < 2; ++r) {
    const float sum = quad_sum(state.sum[r]);
    const float seen = quad_max(state.seen[r] ? 1.0f : 0.0f);
    if (warp.lane % 4 == 0) {
      shared.sum[warp.across][state.row[r]] = sum;
      shared.max[warp.across][state.row[r]] = seen;
    }
  }
  __syncthreads();
#pragma unroll
  for (i32 r = 0; r < 2; ++r) {
    if (item.first_row + state.row[r] >= item.rows) continue;
    float sum = 0.0f, seen = 0.0f;
#pragma unroll
    for (i32 across = 0; across < Traits::WARPS_ACROSS; ++across) {
      sum += shared.sum[across][state.row[r]];
      seen += shared.max[across][state.row[r]];
    }
    // Scores that are all -inf have no maximum to subtract: IEEE gives NaN, not an empty row. Of a
    // part of a sequence they weigh nothing beside others (tile/weightless.cuh).
    if (shared.bad_page || (sum == 0.0f && seen > 0.0f && item.slot < 0)) sum = not_a_number();
    const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
    const Target to = target(a, item, state.row[r]);
#pragma unroll
    for (i32 i = 0; i < Traits::WARP_BLOCKS; ++i) {
      const i32 block = warp.across * Traits::WARP_BLOCKS + i;
      if (block >= Traits::COLUMN_BLOCKS) break;
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        const i32 column = block * MATRIX + half * 8 + warp.lane % 4 * 2;
        const u32 marks = shared.marks[state.row[r]][column / 32] >> column % 32;
        const float low = marks & 1 ? not_a_number() : o[i][4 * half + 2 * r] * factor;
        const float high = marks & 2 ? not_a_number() : o[i][4 * half + 2 * r + 1] * factor;
        if (to.half == nullptr) {
          *reinterpret_cast<float2*>(to.f32 + column) = make_float2(low, high);
        } else {
          *reinterpret_cast<u32*>(to.half + column) = Number::pack(low, high);
        }
      }
    }
    if (to.lse != nullptr && warp.across == 0 && warp.lane % 4 == 0) {
      const float lse = item.slot >= 0 ? log2_lse(state.max[r], sum, a.scale_log2)
                                       : natural_lse(state.max[r], sum, a.scale_log2);
      *to.lse = sum != 0.0f ? lse : seen > 0.0f ? NO_MAXIMUM : -infinity();
    }
  }
}

__device__ __forceinline__ void attend_item(SharedMemory& shared, const Attend& a,
                                            const Item& item) {
  const Warp warp = {i32(threadIdx.x) / 32 / Traits::WARPS_ACROSS,
                     i32(threadIdx.x) / 32 % Traits::WARPS_ACROSS, i32(threadIdx.x) % 32};
  const i32 kv_begin = item.piece.kv_begin, kv_end = item.piece.kv_end;
  const i32 hidden = first_hidden(a.batch, item.piece, item.first_row / a.group);
  RowState state = start_rows(a, item, warp);
  Accumulator o = {};

  // Queries travel with the first tile
  if (threadIdx.x == 0) shared.bad_page = 0;
  clear_marks(shared);
  __syncthreads();
  load_queries_sm80(shared, a, item);
  for (i32 stage = 0; stage < Traits::STAGES; ++stage) {
    load_tile(shared, a, item, kv_begin + stage * Traits::TOKENS, stage);
  }

  i32 stage = 0;
  for (i32 kv = kv_begin; kv < kv_end; kv += Traits::TOKENS) {
    // Tile in
    ptx::copy_wait<Traits::STAGES - 1>();
    __syncthreads();
    const bool masked = kv + Traits::TOKENS > hidden;

    // S
    Scores s;
    compute_scores(s, shared, warp, stage);
    if (masked) {
      mask_scores_sm80(s, state, warp, kv, item.piece.kv_len);
    } else {
      state.seen[0] = state.seen[1] = true;
    }
    share_maxima(s, shared, state, warp);
    __syncthreads();

    // P, while nobody reads keys or values
    float correction[2];
    form_probabilities(s, correction, shared, state, warp, a.scale_log2);
    if (masked) clean_values(shared, kv, stage, hidden);
    __syncthreads();

    // O
#pragma unroll
    for (i32 i = 0; i < Traits::WARP_BLOCKS * 8; ++i) o[i / 8][i % 8] *= correction[i / 2 % 2];
    add_values(o, shared, warp, stage);
    if (masked) mark_poison(shared, a, item, kv);

    // Tile out, the next one in its place
    __syncthreads();
    load_tile(shared, a, item, kv + Traits::STAGES * Traits::TOKENS, stage);
    stage = (stage + 1) % Traits::STAGES;
  }
  ptx::copy_wait<0>();
  __syncthreads();
  if (shared.bad_page && threadIdx.x == 0) atomicOr(a.status, STATUS_BAD_PAGE);
  store_rows(o, shared, state, a, item, warp);
  __syncthreads();
}

__device__ __forceinline__ void attend_schedule(const Attend& a) {
  extern __shared__ __align__(16) unsigned char bytes[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(bytes);
  for_each_item(a.schedule, a.group, [&](const Item& item) { attend_item(shared, a, item); });
}
