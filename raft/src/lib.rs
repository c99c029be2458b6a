//! Replicated multi-version key-value store: log, state machine, snapshots, membership.
//!
//! Data in: transactions, range reads, watch requests; frames from peers. Data out: revisions,
//! entries, ordered events; frames to peers through a [`Transport`].
//!
//! # Invariants
//!
//! - Applying an entry is a pure function of state and entry: no clock, no randomness, no I/O.
//! - A vote or an entry is durable before anyone is told of it.
//! - Knows bytes and revisions, never Kubernetes.
//! - No type of openraft leaves this crate.

mod envelope;
mod frozen;
mod log;
mod replica;
mod state;
mod tasks;
mod type_config;
mod types;
mod watch;

pub use replica::Replica;
pub use types::*;
pub use watch::{Watch, WatchBatch};
