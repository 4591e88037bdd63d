//! Running the program in a folder of its own.

use crate::tensors::Tensors;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A folder that goes when the test ends.
pub(crate) struct Folder(PathBuf);

/// What the program did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Folder {
    pub(crate) fn new() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("oracle-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn put(&self, name: &str, tensors: &Tensors) {
        std::fs::write(self.path(name), tensors.to_bytes()).unwrap();
    }

    pub(crate) fn get(&self, name: &str) -> Tensors {
        Tensors::from_bytes(&std::fs::read(self.path(name)).unwrap())
    }

    /// Names of files, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Runs the program on words, in the folder.
    pub(crate) fn run(&self, words: &str) -> Ran {
        self.run_words(&words.split_whitespace().collect::<Vec<_>>())
    }

    pub(crate) fn run_words(&self, words: &[&str]) -> Ran {
        let program = Path::new(env!("CARGO_BIN_EXE_oracle"));
        let output = Command::new(program).args(words).current_dir(&self.0).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let status = output.status.code().expect("an exit status, not a signal");
        Ran { status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs the program on words that it must accept without a note.
    pub(crate) fn succeed(&self, words: &str) -> String {
        let ran = self.run(words);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{words}: {}", ran.stdout);
        ran.stdout
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays is no reason to fail a test.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
