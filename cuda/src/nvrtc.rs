//! NVRTC, the compiler for kernels at run time: found, loaded, asked for a cubin.

use crate::library::{functions, open};
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// Names a library to use in place of those of [`LIBRARIES`].
pub(crate) const LIBRARY_VARIABLE: &str = "GROUPED_ATTENTION_NVRTC";

/// Names under which NVRTC is installed, newest first.
const LIBRARIES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

type Program = *mut c_void;

functions! {
    /// NVRTC's functions.
    Api {
        version = nvrtcVersion(major: *mut c_int, minor: *mut c_int);
        create = nvrtcCreateProgram(
            program: *mut Program,
            source: *const c_char,
            name: *const c_char,
            headers: c_int,
            header_sources: *const *const c_char,
            header_names: *const *const c_char,
        );
        destroy = nvrtcDestroyProgram(program: *mut Program);
        compile = nvrtcCompileProgram(
            program: Program, options: c_int, option: *const *const c_char,
        );
        log_size = nvrtcGetProgramLogSize(program: Program, size: *mut usize);
        log = nvrtcGetProgramLog(program: Program, log: *mut c_char);
        cubin_size = nvrtcGetCUBINSize(program: Program, size: *mut usize);
        cubin = nvrtcGetCUBIN(program: Program, cubin: *mut c_char);
    }
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
        let code = unsafe {
            (self.api.compile)(program.handle, pointers.len() as c_int, pointers.as_ptr())
        };
        let log = program.text(self.api.log_size, self.api.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if code != 0 {
            return Err(format!("{} does not compile (NVRTC error {code}):\n{log}", source.name));
        }
        let cubin = program.text(self.api.cubin_size, self.api.cubin)?;
        Ok(Compiled { cubin, log })
    }

    fn create(&self, source: Source<'_>) -> Result<ProgramGuard<'_>, String> {
        let (name, text) = (c_string(source.name)?, c_string(source.text)?);
        let strings = |which: fn(&(&str, &str)) -> Result<CString, String>| {
            source.headers.iter().map(which).collect::<Result<Vec<_>, _>>()
        };
        let names = strings(|(name, _)| c_string(name))?;
        let texts = strings(|(_, text)| c_string(text))?;
        let pointers =
            |strings: &[CString]| strings.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (names, texts) = (pointers(&names), pointers(&texts));
        let mut handle: Program = std::ptr::null_mut();
        // SAFETY: all strings outlive the call, and there are as many headers as is said.
        let code = unsafe {
            (self.api.create)(
                &raw mut handle,
                text.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        match code {
            0 => Ok(ProgramGuard { api: &self.api, handle }),
            _ => Err(format!("nvrtcCreateProgram failed with {code}")),
        }
    }
}

struct ProgramGuard<'a> {
    api: &'a Api,
    handle: Program,
}

impl ProgramGuard<'_> {
    /// Fetches one of the program's results.
    fn text(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program exists, and `bytes` is a place for one size.
        let code = unsafe { size(self.handle, &raw mut bytes) };
        let mut text = vec![0_u8; bytes];
        // SAFETY: `text` has as many bytes as the compiler has asked for.
        let code = code.max(unsafe { get(self.handle, text.as_mut_ptr().cast()) });
        if code == 0 { Ok(text) } else { Err(format!("NVRTC failed with {code}")) }
    }
}

impl Drop for ProgramGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created once and is destroyed once.
        unsafe { (self.api.destroy)(&raw mut self.handle) };
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
    // SAFETY: the library is NVRTC, and the table above declares its functions.
    let api = unsafe { Api::resolve(library) }.map_err(|symbol| format!("it has no {symbol}"))?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are places for one integer.
    match unsafe { (api.version)(&raw mut major, &raw mut minor) } {
        0 => Ok(Compiler { api, version: (major, minor) }),
        code => Err(format!("nvrtcVersion failed with {code}")),
    }
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
