//! Safetensors files: a legal one, and what can be done to it.

use arbitrary::{Arbitrary, Result, Unstructured};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};

/// Overwrites some bytes of a file's header, which the mutations of tensors leave well-formed.
pub fn corrupt(bytes: &mut [u8], edits: usize, input: &mut Unstructured<'_>) -> Result<()> {
    let header = bytes.len().min(2048);
    for _ in 0..edits {
        if header > 0 {
            bytes[input.choose_index(header)?] = input.arbitrary()?;
        }
    }
    Ok(())
}

/// Tensors and metadata, to be broken.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    pub metadata: HashMap<String, String>,
}

/// Names that a mutation may give to a tensor.
const NAMES: [&str; 16] = [
    "q",
    "q_lens",
    "kv_lens",
    "page_table",
    "cache_k",
    "cache_v",
    "cache_state",
    "cache_rope",
    "tree_parents",
    "hidden_states",
    "position_ids",
    "o_proj.weight",
    "q_proj.bias",
    "x.o_proj.weight",
    "W_ukv_1.weight",
    "",
];
/// Values that a mutation may give to metadata.
const VALUES: [&str; 12] = [
    "",
    "causal",
    "tree",
    "full",
    "0.5",
    "-1",
    "1e400",
    "nan",
    "mla",
    "gla",
    "{}",
    "{\"hidden_size\":4}",
];
const DTYPES: [Dtype; 8] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::I64,
    Dtype::U8,
    Dtype::F8_E4M3,
];
/// Extents whose product with anything is too much, for tensors that hold nothing.
const HUGE: [usize; 4] = [1 << 31, 1 << 40, 1 << 62, usize::MAX];

impl File {
    /// Adds real numbers, by a small generator, in one of four formats.
    pub fn floats(&mut self, name: &str, format: u8, shape: &[usize], seed: u64) {
        let mut state = seed | 1;
        let mut bytes = Vec::new();
        let dtype = DTYPES[usize::from(format % 4)];
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(0xd129_0d3e_a3b9_2d1d).rotate_left(23).wrapping_add(1);
            let x = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            match dtype {
                Dtype::F64 => bytes.extend(f64::from(x).to_le_bytes()),
                Dtype::F32 => bytes.extend(x.to_le_bytes()),
                // Any sign, and an exponent around that of 1.
                Dtype::F16 => bytes.extend((state as u16 & 0xbfff).to_le_bytes()),
                _ => bytes.extend(((x.to_bits() >> 16) as u16).to_le_bytes()),
            }
        }
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), bytes));
    }

    /// Adds lengths or indices.
    pub fn integers(&mut self, name: &str, shape: &[usize], values: &[i32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), Dtype::I32, shape.to_vec(), bytes));
    }

    /// Does something to the file, or nothing where it would not be a file any more.
    pub fn mutate(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if self.tensors.is_empty() {
            return Ok(());
        }
        let index = input.choose_index(self.tensors.len())?;
        match input.int_in_range(0..=7)? {
            0 => {
                self.tensors.remove(index);
            }
            1 => self.tensors[index].0 = (*input.choose(&NAMES)?).to_owned(),
            2 => self.resize(index, input)?,
            3 => {
                let (_, dtype, _, bytes) = &mut self.tensors[index];
                let other = *input.choose(&DTYPES)?;
                if other.bitsize() == dtype.bitsize() || bytes.is_empty() {
                    *dtype = other;
                }
            }
            4 => self.write(index, input)?,
            5 => {
                // No elements, and extents that multiply to nothing else.
                let tensor = &mut self.tensors[index];
                for extent in &mut tensor.2 {
                    *extent = if input.arbitrary()? { 0 } else { *input.choose(&HUGE)? };
                }
                if tensor.2.first().is_some() {
                    tensor.2[0] = 0;
                }
                tensor.3.clear();
            }
            6 => {
                let mut keys: Vec<String> = self.metadata.keys().cloned().collect();
                keys.sort();
                let value = if input.arbitrary()? {
                    (*input.choose(&VALUES)?).to_owned()
                } else {
                    String::arbitrary(input)?
                };
                if let Ok(key) = input.choose(&keys) {
                    self.metadata.insert(key.clone(), value);
                }
            }
            _ => self.edit_metadata(input)?,
        }
        Ok(())
    }

    /// Changes one extent, and the bytes to fit.
    fn resize(&mut self, index: usize, input: &mut Unstructured<'_>) -> Result<()> {
        let (_, dtype, shape, bytes) = &mut self.tensors[index];
        match input.int_in_range(0..=2)? {
            0 if shape.len() < 6 => shape.push(1),
            1 => {
                shape.pop();
            }
            _ if !shape.is_empty() => {
                let axis = input.choose_index(shape.len())?;
                shape[axis] = input.int_in_range(0..=9)?;
            }
            _ => {}
        }
        let elements = shape.iter().try_fold(1_usize, |all, &extent| all.checked_mul(extent));
        match elements.filter(|&elements| elements <= 1 << 14) {
            Some(elements) => bytes.resize(elements * dtype.bitsize() / 8, 1),
            None => {
                *shape = vec![0];
                bytes.clear();
            }
        }
        Ok(())
    }

    /// Overwrites some bytes of a tensor.
    fn write(&mut self, index: usize, input: &mut Unstructured<'_>) -> Result<()> {
        let bytes = &mut self.tensors[index].3;
        if bytes.is_empty() {
            return Ok(());
        }
        let at = input.choose_index(bytes.len())?;
        let new: [u8; 4] = input.arbitrary()?;
        for (byte, new) in bytes[at / 4 * 4..].iter_mut().zip(new) {
            *byte = new;
        }
        Ok(())
    }

    /// Changes one character of a value: a digit of a configuration becomes another, a brace goes.
    fn edit_metadata(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let mut keys: Vec<String> = self.metadata.keys().cloned().collect();
        keys.sort();
        let Ok(key) = input.choose(&keys) else { return Ok(()) };
        let mut value: Vec<char> = self.metadata[key].chars().collect();
        if value.is_empty() {
            return Ok(());
        }
        let at = input.choose_index(value.len())?;
        value[at] = *input.choose(&['0', '1', '7', '9', '-', '.', 'e', '"', '{', '}', ',', 'x'])?;
        self.metadata.insert(key.clone(), value.into_iter().collect());
        Ok(())
    }

    /// The bytes of the file; of several tensors with one name, the first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let views: BTreeMap<&str, TensorView<'_>> = self
            .tensors
            .iter()
            .rev()
            .filter_map(|(name, dtype, shape, bytes)| {
                Some((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).ok()?))
            })
            .collect();
        safetensors::serialize(views, Some(self.metadata.clone())).unwrap_or_default()
    }
}
