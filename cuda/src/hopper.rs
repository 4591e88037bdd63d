//! Which Hopper kernel computes a problem, in which shape, and the tensor maps it loads through.
//!
//! The kernels state their preconditions at their heads (kernels/*_sm90.cu).

use crate::cache::CachePart;
use crate::family::{Choice, Items, Widths};
use crate::jit::Instance;
use cudarc::driver::sys::CUtensorMap;
use grouped_attention::{Dtype, Extent, Problem};

/// Columns of a block of shared memory, and the multiple that all widths must be of.
const BLOCK_COLUMNS: usize = 64;
/// Dynamic shared memory of a block; all of them take what there is, since one fills an SM.
const SHARED_BYTES: usize = 227 << 10;
/// Cached heads of an item of `tied_heads_sm90`, and tokens of a stage.
const HEADS: usize = 8;
const HEADS_TOKENS: usize = 16;
/// Blocks of 64 columns of a unit of `tied_wide_sm90`.
const UNIT_BLOCKS: usize = 2;
/// Tokens of a stage of `separate_heads_sm90`, in the order in which they are tried: the more, the
/// less a warp waits for its own results, but scores are registers and rows shared memory.
const SEPARATE_TOKENS: [usize; 2] = [32, 16];

/// What a tensor map copies at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Box {
    pub(crate) tokens: usize,
    /// Blocks of 64 columns.
    pub(crate) blocks: usize,
    pub(crate) heads: usize,
}

/// How a Hopper kernel reads the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loads {
    /// Rows one by one.
    Rows,
    /// States and rope keys, or keys and values, by the copy engine.
    Boxes { state: Box, rope: Option<Box> },
}

/// The kernel for a problem, if there is one.
///
/// In batch-invariant mode the shape depends on the problem, the page size and the device alone; boxes and
/// rows bring the same numbers to the same places, and what `fast_memory` changes is when they are multiplied,
/// so neither changes a bit.
pub(crate) fn choose(
    problem: &Problem,
    capacity: &Extent,
    page_size: usize,
    fast_memory: bool,
) -> Option<(Choice, Items, Loads)> {
    let widths = Widths::of(problem.geometry());
    let multiple = |width: usize| width.is_multiple_of(BLOCK_COLUMNS);
    if problem.dtype() == Dtype::F32 || ![widths.n, widths.r, widths.s].into_iter().all(multiple) {
        return None;
    }
    let queries = if problem.is_batch_invariant() { 1 } else { capacity.max_q_len.max(1) };
    let rows = problem.geometry().group().saturating_mul(queries);
    if widths.tied {
        choose_tied(problem, &widths, rows, page_size, fast_memory)
    } else {
        choose_separate(problem, &widths, rows, page_size)
    }
}

fn choose_tied(
    problem: &Problem,
    widths: &Widths,
    rows: usize,
    page_size: usize,
    fast_memory: bool,
) -> Option<(Choice, Items, Loads)> {
    let &Widths { r, s, .. } = widths;
    if ![64, 128, 256, 512].contains(&s) {
        return None;
    }
    let heads = problem.geometry().heads();
    let narrow = s <= 128 && heads.is_multiple_of(HEADS) && problem.geometry().group() <= 16;
    let (kernel, items, tokens, mut shape) = if narrow {
        let item = if rows <= 16 { 16 } else { 32 };
        let shape = vec![("GA_HEADS", HEADS), ("GA_ROWS", item), ("GA_TOKENS", HEADS_TOKENS)];
        ("tied_heads_sm90", Items { rows: item, heads: HEADS }, HEADS_TOKENS, shape)
    } else if s == 512 {
        ("tied_wide_sm90", Items { rows: 64, heads: 1 }, BLOCK_COLUMNS, vec![])
    } else {
        let item = if rows <= 64 { 64 } else { 128 };
        ("tied_sm90", Items { rows: item, heads: 1 }, BLOCK_COLUMNS, vec![("GA_ROWS", item)])
    };
    // The wide kernel takes a tile in units.
    let blocks = if s == 512 { UNIT_BLOCKS } else { s / BLOCK_COLUMNS };
    let state = Box { tokens, blocks, heads: items.heads };
    let rope = (r > 0).then_some(Box { tokens, blocks: r / BLOCK_COLUMNS, heads: 1 });
    let boxes = page_size.is_multiple_of(tokens);
    let loads = if boxes { Loads::Boxes { state, rope } } else { Loads::Rows };
    if kernel == "tied_sm90" {
        shape.push(("GA_AHEAD", usize::from(fast_memory && boxes && items.rows == 64)));
    }
    Some((compiled(kernel, problem, widths, shape, loads), items, loads))
}

fn choose_separate(
    problem: &Problem,
    widths: &Widths,
    rows: usize,
    page_size: usize,
) -> Option<(Choice, Items, Loads)> {
    let &Widths { n, s, .. } = widths;
    let geometry = problem.geometry();
    // Accumulators are the registers' limit: a warp holds rows x s of them.
    let item_rows = if rows <= 16 || s > 128 { 16 } else { 32 };
    if geometry.group() > 32 || widths.n > 256 || s > 256 {
        return None;
    }
    let most = if geometry.heads() == 1 { 1 } else { 4 };
    // Three warpgroups leave a thread fewer registers than two.
    let divides =
        |heads: &usize| geometry.heads().is_multiple_of(*heads) && (*heads < 8 || s <= 128);
    let (heads, tokens) = [8, 4, 2]
        .into_iter()
        .filter(divides)
        .chain([most])
        .flat_map(|heads| SEPARATE_TOKENS.map(|tokens| (heads, tokens)))
        .filter(|&(heads, tokens)| tokens == 16 || (heads < 8 && item_rows == 16))
        .find(|&(heads, tokens)| heads_fit(heads, tokens, item_rows, widths))?;
    let shape = vec![("GA_HEADS", heads), ("GA_ROWS", item_rows), ("GA_TOKENS", tokens)];
    let copied = |width: usize| Box { tokens, blocks: width / BLOCK_COLUMNS, heads };
    let loads = if page_size.is_multiple_of(tokens) {
        Loads::Boxes { state: copied(n), rope: Some(copied(s)) }
    } else {
        Loads::Rows
    };
    let choice = compiled("separate_heads_sm90", problem, widths, shape, loads);
    Some((choice, Items { rows: item_rows, heads }, loads))
}

/// Whether kernels/tile/attend_heads_sm90.cuh finds room for its stages: two, and one a warp of a
/// head.
fn heads_fit(heads: usize, tokens: usize, rows: usize, widths: &Widths) -> bool {
    const BARRIERS: usize = 2048;
    let warps = heads.max(4);
    let queries = 2 * heads * rows * widths.n;
    let sums = 4 * (warps - heads) * rows * (widths.s + 8);
    let stage = 2 * heads * tokens * (widths.n + widths.s);
    queries + sums + BARRIERS + stage * (warps / heads).max(2) <= SHARED_BYTES
}

fn compiled(
    kernel: &'static str,
    problem: &Problem,
    widths: &Widths,
    shape: Vec<(&'static str, usize)>,
    loads: Loads,
) -> Choice {
    let mut constants = widths.constants();
    constants.extend(shape);
    constants.push(("GA_BF16", usize::from(problem.dtype() == Dtype::Bf16)));
    constants.push(("GA_BOXES", usize::from(loads != Loads::Rows)));
    Choice { instance: Instance { kernel, constants }, shared_bytes: SHARED_BYTES }
}

/// What `cuTensorMapEncodeTiled` is told of one part of a cache: five dimensions, innermost first:
/// column of a block, token, block, head, page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapShape {
    pub(crate) address: u64,
    pub(crate) extents: [u64; 5],
    /// Bytes, of all dimensions but the first.
    pub(crate) strides: [u64; 4],
    pub(crate) copied: [u32; 5],
}

impl MapShape {
    pub(crate) fn new(
        part: &CachePart,
        pages: usize,
        page_size: usize,
        heads: usize,
        width: usize,
        copied: Box,
    ) -> MapShape {
        const ELEMENT: usize = 2;
        let blocks = width / BLOCK_COLUMNS;
        let row_bytes = part.token_stride * ELEMENT;
        // Of a single head the stride is never taken, but it must be legal.
        let head_stride = if heads > 1 { part.head_stride * ELEMENT } else { row_bytes };
        // A map of no pages is not legal, and one of an empty cache is never followed.
        let extents = [BLOCK_COLUMNS, page_size, blocks, heads, pages.max(1)];
        let strides = [row_bytes, BLOCK_COLUMNS * ELEMENT, head_stride, part.page_stride * ELEMENT];
        let Box { tokens, blocks, heads } = copied;
        MapShape {
            address: part.address,
            extents: extents.map(|extent| extent as u64),
            strides: strides.map(|stride| stride as u64),
            copied: [BLOCK_COLUMNS, tokens, blocks, heads, 1].map(|extent| extent as u32),
        }
    }
}

/// The map of a part that is not there, or of a kernel that takes none.
pub(crate) const NO_MAP: CUtensorMap = CUtensorMap { opaque: [0; 16] };

#[cfg(test)]
mod tests {
    use super::*;
    use grouped_attention::Geometry;

    fn chosen(geometry: Geometry, q_len: usize, page_size: usize) -> Option<String> {
        let problem = Problem::new(geometry, Dtype::Bf16, 1.0).unwrap();
        let capacity =
            Extent { sequences: 1, total_q: q_len, max_q_len: q_len, max_kv_len: 9, writes: 0 };
        choose(&problem, &capacity, page_size, false).map(|found| found.0.instance.to_string())
    }

    #[test]
    fn published_shapes_have_kernels() {
        let gla = Geometry::gla(128, 2, 256, 64).unwrap();
        assert_eq!(
            chosen(gla, 1, 64).unwrap(),
            "tied_sm90 GA_N=256 GA_R=64 GA_S=256 GA_ROWS=64 GA_AHEAD=0 GA_BF16=1 GA_BOXES=1"
        );
        assert!(
            chosen(gla, 2, 16).unwrap().contains("GA_ROWS=128 GA_AHEAD=0 GA_BF16=1 GA_BOXES=0")
        );
        let mla = Geometry::mla(128, 512, 64).unwrap();
        assert!(chosen(mla, 1, 64).unwrap().starts_with("tied_wide_sm90 "));
        let gta = Geometry::gta(128, 8, 128).unwrap();
        assert_eq!(
            chosen(gta, 1, 16).unwrap(),
            "tied_heads_sm90 GA_N=64 GA_R=64 GA_S=128 GA_HEADS=8 GA_ROWS=16 GA_TOKENS=16 \
             GA_BF16=1 GA_BOXES=1"
        );
    }

    /// Only one group of consumers, whose tiles come in boxes, goes ahead.
    #[test]
    fn fast_memory_changes_one_shape() {
        let gla = Geometry::gla(128, 2, 256, 64).unwrap();
        let problem = Problem::new(gla, Dtype::Bf16, 1.0).unwrap();
        for (q_len, page_size, ahead) in [(1, 64, true), (1, 16, false), (2, 64, false)] {
            let capacity =
                Extent { sequences: 1, total_q: q_len, max_q_len: q_len, max_kv_len: 9, writes: 0 };
            let [slow, fast] = [false, true].map(|fast_memory| {
                let (choice, ..) = choose(&problem, &capacity, page_size, fast_memory).unwrap();
                choice.instance.to_string()
            });
            assert!(slow.contains("GA_AHEAD=0"));
            assert_eq!(fast == slow.replace("GA_AHEAD=0", "GA_AHEAD=1"), ahead, "{fast}");
        }
    }

    #[test]
    fn separate_rows_have_kernels() {
        let gqa = Geometry::gqa(128, 8, 128).unwrap();
        assert_eq!(
            chosen(gqa, 1, 64).unwrap(),
            "separate_heads_sm90 GA_N=128 GA_R=0 GA_S=128 GA_HEADS=8 GA_ROWS=16 GA_TOKENS=16 \
             GA_BF16=1 GA_BOXES=1"
        );
        assert!(
            chosen(gqa, 2, 3).unwrap().ends_with("GA_ROWS=32 GA_TOKENS=16 GA_BF16=1 GA_BOXES=0")
        );
        let half = Geometry::gqa(64, 4, 128).unwrap();
        assert!(chosen(half, 1, 64).unwrap().contains("GA_HEADS=4 GA_ROWS=16 GA_TOKENS=32"));
        let unequal = Geometry::separate(128, 128, 192, 128).unwrap();
        assert!(chosen(unequal, 1, 64).unwrap().contains("GA_HEADS=8 GA_ROWS=16 GA_TOKENS=16"));
        assert!(chosen(unequal, 17, 64).unwrap().contains("GA_HEADS=4 GA_ROWS=32 GA_TOKENS=16"));
        let wide = Geometry::gqa(32, 8, 256).unwrap();
        assert!(chosen(wide, 8, 64).unwrap().contains("GA_HEADS=4 GA_ROWS=16 GA_TOKENS=16"));
        let wide_value = Geometry::separate(32, 8, 128, 256).unwrap();
        assert!(chosen(wide_value, 1, 64).unwrap().contains("GA_HEADS=4 GA_ROWS=16 GA_TOKENS=32"));
    }

    /// What tensor parallelism leaves of eight heads, and numbers of heads that nothing divides.
    #[test]
    fn few_separate_heads_have_kernels() {
        let of = |heads| Geometry::gqa(16 * heads, heads, 128).unwrap();
        let shapes = [(1, 1, 32), (2, 2, 32), (3, 4, 32), (6, 2, 32), (12, 4, 32), (24, 8, 16)];
        for (heads, item, tokens) in shapes {
            let shape = format!("GA_HEADS={item} GA_ROWS=16 GA_TOKENS={tokens} ");
            assert!(chosen(of(heads), 1, 64).unwrap().contains(&shape), "{heads} heads");
        }
        assert!(chosen(of(1), 2, 16).unwrap().contains("GA_HEADS=1 GA_ROWS=32 GA_TOKENS=16"));
        assert!(chosen(Geometry::mqa(32, 256).unwrap(), 1, 64).is_some());
    }

    #[test]
    fn others_have_none() {
        assert_eq!(chosen(Geometry::mha(8, 96).unwrap(), 1, 64), None);
        assert_eq!(chosen(Geometry::mha(8, 512).unwrap(), 1, 64), None);
        assert_eq!(chosen(Geometry::mqa(64, 128).unwrap(), 1, 64), None);
        assert_eq!(chosen(Geometry::separate(8, 8, 576, 128).unwrap(), 1, 64), None);
        assert_eq!(chosen(Geometry::gla(8, 2, 192, 64).unwrap(), 1, 64), None);
        assert_eq!(chosen(Geometry::gla(8, 2, 256, 32).unwrap(), 1, 64), None);
    }

    #[test]
    fn a_combined_tensor_is_two_maps() {
        let part =
            CachePart { address: 512, page_stride: 36_864, token_stride: 576, head_stride: 256 };
        let state = Box { tokens: 64, blocks: 4, heads: 1 };
        let map = MapShape::new(&part, 10, 64, 2, 256, state);
        assert_eq!(map.extents, [64, 64, 4, 2, 10]);
        assert_eq!(map.strides, [1152, 128, 512, 73_728]);
        assert_eq!(map.copied, [64, 64, 4, 1, 1]);
    }
}
