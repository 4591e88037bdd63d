// separate_heads_sm90.cu: decode attention over separate keys and values (MHA, GQA, MQA), several
// cached heads an item. Spec: reference/, "separate"; deep-dive: docs/kernels/separate_sm90.md.
//
//     o[t, i] = sum_j softmax_j(scale <q[t, i], K_g[j]>) V_g[j]            j visible to t
//
// The schedule, and what the host must see to, are in tile/attend_heads_sm90.cuh.
//
// Compiled with -D: GA_N = d_k, GA_R = 0, GA_S = d_v, and what the schedule wants.
#include "abi.cuh"

// How a row lies in shared memory: [key (d_k) of every head | value (d_v) of every head].
struct Cached {
  static constexpr i32 FIRST = GA_N;
  static constexpr i32 SECOND = GA_S;
  static constexpr bool SECOND_HAS_HEADS = true;
  static constexpr i32 N = GA_N;
  static constexpr i32 D_K = GA_N;
  static constexpr bool V_IS_FIRST = false;
  static constexpr i32 D_V = GA_S;
};

#include "tile/attend_heads_sm90.cuh"

extern "C" __global__ void __launch_bounds__(Traits::THREADS, 1)
    separate_heads_sm90(const __grid_constant__ Attend a, const __grid_constant__ TensorMap k_map,
                        const __grid_constant__ TensorMap v_map) {
  attend_heads(a, k_map, v_map);
}
