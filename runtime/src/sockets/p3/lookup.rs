//! `wasi:sockets/ip-name-lookup` 0.3.

use std::sync::Arc;

use wasmtime::component::Accessor;
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::{ErrorCode, Host, HostWithStore};
use wasmtime_wasi::p3::bindings::sockets::types::IpAddress;

use super::{GuestSockets, SocketsView};
use crate::sockets::lookup::{Name, parse, tell};

impl<T> HostWithStore<T> for GuestSockets {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, ErrorCode>> {
        let name = match parse(&name) {
            Some(Name::Address(ip)) => return Ok(Ok(vec![ip.into()])),
            Some(Name::Domain(name)) => name,
            None => return Ok(Err(ErrorCode::InvalidArgument)),
        };
        let net = store.with(|mut view| Arc::clone(view.get().net));
        let found = tell(net.resolve(name).await);
        if found.is_empty() {
            return Ok(Err(ErrorCode::NameUnresolvable));
        }
        Ok(Ok(found.into_iter().map(Into::into).collect()))
    }
}

impl Host for SocketsView<'_> {}
