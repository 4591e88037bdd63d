//! What the fuzz targets share.

pub mod file;
pub mod memory;
pub mod sizes;
