// Attention of many narrow heads on sm_90, several cached heads an item: the schedule that
// tied_heads_sm90.cu and separate_heads_sm90.cu share. They differ in where a cached row keeps its
// key and its value, which `Cached` says. Deep-dive: docs/kernels/tied_sm90.md.
//
//     S = Q K^T, P = 2^(S scale - base), O += P V         16 or 32 rows x TOKENS, a warp a head
//
// A whole cached row goes through one CTA, so what its heads share is read once. Each consumer warp
// owns one cached head from queries to result and multiplies with mma.sync, whose 16-row tiles fit
// the query heads of a cached head; the 64 rows of wgmma would be three quarters padding. Warps
// share nothing but the ring, so nothing but its barriers synchronises them.
//
// Fewer than four heads have SLICES warps each, which take the stages in turn and add up what they
// have at the end of an item.
//
// grid     persistent, one CTA an SM; teams of CTAs walk the schedule (abi.cuh)
// CTA      HEADS x SLICES consumer warps, then one producer warpgroup
// item     HEADS cached heads x ROWS packed rows of each x one KV range
// smem     queries [HEADS][ROWS][d_k], a ring of stages of TOKENS cached rows
// host     widths are multiples of 64; ROWS is 16 or 32; bases and strides of q and cache are
//          multiples of 16 bytes, those of o of 4 (8 where it is f32); with BOXES also
//          page_size % TOKENS == 0
//
// Compiled with -D, beside the widths: GA_HEADS (1, 2, 4 or 8), GA_ROWS (16 or 32), GA_TOKENS, GA_BF16
// (0 or 1), GA_BOXES (1: tensor maps, 0: 16-byte copies).
#pragma once

#include "abi.cuh"
#include "ptx/control.cuh"
#include "ptx/mma.cuh"
#include "tile/block.cuh"
#include "tile/item.cuh"
#include "tile/load_boxes.cuh"
#include "tile/load_rows.cuh"
#include "tile/mask.cuh"
#include "tile/queries.cuh"
#include "tile/ring.cuh"
#include "tile/softmax.cuh"
#include "tile/store.cuh"
#include "tile/weightless.cuh"

struct Traits {
  static constexpr i32 HEADS = GA_HEADS, ROWS = GA_ROWS, TOKENS = GA_TOKENS;
  static constexpr bool BOXES = GA_BOXES;

  static constexpr i32 KEY_BLOCKS = Cached::D_K / BLOCK_COLUMNS;
  static constexpr i32 VALUE_BLOCKS = Cached::D_V / BLOCK_COLUMNS;
  static constexpr i32 FIRST_BLOCKS = Cached::FIRST / BLOCK_COLUMNS;
  static constexpr i32 SECOND_BLOCKS = Cached::SECOND / BLOCK_COLUMNS;
  static constexpr i32 SECOND_HEADS = Cached::SECOND_HAS_HEADS ? HEADS : 1;
  static constexpr i32 ROW_TILES = ROWS / 16;
  static constexpr i32 TOKEN_STEPS = TOKENS / 16;

  static constexpr i32 SLICES = HEADS < 4 ? 4 / HEADS : 1;
  static constexpr i32 WARPS = HEADS * SLICES;  // whole warpgroups
  static constexpr i32 THREADS = 32 * WARPS + 128;
  // Registers a thread, where two row tiles need more than an even split.
  static constexpr bool MOVES_REGISTERS = HEADS == 8 && ROW_TILES > 1;
  static constexpr i32 CONSUMER_REGISTERS = 232;
  static constexpr i32 PRODUCER_REGISTERS = 40;

  static constexpr i32 SHARED_LIMIT = 227 * 1024;
  static constexpr i32 STAGE_BLOCKS = HEADS * FIRST_BLOCKS + SECOND_HEADS * SECOND_BLOCKS;
  static constexpr i32 STAGE_BYTES = STAGE_BLOCKS * sizeof(Block<TOKENS>);
  static constexpr i32 QUERY_BYTES = HEADS * KEY_BLOCKS * sizeof(Block<ROWS>);
  static constexpr i32 SUM_BYTES = ROWS * (Cached::D_V + 8) * 4;  // of one warp
  static constexpr i32 FIT =
      (SHARED_LIMIT - QUERY_BYTES - (WARPS - HEADS) * SUM_BYTES - 2048) / STAGE_BYTES;
  // A stage is one warp's of a head in every round, or its parity would not tell rounds apart.
  static constexpr i32 STAGES = (FIT < 8 ? FIT : 8) / SLICES * SLICES;

  static_assert(Cached::FIRST % 64 == 0 && Cached::SECOND % 64 == 0 && Cached::N % 64 == 0);
  static_assert(HEADS == 1 || HEADS == 2 || HEADS == 4 || HEADS == 8);
  static_assert(ROWS == 16 || ROWS == 32);
  static_assert(TOKENS % 16 == 0 && TILE_TOKENS % TOKENS == 0);
  static_assert(STAGES >= 2);
};

using Number =
#if GA_BF16
    Bf16;
#else
    F16;
#endif

// Some cached rows: the first tensor's blocks head by head, then the second's.
struct Stage {
  static constexpr i32 TOKENS = Traits::TOKENS;
  static constexpr i32 HEADS = Traits::HEADS;
  static constexpr i32 STATE_BLOCKS = Traits::FIRST_BLOCKS;
  static constexpr i32 ROPE_BLOCKS = Traits::SECOND_BLOCKS;
  Block<TOKENS> blocks[Traits::STAGE_BLOCKS];

  __device__ __forceinline__ Block<TOKENS>* state(i32 head) { return blocks + head * STATE_BLOCKS; }
  __device__ __forceinline__ Block<TOKENS>* rope() { return blocks + HEADS * STATE_BLOCKS; }

  // The second tensor's blocks of a head.
  __device__ __forceinline__ Block<TOKENS>* second(i32 head) {
    return rope() + (Cached::SECOND_HAS_HEADS ? head * ROPE_BLOCKS : 0);
  }
  __device__ __forceinline__ Block<TOKENS>* key(i32 head, i32 block) {
    constexpr i32 FIRST = Cached::N / BLOCK_COLUMNS;
    return block < FIRST ? state(head) + block : second(head) + (block - FIRST);
  }
  __device__ __forceinline__ Block<TOKENS>* value(i32 head) {
    return Cached::V_IS_FIRST ? state(head) : second(head);
  }
};

// What a warp has at the end of an item, a column a lane.
struct PartialSum {
  float o[Traits::ROW_TILES][Cached::D_V / 2][32];
  float base[Traits::ROW_TILES][2][32];
  float sum[Traits::ROW_TILES][2][32];
};
static_assert(sizeof(PartialSum) == Traits::SUM_BYTES);

// Of every head's warps but the first.
template <i32 WARPS>
struct PartialSums {
  PartialSum sums[WARPS];
  __device__ __forceinline__ PartialSum* begin() { return sums; }
};
template <>
struct PartialSums<0> {
  __device__ __forceinline__ PartialSum* begin() { return nullptr; }
};

struct SharedMemory {
  Block<Traits::ROWS> queries[Traits::HEADS][Traits::KEY_BLOCKS];
  Stage stages[Traits::STAGES];
  Ring<Traits::STAGES> ring;
  Poison<Traits::TOKENS> poison[Traits::WARPS];
  PartialSums<Traits::WARPS - Traits::HEADS> sums;
};
static_assert(sizeof(SharedMemory) <= Traits::SHARED_LIMIT);

using Scores = float[Traits::ROW_TILES][Traits::TOKENS / 2];  // 16 x TOKENS each
using Probabilities = u32[Traits::ROW_TILES][Traits::TOKEN_STEPS][4];
using Accumulator = float[Traits::ROW_TILES][Cached::D_V / 2];  // 16 x d_v each

constexpr u32 BARRIER_HEAD = 1;  // and the heads after it, where a head has several warps

// Address of the row that this lane gives to ldmatrix for a 16 x 16 piece of a block. Matrices 0..4
// are the piece's quarters; ROWS_FIRST: 0 and 1 are the upper and lower left ones (an A operand, or
// a transposed B operand), otherwise the left and right upper ones (a B operand).
template <bool ROWS_FIRST, i32 ROWS>
__device__ __forceinline__ u32 piece_address(const Block<ROWS>* block, i32 row, i32 vector) {
  const i32 lane = threadIdx.x % 32;
  const i32 down = ROWS_FIRST ? lane / 8 % 2 : lane / 16;
  const i32 right = ROWS_FIRST ? lane / 16 : lane / 8 % 2;
  return ptx::shared_address(block) + swizzled(row + down * 8 + lane % 8, vector + right);
}

// S = Q K^T
__device__ __forceinline__ void scores(Scores& s, const Block<Traits::ROWS>* queries, Stage& stage,
                                       i32 head) {
#pragma unroll
  for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
#pragma unroll
    for (i32 i = 0; i < Traits::TOKENS / 2; ++i) s[tile][i] = 0.0f;
  }
#pragma unroll
  for (i32 block = 0; block < Traits::KEY_BLOCKS; ++block) {
    const Block<Traits::TOKENS>* key = stage.key(head, block);
#pragma unroll
    for (i32 vector = 0; vector < VECTORS_PER_ROW; vector += 2) {
      u32 k[Traits::TOKEN_STEPS][4];
#pragma unroll
      for (i32 step = 0; step < Traits::TOKEN_STEPS; ++step) {
        ptx::ldmatrix_x4(k[step], piece_address<false>(key, step * 16, vector));
      }
#pragma unroll
      for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
        u32 q[4];
        ptx::ldmatrix_x4(q, piece_address<true>(queries + block, tile * 16, vector));
#pragma unroll
        for (i32 step = 0; step < Traits::TOKEN_STEPS; ++step) {
          ptx::mma<Number>(s[tile] + step * 8, q, k[step][0], k[step][1]);
          ptx::mma<Number>(s[tile] + step * 8 + 4, q, k[step][2], k[step][3]);
        }
      }
    }
  }
}

// O += P V
__device__ __forceinline__ void output(Accumulator& o, const Probabilities& p, Stage& stage,
                                       i32 head) {
#pragma unroll
  for (i32 column = 0; column < Cached::D_V; column += 16) {
    const Block<Traits::TOKENS>* value = stage.value(head) + column / BLOCK_COLUMNS;
    const i32 vector = column % BLOCK_COLUMNS / VECTOR_ELEMENTS;
#pragma unroll
    for (i32 step = 0; step < Traits::TOKEN_STEPS; ++step) {
      u32 v[4];
      ptx::ldmatrix_x4_trans(v, piece_address<true>(value, step * 16, vector));
#pragma unroll
      for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
        ptx::mma<Number>(o[tile] + column / 2, p[tile][step], v[0], v[1]);
        ptx::mma<Number>(o[tile] + column / 2 + 4, p[tile][step], v[2], v[3]);
      }
    }
  }
}

// One item, as one consumer warp sees it: the rows of one of its heads.
struct Consumer {
  const Attend& a;
  const Item& item;
  SharedMemory& shared;
  Cursor<Traits::STAGES>& cursor;
  i32 warp;
  i32 head;        // of the item
  i32 slice;       // turn among the head's warps; the first, whose is the first stage, stores
  i32 thread_row;  // packed row of the thread, which also holds the rows 8, 16 and 24 below
  i32 hidden;      // first position that some row of the item does not see
  OnlineSoftmax softmax[Traits::ROW_TILES];
  bool bad_page;

  __device__ __forceinline__ Consumer(const Attend& a, const Item& item, SharedMemory& shared,
                                      Cursor<Traits::STAGES>& cursor)
      : a(a), item(item), shared(shared), cursor(cursor), bad_page(false) {
    warp = threadIdx.x / 32;
    head = warp / Traits::SLICES;
    slice = (warp + Traits::STAGES - cursor.stage) % Traits::SLICES;
    thread_row = item.first_row + threadIdx.x % 32 / 4;
    hidden = first_hidden(a.batch, item.piece, item.first_row / a.group);
    for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) softmax[tile].init();
  }

  __device__ __forceinline__ bool masked(i32 kv) const { return kv + Traits::TOKENS > hidden; }

  __device__ __forceinline__ void meet_head() const {
    if constexpr (Traits::SLICES == 1) {
      __syncwarp();
    } else {
      ptx::named_barrier_sync(BARRIER_HEAD + head, 32 * Traits::SLICES);
    }
  }

  __device__ __forceinline__ void queries_in() {
    constexpr i32 THREADS = 32 * Traits::SLICES;
    meet_head();
    load_queries<Traits::KEY_BLOCKS>(shared.queries[head], a, item, item.head + head,
                                     item.first_row, threadIdx.x % THREADS, THREADS);
    ptx::copy_wait_all();
    meet_head();
  }

  // Waits for the stage. What is made fit to be multiplied is this warp's alone.
  __device__ __forceinline__ void stage_in(i32 kv) {
    ptx::mbarrier_wait(&shared.ring.full[cursor.stage], cursor.parity);
    bad_page |= bad_page_in(shared.ring, cursor.stage);
    if (masked(kv)) {
      sanitise<Number, Traits::VALUE_BLOCKS>(shared.stages[cursor.stage].value(head),
                                             shared.poison[warp], kv, hidden, item.piece.kv_len, 0,
                                             1);
      ptx::fence_proxy_async();
      __syncwarp();
    }
  }

  __device__ __forceinline__ void stage_out() {
    consumer_arrive<Traits::BOXES>(&shared.ring.empty[cursor.stage]);
  }

  // P from S, and O brought to its base, for one row tile.
  __device__ __forceinline__ void probabilities(float (&s)[Traits::TOKENS / 2],
                                                u32 (&p)[Traits::TOKEN_STEPS][4],
                                                float (&o)[Cached::D_V / 2], i32 tile, i32 kv) {
    if (masked(kv)) {
      const i32 row = thread_row + tile * 16;
      const Visibility view[2] = {visibility(a.batch, item.piece, row / a.group),
                                  visibility(a.batch, item.piece, (row + 8) / a.group)};
      mask_scores(s, view, kv, item.piece.kv_len, shared.poison[warp]);
    }
    float correction[2];
    const bool moved = softmax[tile].push(s, a.scale_log2, correction);
#pragma unroll
    for (i32 i = 0; i < Traits::TOKENS / 4; ++i) {
      p[i / 4][i % 4] = Number::pack(s[2 * i], s[2 * i + 1]);
    }
    if (!moved) return;
#pragma unroll
    for (i32 i = 0; i < Cached::D_V / 2; ++i) o[i] *= correction[i / 2 % 2];
  }

  // Adds up what the head's warps have, turn by turn, in the first of them.
  __device__ __forceinline__ void add_up(Accumulator& o) {
    const i32 lane = threadIdx.x % 32;
    PartialSum* others = shared.sums.begin() + head * (Traits::SLICES - 1);
    if (slice > 0) {
      PartialSum& own = others[slice - 1];
#pragma unroll
      for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
#pragma unroll
        for (i32 i = 0; i < Cached::D_V / 2; ++i) own.o[tile][i][lane] = o[tile][i];
#pragma unroll
        for (i32 r = 0; r < 2; ++r) {
          own.base[tile][r][lane] = softmax[tile].base[r];
          own.sum[tile][r][lane] = softmax[tile].sum[r];
        }
      }
    }
    meet_head();
    if (slice > 0) return;
#pragma unroll 1
    for (i32 other = 0; other < Traits::SLICES - 1; ++other) {
#pragma unroll
      for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
        add(o[tile], softmax[tile], others[other], tile, lane);
      }
    }
  }

  __device__ __forceinline__ void add(float (&o)[Cached::D_V / 2], OnlineSoftmax& softmax,
                                      const PartialSum& other, i32 tile, i32 lane) const {
    float own_factor[2], other_factor[2];
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      const float other_base = other.base[tile][r][lane];
      const float base = fmaxf(softmax.base[r], other_base);
      own_factor[r] = OnlineSoftmax::rebase(softmax.base[r], base);
      other_factor[r] = OnlineSoftmax::rebase(other_base, base);
      softmax.base[r] = base;
      softmax.sum[r] = softmax.sum[r] * own_factor[r] + other.sum[tile][r][lane] * other_factor[r];
    }
#pragma unroll
    for (i32 i = 0; i < Cached::D_V / 2; ++i) {
      o[i] = o[i] * own_factor[i / 2 % 2] + other.o[tile][i][lane] * other_factor[i / 2 % 2];
    }
  }

  __device__ __forceinline__ void result_out(Accumulator& o) {
#pragma unroll
    for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
      if (bad_page) softmax[tile].sum[0] = softmax[tile].sum[1] = not_a_number();
    }
    if constexpr (Traits::SLICES > 1) add_up(o);
    if (slice > 0) return;
#pragma unroll
    for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
      float factor[2], lse_log2[2];
      softmax[tile].normalise(factor, lse_log2);
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        const i32 row = thread_row + tile * 16 + 8 * half;
        if (row >= item.rows || item.head + head >= a.h) continue;
        resolve_weightless(a, item, row, factor[half], lse_log2[half]);
        const RowPlace place =
            row_place(a, item, item.head + head, row, head * Traits::ROWS + row - item.first_row,
                      Traits::HEADS * Traits::ROWS, Cached::D_V);
        store_row<Number>(place, threadIdx.x % 4 * 2, o[tile], half, factor[half]);
        if (threadIdx.x % 4 == 0) store_lse(place, lse_log2[half]);
      }
    }
  }
};

__device__ __forceinline__ void consume_item(const Attend& a, const Item& item,
                                             SharedMemory& shared, Cursor<Traits::STAGES>& cursor) {
  Consumer consumer(a, item, shared, cursor);
  Scores s;
  Probabilities p;
  Accumulator o = {};

  consumer.queries_in();
  i32 turn = 0;
  for (i32 kv = item.piece.kv_begin; kv < item.piece.kv_end; kv += Traits::TOKENS) {
    if (turn == consumer.slice) {
      consumer.stage_in(kv);
      Stage& stage = shared.stages[cursor.stage];
      scores(s, shared.queries[consumer.head], stage, consumer.head);
#pragma unroll
      for (i32 tile = 0; tile < Traits::ROW_TILES; ++tile) {
        consumer.probabilities(s[tile], p[tile], o[tile], tile, kv);
      }
      output(o, p, stage, consumer.head);
      consumer.stage_out();
    }
    cursor.advance();
    turn = (turn + 1) % Traits::SLICES;
  }
  consumer.result_out(o);
}

__device__ __forceinline__ void produce(const Attend& a, const TensorMap* first_map,
                                        const TensorMap* second_map, SharedMemory& shared) {
  Cursor<Traits::STAGES> cursor;
  if constexpr (Traits::BOXES) {
    if (threadIdx.x / 32 != Traits::WARPS) return;
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_boxes<Cached::SECOND_HAS_HEADS>(item, a.batch, first_map, second_map, shared.stages,
                                                shared.ring, cursor, a.status);
    });
  } else {
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_rows<Cached::SECOND_HAS_HEADS>(item, a, shared.stages, shared.ring, cursor);
    });
  }
}

// The kernel's body. Both maps are parameters of the grid.
__device__ __forceinline__ void attend_heads(const Attend& a, const TensorMap& first_map,
                                             const TensorMap& second_map) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(bytes);

  // Barriers, and a head start for what follows
  if (threadIdx.x == 0) {
    shared.ring.init(Traits::BOXES ? BOX_PRODUCERS : ROW_PRODUCERS,
                     consumer_arrivals<Traits::BOXES>(Traits::HEADS));
    for (Poison<Traits::TOKENS>& poison : shared.poison) poison.init();
    if constexpr (Traits::BOXES) {
      ptx::prefetch_tensor_map(&first_map);
      ptx::prefetch_tensor_map(&second_map);
    }
  }
  __syncthreads();
  ptx::wait_for_dependencies();
  ptx::launch_dependents();

  // Roles
  if (threadIdx.x >= 32 * Traits::WARPS) {
    if constexpr (Traits::MOVES_REGISTERS) ptx::release_registers<Traits::PRODUCER_REGISTERS>();
    produce(a, &first_map, &second_map, shared);
  } else {
    if constexpr (Traits::MOVES_REGISTERS) ptx::claim_registers<Traits::CONSUMER_REGISTERS>();
    Cursor<Traits::STAGES> cursor;
    for_each_item(a.schedule, a.group,
                  [&](const Item& item) { consume_item(a, item, shared, cursor); });
  }
}
