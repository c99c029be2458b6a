//! `wasi:sockets/ip-name-lookup` 0.2.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use wasmtime::component::Resource;
use wasmtime_wasi::p2::SocketResult;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::{
    Host, HostResolveAddressStream, ResolveAddressStream,
};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::{SocketsView, ours, theirs};
use crate::sockets::lookup::{Name, parse, tell};

/// A lookup under way, or the addresses not yet taken.
enum Lookup {
    Running(Pin<Box<dyn Future<Output = Vec<IpAddr>> + Send>>),
    Done(std::vec::IntoIter<IpAddr>),
    Nothing,
}

impl Lookup {
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Running(future) = self {
            let addresses = tell(std::task::ready!(future.as_mut().poll(cx)));
            *self = if addresses.is_empty() {
                Self::Nothing
            } else {
                Self::Done(addresses.into_iter())
            };
        }
        Poll::Ready(())
    }
}

#[async_trait]
impl Pollable for Lookup {
    async fn ready(&mut self) {
        std::future::poll_fn(|cx| self.poll_done(cx)).await;
    }
}

impl Host for SocketsView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<ResolveAddressStream>> {
        self.check(&network)?;
        let mut lookup = match parse(&name).ok_or(ErrorCode::InvalidArgument)? {
            Name::Address(ip) => Lookup::Done(vec![ip].into_iter()),
            Name::Domain(name) => Lookup::Running(Box::pin(Arc::clone(self.net).resolve(name))),
        };
        // Starts it, and ends it at once if the name is known here.
        let _ = lookup.poll_done(&mut Context::from_waker(Waker::noop()));
        Ok(theirs(&self.table.push(lookup)?))
    }
}

impl HostResolveAddressStream for SocketsView<'_> {
    fn resolve_next_address(
        &mut self,
        this: Resource<ResolveAddressStream>,
    ) -> SocketResult<Option<IpAddress>> {
        let lookup = self.table.get_mut(&ours::<_, Lookup>(&this))?;
        let _ = lookup.poll_done(&mut Context::from_waker(Waker::noop()));
        match lookup {
            Lookup::Running(_) => Err(ErrorCode::WouldBlock.into()),
            Lookup::Nothing => Err(ErrorCode::NameUnresolvable.into()),
            Lookup::Done(addresses) => Ok(addresses.next().map(Into::into)),
        }
    }

    fn subscribe(
        &mut self,
        this: Resource<ResolveAddressStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, ours::<_, Lookup>(&this))
    }

    fn drop(&mut self, this: Resource<ResolveAddressStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Lookup>::new_own(this.rep()))?;
        Ok(())
    }
}
