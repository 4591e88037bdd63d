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
// The groups take turns at the tiles: the left one computes S and P of the first of a pair, the right
// one of the second, and each P goes to the other group through shared memory. Both multiply it by
// their half of V (L and R are the halves of O += P V). So one group's softmax runs under the other's
// products:
//
//     tensor cores  | S(j)    | S(j+1)        | L(j)       | R(j) L(j+1) | R(j+1) | S(j+2) ..
//     left          |         | P(j)          |            |             |
//     right         |         |               | P(j+1)     |             |
//     producers       .. the halves of tile j+2, each as soon as L(j) or R(j) is done ..
//
// With tensor maps L(j) is held back until S(j + 1) is issued, which more depends on.
//
// Each group takes exponentials against a base of its own, which the other gets with P; where they
// are not the same, both groups go on with the larger one. Of a row's first tiles the right group begins
// with the left one's.
//
// Two tiles are all that fit, so a tile is refilled by halves, the left one with the rope key. With
// tensor maps a warp copies each, so that neither waits until the other may be refilled.
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
  static constexpr i32 CONSUMER_REGISTERS = 232;
  static constexpr i32 PRODUCER_REGISTERS = 40;
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
  // [64 rows][64 tokens]. Each group takes what the other left before it leaves its own, and a warp
  // reads and writes the same 16 rows, so one is enough.
  Block<64> probabilities;
  // With P, its base: by warp and row, from each of the row's four lanes.
  alignas(16) u32 bases[4][16][4];
  float sums[2][64];  // of each group's exponentials
  ResultRows result[2];
  Ring<Traits::STAGES * Stage::PARTS> ring;  // index: stage * 2 + half
  u64 queries_in;   // an item's queries are in shared memory
  u64 queries_out;  // .. and neither they nor the result in their place is needed any more
  u64 handed[2][4];  // P and its base are there, by group and warp
  u64 scoring[4];    // the right group's S is under way, by warp
  u64 summed[2];     // the sums are there, by group
  Poison<TILE_TOKENS> poison[Traits::STAGES];
};
static_assert(sizeof(SharedMemory) <= Traits::SHARED_LIMIT);

// Named barrier of a group alone, + half; 0 is __syncthreads. What the groups have to say to each
// other goes through mbarriers, warp by warp: synccheck rejects one named barrier at two places of the
// code, and racecheck sees no order in an arrival.
// PERF: 128 heads, 128 sequences of 8192, q_len 1 / 2. One warp for both halves of a tile 500 / 884 us,
// a warp each 489 / 867; S and P of all tiles by the left group 513 / 896. On another card: L(j) held
// back until S(j + 1) is issued 495 / 876, not held back 498 / 894. Products of both groups under way
// together gain nothing: a warp that issues a wgmma waits until the one before it has run, so R(j) ahead
// of the right group's softmax delays that: 866 -> 924, S(j + 2) behind L(j + 1) as well: 980.
constexpr u32 BARRIER_GROUP = 1;

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
#pragma unroll
  for (i32 i = 0; i < Traits::S / 4; ++i) o[i] *= correction[i / 2 % 2];
}

// P against another base. The factors are powers of two once they are rounded to P's type.
__device__ __forceinline__ void correct_probabilities(Probabilities& p, const float (&factor)[2]) {
  const u32 pair[2] = {Number::pack(factor[0], factor[0]), Number::pack(factor[1], factor[1])};
#pragma unroll
  for (i32 i = 0; i < TILE_TOKENS / 4; ++i) p[i / 4][i % 4] = Number::multiply(p[i / 4][i % 4], pair[i % 2]);
}

// The thread's first row of the item's 64; it also holds the row 8 below.
__device__ __forceinline__ i32 thread_row() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

// Where this lane's ldmatrix / stmatrix row of k16 step `step` of P lies. Found where it is needed:
// four addresses kept throughout the loop are registers that the right group has not.
__device__ __forceinline__ u32 fragment_address(const Block<64>& p, i32 step) {
  const i32 thread = ptx::opaque(threadIdx.x);
  const i32 row = thread % 128 / 32 * 16 + thread % 16;
  return ptx::shared_address(&p) + swizzled(row, step * 2 + thread % 32 / 16);
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

// One item, as one group sees it: SIDE is its half of the columns, and of each pair of tiles the left
// group owns the first.
template <Half SIDE>
struct Group {
  static constexpr Half OTHER = SIDE == LEFT ? RIGHT : LEFT;

  const Attend& a;
  const Item& item;
  SharedMemory& shared;
  Cursor<Traits::STAGES>& cursor;
  u32& taken;  // how many P of the other group, modulo 2
  i32 hidden;  // first position that some row of the item does not see
  OnlineSoftmax softmax;
  bool bad_page;

  __device__ __forceinline__ Group(const Attend& a, const Item& item, SharedMemory& shared,
                                   Cursor<Traits::STAGES>& cursor, u32& taken)
      : a(a), item(item), shared(shared), cursor(cursor), taken(taken), bad_page(false) {
    hidden = first_hidden(a.batch, item.piece, item.first_row / a.group);
    softmax.init();
  }

  static __device__ __forceinline__ i32 warp() { return threadIdx.x % 128 / 32; }

  __device__ __forceinline__ bool masked(i32 kv) const { return kv + TILE_TOKENS > hidden; }

  __device__ __forceinline__ void half_in(const Cursor<Traits::STAGES>& at, Half half) {
    ptx::mbarrier_wait(&shared.ring.full[at.stage * 2 + half], at.parity);
    if (!Traits::BOXES) ptx::fence_proxy_async();
  }

  __device__ __forceinline__ void own_half_in(const Cursor<Traits::STAGES>& at, Half half) {
    half_in(at, half);
    bad_page |= bad_page_in(shared.ring, at.stage * 2 + half);
  }

  // S of a tile of this group, half by half as they arrive, not waited for.
  __device__ __forceinline__ void start_scores(Scores& s, const Cursor<Traits::STAGES>& at,
                                               i32 kv) {
    Stage& stage = shared.stages[at.stage];
    constexpr i32 LEFT_BLOCKS =
        Traits::NOPE_BLOCKS < Traits::HALF_BLOCKS ? Traits::NOPE_BLOCKS : Traits::HALF_BLOCKS;
    own_half_in(at, LEFT);
    if (masked(kv)) {
      own_half_in(at, RIGHT);
      sanitise<Number, Traits::STATE_BLOCKS>(stage.state(0), shared.poison[at.stage], kv, hidden,
                                             item.piece.kv_len, warp(), Traits::GROUP_WARPS);
      ptx::fence_proxy_async();
      ptx::named_barrier_sync(BARRIER_GROUP + SIDE, 128);
    }
    ptx::wgmma_fence();
    start_score_blocks<0, LEFT_BLOCKS>(s, shared.queries, stage, false);
    start_score_blocks<Traits::NOPE_BLOCKS, Traits::KEY_BLOCKS>(s, shared.queries, stage,
                                                                LEFT_BLOCKS > 0);
    own_half_in(at, RIGHT);
    ptx::wgmma_fence();
    start_score_blocks<LEFT_BLOCKS, Traits::NOPE_BLOCKS>(s, shared.queries, stage, true);
    ptx::wgmma_commit();
  }

  // P of a tile of this group from S. True where a base moved: what was accumulated so far must be
  // multiplied by `correction` then.
  __device__ __forceinline__ bool probabilities(Scores& s, Probabilities& p,
                                                const Cursor<Traits::STAGES>& at, i32 kv,
                                                float (&correction)[2]) {
    if (masked(kv)) {
      const i32 row = item.first_row + thread_row();
      const Visibility view[2] = {visibility(a.batch, item.piece, row / a.group),
                                  visibility(a.batch, item.piece, (row + 8) / a.group)};
      mask_scores(s, view, kv, item.piece.kv_len, shared.poison[at.stage]);
    }
    const bool moved = softmax.push(s, a.scale_log2, correction);
#pragma unroll
    for (i32 i = 0; i < TILE_TOKENS / 4; ++i) {
      p[i / 4][i % 4] = Number::pack(s[2 * i], s[2 * i + 1]);
    }
    return moved;
  }

  static __device__ __forceinline__ u32 base_address(const SharedMemory& shared) {
    return ptx::shared_address(shared.bases[warp()][ptx::opaque(threadIdx.x) % 16]);
  }

  __device__ __forceinline__ void hand(const Probabilities& p) {
#pragma unroll
    for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
      ptx::stmatrix_x4(fragment_address(shared.probabilities, step), p[step]);
    }
    ptx::stmatrix_x2(base_address(shared),
                     {__float_as_uint(softmax.base[0]), __float_as_uint(softmax.base[1])});
    ptx::mbarrier_arrive_warp(&shared.handed[SIDE][warp()]);
  }

  __device__ __forceinline__ void take(Probabilities& p, float (&base)[2]) {
    ptx::mbarrier_wait(&shared.handed[OTHER][warp()], taken);
    taken ^= 1;
#pragma unroll
    for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
      ptx::ldmatrix_x4(p[step], fragment_address(shared.probabilities, step));
    }
    other_base(base);
  }

  __device__ __forceinline__ void other_base(float (&base)[2]) const {
    u32 bits[2];
    ptx::ldmatrix_x2(bits, base_address(shared));
    base[0] = __uint_as_float(bits[0]);
    base[1] = __uint_as_float(bits[1]);
  }

  __device__ __forceinline__ bool unseen(i32 r) const { return softmax.base[r] == -infinity(); }

  // Before this group has seen anything of a row it takes the other one's base, which is some way from
  // its own: P against a third would be rounded twice.
  __device__ __forceinline__ void begin_as_other() {
    ptx::mbarrier_wait(&shared.handed[OTHER][warp()], taken);
    float base[2];
    other_base(base);
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      if (unseen(r)) softmax.base[r] = base[r];
    }
  }

  // Where the other group's P has another base than this group's sums: the larger one for both. True
  // where a row's is, with what to multiply this group's sums and P by.
  __device__ __forceinline__ bool agree(Probabilities& other, const float (&base)[2],
                                        float (&own_factor)[2]) {
    if (!__any_sync(~0u, base[0] != softmax.base[0] || base[1] != softmax.base[1])) return false;
    float other_factor[2];
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      const float larger = fmaxf(softmax.base[r], base[r]);
      own_factor[r] = OnlineSoftmax::rebase(softmax.base[r], larger);
      other_factor[r] = OnlineSoftmax::rebase(base[r], larger);
      softmax.base[r] = larger;
      softmax.sum[r] *= own_factor[r];
    }
    correct_probabilities(other, other_factor);
    return true;
  }

  __device__ __forceinline__ void start_half(Accumulator& o, const Probabilities& p, i32 stage) {
    start_output(o, p, shared.stages[stage].half(SIDE));
  }

  __device__ __forceinline__ void half_out(i32 stage) {
    consumer_arrive<Traits::BOXES>(&shared.ring.empty[stage * 2 + SIDE]);
  }

  // Tiles j, of the left group, and j + 1, of the right one.
  __device__ __forceinline__ void pair(Accumulator& o, i32 kv) {
    Scores s;
    Probabilities own, other;
    float correction[2], base[2], factor[2];
    const Cursor<Traits::STAGES> first = cursor;
    cursor.advance();
    const Cursor<Traits::STAGES> second = cursor;
    cursor.advance();
    if constexpr (SIDE == LEFT) {
      start_scores(s, first, kv);
      ptx::wgmma_wait<0>();
      if (probabilities(s, own, first, kv, correction)) correct_output(o, correction);
      hand(own);
      if (Traits::BOXES) ptx::mbarrier_wait(&shared.scoring[warp()], taken);
      start_half(o, own, first.stage);
      ptx::wgmma_wait<0>();
      half_out(first.stage);

      take(other, base);
      if (agree(other, base, factor)) correct_output(o, factor);
      half_in(second, LEFT);
      start_half(o, other, second.stage);
    } else {
      start_scores(s, second, kv + TILE_TOKENS);
      if (Traits::BOXES) ptx::mbarrier_arrive_warp(&shared.scoring[warp()]);
      ptx::wgmma_wait<0>();
      if (__any_sync(~0u, unseen(0) || unseen(1))) begin_as_other();
      if (probabilities(s, own, second, kv + TILE_TOKENS, correction)) correct_output(o, correction);
      take(other, base);
      hand(own);
      if (agree(other, base, factor)) {
        correct_output(o, factor);
        correct_probabilities(own, factor);
      }
      half_in(first, RIGHT);
      start_half(o, other, first.stage);
      ptx::wgmma_wait<0>();
      half_out(first.stage);
      start_half(o, own, second.stage);
    }
    ptx::wgmma_wait<0>();
    half_out(second.stage);
  }

  // A last tile without a second.
  __device__ __forceinline__ void single(Accumulator& o, i32 kv) {
    Probabilities p;
    float factor[2], base[2];
    const Cursor<Traits::STAGES> only = cursor;
    cursor.advance();
    if constexpr (SIDE == LEFT) {
      Scores s;
      start_scores(s, only, kv);
      ptx::wgmma_wait<0>();
      if (probabilities(s, p, only, kv, factor)) correct_output(o, factor);
      hand(p);
    } else {
      take(p, base);
      if (agree(p, base, factor)) correct_output(o, factor);
      half_in(only, RIGHT);
    }
    start_half(o, p, only.stage);
    ptx::wgmma_wait<0>();
    half_out(only.stage);
  }

  // Both groups' exponentials together. Behind it no warp of either multiplies any more.
  __device__ __forceinline__ void add_sums(u32 item_parity) {
    if (bad_page) softmax.sum[0] = softmax.sum[1] = not_a_number();
    softmax.gather();
    const i32 row = thread_row();
    if (threadIdx.x % 4 == 0) {
      shared.sums[SIDE][row] = softmax.sum[0];
      shared.sums[SIDE][row + 8] = softmax.sum[1];
    }
    ptx::mbarrier_arrive(&shared.summed[SIDE]);
    ptx::mbarrier_wait(&shared.summed[SIDE], item_parity);
    ptx::mbarrier_wait(&shared.summed[OTHER], item_parity);
    softmax.sum[0] = shared.sums[LEFT][row] + shared.sums[RIGHT][row];
    softmax.sum[1] = shared.sums[LEFT][row + 8] + shared.sums[RIGHT][row + 8];
  }

  __device__ __forceinline__ void run(u32 item_parity) {
    Accumulator o = {};
    i32 kv = item.piece.kv_begin;
    for (; kv + TILE_TOKENS < item.piece.kv_end; kv += 2 * TILE_TOKENS) pair(o, kv);
    if (kv < item.piece.kv_end) single(o, kv);

    add_sums(item_parity);
    float factor[2], lse_log2[2];
    softmax.finish(factor, lse_log2);
    const i32 row = item.first_row + thread_row();
    resolve_weightless(a, item, row, factor[0], lse_log2[0]);
    resolve_weightless(a, item, row + 8, factor[1], lse_log2[1]);
    // PERF: found before the item's first product, MLA at q_len 1 takes 499.9 us instead of 496.0.
    find_rows(shared.result[SIDE], a, item, item.first_row, Traits::ROWS, Traits::S);
    // The queries are done with, and make room for the result.
    constexpr i32 BLOCK = SIDE * Traits::HALF_BLOCKS;
    store_group<Number>(a, item, shared.result[SIDE], item.first_row, Traits::ROWS, Traits::S,
                        BLOCK * BLOCK_COLUMNS, shared.queries + BLOCK, o, factor, lse_log2,
                        SIDE == LEFT);
  }
};

template <Half SIDE>
__device__ __forceinline__ void consume(const Attend& a, SharedMemory& shared) {
  Cursor<Traits::STAGES> cursor;
  u32 taken = 0, item_parity = 0;
  for_each_item(a.schedule, a.group, [&](const Item& item) {
    load_item_queries(a, item, shared, item_parity);
    ptx::mbarrier_wait(&shared.queries_in, item_parity);
    Group<SIDE>(a, item, shared, cursor, taken).run(item_parity);
    ptx::mbarrier_arrive(&shared.queries_out);
    item_parity ^= 1;
  });
}

__device__ __forceinline__ void produce(const Attend& a, const TensorMap* state_map,
                                        const TensorMap* rope_map, SharedMemory& shared) {
  Cursor<Traits::STAGES> cursor;
  if constexpr (Traits::BOXES) {
    if (threadIdx.x / 32 >= Traits::CONSUMERS / 32 + Stage::PARTS) return;
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
    for (u64& scoring : shared.scoring) ptx::mbarrier_init(&scoring, 1);
    for (i32 side = 0; side < 2; ++side) {
      for (u64& handed : shared.handed[side]) ptx::mbarrier_init(&handed, 1);
      ptx::mbarrier_init(&shared.summed[side], Traits::CONSUMERS / 2);
    }
    ptx::fence_mbarrier_init();
    for (Poison<TILE_TOKENS>& poison : shared.poison) poison.init();
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
  } else {
    ptx::claim_registers<Traits::CONSUMER_REGISTERS>();
    if (group == LEFT) {
      consume<LEFT>(a, shared);
    } else {
      consume<RIGHT>(a, shared);
    }
  }
}
