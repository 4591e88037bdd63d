//! Formats that a file stores numbers in.

use grouped_attention::Dtype;
use half::{bf16, f16};
use safetensors::Dtype as Stored;
use std::fmt;

/// Format of a tensor of real numbers in a file.
///
/// [`Dtype`] lists the formats that engines compute with, which f64 is not one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE 754 binary64: the definition's, no engine's.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
}

impl Format {
    /// The format that engines know it by, if they do.
    pub const fn dtype(self) -> Option<Dtype> {
        match self {
            Format::F64 => None,
            Format::F32 => Some(Dtype::F32),
            Format::F16 => Some(Dtype::F16),
            Format::Bf16 => Some(Dtype::Bf16),
        }
    }

    pub(super) fn of(stored: Stored) -> Option<Format> {
        match stored {
            Stored::F64 => Some(Format::F64),
            Stored::F32 => Some(Format::F32),
            Stored::F16 => Some(Format::F16),
            Stored::BF16 => Some(Format::Bf16),
            _ => None,
        }
    }

    /// The name that safetensors gives it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Format::F64 => "F64",
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::Bf16 => "BF16",
        }
    }

    pub(super) const fn bytes(self) -> usize {
        match self {
            Format::F64 => 8,
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
        }
    }

    /// Every element of a tensor's bytes, exactly.
    pub(super) fn decode(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Format::F64 => each(bytes, f64::from_le_bytes),
            Format::F32 => each(bytes, |x| f64::from(f32::from_le_bytes(x))),
            Format::F16 => each(bytes, |x| f16::from_le_bytes(x).to_f64()),
            Format::Bf16 => each(bytes, |x| bf16::from_le_bytes(x).to_f64()),
        }
    }

    /// Rounds a number into the format, to nearest even, and appends its bytes.
    pub(super) fn encode(self, x: f64, bytes: &mut Vec<u8>) {
        // A value of the format survives any further cast, so the casts below are exact.
        let rounded = |dtype: Dtype| dtype.round(x) as f32;
        match self {
            Format::F64 => bytes.extend(x.to_le_bytes()),
            Format::F32 => bytes.extend(rounded(Dtype::F32).to_le_bytes()),
            Format::F16 => bytes.extend(f16::from_f32(rounded(Dtype::F16)).to_le_bytes()),
            Format::Bf16 => bytes.extend(bf16::from_f32(rounded(Dtype::Bf16)).to_le_bytes()),
        }
    }
}

impl TryFrom<Dtype> for Format {
    type Error = Dtype;

    /// # Errors
    /// A format that is younger than this list.
    fn try_from(dtype: Dtype) -> Result<Format, Dtype> {
        match dtype {
            Dtype::F32 => Ok(Format::F32),
            Dtype::F16 => Ok(Format::F16),
            Dtype::Bf16 => Ok(Format::Bf16),
            other => Err(other),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn each<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|&bytes| element(bytes)).collect()
}
