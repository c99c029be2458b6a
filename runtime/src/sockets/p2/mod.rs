//! `wasi:sockets` 0.2: start, finish and poll.
//!
//! Data in: calls of guests. Data out: the same calls of `Tcp`, `Udp` and the name lookup.
//!
//! # Invariants
//!
//! - Nothing is decided here but what only this version has: operations in two halves, streams and
//!   pollables as children of their socket, permits to send.

mod lookup;
mod tcp;
#[cfg(test)]
mod tcp_test;
mod udp;

use std::io;

use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::p2::bindings::sockets::network::{self, ErrorCode, IpAddressFamily, Network};
use wasmtime_wasi::p2::bindings::sockets::{self, instance_network};
use wasmtime_wasi::p2::{SocketError, SocketResult};

use super::code::Code;
use super::{GuestSockets, SocketsView, ours, theirs};
use crate::guest::Guest;

pub(super) fn add_to_linker(l: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let options = network::LinkOptions::default();
    network::add_to_linker::<Guest, GuestSockets>(l, &options, Guest::sockets)?;
    instance_network::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)?;
    sockets::tcp::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)?;
    sockets::tcp_create_socket::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)?;
    sockets::udp::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)?;
    sockets::udp_create_socket::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)?;
    sockets::ip_name_lookup::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)
}

/// The capability to use the network, which every guest has.
struct Capability;

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
        Ok(error.downcast_ref::<io::Error>().map(|error| Code::from(error.kind()).into()))
    }
}

fn family(is_ipv6: bool) -> IpAddressFamily {
    if is_ipv6 { IpAddressFamily::Ipv6 } else { IpAddressFamily::Ipv4 }
}

fn is_ipv6(family: IpAddressFamily) -> bool {
    matches!(family, IpAddressFamily::Ipv6)
}
