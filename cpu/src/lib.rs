//! Decode attention for MHA, MQA, GQA, GTA, MLA and GLA on CPUs: [`CpuBackend`], an engine behind
//! [`grouped_attention::Backend`].
//!
//! A step is cut into tasks of a sequence, its cached heads and a range of positions
//! (`schedule`); a task goes through its range block by block and keeps online-softmax sums
//! (`task`, `softmax`); parts of one sequence are joined in the order of their positions
//! (`attend`). The arithmetic of a block is written once over vectors (`lanes`, `rows`),
//! beside kernels for pairs of bf16 (`pairs`) and for the matrix unit (`matrix`). What is read next is asked
//! for meanwhile (`ahead`).

mod ahead;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod amx;
mod append;
mod attend;
mod backend;
mod buffer;
mod cache;
pub mod ceiling;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod columns;
#[cfg(feature = "faer")]
mod dense;
mod disjoint;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod few;
mod kernel;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod keys;
mod lanes;
mod machine;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod matrix;
mod merge;
mod output;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod pack;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod pairs;
mod plan;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod prepared;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod product;
mod rows;
mod schedule;
mod softmax;
mod stages;
mod strip;
mod task;
mod tensor;
mod threads;
mod visibility;

pub use backend::{CpuBackend, CpuBackendBuilder};
pub use cache::{CpuCache, Strides};
pub use kernel::Kernel;
pub use plan::CpuPlan;
pub use tensor::CpuTensor;
