//! The functions of libcuda and libnvrtc, looked for by name at run time: whatever is missing is an
//! error that names it.
//!
//! Types and signatures are cudarc's, as far as its `sys` modules. Its functions, and so all that it
//! builds on them, return the library's status as a Rust enum, which a status that only a newer
//! driver knows would make an invalid value, and panic where a library or a symbol is missing. Here
//! the status is the integer that it is in C.

use cudarc::driver::sys::CUresult;
use cudarc::nvrtc::sys::nvrtcResult;
use libloading::Library;
use std::ffi::c_int;
use std::path::Path;

/// The address of a function that was found.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Symbol(unsafe extern "C" fn());

/// What functions answer in cudarc's bindings: a C enum, which has the size of an `int`.
pub(crate) trait Status {}
impl Status for CUresult {}
impl Status for nvrtcResult {}
const _: () = assert!(size_of::<CUresult>() == size_of::<c_int>());
const _: () = assert!(size_of::<nvrtcResult>() == size_of::<c_int>());

/// The type of one of cudarc's bindings, never called but asked how to call a symbol.
pub(crate) trait Binding<Arguments> {
    /// Calls the symbol and gives its status.
    ///
    /// # Safety
    /// The symbol must be of the function that the binding is for, and the arguments as that
    /// function wants them.
    unsafe fn call(symbol: Symbol, arguments: Arguments) -> c_int;
}

macro_rules! bindings {
    ($(($($argument:ident)*))*) => {$(
        impl<S: Status, $($argument),*> Binding<($($argument,)*)>
            for unsafe fn($($argument),*) -> S
        {
            #[expect(non_snake_case, reason = "an argument bears its type's name")]
            unsafe fn call(Symbol(symbol): Symbol, ($($argument,)*): ($($argument,)*)) -> c_int {
                type Function<$($argument),*> = unsafe extern "C" fn($($argument),*) -> c_int;
                // SAFETY: the caller says that the symbol takes these arguments, and it returns a
                // C enum, which is passed as an `int`.
                let function = unsafe {
                    std::mem::transmute::<unsafe extern "C" fn(), Function<$($argument),*>>(symbol)
                };
                // SAFETY: the caller vouches for the arguments.
                unsafe { function($($argument),*) }
            }
        }
    )*};
}
bindings! { (A) (A B) (A B C) (A B C D) (A B C D E F) (A B C D E F G H I J K L) }

/// [`Binding::call`] for the binding's value, which names its type.
///
/// # Safety
/// As there.
pub(crate) unsafe fn call<B: Binding<A>, A>(_: B, symbol: Symbol, arguments: A) -> c_int {
    // SAFETY: the caller promises what `call` asks for.
    unsafe { B::call(symbol, arguments) }
}

/// Calls a function of a table by cudarc's binding of the same name, and gives its status. Unsafe as
/// the function is.
macro_rules! status {
    ($($module:ident)::+, $table:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let binding: unsafe fn($($crate::library::any!($argument)),*) -> _ = $($module)::+::$name;
        $crate::library::call(binding, $table.$name, ($($argument,)*))
    }};
}
pub(crate) use status;

/// A type for the compiler to find out.
macro_rules! any {
    ($argument:expr) => {
        _
    };
}
pub(crate) use any;

/// Declares a table of a library's functions, and how to fill it.
macro_rules! functions {
    ($(#[$table_doc:meta])* $table:ident { $($name:ident,)* }) => {
        $(#[$table_doc])*
        #[expect(non_snake_case, reason = "functions keep the names of the library's documentation")]
        pub(crate) struct $table {
            $(pub(crate) $name: $crate::library::Symbol,)*
            /// Functions stay valid as long as their library is loaded.
            _library: libloading::Library,
        }

        impl $table {
            /// Looks every function up.
            ///
            /// # Errors
            /// The name of the first one that the library does not have.
            pub(crate) fn resolve(library: libloading::Library) -> Result<$table, &'static str> {
                Ok($table {
                    $($name: $crate::library::symbol(&library, stringify!($name))?,)*
                    _library: library,
                })
            }
        }

        impl std::fmt::Debug for $table {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($table)).finish_non_exhaustive()
            }
        }
    };
}
pub(crate) use functions;

/// A function of a library.
///
/// # Errors
/// Its name, where the library does not have it.
pub(crate) fn symbol(library: &Library, name: &'static str) -> Result<Symbol, &'static str> {
    // SAFETY: the address is called through `Binding` alone, whose caller says what it is.
    let symbol = unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) };
    symbol.map(|symbol| Symbol(*symbol)).map_err(|_| name)
}

/// Opens the first library that can be opened.
///
/// # Errors
/// The names that were tried.
///
/// # Safety
/// Initialisers of whatever bears these names run in this process: the names must be those of the
/// CUDA libraries, or a path that the user has given for one.
pub(crate) unsafe fn open(names: &[&str]) -> Result<Library, String> {
    for name in names {
        // SAFETY: the caller vouches for the names.
        if let Ok(library) = unsafe { Library::new(Path::new(name)) } {
            return Ok(library);
        }
    }
    Err(names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::c_uint;

    #[test]
    fn a_missing_library_is_named() {
        // SAFETY: nothing of this name exists, so nothing is run.
        let tried = unsafe { open(&["libno-such-library.so.1", "libno-such-library.so"]) };
        assert_eq!(tried.unwrap_err(), "libno-such-library.so.1, libno-such-library.so");
    }

    functions! {
        /// A function that the C library does not have.
        #[expect(dead_code, reason = "it is never found, so never called")]
        Absent { cuInit, }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_missing_function_is_named() {
        // SAFETY: the C library is loaded already.
        let library = unsafe { open(&["libc.so.6"]) }.unwrap();
        assert_eq!(Absent::resolve(library).unwrap_err(), "cuInit");
    }

    type Newer = unsafe extern "C" fn(c_uint) -> c_int;

    /// What a driver of tomorrow answers.
    unsafe extern "C" fn newer(flags: c_uint) -> c_int {
        4242 + flags as c_int
    }

    #[expect(non_snake_case, reason = "as in the tables")]
    struct Table {
        cuInit: Symbol,
    }

    #[test]
    fn a_status_that_cudarc_does_not_know_is_a_number() {
        // SAFETY: one pointer to a function is as good as another until it is called.
        let symbol = unsafe { std::mem::transmute::<Newer, unsafe extern "C" fn()>(newer) };
        let table = Table { cuInit: Symbol(symbol) };
        // SAFETY: the function takes what cuInit takes and does nothing with it.
        let status = unsafe { status!(cudarc::driver::sys, table, cuInit(1)) };
        assert_eq!(status, 4243);
    }
}
