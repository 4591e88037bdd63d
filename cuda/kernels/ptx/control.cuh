// Control: warpgroup registers, barriers of a subset of a CTA's threads, dependent launches.
#pragma once

#include "abi.cuh"

namespace ptx {

// setmaxnreg.dec / .inc: hands registers from one warpgroup to another.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#miscellaneous-instructions-setmaxnreg
template <i32 REGISTERS>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <i32 REGISTERS>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// No instruction: hides from the compiler where a value came from, so that what is derived from it
// is computed where it is used and not kept in registers throughout a loop.
__device__ __forceinline__ u32 opaque(u32 value) {
  asm volatile("" : "+r"(value));
  return value;
}

// What is computed into `x` is computed before whatever waits behind this: ptxas knows no wait that computing
// could fill, and moves it to where it is used. By a trap that depends on it: `x` is not below zero, or NaN.
__device__ __forceinline__ void known(float x) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.lt.f32 p, %0, 0f00000000;\n"
      "@p trap;\n"
      "}\n" ::"f"(x)
      : "memory");
}

// bar.sync over `threads` threads (a multiple of 32).
__device__ __forceinline__ void named_barrier_sync(u32 id, u32 threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.arrive: counts towards the barrier and does not wait.
__device__ __forceinline__ void named_barrier_arrive(u32 id, u32 threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Before sm_90 no launch overlaps the one before it, and neither of these is anything.

// griddepcontrol.launch_dependents: the next kernel of the stream may start its prologue.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-griddepcontrol
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// griddepcontrol.wait: until the kernels this one depends on have finished and flushed.
__device__ __forceinline__ void wait_for_dependencies() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace ptx
