// A ring of stages between one producer and its consumers.
#pragma once

#include "ptx/barrier.cuh"

template <i32 STAGES>
struct Ring {
  u64 full[STAGES];   // the stage holds a tile
  u64 empty[STAGES];  // every consumer is done with it
  // Nonzero where a page id of the stage's tile was illegal: a byte per producer warp. Written before
  // the producer arrives on `full`.
  u32 bad_page[STAGES];

  __device__ __forceinline__ void init(u32 producers, u32 consumers) {
    for (i32 i = 0; i < STAGES; ++i) {
      ptx::mbarrier_init(&full[i], producers);
      ptx::mbarrier_init(&empty[i], consumers);
      bad_page[i] = 0;
    }
    ptx::fence_mbarrier_init();
  }
};

// A position in the ring: which stage, and in which round of it.
template <i32 STAGES>
struct Cursor {
  i32 stage = 0;
  u32 parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};
