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
  template <i32 R>
  __device__ __forceinline__ void push(float (&s)[R], float scale_log2, float (&correction)[2]) {
    raise(s, scale_log2, correction);
    exponentiate(s, scale_log2, correction);
  }

  // The first half of `push`: the new maximum. A NaN score never becomes it.
  template <i32 R>
  __device__ __forceinline__ void raise(const float (&s)[R], float scale_log2,
                                        float (&correction)[2]) {
    float larger[2];
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      float m = max[r];
#pragma unroll
      for (i32 i = 2 * r; i < R; i += 4) m = fmaxf(m, fmaxf(s[i], s[i + 1]));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      larger[r] = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
    }
    move(larger, scale_log2, correction);
  }

  // The second half: against it. A row that has seen nothing keeps the maximum -inf: against the base
  // 0 all its exponentials are 2^-inf = 0. A NaN score becomes a NaN exponential.
  template <i32 R>
  __device__ __forceinline__ void exponentiate(float (&s)[R], float scale_log2,
                                               const float (&correction)[2]) {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      const float base = base_of(max[r], scale_log2);
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

  // Takes over the maximum of scores that another group of warps has exponentiated.
  __device__ __forceinline__ void follow(const float (&other)[2], float scale_log2,
                                         float (&correction)[2]) {
    move(other, scale_log2, correction);
    sum[0] *= correction[0];
    sum[1] *= correction[1];
  }

  // The row's exponentials, of all its threads.
  __device__ __forceinline__ void gather() {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    }
  }

  // The factor that turns the accumulator into the result, and the row's log-sum-exp in base 2, from
  // what was gathered.
  __device__ __forceinline__ void finish(float scale_log2, float (&factor)[2],
                                         float (&lse_log2)[2]) const {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      const float total = sum[r];
      factor[r] = total == 0.0f ? 0.0f : 1.0f / total;
      lse_log2[r] = total == 0.0f ? -infinity() : __fmul_rn(max[r], scale_log2) + ptx::log2(total);
    }
  }

  __device__ __forceinline__ void normalise(float scale_log2, float (&factor)[2],
                                            float (&lse_log2)[2]) {
    gather();
    finish(scale_log2, factor, lse_log2);
  }

 private:
  // Products rounded by themselves, never contracted: factors telescope only if each maximum enters
  // all of them as the same number.
  static __device__ __forceinline__ float base_of(float m, float scale_log2) {
    return m == -infinity() ? 0.0f : __fmul_rn(m, scale_log2);
  }

  __device__ __forceinline__ void move(const float (&to)[2], float scale_log2,
                                       float (&correction)[2]) {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      const float base = base_of(to[r], scale_log2);
      correction[r] =
          to[r] == max[r] ? 1.0f : ptx::exp2(__fsub_rn(__fmul_rn(max[r], scale_log2), base));
      max[r] = to[r];
    }
  }
};
