//! What a decode step costs: operations, bytes, their ratio, and the time a device cannot beat.
//!
//! All of it is arithmetic over a geometry, in f64; nothing is measured. Every query counts as
//! seeing every cached token, which exceeds the work of a causal mask by less than q_len / kv_len.

use crate::dtype::Dtype;
use crate::geometry::{Geometry, Row};

/// FLOPs per cached token of a step with `q_len` queries `[S-6.5]`: a multiply and an add per
/// element of key and value and query head, `2 q_len h_q (width K + width V)`.
pub fn flops_per_token(geometry: &Geometry, q_len: usize) -> f64 {
    let widths = geometry.width_k() as f64 + geometry.width_v() as f64;
    2.0 * q_len as f64 * geometry.h_q() as f64 * widths
}

/// Arithmetic intensity in FLOPs per byte of cache read, of what the cache stores `[S-6.6]`.
///
/// ```
/// use grouped_attention::{Dtype, Geometry, cost};
/// let mla = Geometry::mla(128, 512, 64)?;
/// assert!((cost::intensity(&mla, Dtype::Bf16, 1) - 241.8).abs() < 0.05);
/// assert_eq!(cost::intensity_without_rope(&mla, Dtype::Bf16, 1), 256.0);
/// # Ok::<(), grouped_attention::InvalidGeometry>(())
/// ```
pub fn intensity(geometry: &Geometry, dtype: Dtype, q_len: usize) -> f64 {
    flops_per_token(geometry, q_len) / (geometry.row().elements() as f64 * dtype.bytes() as f64)
}

/// Arithmetic intensity as the paper's Table 1 counts it `[S-6.7]`: key and value equally wide and
/// no rope key, `4 q_len g / (m_kv bytes)`, with m_kv = 2 for separate rows and 1 for tied ones.
///
/// In 16 bits and with one query it is g for GQA and 2 g for GTA, MLA and GLA. It says what sharing
/// of rows is worth, not what a kernel reads: for that take [`intensity`].
pub fn intensity_without_rope(geometry: &Geometry, dtype: Dtype, q_len: usize) -> f64 {
    let multiplicity = match geometry.row() {
        Row::Separate { .. } => 2.0,
        Row::Tied { .. } => 1.0,
    };
    4.0 * q_len as f64 * geometry.group() as f64 / (multiplicity * dtype.bytes() as f64)
}

/// Operations and traffic of the attention of one step of one layer on one device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// Floating-point operations, a multiply and an add counted as two.
    pub flops: f64,
    /// Bytes of every cached token, read once.
    pub cache_bytes: f64,
    /// Bytes of every query, read once.
    pub query_bytes: f64,
    /// Bytes of every output, written once.
    pub output_bytes: f64,
}

impl StepCost {
    /// The cost of a batch of sequences (q_len, kv_len), queries and outputs in the cache's format.
    ///
    /// For a share of a layer take the geometry of [`Sharding::device`](crate::Sharding::device).
    pub fn new(
        geometry: &Geometry,
        dtype: Dtype,
        sequences: impl IntoIterator<Item = (usize, usize)>,
    ) -> StepCost {
        let (h_q, bytes) = (geometry.h_q() as f64, dtype.bytes() as f64);
        let mut cost =
            StepCost { flops: 0.0, cache_bytes: 0.0, query_bytes: 0.0, output_bytes: 0.0 };
        for (q_len, kv_len) in sequences {
            cost.flops += flops_per_token(geometry, q_len) * kv_len as f64;
            cost.cache_bytes += kv_len as f64 * geometry.row().elements() as f64 * bytes;
            cost.query_bytes += q_len as f64 * h_q * geometry.width_k() as f64 * bytes;
            cost.output_bytes += q_len as f64 * h_q * geometry.width_v() as f64 * bytes;
        }
        cost
    }

    /// Bytes moved in all.
    pub fn bytes(&self) -> f64 {
        self.cache_bytes + self.query_bytes + self.output_bytes
    }
}

/// A device as the roofline model sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    bandwidth: f64,
    flops: f64,
}

impl Device {
    /// NVIDIA's figures for the H100 SXM5 80 GB: 3.35 TB/s, and 989 TFLOP/s in dense bf16.
    pub const H100_SXM: Device = Device { bandwidth: 3.35e12, flops: 989e12 };

    /// A device that moves `bandwidth` bytes/s and does `flops` FLOP/s.
    ///
    /// # Errors
    /// A rate that is not a finite number above 0.
    pub fn new(bandwidth: f64, flops: f64) -> Result<Device, InvalidDevice> {
        for (what, rate) in [("bandwidth", bandwidth), ("FLOP rate", flops)] {
            if !(rate.is_finite() && rate > 0.0) {
                return Err(InvalidDevice { what, rate });
            }
        }
        Ok(Device { bandwidth, flops })
    }

    /// Bytes per second.
    pub fn bandwidth(&self) -> f64 {
        self.bandwidth
    }

    /// FLOP per second.
    pub fn flops(&self) -> f64 {
        self.flops
    }

    /// The intensity from which a step is bound by compute, in FLOPs per byte.
    pub fn ridge(&self) -> f64 {
        self.flops / self.bandwidth
    }

    /// The time below which this device cannot do the step `[S-6.8]`.
    pub fn roofline(&self, cost: &StepCost) -> Roofline {
        let (memory, compute) = (cost.bytes() / self.bandwidth, cost.flops / self.flops);
        match memory >= compute {
            true => Roofline { seconds: memory, bound: Bound::Memory },
            false => Roofline { seconds: compute, bound: Bound::Compute },
        }
    }
}

/// The least time of a step, and what sets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// The larger of the time to move the bytes and the time to do the operations.
    pub seconds: f64,
    /// Which of the two it is.
    pub bound: Bound,
}

/// What bounds a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bound {
    /// Moving the bytes.
    Memory,
    /// Doing the operations.
    Compute,
}

/// A rate that no device has.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the {what} {rate} is not a finite number above 0")]
pub struct InvalidDevice {
    /// Which rate.
    pub what: &'static str,
    /// The rate given.
    pub rate: f64,
}
