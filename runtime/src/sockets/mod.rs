//! `wasi:sockets` on the virtual network: TCP, UDP and name lookup, of WASI 0.2 and 0.3.
//!
//! Data in: calls of guests. Data out: binds, connections and datagrams of [`crate::network`], and
//! streams that guests read and write.
//!
//! ```text
//!   p2 (start, finish, poll) ─┐
//!                             ├─ Tcp, Udp: states, options, error codes ─ crate::network
//!   p3 (async functions)     ─┘
//! ```
//!
//! The interfaces are the ones that `wasmtime-wasi` generates; only their implementation is
//! another. Its resource types cannot be made outside of it, but a handle is just an index, so
//! the table holds our types under the indices of its handles ([`ours`], [`theirs`]).
//!
//! # Invariants
//!
//! - What a socket is and does is decided in `tcp` and `udp`; the two versions only translate.
//! - No call blocks: what is not ready answers `would-block` and wakes its pollable, or waits as an
//!   async function.
//! - A guest that does not read stops its peer: nothing is buffered beyond one chunk per
//!   direction and the pipe. Datagrams that find no room are dropped.

mod address;
mod code;
mod lookup;
mod options;
mod p2;
mod p3;
mod stream;
mod tcp;
mod udp;

use std::sync::Arc;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

use crate::guest::Guest;
use crate::network::{Intake, PodNet};

/// Names the view in the linker.
pub(crate) struct GuestSockets;

impl HasData for GuestSockets {
    type Data<'a> = SocketsView<'a>;
}

/// What the host functions work on.
pub(crate) struct SocketsView<'a> {
    pub(crate) table: &'a mut ResourceTable,
    pub(crate) net: &'a Arc<PodNet>,
    /// How the container takes connections.
    pub(crate) intake: &'a Intake,
}

/// Links the interfaces of both versions.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    p2::add_to_linker(linker)?;
    p3::add_to_linker(linker)
}

/// Our resource behind their handle.
fn ours<T: 'static, U: 'static>(theirs: &Resource<T>) -> Resource<U> {
    Resource::new_borrow(theirs.rep())
}

/// Their handle for our resource.
fn theirs<T: 'static, U: 'static>(ours: &Resource<T>) -> Resource<U> {
    Resource::new_own(ours.rep())
}
