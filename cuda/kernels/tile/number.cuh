// The two 16-bit element types, as tags that kernels are instantiated with.
#pragma once

#include "ptx/number.cuh"

struct Bf16 {
  static constexpr bool IS_BF16 = true;
  // Bits of the exponent: all set in an infinity or a NaN.
  static constexpr u32 EXPONENT = 0x7f80;
  static __device__ __forceinline__ u32 pack(float low, float high) {
    return ptx::pack_bf16(low, high);
  }
};

struct F16 {
  static constexpr bool IS_BF16 = false;
  static constexpr u32 EXPONENT = 0x7c00;
  static __device__ __forceinline__ u32 pack(float low, float high) {
    return ptx::pack_f16(low, high);
  }
};

// Whether one of the two elements in `pair` is an infinity or a NaN.
template <class T>
__device__ __forceinline__ bool not_finite(u32 pair) {
  return (pair & T::EXPONENT) == T::EXPONENT || (pair >> 16 & T::EXPONENT) == T::EXPONENT;
}

constexpr float LN_2 = 0.693147180559945309f;
__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fffffff); }
__device__ __forceinline__ i32 ceil_div(i32 a, i32 b) { return (a + b - 1) / b; }
