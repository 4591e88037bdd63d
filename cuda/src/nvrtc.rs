//! NVRTC, the compiler for kernels at run time: found, loaded, asked for a cubin.

use crate::library::{functions, open, status};
use cudarc::nvrtc::sys::nvrtcProgram;
use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

/// Names a library to use in place of those of [`LIBRARIES`].
pub(crate) const LIBRARY_VARIABLE: &str = "GROUPED_ATTENTION_NVRTC";

/// Names under which NVRTC is installed, newest first.
const LIBRARIES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

functions! {
    /// NVRTC's functions.
    Api {
        nvrtcVersion,
        nvrtcCreateProgram,
        nvrtcDestroyProgram,
        nvrtcCompileProgram,
        nvrtcGetProgramLogSize,
        nvrtcGetProgramLog,
        nvrtcGetCUBINSize,
        nvrtcGetCUBIN,
    }
}

/// Calls a function of NVRTC and turns its status into a result. Unsafe as the function is.
macro_rules! call {
    ($api:expr, $name:ident($($argument:expr),* $(,)?)) => {
        match status!(cudarc::nvrtc::sys, $api, $name($($argument),*)) {
            0 => Ok(()),
            code => Err(format!("{} failed with {code}", stringify!($name))),
        }
    };
}

/// A loaded compiler.
#[derive(Debug)]
pub(crate) struct Compiler {
    api: Api,
    version: (i32, i32),
}

/// What a compilation gave.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) cubin: Vec<u8>,
    /// Warnings, and resource usage where the options ask for it.
    pub(crate) log: String,
}

/// A source and the headers that it may include, by the names in its `#include` lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source<'a> {
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
}

impl Compiler {
    /// The compiler for a driver of this version (1000 major + 10 minor), loaded once per process.
    ///
    /// A driver loads what compilers up to its own major version make, so of several installed
    /// ones the newest of those is taken.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn for_driver(version: i32) -> Result<&'static Compiler, String> {
        static COMPILER: OnceLock<Result<Compiler, String>> = OnceLock::new();
        COMPILER.get_or_init(|| load(version)).as_ref().map_err(Clone::clone)
    }

    /// Major and minor version.
    pub(crate) fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles to machine code.
    ///
    /// # Errors
    /// The compiler's log.
    pub(crate) fn compile(
        &self,
        source: Source<'_>,
        options: &[String],
    ) -> Result<Compiled, String> {
        let program = self.create(source)?;
        let options: Vec<CString> =
            options.iter().map(|option| c_string(option)).collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program exists, and `pointers` are that many strings that outlive the call.
        let compiled = unsafe {
            call!(
                self.api,
                nvrtcCompileProgram(program.handle, pointers.len() as c_int, pointers.as_ptr())
            )
        };
        let log = program.log()?;
        compiled.map_err(|reason| format!("{} does not compile: {reason}\n{log}", source.name))?;
        Ok(Compiled { cubin: program.cubin()?, log })
    }

    fn create(&self, source: Source<'_>) -> Result<Program<'_>, String> {
        let (name, text) = (c_string(source.name)?, c_string(source.text)?);
        let strings = |which: fn(&(&str, &str)) -> Result<CString, String>| {
            source.headers.iter().map(which).collect::<Result<Vec<_>, _>>()
        };
        let names = strings(|(name, _)| c_string(name))?;
        let texts = strings(|(_, text)| c_string(text))?;
        let pointers =
            |strings: &[CString]| strings.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (names, texts) = (pointers(&names), pointers(&texts));
        let mut handle: nvrtcProgram = std::ptr::null_mut();
        // SAFETY: all strings outlive the call, and there are as many headers as is said.
        unsafe {
            call!(
                self.api,
                nvrtcCreateProgram(
                    &raw mut handle,
                    text.as_ptr(),
                    name.as_ptr(),
                    names.len() as c_int,
                    texts.as_ptr(),
                    names.as_ptr(),
                )
            )
        }?;
        Ok(Program { api: &self.api, handle })
    }
}

struct Program<'a> {
    api: &'a Api,
    handle: nvrtcProgram,
}

impl Program<'_> {
    fn log(&self) -> Result<String, String> {
        let mut bytes = 0;
        // SAFETY: the program exists, and `bytes` is a place for one size.
        unsafe { call!(self.api, nvrtcGetProgramLogSize(self.handle, &raw mut bytes)) }?;
        let mut log = vec![0_u8; bytes];
        // SAFETY: `log` has as many bytes as the compiler has asked for.
        unsafe { call!(self.api, nvrtcGetProgramLog(self.handle, log.as_mut_ptr().cast())) }?;
        Ok(String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program exists, and `bytes` is a place for one size.
        unsafe { call!(self.api, nvrtcGetCUBINSize(self.handle, &raw mut bytes)) }?;
        let mut cubin = vec![0_u8; bytes];
        // SAFETY: `cubin` has as many bytes as the compiler has asked for.
        unsafe { call!(self.api, nvrtcGetCUBIN(self.handle, cubin.as_mut_ptr().cast())) }?;
        Ok(cubin)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created once and is destroyed once.
        let _ = unsafe { call!(self.api, nvrtcDestroyProgram(&raw mut self.handle)) };
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "a source holds a zero byte".to_owned())
}

fn load(driver_version: i32) -> Result<Compiler, String> {
    if let Some(path) = std::env::var_os(LIBRARY_VARIABLE) {
        let path = path.to_string_lossy().into_owned();
        return load_one(&path).map_err(|reason| format!("{LIBRARY_VARIABLE}={path}: {reason}"));
    }
    load_newest(LIBRARIES, driver_version)
}

fn load_newest(names: &[&str], driver_version: i32) -> Result<Compiler, String> {
    let mut newer = None;
    for name in names {
        match load_one(name) {
            Ok(compiler) if compiler.version.0 <= driver_version / 1000 => return Ok(compiler),
            Ok(compiler) => newer = Some(compiler.version),
            Err(_) => {}
        }
    }
    Err(match newer {
        Some((major, minor)) => format!(
            "the NVIDIA driver supports CUDA {}.{} and cannot load what NVRTC {major}.{minor} makes",
            driver_version / 1000,
            driver_version % 1000 / 10
        ),
        None => format!("the NVRTC library was not found (tried {})", names.join(", ")),
    })
}

fn load_one(name: &str) -> Result<Compiler, String> {
    preload_builtins(name);
    // SAFETY: these are NVRTC's names, or a path that the user gives for it.
    let library = unsafe { open(&[name]) }.map_err(|_| "cannot be loaded".to_owned())?;
    let api = Api::resolve(library).map_err(|symbol| format!("it has no {symbol}"))?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are places for one integer.
    unsafe { call!(api, nvrtcVersion(&raw mut major, &raw mut minor)) }?;
    Ok(Compiler { api, version: (major, minor) })
}

/// NVRTC opens its library of built-in functions by name. Where it was given as a path, as from a
/// Python wheel, that library lies beside it and not where the loader looks.
fn preload_builtins(name: &str) {
    let Some(folder) = std::path::Path::new(name).parent().filter(|folder| folder.is_absolute())
    else {
        return;
    };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with("libnvrtc-builtins.so") {
            let path = entry.path().to_string_lossy().into_owned();
            // SAFETY: this is the part of NVRTC that NVRTC would open.
            if let Ok(library) = unsafe { open(&[&path]) } {
                // Kept loaded for the rest of the process: NVRTC finds it by its name.
                std::mem::forget(library);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_is_named() {
        let reason = load_newest(&["libno-such-nvrtc.so.13"], 13000).unwrap_err();
        assert_eq!(reason, "the NVRTC library was not found (tried libno-such-nvrtc.so.13)");
    }
}
