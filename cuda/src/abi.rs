//! Mirrors of the structs in kernels/abi.cuh and kernels/abi_portable.cuh. Addresses are on the
//! device, strides count elements; sizes are asserted on both sides.

use crate::driver::Address;
use cudarc::driver::sys::CUtensorMap;

/// Tokens that a kernel consumes per step of its loop, and the unit of schedules.
pub(crate) const TILE_TOKENS: usize = 64;
/// Draft tokens described by one word of a tree mask.
pub(crate) const TREE_WORD_BITS: usize = 32;
/// Bit of the status word: a page id was not a page of the cache.
pub(crate) const STATUS_BAD_PAGE: u32 = 1;
/// Bit of the status word: a schedule made on the device did not fit the plan.
pub(crate) const STATUS_OVER_CAPACITY: u32 = 2;

/// Can be an argument of a kernel.
///
/// # Safety
/// The type must be `repr(C)` and mirror the struct that the kernel takes.
pub(crate) unsafe trait Argument: Copy {}

/// Declares a struct with the fields of the one of the same name in abi*.cuh; a test compares them.
macro_rules! mirror {
    ($(#[$meta:meta])* $name:ident = $cuda:literal, $bytes:literal {
        $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(crate) struct $name {
            $($(#[$field_meta])* pub(crate) $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $bytes);

        impl $name {
            #[cfg(test)]
            const MIRRORED: Mirrored =
                Mirrored { cuda: $cuda, bytes: $bytes, fields: &[$(stringify!($field)),*] };
        }
    };
}

mirror! {
    Queries = "Queries", 24 {
        data: Address,
        row_stride: i64,
        head_stride: i64,
    }
}

mirror! {
    #[derive(Default)]
    Pages = "Pages", 32 {
        data: Address,
        page_stride: i64,
        token_stride: i64,
        head_stride: i64,
    }
}

mirror! {
    Outputs = "Outputs", 48 {
        o: Address,
        lse: Address,
        o_row_stride: i64,
        o_head_stride: i64,
        lse_row_stride: i64,
        lse_head_stride: i64,
    }
}

/// `Mask` of abi.cuh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum MaskCode {
    Causal = 0,
    Tree = 1,
    Full = 2,
}

mirror! {
    Batch = "Batch", 64 {
        q_starts: Address,
        kv_lens: Address,
        page_table: Address,
        tree: Address,
        page_table_stride: i64,
        tree_stride: i64,
        batch: i32,
        pages: i32,
        page_size: i32,
        mask: MaskCode,
    }
}

mirror! {
    #[derive(Default, PartialEq, Eq)]
    Piece = "Piece", 32 {
        sequence: i32,
        kv_begin: i32,
        kv_end: i32,
        kv_len: i32,
        q_start: i32,
        q_len: i32,
        slot: i32,
        parts: i32,
    }
}

mirror! {
    /// `Merge` of abi.cuh: one lane of a sequence that was cut.
    #[derive(Default, PartialEq, Eq)]
    LaneMerge = "Merge", 32 {
        q_start: i32,
        q_len: i32,
        lane: i32,
        slot: i32,
        parts: i32,
        reserved: [i32; 3],
    }
}

/// Lanes with at most this many parts come first in the list of merges, the others last.
pub(crate) const FEW_PARTS: usize = 8;

mirror! {
    #[derive(Default, PartialEq, Eq)]
    MergeCounts = "MergeCounts", 8 {
        few: i32,
        many: i32,
    }
}

mirror! {
    #[derive(Default)]
    Schedule = "Schedule", 56 {
        team_pieces: Address,
        pieces: Address,
        merge_counts: Address,
        merges: Address,
        teams: i32,
        team: i32,
        head_blocks: i32,
        item_heads: i32,
        item_rows: i32,
        merge_capacity: i32,
    }
}

mirror! {
    #[derive(Default)]
    Partials = "Partials", 16 {
        o: Address,
        lse: Address,
    }
}

mirror! {
    Attend = "Attend", 304 {
        q: Queries,
        state: Pages,
        rope: Pages,
        out: Outputs,
        batch: Batch,
        schedule: Schedule,
        partials: Partials,
        status: Address,
        scale_log2: f32,
        h_q: i32,
        h: i32,
        group: i32,
        o_is_f32: i32,
        reserved: i32,
    }
}
// SAFETY: as `Argument` asks: mirrored above.
unsafe impl Argument for Attend {}

mirror! {
    Combine = "Combine", 136 {
        out: Outputs,
        schedule: Schedule,
        partials: Partials,
        group: i32,
        h: i32,
        o_is_f32: i32,
        reserved: i32,
    }
}
// SAFETY: as `Argument` asks: mirrored above.
unsafe impl Argument for Combine {}

mirror! {
    #[derive(Default, PartialEq, Eq)]
    Write = "Write", 8 {
        page: i32,
        row: i32,
    }
}

mirror! {
    #[derive(Default, PartialEq)]
    Turn = "Turn", 8 {
        cos: f32,
        sin: f32,
    }
}

mirror! {
    #[derive(Default)]
    NewRows = "NewRows", 64 {
        data: Address,
        cells: Address,
        row_stride: i64,
        head_stride: i64,
        page_stride: i64,
        token_stride: i64,
        cell_head_stride: i64,
        heads: i32,
        width: i32,
    }
}

mirror! {
    Append = "Append", 176 {
        part: [NewRows; 2],
        writes: Address,
        write_count: Address,
        turns: Address,
        status: Address,
        pages: i32,
        rotated: i32,
        interleaved: i32,
        reserved: i32,
    }
}
// SAFETY: as `Argument` asks: mirrored above.
unsafe impl Argument for Append {}

mirror! {
    Part = "Part", 48 {
        o: Address,
        lse: Address,
        o_row_stride: i64,
        o_head_stride: i64,
        lse_row_stride: i64,
        lse_head_stride: i64,
    }
}

mirror! {
    MergeParts = "MergeParts", 112 {
        into: Part,
        other: Part,
        rows: i64,
        h_q: i32,
        d_v: i32,
    }
}
// SAFETY: as `Argument` asks: mirrored above.
unsafe impl Argument for MergeParts {}

mirror! {
    Scheduling = "Scheduling", 136 {
        q_starts: Address,
        kv_lens: Address,
        team_pieces: Address,
        pieces: Address,
        merge_counts: Address,
        merges: Address,
        status: Address,
        batch: i32,
        group: i32,
        head_blocks: i32,
        item_rows: i32,
        teams: i32,
        team: i32,
        split: i32,
        item_tiles: i32,
        unit_tiles: i32,
        min_tiles: i32,
        candidates: i32,
        saturation: i32,
        cut_cost: i32,
        piece_capacity: i32,
        merge_capacity: i32,
        slot_capacity: i32,
        row_capacity: i32,
        q_len_capacity: i32,
        kv_len_capacity: i32,
        reserved: i32,
    }
}
// SAFETY: as `Argument` asks: mirrored above.
unsafe impl Argument for Scheduling {}

// `TensorMap` of abi.cuh. The driver fills it in at any multiple of 64 bytes, and copies as many bytes
// as the kernel declares to where the kernel has declared it, so that bindings of CUDA 13, whose maps
// are aligned to 128, make the same argument.
const _: () = assert!(size_of::<CUtensorMap>() == 128);
const _: () = assert!(align_of::<CUtensorMap>().is_multiple_of(64));
// SAFETY: as `Argument` asks: 128 bytes here and there, which nobody but driver and device reads.
unsafe impl Argument for CUtensorMap {}

/// What the test of the mirrors needs to know of one.
#[cfg(test)]
struct Mirrored {
    cuda: &'static str,
    bytes: usize,
    fields: &'static [&'static str],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::HEADERS;

    /// Names of a struct's fields as its CUDA declaration has them, and the size asserted there.
    fn declared(name: &str) -> (Vec<&'static str>, usize) {
        let of = |header: &str| HEADERS.iter().find(|(name, _)| *name == header).unwrap().1;
        let head = format!("\nstruct {name} {{\n");
        let text = [of("abi.cuh"), of("abi_portable.cuh")];
        let text = text.into_iter().find(|text| text.contains(&head)).unwrap();
        let (body, rest) = text.split_once(&head).unwrap().1.split_once("\n};").unwrap();
        let size = rest.split_once(&format!("sizeof({name}) == ")).unwrap().1;
        let size = size.split_once(|c: char| !c.is_ascii_digit()).unwrap().0.parse().unwrap();
        let field = |line: &'static str| {
            let code = line.split_once("//").map_or(line, |(code, _)| code);
            let code = code.trim().strip_suffix(';')?;
            let name = code.rsplit([' ', '*']).next()?;
            Some(name.split_once('[').map_or(name, |(name, _)| name))
        };
        (body.lines().filter_map(field).collect(), size)
    }

    /// Sizes alone would not show two fields that changed places.
    #[test]
    fn mirrors_have_the_fields_of_what_they_mirror() {
        let mirrors = [
            Queries::MIRRORED,
            Pages::MIRRORED,
            Outputs::MIRRORED,
            Batch::MIRRORED,
            Piece::MIRRORED,
            LaneMerge::MIRRORED,
            MergeCounts::MIRRORED,
            Schedule::MIRRORED,
            Partials::MIRRORED,
            Attend::MIRRORED,
            Scheduling::MIRRORED,
            Combine::MIRRORED,
            Write::MIRRORED,
            Turn::MIRRORED,
            NewRows::MIRRORED,
            Append::MIRRORED,
            Part::MIRRORED,
            MergeParts::MIRRORED,
        ];
        for Mirrored { cuda, bytes, fields } in mirrors {
            assert_eq!((fields.to_vec(), bytes), declared(cuda), "{cuda}");
        }
    }
}
