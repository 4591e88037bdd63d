// tied_sm80.cu: attention over tied rows (GTA, MLA, GLA) with mma.sync and cp.async.
//
//     K_g = [state_g[..n] | rope],   V_g = state_g
//
// A cached row is loaded once and read as key and as value. The schedule is in
// tile/attend_sm80.cuh.
//
// Compiled with -D: GA_BF16, GA_N, GA_R, GA_S, GA_ROWS, GA_TOKENS, GA_STAGES, GA_SHARED.
#include "abi.cuh"

// How one head's row lies in shared memory: [state (s) | rope (r)].
struct Cached {
  static constexpr i32 FIRST = GA_S;
  static constexpr i32 SECOND = GA_R;
  static constexpr bool SECOND_HAS_HEADS = false;
  // A key is the first N columns of the first part, then the second part's first columns.
  static constexpr i32 N = GA_N;
  static constexpr i32 D_K = GA_N + GA_R;
  static constexpr bool V_IS_FIRST = true;
  static constexpr i32 V_BEGIN = 0;
  static constexpr i32 D_V = GA_S;
};

#include "tile/attend_sm80.cuh"

extern "C" __global__ void __launch_bounds__(Traits::THREADS, 1)
    tied_sm80(const __grid_constant__ Attend a) {
  attend_schedule(a);
}
