//! `wasi:sockets` 0.2 on the virtual network: TCP and name lookup.
//!
//! Data in: calls of guests. Data out: binds and connections of [`crate::network`], and streams
//! that guests read and write.
//!
//! The interfaces are the ones that `wasmtime-wasi` generates; only their implementation is
//! another. Its resource types cannot be made outside of it, but a handle is just an index, so
//! the table holds our types under the indices of its handles ([`ours`], [`theirs`]).
//!
//! # Invariants
//!
//! - No call blocks: what is not ready answers `would-block` and wakes its pollable.
//! - A guest that does not read stops its peer: nothing is buffered beyond one chunk per
//!   direction and the pipe.

mod lookup;
mod options;
mod stream;
mod tcp;
#[cfg(test)]
mod tcp_test;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::task::TaskTracker;
use wasmtime::component::{HasData, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::sockets::instance_network;
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, Network};
use wasmtime_wasi::p2::{SocketError, SocketResult};

use crate::network::{BindError, PodNet};

/// Names the view in the linker.
pub(crate) struct GuestSockets;

impl HasData for GuestSockets {
    type Data<'a> = SocketsView<'a>;
}

/// What the host functions work on.
pub(crate) struct SocketsView<'a> {
    pub(crate) table: &'a mut ResourceTable,
    pub(crate) net: &'a Arc<PodNet>,
    /// Connections that the container has taken.
    pub(crate) taken: &'a TaskTracker,
}

/// The capability to use the network, which every guest has.
struct Capability;

/// Our resource behind their handle.
fn ours<T: 'static, U: 'static>(theirs: &Resource<T>) -> Resource<U> {
    Resource::new_borrow(theirs.rep())
}

/// Their handle for our resource.
fn theirs<T: 'static, U: 'static>(ours: &Resource<T>) -> Resource<U> {
    Resource::new_own(ours.rep())
}

impl SocketsView<'_> {
    /// Traps if the guest made the handle up.
    fn check(&self, network: &Resource<Network>) -> SocketResult<()> {
        self.table.get(&ours::<_, Capability>(network))?;
        Ok(())
    }
}

impl instance_network::Host for SocketsView<'_> {
    fn instance_network(&mut self) -> wasmtime::Result<Resource<Network>> {
        Ok(theirs(&self.table.push(Capability)?))
    }
}

impl network::HostNetwork for SocketsView<'_> {
    fn drop(&mut self, this: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Capability>::new_own(this.rep()))?;
        Ok(())
    }
}

impl network::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        let error = self.table.get(&error)?;
        Ok(error.downcast_ref::<io::Error>().map(|error| code(error.kind())))
    }
}

/// The WASI code for what the network says.
fn code(kind: io::ErrorKind) -> ErrorCode {
    match kind {
        io::ErrorKind::ConnectionRefused => ErrorCode::ConnectionRefused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ErrorCode::ConnectionReset,
        io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof => {
            ErrorCode::ConnectionAborted
        }
        io::ErrorKind::TimedOut => ErrorCode::Timeout,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::NotFound => ErrorCode::RemoteUnreachable,
        io::ErrorKind::PermissionDenied => ErrorCode::AccessDenied,
        io::ErrorKind::AddrInUse => ErrorCode::AddressInUse,
        io::ErrorKind::AddrNotAvailable => ErrorCode::AddressNotBindable,
        io::ErrorKind::InvalidInput => ErrorCode::InvalidArgument,
        io::ErrorKind::OutOfMemory => ErrorCode::OutOfMemory,
        io::ErrorKind::Unsupported => ErrorCode::NotSupported,
        _ => ErrorCode::Unknown,
    }
}

impl From<BindError> for ErrorCode {
    fn from(error: BindError) -> Self {
        match error {
            BindError::InUse => Self::AddressInUse,
            BindError::NotBindable => Self::AddressNotBindable,
        }
    }
}

/// Whether an address belongs to a socket's family. An IPv4 address in IPv6 clothes belongs to
/// none.
fn is_of_family(address: SocketAddr, is_ipv6: bool) -> bool {
    match address {
        SocketAddr::V4(_) => !is_ipv6,
        SocketAddr::V6(v6) => is_ipv6 && v6.ip().to_ipv4_mapped().is_none(),
    }
}
