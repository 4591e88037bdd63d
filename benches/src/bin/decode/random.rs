//! The numbers in caches and queries: a function of a seed and a place, so that any part of them is
//! made again where it is needed, on the host or on a device.

use grouped_attention::{Dtype, HostTensor, InvalidTensor, Values};
use half::{bf16, f16};
use rayon::prelude::*;

/// The finaliser of splitmix64; gpu/kernels.ptx has the same.
pub(crate) fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// One array of numbers, endless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Random {
    pub(crate) seed: u64,
}

impl Random {
    /// Roughly normal, of variance 1: four uniform numbers added up.
    ///
    /// Every step but the last is exact in f32, so that a device has the same bits.
    pub(crate) fn at(self, index: u64) -> f32 {
        let word = mix(self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let sum: u64 = (0..4).map(|i| word >> (16 * i) & 0xffff).sum();
        (sum as f32 - CENTRE) * SCALE
    }

    /// Elements `start..` of the array as a tensor.
    pub(crate) fn tensor(self, dtype: Dtype, shape: &[usize]) -> Result<HostTensor, InvalidTensor> {
        let count = shape.iter().product::<usize>();
        self.gather(dtype, shape, (0..count).into_par_iter().map(|index| index as u64))
    }

    /// Rows of `width` elements at the given rows of the array, as a tensor `[rows, ...]`.
    pub(crate) fn rows(
        self,
        dtype: Dtype,
        shape: &[usize],
        rows: &[usize],
    ) -> Result<HostTensor, InvalidTensor> {
        let width: usize = shape[1..].iter().product();
        let index = |i: usize| (rows[i / width] * width + i % width) as u64;
        let count = if width == 0 { 0 } else { rows.len() * width };
        self.gather(dtype, shape, (0..count).into_par_iter().map(index))
    }

    fn gather(
        self,
        dtype: Dtype,
        shape: &[usize],
        indices: impl IndexedParallelIterator<Item = u64>,
    ) -> Result<HostTensor, InvalidTensor> {
        let numbers = indices.map(|index| self.at(index));
        let values = match dtype {
            Dtype::F16 => Values::F16(numbers.map(f16::from_f32).collect()),
            Dtype::Bf16 => Values::Bf16(numbers.map(bf16::from_f32).collect()),
            _ => Values::F32(numbers.collect()),
        };
        HostTensor::new(shape, values)
    }
}

/// Middle of the sum of four 16-bit numbers.
const CENTRE: f32 = 131_070.0;
/// Brings the sum to variance 1: `sqrt(3) / 2^16`.
const SCALE: f32 = 2.642_899_8e-5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_mean_0_and_variance_1() {
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(Random { seed: 1 }.at(i))).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert!((f64::from(SCALE) / (3f64.sqrt() / 65536.0) - 1.0).abs() < 1e-7);
    }

    #[test]
    fn the_device_has_the_same_constants() {
        let kernels = include_str!("gpu/kernels.ptx");
        for constant in [
            format!("mul.rn.f32 %x, %x, 0f{:08X};", SCALE.to_bits()),
            format!("sub.rn.f32 %x, %x, {CENTRE:.1};"),
            "mul.lo.u64 %word, %i, 0x9e3779b97f4a7c15;".into(),
            "mul.lo.u64 %word, %word, 0xbf58476d1ce4e5b9;".into(),
            "mul.lo.u64 %word, %word, 0x94d049bb133111eb;".into(),
        ] {
            assert!(kernels.contains(&constant), "{constant}");
        }
    }

    #[test]
    fn rows_are_parts_of_the_whole() {
        let random = Random { seed: 5 };
        let whole = random.tensor(Dtype::Bf16, &[4, 2, 3]).unwrap().to_f64();
        let rows = random.rows(Dtype::Bf16, &[2, 2, 3], &[3, 1]).unwrap().to_f64();
        assert_eq!(rows, [&whole[18..], &whole[6..12]].concat());
        assert!(random.rows(Dtype::F32, &[2, 0], &[3, 1]).unwrap().values().is_empty());
    }
}
