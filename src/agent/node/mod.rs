//! The Node object of this machine: registered, described, and kept alive by its Lease.
//!
//! # Invariants
//!
//! - The status is written only when it differs: an idle node writes nothing.
//! - What changes by itself, as heat does, is told in few words.
//! - Heartbeats go to a Lease in `kube-node-lease`, which lives in the leader's memory.

mod describe;
mod facts;
mod hardware;
mod lease;
mod register;
mod renewals;

pub(crate) use describe::{allocatable, allocatable_disk};
pub(crate) use hardware::{Hardware, follow};
pub(crate) use lease::Heartbeat;
pub(crate) use register::Registration;
