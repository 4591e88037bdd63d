// Copies from global to shared memory that need no register on the way.
#pragma once

#include "abi.cuh"
#include "ptx/shared.cuh"

namespace ptx {

// cp.async, 16 bytes; where `valid` is false nothing is read and zeros are written.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async
__device__ __forceinline__ void copy_16_or_zero(u32 destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
               "r"(valid ? 16 : 0)
               : "memory");
}

// cp.async.wait_all
__device__ __forceinline__ void copy_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// prefetch.tensormap
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// What the L2 is told of a copy: an opaque 64-bit policy, as createpolicy makes them.
constexpr u64 EVICT_NORMAL = 0x1000000000000000;
constexpr u64 EVICT_FIRST = 0x12f0000000000000;

// cp.async.bulk.tensor.5d: one box of a tensor; its bytes count towards `barrier`. Elements outside
// the tensor are not read and become zeros.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
__device__ __forceinline__ void copy_box_5d(void* destination, const TensorMap* map, u64* barrier,
                                            u64 policy, i32 c0, i32 c1, i32 c2, i32 c3, i32 c4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(
          shared_address(destination)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4),
      "l"(policy)
      : "memory");
}

}  // namespace ptx
