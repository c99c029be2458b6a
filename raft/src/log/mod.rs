//! The Raft log: a segmented write-ahead log on flash.
//!
//! Data in: votes, entries, truncations, purges and commit marks, in one stream. Data out: the
//! same, after any crash, as far as they were acknowledged.
//!
//! ```text
//!  openraft ──► LogStore ──queue──► writer: one batch, one write, one fdatasync ──► segments
//!                  │ index + cache of newest entries                                   │
//!                  └──────────────── read ◄────────────────────────────────────────────┘
//! ```
//!
//! # Invariants
//!
//! - One writer; records stand in the order of the calls; a batch is synced before the next is
//!   written and before anyone is told of it.
//! - Every record carries the checksum of the one before it, its own number, and the number of
//!   the first record of its batch: everything before that was durable when it was written. So a
//!   bad record is a torn tail if no later batch follows it, and corruption if one does.
//! - Every segment starts with a checkpoint (vote, purged, committed): any prefix of segments can
//!   go once its entries are purged.
//! - After a failed write or sync nothing more is written: the replica stops.

mod disk;
mod index;
#[cfg(test)]
mod power_cut_test;
mod record;
mod scan;
#[cfg(test)]
mod sim_disk;
mod store;
mod wal;

pub(crate) use disk::{Disk, DiskFile, FsDisk};
pub(crate) use store::LogStore;
pub(crate) use wal::{Recovered, Wal};
