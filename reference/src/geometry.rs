//! What a layer's heads look like: how many query heads, which kind of cache row, how wide.
//!
//! Six variants, two kinds of row `[S-2.1]`. MHA, GQA and MQA keep keys and values apart; GTA, MLA
//! and GLA are one structure in which the key is a prefix of the value plus a shared rope key.

use std::fmt;

/// How one cached token is laid out, per head and shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Row {
    /// `heads` keys of width `d_k` and `heads` values of width `d_v`.
    Separate {
        /// KV heads `h_kv`.
        heads: usize,
        /// Width of a key.
        d_k: usize,
        /// Width of a value.
        d_v: usize,
    },
    /// `heads` states of width `s`, then one rope key of width `r` shared by all of them.
    /// For head g, `V_g = state_g` and `K_g = [state_g[..n] | rope]`.
    Tied {
        /// Tied heads (GTA) or latent heads (MLA, GLA).
        heads: usize,
        /// Width of a state, which is the value.
        s: usize,
        /// Elements of the state that are also key.
        n: usize,
        /// Width of the shared rope key; may be 0.
        r: usize,
    },
}

impl Row {
    /// Cached heads: KV, tied or latent.
    pub const fn heads(&self) -> usize {
        match *self {
            Row::Separate { heads, .. } | Row::Tied { heads, .. } => heads,
        }
    }

    /// Width of the key a head sees, and of a query.
    pub const fn width_k(&self) -> usize {
        match *self {
            Row::Separate { d_k, .. } => d_k,
            Row::Tied { n, r, .. } => n + r,
        }
    }

    /// Width of the value a head sees, and of an output.
    pub const fn width_v(&self) -> usize {
        match *self {
            Row::Separate { d_v, .. } => d_v,
            Row::Tied { s, .. } => s,
        }
    }

    /// Elements that one token takes in the cache `[S-2.7]`.
    pub const fn elements(&self) -> usize {
        match *self {
            Row::Separate { heads, d_k, d_v } => heads * (d_k + d_v),
            Row::Tied { heads, s, r, .. } => heads * s + r,
        }
    }

    /// The two parts a row is stored in, as elements per token: keys and values, or states and
    /// rope key.
    pub const fn parts(&self) -> [usize; 2] {
        let [(first_heads, first), (second_heads, second)] = self.part_heads();
        [first_heads * first, second_heads * second]
    }

    /// Heads of each part, and the width of one. A rope key counts as one head.
    pub const fn part_heads(&self) -> [(usize, usize); 2] {
        match *self {
            Row::Separate { heads, d_k, d_v } => [(heads, d_k), (heads, d_v)],
            Row::Tied { heads, s, r, .. } => [(heads, s), (1, r)],
        }
    }
}

/// The geometry of one attention layer: query heads over a kind of row. Legal by construction.
///
/// ```
/// use grouped_attention::Geometry;
/// let gla = Geometry::gla(128, 2, 256, 64)?;
/// assert_eq!((gla.group(), gla.width_k(), gla.width_v()), (64, 320, 256));
/// assert_eq!(gla.row().elements(), 576);
/// # Ok::<(), grouped_attention::InvalidGeometry>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    variant: Variant,
    h_q: usize,
    row: Row,
}

/// The name a geometry goes by. The computation depends only on [`Row`]; the name is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Variant {
    /// Multi-head attention: as many KV heads as query heads.
    Mha,
    /// Grouped-query attention.
    Gqa,
    /// Multi-query attention: one KV head.
    Mqa,
    /// Grouped-Tied Attention.
    Gta,
    /// Multi-head latent attention: one latent head.
    Mla,
    /// Grouped Latent Attention (not gated linear attention).
    Gla,
}

impl Variant {
    /// Every variant, separate ones first.
    pub const ALL: [Variant; 6] =
        [Variant::Mha, Variant::Gqa, Variant::Mqa, Variant::Gta, Variant::Mla, Variant::Gla];
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Variant::Mha => "mha",
            Variant::Gqa => "gqa",
            Variant::Mqa => "mqa",
            Variant::Gta => "gta",
            Variant::Mla => "mla",
            Variant::Gla => "gla",
        })
    }
}

impl std::str::FromStr for Variant {
    type Err = InvalidGeometry;

    fn from_str(name: &str) -> Result<Variant, InvalidGeometry> {
        Variant::ALL
            .into_iter()
            .find(|variant| variant.to_string() == name)
            .ok_or_else(|| InvalidGeometry::UnknownVariant { name: name.to_owned() })
    }
}

impl Geometry {
    /// MHA: `h` heads of width `d_h`.
    ///
    /// # Errors
    /// As [`Geometry::separate`].
    pub fn mha(h: usize, d_h: usize) -> Result<Geometry, InvalidGeometry> {
        Self::new(Variant::Mha, h, Row::Separate { heads: h, d_k: d_h, d_v: d_h })
    }

    /// GQA: `h_kv` KV heads of width `d_h`, each read by `h_q / h_kv` query heads.
    ///
    /// # Errors
    /// As [`Geometry::separate`].
    pub fn gqa(h_q: usize, h_kv: usize, d_h: usize) -> Result<Geometry, InvalidGeometry> {
        Self::new(Variant::Gqa, h_q, Row::Separate { heads: h_kv, d_k: d_h, d_v: d_h })
    }

    /// MQA: one KV head of width `d_h`.
    ///
    /// # Errors
    /// As [`Geometry::separate`].
    pub fn mqa(h_q: usize, d_h: usize) -> Result<Geometry, InvalidGeometry> {
        Self::new(Variant::Mqa, h_q, Row::Separate { heads: 1, d_k: d_h, d_v: d_h })
    }

    /// Keys and values of any two widths; named by its head counts.
    ///
    /// # Errors
    /// A count or width of 0, a `h_q` that `heads` does not divide, a row whose size overflows.
    pub fn separate(
        h_q: usize,
        heads: usize,
        d_k: usize,
        d_v: usize,
    ) -> Result<Geometry, InvalidGeometry> {
        let variant = match heads {
            _ if heads == h_q => Variant::Mha,
            1 => Variant::Mqa,
            _ => Variant::Gqa,
        };
        Self::new(variant, h_q, Row::Separate { heads, d_k, d_v })
    }

    /// GTA with the paper's widths: `h_kv` tied heads of width `d_h`, half of it key, and a rope
    /// key of `d_h / 2`.
    ///
    /// # Errors
    /// As [`Geometry::tied`]; an odd `d_h`.
    pub fn gta(h_q: usize, h_kv: usize, d_h: usize) -> Result<Geometry, InvalidGeometry> {
        if !d_h.is_multiple_of(2) {
            return Err(InvalidGeometry::OddHeadDim { d_h });
        }
        let row = Row::Tied { heads: h_kv, s: d_h, n: d_h / 2, r: d_h / 2 };
        Self::new(Variant::Gta, h_q, row)
    }

    /// MLA: one latent head of width `d_c` and a rope key of width `d_r`.
    ///
    /// # Errors
    /// As [`Geometry::tied`].
    pub fn mla(h_q: usize, d_c: usize, d_r: usize) -> Result<Geometry, InvalidGeometry> {
        Self::new(Variant::Mla, h_q, Row::Tied { heads: 1, s: d_c, n: d_c, r: d_r })
    }

    /// GLA: `h_c` latent heads of width `d_c` each and one rope key of width `d_r`.
    ///
    /// # Errors
    /// As [`Geometry::tied`].
    pub fn gla(
        h_q: usize,
        h_c: usize,
        d_c: usize,
        d_r: usize,
    ) -> Result<Geometry, InvalidGeometry> {
        Self::new(Variant::Gla, h_q, Row::Tied { heads: h_c, s: d_c, n: d_c, r: d_r })
    }

    /// Any tied row. Named MLA or GLA where the whole state is key, GTA otherwise.
    ///
    /// # Errors
    /// A head count or state width of 0, `n > s`, `n + r = 0`, a `h_q` that `heads` does not
    /// divide, a row whose size overflows.
    pub fn tied(
        h_q: usize,
        heads: usize,
        s: usize,
        n: usize,
        r: usize,
    ) -> Result<Geometry, InvalidGeometry> {
        let variant = match (n == s, heads) {
            (true, 1) => Variant::Mla,
            (true, _) => Variant::Gla,
            (false, _) => Variant::Gta,
        };
        Self::new(variant, h_q, Row::Tied { heads, s, n, r })
    }

    fn new(variant: Variant, h_q: usize, row: Row) -> Result<Geometry, InvalidGeometry> {
        let heads = row.heads();
        let positive = [("h_q", h_q), ("heads", heads)];
        if let Some((what, _)) = positive.into_iter().find(|(_, count)| *count == 0) {
            return Err(InvalidGeometry::Zero { what });
        }
        match row {
            Row::Separate { d_k, d_v, .. } => {
                if let Some((what, _)) =
                    [("d_k", d_k), ("d_v", d_v)].into_iter().find(|(_, width)| *width == 0)
                {
                    return Err(InvalidGeometry::Zero { what });
                }
            }
            Row::Tied { s, n, r, .. } => {
                if s == 0 {
                    return Err(InvalidGeometry::Zero { what: "s" });
                }
                if n > s {
                    return Err(InvalidGeometry::KeyWiderThanState { n, s });
                }
                if n == 0 && r == 0 {
                    return Err(InvalidGeometry::Zero { what: "n + r" });
                }
            }
        }
        if !h_q.is_multiple_of(heads) {
            return Err(InvalidGeometry::HeadsDoNotDivide { h_q, heads });
        }
        let geometry = Geometry { variant, h_q, row };
        // 2^31 elements a token is far past any layer; below it no product of two widths or of
        // heads and width can overflow, and all are 31-bit numbers: engines need not check theirs.
        match geometry.checked_elements() {
            Some(elements) if elements <= MAX_ELEMENTS => Ok(geometry),
            _ => Err(InvalidGeometry::TooLarge { h_q, row }),
        }
    }

    /// Elements of the largest per-token tensor: the row, the queries or the outputs.
    fn checked_elements(&self) -> Option<usize> {
        let (row, queries, outputs) = match self.row {
            Row::Separate { heads, d_k, d_v } => {
                (heads.checked_mul(d_k.checked_add(d_v)?)?, d_k, d_v)
            }
            Row::Tied { heads, s, n, r } => {
                (heads.checked_mul(s)?.checked_add(r)?, n.checked_add(r)?, s)
            }
        };
        let queries = self.h_q.checked_mul(queries)?;
        let outputs = self.h_q.checked_mul(outputs)?;
        Some(row.max(queries).max(outputs))
    }

    /// The variant's name.
    pub const fn variant(&self) -> Variant {
        self.variant
    }

    /// Query heads.
    pub const fn h_q(&self) -> usize {
        self.h_q
    }

    /// The kind of row the cache keeps.
    pub const fn row(&self) -> Row {
        self.row
    }

    /// Cached heads: KV, tied or latent.
    pub const fn heads(&self) -> usize {
        self.row.heads()
    }

    /// Query heads per cached head, `g = h_q / h`.
    pub const fn group(&self) -> usize {
        self.h_q / self.row.heads()
    }

    /// The cached head that query head `i` reads: contiguous groups `[S-1.2]`.
    pub const fn cached_head(&self, i: usize) -> usize {
        i / self.group()
    }

    /// Width of a key and of a query.
    pub const fn width_k(&self) -> usize {
        self.row.width_k()
    }

    /// Width of a value and of an output.
    pub const fn width_v(&self) -> usize {
        self.row.width_v()
    }
}

/// Upper bound on elements per token of any tensor of a legal geometry.
const MAX_ELEMENTS: usize = i32::MAX as usize;

impl fmt::Debug for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `gla h_q=128 h=2 s=256 n=256 r=64`: one line, the form that cases and logs print.
impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Geometry { variant, h_q, row } = self;
        match row {
            Row::Separate { heads, d_k, d_v } => {
                write!(f, "{variant} h_q={h_q} h={heads} d_k={d_k} d_v={d_v}")
            }
            Row::Tied { heads, s, n, r } => {
                write!(f, "{variant} h_q={h_q} h={heads} s={s} n={n} r={r}")
            }
        }
    }
}

/// Why no [`Geometry`] has these numbers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidGeometry {
    /// A count or width that must be positive is 0.
    #[error("{what} must be positive")]
    Zero {
        /// The parameter's name.
        what: &'static str,
    },
    /// No contiguous groups of one size cover the query heads.
    #[error("{heads} cached heads do not divide {h_q} query heads")]
    HeadsDoNotDivide {
        /// Query heads.
        h_q: usize,
        /// Cached heads.
        heads: usize,
    },
    /// The key takes more of the state than there is.
    #[error("the key takes n = {n} elements of a state of s = {s}")]
    KeyWiderThanState {
        /// Key elements taken from the state.
        n: usize,
        /// Width of the state.
        s: usize,
    },
    /// GTA splits a head in two halves.
    #[error("GTA halves its head dim, and {d_h} is odd")]
    OddHeadDim {
        /// The head dim.
        d_h: usize,
    },
    /// A per-token tensor would have 2^31 elements or more.
    #[error("h_q = {h_q} over {row:?} has 2^31 elements a token or more")]
    TooLarge {
        /// Query heads.
        h_q: usize,
        /// The row.
        row: Row,
    },
    /// A name that no variant has.
    #[error("unknown variant {name:?}: expected mha, gqa, mqa, gta, mla or gla")]
    UnknownVariant {
        /// The name as given.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    // [S-2.6] [S-2.7] [S-2.8]
    #[test]
    fn elements_per_token() {
        let elements = |geometry: Result<Geometry, _>| geometry.unwrap().row().elements();
        assert_eq!(elements(Geometry::mha(32, 128)), 32 * 256);
        assert_eq!(elements(Geometry::gqa(32, 8, 128)), 8 * 256);
        assert_eq!(elements(Geometry::mqa(32, 128)), 256);
        assert_eq!(elements(Geometry::gta(32, 8, 128)), 8 * 128 + 64);
        assert_eq!(elements(Geometry::mla(128, 512, 64)), 576);
        assert_eq!(elements(Geometry::gla(128, 2, 256, 64)), 576);
    }

    // [S-2.2] [S-2.3] [S-2.4]
    #[test]
    fn widths_of_both_kinds_of_row() {
        let widths = |geometry: Geometry| {
            let row = geometry.row();
            assert_eq!(row.parts().iter().sum::<usize>(), row.elements());
            assert_eq!((geometry.heads(), geometry.width_k()), (row.heads(), row.width_k()));
            assert_eq!(geometry.width_v(), row.width_v());
            (geometry.group(), row.heads(), row.width_k(), row.width_v(), row.parts())
        };
        let separate = Geometry::separate(6, 3, 5, 4).unwrap();
        assert_eq!(widths(separate), (2, 3, 5, 4, [15, 12]));
        assert_eq!(widths(Geometry::tied(6, 2, 8, 3, 5).unwrap()), (3, 2, 8, 8, [16, 5]));
        assert_eq!(widths(Geometry::gta(4, 2, 8).unwrap()), (2, 2, 8, 8, [16, 4]));
        assert_eq!(separate.to_string(), "gqa h_q=6 h=3 d_k=5 d_v=4");
        assert_eq!(format!("{separate:?}"), separate.to_string());
    }

    // [S-1.2]
    #[test]
    fn groups_are_contiguous() {
        let gqa = Geometry::gqa(6, 2, 8).unwrap();
        let heads: Vec<_> = (0..6).map(|i| gqa.cached_head(i)).collect();
        assert_eq!(heads, [0, 0, 0, 1, 1, 1]);
    }

    // [S-2.9] [S-1.6]
    #[test]
    fn bad_numbers_are_named() {
        use InvalidGeometry::*;
        assert_eq!(Geometry::gqa(6, 4, 8), Err(HeadsDoNotDivide { h_q: 6, heads: 4 }));
        assert_eq!(Geometry::gqa(0, 4, 8), Err(Zero { what: "h_q" }));
        assert_eq!(Geometry::gqa(4, 0, 8), Err(Zero { what: "heads" }));
        assert_eq!(Geometry::separate(4, 4, 0, 8), Err(Zero { what: "d_k" }));
        assert_eq!(Geometry::separate(4, 4, 8, 0), Err(Zero { what: "d_v" }));
        assert_eq!(Geometry::tied(4, 2, 0, 0, 8), Err(Zero { what: "s" }));
        assert_eq!(Geometry::tied(4, 2, 8, 0, 0), Err(Zero { what: "n + r" }));
        assert_eq!(Geometry::tied(4, 2, 8, 9, 0), Err(KeyWiderThanState { n: 9, s: 8 }));
        assert_eq!(Geometry::gta(4, 2, 7), Err(OddHeadDim { d_h: 7 }));
        for huge in [usize::MAX, usize::MAX / 2, 1 << 40] {
            assert!(matches!(Geometry::mha(huge, huge), Err(TooLarge { .. })));
            assert!(matches!(Geometry::mqa(huge, 2), Err(TooLarge { .. })));
            assert!(matches!(Geometry::tied(1, 1, huge, 1, huge), Err(TooLarge { .. })));
        }
    }

    #[test]
    fn names_follow_the_numbers() {
        assert_eq!(Geometry::separate(4, 4, 8, 8).unwrap().variant(), Variant::Mha);
        assert_eq!(Geometry::separate(4, 1, 8, 8).unwrap().variant(), Variant::Mqa);
        assert_eq!(Geometry::separate(4, 2, 8, 8).unwrap().variant(), Variant::Gqa);
        assert_eq!(Geometry::tied(4, 1, 8, 8, 2).unwrap().variant(), Variant::Mla);
        assert_eq!(Geometry::tied(4, 2, 8, 8, 2).unwrap().variant(), Variant::Gla);
        assert_eq!(Geometry::tied(4, 2, 8, 4, 2).unwrap().variant(), Variant::Gta);
        for variant in Variant::ALL {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
    }
}
