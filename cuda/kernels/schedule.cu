// schedule.cu: cuts a batch into pieces for teams of CTAs, on the device, so that a captured graph
// can replay with other lengths. The algorithm is stated in abi.cuh; the host's planner gives the
// same answer bit for bit.
//
// grid     one CTA; a thread for each of several sequences, teams or candidates in turn
// smem     dynamic: Line's arrays, 20 (batch + 1) + 16 (teams + 1) bytes
// host     team, teams >= 1; the capacities are what was planned for
//
// Everything on the line (abi.cuh) is found by prefix sums and binary search, nothing by walking
// it, so the latency grows with log(batch) and not with batch while there is a thread a sequence.
#include "abi.cuh"
#include "ptx/control.cuh"
#include "tile/number.cuh"

constexpr i32 THREADS = 512;

// What the algorithm wants to know of one sequence.
struct Sequence {
  i32 q_start;
  i32 q_len;
  i32 kv_len;
  i32 lanes;
  i32 passes;
  i32 tiles;  // 0: it occupies nothing
};

__device__ __forceinline__ Sequence sequence(const Scheduling& s, i32 b) {
  const i32 q_start = s.q_starts[b];
  const i32 q_len = s.q_starts[b + 1] - q_start;
  const i32 kv_len = s.kv_lens[b];
  const i32 lanes = s.head_blocks * ceil_div(q_len * s.group, s.item_rows);
  const i32 tiles = q_len == 0 ? 0 : max(1, ceil_div(kv_len, TILE_TOKENS));
  return {q_start, q_len, kv_len, lanes, ceil_div(lanes, s.team), tiles};
}

__device__ __forceinline__ i32 invariant_parts(const Scheduling& s, i32 tiles) {
  return ceil_div(tiles, s.unit_tiles);
}

// Where the sequence ends on the line, from where it begins.
__device__ __forceinline__ i64 length(const Scheduling& s, const Sequence& q, i32 charge) {
  if (q.tiles == 0) return 0;
  const i32 items = s.split == Split::INVARIANT ? invariant_parts(s, q.tiles) : 1;
  return i64(q.passes) * (q.tiles + i64(items) * charge);
}

struct Boundary {
  i32 sequence;
  i32 tile;       // > 0: inside the sequence
  i32 cuts_upto;  // distinct cuts at boundaries up to this one
};

// The shared arrays.
struct Line {
  i64* start;          // [batch + 1]
  i32* first_piece;    // [batch + 1]
  i32* first_cut;      // [batch + 1] index into cut_tile
  i32* cuts;           // [batch] inside each sequence
  Boundary* boundary;  // [teams + 1]
  i32* cut_tile;       // [teams + 1] the distinct cuts in line order
};

__device__ __forceinline__ Line line_arrays(const Scheduling& s, unsigned char* bytes) {
  Line line;
  line.start = reinterpret_cast<i64*>(bytes);
  line.boundary = reinterpret_cast<Boundary*>(line.start + s.batch + 1);
  line.first_piece = reinterpret_cast<i32*>(line.boundary + s.teams + 1);
  line.first_cut = line.first_piece + s.batch + 1;
  line.cuts = line.first_cut + s.batch + 1;
  line.cut_tile = line.cuts + s.batch;
  return line;
}

// Sums that run along the sequences.
struct Totals {
  i64 length;
  i32 pieces;
  i32 slots;
  i32 few;
  i32 many;

  __device__ __forceinline__ Totals operator+(const Totals& other) const {
    return {length + other.length, pieces + other.pieces, slots + other.slots, few + other.few,
            many + other.many};
  }
  __device__ __forceinline__ Totals from_lane_below(i32 distance) const {
    return {__shfl_up_sync(~0u, length, distance), __shfl_up_sync(~0u, pieces, distance),
            __shfl_up_sync(~0u, slots, distance), __shfl_up_sync(~0u, few, distance),
            __shfl_up_sync(~0u, many, distance)};
  }
};

// The sum of `own` over the threads before this one; `total` gets that over all.
__device__ __forceinline__ Totals sum_before(const Totals& own, Totals& total) {
  __shared__ Totals warps[THREADS / 32];
  const i32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Totals upto = own;
  for (i32 distance = 1; distance < 32; distance *= 2) {
    const Totals below = upto.from_lane_below(distance);
    if (lane >= distance) upto = upto + below;
  }
  if (lane == 31) warps[warp] = upto;
  __syncthreads();
  Totals before{}, all{};
  for (i32 i = 0; i < THREADS / 32; ++i) {
    if (i < warp) before = before + warps[i];
    all = all + warps[i];
  }
  __syncthreads();
  total = all;
  const Totals below = upto.from_lane_below(1);
  return lane == 0 ? before : before + below;
}

// Runs `term(b)` over all sequences and hands `use(b, sum of the terms before b)` to each; a thread
// has a run of neighbours. Returns the sum of all.
template <class Term, class Use>
__device__ __forceinline__ Totals scan(i32 batch, Term term, Use use) {
  const i32 run = ceil_div(batch, THREADS);
  const i32 begin = min(batch, i32(threadIdx.x) * run), end = min(batch, begin + run);
  Totals own{}, total;
  for (i32 b = begin; b < end; ++b) own = own + term(b);
  Totals before = sum_before(own, total);
  for (i32 b = begin; b < end; ++b) {
    use(b, before);
    before = before + term(b);
  }
  return total;
}

// The last sequence b with start(b) <= x (or < x).
__device__ __forceinline__ i32 sequence_at(const i64* start, i32 batch, i64 x, bool or_equal) {
  i32 low = 0, high = batch;  // start(low) qualifies, start(high) does not
  while (high - low > 1) {
    const i32 middle = (low + high) / 2;
    const bool qualifies = or_equal ? start[middle] <= x : start[middle] < x;
    (qualifies ? low : high) = middle;
  }
  return low;
}

// Boundary t of `teams`, which need not be all of them.
__device__ __forceinline__ Boundary balanced_boundary(const Scheduling& s, const Line& line, i32 t,
                                                      i32 teams) {
  const i64 total = line.start[s.batch];
  const i64 x = t * total / teams;
  if (x >= total) return {s.batch, 0, 0};
  const i32 b = sequence_at(line.start, s.batch, x, true);
  const Sequence q = sequence(s, b);
  const i64 tile = (x - line.start[b]) / q.passes;
  i32 cut = tile < q.tiles ? i32(tile) : q.tiles;
  if (cut < s.min_tiles) {
    cut = 0;
  } else if (q.tiles - cut < s.min_tiles) {
    cut = q.tiles;
  }
  return cut == q.tiles ? Boundary{b + 1, 0, 0} : Boundary{b, cut, 0};
}

// How many of the teams to use: a warp weighs a candidate.
__device__ __forceinline__ i32 choose_teams(const Scheduling& s, const Line& line) {
  __shared__ u64 best;  // cost << 16 | teams given up, so that the least is the choice
  if (threadIdx.x == 0) best = ~0ull;
  __syncthreads();
  const i64 total = line.start[s.batch];
  const i32 lane = threadIdx.x % 32;
  for (i32 i = threadIdx.x / 32; i < min(s.candidates, s.teams); i += THREADS / 32) {
    const i32 teams = s.teams - i;
    i32 cuts = 0;
    for (i32 t = lane; t < teams; t += 32) cuts += balanced_boundary(s, line, t, teams).tile > 0;
    for (i32 lanes = 16; lanes > 0; lanes /= 2) cuts += __shfl_xor_sync(~0u, cuts, lanes);
    const i64 pace = min(teams, s.saturation);
    const i64 cost = (total + pace - 1) / pace * 64 + i64(s.cut_cost) * cuts;
    if (lane == 0) atomicMin(&best, u64(cost) << 16 | u64(i));
  }
  __syncthreads();
  return s.teams - i32(best & 0xffff);
}

// BALANCED: the boundaries, and each sequence's cuts.
__device__ __forceinline__ void cut_balanced(const Scheduling& s, const Line& line) {
  const i32 chosen = choose_teams(s, line);
  for (i32 b = threadIdx.x; b < s.batch; b += THREADS) line.cuts[b] = 0;
  for (i32 t = threadIdx.x; t <= s.teams; t += THREADS) {
    line.boundary[t] = t < chosen ? balanced_boundary(s, line, t, chosen) : Boundary{s.batch, 0, 0};
  }
  __syncthreads();
  const auto is_cut = [&](i32 t) {
    const Boundary own = line.boundary[t];
    const Boundary before = t == 0 ? Boundary{-1, 0, 0} : line.boundary[t - 1];
    return own.tile > 0 && (own.sequence != before.sequence || own.tile != before.tile);
  };
  scan(
      s.teams + 1, [&](i32 t) { return Totals{0, is_cut(t), 0, 0, 0}; },
      [&](i32 t, const Totals& before) {
        line.boundary[t].cuts_upto = before.pieces + is_cut(t);
        if (!is_cut(t)) return;
        line.cut_tile[before.pieces] = line.boundary[t].tile;
        atomicAdd(&line.cuts[line.boundary[t].sequence], 1);
      });
  __syncthreads();
}

// INVARIANT: each sequence's cuts.
__device__ __forceinline__ void cut_invariant(const Scheduling& s, const Line& line) {
  for (i32 b = threadIdx.x; b < s.batch; b += THREADS) {
    line.cuts[b] = max(0, invariant_parts(s, sequence(s, b).tiles) - 1);
  }
  __syncthreads();
}

// The tile before which a sequence is cut for the `cut`th time.
__device__ __forceinline__ i32 cut_tile(const Scheduling& s, const Line& line, i32 b, i32 cut) {
  return s.split == Split::BALANCED ? line.cut_tile[line.first_cut[b] + cut]
                                    : (cut + 1) * s.unit_tiles;
}

// The first piece of team t, or of the teams after it where it has none.
__device__ __forceinline__ i32 team_begin(const Scheduling& s, const Line& line, i32 t) {
  if (s.split == Split::BALANCED) {
    const Boundary at = line.boundary[t];
    const i32 live_before = line.first_piece[at.sequence] - line.first_cut[at.sequence];
    return live_before + at.cuts_upto;
  }
  if (t == s.teams) return line.first_piece[s.batch];
  const i64 x = t * line.start[s.batch] / s.teams;
  if (x == 0) return 0;
  const i32 b = sequence_at(line.start, s.batch, x, false);
  const i64 stride = i64(sequence(s, b).passes) * (s.unit_tiles + s.item_tiles);
  const i64 part = (x - line.start[b] + stride - 1) / stride;
  return line.first_piece[b] + i32(min(part, i64(line.cuts[b] + 1)));
}

// What a sequence contributes once it is known how often it is cut.
__device__ __forceinline__ Totals contribution(const Scheduling& s, const Line& line, i32 b) {
  const Sequence q = sequence(s, b);
  if (q.tiles == 0) return {};
  const i32 parts = line.cuts[b] + 1;
  if (parts == 1) return {0, 1, 0, 0, 0};
  const bool few = parts <= FEW_PARTS;
  return {0, parts, q.lanes * parts, few ? q.lanes : 0, few ? 0 : q.lanes};
}

__device__ __forceinline__ void write_pieces(const Scheduling& s, const Line& line, i32 b,
                                             const Totals& before) {
  const Sequence q = sequence(s, b);
  if (q.tiles == 0) return;
  const i32 parts = line.cuts[b] + 1;
  i32 tile = 0;
  for (i32 part = 0; part < parts; ++part) {
    const i32 end = part + 1 < parts ? cut_tile(s, line, b, part) : q.tiles;
    s.pieces[before.pieces + part] = {b,
                                      tile * TILE_TOKENS,
                                      min(end * TILE_TOKENS, q.kv_len),
                                      q.kv_len,
                                      q.q_start,
                                      q.q_len,
                                      parts > 1 ? before.slots + part : -1,
                                      parts};
    tile = end;
  }
}

__device__ __forceinline__ void write_merges(const Scheduling& s, const Line& line, i32 b,
                                             const Totals& before) {
  const Sequence q = sequence(s, b);
  const i32 parts = line.cuts[b] + 1;
  if (q.tiles == 0 || parts == 1) return;
  for (i32 lane = 0; lane < q.lanes; ++lane) {
    const i32 at =
        parts <= FEW_PARTS ? before.few + lane : s.merge_capacity - 1 - before.many - lane;
    s.merges[at] = {q.q_start, q.q_len, lane, before.slots + lane * parts, parts, {}};
  }
}

// Whether this thread's share of the sequences is within what was planned for: beyond it lie no
// queries, results or entries of page tables.
__device__ __forceinline__ bool within_plan(const Scheduling& s) {
  bool within = s.q_starts[0] >= 0 && s.q_starts[s.batch] <= s.row_capacity;
  for (i32 b = threadIdx.x; b < s.batch; b += THREADS) {
    const i32 q_len = s.q_starts[b + 1] - s.q_starts[b];
    const i32 kv_len = s.kv_lens[b];
    within &= q_len >= 0 && q_len <= s.q_len_capacity;
    within &= kv_len >= 0 && kv_len <= s.kv_len_capacity;
  }
  return within;
}

__device__ __forceinline__ bool fits(const Scheduling& s, const Totals& total) {
  return total.pieces <= s.piece_capacity && total.slots <= s.slot_capacity &&
         total.few + total.many <= s.merge_capacity;
}

// The schedule of nothing, and the status that says why.
__device__ __forceinline__ void refuse(const Scheduling& s) {
  for (i32 t = threadIdx.x; t <= s.teams; t += THREADS) s.team_pieces[t] = 0;
  if (threadIdx.x != 0) return;
  *s.merge_counts = {0, 0};
  atomicOr(s.status, STATUS_OVER_CAPACITY);
}

// What the line charges for an item, into shared memory.
__device__ __forceinline__ void find_charge(const Scheduling& s, i32& charge) {
  i32 live = 0;
  for (i32 first = 0; first < s.batch; first += THREADS) {
    const i32 b = first + threadIdx.x;
    live += __syncthreads_count(b < s.batch && s.q_starts[b + 1] > s.q_starts[b]);
  }
  if (threadIdx.x == 0) {
    charge = s.split == Split::BALANCED && 2 * live <= s.teams ? 0 : s.item_tiles;
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    schedule(const __grid_constant__ Scheduling s) {
  extern __shared__ __align__(16) unsigned char bytes[];
  ptx::wait_for_dependencies();
  const Line line = line_arrays(s, bytes);
  if (!__syncthreads_and(within_plan(s))) return refuse(s);

  // The line
  __shared__ i32 charge;
  find_charge(s, charge);
  const Totals ends = scan(
      s.batch, [&](i32 b) { return Totals{length(s, sequence(s, b), charge), 0, 0, 0, 0}; },
      [&](i32 b, const Totals& before) { line.start[b] = before.length; });
  if (threadIdx.x == 0) line.start[s.batch] = ends.length;
  __syncthreads();

  // Its cuts
  if (s.split == Split::BALANCED) {
    cut_balanced(s, line);
  } else {
    cut_invariant(s, line);
  }

  // Where everything goes
  const Totals total = scan(
      s.batch, [&](i32 b) { return contribution(s, line, b); },
      [&](i32 b, const Totals& before) { line.first_piece[b] = before.pieces; });
  const Totals cuts = scan(
      s.batch, [&](i32 b) { return Totals{0, line.cuts[b], 0, 0, 0}; },
      [&](i32 b, const Totals& before) { line.first_cut[b] = before.pieces; });
  if (threadIdx.x == 0) {
    line.first_piece[s.batch] = total.pieces;
    line.first_cut[s.batch] = cuts.pieces;
  }
  __syncthreads();

  // The lists
  if (!fits(s, total)) return refuse(s);
  for (i32 t = threadIdx.x; t <= s.teams; t += THREADS) {
    s.team_pieces[t] = team_begin(s, line, t);
  }
  if (threadIdx.x == 0) *s.merge_counts = {total.few, total.many};
  scan(
      s.batch, [&](i32 b) { return contribution(s, line, b); },
      [&](i32 b, const Totals& before) {
        write_pieces(s, line, b, before);
        write_merges(s, line, b, before);
      });
}
