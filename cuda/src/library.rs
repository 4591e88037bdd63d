//! Loading libcuda and libnvrtc at run time, so that a machine without them gets an error and not a
//! failed start.
//!
//! NOTE: cudarc would be the usual choice. It panics where a library or one symbol of it is missing,
//! needs the CUDA version fixed for the whole dependency graph when it is built, and reads the
//! driver's result codes into an enum that a newer driver can leave. The forty functions used here
//! are few enough to be resolved one by one, each missing one an error.

use libloading::Library;
use std::path::Path;

/// Declares a table of C functions that return a status code, and how to fill it from a library.
macro_rules! functions {
    (
        $(#[$table_doc:meta])*
        $table:ident {
            $($(#[$doc:meta])* $name:ident = $symbol:ident($($argument:ident: $type:ty),* $(,)?);)*
        }
    ) => {
        $(#[$table_doc])*
        pub(crate) struct $table {
            $($(#[$doc])* pub(crate) $name: unsafe extern "C" fn($($type),*) -> i32,)*
            /// Functions stay valid as long as their library is loaded.
            _library: libloading::Library,
        }

        impl $table {
            /// Resolves every function.
            ///
            /// # Errors
            /// The name of the first one that the library does not have.
            ///
            /// # Safety
            /// The library must be the one whose functions are declared.
            pub(crate) unsafe fn resolve(
                library: libloading::Library,
            ) -> Result<$table, &'static str> {
                Ok($table {
                    $($name: {
                        // SAFETY: the caller vouches for the library, whose public header gives
                        // the function this type.
                        let symbol = unsafe { library.get(stringify!($symbol).as_bytes()) };
                        *symbol.map_err(|_| stringify!($symbol))?
                    },)*
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

    #[test]
    fn a_missing_library_is_named() {
        // SAFETY: nothing of this name exists, so nothing is run.
        let tried = unsafe { open(&["libno-such-library.so.1", "libno-such-library.so"]) };
        assert_eq!(tried.unwrap_err(), "libno-such-library.so.1, libno-such-library.so");
    }

    functions! {
        /// A function that the C library does not have.
        #[expect(dead_code, reason = "it is never found, so never called")]
        Absent { nothing = no_such_function_of_libc(); }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_missing_function_is_named() {
        // SAFETY: the C library is loaded already.
        let library = unsafe { open(&["libc.so.6"]) }.unwrap();
        // SAFETY: the declared function is not found, so its type does not matter.
        let table = unsafe { Absent::resolve(library) };
        assert_eq!(table.unwrap_err(), "no_such_function_of_libc");
    }
}
