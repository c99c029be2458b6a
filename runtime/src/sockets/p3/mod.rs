//! `wasi:sockets` 0.3: async functions, streams and futures.
//!
//! Data in: calls of guests. Data out: the same calls of `Tcp`, `Udp` and the name lookup.
//!
//! # Invariants
//!
//! - Nothing is decided here but what only this version has: streams and futures that outlive their
//!   socket, and their ends.
//! - A stream that its guest drops closes its direction of the connection.

mod lookup;
mod tcp;
mod udp;

use wasmtime::component::Linker;
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup;
use wasmtime_wasi::p3::bindings::sockets::types::{self, ErrorCode, IpAddressFamily};
use wasmtime_wasi::p3::sockets::SocketError;

use super::{GuestSockets, SocketsView, ours, theirs};
use crate::guest::Guest;

pub(super) fn add_to_linker(l: &mut Linker<Guest>) -> wasmtime::Result<()> {
    ip_name_lookup::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)?;
    types::add_to_linker::<Guest, GuestSockets>(l, Guest::sockets)
}

impl types::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

fn family(is_ipv6: bool) -> IpAddressFamily {
    if is_ipv6 { IpAddressFamily::Ipv6 } else { IpAddressFamily::Ipv4 }
}

fn is_ipv6(family: IpAddressFamily) -> bool {
    matches!(family, IpAddressFamily::Ipv6)
}
