// A ring of stages between one producer and its consumers.
#pragma once

#include "ptx/barrier.cuh"

template <i32 STAGES>
struct Ring {
  u64 full[STAGES];   // the stage holds a tile
  u64 empty[STAGES];  // every consumer is done with it
  // Nonzero where a page id of the stage's tile was illegal: a byte per producer warp. Written
  // before the producer arrives on `full`.
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

// Whether the stage's page was illegal. Read by the lane that will release the stage.
template <i32 STAGES>
__device__ __forceinline__ bool bad_page_in(const Ring<STAGES>& ring, i32 stage) {
  u32 bad = 0;
  if (threadIdx.x % 32 == 0) bad = ring.bad_page[stage];
  return __shfl_sync(~0u, bad, 0) != 0;
}

// How a consumer warp says that it is done with a stage: its first lane speaks for it, after the
// warp has met. Where ordinary instructions refill the stage every lane speaks for itself, which
// orders no more but lets racecheck, which watches those copies, see that nothing is overwritten
// before it was read.
template <bool BOXES>
__device__ __forceinline__ void consumer_arrive(u64* empty) {
  if constexpr (BOXES) {
    ptx::mbarrier_arrive_warp(empty);
  } else {
    __syncwarp();
    ptx::mbarrier_arrive(empty);
  }
}
template <bool BOXES>
__device__ __forceinline__ u32 consumer_arrivals(u32 warps) {
  return BOXES ? warps : warps * 32;
}

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

  // The position `stages` <= STAGES behind this one.
  __device__ __forceinline__ Cursor ahead(i32 stages) const {
    const i32 after = stage + stages;
    return after < STAGES ? Cursor{after, parity} : Cursor{after - STAGES, parity ^ 1};
  }

  // The position `stages` < STAGES before this one. Before the first round the parity is that of a
  // phase that counts as complete.
  __device__ __forceinline__ Cursor back(i32 stages) const {
    const i32 before = stage - stages;
    return before < 0 ? Cursor{before + STAGES, parity ^ 1} : Cursor{before, parity};
  }
};
