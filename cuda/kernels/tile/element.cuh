// The three formats of queries, caches and outputs, as tags: 0 f32, 1 f16, 2 bf16.
#pragma once

#include "abi.cuh"
#include "ptx/convert.cuh"
#include "ptx/number.cuh"

template <i32 DTYPE>
struct Element;

template <>
struct Element<0> {
  using Stored = float;
  static __device__ __forceinline__ float load(float x) { return x; }
  static __device__ __forceinline__ float store(float x) { return x; }
};

template <>
struct Element<1> {
  using Stored = u16;
  static __device__ __forceinline__ float load(u16 x) { return ptx::f32_of_f16(x); }
  static __device__ __forceinline__ u16 store(float x) { return ptx::pack_f16(x, 0.0f); }
};

template <>
struct Element<2> {
  using Stored = u16;
  static __device__ __forceinline__ float load(u16 x) { return __uint_as_float(u32(x) << 16); }
  static __device__ __forceinline__ u16 store(float x) { return ptx::pack_bf16(x, 0.0f); }
};
