// tied_heads_sm90.cu: decode attention over a tied cache with many narrow heads (GTA), several
// cached heads an item. Spec: reference/, "tied"; deep-dive: docs/kernels/tied_sm90.md.
//
//     K_g = [state_g[..n] | rope],  V_g = state_g
//     o[t, i] = sum_j softmax_j(scale <q[t, i], K_g[j]>) V_g[j]            j visible to t
//
// The schedule, and what the host must see to, are in tile/attend_heads_sm90.cuh.
//
// Compiled with -D: GA_N, GA_R, GA_S (widths, n <= s <= 128), and what the schedule wants.
#include "abi.cuh"

// How a row lies in shared memory: [state (s) of every head | rope (r)].
struct Cached {
  static constexpr i32 FIRST = GA_S;
  static constexpr i32 SECOND = GA_R;
  static constexpr bool SECOND_HAS_HEADS = false;
  static constexpr i32 N = GA_N;
  static constexpr i32 D_K = GA_N + GA_R;
  static constexpr bool V_IS_FIRST = true;
  static constexpr i32 D_V = GA_S;
};
static_assert(GA_N <= GA_S && GA_S <= 128 && GA_N + GA_R > 0);

#include "tile/attend_heads_sm90.cuh"

extern "C" __global__ void __launch_bounds__(Traits::THREADS, 1)
    tied_heads_sm90(const __grid_constant__ Attend a, const __grid_constant__ TensorMap state_map,
                    const __grid_constant__ TensorMap rope_map) {
  attend_heads(a, state_map, rope_map);
}
