//! A suite that judges attention engines against the specification.
//!
//! An engine conforms if, for every legal problem, its numbers are as close to the exact result as
//! the arithmetic it declares implies; if what a query does not see has no influence on its
//! result, down to NaN; if it writes what it is asked to write and nothing else; and if it answers
//! what it cannot do with an error. This crate makes problems on which that shows, computes what is
//! right, derives how far from it an engine may be, and compares. It knows no engine: those are
//! registered by the program that runs the suite (`tests/backends.rs` for this project's).
//!
//! | module | concept |
//! |---|---|
//! | [`case`] | the description of one problem; prints as a line, is read from it |
//! | [`draft`], [`fill`], [`scenario`] | its parts: masks, numbers, operations |
//! | [`script`] | what an engine is told to do, and what the oracle is asked |
//! | [`tolerance`], [`mod@compare`] | the derived bound, and the only comparison |
//! | [`generate`] | where cases come from |
//! | [`execute`], [`mod@judge`], [`run`] | running a case on an engine, the verdict, the whole suite |
//! | [`lm`], [`serve`] | language models that decode on any engine, and a loop that serves them |
#![forbid(unsafe_code)]

pub mod budget;
pub mod case;
pub mod compare;
mod contract;
#[cfg(doctest)]
mod docs;
pub mod draft;
#[cfg(feature = "engines")]
pub mod engines;
pub mod execute;
pub mod expect;
pub mod file;
pub mod fill;
pub mod generate;
pub mod judge;
pub mod lm;
pub mod noise;
pub mod registry;
pub mod run;
pub mod scenario;
pub mod script;
pub mod serve;
pub mod states;
pub mod tally;
pub mod tolerance;

pub use case::{Case, InvalidCase, Lens};
pub use compare::{Compared, Comparison, Expected, compare, largest_finite};
pub use draft::{Draft, MaskShape};
pub use fill::Fill;
pub use judge::{Fault, Verdict, judge};
pub use registry::{Registered, engine};
pub use run::main;
pub use scenario::Scenario;
pub use script::{Answer, Arrangement, Inputs, Op, Question, Script};
pub use tolerance::{Element, MergeTolerance, RowTolerance, Tolerance};
