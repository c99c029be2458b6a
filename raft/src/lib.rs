//! Replicated multi-version key-value store: log, state machine, snapshots, membership.
//!
//! Data in: transactions, range reads, watch requests; frames from peers. Data out: revisions,
//! entries, ordered events; frames to peers through a [`Transport`].
//!
//! ```text
//!  caller ─► Replica ─► write ─► proposer ─► openraft ─► log (disk)
//!               │         └─► peer ══ leader     │ └───► peer ══ other members
//!               │                                ▼
//!               └─ reads, watches ◄──────────── state ─► redb, snapshots
//! ```
//!
//! # Invariants
//!
//! - Applying an entry is a pure function of state and entry: no clock, no randomness, no I/O.
//! - A vote or an entry is durable before anyone is told of it.
//! - Knows bytes and revisions, never Kubernetes.
//! - No type of openraft leaves this crate.

mod admin;
mod barrier;
mod dir;
mod envelope;
mod frozen;
mod log;
mod open;
mod peer;
mod proposer;
mod replica;
mod sleep;
mod state;
mod status;
#[cfg(test)]
mod suite_test;
mod tasks;
mod type_config;
mod types;
mod watch;
mod write;

pub use replica::Replica;
pub use types::*;
pub use watch::{Watch, WatchBatch};

/// Largest frame a [`Transport`] must carry, request or answer.
pub const FRAME_BYTES_MAX: usize = envelope::BODY_BYTES_MAX + envelope::HEADER_BYTES;
