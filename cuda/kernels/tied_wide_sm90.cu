// tied_wide_sm90.cu: decode attention over a tied cache whose states are too wide for one
// warpgroup's accumulator (MLA, s = 512). Spec: reference/, "tied"; deep-dive:
// docs/kernels/tied_sm90.md.
//
//     K_g = [state_g[..n] | rope],  V_g = state_g
//     o[t, i] = sum_j softmax_j(scale <q[t, i], K_g[j]>) V_g[j]            j visible to t
//
// grid     persistent, one CTA an SM; teams of CTAs walk the schedule (abi.cuh)
// CTA      a left and a right consumer warpgroup, which own the halves of o's columns, then one
//          producer warpgroup
// item     one cached head x 64 packed rows x one KV range, in tiles of 64 tokens
// smem     queries [64][n + r], P [64][64], two tiles [64][s + r]
// host     n, r multiples of 64, n <= s = 512; bases and strides of q and cache are multiples of 16
//          bytes, as are those of o where it is not f32; with BOXES also page_size % 64 == 0
//
// The left group also computes S and P; P reaches the right group through shared memory. The right
// group's product runs last, under the next softmax, so that the tensor cores never wait for one:
//
//     tensor cores  | S(j+1)              | R(j)       | L(j+1)   | S(j+2)             | R(j+1)  ..
//     left          | L(j) out            | P(j+1)     |          | L(j+1) out         | P(j+2)
//     producer        left half of j+2 in   right half of j+2 in
//
// Two tiles are all that fit, so a tile is refilled by halves: its left half and rope key when L(j)
// is done, its right half when R(j) is.
//
// Compiled with -D: GA_N, GA_R, GA_S (widths), GA_BF16 (0 or 1), GA_BOXES (1: tensor maps, 0:
// 16-byte copies).
#include "abi.cuh"
#include "ptx/control.cuh"
#include "ptx/wgmma.cuh"
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
  static constexpr i32 N = GA_N, R = GA_R, S = GA_S, ROWS = 64;
  static constexpr bool BOXES = GA_BOXES;

  static constexpr i32 NOPE_BLOCKS = N / BLOCK_COLUMNS;
  static constexpr i32 ROPE_BLOCKS = R / BLOCK_COLUMNS;
  static constexpr i32 STATE_BLOCKS = S / BLOCK_COLUMNS;
  static constexpr i32 HALF_BLOCKS = STATE_BLOCKS / 2;
  static constexpr i32 KEY_BLOCKS = NOPE_BLOCKS + ROPE_BLOCKS;

  static constexpr i32 QUERY_BLOCKS = KEY_BLOCKS > STATE_BLOCKS ? KEY_BLOCKS : STATE_BLOCKS;

  static constexpr i32 CONSUMERS = 256;
  static constexpr i32 GROUP_WARPS = 4;
  static constexpr i32 THREADS = CONSUMERS + 128;
  static constexpr i32 CONSUMER_REGISTERS = 224;
  static constexpr i32 PRODUCER_REGISTERS = 56;
  static constexpr i32 STAGES = 2;
  static constexpr i32 SHARED_LIMIT = 227 * 1024;

  static_assert(N % 64 == 0 && R % 64 == 0 && N <= S && N + R > 0);
  static_assert(S == 512, "one wgmma spans half of the accumulator");
};

using Number =
#if GA_BF16
    Bf16;
#else
    F16;
#endif

enum Half : i32 { LEFT = 0, RIGHT = 1 };

struct Stage {
  static constexpr i32 TOKENS = TILE_TOKENS;
  static constexpr i32 HEADS = 1;
  static constexpr i32 PARTS = 2;
  static constexpr i32 STATE_BLOCKS = Traits::STATE_BLOCKS;
  static constexpr i32 ROPE_BLOCKS = Traits::ROPE_BLOCKS;
  Block<TILE_TOKENS> blocks[STATE_BLOCKS + ROPE_BLOCKS];

  static __device__ __forceinline__ u32 part_bytes(i32 part) {
    return (STATE_BLOCKS / PARTS + (part == LEFT ? ROPE_BLOCKS : 0)) * sizeof(Block<TILE_TOKENS>);
  }
  __device__ __forceinline__ Block<TILE_TOKENS>* state(i32) { return blocks; }
  __device__ __forceinline__ Block<TILE_TOKENS>* half(Half half) {
    return blocks + half * Traits::HALF_BLOCKS;
  }
  __device__ __forceinline__ Block<TILE_TOKENS>* rope() { return blocks + STATE_BLOCKS; }
};

struct SharedMemory {
  Block<64> queries[Traits::QUERY_BLOCKS];  // and at an item's end its result
  Stage stages[Traits::STAGES];
  Block<64> probabilities;                   // [64 rows][64 tokens]
  Ring<Traits::STAGES * Stage::PARTS> ring;  // index: stage * 2 + half
  // What the right half's rows are to be multiplied by: 16 rows x 4 copies a warp.
  alignas(16) u32 factor[4][16][4];
  u64 queries_in;   // an item's queries are in shared memory
  u64 queries_out;  // .. and neither they nor the result in their place is needed any more
  u64 written;      // P(j) and its factors are in shared memory
  u64 read;         // .. and in the right group's registers
  // S(j + 1) is under way: R(j) may queue up behind it. One for each stage of j, since the left
  // group can be a tile ahead here, and a barrier cannot tell two phases back from none.
  u64 scores_started[Traits::STAGES];
  Poison<TILE_TOKENS> poison;
};
static_assert(sizeof(SharedMemory) <= Traits::SHARED_LIMIT);

// How to launch: threads a CTA, bytes of dynamic shared memory. Read by the host from the module.
extern "C" __device__ i32 tied_wide_sm90_launch[2] = {Traits::THREADS, sizeof(SharedMemory)};

// Named barrier of the left group alone; 0 is __syncthreads. What the groups have to say to each
// other goes through mbarriers, four arrivals (one a warp) where it happens every tile.
// PERF: 128 heads, 128 sequences of 8192, q_len 1 / 2: 509 / 951 us; with one arrival a thread 517 /
// 926; with named barriers (one group arrives, the other waits) 505 / 900, but synccheck rejects one
// barrier at two places of the code, and racecheck sees no order in an arrival.
constexpr u32 BARRIER_LEFT = 1;

using Scores = float[TILE_TOKENS / 2];           // 64 x 64
using Accumulator = float[Traits::S / 4];        // 64 x s / 2
using Probabilities = u32[TILE_TOKENS / 16][4];  // 64 x 64, A fragments by k16 step

// The part of S = Q K^T that key blocks first .. last contribute, not waited for.
template <i32 FIRST, i32 LAST>
__device__ __forceinline__ void start_score_blocks(Scores& s, const Block<64>* queries,
                                                   Stage& stage, bool accumulate) {
  const u32 q = ptx::opaque(descriptor::k_major(queries));
  const u32 k = ptx::opaque(descriptor::k_major(stage.blocks));
#pragma unroll
  for (i32 block = FIRST; block < LAST; ++block) {
    const i32 key_block =
        block < Traits::NOPE_BLOCKS ? block : block - Traits::NOPE_BLOCKS + Traits::STATE_BLOCKS;
#pragma unroll
    for (i32 step = 0; step < BLOCK_COLUMNS / 16; ++step) {
      const u32 column = step * descriptor::K_MAJOR_STEP;
      ptx::wgmma_ss<Number>(s, descriptor::full(q + block * descriptor::BLOCK_STEP + column),
                            descriptor::full(k + key_block * descriptor::BLOCK_STEP + column),
                            accumulate || block + step > FIRST);
    }
  }
}

// O += P V over one half of V's columns, not waited for.
__device__ __forceinline__ void start_output(Accumulator& o, const Probabilities& p,
                                             Block<TILE_TOKENS>* values) {
  const u32 v = ptx::opaque(descriptor::mn_major(values));
  ptx::wgmma_fence();
#pragma unroll
  for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
    ptx::wgmma_rs<Number>(o, p[step], descriptor::full(v + step * descriptor::MN_MAJOR_STEP));
  }
  ptx::wgmma_commit();
}

__device__ __forceinline__ void correct_output(Accumulator& o, const float (&correction)[2]) {
  if (!__any_sync(~0u, correction[0] != 1.0f || correction[1] != 1.0f)) return;
#pragma unroll
  for (i32 i = 0; i < Traits::S / 4; ++i) o[i] *= correction[i / 2 % 2];
}

// The thread's first row of the item's 64; it also holds the row 8 below.
__device__ __forceinline__ i32 thread_row() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

// Where this lane's ldmatrix / stmatrix row of k16 step `step` of P lies.
__device__ __forceinline__ u32 fragment_address(const Block<64>& p, i32 step) {
  const i32 lane = threadIdx.x % 32;
  const i32 row = threadIdx.x % 128 / 32 * 16 + lane % 16;
  return ptx::shared_address(&p) + swizzled(row, step * 2 + lane / 16);
}

__device__ __forceinline__ void release(SharedMemory& shared, i32 stage, Half half) {
  consumer_arrive<Traits::BOXES>(&shared.ring.empty[stage * 2 + half]);
}

// Both groups: the item's queries into shared memory.
__device__ __forceinline__ void load_item_queries(const Attend& a, const Item& item,
                                                  SharedMemory& shared, u32 item_parity) {
  ptx::mbarrier_wait(&shared.queries_out, item_parity ^ 1);
  load_queries<Traits::KEY_BLOCKS>(shared.queries, a, item, item.head, item.first_row, threadIdx.x,
                                   Traits::CONSUMERS);
  ptx::copy_wait_all();
  ptx::fence_proxy_async();
  ptx::mbarrier_arrive(&shared.queries_in);
}

// Where this lane's ldmatrix / stmatrix row of the factors lies. Each lane stores the factors of
// its two rows and the lane in its place in the right group loads them, as with the fragments of P.
__device__ __forceinline__ u32 factor_address(const SharedMemory& shared) {
  return ptx::shared_address(&shared.factor[threadIdx.x % 128 / 32][threadIdx.x % 16]);
}

__device__ __forceinline__ void factors_out(SharedMemory& shared, u32& handover,
                                            const float (&factor)[2]) {
  const u32 bits[2] = {__float_as_uint(factor[0]), __float_as_uint(factor[1])};
  ptx::stmatrix_x2(factor_address(shared), bits);
  ptx::mbarrier_arrive_warp(&shared.written);
  handover ^= 1;
}

__device__ __forceinline__ void factors_in(SharedMemory& shared, u32 handover, float (&factor)[2]) {
  ptx::mbarrier_wait(&shared.written, handover);
  u32 bits[2];
  ptx::ldmatrix_x2(bits, factor_address(shared));
  factor[0] = __uint_as_float(bits[0]);
  factor[1] = __uint_as_float(bits[1]);
}

// One item, as the left group sees it.
struct LeftGroup {
  const Attend& a;
  const Item& item;
  SharedMemory& shared;
  Cursor<Traits::STAGES>& cursor;
  i32 hidden;     // first position that some row of the item does not see
  u32& handover;  // number of the next, modulo 2
  OnlineSoftmax softmax;
  bool bad_page;

  __device__ __forceinline__ LeftGroup(const Attend& a, const Item& item, SharedMemory& shared,
                                       Cursor<Traits::STAGES>& cursor, u32& handover)
      : a(a), item(item), shared(shared), cursor(cursor), handover(handover), bad_page(false) {
    hidden = first_hidden(a.batch, item.piece, item.first_row / a.group);
    softmax.init();
  }

  __device__ __forceinline__ bool masked(i32 kv) const { return kv + TILE_TOKENS > hidden; }

  __device__ __forceinline__ void half_in(Half half) {
    const i32 slot = cursor.stage * 2 + half;
    ptx::mbarrier_wait(&shared.ring.full[slot], cursor.parity);
    bad_page |= bad_page_in(shared.ring, slot);
    if (!Traits::BOXES) ptx::fence_proxy_async();
  }

  // S of the tile at `kv`, half by half as they arrive.
  __device__ __forceinline__ void start_scores(Scores& s, i32 kv) {
    Stage& stage = shared.stages[cursor.stage];
    constexpr i32 LEFT_BLOCKS =
        Traits::NOPE_BLOCKS < Traits::HALF_BLOCKS ? Traits::NOPE_BLOCKS : Traits::HALF_BLOCKS;
    half_in(LEFT);
    if (masked(kv)) {
      half_in(RIGHT);
      sanitise<Number, Traits::STATE_BLOCKS>(stage.state(0), shared.poison, kv, hidden,
                                             item.piece.kv_len, threadIdx.x / 32,
                                             Traits::GROUP_WARPS);
      ptx::fence_proxy_async();
      ptx::named_barrier_sync(BARRIER_LEFT, 128);
    }
    ptx::wgmma_fence();
    start_score_blocks<0, LEFT_BLOCKS>(s, shared.queries, stage, false);
    start_score_blocks<Traits::NOPE_BLOCKS, Traits::KEY_BLOCKS>(s, shared.queries, stage,
                                                                LEFT_BLOCKS > 0);
    half_in(RIGHT);
    ptx::wgmma_fence();
    start_score_blocks<LEFT_BLOCKS, Traits::NOPE_BLOCKS>(s, shared.queries, stage, true);
    ptx::wgmma_commit();
  }

  // P from S, handed to the right group, and O brought to the new maximum.
  __device__ __forceinline__ void probabilities(Scores& s, Probabilities& p, Accumulator& o,
                                                i32 kv) {
    if (masked(kv)) {
      const i32 row = item.first_row + thread_row();
      const Visibility view[2] = {visibility(a.batch, item.piece, row / a.group),
                                  visibility(a.batch, item.piece, (row + 8) / a.group)};
      mask_scores(s, view, kv, item.piece.kv_len, shared.poison);
    }
    float correction[2];
    softmax.push(s, a.scale_log2, correction);
#pragma unroll
    for (i32 i = 0; i < TILE_TOKENS / 4; ++i) {
      p[i / 4][i % 4] = Number::pack(s[2 * i], s[2 * i + 1]);
    }
    ptx::mbarrier_wait(&shared.read, handover ^ 1);
#pragma unroll
    for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
      ptx::stmatrix_x4(fragment_address(shared.probabilities, step), p[step]);
    }
    factors_out(shared, handover, correction);
    correct_output(o, correction);
  }

  __device__ __forceinline__ void run() {
    Scores s;
    Probabilities p;
    Accumulator o = {};
    i32 kv = item.piece.kv_begin;
    if (kv < item.piece.kv_end) {
      // S(0)
      start_scores(s, kv);
      ptx::wgmma_wait<0>();

      for (; kv + TILE_TOKENS < item.piece.kv_end; kv += TILE_TOKENS) {
        // P(j)
        probabilities(s, p, o, kv);

        // L(j), and S(j + 1) behind it
        const i32 stage = cursor.stage;
        start_output(o, p, shared.stages[stage].half(LEFT));
        cursor.advance();
        start_scores(s, kv + TILE_TOKENS);
        ptx::mbarrier_arrive_warp(&shared.scores_started[stage]);

        // L(j) done: its half may be refilled
        ptx::wgmma_wait<1>();
        release(shared, stage, LEFT);
        ptx::wgmma_wait<0>();
      }

      // P and L of the last tile
      probabilities(s, p, o, kv);
      start_output(o, p, shared.stages[cursor.stage].half(LEFT));
      ptx::mbarrier_arrive_warp(&shared.scores_started[cursor.stage]);
      ptx::wgmma_wait<0>();
      release(shared, cursor.stage, LEFT);
      cursor.advance();
    }

    // Result; the right group waits for its factors
    if (bad_page) softmax.sum[0] = softmax.sum[1] = not_a_number();
    float factor[2], lse_log2[2];
    softmax.normalise(a.scale_log2, factor, lse_log2);
    const i32 row = item.first_row + thread_row();
    resolve_weightless(a, item, row, factor[0], lse_log2[0]);
    resolve_weightless(a, item, row + 8, factor[1], lse_log2[1]);
    ptx::mbarrier_wait(&shared.read, handover ^ 1);
    factors_out(shared, handover, factor);
    ptx::named_barrier_sync(BARRIER_LEFT, 128);
    store_group<Number>(a, item, item.first_row, Traits::ROWS, Traits::S, 0, shared.queries, o,
                        factor, lse_log2, true);
  }
};

// One item, as the right group sees it.
__device__ __forceinline__ void run_right_group(const Attend& a, const Item& item,
                                                SharedMemory& shared,
                                                Cursor<Traits::STAGES>& cursor, u32& handover) {
  Probabilities p;
  Accumulator o = {};
  float factor[2];
  for (i32 kv = item.piece.kv_begin; kv < item.piece.kv_end; kv += TILE_TOKENS) {
    // P(j)
    factors_in(shared, handover, factor);
#pragma unroll
    for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
      ptx::ldmatrix_x4(p[step], fragment_address(shared.probabilities, step));
    }
    ptx::mbarrier_arrive_warp(&shared.read);
    handover ^= 1;
    correct_output(o, factor);

    // R(j), behind S(j + 1)
    ptx::mbarrier_wait(&shared.ring.full[cursor.stage * 2 + RIGHT], cursor.parity);
    if (!Traits::BOXES) ptx::fence_proxy_async();
    ptx::mbarrier_wait(&shared.scores_started[cursor.stage], cursor.parity);
    start_output(o, p, shared.stages[cursor.stage].half(RIGHT));
    ptx::wgmma_wait<0>();
    release(shared, cursor.stage, RIGHT);
    cursor.advance();
  }

  // Result
  factors_in(shared, handover, factor);
  ptx::mbarrier_arrive_warp(&shared.read);
  handover ^= 1;
  const float no_lse[2] = {};
  store_group<Number>(a, item, item.first_row, Traits::ROWS, Traits::S, Traits::S / 2,
                      shared.queries + Traits::HALF_BLOCKS, o, factor, no_lse, false);
}

__device__ __forceinline__ void produce(const Attend& a, const TensorMap* state_map,
                                        const TensorMap* rope_map, SharedMemory& shared) {
  Cursor<Traits::STAGES> cursor;
  if constexpr (Traits::BOXES) {
    if (threadIdx.x / 32 != Traits::CONSUMERS / 32) return;
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_boxes(item, a.batch, state_map, rope_map, shared.stages, shared.ring, cursor,
                      a.status);
    });
  } else {
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_rows(item, a, shared.stages, shared.ring, cursor);
    });
  }
}

extern "C" __global__ void __launch_bounds__(Traits::THREADS, 1)
    tied_wide_sm90(const __grid_constant__ Attend a, const __grid_constant__ TensorMap state_map,
                   const __grid_constant__ TensorMap rope_map) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(bytes);

  // Barriers, and a head start for what follows
  if (threadIdx.x == 0) {
    shared.ring.init(Traits::BOXES ? BOX_PRODUCERS : ROW_PRODUCERS,
                     consumer_arrivals<Traits::BOXES>(Traits::GROUP_WARPS));
    ptx::mbarrier_init(&shared.queries_in, Traits::CONSUMERS);
    ptx::mbarrier_init(&shared.queries_out, Traits::CONSUMERS);
    ptx::mbarrier_init(&shared.written, Traits::GROUP_WARPS);
    ptx::mbarrier_init(&shared.read, Traits::GROUP_WARPS);
    for (u64& started : shared.scores_started) ptx::mbarrier_init(&started, Traits::GROUP_WARPS);
    ptx::fence_mbarrier_init();
    shared.poison.init();
    if constexpr (Traits::BOXES) {
      ptx::prefetch_tensor_map(&state_map);
      ptx::prefetch_tensor_map(&rope_map);
    }
  }
  __syncthreads();
  ptx::wait_for_dependencies();
  ptx::launch_dependents();

  // Roles
  const i32 group = threadIdx.x / 128;
  if (group == 2) {
    ptx::release_registers<Traits::PRODUCER_REGISTERS>();
    produce(a, &state_map, &rope_map, shared);
  } else if (group == RIGHT) {
    ptx::claim_registers<Traits::CONSUMER_REGISTERS>();
    Cursor<Traits::STAGES> cursor;
    u32 handover = 0, item_parity = 0;
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_queries(a, item, shared, item_parity);
      run_right_group(a, item, shared, cursor, handover);
      ptx::mbarrier_arrive(&shared.queries_out);
      item_parity ^= 1;
    });
  } else {
    ptx::claim_registers<Traits::CONSUMER_REGISTERS>();
    Cursor<Traits::STAGES> cursor;
    u32 handover = 0, item_parity = 0;
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_queries(a, item, shared, item_parity);
      ptx::mbarrier_wait(&shared.queries_in, item_parity);
      LeftGroup(a, item, shared, cursor, handover).run();
      ptx::mbarrier_arrive(&shared.queries_out);
      item_parity ^= 1;
    });
  }
}
