//! The replicated store at its door: groups over a router with faults, and a process that is
//! killed.
//!
//! Time is real: the members wait for their disks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that fails should say so at once"
)]

mod cluster;
mod crash;
mod group;
mod router;
mod single;
