//! Devices by name, or by their two rates.

use grouped_attention::cost::{Device, InvalidDevice};
use std::fmt;
use std::str::FromStr;

/// A device and what to call it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedDevice {
    /// For titles.
    pub name: String,
    /// Its rates.
    pub device: Device,
}

/// Its makers' rates: bandwidth, and FLOP/s in dense bf16.
fn published(key: &str) -> Option<(&'static str, Result<Device, InvalidDevice>)> {
    match key {
        "h100" => Some(("H100 SXM", Ok(Device::H100_SXM))),
        "h200" => Some(("H200 SXM", Device::new(4.8e12, 989e12))),
        "a100" => Some(("A100 SXM 80 GB", Device::new(2.039e12, 312e12))),
        _ => None,
    }
}

impl FromStr for NamedDevice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<NamedDevice, UnknownDevice> {
        if let Some((name, device)) = published(text) {
            return Ok(NamedDevice { name: name.into(), device: device? });
        }
        let unknown = || UnknownDevice::Text { text: text.to_owned() };
        let [name, bandwidth, flops] =
            text.split(':').collect::<Vec<_>>().try_into().map_err(|_| unknown())?;
        let rate = |text: &str| text.parse().map_err(|_| unknown());
        Ok(NamedDevice { name: name.into(), device: Device::new(rate(bandwidth)?, rate(flops)?)? })
    }
}

impl fmt::Display for NamedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.name, self.bandwidth(), self.flops())
    }
}

impl NamedDevice {
    /// The bandwidth in a unit that keeps it short.
    pub fn bandwidth(&self) -> String {
        in_units(self.device.bandwidth(), "B/s")
    }

    /// The FLOP rate in a unit that keeps it short.
    pub fn flops(&self) -> String {
        in_units(self.device.flops(), "FLOP/s")
    }
}

/// Three significant digits or all before the point, with a prefix.
pub(crate) fn in_units(rate: f64, unit: &str) -> String {
    let (scaled, prefix) = match rate {
        _ if rate >= 1e15 => (rate / 1e15, "P"),
        _ if rate >= 1e12 => (rate / 1e12, "T"),
        _ => (rate / 1e9, "G"),
    };
    let decimals = if scaled >= 100.0 { 0 } else { 2 };
    let text = format!("{scaled:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {prefix}{unit}")
}

/// Text that names no device.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnknownDevice {
    /// Neither a name nor three fields.
    #[error(
        "unknown device {text:?}: expected h100, h200, a100, this, or NAME:BYTES_PER_S:FLOP_PER_S"
    )]
    Text {
        /// The text.
        text: String,
    },
    /// A rate that no device has.
    #[error(transparent)]
    Rate(#[from] InvalidDevice),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_rates() {
        let h100: NamedDevice = "h100".parse().unwrap();
        assert_eq!(h100.device, Device::H100_SXM);
        assert_eq!(h100.to_string(), "H100 SXM: 3.35 TB/s, 989 TFLOP/s");
        let own: NamedDevice = "box:30e9:4e11".parse().unwrap();
        assert_eq!(own.to_string(), "box: 30 GB/s, 400 GFLOP/s");
        for text in ["h1000", "box:1", "box:1:x", "box:1:2:3", ""] {
            assert!(matches!(text.parse::<NamedDevice>(), Err(UnknownDevice::Text { .. })));
        }
        for text in ["box:0:1", "box:1:inf"] {
            assert!(matches!(text.parse::<NamedDevice>(), Err(UnknownDevice::Rate(_))));
        }
    }
}
