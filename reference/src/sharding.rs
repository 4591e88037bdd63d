//! Tensor parallelism: the share of a layer that one of N devices keeps.

use crate::dtype::Dtype;
use crate::geometry::{Geometry, Row, Variant};

/// A layer split by query heads over N devices, each of which keeps the cached heads that its
/// query heads read, and in a tied cache always the whole rope key `[S-6.1]`.
///
/// ```
/// use grouped_attention::{Dtype, Geometry, Sharding};
/// let gla = Geometry::gla(128, 2, 256, 64)?;
/// let shard = Sharding::new(gla, 8)?;
/// assert_eq!(shard.bytes_per_token(Dtype::Bf16), 640);
/// assert_eq!(shard.duplication(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sharding {
    geometry: Geometry,
    degree: usize,
    device: Geometry,
}

impl Sharding {
    /// `geometry` over `degree` devices.
    ///
    /// # Errors
    /// A degree of 0, one that does not divide the query heads, or one that neither divides nor is
    /// divided by the cached heads: some device would then need parts of two heads.
    pub fn new(geometry: Geometry, degree: usize) -> Result<Sharding, InvalidSharding> {
        let (h_q, heads) = (geometry.h_q(), geometry.heads());
        if degree == 0 {
            return Err(InvalidSharding::DegreeZero);
        }
        if !h_q.is_multiple_of(degree) {
            return Err(InvalidSharding::QueryHeads { h_q, degree });
        }
        if !heads.is_multiple_of(degree) && !degree.is_multiple_of(heads) {
            return Err(InvalidSharding::CachedHeads { heads, degree });
        }
        Ok(Sharding { geometry, degree, device: share(geometry, degree) })
    }

    /// The whole layer.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Devices N.
    pub fn degree(&self) -> usize {
        self.degree
    }

    /// What one device attends over: `h_q / N` query heads and `max(h / N, 1)` cached ones.
    ///
    /// Its name is that of its own head counts, except that a share of GLA stays GLA.
    pub fn device(&self) -> Geometry {
        self.device
    }

    /// Cached elements per token on one device `[S-6.3]`.
    pub fn elements_per_token(&self) -> usize {
        self.device.row().elements()
    }

    /// Cached bytes per token on one device `[S-6.4]`.
    pub fn bytes_per_token(&self, dtype: Dtype) -> usize {
        self.elements_per_token() * dtype.bytes()
    }

    /// Devices that keep a copy of the same cached head, `ceil(N g / h_q)`: 1 if and only if there
    /// are at least as many cached heads as devices `[S-6.2]`.
    pub fn duplication(&self) -> usize {
        self.degree.div_ceil(self.geometry.heads())
    }
}

/// One device's share, for a degree that divides.
fn share(geometry: Geometry, degree: usize) -> Geometry {
    let h_q = geometry.h_q() / degree;
    let heads = (geometry.heads() / degree).max(1);
    let share = match (geometry.row(), geometry.variant()) {
        (Row::Separate { d_k, d_v, .. }, _) => Geometry::separate(h_q, heads, d_k, d_v),
        (Row::Tied { s, r, .. }, Variant::Gla) => Geometry::gla(h_q, heads, s, r),
        (Row::Tied { s, n, r, .. }, _) => Geometry::tied(h_q, heads, s, n, r),
    };
    share.expect("the share of a legal geometry has its widths and no more heads")
}

/// Why a layer cannot be split this way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSharding {
    /// No device at all.
    #[error("a layer needs at least one device")]
    DegreeZero,
    /// Devices would have unequal numbers of query heads.
    #[error("{degree} devices do not divide {h_q} query heads")]
    QueryHeads {
        /// Query heads.
        h_q: usize,
        /// Devices.
        degree: usize,
    },
    /// A device would have query heads of two groups and whole heads of neither.
    #[error("{degree} devices neither divide {heads} cached heads nor are a multiple of them")]
    CachedHeads {
        /// Cached heads.
        heads: usize,
        /// Devices.
        degree: usize,
    },
}
