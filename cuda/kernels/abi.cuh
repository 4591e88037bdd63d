// What host and device agree on: every struct that crosses a launch, with its size asserted here
// and in the host's mirror. Self-contained (NVRTC has no <stdint.h>), no toolkit type, no default
// value.
//
// Strides count elements, never bytes, and are 64-bit: a cache may pass 2^31 elements. The
// innermost dimension of every tensor is contiguous.
#pragma once

using i32 = int;
using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
static_assert(sizeof(i32) == 4 && sizeof(i64) == 8 && sizeof(void*) == 8, "LP64 or LLP64");

// Tokens a kernel consumes per step of its loop, and the unit in which the schedule cuts a
// sequence. Every family uses it, so that one schedule serves all of them.
constexpr i32 TILE_TOKENS = 64;

// Draft tokens described by one word of a tree mask.
constexpr i32 TREE_WORD_BITS = 32;

enum class Mask : i32 {
  // query t sees j <= kv_len - q_len + t
  CAUSAL = 0,
  // the committed prefix j < kv_len - q_len, and the draft tokens whose bit is set in the row's
  // words
  TREE = 1,
  // every cached position
  FULL = 2,
};

// Bits of the status word. Kernels only ever set bits; the caller clears and polls it.
enum Status : u32 {
  STATUS_OK = 0,
  // A page id outside 0..pages was met (and not followed): the rows of that sequence are NaN.
  STATUS_BAD_PAGE = 1,
  // The schedule did not fit the capacity it was planned for: nothing was scheduled.
  STATUS_OVER_CAPACITY = 2,
};

struct Queries {
  const void* data;  // [total_q, h_q, n + r] (tied) or [total_q, h_q, d_k] (separate)
  i64 row_stride;
  i64 head_stride;
};
static_assert(sizeof(Queries) == 24, "mirrored in abi.rs");

// One paged tensor of a layer's cache.
struct Pages {
  const void* data;  // [pages, page_size, heads, width]; a rope key has one head
  i64 page_stride;
  i64 token_stride;
  i64 head_stride;
};
static_assert(sizeof(Pages) == 32, "mirrored in abi.rs");

struct Outputs {
  void* o;     // [total_q, h_q, d_v], the queries' dtype, or f32 where Attend::o_is_f32
  float* lse;  // [total_q, h_q] natural logarithm; null: not wanted
  i64 o_row_stride;
  i64 o_head_stride;
  i64 lse_row_stride;
  i64 lse_head_stride;
};
static_assert(sizeof(Outputs) == 48, "mirrored in abi.rs");

// The batch of one step. Entries of `page_table` past ceil(kv_len / page_size) are never read.
struct Batch {
  const i32* q_starts;    // [batch + 1], first row of each sequence in q and o; q_len by difference
  const i32* kv_lens;     // [batch]
  const i32* page_table;  // [batch, max_pages]
  const u32* tree;  // [total_q, tree_stride] ancestors and self, draft-local; null unless TREE
  i64 page_table_stride;
  i64 tree_stride;  // words a row, >= ceil(q_len / 32) for the longest draft
  i32 batch;
  i32 pages;  // in the cache; a page id is legal in 0..pages
  i32 page_size;
  Mask mask;
};
static_assert(sizeof(Batch) == 64, "mirrored in abi.rs");

// ---- Schedule -----------------------------------------------------------------------------------
//
// One *item* is what a CTA does between loading queries and storing a result: `item_heads` cached
// heads x `item_rows` packed rows a head x one KV range of one sequence. Packed row p of a cached
// head is query t = p / group, query head = cached head * group + p % group: the heads that share a
// cached head lie side by side, then the tokens.
//
// Items that read the same KV range of a sequence are its *lanes*:
//     lane = row_tile * head_blocks + head_block,   lanes = row_tiles * head_blocks
//     row_tiles = ceil(q_len * group / item_rows),  head_blocks = ceil(cached heads / item_heads)
// A *team* is `team` CTAs with consecutive indices; member m takes lanes m, m + team, .. of each of
// the team's pieces, in order. So lanes that share cache rows run side by side and the second read
// of a shared row hits the L2.
//
// A *piece* is one KV range of one sequence, given to one team. It repeats what the batch says of
// the sequence, so that a CTA's first load follows one lookup and not three.
struct Piece {
  i32 sequence;
  i32 kv_begin;  // tokens; a multiple of TILE_TOKENS
  i32 kv_end;    // tokens; kv_len in the sequence's last piece
  i32 kv_len;
  i32 q_start;
  i32 q_len;
  i32 slot;   // of (lane 0, this part) in Partials; -1: the piece is the whole sequence
  i32 parts;  // the sequence was cut into; the partial of lane l is slot + l * parts
};
static_assert(sizeof(Piece) == 32, "mirrored in abi.rs");

// One lane of a sequence that was cut: merge slots [slot, slot + parts) in that order.
struct Merge {
  i32 q_start;
  i32 q_len;
  i32 lane;
  i32 slot;
  i32 parts;
  i32 reserved[3];
};
static_assert(sizeof(Merge) == 32, "mirrored in abi.rs");

// Lanes with at most this many parts are merged by a warp a row, others by a CTA a row.
constexpr i32 FEW_PARTS = 8;

struct MergeCounts {
  i32 few;   // merges[0 .. few]
  i32 many;  // merges[merge_capacity - many .. merge_capacity], the first of them last
};
static_assert(sizeof(MergeCounts) == 8, "mirrored in abi.rs");

// Written by the host, or by schedule.cu inside a graph; read by attention and combine.
struct Schedule {
  const i32* team_pieces;  // [teams + 1] first piece of each team
  const Piece* pieces;     // [batch + teams] at most (balanced)
  const MergeCounts* merge_counts;
  const Merge* merges;  // [merge_capacity]
  i32 teams;
  i32 team;
  i32 head_blocks;
  i32 item_heads;
  i32 item_rows;
  i32 merge_capacity;
};
static_assert(sizeof(Schedule) == 56, "mirrored in abi.rs");

// Results of cut sequences, one slot per item. Row of a slot = head in the item * item_rows + row.
struct Partials {
  float* o;    // [slots, item_heads * item_rows, d_v] normalised within the part
  float* lse;  // [slots, item_heads * item_rows] base 2; -inf: the part is empty
};
// The lse of a part without weight of a row that sees something, here or in another part. Below that
// of any other, so that it weighs nothing beside them.
constexpr float NO_MAXIMUM = -3.402823466e38f;
static_assert(sizeof(Partials) == 16, "mirrored in abi.rs");

// ---- Attention ----------------------------------------------------------------------------------

// The argument of every tied attention kernel (separate ones: `state` holds K, `rope` holds V with
// its own head stride). Hopper kernels that load through tensor maps take two maps after it.
struct Attend {
  Queries q;
  Pages state;  // [pages, page_size, h, s]
  Pages rope;   // [pages, page_size, 1, r]; data null where r = 0
  Outputs out;
  Batch batch;
  Schedule schedule;
  Partials partials;
  u32* status;
  float scale_log2;  // softmax scale * log2(e); the scale is finite and > 0
  i32 h_q;
  i32 h;      // cached heads
  i32 group;  // h_q / h
  i32 o_is_f32;
  i32 reserved;
};
static_assert(sizeof(Attend) == 304, "mirrored in abi.rs");

struct Combine {
  Outputs out;
  Schedule schedule;
  Partials partials;
  i32 group;
  i32 h;
  i32 o_is_f32;
  i32 reserved;
};
static_assert(sizeof(Combine) == 136, "mirrored in abi.rs");

// A CUtensorMap, which the toolkit's header would name.
struct alignas(64) TensorMap {
  u64 opaque[16];
};
static_assert(sizeof(TensorMap) == 128 && alignof(TensorMap) == 64, "CUtensorMap");

// ---- Scheduling ---------------------------------------------------------------------------------
//
// The algorithm, which the host's planner and schedule.cu both implement, in integers (64-bit where
// a product is taken), so that they agree bit for bit.
//
//   lanes(b)  = head_blocks * ceil(q_len(b) * group / item_rows)       0 where q_len(b) = 0
//   passes(b) = ceil(lanes(b) / team)
//   tiles(b)  = max(1, ceil(kv_len(b) / TILE_TOKENS))                  0 where q_len(b) = 0
//
// Sequences lie one after another on a line; b occupies [start(b), start(b + 1)) of it with
// start(b + 1) = start(b) + passes(b) * (tiles(b) + charge), and total = start(batch).
// `charge` is `item_tiles`, what an item costs besides its tiles (queries in, result out), in
// tiles. It is 0 where BALANCED has two teams or more for each sequence with queries: then every
// part of a sequence is an item, and cuts that charge the last one alone are uneven. A sequence
// with q_len 0 occupies nothing.
//
// BALANCED. Boundary t of T teams lies at x = floor(t * total / T), 0 <= t <= T. It cuts the
// sequence b with start(b) <= x < start(b + 1) before its tile
//     c = min(tiles(b), floor((x - start(b)) / passes(b))),
// snapped to a sequence boundary where that leaves a sliver: c = 0 if c < min_tiles (the boundary
// is the sequence's start), else c = tiles(b) if tiles(b) - c < min_tiles (its end). Boundaries 0
// and T are the line's ends. Team t takes what lies between boundaries t and t + 1, pieces in line
// order. T is chosen: of the candidates max(1, teams - candidates + 1) ..= teams, the one with the
// least
//     cost(T) = ceil(total / min(T, saturation)) * 64 + cut_cost * cuts(T)
// and of equals the largest; cuts(T) is the number of boundaries inside a sequence. Teams at and
// past T get nothing. `saturation` is the number of teams beyond which memory, not the SMs, sets
// the pace (teams for a shape bound by arithmetic). The result depends on all lengths in the batch.
//
// INVARIANT. Every sequence is cut at the multiples of `unit_tiles`, whatever surrounds it; the
// pieces lie on the same line, and team t takes the pieces whose start lies in [x(t), x(t + 1))
// with T = teams. So a sequence's bits depend on its own length alone.
//
// Parts of a cut sequence are numbered in token order; slots are given out to cut sequences in
// batch order, lanes(b) * parts(b) to each; merges are listed in (sequence, lane) order, those of
// more than FEW_PARTS parts from the end of the list backwards.
enum class Split : i32 { BALANCED = 0, INVARIANT = 1 };

struct Scheduling {
  const i32* q_starts;  // [batch + 1]
  const i32* kv_lens;   // [batch]
  i32* team_pieces;     // [teams + 1]
  Piece* pieces;        // [piece_capacity]
  MergeCounts* merge_counts;
  Merge* merges;  // [merge_capacity]
  u32* status;
  i32 batch;
  i32 group;
  i32 head_blocks;
  i32 item_rows;
  i32 teams;
  i32 team;
  Split split;
  i32 item_tiles;
  i32 unit_tiles;  // INVARIANT only
  i32 min_tiles;   // BALANCED only, as are the next three
  i32 candidates;
  i32 saturation;
  i32 cut_cost;  // 64ths of a tile
  i32 piece_capacity;
  i32 merge_capacity;
  i32 slot_capacity;
  i32 row_capacity;  // queries of the batch, of a sequence, and cached tokens of a sequence
  i32 q_len_capacity;
  i32 kv_len_capacity;
  i32 reserved;
};
static_assert(sizeof(Scheduling) == 136, "mirrored in abi.rs");
