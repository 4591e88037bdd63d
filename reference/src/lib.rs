//! Decode attention for MHA, MQA, GQA, GTA, MLA and GLA: the specification, executable.
//!
//! Two attention variants of "Hardware-Efficient Attention for Fast Decoding" (Zadouri, Strauss,
//! Dao, 2025; arXiv 2505.21487) shrink what decoding reads: Grouped-Tied Attention (GTA), whose keys
//! and values share one state, and Grouped Latent Attention (GLA), MLA split into latent heads that
//! shard over devices. GLA is grouped *latent* attention here, not gated linear attention.
//!
//! This crate says what they and their relatives compute, and what an engine must do to compute it:
//!
//! | to | look at |
//! |---|---|
//! | describe a layer's heads and its cache row | [`Geometry`], [`Row`] |
//! | say what is to be computed | [`Problem`] |
//! | keep track of pages and lengths | [`PageTables`] |
//! | describe one step of a ragged batch | [`Step`], [`Mask`] |
//! | run it on an engine chosen by type or at run time | [`Backend`], [`AnyBackend`] |
//! | write an engine | [`Backend`]; its "must" sentences are the contract |
//! | read the definition | [`attend()`], [`merge_row`], [`Rope`], [`layers`] |
//! | count bytes, FLOPs, devices | [`cost`] |
//!
//! # Vocabulary
//!
//! One word for one thing, here and in every crate of this workspace:
//!
//! | word | meaning |
//! |---|---|
//! | sequence | one stream of tokens; a step has B of them, `[B]` |
//! | query | a new token of a sequence; `q_len` of them, `total_q` in a step |
//! | cached token | a token whose row is in the cache; `kv_len` of them, normally the new ones too |
//! | query head | `h_q` of them; head i reads cached head `i / g` |
//! | cached head | a KV, tied or latent head; `h` of them |
//! | group | the `g = h_q / h` query heads that read one cached head |
//! | row | what the cache keeps of one token in one layer |
//! | state | the value of a tied row, width `s`; its first `n` elements are also key |
//! | rope key | the rotated part of a tied key, width `r`, one per token |
//! | page | `page_size` rows; a sequence's table lists its pages |
//! | slot | a page and a row in it |
//! | split | a part of the cached tokens that is computed apart and merged |
//!
//! `[S-3.7]` and the like cite clauses of the specification in `docs/spec/`.
//!
//! # Example
//!
//! One decode step of two sequences with GLA (two latent heads of 8 and one rope key of 4):
//!
//! ```
//! use grouped_attention::*;
//!
//! fn decode(backend: &impl Backend) -> Result<HostTensor, Error> {
//!     let geometry = Geometry::gla(4, 2, 8, 4)?;
//!     let problem = Problem::new(geometry, Dtype::Bf16, 1.0 / 20_f64.sqrt())?.f32_output();
//!     let mut tables = PageTables::new(16, 64)?;
//!     let mut cache = backend.create_cache(CacheLayout::new(geometry, Dtype::Bf16, 16, 64)?)?;
//!
//!     // Two sequences, of 3 and 1 new tokens; all are queries and all are appended.
//!     let (a, b) = (tables.insert(), tables.insert());
//!     for (sequence, tokens) in [(a, 3), (b, 1)] {
//!         let copies = tables.extend(sequence, tokens)?;
//!         backend.copy_rows(CopyRows::new(&mut cache, &copies)?)?;
//!     }
//!     let step = tables.step(&[(a, 3), (b, 1)], MaskKind::Causal)?;
//!     let mut plan = backend.plan(Planning::new(&problem, &step))?; // once for all layers
//!
//!     let upload = |shape: &[usize]| -> Result<_, Error> {
//!         let values = vec![0.5; shape.iter().product()];
//!         let mut tensor = backend.allocate(Dtype::Bf16, shape)?;
//!         let host = HostTensor::from_f64(Dtype::Bf16, shape, &values)?;
//!         backend.upload(Upload::new(&mut tensor, &host)?)?;
//!         Ok(tensor)
//!     };
//!     let (state, rope) = (upload(&[4, 2, 8])?, upload(&[4, 4])?); // [writes, h, s], [writes, r]
//!     backend.append(Append::new(&plan, &mut cache, &state, Some(&rope))?)?;
//!
//!     let q = upload(&[4, 4, 12])?; // [total_q, h_q, n + r]
//!     let mut o = backend.allocate(Dtype::F32, &[4, 4, 8])?; // [total_q, h_q, s]
//!     backend.attend(Attend::new(&mut plan, &q, &cache, &mut o, None)?)?;
//!     Ok(backend.download(&o)?)
//! }
//!
//! let backend: AnyBackend = Box::new(Reference::new()); // or an engine chosen at run time
//! assert_eq!(decode(&backend)?.to_f64(), [0.5; 4 * 4 * 8]);
//! # Ok::<(), Error>(())
//! ```
#![forbid(unsafe_code)]

mod arithmetic;
mod attend;
mod backend;
mod call;
pub mod cost;
mod dtype;
mod dynamic;
mod engine;
mod error;
mod geometry;
pub mod layers;
mod layout;
mod mask;
mod merge;
mod norm;
mod pages;
mod problem;
mod rope;
mod sharding;
mod step;
mod tensor;

pub use arithmetic::Arithmetic;
pub use attend::{Attended, RowStats, attend};
pub use backend::{Backend, CacheInfo, Identity, PlanInfo, Planned, Status, TensorInfo};
pub use call::{Append, Attend, CopyRows, InvalidCall, Merge, Planning, ReadRows, Update, Upload};
pub use dtype::{Dtype, UnknownDtype};
pub use dynamic::{AnyBackend, AnyCache, AnyPlan, AnyTensor, DynBackend};
pub use engine::{Reference, ReferenceCache, ReferencePlan, ReferenceTensor};
pub use error::{EngineError, Error};
pub use geometry::{Geometry, InvalidGeometry, Row, Variant};
pub use layout::{CacheLayout, InvalidLayout};
pub use mask::{InvalidMask, Mask, MaskKind, Tree};
pub use merge::merge_row;
pub use norm::{InvalidNorm, RmsNorm};
pub use pages::{PageError, PageId, PageTables, RowCopy, SequenceId, Slot};
pub use problem::{Extension, InvalidProblem, Problem, Unsupported};
pub use rope::{InvalidRope, Rope, RopeScaling, RopeStyle};
pub use sharding::{InvalidSharding, Sharding};
pub use step::{Extent, InvalidStep, Sequence, Span, Step, Write};
pub use tensor::{HostTensor, InvalidTensor, Values, ValuesMut};

/// The README's example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
