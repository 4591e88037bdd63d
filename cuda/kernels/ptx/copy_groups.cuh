// Groups of asynchronous copies, waited for in the order they were made.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-commit-group
#pragma once

#include "abi.cuh"

namespace ptx {

// cp.async.commit_group: what this thread has copied since the last one.
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group: until at most PENDING of this thread's groups are unfinished.
template <i32 PENDING>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace ptx
