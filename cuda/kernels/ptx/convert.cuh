// Conversions of single numbers.
#pragma once

#include "abi.cuh"

namespace ptx {

// cvt.f32.f16: exact, subnormals included.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
__device__ __forceinline__ float f32_of_f16(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

}  // namespace ptx
