// naive.cu: attention over a paged cache as it is defined, one query row at a time. Read this
// first.
//
//     score[j] = scale * <q[t, i], K_g[j]>        for every visible position j
//     o[t, i]  = sum_j softmax(score)[j] V_g[j]
//     lse[t, i] = ln sum_j exp(score[j])
//
// grid     any; a block takes a query row (t, i) and COLUMNS columns of its output at a time
// host     Attend as in abi.cuh; `schedule` and `partials` are not looked at
//
// Positions are taken CHUNK at a time: each thread forms one score, then each thread adds up its
// columns of all the chunk's values. Every format, width and page size; nothing needs alignment.
//
// Compiled with -D: GA_DTYPE, GA_TIED, and GA_N, GA_R, GA_S (tied) or GA_N = d_k, GA_R = 0,
// GA_S = d_v (separate).
#include "abi.cuh"
#include "tile/element.cuh"
#include "tile/weight.cuh"

using T = Element<GA_DTYPE>;
using Stored = T::Stored;

constexpr i32 WIDTH_V = GA_S;

constexpr i32 CHUNK = 128;  // positions, and threads
constexpr i32 COLUMNS_PER_THREAD = 4;
constexpr i32 COLUMNS = CHUNK * COLUMNS_PER_THREAD;
constexpr i32 COLUMN_BLOCKS = (WIDTH_V + COLUMNS - 1) / COLUMNS;

constexpr i64 HIDDEN = -1;

struct Shared {
  float weight[CHUNK];   // scores, then their exponentials
  i64 value[CHUNK];      // where V_g[j] begins, in elements; HIDDEN: the row does not see j
  float of_warp[CHUNK / 32];
  i32 bad_page;
};

// Sequence of a query row: the last that starts at or before it, so that empty ones are passed
// over.
__device__ i32 sequence_of(const Batch& batch, i32 row) {
  i32 low = 0, high = batch.batch;
  while (high - low > 1) {
    const i32 middle = (low + high) / 2;
    if (batch.q_starts[middle] <= row) low = middle; else high = middle;
  }
  return low;
}

__device__ bool sees(const Batch& batch, i32 row, i32 t, i32 q_len, i32 kv_len, i64 j) {
  switch (batch.mask) {
    case Mask::CAUSAL:
      return j + q_len <= i64(kv_len) + t;
    case Mask::TREE: {
      const i64 draft = j - (kv_len - q_len);
      if (draft < 0) return true;
      const u32 word = batch.tree[row * batch.tree_stride + draft / TREE_WORD_BITS];
      return word >> (draft % TREE_WORD_BITS) & 1;
    }
    default:
      return true;
  }
}

// K_g[j] = [first n of the head's part | rope], V_g[j] = the head's state or its value.
struct Cell {
  const Stored* nope;
  const Stored* rope;
  i64 value;
};

__device__ Cell cell(const Attend& a, i64 page, i64 slot, i64 head) {
  const i64 first = page * a.state.page_stride + slot * a.state.token_stride +
                    head * a.state.head_stride;
  const i64 second = page * a.rope.page_stride + slot * a.rope.token_stride +
                     (GA_TIED ? 0 : head * a.rope.head_stride);
  return {static_cast<const Stored*>(a.state.data) + first,
          static_cast<const Stored*>(a.rope.data) + second, GA_TIED ? first : second};
}

__device__ float score(const Stored* q, const Cell& cell) {
  float sum = 0.0f;
  for (i32 c = 0; c < GA_N; ++c) sum = fmaf(T::load(q[c]), T::load(cell.nope[c]), sum);
  for (i32 c = 0; c < GA_R; ++c) sum = fmaf(T::load(q[GA_N + c]), T::load(cell.rope[c]), sum);
  return sum;
}

// The same value for all threads: the largest, and in `block_sum` the sum in a fixed order.
__device__ float block_max(float x, Shared& shared) {
  for (i32 lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  for (i32 warp = 0; warp < CHUNK / 32; ++warp) x = fmaxf(x, shared.of_warp[warp]);
  __syncthreads();
  return x;
}

__device__ float block_sum(float x, Shared& shared) {
  for (i32 lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(~0u, x, lanes);
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0.0f;
  for (i32 warp = 0; warp < CHUNK / 32; ++warp) x += shared.of_warp[warp];
  __syncthreads();
  return x;
}

__device__ void attend_row(const Attend& a, i32 row, i32 head, i32 first_column, Shared& shared) {
  const Batch& batch = a.batch;
  const i32 b = sequence_of(batch, row);
  const i32 t = row - batch.q_starts[b];
  const i32 q_len = batch.q_starts[b + 1] - batch.q_starts[b];
  // A length that only the device knew may be beyond the page table, as a page beyond the cache.
  const bool too_long = batch.kv_lens[b] > batch.page_table_stride * batch.page_size;
  const i32 kv_len = too_long ? 0 : batch.kv_lens[b];
  const i32 group_head = head / a.group;
  const Stored* q = static_cast<const Stored*>(a.q.data) + row * a.q.row_stride +
                    head * a.q.head_stride;
  const Stored* values = static_cast<const Stored*>(GA_TIED ? a.state.data : a.rope.data);
  const i32* table = batch.page_table + b * batch.page_table_stride;

  if (threadIdx.x == 0) shared.bad_page = too_long;
  float max = -infinity(), sum = 0.0f, o[COLUMNS_PER_THREAD] = {};
  bool empty = true;
  for (i64 first = 0; first < kv_len; first += CHUNK) {
    // Scores
    __syncthreads();
    const i64 j = first + threadIdx.x;
    float s = -infinity();
    shared.value[threadIdx.x] = HIDDEN;
    if (j < kv_len && sees(batch, row, t, q_len, kv_len, j)) {
      const i32 page = table[j / batch.page_size];
      if (page < 0 || page >= batch.pages) {
        shared.bad_page = 1;
      } else {
        const Cell found = cell(a, page, j % batch.page_size, group_head);
        s = score(q, found);
        shared.value[threadIdx.x] = found.value;
      }
    }

    // Their exponentials, against a maximum that only grows
    const float old_max = max;
    max = fmaxf(max, block_max(s, shared));
    const float p = exp2_weight(s, max, a.scale_log2);
    const float correction = exp2_correction(old_max, max, a.scale_log2);
    sum = fmaf(sum, correction, block_sum(p, shared));
    shared.weight[threadIdx.x] = p;
    __syncthreads();

    // Values
    for (i32 k = 0; k < COLUMNS_PER_THREAD; ++k) o[k] *= correction;
    for (i32 i = 0; i < CHUNK; ++i) {
      if (shared.value[i] == HIDDEN) continue;
      empty = false;
      for (i32 k = 0; k < COLUMNS_PER_THREAD; ++k) {
        const i32 column = first_column + k * CHUNK + threadIdx.x;
        if (column < WIDTH_V) {
          o[k] = fmaf(shared.weight[i], T::load(values[shared.value[i] + column]), o[k]);
        }
      }
    }
  }
  __syncthreads();

  // Result. Scores that are all -inf have no maximum to subtract: IEEE gives NaN, not an empty row.
  if (shared.bad_page || (!empty && sum == 0.0f)) sum = not_a_number();
  if (shared.bad_page && threadIdx.x == 0) atomicOr(a.status, STATUS_BAD_PAGE);
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (i32 k = 0; k < COLUMNS_PER_THREAD; ++k) {
    const i32 column = first_column + k * CHUNK + threadIdx.x;
    if (column >= WIDTH_V) continue;
    const i64 at = row * a.out.o_row_stride + head * a.out.o_head_stride + column;
    if (a.o_is_f32) {
      static_cast<float*>(a.out.o)[at] = o[k] * factor;
    } else {
      static_cast<Stored*>(a.out.o)[at] = T::store(o[k] * factor);
    }
  }
  if (a.out.lse != nullptr && first_column == 0 && threadIdx.x == 0) {
    a.out.lse[row * a.out.lse_row_stride + head * a.out.lse_head_stride] =
        sum == 0.0f ? -infinity() : natural_lse(max, sum, a.scale_log2);
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(CHUNK, 1) naive(const __grid_constant__ Attend a) {
  __shared__ Shared shared;
  const i64 rows = a.batch.q_starts[a.batch.batch];
  const i64 work = rows * a.h_q * COLUMN_BLOCKS;
  for (i64 unit = blockIdx.x; unit < work; unit += gridDim.x) {
    const i32 head = unit / COLUMN_BLOCKS % a.h_q;
    const i32 row = unit / COLUMN_BLOCKS / a.h_q;
    attend_row(a, row, head, i32(unit % COLUMN_BLOCKS) * COLUMNS, shared);
  }
}
