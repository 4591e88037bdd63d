// Rows whose weights add up to 0. One that sees nothing is empty: o = 0, lse = -inf. One whose every
// score is -inf has no maximum to subtract: IEEE makes it NaN, and so does the specification
// [S-3.14, S-3.18]. Of a cut sequence only all parts together tell which a row is.
#pragma once

#include "tile/item.cuh"
#include "tile/mask.cuh"

// Takes packed row `row` as an empty one is normalised, factor 0 and lse -inf, and changes what it
// has to if the row is not empty. Other rows it leaves alone.
__device__ __forceinline__ void resolve_weightless(const Attend& a, const Item& item, i32 row,
                                                   float& factor, float& lse) {
  if (lse != -infinity()) return;
  const Visibility view = visibility(a.batch, item.piece, row / a.group);
  // Of its whole sequence: a row of a tree sees itself at least.
  if (view.prefix == 0 && view.ancestors == nullptr) return;
  lse = item.slot < 0 ? not_a_number() : NO_MAXIMUM;
  if (item.slot < 0) factor = lse;
}
