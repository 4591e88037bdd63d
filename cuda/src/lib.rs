//! Decode attention for MHA, MQA, GQA, GTA, MLA and GLA on NVIDIA GPUs, sm_80 and later.
//!
//! [`CudaBackend`] implements [`Backend`](grouped_attention::Backend). It builds without CUDA: the
//! driver and NVRTC are looked for when an engine is made, and a machine that lacks them is told
//! which one it lacks.
//!
//! ```
//! match grouped_attention_cuda::CudaBackend::new(0) {
//!     Ok(engine) => println!("running on device {}", engine.ordinal()),
//!     Err(error) => println!("{error}"),
//! }
//! ```
//!
//! Kernels are compiled for the device at their first use, with the widths of the problem as
//! constants, and kept in `$XDG_CACHE_HOME/grouped-attention`. Two variables of the environment are
//! read:
//!
//! * `GROUPED_ATTENTION_CUDA_CACHE`: another folder for compiled kernels; empty for none.
//! * `GROUPED_ATTENTION_NVRTC`: the path of an NVRTC library that the loader would not find.
//!
//! A serving engine that owns its memory and streams uses [`CudaBackend::on_stream`],
//! [`CudaBackend::wrap_tensor`] and [`CudaBackend::wrap_cache`], which take plain addresses and
//! handles, so it may use any CUDA crate of any version, or none.

mod abi;
mod arguments;
mod attention;
mod backend;
mod cache;
mod device;
mod disk;
mod driver;
mod error;
mod family;
mod foreign;
#[cfg(test)]
mod gate;
mod hopper;
mod jit;
mod launch;
mod library;
mod memory;
mod nvrtc;
mod plan;
mod resident;
mod schedule;
mod sources;
mod stream;
mod tensor;
mod transfer;

pub use backend::CudaBackend;
pub use cache::{CachePart, CudaCache};
pub use family::Kernels;
pub use plan::{CudaPlan, DeviceTables};
pub use tensor::CudaTensor;
