//! Which instruction set runs: chosen once per engine, or forced.

use crate::attend::Shared;
#[cfg(all(target_arch = "aarch64", not(miri)))]
use crate::lanes::Neon;
use crate::lanes::{Job, Lanes, Portable, Unit};
use crate::plan::Scratch;
use crate::schedule::Task;
use crate::task::TaskRun;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use crate::{
    amx::Amx,
    lanes::{Avx2, Avx512},
    matrix::MatrixRun,
    pairs::Pairs,
};
use grouped_attention::Dtype;
use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

/// A kernel family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Plain Rust, for whatever the build targets.
    Portable,
    /// NEON: f32 arithmetic on any cache.
    Neon,
    /// AVX2 with FMA and F16C: f32 arithmetic on any cache.
    Avx2,
    /// AVX-512: f32 arithmetic on any cache.
    Avx512,
    /// AVX-512 that multiplies pairs of bf16 on caches of that format, AVX-512 elsewhere.
    Avx512Bf16,
    /// AMX on bf16 caches that are tied or whose heads meet more than a few query rows, AVX-512 elsewhere.
    Amx,
}

/// A kernel whose instructions the machine has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Instructions {
    Portable(Portable),
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    Neon(Neon),
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx2(Avx2),
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx512(Avx512),
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Avx512Bf16(Pairs),
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    Amx(Amx, Avx512),
}

impl Instructions {
    /// True if multiply-adds round once.
    pub(crate) fn fused(self) -> bool {
        match self {
            Instructions::Portable(_) => Portable::FUSED,
            #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
            _ => true,
        }
    }

    /// Runs `job` compiled for the instruction set.
    pub(crate) fn run(self, job: impl Job) {
        match self {
            Instructions::Portable(lanes) => lanes.vectorize(job),
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Instructions::Neon(lanes) => lanes.vectorize(job),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Instructions::Avx2(lanes) => lanes.vectorize(job),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Instructions::Avx512Bf16(pairs) => pairs.lanes().vectorize(job),
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Instructions::Avx512(lanes) | Instructions::Amx(_, lanes) => lanes.vectorize(job),
        }
    }

    /// The rows of a cached head are padded to a multiple of this: to whole tiles where the matrix
    /// unit may run.
    #[cfg_attr(
        not(all(target_arch = "x86_64", not(miri))),
        expect(unused_variables, reason = "for x86-64")
    )]
    pub(crate) fn row_align(self, dtype: Dtype) -> usize {
        match self {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Instructions::Amx(..) if dtype == Dtype::Bf16 => crate::amx::ROWS,
            _ => 1,
        }
    }

    /// Operations that a core does while a byte arrives from memory, roughly: 0.2 TFLOP/s of
    /// AVX-512, or 2 TFLOP/s of AMX, against 15 GB/s.
    pub(crate) fn flops_per_byte(self, dtype: Dtype) -> usize {
        if self.row_align(dtype) > 1 { 128 } else { 16 }
    }

    /// True if probabilities are rounded to bf16.
    #[cfg_attr(
        not(all(target_arch = "x86_64", not(miri))),
        expect(unused_variables, reason = "for x86-64")
    )]
    pub(crate) fn rounds_probabilities(self, dtype: Dtype) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Instructions::Avx512Bf16(..) | Instructions::Amx(..) => dtype == Dtype::Bf16,
            _ => false,
        }
    }

    /// Runs one task of queries `[total_q, h_q, width_k]`.
    pub(crate) fn attend<E: Unit>(
        self,
        shared: &Shared<'_>,
        q: &[E],
        task: &Task,
        scratch: &mut Scratch,
    ) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Instructions::Amx(amx, lanes) = self
            && let Some(q) = E::as_bf16(q)
            && shared.on_matrix(task.queries.len())
        {
            return MatrixRun { shared, q, task }.run(lanes, amx, scratch);
        }
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        let pairs = match self {
            Instructions::Avx512Bf16(pairs) => Some(pairs),
            _ => None,
        };
        self.run(TaskRun {
            shared,
            q,
            task,
            scratch,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            pairs,
        });
    }
}

/// The variable that forces a kernel by its name.
pub(crate) const VARIABLE: &str = "GROUPED_ATTENTION_CPU_KERNEL";

impl Kernel {
    /// Every kernel, of each architecture the fastest last; [`Avx512Bf16`](Self::Avx512Bf16) is
    /// faster than the one before it only on the processors where it is chosen.
    pub const ALL: [Kernel; 6] = [
        Kernel::Portable,
        Kernel::Neon,
        Kernel::Avx2,
        Kernel::Avx512,
        Kernel::Avx512Bf16,
        Kernel::Amx,
    ];

    /// The kernels that this machine can run, in the order of [`ALL`](Self::ALL).
    pub fn available() -> Vec<Kernel> {
        Kernel::ALL.into_iter().filter(|kernel| kernel.check().is_ok()).collect()
    }

    /// Says whether the machine can run it.
    ///
    /// # Errors
    /// What it lacks, in words.
    pub fn check(self) -> Result<(), String> {
        self.detect().map(|_| ())
    }

    /// Its instructions, or what the machine lacks.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    pub(crate) fn detect(self) -> Result<Instructions, String> {
        let found = match self {
            Kernel::Portable => Some(Instructions::Portable(Portable)),
            Kernel::Neon => return Err(self.elsewhere()),
            Kernel::Avx2 => Avx2::detect().map(Instructions::Avx2),
            Kernel::Avx512 => Avx512::detect().map(Instructions::Avx512),
            Kernel::Avx512Bf16 => Pairs::detect().map(Instructions::Avx512Bf16),
            Kernel::Amx => {
                let amx = Amx::detect().map_err(str::to_owned)?;
                Avx512::detect().map(|lanes| Instructions::Amx(amx, lanes))
            }
        };
        found.ok_or_else(|| format!("the processor lacks {}", self.needs()))
    }

    /// Its instructions, or what the machine lacks.
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    pub(crate) fn detect(self) -> Result<Instructions, String> {
        match self {
            Kernel::Portable => Ok(Instructions::Portable(Portable)),
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            Kernel::Neon => Neon::detect()
                .map(Instructions::Neon)
                .ok_or_else(|| format!("the processor lacks {}", self.needs())),
            _ => Err(self.elsewhere()),
        }
    }

    /// What to say on another architecture.
    fn elsewhere(self) -> String {
        let architecture = if self == Kernel::Neon { "aarch64" } else { "x86-64" };
        format!("{self} needs an {architecture} processor with {}", self.needs())
    }

    /// True if it is faster than those before it wherever it runs, or on this processor.
    fn pays(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            Kernel::Avx512Bf16 => Pairs::pay(),
            _ => true,
        }
    }

    fn needs(self) -> &'static str {
        match self {
            Kernel::Portable => "nothing",
            Kernel::Neon => "NEON",
            Kernel::Avx2 => "AVX2, FMA or F16C",
            Kernel::Avx512 | Kernel::Amx => "AVX-512 F, BW, DQ or VL",
            Kernel::Avx512Bf16 => "AVX-512 F, BW, DQ, VL or BF16",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kernel::Portable => "portable",
            Kernel::Neon => "neon",
            Kernel::Avx2 => "avx2",
            Kernel::Avx512 => "avx512",
            Kernel::Avx512Bf16 => "avx512bf16",
            Kernel::Amx => "amx",
        })
    }
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(name: &str) -> Result<Kernel, String> {
        let names = || Kernel::ALL.map(|kernel| kernel.to_string()).join(", ");
        Kernel::ALL
            .into_iter()
            .find(|kernel| kernel.to_string() == name)
            .ok_or_else(|| format!("unknown kernel {name:?}: expected one of {}", names()))
    }
}

/// Chooses: `given`, or what the environment names, or the fastest that the machine has.
pub(crate) fn choose(given: Option<Kernel>) -> Result<(Kernel, Instructions), String> {
    let forced = match given {
        Some(kernel) => Some(kernel),
        None => named(std::env::var_os(VARIABLE))?,
    };
    let (kernel, instructions) = match forced {
        Some(kernel) => (kernel, kernel.detect()?),
        None => best(),
    };
    tracing::info!(%kernel, forced = forced.is_some(), "cpu kernel chosen");
    Ok((kernel, instructions))
}

/// The kernel that the environment's variable names, if it is set and not empty.
fn named(variable: Option<OsString>) -> Result<Option<Kernel>, String> {
    let Some(name) = variable.filter(|name| !name.is_empty()) else { return Ok(None) };
    let kernel = name.to_string_lossy().parse().map_err(|error| format!("{VARIABLE}: {error}"))?;
    Ok(Some(kernel))
}

/// The fastest kernel of the machine.
pub(crate) fn best() -> (Kernel, Instructions) {
    let found = |kernel: Kernel| Some((kernel, kernel.detect().ok()?));
    let best = Kernel::ALL.into_iter().rev().filter(|kernel| kernel.pays()).find_map(found);
    best.unwrap_or((Kernel::Portable, Instructions::Portable(Portable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_a_kernel_or_nothing() {
        assert_eq!(named(None), Ok(None));
        assert_eq!(named(Some(OsString::new())), Ok(None));
        assert_eq!(named(Some("avx2".into())), Ok(Some(Kernel::Avx2)));
        let error = named(Some("amxx".into())).unwrap_err();
        assert!(error.starts_with(VARIABLE) && error.contains("\"amxx\""), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_name_that_is_no_text_is_an_error() {
        use std::os::unix::ffi::OsStringExt;
        assert!(named(Some(OsString::from_vec(vec![0xff]))).is_err());
    }
}
