// Online softmax of the two rows that a thread holds of an m64 accumulator (rows r and r + 8; four
// neighbouring lanes share a row). Scores stay unscaled; exponentials are base 2 with the softmax
// scale folded into one multiply-add.
#pragma once

#include "tile/number.cuh"

struct OnlineSoftmax {
  float max[2];  // of the scores so far; -inf before the first visible one
  float sum[2];  // of this thread's exponentials: lanes are added up in `normalise`

  __device__ __forceinline__ void init() {
    max[0] = max[1] = -infinity();
    sum[0] = sum[1] = 0.0f;
  }

  // Replaces the scores by exponentials against the new maximum. What was accumulated so far must
  // be multiplied by `correction`, which is exactly 1 where the maximum stayed.
  //
  // A row that has seen nothing keeps the maximum -inf: against the base 0 all its exponentials are
  // 2^-inf = 0. A NaN score never becomes the maximum but does become a NaN exponential.
  template <i32 R>
  __device__ __forceinline__ void push(float (&s)[R], float scale_log2, float (&correction)[2]) {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      float m = max[r];
#pragma unroll
      for (i32 i = 2 * r; i < R; i += 4) m = fmaxf(m, fmaxf(s[i], s[i + 1]));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      const float base = m == -infinity() ? 0.0f : m * scale_log2;
      correction[r] = m == max[r] ? 1.0f : ptx::exp2(max[r] * scale_log2 - base);
      max[r] = m;
      float total = 0.0f;
#pragma unroll
      for (i32 i = 2 * r; i < R; i += 4) {
        s[i] = ptx::exp2(fmaf(s[i], scale_log2, -base));
        s[i + 1] = ptx::exp2(fmaf(s[i + 1], scale_log2, -base));
        total += s[i] + s[i + 1];
      }
      sum[r] = sum[r] * correction[r] + total;
    }
  }

  // The factor that turns the accumulator into the result, and the row's log-sum-exp in base 2.
  __device__ __forceinline__ void normalise(float scale_log2, float (&factor)[2],
                                            float (&lse_log2)[2]) {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      float total = sum[r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      factor[r] = total == 0.0f ? 0.0f : 1.0f / total;
      lse_log2[r] = total == 0.0f ? -infinity() : max[r] * scale_log2 + ptx::log2(total);
    }
  }
};
