// Rows whose weights add up to 0. One that sees nothing is empty: o = 0, lse = -inf. One whose every
// score is -inf has no maximum to subtract: IEEE makes it NaN, and so does the specification
// [S-3.14, S-3.18]. Of a cut sequence only all parts together tell which a row is.
#pragma once

#include "tile/item.cuh"
#include "tile/mask.cuh"

// Whether query `query` of the sequence sees a position of the item's range.
__device__ __forceinline__ bool sees_any(const Batch& batch, const Piece& piece, i32 query) {
  const Visibility view = visibility(batch, piece, query);
  if (piece.kv_begin < min(view.prefix, piece.kv_end)) return true;
  if (view.ancestors == nullptr) return false;
#pragma unroll 1
  for (i32 j = max(piece.kv_begin, view.prefix); j < piece.kv_end; ++j) {
    if (view.sees(j, piece.kv_len)) return true;
  }
  return false;
}

// Takes packed row `row` as an empty one is normalised, factor 0 and lse -inf, and changes what it
// has to if the row is not empty. Other rows it leaves alone.
__device__ __forceinline__ void resolve_weightless(const Attend& a, const Item& item, i32 row,
                                                   float& factor, float& lse) {
  if (lse != -infinity() || !sees_any(a.batch, item.piece, row / a.group)) return;
  lse = item.slot < 0 ? not_a_number() : NO_MAXIMUM;
  if (item.slot < 0) factor = lse;
}
