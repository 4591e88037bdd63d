//! Compiled kernels on disk, so that only the first process on a machine compiles.
//!
//! A file is a checksum and then the cubin. It is written under a name of its own and renamed, so
//! concurrent processes never see half a file, and a file that was cut short in spite of that does
//! not match its checksum and is made again. The hash guards against accidents and not against
//! malice: who can write to the folder can run code as its owner anyway.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names the folder; empty turns the cache off.
const FOLDER_VARIABLE: &str = "GROUPED_ATTENTION_CUDA_CACHE";
const FOLDER_NAME: &str = "grouped-attention";
const CHECKSUM_BYTES: usize = 16;

/// FNV-1a with 128 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher(u128);

impl Hasher {
    pub(crate) fn new() -> Hasher {
        Hasher(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds a text and its length, so that ("ab", "c") and ("a", "bc") differ.
    pub(crate) fn text(self, text: &str) -> Hasher {
        self.bytes(&(text.len() as u64).to_le_bytes()).bytes(text.as_bytes())
    }

    fn bytes(self, bytes: &[u8]) -> Hasher {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        Hasher(
            bytes.iter().fold(self.0, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME)),
        )
    }

    pub(crate) fn finish(self) -> u128 {
        self.0
    }
}

/// A folder of cubins.
#[derive(Clone, Debug)]
pub(crate) struct DiskCache {
    folder: Option<PathBuf>,
}

impl DiskCache {
    /// The user's cache folder, or the one that the environment names.
    pub(crate) fn from_environment() -> DiskCache {
        DiskCache { folder: folder(|name| env::var_os(name)) }
    }

    /// What was stored under a key, if it is whole.
    pub(crate) fn load(&self, key: u128) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(key)?).ok()?;
        let checksum = bytes.get(..CHECKSUM_BYTES)?;
        if *checksum != Hasher::new().bytes(&bytes[CHECKSUM_BYTES..]).finish().to_le_bytes() {
            tracing::warn!(key = %Key(key), "a cached kernel is damaged and is compiled again");
            return None;
        }
        bytes.drain(..CHECKSUM_BYTES);
        Some(bytes)
    }

    /// Stores a cubin. A folder that cannot be written only costs the next process time.
    pub(crate) fn store(&self, key: u128, cubin: &[u8]) {
        let Some(path) = self.path(key) else { return };
        if let Err(error) = write(&path, cubin) {
            tracing::warn!(path = %path.display(), %error, "a compiled kernel was not cached");
        }
    }

    fn path(&self, key: u128) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{}.cubin", Key(key))))
    }
}

struct Key(u128);

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(folder) = variable(FOLDER_VARIABLE) {
        return Some(folder).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    }
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .or_else(|| set("LOCALAPPDATA"))?;
    Some(caches.join(FOLDER_NAME))
}

fn write(path: &Path, cubin: &[u8]) -> io::Result<()> {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let serial = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{serial}.tmp", std::process::id()));
    let checksum = Hasher::new().bytes(cubin).finish().to_le_bytes();
    let stored = fs::write(&temporary, [&checksum, cubin].concat());
    stored.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| {
        // That error says more than one about the leftover would.
        let _ = fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test alone, removed at its end.
    struct Scratch(DiskCache);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let folder = env::temp_dir().join(format!("ga-disk-{}-{name}", std::process::id()));
            Scratch(DiskCache { folder: Some(folder) })
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.folder.as_ref().unwrap());
        }
    }

    #[test]
    fn what_is_stored_is_found_under_its_key_alone() {
        let cache = Scratch::new("roundtrip");
        assert_eq!(cache.0.load(1), None);
        cache.0.store(1, b"cubin");
        assert_eq!(cache.0.load(1).as_deref(), Some(&b"cubin"[..]));
        assert_eq!(cache.0.load(2), None);
    }

    #[test]
    fn damaged_files_are_not_found() {
        let cache = Scratch::new("damaged");
        cache.0.store(1, b"cubin");
        let path = cache.0.path(1).unwrap();
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(cache.0.load(1), None, "{len} bytes");
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(cache.0.load(1), None);
        cache.0.store(1, b"cubin");
        assert!(cache.0.load(1).is_some());
    }

    #[test]
    fn writers_and_readers_may_meet() {
        let cache = Scratch::new("concurrent");
        let cubin = vec![7_u8; 1 << 16];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| cache.0.store(1, &cubin)));
                scope.spawn(|| {
                    for _ in 0..200 {
                        assert!(cache.0.load(1).is_none_or(|found| found == cubin));
                    }
                });
            }
        });
        let files = fs::read_dir(cache.0.folder.as_ref().unwrap()).unwrap().count();
        assert_eq!(files, 1, "temporary files are left over");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let cache = DiskCache { folder: Some("/dev/null/nowhere".into()) };
        cache.store(1, b"cubin");
        assert_eq!(cache.load(1), None);
    }

    #[test]
    fn the_environment_names_the_folder() {
        let given = |pairs: &'static [(&'static str, &'static str)]| {
            folder(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).into()))
        };
        let everything = &[(FOLDER_VARIABLE, "/c"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(given(everything), Some("/c".into()));
        assert_eq!(given(&everything[1..]), Some("/x/grouped-attention".into()));
        assert_eq!(given(&everything[2..]), Some("/h/.cache/grouped-attention".into()));
        assert_eq!(given(&[(FOLDER_VARIABLE, ""), ("HOME", "/h")]), None);
        assert_eq!(given(&[]), None);
    }

    #[test]
    fn the_hash_is_fnv_1a_and_separates_texts() {
        // The published test vector of FNV-1a 128 for "a".
        let a = Hasher::new().bytes(b"a").finish();
        assert_eq!(a, 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        let pair = |a, b| Hasher::new().text(a).text(b).finish();
        assert_ne!(pair("ab", "c"), pair("a", "bc"));
    }
}
