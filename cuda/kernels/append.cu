// append.cu: writes a step's new rows into a layer's cache, turning one part of them on the way.
//
//     a' = a cos - b sin,   b' = b cos + a sin      for every pair (a, b) of the turned part
//
// grid     any; a thread takes one element of one row at a time
// host     no two writes name one cell. Pages are checked here, since a graph may have replaced
//          them: a row whose page the cache does not have is not written, and the status says so.
//
// What is not turned is copied bit for bit. Compiled with -D: GA_DTYPE.
#include "abi_portable.cuh"
#include "tile/element.cuh"

using T = Element<GA_DTYPE>;
using Stored = T::Stored;

// Element `column` of a vector `x` of `width` after its turn.
__device__ Stored turned(const Stored* x, i32 column, i32 width, bool interleaved,
                         const Turn* turns) {
  const i32 half = width / 2;
  const i32 pair = interleaved ? column / 2 : column % half;
  const bool is_first = interleaved ? column % 2 == 0 : column < half;
  const i32 partner = interleaved ? column ^ 1 : (is_first ? column + half : column - half);
  const float own = T::load(x[column]), other = T::load(x[partner]);
  const Turn turn = turns[pair];
  return T::store(fmaf(own, turn.cos, is_first ? -other * turn.sin : other * turn.sin));
}

__device__ void append_element(const Append& a, i32 which, i64 index, i32 element) {
  const NewRows& part = a.part[which];
  const Write write = a.writes[index];
  if (write.page < 0 || write.page >= a.pages) {
    atomicOr(a.status, STATUS_BAD_PAGE);
    return;
  }
  const i32 head = element / part.width, column = element % part.width;
  const Stored* x = static_cast<const Stored*>(part.data) + index * part.row_stride +
                    head * part.head_stride;
  Stored* cell = static_cast<Stored*>(part.cells) + write.page * part.page_stride +
                 write.row * part.token_stride + head * part.cell_head_stride;
  if (which == a.rotated) {
    const Turn* turns = a.turns + index * (part.width / 2);
    cell[column] = turned(x, column, part.width, a.interleaved, turns);
  } else {
    cell[column] = x[column];
  }
}

extern "C" __global__ void __launch_bounds__(256) append(const __grid_constant__ Append a) {
  const i32 first = a.part[0].heads * a.part[0].width;
  const i32 elements = first + a.part[1].heads * a.part[1].width;
  const i64 work = i64(*a.write_count) * elements;
  for (i64 unit = i64(blockIdx.x) * blockDim.x + threadIdx.x; unit < work;
       unit += i64(gridDim.x) * blockDim.x) {
    const i32 element = unit % elements;
    const i32 which = element < first ? 0 : 1;
    append_element(a, which, unit / elements, which == 0 ? element : element - first);
  }
}
