//! From kernel sources to machine code: compiled at first use, with widths and tile shapes as
//! constants, and kept on disk.

use crate::disk::{DiskCache, Hasher};
use crate::nvrtc::{Compiled, Compiler, Source};
use crate::sources::{HEADERS, text};
use std::fmt;
use std::time::Instant;

/// One kernel as it is to be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    /// File under kernels/, also the name of the kernel: `tied_sm80` of `tied_sm80.cu`.
    pub(crate) kernel: &'static str,
    /// Constants, each a `-D` macro of the source.
    pub(crate) constants: Vec<(&'static str, usize)>,
}

/// `tied_sm80 GA_N=256 GA_R=64`: one line, as logs and lists of instances have it.
impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kernel)?;
        self.constants.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl Instance {
    fn options(&self, architecture: &str) -> Vec<String> {
        let mut options =
            vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
        options.extend(self.constants.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }
}

/// The architecture to compile for: the device's own. Those with features that later ones lack
/// have a name of their own for code that uses them.
pub(crate) fn architecture((major, minor): (i32, i32)) -> String {
    let suffix = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{suffix}")
}

/// A kernel's machine code, from the disk or from the compiler.
///
/// # Errors
/// The compiler's log.
pub(crate) fn build(
    compiler: &Compiler,
    disk: &DiskCache,
    architecture: &str,
    instance: &Instance,
) -> Result<Vec<u8>, String> {
    let options = instance.options(architecture);
    let key = key(compiler.version(), instance.kernel, &options);
    if let Some(cubin) = disk.load(key) {
        tracing::debug!(kernel = %instance, architecture, "kernel found in the cache");
        return Ok(cubin);
    }
    let start = Instant::now();
    let Compiled { cubin, log } = compile(compiler, instance.kernel, &options)?;
    let milliseconds = start.elapsed().as_millis();
    tracing::info!(kernel = %instance, architecture, milliseconds, "kernel compiled");
    if !log.trim().is_empty() {
        tracing::warn!(kernel = %instance, log, "the compiler has remarks");
    }
    disk.store(key, &cubin);
    Ok(cubin)
}

fn compile(compiler: &Compiler, kernel: &str, options: &[String]) -> Result<Compiled, String> {
    let name = format!("{kernel}.cu");
    let text = text(&name).ok_or_else(|| format!("there is no kernel source {name}"))?;
    compiler.compile(Source { name: &name, text, headers: HEADERS }, options)
}

/// A kernel with the assembler's account of registers, stack and spills in its log.
#[cfg(test)]
pub(crate) fn compile_verbosely(
    compiler: &Compiler,
    architecture: &str,
    instance: &Instance,
) -> Result<Compiled, String> {
    let mut options = instance.options(architecture);
    options.push("--ptxas-options=-v".to_owned());
    compile(compiler, instance.kernel, &options)
}

/// Everything that the machine code depends on.
fn key(version: (i32, i32), kernel: &str, options: &[String]) -> u128 {
    let mut hash = Hasher::new().text(&format!("nvrtc {}.{}", version.0, version.1)).text(kernel);
    for option in options {
        hash = hash.text(option);
    }
    hash = hash.text(text(&format!("{kernel}.cu")).unwrap_or_default());
    // All headers and not only those included: following includes would save a recompilation in
    // rare cases and be one more thing to get wrong.
    HEADERS.iter().fold(hash, |hash, (name, text)| hash.text(name).text(text)).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_tells_apart_whatever_changes_the_code() {
        let options =
            |n: usize| Instance { kernel: "naive", constants: vec![("GA_N", n)] }.options("sm_80");
        let keys = [
            key((13, 0), "naive", &options(1)),
            key((13, 0), "naive", &options(2)),
            key((12, 8), "naive", &options(1)),
            key((13, 0), "append", &options(1)),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|b| a != b), "{i}");
        }
        assert_eq!(keys[0], key((13, 0), "naive", &options(1)));
    }

    #[test]
    fn architectures_have_the_names_that_the_compiler_takes() {
        assert_eq!(architecture((8, 0)), "sm_80");
        assert_eq!(architecture((9, 0)), "sm_90a");
        assert_eq!(architecture((12, 0)), "sm_120");
    }
}
