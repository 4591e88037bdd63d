// Exponentials of the softmax, in base 2 with the scale folded in.
//
// `max` is the largest unscaled score so far, -inf before the first. Both functions subtract the
// same rounded product max * scale, so that the factors of successive maxima telescope: rounding
// it anew in either (which a contraction into a fused multiply-add would do) would leave errors
// that add up.
#pragma once

#include "ptx/number.cuh"
#include "tile/number.cuh"

// A row that has seen nothing yet subtracts 0: 2^-inf is then 0, and not 2^(-inf + inf).
__device__ __forceinline__ float softmax_base(float max, float scale_log2) {
  return max == -infinity() ? 0.0f : __fmul_rn(max, scale_log2);
}

// The weight of a score; 0 where it is -inf.
__device__ __forceinline__ float exp2_weight(float score, float max, float scale_log2) {
  return ptx::exp2(fmaf(score, scale_log2, -softmax_base(max, scale_log2)));
}

// The factor for what was accumulated under the old maximum; exactly 1 where it stayed.
__device__ __forceinline__ float exp2_correction(float old_max, float max, float scale_log2) {
  if (old_max == max) return 1.0f;
  if (old_max == -infinity()) return 0.0f;
  return ptx::exp2(__fsub_rn(__fmul_rn(old_max, scale_log2), softmax_base(max, scale_log2)));
}

// Of a row whose weights add up to `sum`. Once a row, so the accurate logarithms cost nothing.
__device__ __forceinline__ float log2_lse(float max, float sum, float scale_log2) {
  return softmax_base(max, scale_log2) + log2f(sum);
}

__device__ __forceinline__ float natural_lse(float max, float sum, float scale_log2) {
  return fmaf(softmax_base(max, scale_log2), LN_2, logf(sum));
}
