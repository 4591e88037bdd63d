//! How much memory a file may ask for.

use super::error::FileError;

/// Bytes allowed per byte of the file.
///
/// 16-bit numbers become f64 (4), queries of a width become three outputs of another (a real layer
/// stays below 12 together), and the cache is copied once (4).
const FACTOR: usize = 64;
/// Bytes allowed to any file, so that small ones need not count.
const FLOOR: usize = 1 << 24;

/// The memory that results and work space of one file may take.
///
/// Tensors themselves are read into f64 and are bounded by the file anyway. What is not are
/// products of one tensor's extents with another's: a thousand queries one element wide over values
/// a million wide are a small file and a large output.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    bytes: usize,
}

impl Budget {
    /// The budget of a file of so many bytes.
    pub fn of_file(bytes: usize) -> Budget {
        Budget { bytes: bytes.saturating_mul(FACTOR).saturating_add(FLOOR) }
    }

    /// Allows an allocation of `extents[0] * extents[1] * ..` bytes for `what`, or refuses it.
    ///
    /// # Errors
    /// More bytes than the budget, or a product that overflows.
    pub fn allow(&self, what: &'static str, extents: &[usize]) -> Result<(), FileError> {
        let bytes = extents.iter().try_fold(1_usize, |bytes, &extent| bytes.checked_mul(extent));
        match bytes {
            Some(bytes) if bytes <= self.bytes => Ok(()),
            _ => Err(FileError::TooLarge { what, extents: extents.to_vec(), limit: self.bytes }),
        }
    }
}
