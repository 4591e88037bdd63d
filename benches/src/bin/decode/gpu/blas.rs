//! The rate of cuBLAS' matrix product, where the library is installed.

use crate::rig::Outcome;
use libloading::Library;
use std::ffi::{c_int, c_void};

/// Names a library to use in place of those of [`LIBRARIES`].
const VARIABLE: &str = "GROUPED_ATTENTION_CUBLAS";
const LIBRARIES: [&str; 3] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];

type Handle = *mut c_void;

/// cuBLAS with a handle on a stream.
pub(super) struct Blas {
    library: Library,
    handle: Handle,
}

macro_rules! call {
    ($library:expr, $name:literal, ($($type:ty),*), $($argument:expr),*) => {{
        type Function = unsafe extern "C" fn($($type),*) -> c_int;
        // SAFETY: cublas_v2.h and cublas_api.h give the function this type.
        let function = unsafe { $library.get::<Function>($name) }?;
        // SAFETY: the arguments are valid where this macro is used, as said there.
        match unsafe { function($($argument),*) } {
            0 => Ok(()),
            code => Err(format!("{} failed with {code}", String::from_utf8_lossy($name))),
        }
    }};
}

impl Blas {
    /// The library on a stream of the context that is current in this thread.
    pub(super) fn new(stream: Handle) -> Outcome<Blas> {
        let names = match std::env::var(VARIABLE) {
            Ok(path) => vec![path],
            Err(_) => LIBRARIES.map(str::to_owned).to_vec(),
        };
        // SAFETY: these are the names of cuBLAS, whose initialisers have no preconditions.
        let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok());
        let library = library.ok_or_else(|| {
            format!("none of {} is found; {VARIABLE} may name one", names.join(", "))
        })?;
        let mut handle: Handle = std::ptr::null_mut();
        // `handle` is a place for one handle, and a context is current.
        call!(library, b"cublasCreate_v2", (*mut Handle), &raw mut handle)?;
        let blas = Blas { library, handle };
        // Both live.
        call!(blas.library, b"cublasSetStream_v2", (Handle, Handle), handle, stream)?;
        Ok(blas)
    }

    /// Issues `c = a b` of square bf16 matrices of `n` rows, sums in f32.
    ///
    /// # Safety
    /// The addresses must be of `n * n` bf16 numbers each on the stream's device.
    pub(super) unsafe fn multiply(&self, n: usize, [a, b, c]: [u64; 3]) -> Outcome<()> {
        const BF16: c_int = 14;
        const COMPUTE_F32: c_int = 68;
        const DEFAULT: c_int = -1;
        const TRANSPOSED: c_int = 1;
        const AS_IT_IS: c_int = 0;
        let (one, zero, size) = (1.0_f32, 0.0_f32, n as c_int);
        let [a, b, c] = [a, b, c]
            .map(|address| std::ptr::with_exposed_provenance_mut::<c_void>(address as usize));
        let (alpha, beta) = ((&raw const one).cast::<c_void>(), (&raw const zero).cast::<c_void>());
        // The caller vouches for the matrices; the factors are read on the host during the call.
        call!(
            self.library,
            b"cublasGemmEx",
            (
                Handle,
                c_int,
                c_int,
                c_int,
                c_int,
                c_int,
                *const c_void,
                *const c_void,
                c_int,
                c_int,
                *const c_void,
                c_int,
                c_int,
                *const c_void,
                *mut c_void,
                c_int,
                c_int,
                c_int,
                c_int
            ),
            self.handle,
            TRANSPOSED,
            AS_IT_IS,
            size,
            size,
            size,
            alpha,
            a,
            BF16,
            size,
            b,
            BF16,
            size,
            beta,
            c,
            BF16,
            size,
            COMPUTE_F32,
            DEFAULT
        )?;
        Ok(())
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        let destroy = || -> Outcome<()> {
            // The handle was created once and is destroyed once.
            Ok(call!(self.library, b"cublasDestroy_v2", (Handle), self.handle)?)
        };
        if let Err(error) = destroy() {
            eprintln!("decode: {error}");
        }
    }
}
