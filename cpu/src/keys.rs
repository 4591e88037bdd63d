//! Keys of one head and block on the matrix unit: as tiles can be loaded from them, and their scores.

use crate::amx::{Asked, DEPTH, Height, Piece, ROWS, Tile, Tiles, scores_2x2, scores_4x1};
use crate::lanes::Avx512;
use crate::plan::Padded;
use crate::schedule::{BLOCK, MATRIX_BLOCK};
use crate::strip::Strip;
use half::bf16;
use std::ops::Range;

/// Groups of 16 positions in a block.
const GROUPS: usize = MATRIX_BLOCK / ROWS;

/// The keys of one head and block, as tiles can be loaded from them.
pub(crate) struct Keys<'a> {
    /// The two pieces of a key.
    pieces: [Rows<'a>; 2],
    groups: usize,
}

/// Rows of 16 positions each, in memory at equal distances.
struct Rows<'a> {
    cells: &'a [bf16],
    /// Where each group begins.
    starts: [usize; GROUPS],
    /// Elements from a row to the next.
    stride: usize,
    /// Tiles of 32 elements.
    depth: usize,
}

impl<'a> Keys<'a> {
    /// Each piece as it lies in the cache where whole tiles of it do, or a copy in which they do, filled up with zeros.
    pub(crate) fn new(
        strips: [Strip<'a, bf16>; 2],
        page_size: usize,
        padded: Padded,
        copy: &'a mut [bf16],
    ) -> Keys<'a> {
        let groups = strips[0].len().next_multiple_of(BLOCK) / ROWS;
        let (first, second) = copy.split_at_mut(MATRIX_BLOCK * padded.key[0]);
        let rows = |strip: Strip<'a, bf16>, width: usize, copy: &'a mut [bf16]| {
            let whole = strip.len().is_multiple_of(BLOCK)
                && page_size.is_multiple_of(ROWS)
                && strip.width() == width;
            match whole {
                true => Rows::in_place(strip, groups, width / DEPTH),
                false => Rows::copied(strip, groups, width / DEPTH, copy),
            }
        };
        let [one, other] = strips;
        let pieces = [rows(one, padded.key[0], first), rows(other, padded.key[1], second)];
        Keys { pieces, groups }
    }

    /// Scores of every group against one tile of rows, `[positions, height]`. Keys for which nobody has asked yet
    /// (`fresh`) are asked for some groups ahead; with each 64 positions, which take so many products, what `asked` says.
    pub(crate) fn score_one<'r>(
        &self,
        (lanes, tiles): (Avx512, &Tiles),
        height: Height,
        queries: &[Tile<u32>],
        scores: &mut [[f32; ROWS]],
        fresh: Option<[Strip<'_, bf16>; 2]>,
        mut asked: impl FnMut(usize) -> Asked<'r>,
    ) {
        let queries = &queries[..self.depth()];
        let scores = scores[..self.groups * height.rows()].chunks_exact_mut(4 * height.rows());
        for (i, out) in scores.enumerate() {
            let pieces = self.pieces(4 * i, 4);
            ask(lanes, fresh, 4 * (i + 1)..4 * (i + 2));
            let asked = asked(4 * self.depth());
            let (queries, out) = (queries.as_ptr(), out.as_mut_ptr().cast());
            // SAFETY: `pieces` has checked the keys; the queries are as many tiles as they are deep, and `out` has
            // room for 64 positions.
            unsafe { scores_4x1(tiles, height, pieces, queries, out, asked) }
        }
    }

    /// As [`score_one`](Self::score_one), against two tiles of sixteen rows: `[2, MATRIX_BLOCK, 16]`, and with each 32
    /// positions.
    pub(crate) fn score_two<'r>(
        &self,
        (lanes, tiles): (Avx512, &Tiles),
        queries: &[Tile<u32>],
        scores: &mut [[f32; ROWS]],
        fresh: Option<[Strip<'_, bf16>; 2]>,
        mut asked: impl FnMut(usize) -> Asked<'r>,
    ) {
        let depth = self.depth();
        let queries = &queries[..2 * depth];
        let queries = [queries.as_ptr(), queries[depth..].as_ptr()];
        let (first, second) = scores.split_at_mut(MATRIX_BLOCK);
        let first = first[..self.groups * ROWS].chunks_exact_mut(2 * ROWS);
        for (i, (first, second)) in first.zip(second.chunks_exact_mut(2 * ROWS)).enumerate() {
            let pieces = self.pieces(2 * i, 2);
            ask(lanes, fresh, 2 * (i + 1)..2 * (i + 2));
            let asked = asked(4 * depth);
            let [(a, c), (b, d)] = [first, second].map(|out| {
                let (one, other) = out.split_at_mut(ROWS);
                (one.as_mut_ptr().cast(), other.as_mut_ptr().cast())
            });
            // SAFETY: `pieces` has checked the keys; each of the queries is `depth` tiles, and the
            // outputs are four tiles.
            unsafe { scores_2x2(tiles, &pieces, queries, [[a, b], [c, d]], asked) }
        }
    }

    /// Tiles of 32 elements in a key.
    fn depth(&self) -> usize {
        self.pieces[0].depth + self.pieces[1].depth
    }

    /// Addresses of `count` groups from `first` on, every row of which lies within its cells.
    fn pieces(&self, first: usize, count: usize) -> [Piece; 2] {
        [0, 1].map(|i| {
            let rows = &self.pieces[i];
            let mut groups = [std::ptr::null(); 4];
            if rows.depth > 0 {
                for (group, start) in groups[..count].iter_mut().zip(&rows.starts[first..]) {
                    let span = (ROWS - 1) * rows.stride + rows.depth * DEPTH;
                    *group = rows.cells[*start..][..span].as_ptr();
                }
            }
            Piece { groups, stride: rows.stride * size_of::<bf16>(), depth: rows.depth }
        })
    }
}

/// Asks for the keys of some groups.
fn ask(lanes: Avx512, strips: Option<[Strip<'_, bf16>; 2]>, groups: Range<usize>) {
    for strip in strips.iter().flatten() {
        (groups.start * ROWS..groups.end * ROWS).for_each(|j| strip.prefetch(lanes, j));
    }
}

impl<'a> Rows<'a> {
    /// A copy, with zeros behind the last row up to whole groups. Of each row what is behind the strip's width, up to
    /// `depth` tiles, is never written, and stays zero.
    fn copied(
        strip: Strip<'a, bf16>,
        groups: usize,
        depth: usize,
        copy: &'a mut [bf16],
    ) -> Rows<'a> {
        let stride = depth * DEPTH;
        let copy = &mut copy[..groups * ROWS * stride];
        let (rows, rest) = copy.split_at_mut(strip.len() * stride);
        for (j, row) in rows.chunks_exact_mut(stride.max(1)).enumerate() {
            row[..strip.width()].copy_from_slice(strip.row(j));
        }
        rest.fill(bf16::ZERO);
        let starts = std::array::from_fn(|group| group * ROWS * stride);
        Rows { cells: copy, starts, stride, depth }
    }

    fn in_place(strip: Strip<'a, bf16>, groups: usize, depth: usize) -> Rows<'a> {
        let mut starts = [0; GROUPS];
        for (group, start) in starts[..groups].iter_mut().enumerate() {
            *start = strip.place(group * ROWS).1;
        }
        // Sixteen positions of a page lie at equal distances.
        let (cells, first) = strip.place(0);
        Rows { cells, starts, stride: strip.place(1).1 - first, depth }
    }
}
