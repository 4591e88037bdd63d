//! Probabilities times values as blocks of inline assembly, as [`scores`](super::scores) says.

use super::{Asked, DEPTH, Height, Shape, TILE_STRIDE, Tile, Tiles};
use half::bf16;
use std::arch::asm;

/// Four products of [`values_in_place`], of one position of each two: probabilities before their zeros, `$first`, and
/// behind them, `$second`.
macro_rules! products_in_place {
    ($a:tt, $b:tt, $c:tt, $d:tt, $first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {t}*1",
            $first,
            "]\n",
            "tileloaddt1 tmm6, [{b} + {w}*2]\n",
            ask!($a),
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm5, [{a} + {t}*1",
            $second,
            "]\n",
            ask!($b),
            "tdpbf16ps tmm1, tmm5, tmm6\n",
            "tileloaddt1 tmm7, [{b} + {w}*2 + 64]\n",
            ask!($c),
            "tdpbf16ps tmm2, tmm4, tmm7\n",
            ask!($d),
            "tdpbf16ps tmm3, tmm5, tmm7\n",
        )
    };
}

/// Products of [`values_few`], of one position of each two, whose probabilities are in `$p`: 64 columns, or twice as many.
/// Of 64 each half of a step is two products, and of the rates for four the first or the last two.
macro_rules! products_two {
    ($a:tt, $b:tt, $c:tt, $d:tt, $p:literal) => {
        concat!(
            "tileloaddt1 tmm6, [{b} + {w}*2]\n",
            ask!($a),
            "tdpbf16ps tmm0, ",
            $p,
            ", tmm6\n",
            "tileloaddt1 tmm7, [{b} + {w}*2 + 64]\n",
            ask!($b),
            "tdpbf16ps tmm1, ",
            $p,
            ", tmm7\n",
        )
    };
}
macro_rules! products_four {
    ($a:tt, $b:tt, $c:tt, $d:tt, $p:literal) => {
        concat!(
            products_two!($a, $b, $c, $d, $p),
            "tileloaddt1 tmm6, [{b} + {w}*2 + 128]\n",
            ask!($c),
            "tdpbf16ps tmm2, ",
            $p,
            ", tmm6\n",
            "tileloaddt1 tmm7, [{b} + {w}*2 + 192]\n",
            ask!($d),
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

/// Adds `P V` of one tile of rows and four tiles of columns side by side.
///
/// Probabilities are loaded with the hint, since values are read again for the next rows. So is a tile of
/// them for four products, where two tiles of rows and two of columns would take one for two.
/// PERF: one thread of a Xeon, L 8192, `q_len` 1, 2 x 2 tiles and 1 x 4 in turn, best of 40 calls on each of three
/// processors, us: GLA, 128 heads, 1953, 1985, 1944 and 1921, 1919, 1895; MLA, 128 heads, 2714, 2912, 2692
/// and 2648, 2661, 2667.
///
/// # Panics
/// If `asked` has too few pairs for the products.
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
    asked: Asked<'_>,
) {
    let start = asked.start(4 * depth);
    macro_rules! values {
        ($a:tt, $b:tt, $c:tt, $d:tt) => {
        asm!(
            "tileloadd tmm0, [{c} + {s}*1]",
            "tileloadd tmm1, [{c} + {s}*1 + 64]",
            "tileloadd tmm2, [{c} + {s}*1 + 128]",
            "tileloadd tmm3, [{c} + {s}*1 + 192]",
            "2:",
            "tileloaddt1 tmm4, [{a} + {t}*1]",
            "tileloadd tmm5, [{b} + {t}*1]",
            ask!($a),
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{b} + {t}*1 + 1024]",
            ask!($b),
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {t}*1 + 2048]",
            ask!($c),
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{b} + {t}*1 + 3072]",
            ask!($d),
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
            f = inout(reg) start => _,
            x = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
        };
    }
    tiles.shape(Shape::Whole);
    // SAFETY: as in `scores_2x2`.
    unsafe { at_rate!(asked.each_four(), values) }
}

/// Tiles of probabilities for 32 positions where values lie in the cache.
pub(crate) const SPREAD: usize = 2;

/// Values as they lie in the cache, by steps of 32 positions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueRows<'a> {
    /// First column of the first position of each.
    pub(crate) steps: &'a [*const bf16],
    /// Bytes to the column that is wanted.
    pub(crate) column: usize,
    /// Bytes from a position to the next.
    pub(crate) stride: usize,
    /// With all of their products.
    pub(crate) asked: Asked<'a>,
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
/// # Panics
/// As [`values_1x4`].
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
    let start = v.asked.start(8 * v.steps.len());
    macro_rules! values {
        ($a:tt, $b:tt, $c:tt, $d:tt) => {
            asm!(
                "tileloadd tmm0, [{c} + {s}*1]",
                "tileloadd tmm1, [{c} + {s}*1 + 64]",
                "tileloadd tmm2, [{c} + {s}*1 + 128]",
                "tileloadd tmm3, [{c} + {s}*1 + 192]",
                "2:",
                "mov {b}, [{v}]",
                "add {b}, {o}",
                products_in_place!($a, $b, $c, $d, "", " - 2"),
                keep_awake!("jz", "1", "c", "tmm6"),
                "add {b}, {w}",
                products_in_place!($a, $b, $c, $d, " + 1024", " + 1022"),
                "add {a}, 2048", "add {v}, 8",
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
                f = inout(reg) start => _,
                x = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    tiles.shape(Shape::Whole);
    // SAFETY: values, probabilities and sums are 16 rows of 64 bytes. Else as in `scores_2x2`.
    unsafe { at_rate!(v.asked.each_four(), values) }
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
/// # Panics
/// As [`values_1x4`].
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
    let start = v.asked.start(2 * columns / DEPTH * v.steps.len());
    macro_rules! values {
        ($load:ident, $products:ident, $store:ident, $a:tt, $b:tt, $c:tt, $d:tt) => {
            asm!(
                "mov {b}, {c}",
                $load!(),
                "2:",
                "mov {b}, [{v}]",
                "add {b}, {o}",
                "tileloadd tmm4, [{a} + {t}*1]",
                $products!($a, $b, $c, $d, "tmm4"),
                keep_awake!("jz", "1", "c", "tmm4"),
                "add {b}, {w}",
                "tileloadd tmm5, [{a} + {t}*1 + 1024]",
                $products!($c, $d, $a, $b, "tmm5"),
                "add {a}, 2048", "add {v}, 8",
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
                f = inout(reg) start => _,
                x = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    tiles.shape(Shape::Values(height));
    // For each: values are 16 rows of 64 bytes, probabilities and sums two for each of `height`. Else as in `scores_2x2`.
    if columns == COLUMNS_OF_FEW {
        // SAFETY: as above.
        unsafe { at_rate!(v.asked.each_four(), values, load_four, products_four, store_four) }
    } else {
        // SAFETY: as above.
        unsafe { at_rate!(v.asked.each_four(), values, load_two, products_two, store_two) }
    }
}

/// Columns that [`values_few`] takes at once, or half of them.
pub(crate) const COLUMNS_OF_FEW: usize = 128;
