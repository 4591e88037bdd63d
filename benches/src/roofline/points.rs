//! Measured points to draw on a roofline.

use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One measurement: what ran, at which intensity, how fast.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Written beside the point.
    pub name: String,
    /// FLOPs per byte of cache.
    pub intensity: f64,
    /// FLOP per second.
    pub flops_per_s: f64,
}

/// Reads a JSON array of points.
///
/// # Errors
/// A file that cannot be read or is not such an array; a number that is not finite and positive.
pub fn read(path: &Path) -> Result<Vec<Point>, PointsError> {
    let path = || path.to_owned();
    let text = std::fs::read_to_string(path())
        .map_err(|error| PointsError::Read { path: path(), reason: error.to_string() })?;
    let points: Vec<Point> = serde_json::from_str(&text)
        .map_err(|error| PointsError::Parse { path: path(), reason: error.to_string() })?;
    for point in &points {
        let legal = |x: f64| x.is_finite() && x > 0.0;
        if !(legal(point.intensity) && legal(point.flops_per_s)) {
            return Err(PointsError::Number { path: path(), name: point.name.clone() });
        }
    }
    Ok(points)
}

/// Why a file is not a list of points.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointsError {
    /// The file cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Not an array of {name, intensity, flops_per_s}.
    #[error("{} is not an array of {{name, intensity, flops_per_s}}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// A coordinate that no axis has.
    #[error("{}: the point {name:?} has a rate or intensity that is not finite and positive", path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// The point.
        name: String,
    },
}
