// tied_sm90.cu: decode attention over a tied cache, one cached head an item (GLA, and other tied
// widths up to s = 256). Spec: reference/, "tied"; deep-dive: docs/kernels/tied_sm90.md.
//
//     K_g = [state_g[..n] | rope],  V_g = state_g
//     o[t, i] = sum_j softmax_j(scale <q[t, i], K_g[j]>) V_g[j]            j visible to t
//
// grid     persistent, one CTA an SM; teams of CTAs walk the schedule (abi.cuh)
// CTA      ROWS / 64 consumer warpgroups of 64 packed rows each, then one producer warpgroup
// item     one cached head x ROWS packed rows x one KV range, in tiles of 64 tokens
// smem     queries [ROWS][n + r], a ring of tiles [64][s + r]; each tile is loaded once and is K
//          (K-major view) and V (MN-major view) of all the CTA's rows
// host     n, r, s multiples of 64, n <= s, s in {64, 128, 256}; bases and strides of q and cache
//          are multiples of 16 bytes, as are those of o where it is not f32; with BOXES also
//          page_size % 64 == 0
//
// One consumer warpgroup, steady state (S = Q K^T, P = softmax, O += P V):
//
//     tensor cores  | S(j)     |            | O(j) S(j+1)  |           | O(j+1) S(j+2) ..
//     registers     |          | P(j), fix O|              | P(j+1)    |
//     producer      |  .. tiles j+2 .. j+STAGES in flight throughout ..
//
// The same where memory brings tiles about as fast as one group uses them up (GA_AHEAD):
//
//     tensor cores  | S(j+1) | O(j)        | S(j+2) | O(j+1)        | S(j+3) ..
//     registers     | wait   | P(j+1)      | wait   | P(j+2)        |
//
// Two warpgroups read the same tiles and take turns, one's products under the other's softmax:
//
//     group 0       | O(j) S(j+1)  | P(j+1)      | O(j+1) S(j+2) | P(j+2)
//     group 1       | P(j)         | O(j) S(j+1) | P(j+1)        | O(j+1) S(j+2)
//
// Compiled with -D: GA_N, GA_R, GA_S (widths), GA_ROWS (64 or 128), GA_BF16 (0 or 1),
// GA_BOXES (1: tensor maps, 0: 16-byte copies), GA_AHEAD (1: as above; 64 rows and boxes only).
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
  static constexpr i32 N = GA_N, R = GA_R, S = GA_S, ROWS = GA_ROWS;
  static constexpr bool BOXES = GA_BOXES;

  static constexpr i32 NOPE_BLOCKS = N / BLOCK_COLUMNS;
  static constexpr i32 ROPE_BLOCKS = R / BLOCK_COLUMNS;
  static constexpr i32 STATE_BLOCKS = S / BLOCK_COLUMNS;
  static constexpr i32 KEY_BLOCKS = NOPE_BLOCKS + ROPE_BLOCKS;

  static constexpr i32 CONSUMER_GROUPS = ROWS / 64;
  // PERF: two groups' queries leave room for three stages; with their rope part in registers, for
  // four. GLA at q_len 2, 128 sequences of 8192: 441 us with four, 454 with three.
  // Products with registers add to scores, so there must be others before them.
  static constexpr bool ROPE_IN_REGISTERS =
      CONSUMER_GROUPS == 2 && ROPE_BLOCKS == 1 && NOPE_BLOCKS > 0;
  static constexpr i32 SHARED_KEY_BLOCKS = ROPE_IN_REGISTERS ? NOPE_BLOCKS : KEY_BLOCKS;
  static constexpr i32 ROPE_STEPS = ROPE_IN_REGISTERS ? ROPE_BLOCKS * BLOCK_COLUMNS / 16 : 0;
  static constexpr i32 QUERY_BLOCKS =
      SHARED_KEY_BLOCKS > STATE_BLOCKS ? SHARED_KEY_BLOCKS : STATE_BLOCKS;

  static constexpr i32 CONSUMER_WARPS = 4 * CONSUMER_GROUPS;
  static constexpr i32 THREADS = 128 * (CONSUMER_GROUPS + 1);
  // Registers a thread, where the even split of the file would be too few for the consumers.
  static constexpr i32 CONSUMER_REGISTERS = 232;
  static constexpr i32 PRODUCER_REGISTERS = 40;

  static constexpr bool TURNS = CONSUMER_GROUPS == 2;
  // S(j + 1) before O(j), and P(j + 1) under O(j).
  // PERF: GLA at q_len 1 on an H200 306.2 -> 295.4 us, 64 ragged sequences 246.5 -> 238.5. A tile takes one group
  // 1900 cycles and more; an H200's memory brings one in 1730, an H100's in 2770.
  static constexpr bool AHEAD = GA_AHEAD;

  static constexpr i32 SHARED_LIMIT = 227 * 1024;
  static constexpr i32 STAGE_BYTES = (STATE_BLOCKS + ROPE_BLOCKS) * sizeof(Block<64>);
  static constexpr i32 QUERY_BYTES = CONSUMER_GROUPS * QUERY_BLOCKS * sizeof(Block<64>);
  static constexpr i32 FIT = (SHARED_LIMIT - QUERY_BYTES - 1024) / STAGE_BYTES;
  // PERF: one group drains a stage as soon as it is full, and what is in flight beyond three only
  // queues before the memory: GLA at q_len 1, three stages / four: 423 / 427 us, its half 242.9 /
  // 244.1, B 1 36.7 / 37.8; two stages 459, 256, 38.6. Two groups hold a stage for longer: half at
  // q_len 2 254.2 / 252.4, GLA 455 / 444.
  // AHEAD holds a stage for longer too, on an H200: GLA at q_len 1 316.8 with three, 309.5 with four.
  static constexpr i32 IN_FLIGHT_BYTES = (AHEAD ? 160 : 120) * 1024;
  static constexpr i32 USEFUL = CONSUMER_GROUPS == 1 ? IN_FLIGHT_BYTES / STAGE_BYTES : 8;
  static constexpr i32 STAGES = FIT < USEFUL ? FIT : USEFUL;

  // Two groups hold about two of four stages; more than the other two on their way only queue.
  // PERF: q_len 2, at most 1 / 2 / 3 under way / no limit: half 256.8 / 252.3 / 253.2 / 254.7 us,
  // B 16 85.2 / 84.0 / 86.0 / 86.5, GLA 455.9 / 448.1 / 449.7 / 450.9. One group gains nothing:
  // half at q_len 1 249.7 / 244.7 / - / 244.4.
  static constexpr i32 UNDER_WAY = CONSUMER_GROUPS == 2 ? 80 * 1024 / STAGE_BYTES : NO_LIMIT;

  static_assert(N % 64 == 0 && R % 64 == 0 && S % 64 == 0 && N <= S && N + R > 0);
  static_assert(S == 64 || S == 128 || S == 256, "one wgmma spans the accumulator");
  static_assert(ROWS == 64 || ROWS == 128);
  static_assert(STAGES >= 2);
  static_assert(!AHEAD || (CONSUMER_GROUPS == 1 && BOXES));
  static_assert(128 * (CONSUMER_GROUPS * CONSUMER_REGISTERS + PRODUCER_REGISTERS) <= 65536 ||
                CONSUMER_GROUPS == 1);
};

using Number =
#if GA_BF16
    Bf16;
#else
    F16;
#endif

struct Stage {
  static constexpr i32 TOKENS = TILE_TOKENS;
  static constexpr i32 HEADS = 1;
  static constexpr i32 STATE_BLOCKS = Traits::STATE_BLOCKS;
  static constexpr i32 ROPE_BLOCKS = Traits::ROPE_BLOCKS;
  Block<TILE_TOKENS> blocks[STATE_BLOCKS + ROPE_BLOCKS];

  __device__ __forceinline__ Block<TILE_TOKENS>* state(i32) { return blocks; }
  __device__ __forceinline__ Block<TILE_TOKENS>* rope() { return blocks + STATE_BLOCKS; }
};

struct SharedMemory {
  // Of each group, and at an item's end its result.
  Block<64> queries[Traits::CONSUMER_GROUPS][Traits::QUERY_BLOCKS];
  Stage stages[Traits::STAGES];
  Ring<Traits::STAGES> ring;
  Poison<TILE_TOKENS> poison[Traits::STAGES];
  ResultRows result[Traits::CONSUMER_GROUPS];
};
static_assert(sizeof(SharedMemory) <= Traits::SHARED_LIMIT);

// Named barriers; 0 is __syncthreads.
constexpr u32 BARRIER_CONSUMERS = 1;
constexpr u32 BARRIER_GROUP = 2;  // + consumer group
constexpr u32 BARRIER_TURN = 4;   // + consumer group

using Scores = float[TILE_TOKENS / 2];           // 64 x 64
using Accumulator = float[Traits::S / 2];        // 64 x s
using Probabilities = u32[TILE_TOKENS / 16][4];  // 64 x 64, A fragments by k16 step

// Queries that are not in shared memory, A fragments by k16 step.
struct RopeQueries {
  u32 step[Traits::ROPE_STEPS > 0 ? Traits::ROPE_STEPS : 1][4];
};

// S = Q K^T, not waited for.
__device__ __forceinline__ void start_scores(Scores& s, const Block<64>* queries,
                                             const RopeQueries& rope, Stage& stage) {
  const u32 q = ptx::opaque(descriptor::k_major(queries));
  const u32 k = ptx::opaque(descriptor::k_major(stage.blocks));
  ptx::wgmma_fence();
#pragma unroll
  for (i32 block = 0; block < Traits::SHARED_KEY_BLOCKS; ++block) {
    const i32 key_block =
        block < Traits::NOPE_BLOCKS ? block : block - Traits::NOPE_BLOCKS + Traits::STATE_BLOCKS;
#pragma unroll
    for (i32 step = 0; step < BLOCK_COLUMNS / 16; ++step) {
      const u32 column = step * descriptor::K_MAJOR_STEP;
      ptx::wgmma_ss<Number>(s, descriptor::full(q + block * descriptor::BLOCK_STEP + column),
                            descriptor::full(k + key_block * descriptor::BLOCK_STEP + column),
                            block + step > 0);
    }
  }
#pragma unroll
  for (i32 step = 0; step < Traits::ROPE_STEPS; ++step) {
    const u32 column =
        Traits::STATE_BLOCKS * descriptor::BLOCK_STEP + step * descriptor::K_MAJOR_STEP;
    ptx::wgmma_rs_k_major<Number>(s, rope.step[step], descriptor::full(k + column));
  }
  ptx::wgmma_commit();
}

// O += P V, not waited for.
__device__ __forceinline__ void start_output(Accumulator& o, const Probabilities& p, Stage& stage) {
  const u32 v = ptx::opaque(descriptor::mn_major(stage.state(0)));
  ptx::wgmma_fence();
#pragma unroll
  for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
    ptx::wgmma_rs<Number>(o, p[step], descriptor::full(v + step * descriptor::MN_MAJOR_STEP));
  }
  ptx::wgmma_commit();
}

__device__ __forceinline__ void pack_probabilities(Probabilities& p, const Scores& s) {
#pragma unroll
  for (i32 i = 0; i < TILE_TOKENS / 4; ++i) {
    p[i / 4][i % 4] = Number::pack(s[2 * i], s[2 * i + 1]);
  }
}

__device__ __forceinline__ void correct_output(Accumulator& o, const float (&correction)[2]) {
#pragma unroll
  for (i32 i = 0; i < Traits::S / 2; ++i) o[i] *= correction[i / 2 % 2];
}

__device__ __forceinline__ void produce(const Attend& a, const TensorMap* state_map,
                                        const TensorMap* rope_map, SharedMemory& shared) {
  Cursor<Traits::STAGES> cursor;
  if constexpr (Traits::BOXES) {
    if (threadIdx.x / 32 != Traits::CONSUMER_WARPS) return;
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_boxes<false, Traits::UNDER_WAY>(item, a.batch, state_map, rope_map, shared.stages,
                                                shared.ring, cursor, a.status);
    });
  } else {
    for_each_item(a.schedule, a.group, [&](const Item& item) {
      load_item_rows(item, a, shared.stages, shared.ring, cursor);
    });
  }
}

// One item, as one consumer warpgroup sees it: 64 of its rows.
struct Consumer {
  const Attend& a;
  const Item& item;
  SharedMemory& shared;
  Cursor<Traits::STAGES>& cursor;
  i32 group;       // consumer group
  i32 first_row;   // packed row of the group
  i32 thread_row;  // packed row of the thread, which also holds the row 8 below
  i32 hidden;      // first position that some row of the item does not see
  OnlineSoftmax softmax;
  bool bad_page;
  float factor[2], lse_log2[2];  // of the thread's rows, by `normalise`

  __device__ __forceinline__ Consumer(const Attend& a, const Item& item, SharedMemory& shared,
                                      Cursor<Traits::STAGES>& cursor, i32 group)
      : a(a), item(item), shared(shared), cursor(cursor), group(group), bad_page(false) {
    first_row = item.first_row + group * 64;
    thread_row = first_row + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    hidden = first_hidden(a.batch, item.piece, item.first_row / a.group);
    softmax.init();
  }

  __device__ __forceinline__ bool masked(i32 kv) const { return kv + TILE_TOKENS > hidden; }

  // The first barrier: no warp may still be reading the last item's queries.
  __device__ __forceinline__ void queries_in(RopeQueries& rope) {
    ptx::named_barrier_sync(BARRIER_GROUP + group, 128);
    load_queries<Traits::SHARED_KEY_BLOCKS>(shared.queries[group], a, item, item.head, first_row,
                                            threadIdx.x % 128, 128);
    if constexpr (Traits::ROPE_IN_REGISTERS) {
      load_query_fragments(rope.step, a, item, thread_row, Traits::N);
    }
    ptx::copy_wait_all();
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(BARRIER_GROUP + group, 128);
    find_rows(shared.result[group], a, item, first_row, Traits::ROWS, Traits::S);
  }

  // Waits for the tile at `kv` in the cursor's stage and makes it fit to be multiplied.
  __device__ __forceinline__ void tile_in(i32 kv) {
    wait_for_tile();
    look_at_page();
    make_fit(kv);
  }
  __device__ __forceinline__ void wait_for_tile() {
    ptx::mbarrier_wait(&shared.ring.full[cursor.stage], cursor.parity);
  }
  __device__ __forceinline__ void look_at_page() {
    bad_page |= bad_page_in(shared.ring, cursor.stage);
  }
  __device__ __forceinline__ void make_fit(i32 kv) {
    if (masked(kv)) {
      sanitise<Number, Traits::STATE_BLOCKS>(
          shared.stages[cursor.stage].state(0), shared.poison[cursor.stage], kv, hidden,
          item.piece.kv_len, threadIdx.x / 32, Traits::CONSUMER_WARPS);
      ptx::fence_proxy_async();
      ptx::named_barrier_sync(BARRIER_CONSUMERS, Traits::CONSUMER_GROUPS * 128);
    } else if (!Traits::BOXES) {
      ptx::fence_proxy_async();
    }
  }

  // Two groups take turns at the tensor cores, so that one multiplies while the other works on its
  // softmax. Left alone they fall into step and leave the tensor cores idle together.
  // PERF: GLA, 128 sequences of 8192, in turns / alone: q_len 2 464 / 503 us, q_len 4 895 / 987 us.
  __device__ __forceinline__ void take_turn() {
    if constexpr (Traits::TURNS) ptx::named_barrier_sync(BARRIER_TURN + group, 256);
  }
  __device__ __forceinline__ void pass_turn() {
    if constexpr (Traits::TURNS) ptx::named_barrier_arrive(BARRIER_TURN + (group ^ 1), 256);
  }

  __device__ __forceinline__ void tile_out(i32 stage) {
    consumer_arrive<Traits::BOXES>(&shared.ring.empty[stage]);
  }

  // Exponentials of S. True where O is to be multiplied by `correction`.
  __device__ __forceinline__ bool weigh(Scores& s, i32 kv, float (&correction)[2]) {
    if (masked(kv)) {
      const Visibility view[2] = {visibility(a.batch, item.piece, thread_row / a.group),
                                  visibility(a.batch, item.piece, (thread_row + 8) / a.group)};
      mask_scores(s, view, kv, item.piece.kv_len, shared.poison[cursor.stage]);
    }
    return softmax.push(s, a.scale_log2, correction);
  }

  // P from S, and O brought to its base.
  __device__ __forceinline__ void probabilities(Scores& s, Probabilities& p, Accumulator& o,
                                                i32 kv) {
    float correction[2];
    const bool moved = weigh(s, kv, correction);
    pack_probabilities(p, s);
    if (moved) correct_output(o, correction);
  }

  // AHEAD, from P of one tile to that of the next, which is at `kv` and MASKED or not: S of the next, O of
  // this one behind it, and the next one's exponentials under O.
  template <bool MASKED>
  __device__ __forceinline__ void step_ahead(Scores& s, Probabilities& p, Accumulator& o,
                                             const RopeQueries& rope, i32 kv) {
    const i32 stage = cursor.stage;
    cursor.advance();
    wait_for_tile();
    if constexpr (MASKED) make_fit(kv);
    start_scores(s, shared.queries[group], rope, shared.stages[cursor.stage]);
    look_at_page();
    start_output(o, p, shared.stages[stage]);

    ptx::wgmma_wait<1>();
    float correction[2];
    const bool moved =
        MASKED ? weigh(s, kv, correction) : softmax.push(s, a.scale_log2, correction);
    // PERF: left to itself ptxas moves the exponentials behind the wait: 322.6 us instead of 316.8.
    ptx::known(softmax.sum[0] + softmax.sum[1]);
    ptx::wgmma_wait<0>();
    tile_out(stage);
    pack_probabilities(p, s);
    if (moved) correct_output(o, correction);
  }

  __device__ __forceinline__ void normalise() {
    if (bad_page) softmax.sum[0] = softmax.sum[1] = not_a_number();
    softmax.normalise(factor, lse_log2);
    resolve_weightless(a, item, thread_row, factor[0], lse_log2[0]);
    resolve_weightless(a, item, thread_row + 8, factor[1], lse_log2[1]);
  }

  __device__ __forceinline__ void result_out(const Accumulator& o) {
    // The queries are done with, and make room for the result.
    ptx::named_barrier_sync(BARRIER_GROUP + group, 128);
    store_group<Number>(a, item, shared.result[group], first_row, Traits::ROWS, Traits::S, 0,
                        shared.queries[group], o, factor, lse_log2, true);
  }
};

__device__ __forceinline__ void consume_item(const Attend& a, const Item& item,
                                             SharedMemory& shared, Cursor<Traits::STAGES>& cursor,
                                             i32 group) {
  Consumer consumer(a, item, shared, cursor, group);
  const Block<64>* queries = shared.queries[group];
  Scores s;
  Probabilities p;
  Accumulator o = {};
  i32 kv = item.piece.kv_begin;

  RopeQueries rope;
  consumer.queries_in(rope);
  if (kv < item.piece.kv_end) {
    // S(0)
    consumer.tile_in(kv);
    start_scores(s, queries, rope, shared.stages[cursor.stage]);
    ptx::wgmma_wait<0>();

    if constexpr (Traits::AHEAD) {
      consumer.probabilities(s, p, o, kv);
      for (; kv + TILE_TOKENS < item.piece.kv_end && !consumer.masked(kv + TILE_TOKENS);
           kv += TILE_TOKENS) {
        consumer.step_ahead<false>(s, p, o, rope, kv + TILE_TOKENS);
      }
      for (; kv + TILE_TOKENS < item.piece.kv_end; kv += TILE_TOKENS) {
        consumer.step_ahead<true>(s, p, o, rope, kv + TILE_TOKENS);
      }
    } else {
      for (; kv + TILE_TOKENS < item.piece.kv_end; kv += TILE_TOKENS) {
        // P(j)
        consumer.probabilities(s, p, o, kv);

        // O(j), with S(j + 1) behind it
        const i32 stage = cursor.stage;
        cursor.advance();
        if constexpr (Traits::TURNS) consumer.tile_in(kv + TILE_TOKENS);
        consumer.take_turn();
        start_output(o, p, shared.stages[stage]);
        if constexpr (!Traits::TURNS) consumer.tile_in(kv + TILE_TOKENS);
        start_scores(s, queries, rope, shared.stages[cursor.stage]);
        consumer.pass_turn();

        // The stage of j may be refilled as soon as O(j) is done
        ptx::wgmma_wait<1>();
        consumer.tile_out(stage);
        ptx::wgmma_wait<0>();
      }
      consumer.probabilities(s, p, o, kv);
    }

    // O of the last tile. Peeled, not an `if` in the loop: around wgmmas in flight that makes
    // ptxas serialise them all.
    start_output(o, p, shared.stages[cursor.stage]);
    // The factors under the last product. PERF: by clock stamps 500 cycles less behind it and 100 more of it;
    // half at q_len 1, behind it / so, in two runs 242.7 / 242.0 and 242.9 / 242.8 us, other shapes the same.
    consumer.normalise();
    ptx::wgmma_wait<0>();
    consumer.tile_out(cursor.stage);
    cursor.advance();
  } else {
    consumer.normalise();
  }
  consumer.result_out(o);
}

extern "C" __global__ void __launch_bounds__(Traits::THREADS, 1)
    tied_sm90(const __grid_constant__ Attend a, const __grid_constant__ TensorMap state_map,
              const __grid_constant__ TensorMap rope_map) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(bytes);

  // Barriers, and a head start for what follows
  if (threadIdx.x == 0) {
    shared.ring.init(Traits::BOXES ? BOX_PRODUCERS : ROW_PRODUCERS,
                     consumer_arrivals<Traits::BOXES>(Traits::CONSUMER_WARPS));
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
  if (group == Traits::CONSUMER_GROUPS) {
    if constexpr (Traits::CONSUMER_GROUPS > 1) {
      ptx::release_registers<Traits::PRODUCER_REGISTERS>();
    }
    produce(a, &state_map, &rope_map, shared);
  } else {
    if constexpr (Traits::CONSUMER_GROUPS > 1) {
      ptx::claim_registers<Traits::CONSUMER_REGISTERS>();
    }
    Cursor<Traits::STAGES> cursor;
    // The first turn is group 0's.
    if (Traits::TURNS && group == 1) ptx::named_barrier_arrive(BARRIER_TURN, 256);
    for_each_item(a.schedule, a.group,
                  [&](const Item& item) { consume_item(a, item, shared, cursor, group); });
    // .. and so is the last, which nobody needs any more.
    if (Traits::TURNS && group == 0) ptx::named_barrier_sync(BARRIER_TURN, 256);
  }
}
