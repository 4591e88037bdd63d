// Online softmax of the two rows that a thread holds of an m64 accumulator (rows r and r + 8; four
// neighbouring lanes share a row). Scores stay unscaled; exponentials are base 2 with the softmax
// scale folded into one multiply-add.
//
// Exponentials are taken against a base, not against the maximum: the first scaled score that counts as
// the largest, then a whole number more whenever a score exceeds it by HEADROOM. So a single weight is
// exactly 1; sums are seldom rescaled, by a power of two then but for the rounding of the base; and a
// warp none of whose rows moves finds that out by a vote.
// PERF: GLA, 128 sequences of 8192, against the running maximum / so: q_len 2 451 / 444 us, q_len 4
// 844 / 814; q_len 1, which waits for memory, 425 / 425.
#pragma once

#include "tile/number.cuh"

// An exponential is at most 2^HEADROOM: harmless in f16, and in sums in f32.
constexpr float HEADROOM = 8.0f;

struct OnlineSoftmax {
  float base[2];  // -inf before the first visible score
  float sum[2];   // of this thread's exponentials: lanes are added up in `normalise`

  __device__ __forceinline__ void init() {
    base[0] = base[1] = -infinity();
    sum[0] = sum[1] = 0.0f;
  }

  // Replaces the scores by exponentials. True where a row of the warp moved its base: then what was
  // accumulated so far must be multiplied by `correction`, which is 1 for the others.
  template <i32 R>
  __device__ __forceinline__ bool push(float (&s)[R], float scale_log2, float (&correction)[2]) {
    const bool moved = raise(s, scale_log2, correction);
    exponentiate(s, scale_log2);
    return moved;
  }

  // The factor that turns the accumulator into the result, and the row's log-sum-exp in base 2.
  __device__ __forceinline__ void normalise(float (&factor)[2], float (&lse_log2)[2]) const {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      float total = sum[r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      factor[r] = total == 0.0f ? 0.0f : 1.0f / total;
      lse_log2[r] = total == 0.0f ? -infinity() : base[r] + ptx::log2(total);
    }
  }

  // What turns sums against base `from` into sums against `to`.
  static __device__ __forceinline__ float rebase(float from, float to) {
    return from == to ? 1.0f : ptx::exp2(from - to);
  }

 private:
  // A NaN score never moves the base.
  template <i32 R>
  __device__ __forceinline__ bool raise(const float (&s)[R], float scale_log2,
                                        float (&correction)[2]) {
    float max[2];
    bool beyond = false;
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      // Two chains: one warp a scheduler waits for each maximum.
      float m[2] = {-infinity(), -infinity()};
#pragma unroll
      for (i32 i = 2 * r; i < R; i += 4) m[i / 4 % 2] = fmaxf(m[i / 4 % 2], fmaxf(s[i], s[i + 1]));
      // Rounded by itself, never contracted into the comparison: what a row does must not depend on
      // whether the vote or the row asks.
      max[r] = __fmul_rn(fmaxf(m[0], m[1]), scale_log2);
      beyond |= max[r] - base[r] > HEADROOM;
      correction[r] = 1.0f;
    }
    if (!__any_sync(~0u, beyond)) return false;
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      max[r] = fmaxf(max[r], __shfl_xor_sync(~0u, max[r], 1));
      max[r] = fmaxf(max[r], __shfl_xor_sync(~0u, max[r], 2));
      if (!(max[r] - base[r] > HEADROOM)) continue;
      const float to = base[r] == -infinity() ? max[r] : base[r] + floorf(max[r] - base[r]);
      correction[r] = rebase(base[r], to);
      base[r] = to;
      sum[r] *= correction[r];
    }
    return true;
  }

  // A row that has seen nothing keeps the base -inf: against 0 all its exponentials are 2^-inf = 0. A
  // NaN score becomes a NaN exponential.
  template <i32 R>
  __device__ __forceinline__ void exponentiate(float (&s)[R], float scale_log2) {
#pragma unroll
    for (i32 r = 0; r < 2; ++r) {
      const float against = base[r] == -infinity() ? 0.0f : base[r];
      float total = 0.0f;
#pragma unroll
      for (i32 i = 2 * r; i < R; i += 4) {
        s[i] = ptx::exp2(fmaf(s[i], scale_log2, -against));
        s[i + 1] = ptx::exp2(fmaf(s[i + 1], scale_log2, -against));
        total += s[i] + s[i + 1];
      }
      sum[r] += total;
    }
  }
};
