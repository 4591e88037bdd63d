// merge.cu: merges two partial results row by row, in place of the first.
//
//     m   = max(lse_a, lse_b)
//     lse = m + ln(e^(lse_a - m) + e^(lse_b - m))
//     o   = o_a e^(lse_a - lse) + o_b e^(lse_b - lse)
//
// grid     any; a warp takes a row of one head at a time
//
// A part with lse = -inf is empty and leaves the other's bits as they are. Compiled with -D:
// GA_DTYPE.
#include "abi_portable.cuh"
#include "tile/element.cuh"
#include "tile/number.cuh"

using T = Element<GA_DTYPE>;
using Stored = T::Stored;

__device__ void merge_row(const MergeParts& m, i64 row, i32 head) {
  const i32 lane = threadIdx.x % 32;
  Stored* o = static_cast<Stored*>(m.into.o) + row * m.into.o_row_stride +
              head * m.into.o_head_stride;
  const Stored* other_o = static_cast<const Stored*>(m.other.o) + row * m.other.o_row_stride +
                          head * m.other.o_head_stride;
  float* place = m.into.lse + row * m.into.lse_row_stride + head * m.into.lse_head_stride;
  const float lse = *place;
  const float other = m.other.lse[row * m.other.lse_row_stride + head * m.other.lse_head_stride];
  __syncwarp();  // every lane has read the lse that lane 0 replaces

  if (other == -infinity()) return;
  if (lse == -infinity()) {
    for (i32 column = lane; column < m.d_v; column += 32) o[column] = other_o[column];
    if (lane == 0) *place = other;
    return;
  }
  const float max = fmaxf(lse, other);
  const float weight = expf(lse - max), other_weight = expf(other - max);
  const float sum = weight + other_weight;
  for (i32 column = lane; column < m.d_v; column += 32) {
    const float merged = T::load(o[column]) * (weight / sum) +
                         T::load(other_o[column]) * (other_weight / sum);
    o[column] = T::store(merged);
  }
  if (lane == 0) *place = max + logf(sum);
}

extern "C" __global__ void __launch_bounds__(256) merge(const __grid_constant__ MergeParts m) {
  const i64 work = m.rows * m.h_q;
  for (i64 unit = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / 32; unit < work;
       unit += i64(gridDim.x) * blockDim.x / 32) {
    merge_row(m, unit / m.h_q, unit % m.h_q);
  }
}
