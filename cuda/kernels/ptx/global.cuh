// Global memory: what C++ has no words for.
#pragma once

#include "abi.cuh"

namespace ptx {

// st.global of 16 bytes to `offset` elements past `base`, unless that is null. A predicate and no branch, so that
// several rows' stores are under way at a time, and not ordered with loads from shared memory, which it cannot
// change.
__device__ __forceinline__ void store_16_unless_null(u16* base, i32 offset, const uint4& value) {
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "setp.ne.u64 there, %0, 0;\n"
      "@there st.global.v4.b32 [%1], {%2, %3, %4, %5};\n"
      "}\n" ::"l"(base),
      "l"(base + offset), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w));
}

// cp.async.bulk.prefetch.L2: asks for `bytes` bytes, a multiple of 16, as the address is.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-prefetch
__device__ __forceinline__ void prefetch_to_l2(const void* source, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(bytes) : "memory");
}

}  // namespace ptx
