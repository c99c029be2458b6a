//! The state machine: keys with their versions, in memory, and durable behind it.
//!
//! Data in: committed entries, snapshots. Data out: outcomes, reads at any kept revision, events,
//! snapshots.
//!
//! ```text
//!  entry ─► Mvcc (memory) ─► readers, watches
//!             └─ changes ─► Db (redb), one commit every few hundred entries ─► snapshot file
//! ```
//!
//! # Invariants
//!
//! - Applying is a function of state and entry: no clock, no randomness, no I/O decides anything.
//! - Rows, applied index, membership and counters are in one commit; what a start finds is what
//!   one commit left, and the log replays the rest.
//! - A purge or a snapshot never covers what is not durable.
//! - The state file is a cache of snapshot and log: a broken one is thrown away and rebuilt.
//! - Without writes nothing is written.

mod db;
mod machine;
mod mvcc;
#[cfg(test)]
mod mvcc_test;
mod requests;
mod snapshot;
mod snapshot_file;
pub(crate) mod watchers;

pub(crate) use db::Db;
pub(crate) use machine::{Shared, StateMachine};
pub(crate) use mvcc::Mvcc;
pub(crate) use snapshot::{Receiving, SnapshotFile, Snapshots};
