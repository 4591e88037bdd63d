//! The `oracle` program, run as its users run it: files in, files and an exit status out.

mod attend;
mod bad_files;
mod compare;
mod generate;
mod layer;
mod program;
mod tensors;
