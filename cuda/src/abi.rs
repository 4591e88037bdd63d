//! Mirrors of the structs in kernels/abi.cuh and kernels/abi_portable.cuh. Addresses are on the
//! device, strides count elements; sizes are asserted on both sides.

use crate::driver::Address;

/// Tokens that a kernel consumes per step of its loop, and the unit of schedules.
pub(crate) const TILE_TOKENS: usize = 64;
/// Draft tokens described by one word of a tree mask.
pub(crate) const TREE_WORD_BITS: usize = 32;
/// Bit of the status word: a page id was not a page of the cache.
pub(crate) const STATUS_BAD_PAGE: u32 = 1;

/// Can be an argument of a kernel.
///
/// # Safety
/// The type must be `repr(C)` and mirror the struct that the kernel takes.
pub(crate) unsafe trait Argument: Copy {}

macro_rules! mirror {
    ($name:ident, $bytes:literal) => {
        // SAFETY: `repr(C)`, field by field the struct of the same name in abi*.cuh, which asserts
        // the same size.
        unsafe impl Argument for $name {}
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Queries {
    pub(crate) data: Address,
    pub(crate) row_stride: i64,
    pub(crate) head_stride: i64,
}
const _: () = assert!(size_of::<Queries>() == 24);

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Pages {
    pub(crate) data: Address,
    pub(crate) page_stride: i64,
    pub(crate) token_stride: i64,
    pub(crate) head_stride: i64,
}
const _: () = assert!(size_of::<Pages>() == 32);

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Outputs {
    pub(crate) o: Address,
    pub(crate) lse: Address,
    pub(crate) o_row_stride: i64,
    pub(crate) o_head_stride: i64,
    pub(crate) lse_row_stride: i64,
    pub(crate) lse_head_stride: i64,
}
const _: () = assert!(size_of::<Outputs>() == 48);

/// `Mask` of abi.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum MaskCode {
    Causal = 0,
    Tree = 1,
    Full = 2,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Batch {
    pub(crate) q_starts: Address,
    pub(crate) kv_lens: Address,
    pub(crate) page_table: Address,
    pub(crate) tree: Address,
    pub(crate) page_table_stride: i64,
    pub(crate) tree_stride: i64,
    pub(crate) batch: i32,
    pub(crate) pages: i32,
    pub(crate) page_size: i32,
    pub(crate) mask: MaskCode,
}
const _: () = assert!(size_of::<Batch>() == 64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Piece {
    pub(crate) sequence: i32,
    pub(crate) kv_begin: i32,
    pub(crate) kv_end: i32,
    pub(crate) kv_len: i32,
    pub(crate) q_start: i32,
    pub(crate) q_len: i32,
    pub(crate) slot: i32,
    pub(crate) parts: i32,
}
const _: () = assert!(size_of::<Piece>() == 32);

/// `Merge` of abi.cuh: one lane of a sequence that was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct LaneMerge {
    pub(crate) q_start: i32,
    pub(crate) q_len: i32,
    pub(crate) lane: i32,
    pub(crate) slot: i32,
    pub(crate) parts: i32,
    pub(crate) reserved: [i32; 3],
}
const _: () = assert!(size_of::<LaneMerge>() == 32);

/// Lanes with at most this many parts come first in the list of merges, the others last.
pub(crate) const FEW_PARTS: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct MergeCounts {
    pub(crate) few: i32,
    pub(crate) many: i32,
}
const _: () = assert!(size_of::<MergeCounts>() == 8);

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Schedule {
    pub(crate) team_pieces: Address,
    pub(crate) pieces: Address,
    pub(crate) merge_counts: Address,
    pub(crate) merges: Address,
    pub(crate) teams: i32,
    pub(crate) team: i32,
    pub(crate) head_blocks: i32,
    pub(crate) item_heads: i32,
    pub(crate) item_rows: i32,
    pub(crate) merge_capacity: i32,
}
const _: () = assert!(size_of::<Schedule>() == 56);

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Partials {
    pub(crate) o: Address,
    pub(crate) lse: Address,
}
const _: () = assert!(size_of::<Partials>() == 16);

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Attend {
    pub(crate) q: Queries,
    pub(crate) state: Pages,
    pub(crate) rope: Pages,
    pub(crate) out: Outputs,
    pub(crate) batch: Batch,
    pub(crate) schedule: Schedule,
    pub(crate) partials: Partials,
    pub(crate) status: Address,
    pub(crate) scale_log2: f32,
    pub(crate) h_q: i32,
    pub(crate) h: i32,
    pub(crate) group: i32,
    pub(crate) o_is_f32: i32,
    pub(crate) reserved: i32,
}
mirror!(Attend, 304);

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Combine {
    pub(crate) out: Outputs,
    pub(crate) schedule: Schedule,
    pub(crate) partials: Partials,
    pub(crate) group: i32,
    pub(crate) h: i32,
    pub(crate) d_v: i32,
    pub(crate) o_is_f32: i32,
}
mirror!(Combine, 136);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Write {
    pub(crate) page: i32,
    pub(crate) row: i32,
}
const _: () = assert!(size_of::<Write>() == 8);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Turn {
    pub(crate) cos: f32,
    pub(crate) sin: f32,
}
const _: () = assert!(size_of::<Turn>() == 8);

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct NewRows {
    pub(crate) data: Address,
    pub(crate) cells: Address,
    pub(crate) row_stride: i64,
    pub(crate) head_stride: i64,
    pub(crate) page_stride: i64,
    pub(crate) token_stride: i64,
    pub(crate) cell_head_stride: i64,
    pub(crate) heads: i32,
    pub(crate) width: i32,
}
const _: () = assert!(size_of::<NewRows>() == 64);

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Append {
    pub(crate) part: [NewRows; 2],
    pub(crate) writes: Address,
    pub(crate) write_count: Address,
    pub(crate) turns: Address,
    pub(crate) status: Address,
    pub(crate) pages: i32,
    pub(crate) rotated: i32,
    pub(crate) interleaved: i32,
    pub(crate) reserved: i32,
}
mirror!(Append, 176);

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Part {
    pub(crate) o: Address,
    pub(crate) lse: Address,
    pub(crate) o_row_stride: i64,
    pub(crate) o_head_stride: i64,
    pub(crate) lse_row_stride: i64,
    pub(crate) lse_head_stride: i64,
}
const _: () = assert!(size_of::<Part>() == 48);

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct MergeParts {
    pub(crate) into: Part,
    pub(crate) other: Part,
    pub(crate) rows: i64,
    pub(crate) h_q: i32,
    pub(crate) d_v: i32,
}
mirror!(MergeParts, 112);
