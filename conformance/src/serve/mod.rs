//! A serving loop over any engine: continuous batching, chunked prefill, speculation, prefix
//! sharing, preemption.
//!
//! | module | concept |
//! |---|---|
//! | `scheduler` | who runs in a step: a state machine of lengths, without clock, model or pages |
//! | `prefixes` | prompts whose pages later requests share |
//! | `texts` | what is needed of a model: [`Texts`] |
//! | `server` | [`Server`]: requests in, steps, bytes out |
//! | `workload` | requests that arrive: a Poisson process, or a trace |
//! | `replay` | a workload against a clock |
//! | `summary` | percentiles of what a replay saw |

mod prefixes;
mod replay;
mod scheduler;
mod server;
mod summary;
mod texts;
mod workload;

pub use replay::{Clock, Gauge, Outcome, Record, Replay, WallClock, replay};
pub use scheduler::{Phase, RequestId};
pub use server::{
    Counters, Emitted, Preemption, Request, ServeError, Server, ServerOptions, ServerStep,
};
pub use summary::{Percentiles, Summary};
pub use texts::Texts;
pub use workload::{Arrival, Poisson, WorkloadError, read_trace};
