// Who sees what, and what must not leak to those who do not.
#pragma once

#include "tile/block.cuh"
#include "tile/number.cuh"

// The cached positions that one query sees: j < prefix, and the draft tokens whose bit is set.
struct Visibility {
  i32 prefix;
  const u32* ancestors;  // null unless the mask is a tree

  __device__ __forceinline__ bool sees(i32 j, i32 kv_len) const {
    if (j < prefix) return true;
    if (ancestors == nullptr || j >= kv_len) return false;
    const i32 draft = j - prefix;
    return ancestors[draft / TREE_WORD_BITS] >> (draft % TREE_WORD_BITS) & 1;
  }
};

// Of a query at or past q_len, which only padding rows have, what the last one sees.
__device__ __forceinline__ Visibility visibility(const Batch& batch, const Piece& piece,
                                                 i32 query) {
  query = min(query, piece.q_len - 1);
  const i32 before = piece.kv_len - piece.q_len;
  switch (batch.mask) {
    case Mask::CAUSAL:
      return {max(0, before + query + 1), nullptr};
    case Mask::TREE:
      return {before, batch.tree + (piece.q_start + query) * batch.tree_stride};
    default:
      return {piece.kv_len, nullptr};
  }
}

// The first position hidden from some query at or after `first_query`; before it nothing is masked.
__device__ __forceinline__ i32 first_hidden(const Batch& batch, const Piece& piece,
                                            i32 first_query) {
  return min(piece.kv_len, visibility(batch, piece, first_query).prefix);
}

// The poisoned positions of a stage, see `sanitise`.
template <i32 TOKENS>
struct Poison {
  unsigned char token[TOKENS];
  u32 any;

  __device__ __forceinline__ void init() { any = 0; }
};

// Hidden scores become -inf; a visible position that is poisoned makes its row NaN. The thread's
// rows see through `view[0]` and `view[1]`; `kv` is the tile's first position.
template <i32 R>
__device__ __forceinline__ void mask_scores(float (&s)[R], const Visibility (&view)[2], i32 kv,
                                            i32 kv_len, const Poison<R * 2>& poison) {
  const i32 first_column = threadIdx.x % 4 * 2;
  if (view[0].ancestors == nullptr && !poison.any) {
#pragma unroll
    for (i32 i = 0; i < R; ++i) {
      const i32 column = i / 4 * 8 + first_column + i % 2;
      if (kv + column >= view[i / 2 % 2].prefix) s[i] = -infinity();
    }
    return;
  }

  // Rarer: what a position is gets decided in a rolled loop, into bit i of two words for score i;
  // only the choice itself is unrolled over the registers.
  static_assert(R <= 32);
  u32 visible = 0, poisoned = 0;
#pragma unroll 1
  for (i32 i = 0; i < R; ++i) {
    const i32 column = i / 4 * 8 + first_column + i % 2;
    const i32 j = kv + column;
    const bool sees = i / 2 % 2 ? view[1].sees(j, kv_len) : view[0].sees(j, kv_len);
    visible |= u32(j < kv_len && sees) << i;
    poisoned |= u32(poison.token[column] != 0) << i;
  }
#pragma unroll
  for (i32 i = 0; i < R; ++i) {
    s[i] = visible >> i & 1 ? (poisoned >> i & 1 ? not_a_number() : s[i]) : -infinity();
  }
}

// Makes a tile safe to multiply by probabilities that are 0. Hidden rows still enter P V as 0 * V,
// which is NaN where V is not finite, so
//   * rows past the length, which may hold anything, become zeros;
//   * of the rows hidden from some queries (from position `hidden` on), those that hold an infinity
//     or NaN become zeros and are marked, for `mask_scores` to give a NaN to whoever sees them.
//     `any` is set where one is and never cleared: from then on the kernel takes its slower path.
// All who read these blocks call it before any of them reads one, as `warps` warps, and synchronise
// after it. `state + i` is the state's block i.
template <class T, i32 BLOCKS, class Blocks, i32 ROWS>
__device__ __forceinline__ void sanitise(const Blocks& state, Poison<ROWS>& poison, i32 kv,
                                         i32 hidden, i32 kv_len, i32 warp, i32 warps) {
  constexpr i32 VECTORS = BLOCKS * VECTORS_PER_ROW;
  const i32 lane = threadIdx.x % 32;
  for (i32 row = warp; row < ROWS; row += warps) {
    const bool past = kv + row >= kv_len;
    bool poisoned = false;
    if (kv + row >= hidden) {
      for (i32 vector = lane; vector < VECTORS; vector += 32) {
        char* block = reinterpret_cast<char*>(state + vector / VECTORS_PER_ROW);
        const u32 offset = swizzled(row, vector % VECTORS_PER_ROW);
        uint4& value = *reinterpret_cast<uint4*>(block + offset);
        const uint4 v = value;
        poisoned |= !past && (not_finite<T>(v.x) || not_finite<T>(v.y) || not_finite<T>(v.z) ||
                              not_finite<T>(v.w));
        if (past) value = make_uint4(0, 0, 0, 0);
      }
      poisoned = __any_sync(~0u, poisoned);
      for (i32 vector = lane; poisoned && vector < VECTORS; vector += 32) {
        char* block = reinterpret_cast<char*>(state + vector / VECTORS_PER_ROW);
        const u32 offset = swizzled(row, vector % VECTORS_PER_ROW);
        *reinterpret_cast<uint4*>(block + offset) = make_uint4(0, 0, 0, 0);
      }
    }
    if (lane == 0) poison.token[row] = poisoned;
    if (lane == 0 && poisoned) poison.any = 1;
  }
}
