//! Files as tests make and break them, through the safetensors crate alone: what is tested has no
//! part in it.

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};

/// Tensors and metadata by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tensors {
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Tensors {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Tensors {
        let file = SafeTensors::deserialize(bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let of = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        let tensors = file.tensors().into_iter().map(|(name, view)| (name, of(view))).collect();
        Tensors { tensors, metadata }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let metadata: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        safetensors::serialize(views, Some(metadata)).unwrap()
    }

    pub(crate) fn f64(self, name: &str, shape: &[usize], values: &[f64]) -> Tensors {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.with(name, Dtype::F64, shape, bytes)
    }

    pub(crate) fn i32(self, name: &str, shape: &[usize], values: &[i32]) -> Tensors {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.with(name, Dtype::I32, shape, bytes)
    }

    pub(crate) fn i64(self, name: &str, shape: &[usize], values: &[i64]) -> Tensors {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.with(name, Dtype::I64, shape, bytes)
    }

    pub(crate) fn with(
        mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: Vec<u8>,
    ) -> Tensors {
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Tensors {
        let there = self.tensors.remove(name).is_some() | self.metadata.remove(name).is_some();
        assert!(there, "{name}");
        self
    }

    pub(crate) fn meta(mut self, key: &str, value: &str) -> Tensors {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn dtype(&self, name: &str) -> Dtype {
        self.tensors[name].0
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.tensors[name].1
    }

    /// Every element, widened.
    pub(crate) fn floats(&self, name: &str) -> Vec<f64> {
        let (dtype, _, bytes) = &self.tensors[name];
        match dtype {
            Dtype::F64 => each(bytes, f64::from_le_bytes),
            Dtype::F32 => each(bytes, |x| f64::from(f32::from_le_bytes(x))),
            Dtype::F16 => each(bytes, |x| f16::from_le_bytes(x).to_f64()),
            Dtype::BF16 => each(bytes, |x| bf16::from_le_bytes(x).to_f64()),
            other => panic!("{name} is {other}"),
        }
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let (dtype, _, bytes) = &self.tensors[name];
        match dtype {
            Dtype::I32 => each(bytes, |x| i64::from(i32::from_le_bytes(x))),
            Dtype::I64 => each(bytes, i64::from_le_bytes),
            other => panic!("{name} is {other}"),
        }
    }
}

fn each<T, const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&bytes| element(bytes)).collect()
}

/// Numbers that repeat for nobody: a small generator, so that files are the same everywhere.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
