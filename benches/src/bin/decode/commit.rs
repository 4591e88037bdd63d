//! Which commit a program was built from.

use std::process::Command;

/// What stands beside the program in `commit`, as `.ci/gpu-pack` writes it, else the checkout that
/// this runs in, marked where it has changes.
pub(crate) fn commit() -> Option<String> {
    let beside = std::env::current_exe().ok()?.with_file_name("commit");
    if let Ok(text) = std::fs::read_to_string(beside) {
        return Some(text.trim().to_owned());
    }
    let git = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output();
    let git = git.ok().filter(|git| git.status.success())?;
    Some(String::from_utf8_lossy(&git.stdout).trim().to_owned())
}
