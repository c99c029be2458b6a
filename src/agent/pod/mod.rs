//! One pod: what it needs, where it is, what is done next, and what the API is told.
//!
//! ```text
//!             decide                      runtime, probes
//!   Waiting ─────────► Start ─► Running ───────────────────► Ended
//!      ▲                                                       │ decide
//!      └──── back-off ◄── Restart / RestartTogether ◄──────────┤
//!                                                              └─► Finish
//!   at any time: deletion ─► terminating ─► stopped ─► removed from the API
//! ```
//!
//! # Invariants
//!
//! - One worker per pod, and only it drives that pod.
//! - The status is a function of the worker's state; the writer sends it only when it differs.

pub(crate) mod api;
mod arrive;
pub(crate) mod backoff;
mod changes;
pub(crate) mod decide;
pub(crate) mod env;
#[cfg(test)]
mod env_test;
mod fenced;
mod grpc;
mod hooks;
mod http_get;
pub(crate) mod mirror;
pub(crate) mod names;
pub(crate) mod objects;
pub(crate) mod plan;
pub(crate) mod probe;
mod run;
mod scratch;
pub(crate) mod service_env;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod terminate;
mod termination_message;
pub(crate) mod volumes;
pub(crate) mod worker;
pub(crate) mod writer;
