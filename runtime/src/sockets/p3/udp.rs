//! The `udp-socket` of `wasi:sockets/types` 0.3.

use std::net::SocketAddr;
use std::sync::Arc;

use wasmtime::component::{Accessor, Resource};
use wasmtime_wasi::p3::bindings::sockets::types::{
    HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use wasmtime_wasi::p3::sockets::SocketResult;
use wasmtime_wasi::sockets::UdpSocket;

use super::{GuestSockets, SocketsView, family, is_ipv6, ours, theirs};
use crate::network::{Arrived, Refused};
use crate::sockets::code::Code;
use crate::sockets::options::Options;
use crate::sockets::udp::{self, Udp, check_size};

impl SocketsView<'_> {
    fn udp_p3(&mut self, this: &Resource<UdpSocket>) -> wasmtime::Result<&mut Udp> {
        Ok(self.table.get_mut(&ours::<_, Udp>(this))?)
    }

    fn set_udp_option_p3(
        &mut self,
        this: &Resource<UdpSocket>,
        change: impl FnOnce(&mut Options) -> Result<(), Code>,
    ) -> SocketResult<()> {
        Ok(trap(self.udp_p3(this))?.set_option(change)?)
    }
}

/// A handle that the guest made up is a trap.
pub(super) fn trap<T>(result: wasmtime::Result<T>) -> SocketResult<T> {
    result.map_err(wasmtime_wasi::p3::sockets::SocketError::trap)
}

impl<T> HostUdpSocketWithStore<T> for GuestSockets {
    async fn send(
        store: &Accessor<T, Self>,
        socket: Resource<UdpSocket>,
        data: Vec<u8>,
        remote_address: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        let (bound, to) = store.with(|mut view| -> SocketResult<_> {
            let mut view = view.get();
            let net = Arc::clone(view.net);
            let udp = trap(view.udp_p3(&socket))?;
            check_size(&data)?;
            let to = udp.destination(remote_address.map(SocketAddr::from))?;
            Ok((udp.bound_or_bind(&net)?, to))
        })?;
        Ok(udp::send(&bound, to, &data).await?)
    }

    async fn receive(
        store: &Accessor<T, Self>,
        socket: Resource<UdpSocket>,
    ) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let bound = store.with(|mut view| -> SocketResult<_> {
            Ok(Arc::clone(trap(view.get().udp_p3(&socket))?.bound()?))
        })?;
        match bound.receive().await {
            Ok(Arrived { data, from }) => Ok((data.to_vec(), from.into())),
            Err(Refused(kind)) => Err(Code::from(kind).into()),
        }
    }
}

impl HostUdpSocket for SocketsView<'_> {
    async fn create(
        &mut self,
        address_family: IpAddressFamily,
    ) -> SocketResult<Resource<UdpSocket>> {
        let slot = self.net.socket().ok_or(Code::SocketLimit)?;
        let socket = Udp::new(slot, is_ipv6(address_family));
        Ok(theirs(&trap(self.table.push(socket).map_err(Into::into))?))
    }

    async fn bind(
        &mut self,
        socket: Resource<UdpSocket>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let net = Arc::clone(self.net);
        Ok(trap(self.udp_p3(&socket))?.bind(&net, local_address.into())?)
    }

    async fn connect(
        &mut self,
        socket: Resource<UdpSocket>,
        remote_address: IpSocketAddress,
    ) -> SocketResult<()> {
        let net = Arc::clone(self.net);
        Ok(trap(self.udp_p3(&socket))?.connect(&net, remote_address.into())?)
    }

    fn disconnect(&mut self, socket: Resource<UdpSocket>) -> SocketResult<()> {
        Ok(trap(self.udp_p3(&socket))?.disconnect()?)
    }

    fn get_local_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(trap(self.udp_p3(&socket))?.local_address()?.into())
    }

    fn get_remote_address(&mut self, socket: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(trap(self.udp_p3(&socket))?.remote_address()?.into())
    }

    fn get_address_family(
        &mut self,
        socket: Resource<UdpSocket>,
    ) -> wasmtime::Result<IpAddressFamily> {
        Ok(family(self.udp_p3(&socket)?.is_ipv6()))
    }

    fn get_unicast_hop_limit(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(trap(self.udp_p3(&socket))?.options().hop_limit)
    }

    fn set_unicast_hop_limit(
        &mut self,
        socket: Resource<UdpSocket>,
        value: u8,
    ) -> SocketResult<()> {
        self.set_udp_option_p3(&socket, |options| options.set_hop_limit(value))
    }

    fn get_receive_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(trap(self.udp_p3(&socket))?.options().receive_buffer_size)
    }

    fn set_receive_buffer_size(
        &mut self,
        socket: Resource<UdpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_udp_option_p3(&socket, |options| options.set_receive_buffer_size(value))
    }

    fn get_send_buffer_size(&mut self, socket: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(trap(self.udp_p3(&socket))?.options().send_buffer_size)
    }

    fn set_send_buffer_size(
        &mut self,
        socket: Resource<UdpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_udp_option_p3(&socket, |options| options.set_send_buffer_size(value))
    }

    fn drop(&mut self, socket: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Udp>::new_own(socket.rep()))?;
        Ok(())
    }
}
