// mbarrier: the arrival counters, with a byte count for bulk copies, that order a ring of tiles.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier
#pragma once

#include "abi.cuh"
#include "ptx/shared.cuh"

namespace ptx {

// mbarrier.init
__device__ __forceinline__ void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals));
}

// fence.mbarrier_init: makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// mbarrier.arrive.expect_tx: one arrival, and `bytes` more that bulk copies will account for.
__device__ __forceinline__ void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// mbarrier.arrive, as many arrivals as `count`.
__device__ __forceinline__ void mbarrier_arrive(u64* barrier, u32 count = 1) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}

// cp.async.mbarrier.arrive.noinc: arrives once this thread's cp.async copies so far have landed;
// the barrier's count must already include that arrival.
__device__ __forceinline__ void mbarrier_arrive_after_copies(u64* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// mbarrier.try_wait.parity, which suspends for a while before it answers.
__device__ __forceinline__ bool mbarrier_try_wait(u64* barrier, u32 parity) {
  u32 done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ __forceinline__ void mbarrier_wait(u64* barrier, u32 parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// The warp's arrivals by its first lane, once it has met.
__device__ __forceinline__ void mbarrier_arrive_warp(u64* barrier, u32 count = 1) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier, count);
}

}  // namespace ptx
