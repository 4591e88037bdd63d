//! The two products of attention as blocks of inline assembly, and what is asked of memory meanwhile.
//!
//! Tile registers cannot be named across blocks, so each product is one block: accumulators are
//! zeroed or loaded, run down the whole depth, and are stored. `tdpbf16ps` multiplies a tile of 16
//! rows of 32 bf16 with one of 16 *pairs* of rows of 16 columns, flushes subnormals on both sides,
//! and adds to 16 by 16 sums in f32.

use super::{Height, Shape, TILE_STRIDE, Tile, Tiles};
use crate::strip::LINE;
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::ops::Range;

/// Two of the addresses that are asked for with a product, see [`Asked`].
macro_rules! ask {
    () => {
        "prefetcht1 [{f}]\nprefetcht1 [{f} + {g}]\nlea {f}, [{f} + {g}*2]\n"
    };
}

macro_rules! ask_4 {
    () => {
        concat!(ask!(), ask!())
    };
}
macro_rules! ask_6 {
    () => {
        concat!(ask!(), ask!(), ask!())
    };
}
macro_rules! ask_8 {
    () => {
        concat!(ask_4!(), ask_4!())
    };
}
macro_rules! ask_12 {
    () => {
        concat!(ask_6!(), ask_6!())
    };
}
macro_rules! ask_16 {
    () => {
        concat!(ask_8!(), ask_8!())
    };
}

/// Stores a tile's rows over each other where a result goes that is stored later, for what [`Tiles::keep_awake`] says: with
/// steps whose count, which runs down to 1, is odd (`jz`, 1) or a multiple of eight (`jnz`, 7).
macro_rules! keep_awake {
    ($jump:literal, $bits:literal, $to:literal, $tile:literal) => {
        concat!(
            "test {n:e}, ",
            $bits,
            "\n",
            $jump,
            " 9f\ntilestored [{",
            $to,
            "}], ",
            $tile,
            "\n9:\n"
        )
    };
}

/// Four products of [`scores_2x2`], and the way to the next.
macro_rules! products_2x2 {
    () => {
        concat!(
            "tileloaddt1 tmm4, [{a0} + {s}*1]\n",
            "tileloadd tmm6, [{b0} + {t}*1]\n",
            "tileloadd tmm7, [{b1} + {t}*1]\n",
            ask!(),
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloaddt1 tmm5, [{a1} + {s}*1]\n",
            ask!(),
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "add {a0}, 64\nadd {a1}, 64\nadd {b0}, 1024\nadd {b1}, 1024\n",
            ask!(),
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            ask!(),
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// Four products of [`scores_4x1`], and the way to the next.
macro_rules! products_4x1 {
    ($ask:ident) => {
        concat!(
            "tileloadd tmm7, [{b} + {t}*1]\n",
            "tileloaddt1 tmm4, [{a0} + {s}*1]\n",
            $ask!(),
            "tdpbf16ps tmm0, tmm4, tmm7\n",
            "tileloaddt1 tmm5, [{a1} + {s}*1]\n",
            $ask!(),
            "tdpbf16ps tmm1, tmm5, tmm7\n",
            "tileloaddt1 tmm4, [{a2} + {s}*1]\n",
            $ask!(),
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            "tileloaddt1 tmm5, [{a3} + {s}*1]\n",
            $ask!(),
            "tdpbf16ps tmm3, tmm5, tmm7\n",
            "add {a0}, 64\nadd {a1}, 64\nadd {a2}, 64\nadd {a3}, 64\nadd {b}, 1024\n",
        )
    };
}

/// Two products of a group and two tiles of its keys side by side, whose rows are neighbouring lines.
macro_rules! products_of_pair {
    ($ask:ident, $keys:literal, $sum:literal) => {
        concat!(
            "tileloaddt1 tmm4, [{",
            $keys,
            "} + {s}*1]\n",
            $ask!(),
            "tdpbf16ps ",
            $sum,
            ", tmm4, tmm6\n",
            "tileloaddt1 tmm5, [{",
            $keys,
            "} + {s}*1 + 64]\n",
            $ask!(),
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
    ($ask:ident) => {
        concat!(
            "tileloadd tmm6, [{b} + {t}*1]\n",
            "tileloadd tmm7, [{b} + {t}*1 + 1024]\n",
            keep_awake!("jz", "1", "c", "tmm6"),
            products_of_pair!($ask, "a0", "tmm0"),
            products_of_pair!($ask, "a1", "tmm1"),
            products_of_pair!($ask, "a2", "tmm2"),
            products_of_pair!($ask, "a3", "tmm3"),
            "add {b}, 2048\n",
        )
    };
}

/// Four products of [`values_in_place`], of one position of each two: probabilities before their zeros, `$first`, and
/// behind them, `$second`.
macro_rules! products_in_place {
    ($ask:ident, $first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {t}*1",
            $first,
            "]\n",
            "tileloaddt1 tmm6, [{b} + {w}*2]\n",
            $ask!(),
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm5, [{a} + {t}*1",
            $second,
            "]\n",
            $ask!(),
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            "tileloaddt1 tmm7, [{b} + {w}*2 + 64]\n",
            $ask!(),
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            $ask!(),
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// Products of [`values_few`], of one position of each two, whose probabilities are in `$p`: 64 columns, or twice as many.
macro_rules! products_two {
    ($ask:ident, $p:literal) => {
        concat!(
            "tileloaddt1 tmm6, [{b} + {w}*2]\n",
            $ask!(),
            "tdpbf16ps tmm0, ",
            $p,
            ", tmm6\n",
            "tileloaddt1 tmm7, [{b} + {w}*2 + 64]\n",
            $ask!(),
            "tdpbf16ps tmm1, ",
            $p,
            ", tmm7\n",
        )
    };
}
macro_rules! products_four {
    ($ask:ident, $p:literal) => {
        concat!(
            products_two!($ask, $p),
            "tileloaddt1 tmm6, [{b} + {w}*2 + 128]\n",
            $ask!(),
            "tdpbf16ps tmm2, ",
            $p,
            ", tmm6\n",
            "tileloaddt1 tmm7, [{b} + {w}*2 + 192]\n",
            $ask!(),
            "tdpbf16ps tmm3, ",
            $p,
            ", tmm7\n",
        )
    };
}

/// Their sums, loaded and stored.
macro_rules! load_two {
    () => {
        "tileloadd tmm0, [{b} + {t}*1]\nadd {b}, {u}\ntileloadd tmm1, [{b} + {t}*1]\nadd {b}, {u}\n"
    };
}
macro_rules! load_four {
    () => {
        concat!(
            load_two!(),
            "tileloadd tmm2, [{b} + {t}*1]\nadd {b}, {u}\ntileloadd tmm3, [{b} + {t}*1]\n"
        )
    };
}
macro_rules! store_two {
    () => {
        "tilestored [{b} + {t}*1], tmm0\nadd {b}, {u}\ntilestored [{b} + {t}*1], tmm1\nadd {b}, {u}\n"
    };
}
macro_rules! store_four {
    () => {
        concat!(
            store_two!(),
            "tilestored [{b} + {t}*1], tmm2\nadd {b}, {u}\ntilestored [{b} + {t}*1], tmm3\n"
        )
    };
}

/// Cache lines to ask for while tiles are multiplied, to the second-level cache: some addresses with
/// each product, of which several may be of one line. More at once would wait for each other and make
/// the tiles' own loads wait.
///
/// PERF: one thread of a Xeon, caches in memory, the lower decile of blocks of 256 positions, us: GLA,
/// 64 rows, nothing asked for 35.0, all of the next block while its values are packed 34.5, half
/// with the products and half with the weights 30.3; MLA, 128 rows, 91.5, 97.3, 84.8.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    start: *const u8,
    /// Bytes with each product.
    bytes: usize,
}

impl Asked {
    /// Addresses with each product of [`scores_2x2`].
    pub(crate) const TWO_TILES: usize = 2;
    /// Addresses with each of the other products of packed values.
    pub(crate) const PACKED: usize = 4;

    /// One line, which is always near.
    pub(crate) const NOTHING: Asked = Asked { start: NEAR.as_ptr(), bytes: 0 };

    pub(crate) fn start(self) -> *const u8 {
        self.start
    }

    /// Bytes with each product.
    pub(crate) fn bytes(self) -> usize {
        self.bytes
    }

    /// Lines from `start` on, so many bytes with each product. Nothing of them is read, so `start` may
    /// point anywhere.
    pub(crate) fn lines(start: *const u8, bytes: usize) -> Asked {
        Asked { start, bytes }
    }

    /// True if these are more than so many addresses with a product.
    fn more_than(self, addresses: usize) -> bool {
        self.bytes > addresses * LINE
    }

    /// Asks for what is due with some products, or what takes as long as they.
    #[inline(always)]
    pub(crate) fn with(self, products: Range<usize>) {
        let mut at = (products.start * self.bytes).next_multiple_of(LINE);
        while at < products.end * self.bytes {
            // SAFETY: a prefetch reads nothing and faults nowhere, so any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.start.wrapping_add(at).cast()) }
            at += LINE;
        }
    }
}

static NEAR: [u8; 1] = [0];

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
/// # Safety
/// For both pieces and both first groups, 16 rows of `64 * depth` bytes, `stride` apart, must be
/// readable; each of `queries` must point to as many tiles as both depths together; each of `out`
/// must be writable, apart from all the others.
pub(crate) unsafe fn scores_2x2(
    tiles: &Tiles,
    pieces: &[Piece; 2],
    queries: [*const Tile<u32>; 2],
    out: [[*mut f32; 2]; 2],
    asked: Asked,
) {
    tiles.shape(Shape::Whole);
    // SAFETY: all tiles are 16 rows of 64 bytes now, so what is read and written is what the caller promised;
    // the block declares every register it changes.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "mov {n}, [{p} + 40]",
            "test {n}, {n}",
            "jz 3f",
            "mov {a0}, [{p}]",
            "mov {a1}, [{p} + 8]",
            "mov {s}, [{p} + 32]",
            "2:",
            products_2x2!(),
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
            products_2x2!(),
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
            f = inout(reg) asked.start => _,
            g = in(reg) asked.bytes / Asked::TWO_TILES,
            b0 = inout(reg) queries[0] => _,
            b1 = inout(reg) queries[1] => _,
            a0 = out(reg) _, a1 = out(reg) _, s = out(reg) _, n = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
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
/// # Safety
/// As [`scores_2x2`], for four groups, one of `queries` and 256 bytes times `height` at `out`.
pub(crate) unsafe fn scores_4x1(
    tiles: &Tiles,
    height: Height,
    pieces: [Piece; 2],
    queries: *const Tile<u32>,
    out: *mut f32,
    asked: Asked,
) {
    let keys = FourGroups { pieces, stride: height.rows() * size_of::<f32>() };
    macro_rules! scores {
        ($ask:ident, $addresses:expr) => {
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
                products_4x2!($ask),
                "dec {n}",
                "jnz 2b",
                "3:",
                "test byte ptr [{p} + 40], 1",
                "jz 4f",
                products_4x1!($ask),
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
                products_4x2!($ask),
                "dec {n}",
                "jnz 5b",
                "6:",
                "test byte ptr [{p} + 88], 1",
                "jz 7f",
                products_4x1!($ask),
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
                f = inout(reg) asked.start => _,
                g = in(reg) asked.bytes / $addresses,
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
    if asked.more_than(6) {
        // SAFETY: keys are 16 rows of 64 bytes; queries and scores are 16 rows of 4 bytes times `height`, which
        // are rows of a tile and dense. Else as in `scores_2x2`.
        unsafe { scores!(ask_12, 12) }
    } else if !asked.more_than(2) {
        // SAFETY: as above.
        unsafe { scores!(ask, 2) }
    } else {
        // SAFETY: as above.
        unsafe { scores!(ask_6, 6) }
    }
}

/// Adds `P V` of one tile of rows and four tiles of columns side by side.
///
/// Probabilities are loaded with the hint, since values are read again for the next rows. So is a tile of
/// them for four products, where two tiles of rows and two of columns would take one for two.
/// PERF: one thread of a Xeon, L 8192, `q_len` 1, 2 x 2 tiles and 1 x 4 in turn, best of 40 calls on each of three
/// processors, us: GLA, 128 heads, 1953, 1985, 1944 and 1921, 1919, 1895; MLA, 128 heads, 2714, 2912, 2692
/// and 2648, 2661, 2667.
///
/// # Safety
/// `p` must point to `depth` tiles, and `v` to four times as many; 16 rows of 256 bytes, `stride` apart, must
/// be readable and writable at `out`.
pub(crate) unsafe fn values_1x4(
    tiles: &Tiles,
    p: *const Tile<u32>,
    v: *const Tile<u32>,
    depth: usize,
    out: *mut f32,
    stride: usize,
    asked: Asked,
) {
    tiles.shape(Shape::Whole);
    // SAFETY: as in `scores_2x2`.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {s}*1]",
            "tileloadd tmm1, [{c} + {s}*1 + 64]",
            "tileloadd tmm2, [{c} + {s}*1 + 128]",
            "tileloadd tmm3, [{c} + {s}*1 + 192]",
            "2:",
            "tileloaddt1 tmm4, [{a} + {t}*1]",
            "tileloadd tmm5, [{b} + {t}*1]",
            ask!(), ask!(),
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{b} + {t}*1 + 1024]",
            ask!(), ask!(),
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {t}*1 + 2048]",
            ask!(), ask!(),
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{b} + {t}*1 + 3072]",
            ask!(), ask!(),
            "tdpbf16ps tmm3, tmm4, tmm5",
            "add {a}, 1024", "add {b}, 4096",
            "dec {n}",
            "jnz 2b",
            "tilestored [{c} + {s}*1], tmm0",
            "tilestored [{c} + {s}*1 + 64], tmm1",
            "tilestored [{c} + {s}*1 + 128], tmm2",
            "tilestored [{c} + {s}*1 + 192], tmm3",
            a = inout(reg) p => _,
            b = inout(reg) v => _,
            c = in(reg) out,
            n = inout(reg) depth => _,
            s = in(reg) stride,
            t = in(reg) TILE_STRIDE,
            f = inout(reg) asked.start => _,
            g = in(reg) asked.bytes / Asked::PACKED,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Tiles of probabilities for 32 positions where values lie in the cache.
pub(crate) const SPREAD: usize = 2;

/// Values as they lie in the cache, by steps of 32 positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueRows<'a> {
    pub(crate) steps: &'a [ValueStep],
    /// Bytes to the column that is wanted.
    pub(crate) column: usize,
    /// Bytes from a position to the next.
    pub(crate) stride: usize,
    /// Bytes that are asked for with each product.
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ValueStep {
    /// First column of the first position.
    pub(crate) values: *const bf16,
    /// What is asked for meanwhile.
    pub(crate) asked: *const u8,
}

/// Adds `P V` of one tile of rows and 64 columns whose values lie in the cache: to four tiles of sums side by side, of
/// the even and the odd columns of each 32.
///
/// A row of V as it lies pairs two columns, where the product wants two positions. So each probability stands beside a
/// zero, before it for odd columns and behind it for even ones. Twice the products, and nothing is packed. In memory it
/// stands behind none, `p` is [`SPREAD`] tiles a step, the even positions and the odd ones, and two bytes earlier each
/// stands behind the zero of the one before.
///
/// PERF: with a tile for each of both, 32 KiB for a block beside 16 KiB of scores, two threads of a Xeon, B 8, L 8192,
/// three rounds in turn, so and as it is, us: GTA at `q_len` 4 8024, 7052; GQA at 4 11433, 11247; MLA with 16 heads 4066,
/// 3996. Alone, all else in the caches, both take 6 ns a product.
///
/// # Safety
/// There must be a step; `p` must point to [`SPREAD`] tiles for each, behind two bytes that are zero; 32 rows of 128 bytes,
/// `stride` apart, must be readable at `column` bytes from each step on; 16 rows of 256 bytes, `out_stride` apart, must be
/// readable and writable at `out`.
pub(crate) unsafe fn values_in_place(
    tiles: &Tiles,
    p: *const Tile<u32>,
    v: &ValueRows<'_>,
    out: *mut f32,
    out_stride: usize,
) {
    macro_rules! values {
        ($ask:ident, $addresses:expr) => {
            asm!(
                "tileloadd tmm0, [{c} + {s}*1]",
                "tileloadd tmm1, [{c} + {s}*1 + 64]",
                "tileloadd tmm2, [{c} + {s}*1 + 128]",
                "tileloadd tmm3, [{c} + {s}*1 + 192]",
                "2:",
                "mov {b}, [{v}]",
                "mov {f}, [{v} + 8]",
                "add {b}, {o}",
                products_in_place!($ask, "", " - 2"),
                keep_awake!("jz", "1", "c", "tmm6"),
                "add {b}, {w}",
                products_in_place!($ask, " + 1024", " + 1022"),
                "add {a}, 2048", "add {v}, 16",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c} + {s}*1], tmm0",
                "tilestored [{c} + {s}*1 + 64], tmm1",
                "tilestored [{c} + {s}*1 + 128], tmm2",
                "tilestored [{c} + {s}*1 + 192], tmm3",
                a = inout(reg) p => _,
                v = inout(reg) v.steps.as_ptr() => _,
                o = in(reg) v.column,
                w = in(reg) v.stride,
                n = inout(reg) v.steps.len() => _,
                b = out(reg) _,
                c = in(reg) out,
                s = in(reg) out_stride,
                t = in(reg) TILE_STRIDE,
                f = out(reg) _,
                g = in(reg) v.bytes / $addresses,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    tiles.shape(Shape::Whole);
    // For each: values, probabilities and sums are 16 rows of 64 bytes. Else as in `scores_2x2`.
    match v.bytes.div_ceil(LINE) {
        // SAFETY: as above.
        ..=4 => unsafe { values!(ask_4, 4) },
        // SAFETY: as above.
        5..=6 => unsafe { values!(ask_6, 6) },
        // SAFETY: as above.
        _ => unsafe { values!(ask_8, 8) },
    }
}

/// As [`values_in_place`], for the few rows of `height`, and 64 columns or 128: to two tiles of sums or four, one after the
/// other, each of 32 columns, `[row, 32]`, the even ones of a row before the odd ones.
///
/// A tile of probabilities has two rows for each row of the head: one in which they stand before zeros, one in which
/// they stand behind them. So one product does even and odd columns.
///
/// PERF: with twice the products, of four and eight rows, and the other sums, two threads of a Xeon, B 8, L 8192, `q_len` 1,
/// three rounds in turn, so and as it is, us: GQA 10368, 10098; GTA 6221, 6055; GLA-2 with 16 heads 3840, 3735. One thread,
/// 512 positions in the caches, where putting sums in order at a task's end shows: GQA 72, 62; GTA 38.6, 40.0; GLA-2 21.1,
/// 22.3.
///
/// # Safety
/// As [`values_in_place`], but for the two bytes; for so many `columns`, of which `height` times as many numbers must be
/// readable and writable at `out`.
pub(crate) unsafe fn values_few(
    tiles: &Tiles,
    height: Height,
    columns: usize,
    p: *const Tile<u32>,
    v: &ValueRows<'_>,
    out: *mut f32,
) {
    macro_rules! values {
        ($load:ident, $products:ident, $store:ident, $ask:ident, $addresses:expr) => {
            asm!(
                "mov {b}, {c}",
                $load!(),
                "2:",
                "mov {b}, [{v}]",
                "mov {f}, [{v} + 8]",
                "add {b}, {o}",
                "tileloadd tmm4, [{a} + {t}*1]",
                $products!($ask, "tmm4"),
                keep_awake!("jz", "1", "c", "tmm4"),
                "add {b}, {w}",
                "tileloadd tmm5, [{a} + {t}*1 + 1024]",
                $products!($ask, "tmm5"),
                "add {a}, 2048", "add {v}, 16",
                "dec {n}",
                "jnz 2b",
                "mov {b}, {c}",
                $store!(),
                a = inout(reg) p => _,
                v = inout(reg) v.steps.as_ptr() => _,
                o = in(reg) v.column,
                w = in(reg) v.stride,
                n = inout(reg) v.steps.len() => _,
                b = out(reg) _,
                c = in(reg) out,
                u = in(reg) 2 * height.rows() * TILE_STRIDE,
                t = in(reg) TILE_STRIDE,
                f = out(reg) _,
                g = in(reg) v.bytes / $addresses,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    tiles.shape(Shape::Values(height));
    // For each: values are 16 rows of 64 bytes, probabilities and sums two for each of `height`. Else as in `scores_2x2`.
    match (columns, v.bytes.div_ceil(LINE)) {
        // SAFETY: as above.
        (COLUMNS_OF_FEW, ..=4) => unsafe {
            values!(load_four, products_four, store_four, ask_4, 4);
        },
        // SAFETY: as above.
        (COLUMNS_OF_FEW, 5..=12) => unsafe {
            values!(load_four, products_four, store_four, ask_12, 12);
        },
        // SAFETY: as above.
        (COLUMNS_OF_FEW, _) => unsafe { values!(load_four, products_four, store_four, ask_16, 16) },
        // SAFETY: as above.
        (_, ..=4) => unsafe { values!(load_two, products_two, store_two, ask_4, 4) },
        // SAFETY: as above.
        _ => unsafe { values!(load_two, products_two, store_two, ask_16, 16) },
    }
}

/// Columns that [`values_few`] takes at once, or half of them.
pub(crate) const COLUMNS_OF_FEW: usize = 128;
