//! Writing a safetensors file: the same numbers give the same bytes, and a file is whole or absent.
//!
//! NOTE: the safetensors crate writes metadata in the order of a hash table, which changes from run
//! to run, and writes in place, which leaves half a file where a disk is full.

use super::format::Format;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Tensors and metadata that are to be one file.
#[derive(Debug, Default)]
pub struct Writer {
    header: Map<String, Value>,
    metadata: Map<String, Value>,
    data: Vec<u8>,
}

impl Writer {
    /// An empty file.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds numbers, each rounded to the format.
    ///
    /// # Panics
    /// If the values are not as many as the shape says.
    pub fn floats(&mut self, name: &str, format: Format, shape: &[usize], values: &[f64]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name} is {shape:?}");
        let start = self.data.len();
        self.data.reserve(values.len() * format.bytes());
        values.iter().for_each(|&x| format.encode(x, &mut self.data));
        self.tensor(name, format.name(), shape, start);
    }

    /// Adds lengths or indices.
    ///
    /// # Panics
    /// If the values are not as many as the shape says.
    pub fn integers(&mut self, name: &str, shape: &[usize], values: &[i32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name} is {shape:?}");
        let start = self.data.len();
        self.data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        self.tensor(name, "I32", shape, start);
    }

    fn tensor(&mut self, name: &str, dtype: &str, shape: &[usize], start: usize) {
        let entry = json!({
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [start, self.data.len()],
        });
        self.header.insert(name.to_owned(), entry);
    }

    /// Adds a line of metadata.
    pub fn metadata(&mut self, key: &str, value: &str) {
        self.metadata.insert(key.to_owned(), value.into());
    }

    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut header = self.header.clone();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".to_owned(), self.metadata.clone().into());
        }
        let mut text = Value::from(header).to_string();
        // The data begin at a multiple of 8, as the format recommends.
        text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
        let mut bytes = Vec::with_capacity(8 + text.len() + self.data.len());
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend(&self.data);
        bytes
    }

    /// Writes the file next to its place and renames it there, so that no reader sees half of it.
    ///
    /// # Errors
    /// What the file system says; a place that holds something other than a file.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        // A rename would replace a device or a link to one.
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
        };
        let mut beside = std::ffi::OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}.partial", std::process::id()));
        let beside = path.with_file_name(beside);
        let written =
            write_whole(&beside, &self.to_bytes()).and_then(|()| fs::rename(&beside, path));
        if written.is_err() {
            // The first error is the one to report; there may be no file to remove.
            let _ = fs::remove_file(&beside);
        }
        written
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Writer {
        let mut writer = Writer::new();
        writer.floats("b", Format::Bf16, &[2, 1], &[1.0, -0.5]);
        writer.floats("a", Format::F64, &[1], &[std::f64::consts::PI]);
        writer.integers("empty", &[0, 7], &[]);
        writer.metadata("scale", "0.5");
        writer.metadata("mask", "full");
        writer
    }

    #[test]
    fn the_safetensors_crate_reads_it() {
        let bytes = written().to_bytes();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("b").unwrap().data(), [0x80, 0x3f, 0x00, 0xbf]);
        assert_eq!(file.tensor("a").unwrap().data(), std::f64::consts::PI.to_le_bytes());
        assert_eq!(file.tensor("empty").unwrap().shape(), [0, 7]);
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["mask"], "full");
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes() {
        assert_eq!(written().to_bytes(), written().to_bytes());
    }

    #[test]
    fn nothing_is_left_where_nothing_could_be_written() {
        let folder = std::env::temp_dir().join(format!("writer-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // A folder cannot be replaced by a file.
        assert!(written().save(&folder).is_err());
        assert!(written().save(&folder.join("absent").join("file")).is_err());
        written().save(&folder.join("file")).unwrap();
        let names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["file"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
