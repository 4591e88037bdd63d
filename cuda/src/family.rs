//! Which kernel computes a problem, and in which shape: pure choices, tested without a device.

use crate::jit::Instance;
use grouped_attention::{Dtype, Extent, Geometry, Problem, Row};

/// The rungs of the ladder of attention kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernels {
    /// `naive.cu`: every format, width and alignment. Reads like the definition, and is slow.
    Naive,
    /// `tied_sm80.cu` and `separate_sm80.cu`: tensor cores for 16-bit formats and widths that are
    /// multiples of 16; what they do not cover falls to the naive kernel.
    Portable,
    /// `tied_sm90.cu` and its siblings, `separate_heads_sm90.cu`: the copy engine and wgmma, or
    /// mma.sync for narrow heads, on sm_90; what they do not cover falls to the portable kernels.
    Hopper,
}

/// How a kernel cuts its part of a step: an item is this many packed rows of this many heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Items {
    pub(crate) rows: usize,
    pub(crate) heads: usize,
}

/// The widths with which kernels are compiled: a key is the first `n` elements of the first part
/// and `r` of the second, a value has `s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Widths {
    pub(crate) tied: bool,
    pub(crate) n: usize,
    pub(crate) r: usize,
    pub(crate) s: usize,
}

impl Widths {
    pub(crate) fn of(geometry: &Geometry) -> Widths {
        match geometry.row() {
            Row::Separate { d_k, d_v, .. } => Widths { tied: false, n: d_k, r: 0, s: d_v },
            Row::Tied { n, r, s, .. } => Widths { tied: true, n, r, s },
        }
    }

    fn key(&self) -> usize {
        self.n + self.r
    }

    /// Elements of a cached row as one head sees it.
    fn row(&self) -> usize {
        if self.tied { self.s + self.r } else { self.n + self.s }
    }

    pub(crate) fn constants(&self) -> Vec<(&'static str, usize)> {
        vec![("GA_N", self.n), ("GA_R", self.r), ("GA_S", self.s)]
    }
}

/// The number by which kernels know a format.
pub(crate) fn dtype_code(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
        _ => 0,
    }
}

/// A kernel as it is compiled and launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) instance: Instance,
    pub(crate) shared_bytes: usize,
}

/// A kernel without shape constants.
pub(crate) fn plain(kernel: &'static str, dtype: Dtype) -> Choice {
    let constants = vec![("GA_DTYPE", dtype_code(dtype))];
    Choice { instance: Instance { kernel, constants }, shared_bytes: 0 }
}

/// The kernel that takes everything.
pub(crate) fn naive(problem: &Problem) -> Choice {
    let widths = Widths::of(problem.geometry());
    let mut choice = plain("naive", problem.dtype());
    choice.instance.constants.push(("GA_TIED", usize::from(widths.tied)));
    choice.instance.constants.extend(widths.constants());
    choice
}

/// The kernel that schedules on the device, and the shared memory it is given: enough for some
/// thousand sequences.
pub(crate) fn schedule() -> Choice {
    let instance = Instance { kernel: "schedule", constants: Vec::new() };
    Choice { instance, shared_bytes: SCHEDULE_BYTES }
}

/// What `schedule.cu` needs of it for a batch.
pub(crate) fn schedule_bytes(sequences: usize, teams: usize) -> usize {
    20 * (sequences + 1) + 16 * (teams + 1)
}

/// Shared memory of `schedule.cu`; every supported device has as much.
pub(crate) const SCHEDULE_BYTES: usize = 96 << 10;

/// The kernel that merges the parts of sequences that were cut.
pub(crate) fn combine(problem: &Problem) -> Choice {
    let bf16 = usize::from(problem.dtype() == Dtype::Bf16);
    let constants = vec![("GA_DV", problem.geometry().width_v()), ("GA_BF16", bf16)];
    Choice { instance: Instance { kernel: "combine", constants }, shared_bytes: 0 }
}

/// Tile shape of the portable kernels; the words are those of kernels/tile/attend_sm80.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tile {
    /// Packed query rows of an item.
    pub(crate) rows: usize,
    /// Tokens a step.
    pub(crate) tokens: usize,
    /// Tiles in shared memory at a time.
    pub(crate) stages: usize,
}

/// Threads of a block that leave 128 registers to each.
const MAX_THREADS: usize = 512;
/// Rows of a warp's matrix instruction, and the multiple that all widths must be of.
const MATRIX: usize = 16;
/// Elements by which rows in shared memory are padded, so that eight of them lie in all banks.
const PADDING: usize = 8;

impl Tile {
    fn warps(&self) -> usize {
        // A warp takes 16 rows and 16 tokens of the scores.
        self.rows / MATRIX * (self.tokens / MATRIX)
    }

    pub(crate) fn threads(&self) -> usize {
        32 * self.warps()
    }

    /// Size of `SharedMemory` in kernels/tile/attend_sm80.cuh, which asserts it.
    pub(crate) fn shared_bytes(&self, widths: &Widths) -> usize {
        let Tile { rows, tokens, stages } = *self;
        let queries = 2 * rows * (widths.key() + PADDING);
        let cached = 2 * stages * tokens * (widths.row() + PADDING);
        let probabilities = 2 * rows * (tokens + PADDING);
        let sources = 8 * 2 * tokens;
        let exchange = 4 * 2 * (tokens / MATRIX) * rows;
        let marks = 4 * rows * widths.s.div_ceil(32);
        queries + cached + probabilities + sources + exchange + marks + tokens + 16
    }

    /// The shape for at most `rows` packed rows a cached head within a device's shared memory; less
    /// of it where that does not fit.
    fn choose(widths: &Widths, rows: usize, shared_limit: usize) -> Option<Tile> {
        // Accumulators are the registers' limit: a warp holds 16 x (s / warps across) of them.
        const COLUMNS_PER_WARP: usize = 256;
        let wanted = rows.next_power_of_two().clamp(16, 64);
        [64, 32, 16].into_iter().filter(|rows| *rows <= wanted).find_map(|rows| {
            [(64, 2), (32, 2), (32, 1)]
                .into_iter()
                .map(|(tokens, stages)| Tile { rows, tokens, stages })
                .filter(|tile| widths.s.div_ceil(tile.tokens / MATRIX) <= COLUMNS_PER_WARP)
                .filter(|tile| tile.threads() <= MAX_THREADS)
                .find(|tile| tile.shared_bytes(widths) <= shared_limit)
        })
    }
}

/// The portable kernel for a problem and its shape, if they have one.
///
/// In batch-invariant mode the shape depends on the problem alone, since sums are formed tile by
/// tile.
pub(crate) fn portable(
    problem: &Problem,
    capacity: &Extent,
    shared_limit: usize,
) -> Option<(Choice, Tile)> {
    let widths = Widths::of(problem.geometry());
    let multiple = |width: usize| width.is_multiple_of(MATRIX);
    // Wider values than these would not fit the shared memory of `combine`.
    let too_wide = widths.s > 512;
    if too_wide
        || problem.dtype() == Dtype::F32
        || ![widths.n, widths.r, widths.s].into_iter().all(multiple)
    {
        return None;
    }
    let queries = if problem.is_batch_invariant() { 1 } else { capacity.max_q_len.max(1) };
    // More rows than the largest item are all the same.
    let rows = problem.geometry().group().saturating_mul(queries).min(64);
    let tile = Tile::choose(&widths, rows, shared_limit)?;
    let kernel = if widths.tied { "tied_sm80" } else { "separate_sm80" };
    let mut constants = vec![("GA_BF16", usize::from(problem.dtype() == Dtype::Bf16))];
    constants.extend(widths.constants());
    let shared_bytes = tile.shared_bytes(&widths);
    constants.extend([
        ("GA_ROWS", tile.rows),
        ("GA_TOKENS", tile.tokens),
        ("GA_STAGES", tile.stages),
        ("GA_SHARED", shared_bytes),
    ]);
    let instance = Instance { kernel, constants };
    Some((Choice { instance, shared_bytes }, tile))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory of a block: A100, Ada, Hopper.
    const LIMITS: [usize; 3] = [163 << 10, 99 << 10, 227 << 10];

    fn problem(geometry: Geometry) -> Problem {
        Problem::new(geometry, Dtype::Bf16, 1.0).unwrap()
    }

    fn extent(max_q_len: usize) -> Extent {
        Extent { sequences: 1, total_q: max_q_len, max_q_len, max_kv_len: 1 << 16, writes: 0 }
    }

    #[test]
    fn published_widths_have_a_shape_everywhere() {
        let geometries = [
            Geometry::mla(128, 512, 64).unwrap(),
            Geometry::gla(128, 2, 256, 64).unwrap(),
            Geometry::gta(32, 8, 128).unwrap(),
            Geometry::gqa(64, 8, 128).unwrap(),
            Geometry::mha(16, 64).unwrap(),
            Geometry::separate(128, 128, 192, 128).unwrap(),
            Geometry::mqa(8, 256).unwrap(),
        ];
        for geometry in geometries {
            for limit in LIMITS {
                for q_len in [1, 2, 300] {
                    let found = portable(&problem(geometry), &extent(q_len), limit);
                    let (choice, tile) = found.unwrap_or_else(|| panic!("{geometry} in {limit}"));
                    assert!(choice.shared_bytes <= limit);
                    assert!(tile.threads() <= MAX_THREADS);
                }
            }
        }
    }

    #[test]
    fn odd_widths_and_f32_are_left_to_the_naive_kernel() {
        let odd = problem(Geometry::tied(4, 2, 24, 8, 6).unwrap());
        assert_eq!(portable(&odd, &extent(1), LIMITS[0]), None);
        let f32 = Problem::new(Geometry::mha(4, 64).unwrap(), Dtype::F32, 1.0).unwrap();
        assert_eq!(portable(&f32, &extent(1), LIMITS[0]), None);
        assert_eq!(
            naive(&odd).instance.to_string(),
            "naive GA_DTYPE=2 GA_TIED=1 GA_N=8 GA_R=6 GA_S=24"
        );
    }

    // [S-3.21]
    #[test]
    fn the_invariant_shape_ignores_the_batch() {
        let problem = problem(Geometry::gqa(64, 8, 128).unwrap()).batch_invariant();
        let shape = |q_len| portable(&problem, &extent(q_len), LIMITS[0]).unwrap();
        assert_eq!(shape(1), shape(100));
    }
}
