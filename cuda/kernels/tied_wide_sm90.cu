// tied_wide_sm90.cu: decode attention over a tied cache whose states are too wide for one
// warpgroup's accumulator (MLA, s = 512). Spec: reference/, "tied"; deep-dive:
// docs/kernels/tied_sm90.md.
//
//     K_g = [state_g[..n] | rope],  V_g = state_g
//     o[t, i] = sum_j softmax_j(scale <q[t, i], K_g[j]>) V_g[j]            j visible to t
//
// grid     persistent, one CTA an SM; teams of CTAs walk the schedule (abi.cuh)
// CTA      a warpgroup that scores, two that sum, one that loads
// item     one cached head x 64 packed rows x one KV range, in tiles of 64 tokens
// smem     queries that are not in registers, a ring of units [64][128] of tiles, three sides (rope key,
//          then P [64][64])
// host     n, r multiples of 64, n <= s = 512; bases and strides of q and cache are multiples of 16
//          bytes, as are those of o where it is not f32; with BOXES also page_size % 64 == 0
//
// The scoring group computes S and P of every tile, most of the queries in its registers: shared memory
// is as busy as the tensor cores, and reading queries from it for each tile is what can be spared.
// Each summing group owns every other unit of o's columns, which are its accumulators and all of its
// registers. It takes P(j) once S(j + 1) is nearly issued, so that the tensor cores have O(j) while the
// scoring group is at P(j + 1):
//
//     tensor cores  | S(j)    | O(j-1)       | S(j+1)  | O(j)           | S(j+2) ..
//     scoring       |         | P(j)         |         | P(j+1)         |
//     producers       .. the units of tiles j+1 .. j+3, each as soon as O(j-1) has gone through it ..
//
// Compiled with -D: GA_N, GA_R, GA_S (widths), GA_BF16 (0 or 1), GA_BOXES (1: tensor maps, 0:
// 16-byte copies).
#include "abi.cuh"
#include "ptx/control.cuh"
#include "ptx/wgmma.cuh"
#include "tile/block.cuh"
#include "tile/item.cuh"
#include "tile/load_units.cuh"
#include "tile/mask.cuh"
#include "tile/queries.cuh"
#include "tile/ring.cuh"
#include "tile/softmax.cuh"
#include "tile/store.cuh"
#include "tile/units.cuh"
#include "tile/weightless.cuh"

struct Traits {
  static constexpr i32 N = GA_N, R = GA_R, S = GA_S, ROWS = 64;
  static constexpr bool BOXES = GA_BOXES;

  static constexpr i32 NOPE_BLOCKS = N / BLOCK_COLUMNS;
  static constexpr i32 ROPE_BLOCKS = R / BLOCK_COLUMNS;
  static constexpr i32 STATE_BLOCKS = S / BLOCK_COLUMNS;
  static constexpr i32 KEY_BLOCKS = NOPE_BLOCKS + ROPE_BLOCKS;
  // Units of the state that are part of the key.
  static constexpr i32 KEY_UNITS = (NOPE_BLOCKS + UNIT_BLOCKS - 1) / UNIT_BLOCKS;

  static constexpr i32 GROUP_WARPS = 4;
  static constexpr i32 THREADS = 4 * 128;
  // Registers a thread. ptxas wants 160 for an accumulator of 128.
  static constexpr i32 SCORING_REGISTERS = 160;
  static constexpr i32 SUMMING_REGISTERS = 160;
  static constexpr i32 PRODUCER_REGISTERS = 32;
  static_assert(SCORING_REGISTERS + 2 * SUMMING_REGISTERS + PRODUCER_REGISTERS <= 512);

  // PERF: MLA, 128 heads, 128 sequences of 8192, q_len 2, in an earlier form: 11 units and so 3 blocks of
  // queries in shared memory 842 us; 10 units, 5 blocks 886.
  static constexpr i32 REGISTER_QUERY_BLOCKS = KEY_BLOCKS > 6 ? 6 : KEY_BLOCKS - 1;
  static constexpr i32 SHARED_QUERY_BLOCKS = KEY_BLOCKS - REGISTER_QUERY_BLOCKS;

  static constexpr i32 SIDES = 3;
  static constexpr i32 SIDE_BLOCKS = ROPE_BLOCKS > 0 ? ROPE_BLOCKS : 1;
  static constexpr i32 SHARED_LIMIT = 227 * 1024;
  static constexpr i32 OTHER_BYTES = 3 * 1024;
  static constexpr i32 UNITS =
      ((SHARED_LIMIT - OTHER_BYTES) / i32(sizeof(Block<64>)) - SHARED_QUERY_BLOCKS - SIDES * SIDE_BLOCKS) /
      UNIT_BLOCKS;

  static_assert(N % 64 == 0 && R % 64 == 0 && N <= S && N + R > 0);
  static_assert(S == 512, "two groups sum two units each");
};

using Number =
#if GA_BF16
    Bf16;
#else
    F16;
#endif

using Tiles = Units<Traits::UNITS, Traits::SIDES, Traits::STATE_BLOCKS, Traits::ROPE_BLOCKS>;
using Place = UnitCursor<Tiles>;

// Every other unit of a tile.
enum Half : i32 { EVEN = 0, ODD = 1 };

struct WalkedItem {
  ItemWalk walk;
  Item item;
  bool found;
};

struct SharedMemory {
  Block<64> queries[Traits::SHARED_QUERY_BLOCKS];
  Tiles tiles;
  UnitRing<Tiles> ring;
  // By side.
  u64 weighed[Traits::SIDES];  // P is there, and the next S nearly issued
  float correction[Traits::SIDES][64];
  u32 moved[Traits::SIDES][4];  // by warp: what was summed so far must be multiplied by `correction`
  Poison<TILE_TOKENS> poison[Traits::SIDES];
  // By item.
  u64 finished;  // its factors and lse are there
  u64 stored;    // .. and not needed any more
  float factor[64], lse_log2[64];
  WalkedItem walked[2];  // by summing group
  ResultRows result[2];
};
static_assert(sizeof(SharedMemory) <= Traits::SHARED_LIMIT);

// Named barriers; 0 is __syncthreads.
constexpr u32 BARRIER_SCORING = 1;
constexpr u32 BARRIER_SUMMING = 2;  // + half

using Scores = float[TILE_TOKENS / 2];                 // 64 x 64
using Accumulator = float[UNIT_BLOCKS * BLOCK_COLUMNS / 2];  // 64 x 128

constexpr i32 BLOCK_STEPS = BLOCK_COLUMNS / 16;
constexpr i32 KEY_STEPS = Traits::KEY_BLOCKS * BLOCK_STEPS;

// Queries that are not in shared memory, A fragments by k16 step.
constexpr i32 QUERY_STEPS = Traits::REGISTER_QUERY_BLOCKS * BLOCK_STEPS;
using RegisterQueries = u32[QUERY_STEPS > 0 ? QUERY_STEPS : 1][4];

__device__ __forceinline__ i32 group_warp() { return threadIdx.x % 128 / 32; }

// The thread's first row of the item's 64; it also holds the row 8 below.
__device__ __forceinline__ i32 thread_row() { return group_warp() * 16 + threadIdx.x % 32 / 4; }

// One item, as the scoring group sees it.
struct Scoring {
  // O(j) may begin this many steps before S(j + 1) is issued, which is about as long as it takes to.
  // PERF: as above, 0 / 4 / 8 / 12 / 16 / 20 / 24 steps: 857 / 853 / 851 / 842 / 844 / 852 / 952 us.
  static constexpr i32 EARLY_STEPS = 12;
  static constexpr i32 NONE = -1;

  const Attend& a;
  const Item& item;
  SharedMemory& shared;
  Place& at;
  i32 hidden;  // first position that some row of the item does not see
  OnlineSoftmax softmax;

  __device__ __forceinline__ Scoring(const Attend& a, const Item& item, SharedMemory& shared, Place& at)
      : a(a), item(item), shared(shared), at(at) {
    hidden = first_hidden(a.batch, item.piece, item.first_row / a.group);
    softmax.init();
  }

  __device__ __forceinline__ bool masked(i32 kv) const { return kv + TILE_TOKENS > hidden; }

  // The first barrier: no warp may still be reading the last item's queries.
  __device__ __forceinline__ void queries_in(RegisterQueries& q) {
    ptx::named_barrier_sync(BARRIER_SCORING, 128);
    load_queries<Traits::SHARED_QUERY_BLOCKS>(shared.queries, a, item, item.head, item.first_row,
                                              threadIdx.x % 128, 128);
    if constexpr (QUERY_STEPS > 0) {
      load_query_fragments(q, a, item, item.first_row + thread_row(),
                           Traits::SHARED_QUERY_BLOCKS * BLOCK_COLUMNS);
    }
    ptx::copy_wait_all();
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(BARRIER_SCORING, 128);
  }

  // Rows are announced with the side, but for those of the last unit.
  __device__ __forceinline__ void unit_in(i32 index) {
    if constexpr (Traits::BOXES) {
      const Cursor<Traits::UNITS> unit = at.unit(index);
      ptx::mbarrier_wait(&shared.ring.unit_full[unit.stage], unit.parity);
    } else if (index == Tiles::TILE_UNITS - 1) {
      ptx::mbarrier_wait(&shared.ring.last_full[at.side.stage], at.side.parity);
      ptx::fence_proxy_async();
    }
  }

  __device__ __forceinline__ void side_in() {
    ptx::mbarrier_wait(&shared.ring.side_full[at.side.stage], at.side.parity);
    if (!Traits::BOXES) ptx::fence_proxy_async();
  }

  // Makes a tile of which something is hidden fit to be multiplied.
  __device__ __forceinline__ void sanitise_tile(i32 kv) {
    side_in();
#pragma unroll
    for (i32 index = 0; index < Tiles::TILE_UNITS; ++index) unit_in(index);
    sanitise<Number, Traits::STATE_BLOCKS>(TileBlocks<Tiles>{shared.tiles, at},
                                           shared.poison[at.side.stage], kv, hidden,
                                           item.piece.kv_len, group_warp(), Traits::GROUP_WARPS);
    ptx::fence_proxy_async();
    ptx::named_barrier_sync(BARRIER_SCORING, 128);
  }

  // The key's blocks in the order in which S takes them: the rope key before the last unit, since it is
  // loaded in this order too.
  static __device__ __forceinline__ constexpr i32 key_block(i32 index) {
    constexpr i32 FIRST = (Traits::KEY_UNITS > 0 ? Traits::KEY_UNITS - 1 : 0) * UNIT_BLOCKS;
    constexpr i32 LATE = Traits::NOPE_BLOCKS - FIRST;
    return index < FIRST                         ? index
           : index < FIRST + Traits::ROPE_BLOCKS ? index + LATE
                                                 : index - Traits::ROPE_BLOCKS;
  }

  // Waits for key block `block` if it is the first of a unit or of the rope key. Its descriptor, or of
  // the block after `before`.
  __device__ __forceinline__ u32 key_in(i32 block, u32 before) {
    const Block<64>* first;
    if (block < Traits::NOPE_BLOCKS && block % UNIT_BLOCKS == 0) {
      unit_in(block / UNIT_BLOCKS);
      first = shared.tiles.units[at.unit(block / UNIT_BLOCKS).stage].blocks;
    } else if (block == Traits::NOPE_BLOCKS) {
      if (Traits::BOXES) side_in();
      first = shared.tiles.sides[at.side.stage].blocks;
    } else {
      return before + descriptor::BLOCK_STEP;
    }
    ptx::wgmma_fence();
    return ptx::opaque(descriptor::k_major(first));
  }

  // S of a tile, not waited for. `before`: the side of the tile before, which O may take meanwhile.
  __device__ __forceinline__ void start_scores(Scores& s, const RegisterQueries& q, i32 before) {
    const u32 shared_q = ptx::opaque(descriptor::k_major(shared.queries));
    u32 key = 0;
#pragma unroll
    for (i32 index = 0; index < Traits::KEY_BLOCKS; ++index) {
      const i32 block = key_block(index);
      key = key_in(block, key);
#pragma unroll
      for (i32 step = 0; step < BLOCK_STEPS; ++step) {
        if (index * BLOCK_STEPS + step == (KEY_STEPS > EARLY_STEPS ? KEY_STEPS - EARLY_STEPS : 0)) {
          hand(before);
          ptx::wgmma_fence();
        }
        const u32 column = step * descriptor::K_MAJOR_STEP;
        const u64 k = descriptor::full(key + column);
        if (block < Traits::SHARED_QUERY_BLOCKS) {
          const u32 q_block = shared_q + block * descriptor::BLOCK_STEP;
          ptx::wgmma_ss<Number>(s, descriptor::full(q_block + column), k, true);
        } else {
          const i32 register_block = block - Traits::SHARED_QUERY_BLOCKS;
          ptx::wgmma_rs_k_major<Number>(s, q[register_block * BLOCK_STEPS + step], k);
        }
      }
    }
    ptx::wgmma_commit();
    // What is no key is a value all the same.
#pragma unroll
    for (i32 index = Traits::KEY_UNITS; index < Tiles::TILE_UNITS; ++index) {
      unit_in(index);
    }
    if (Traits::ROPE_BLOCKS == 0) side_in();
  }

  // Of a row's four lanes the first writes what the summing groups are told of the row, and arrives: racecheck
  // sees no order between what one thread writes and another's arrival.
  static __device__ __forceinline__ bool tells() { return threadIdx.x % 4 == 0; }

  static __device__ __forceinline__ void tell(u64* barrier) {
    __syncwarp();
    if (tells()) ptx::mbarrier_arrive(barrier);
  }

  // P of a side's tile is the summing groups'.
  __device__ __forceinline__ void hand(i32 side) {
    if (side != NONE) tell(&shared.weighed[side]);
  }

  __device__ __forceinline__ void mask(Scores& s, i32 kv) {
    const i32 row = item.first_row + thread_row();
    const Visibility view[2] = {visibility(a.batch, item.piece, row / a.group),
                                visibility(a.batch, item.piece, (row + 8) / a.group)};
    mask_scores(s, view, kv, item.piece.kv_len, shared.poison[at.side.stage]);
  }

  // Where this lane's stmatrix row of k16 step `step` of P lies.
  static __device__ __forceinline__ u32 fragment_address(const Block<64>* p, i32 step) {
    const i32 thread = ptx::opaque(threadIdx.x);
    const i32 row = thread % 128 / 32 * 16 + thread % 16;
    return ptx::shared_address(p) + swizzled(row, step * 2 + thread % 32 / 16);
  }

  // P from S, in the place of the rope key.
  __device__ __forceinline__ void weigh(Scores& s) {
    const i32 side = at.side.stage;
    float correction[2];
    const bool moved = softmax.push(s, a.scale_log2, correction);
    // All warps' products read the rope key.
    ptx::named_barrier_sync(BARRIER_SCORING, 128);
#pragma unroll
    for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
      const float* t = s + 8 * step;
      const u32 piece[4] = {Number::pack(t[0], t[1]), Number::pack(t[2], t[3]),
                            Number::pack(t[4], t[5]), Number::pack(t[6], t[7])};
      ptx::stmatrix_x4(fragment_address(shared.tiles.sides[side].blocks, step), piece);
    }
    if (moved && tells()) {
      shared.correction[side][thread_row()] = correction[0];
      shared.correction[side][thread_row() + 8] = correction[1];
    }
    if (threadIdx.x % 32 == 0) shared.moved[side][group_warp()] = moved;
    ptx::fence_proxy_async();
  }

  __device__ __forceinline__ void finish(u32 item_parity) {
    float factor[2], lse_log2[2];
    softmax.normalise(factor, lse_log2);
    const i32 row = item.first_row + thread_row();
    resolve_weightless(a, item, row, factor[0], lse_log2[0]);
    resolve_weightless(a, item, row + 8, factor[1], lse_log2[1]);
    ptx::mbarrier_wait(&shared.stored, item_parity ^ 1);
    if (tells()) {
#pragma unroll
      for (i32 half = 0; half < 2; ++half) {
        shared.factor[thread_row() + 8 * half] = factor[half];
        shared.lse_log2[thread_row() + 8 * half] = lse_log2[half];
      }
    }
    tell(&shared.finished);
  }

  __device__ __forceinline__ void run(u32 item_parity) {
    RegisterQueries q;
    queries_in(q);
    i32 kv = item.piece.kv_begin;
    i32 before = NONE;
    do {
      if (masked(kv)) {
        sanitise_tile(kv);
      } else if (!Traits::BOXES) {
        side_in();
      }
      Scores s = {};
      start_scores(s, q, before);
      ptx::wgmma_wait<0>();
      if (masked(kv)) mask(s, kv);
      weigh(s);
      before = at.side.stage;
      at.advance();
      kv += TILE_TOKENS;
    } while (kv < item.piece.kv_end);
    hand(before);
    finish(item_parity);
  }
};

// One item, as one summing group sees it.
template <Half HALF>
struct Summing {
  const Attend& a;
  const Item& item;  // in shared memory
  SharedMemory& shared;
  Place& at;

  __device__ __forceinline__ i32 unit(i32 index) const { return at.unit(2 * index + HALF).stage; }

  // The products are done with it: of what a warp did, racecheck watches none (see consumer_arrive).
  __device__ __forceinline__ void unit_out(i32 index) {
    ptx::mbarrier_arrive_warp(&shared.ring.unit_empty[unit(index)], consumer_arrivals<Traits::BOXES>(1));
  }

  static __device__ __forceinline__ void correct(Accumulator& o, const float* correction) {
    const float factor[2] = {correction[thread_row()], correction[thread_row() + 8]};
#pragma unroll
    for (i32 i = 0; i < UNIT_BLOCKS * BLOCK_COLUMNS / 2; ++i) o[i] *= factor[i / 2 % 2];
  }

  // O += P V over one unit, not waited for.
  __device__ __forceinline__ void start_output(Accumulator& o, i32 index) {
    const u32 p = ptx::opaque(descriptor::k_major(shared.tiles.sides[at.side.stage].blocks));
    const u32 v = ptx::opaque(descriptor::mn_major(shared.tiles.units[unit(index)].blocks));
#pragma unroll
    for (i32 step = 0; step < TILE_TOKENS / 16; ++step) {
      ptx::wgmma_ss_mn_major<Number>(o, descriptor::full(p + step * descriptor::K_MAJOR_STEP),
                                     descriptor::full(v + step * descriptor::MN_MAJOR_STEP));
    }
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void weighed_in() {
    ptx::mbarrier_wait(&shared.weighed[at.side.stage], at.side.parity);
    if (!Traits::BOXES) ptx::fence_proxy_async();
  }

  __device__ __forceinline__ void side_out() {
    ptx::mbarrier_arrive_warp(&shared.ring.side_empty[at.side.stage], consumer_arrivals<Traits::BOXES>(1));
  }

  // By way of its unit, which the products are done with. `factor` and `lse_log2` are of the thread's rows.
  __device__ __forceinline__ void store(const Accumulator& o, i32 index, const float (&factor)[2],
                                        const float (&lse_log2)[2]) {
    constexpr i32 COLUMNS = UNIT_BLOCKS * BLOCK_COLUMNS;
    store_group<Number>(a, item, shared.result[HALF], item.first_row, Traits::ROWS, Traits::S,
                        (2 * index + HALF) * COLUMNS, shared.tiles.units[unit(index)].blocks, o,
                        factor, lse_log2, HALF == EVEN && index == 0);
  }

  __device__ __forceinline__ void run(u32 item_parity) {
    Accumulator first = {}, second = {};
    u32 bad_page = 0;
#pragma unroll 1
    for (i32 left = item.tiles(); left > 0; --left) {
      // While there is something to wait for; see ResultRows.
      if (left == 1) find_rows(shared.result[HALF], a, item, item.first_row, Traits::ROWS, Traits::S);
      weighed_in();
      const i32 side = at.side.stage;
      // By the lane that will release the side.
      if (threadIdx.x % 32 == 0) bad_page |= shared.ring.bad_page[side];
      if (shared.moved[side][group_warp()]) {
        correct(first, shared.correction[side]);
        correct(second, shared.correction[side]);
      }
      ptx::wgmma_fence();
      start_output(first, 0);
      start_output(second, 1);
      ptx::wgmma_wait<1>();
      if (left > 1) unit_out(0);
      ptx::wgmma_wait<0>();
      side_out();
      if (left == 1) break;  // the last tile's units are kept for the result
      unit_out(1);
      at.advance();
    }
    ptx::mbarrier_wait(&shared.finished, item_parity);
    const i32 row = thread_row();
    float factor[2] = {shared.factor[row], shared.factor[row + 8]};
    float lse_log2[2] = {shared.lse_log2[row], shared.lse_log2[row + 8]};
    if (__any_sync(~0u, bad_page != 0)) {
      factor[0] = factor[1] = lse_log2[0] = lse_log2[1] = not_a_number();
    }
    // All warps' products read the units that the result goes through.
    ptx::named_barrier_sync(BARRIER_SUMMING + HALF, 128);
    store(first, 0, factor, lse_log2);
    store(second, 1, factor, lse_log2);
    ptx::fence_proxy_async();
    consumer_arrive<Traits::BOXES>(&shared.ring.unit_empty[unit(0)]);
    consumer_arrive<Traits::BOXES>(&shared.ring.unit_empty[unit(1)]);
    at.advance();
    ptx::mbarrier_arrive(&shared.stored);
  }
};

__device__ __forceinline__ void score(const Attend& a, SharedMemory& shared) {
  Place at;
  u32 item_parity = 0;
  Item item;
  for (ItemWalk walk(a.schedule); walk.next(item, a.schedule, a.group); item_parity ^= 1) {
    Scoring(a, item, shared, at).run(item_parity);
  }
}

template <Half HALF>
__device__ __forceinline__ void sum(const Attend& a, SharedMemory& shared) {
  Place at;
  // The accumulators leave no registers for a walk and its items.
  WalkedItem& walked = shared.walked[HALF];
  const bool walks = threadIdx.x % 128 == 0;
  if (walks) walked.walk = ItemWalk(a.schedule);
  for (u32 item_parity = 0;; item_parity ^= 1) {
    if (walks) walked.found = walked.walk.next(walked.item, a.schedule, a.group);
    ptx::named_barrier_sync(BARRIER_SUMMING + HALF, 128);
    if (!walked.found) return;
    Summing<HALF>{a, walked.item, shared, at}.run(item_parity);
    ptx::named_barrier_sync(BARRIER_SUMMING + HALF, 128);
  }
}

__device__ __forceinline__ void produce(const Attend& a, const TensorMap* state_map,
                                        const TensorMap* rope_map, SharedMemory& shared) {
  if (Traits::BOXES && group_warp() != 0) return;
  Place at;
  Item item;
  for (ItemWalk walk(a.schedule); walk.next(item, a.schedule, a.group);) {
    if constexpr (Traits::BOXES) {
      // Asked for behind the tiles, of which 22 MB may be under way, queries came last: by clock stamps those of 16
      // heads at 13 us, and their first S at 18.
      // PERF: MLA, q_len 1 / 2, 16 heads, one launch right after another: without 487.9 / 921.3, 420.7 us, so
      // 482.0 / 912.1, 418.5; tiles not asked for until queries are, by those who load them, 483.7 / 916.6,
      // 418.9, or until they are there 488.8 / 916.1, 418.8. By three other warps beside the first tiles 483.8 /
      // 947.7, 419.0, where so it is 478.0 / 933.3, 418.7. tied_sm90 loses: B 16 73.6 / 80.2 -> 74.5 / 82.0.
      prefetch_queries<Traits::ROWS, Traits::N + Traits::R>(a, item);
      load_item_unit_boxes(item, a.batch, state_map, rope_map, shared.tiles, shared.ring, at, a.status);
    } else {
      load_item_unit_rows(item, a, shared.tiles, shared.ring, at);
    }
  }
}

extern "C" __global__ void __launch_bounds__(Traits::THREADS, 1)
    tied_wide_sm90(const __grid_constant__ Attend a, const __grid_constant__ TensorMap state_map,
                   const __grid_constant__ TensorMap rope_map) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(bytes);

  // Barriers, and a head start for what follows
  if (threadIdx.x == 0) {
    constexpr bool BOXES = Traits::BOXES;
    const u32 group_arrivals = consumer_arrivals<BOXES>(Traits::GROUP_WARPS);
    shared.ring.init(BOXES ? BOX_PRODUCERS : ROW_PRODUCERS, group_arrivals, 2 * group_arrivals);
    constexpr u32 TELLING = 32;
    for (u64& weighed : shared.weighed) ptx::mbarrier_init(&weighed, TELLING);
    ptx::mbarrier_init(&shared.finished, TELLING);
    ptx::mbarrier_init(&shared.stored, 2 * 128);
    ptx::fence_mbarrier_init();
    for (Poison<TILE_TOKENS>& poison : shared.poison) poison.init();
    if constexpr (BOXES) {
      ptx::prefetch_tensor_map(&state_map);
      ptx::prefetch_tensor_map(&rope_map);
    }
  }
  __syncthreads();
  ptx::wait_for_dependencies();
  ptx::launch_dependents();

  // Roles
  switch (threadIdx.x / 128) {
    case 0:
      ptx::claim_registers<Traits::SUMMING_REGISTERS>();
      sum<EVEN>(a, shared);
      break;
    case 1:
      ptx::claim_registers<Traits::SUMMING_REGISTERS>();
      sum<ODD>(a, shared);
      break;
    case 2:
      ptx::claim_registers<Traits::SCORING_REGISTERS>();
      score(a, shared);
      break;
    default:
      ptx::release_registers<Traits::PRODUCER_REGISTERS>();
      produce(a, &state_map, &rope_map, shared);
  }
}
