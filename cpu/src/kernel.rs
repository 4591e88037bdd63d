//! Which instruction set runs.

use crate::lanes::{Job, Lanes, Portable};

/// A kernel family, chosen once per engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Plain Rust, for whatever the build targets.
    Portable,
}

impl Kernel {
    /// Runs `job` with this kernel's instructions.
    pub(crate) fn run(self, job: impl Job) {
        match self {
            Kernel::Portable => Portable.vectorize(job),
        }
    }

    /// True if its multiply-adds round once.
    pub(crate) fn fused(self) -> bool {
        match self {
            Kernel::Portable => Portable::FUSED,
        }
    }

    /// Every kernel that this machine can run.
    pub fn available() -> Vec<Kernel> {
        vec![Kernel::Portable]
    }

    /// The fastest of them.
    pub(crate) fn best() -> Kernel {
        Kernel::Portable
    }

    /// This kernel, if the machine can run it; why not, otherwise.
    pub(crate) fn check(self) -> Result<Kernel, String> {
        Ok(self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Portable => "portable",
        }
    }
}
