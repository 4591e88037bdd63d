//! Numbers on the host, in the format an engine stores them in.

use crate::dtype::Dtype;
use half::{bf16, f16};

/// A dense row-major array on the host.
///
/// It is how values get into and out of engines. It is not a place to compute: the reference
/// computes in f64, engines where their own tensors live.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    values: Values,
}

/// Elements of a [`HostTensor`], row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// binary32.
    F32(Vec<f32>),
    /// binary16.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl Values {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Bf16(values) => values.len(),
        }
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their format.
    pub fn dtype(&self) -> Dtype {
        match self {
            Values::F32(_) => Dtype::F32,
            Values::F16(_) => Dtype::F16,
            Values::Bf16(_) => Dtype::Bf16,
        }
    }
}

impl HostTensor {
    /// An array of the given shape.
    ///
    /// # Errors
    /// A shape whose product overflows or is not the number of values.
    pub fn new(shape: &[usize], values: Values) -> Result<HostTensor, InvalidTensor> {
        let elements = checked_elements(shape)?;
        if elements != values.len() {
            return Err(InvalidTensor::Count { shape: shape.to_vec(), got: values.len() });
        }
        Ok(HostTensor { shape: shape.to_vec(), values })
    }

    /// An array of zeros.
    ///
    /// # Errors
    /// A shape whose product overflows, or for which there is no memory.
    pub fn zeros(dtype: Dtype, shape: &[usize]) -> Result<HostTensor, InvalidTensor> {
        fn zeroed<T: Clone>(zero: T, shape: &[usize]) -> Result<Vec<T>, InvalidTensor> {
            let (mut values, elements) = (Vec::new(), checked_elements(shape)?);
            let reserved = values.try_reserve_exact(elements);
            reserved.map_err(|_| InvalidTensor::TooLarge { shape: shape.to_vec() })?;
            values.resize(elements, zero);
            Ok(values)
        }
        let values = match dtype {
            Dtype::F32 => Values::F32(zeroed(0.0, shape)?),
            Dtype::F16 => Values::F16(zeroed(f16::ZERO, shape)?),
            Dtype::Bf16 => Values::Bf16(zeroed(bf16::ZERO, shape)?),
        };
        Ok(HostTensor { shape: shape.to_vec(), values })
    }

    /// Rounds each value once, to nearest even.
    ///
    /// # Errors
    /// A shape whose product overflows or is not the number of values.
    pub fn from_f64(
        dtype: Dtype,
        shape: &[usize],
        values: &[f64],
    ) -> Result<HostTensor, InvalidTensor> {
        // A value of the format survives any further cast, so the casts below are exact.
        let rounded = values.iter().map(|&x| dtype.round(x) as f32);
        let values = match dtype {
            Dtype::F32 => Values::F32(rounded.collect()),
            Dtype::F16 => Values::F16(rounded.map(f16::from_f32).collect()),
            Dtype::Bf16 => Values::Bf16(rounded.map(bf16::from_f32).collect()),
        };
        HostTensor::new(shape, values)
    }

    /// Every element, exactly.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.values {
            Values::F32(values) => values.iter().map(|&x| f64::from(x)).collect(),
            Values::F16(values) => values.iter().map(|x| x.to_f64()).collect(),
            Values::Bf16(values) => values.iter().map(|x| x.to_f64()).collect(),
        }
    }

    /// Format of the elements.
    pub fn dtype(&self) -> Dtype {
        self.values.dtype()
    }

    /// Extent of each dimension, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, row-major.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The elements, row-major, to be overwritten.
    pub fn values_mut(&mut self) -> ValuesMut<'_> {
        match &mut self.values {
            Values::F32(values) => ValuesMut::F32(values),
            Values::F16(values) => ValuesMut::F16(values),
            Values::Bf16(values) => ValuesMut::Bf16(values),
        }
    }
}

/// Elements of a [`HostTensor`], to be overwritten; their number stays.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// binary32.
    F32(&'a mut [f32]),
    /// binary16.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
}

/// Product of a shape, if it and its bytes can be addressed.
pub(crate) fn checked_elements(shape: &[usize]) -> Result<usize, InvalidTensor> {
    shape
        .iter()
        .try_fold(1_usize, |product, &extent| product.checked_mul(extent))
        .filter(|&elements| elements <= isize::MAX as usize / size_of::<f64>())
        .ok_or_else(|| InvalidTensor::TooLarge { shape: shape.to_vec() })
}

/// Why shape and values are not a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTensor {
    /// The product of the shape does not fit an address, or the machine's memory.
    #[error("a tensor of shape {shape:?} does not fit in memory")]
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
    },
    /// The number of values is not the product of the shape.
    #[error("a tensor of shape {shape:?} cannot hold {got} values")]
    Count {
        /// The shape.
        shape: Vec<usize>,
        /// Values given.
        got: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    // [S-1.5]
    #[test]
    fn values_are_rounded_once_on_the_way_in() {
        // Just above the bf16 tie between 1 and 1 + 2^-7; f32 would round it back onto the tie.
        let above = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        let rounded = |dtype| HostTensor::from_f64(dtype, &[1], &[above]).unwrap().to_f64()[0];
        assert_eq!(rounded(Dtype::Bf16), 1.0 + 2f64.powi(-7));
        assert_eq!(rounded(Dtype::F16), 1.0 + 4.0 * 2f64.powi(-10));
        assert_eq!(rounded(Dtype::F32), 1.0 + 2f64.powi(-8));
    }

    #[test]
    fn values_can_be_overwritten_in_place() {
        for dtype in Dtype::ALL {
            let mut tensor = HostTensor::zeros(dtype, &[2, 2]).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[2, 2][..]));
            assert_eq!((tensor.values().len(), tensor.values().is_empty()), (4, false));
            match tensor.values_mut() {
                ValuesMut::F32(values) => values[2] = 1.5,
                ValuesMut::F16(values) => values[2] = f16::from_f32(1.5),
                ValuesMut::Bf16(values) => values[2] = bf16::from_f32(1.5),
            }
            assert_eq!(tensor.to_f64(), [0.0, 0.0, 1.5, 0.0]);
        }
        assert!(HostTensor::zeros(Dtype::F16, &[3, 0]).unwrap().values().is_empty());
    }
}
