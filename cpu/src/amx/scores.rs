//! Scores as blocks of inline assembly.
//!
//! Tile registers cannot be named across blocks, so each product is one block: accumulators are
//! zeroed or loaded, run down the whole depth, and are stored. `tdpbf16ps` multiplies a tile of 16
//! rows of 32 bf16 with one of 16 *pairs* of rows of 16 columns, flushes subnormals on both sides,
//! and adds to 16 by 16 sums in f32.

use super::{Asked, Height, Shape, TILE_STRIDE, Tile, Tiles};
use half::bf16;
use std::arch::asm;

/// Four products of [`scores_2x2`], and the way to the next.
macro_rules! products_2x2 {
    ($a:tt, $b:tt, $c:tt, $d:tt) => {
        concat!(
            "tileloaddt1 tmm4, [{a0} + {s}*1]\n",
            "tileloadd tmm6, [{b0} + {t}*1]\n",
            "tileloadd tmm7, [{b1} + {t}*1]\n",
            ask!($a),
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloaddt1 tmm5, [{a1} + {s}*1]\n",
            ask!($b),
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "add {a0}, 64\nadd {a1}, 64\nadd {b0}, 1024\nadd {b1}, 1024\n",
            ask!($c),
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            ask!($d),
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// Four products of [`scores_4x1`], and the way to the next.
macro_rules! products_4x1 {
    ($a:tt, $b:tt, $c:tt, $d:tt) => {
        concat!(
            "tileloadd tmm7, [{b} + {t}*1]\n",
            "tileloaddt1 tmm4, [{a0} + {s}*1]\n",
            ask!($a),
            "tdpbf16ps tmm0, tmm4, tmm7\n",
            "tileloaddt1 tmm5, [{a1} + {s}*1]\n",
            ask!($b),
            "tdpbf16ps tmm1, tmm5, tmm7\n",
            "tileloaddt1 tmm4, [{a2} + {s}*1]\n",
            ask!($c),
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            "tileloaddt1 tmm5, [{a3} + {s}*1]\n",
            ask!($d),
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            "add {a0}, 64\nadd {a1}, 64\nadd {a2}, 64\nadd {a3}, 64\nadd {b}, 1024\n",
        )
    };
}

/// Two products of a group and two tiles of its keys side by side, whose rows are neighbouring lines.
macro_rules! products_of_pair {
    ($a:tt, $b:tt, $keys:literal, $sum:literal) => {
        concat!(
            "tileloaddt1 tmm4, [{",
            $keys,
            "} + {s}*1]\n",
            ask!($a),
            "tdpbf16ps ",
            $sum,
            ", tmm4, tmm6\n",
            "tileloaddt1 tmm5, [{",
            $keys,
            "} + {s}*1 + 64]\n",
            ask!($b),
            "tdpbf16ps ",
            $sum,
            ", tmm5, tmm7\n",
            "add {",
            $keys,
            "}, 128\n",
        )
    };
}

/// Eight products of [`scores_4x1`], and the way to the next.
macro_rules! products_4x2 {
    ($a:tt, $b:tt, $c:tt, $d:tt) => {
        concat!(
            "tileloadd tmm6, [{b} + {t}*1]\n",
            "tileloadd tmm7, [{b} + {t}*1 + 1024]\n",
            keep_awake!("jz", "1", "c", "tmm6"),
            products_of_pair!($a, $b, "a0", "tmm0"),
            products_of_pair!($c, $d, "a1", "tmm1"),
            products_of_pair!($a, $b, "a2", "tmm2"),
            products_of_pair!($c, $d, "a3", "tmm3"),
            "add {b}, 2048\n",
        )
    };
}

/// One piece of the keys of some groups of 16 positions.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Piece {
    /// First key of each group.
    pub(crate) groups: [*const bf16; 4],
    /// Bytes from a key to the next of its group.
    pub(crate) stride: usize,
    /// Tiles of 32 elements.
    pub(crate) depth: usize,
}

/// `S^T` of two groups of positions and two tiles of queries: `out[group][tile]`.
///
/// Keys are loaded with a hint (`t1`) not to keep them in the first-level cache, which the queries of
/// two tiles nearly fill and are read from again for the next groups.
/// PERF: one thread of a Xeon, L 8192, `q_len` 1, 128 heads, with the hint here and for probabilities and
/// without, best of 150 calls, us: GLA 2065, 2135; MLA 2780, 3028.
///
/// # Panics
/// If `asked` has too few pairs for the products.
///
/// # Safety
/// For both pieces and both first groups, 16 rows of `64 * depth` bytes, `stride` apart, must be
/// readable; each of `queries` must point to as many tiles as both depths together; each of `out`
/// must be writable, apart from all the others.
pub(crate) unsafe fn scores_2x2(
    tiles: &Tiles,
    pieces: &[Piece; 2],
    queries: [*const Tile<u32>; 2],
    out: [[*mut f32; 2]; 2],
    asked: Asked<'_>,
) {
    let start = asked.start(4 * (pieces[0].depth + pieces[1].depth));
    macro_rules! scores {
        ($a:tt, $b:tt, $c:tt, $d:tt) => {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "mov {n}, [{p} + 40]",
            "test {n}, {n}",
            "jz 3f",
            "mov {a0}, [{p}]",
            "mov {a1}, [{p} + 8]",
            "mov {s}, [{p} + 32]",
            "2:",
            products_2x2!($a, $b, $c, $d),
            "dec {n}",
            "jz 3f",
            keep_awake!("jnz", "7", "k", "tmm6"),
            "jmp 2b",
            "3:",
            "mov {n}, [{p} + 88]",
            "test {n}, {n}",
            "jz 5f",
            "mov {a0}, [{p} + 48]",
            "mov {a1}, [{p} + 56]",
            "mov {s}, [{p} + 80]",
            "4:",
            products_2x2!($a, $b, $c, $d),
            "dec {n}",
            "jz 5f",
            keep_awake!("jnz", "7", "k", "tmm6"),
            "jmp 4b",
            "5:",
            "mov {a0}, [{c}]",
            "mov {a1}, [{c} + 8]",
            "tilestored [{a0} + {t}*1], tmm0",
            "tilestored [{a1} + {t}*1], tmm1",
            "mov {a0}, [{c} + 16]",
            "mov {a1}, [{c} + 24]",
            "tilestored [{a0} + {t}*1], tmm2",
            "tilestored [{a1} + {t}*1], tmm3",
            p = in(reg) pieces.as_ptr(),
            c = in(reg) out.as_ptr(),
            k = in(reg) out[0][0],
            t = in(reg) TILE_STRIDE,
            f = inout(reg) start => _,
            x = out(reg) _,
            b0 = inout(reg) queries[0] => _,
            b1 = inout(reg) queries[1] => _,
            a0 = out(reg) _, a1 = out(reg) _, s = out(reg) _, n = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
        };
    }
    tiles.shape(Shape::Whole);
    // SAFETY: all tiles are 16 rows of 64 bytes now, so what is read and written is what the caller promised, and the
    // addresses of `asked`, as many as `start` has checked; the block declares every register it changes.
    unsafe { at_rate!(asked.each_four(), scores) }
}

/// The keys of four groups of 16 positions, both pieces, and how their scores are stored.
#[derive(Debug)]
#[repr(C)]
struct FourGroups {
    pieces: [Piece; 2],
    /// Bytes from the scores of a position to those of the next.
    stride: usize,
}

/// `S^T` of four groups of positions and one tile of queries, of which `height` rows count: `[64 positions, height]`,
/// dense. For few rows, four accumulators still hide each other's latency.
///
/// Two tiles of a group's keys are loaded one after the other: their rows are neighbouring lines, of which the processor
/// seems to fetch the second with the first, and to have lost it after the rows of three other groups.
/// PERF: the loop alone, keys in the second level, 256 / 512 / 1024 / 1152 bytes from one to the next, ns a product: tile by
/// tile 10.3 / 9.8 / 10.9 / 10.0, in pairs 8.9 / 8.8 / 8.6 to 9.6 / 7.8, pairs without the hint `t1` 9.3 / 9.6 / 10.6 / 10.1. Two
/// threads of a Xeon, B 8, L 8192, four rounds in turn, us: MLA with 16 heads 4049, 3984; GLA-2 with 16 heads 3798, 3709;
/// GTA 6648, 6509, at `q_len` 4 9068, 8931; GQA the same within 1.4 %, before what weighs scores was inlined for sure.
///
/// # Panics
/// As [`scores_2x2`].
///
/// # Safety
/// As [`scores_2x2`], for four groups, one of `queries` and 256 bytes times `height` at `out`.
pub(crate) unsafe fn scores_4x1(
    tiles: &Tiles,
    height: Height,
    pieces: [Piece; 2],
    queries: *const Tile<u32>,
    out: *mut f32,
    asked: Asked<'_>,
) {
    let start = asked.start(4 * (pieces[0].depth + pieces[1].depth));
    let keys = FourGroups { pieces, stride: height.rows() * size_of::<f32>() };
    macro_rules! scores {
        ($a:tt, $b:tt, $c:tt, $d:tt) => {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "mov {a0}, [{p}]",
                "mov {a1}, [{p} + 8]",
                "mov {a2}, [{p} + 16]",
                "mov {a3}, [{p} + 24]",
                "mov {s}, [{p} + 32]",
                "mov {n}, [{p} + 40]",
                "shr {n}, 1",
                "jz 3f",
                "2:",
                products_4x2!($a, $b, $c, $d),
                "dec {n}",
                "jnz 2b",
                "3:",
                "test byte ptr [{p} + 40], 1",
                "jz 4f",
                products_4x1!($a, $b, $c, $d),
                "4:",
                "mov {a0}, [{p} + 48]",
                "mov {a1}, [{p} + 56]",
                "mov {a2}, [{p} + 64]",
                "mov {a3}, [{p} + 72]",
                "mov {s}, [{p} + 80]",
                "mov {n}, [{p} + 88]",
                "shr {n}, 1",
                "jz 6f",
                "5:",
                products_4x2!($a, $b, $c, $d),
                "dec {n}",
                "jnz 5b",
                "6:",
                "test byte ptr [{p} + 88], 1",
                "jz 7f",
                products_4x1!($a, $b, $c, $d),
                "7:",
                "mov {s}, [{p} + 96]",
                "mov {n}, {s}",
                "shl {n}, 4",
                "tilestored [{c} + {s}*1], tmm0",
                "add {c}, {n}",
                "tilestored [{c} + {s}*1], tmm1",
                "add {c}, {n}",
                "tilestored [{c} + {s}*1], tmm2",
                "add {c}, {n}",
                "tilestored [{c} + {s}*1], tmm3",
                p = in(reg) &keys,
                c = inout(reg) out => _,
                t = in(reg) TILE_STRIDE,
                f = inout(reg) start => _,
                x = out(reg) _,
                b = inout(reg) queries => _,
                a0 = out(reg) _, a1 = out(reg) _, a2 = out(reg) _, a3 = out(reg) _,
                s = out(reg) _, n = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    tiles.shape(Shape::Scores(height));
    // SAFETY: keys are 16 rows of 64 bytes; queries and scores are 16 rows of 4 bytes times `height`, which are rows of a
    // tile and dense. Else as in `scores_2x2`.
    unsafe { at_rate!(asked.each_four(), scores) }
}
