// separate_sm80.cu: attention over separate keys and values (MHA, GQA, MQA) with mma.sync and
// cp.async.
//
// The schedule is in tile/attend_sm80.cuh.
//
// Compiled with -D: GA_BF16, GA_N = d_k, GA_R = 0, GA_S = d_v, GA_ROWS, GA_TOKENS, GA_STAGES,
// GA_SHARED.
#include "abi.cuh"

// How one head's row lies in shared memory: [key (d_k) | value (d_v)].
struct Cached {
  static constexpr i32 FIRST = GA_N;
  static constexpr i32 SECOND = GA_S;
  static constexpr bool SECOND_HAS_HEADS = true;
  static constexpr i32 N = GA_N;
  static constexpr i32 D_K = GA_N;
  static constexpr bool V_IS_FIRST = false;
  static constexpr i32 V_BEGIN = GA_N;
  static constexpr i32 D_V = GA_S;
};

#include "tile/attend_sm80.cuh"

extern "C" __global__ void __launch_bounds__(Traits::THREADS, 1)
    separate_sm80(const __grid_constant__ Attend a) {
  attend_schedule(a);
}
