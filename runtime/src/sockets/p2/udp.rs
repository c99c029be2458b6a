//! `wasi:sockets/udp` and `udp-create-socket` 0.2.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Network,
};
use wasmtime_wasi::p2::bindings::sockets::udp::{
    Host, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram,
    IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream,
};
use wasmtime_wasi::p2::bindings::sockets::udp_create_socket;
use wasmtime_wasi::p2::{SocketError, SocketResult, UdpSocket};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::{DynPollable, Pollable, subscribe};

use super::{SocketsView, family, is_ipv6, ours, theirs};
use crate::network::{Arrived, DatagramSocket, Refused, SendError};
use crate::sockets::code::Code;
use crate::sockets::options::Options;
use crate::sockets::udp::{Udp, check_size, destination};

/// Datagrams of one call.
const DATAGRAMS_MAX: usize = 16;
/// Bytes after which one call brings no further datagram.
const RECEIVE_BYTES_MAX: usize = 64 << 10;

/// A socket, and whether the guest has begun to bind it.
struct Socket {
    udp: Udp,
    is_binding: bool,
}

#[async_trait]
impl Pollable for Socket {
    // No operation of the socket itself takes time.
    async fn ready(&mut self) {}
}

/// Brings what arrives.
struct Incoming {
    socket: Arc<DatagramSocket>,
}

#[async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        self.socket.readable().await;
    }
}

/// Takes what is to be sent.
struct Outgoing {
    socket: Arc<DatagramSocket>,
    is_ipv6: bool,
    peer: Option<SocketAddr>,
    /// Datagrams that the next call may bring.
    permits: usize,
    /// The flow that had no room.
    full: Option<mpsc::Sender<Bytes>>,
}

impl Outgoing {
    fn is_full(&mut self) -> bool {
        let is_full = |flow: &mpsc::Sender<_>| flow.capacity() == 0 && !flow.is_closed();
        if !self.full.as_ref().is_some_and(is_full) {
            self.full = None;
        }
        self.full.is_some()
    }

    /// Whether it was sent; `false` if it has to wait.
    fn send(&mut self, datagram: &OutgoingDatagram) -> Result<bool, Code> {
        check_size(&datagram.data)?;
        let to = datagram.remote_address.map(SocketAddr::from);
        let to = destination(self.is_ipv6, self.peer, to)?;
        match self.socket.try_send(to, &datagram.data) {
            Ok(()) => Ok(true),
            Err(SendError::Full(flow)) => {
                self.full = Some(flow);
                Ok(false)
            }
            Err(SendError::Unreachable) => Err(Code::InvalidArgument),
        }
    }
}

#[async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        if let Some(flow) = &self.full {
            // An error says that the flow has ended: then there is nothing to wait for.
            drop(flow.reserve().await);
        }
    }
}

type Streams = (Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>);

impl SocketsView<'_> {
    fn udp(&mut self, this: &Resource<UdpSocket>) -> SocketResult<&mut Udp> {
        Ok(&mut self.table.get_mut(&ours::<_, Socket>(this))?.udp)
    }

    fn set_udp_option(
        &mut self,
        this: &Resource<UdpSocket>,
        change: impl FnOnce(&mut Options) -> Result<(), Code>,
    ) -> SocketResult<()> {
        Ok(self.udp(this)?.set_option(change)?)
    }
}

impl Host for SocketsView<'_> {}

impl udp_create_socket::Host for SocketsView<'_> {
    async fn create_udp_socket(
        &mut self,
        family: IpAddressFamily,
    ) -> SocketResult<Resource<UdpSocket>> {
        let slot = self.net.socket().ok_or(Code::SocketLimit)?;
        let socket = Socket { udp: Udp::new(slot, is_ipv6(family)), is_binding: false };
        Ok(theirs(&self.table.push(socket)?))
    }
}

impl HostUdpSocket for SocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<UdpSocket>,
        network: Resource<Network>,
        local_address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.check(&network)?;
        let net = Arc::clone(self.net);
        let socket = self.table.get_mut(&ours::<_, Socket>(&this))?;
        if socket.is_binding {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        socket.udp.bind(&net, local_address.into())?;
        socket.is_binding = true;
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<UdpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&ours::<_, Socket>(&this))?;
        if !std::mem::take(&mut socket.is_binding) {
            return Err(ErrorCode::NotInProgress.into());
        }
        Ok(())
    }

    async fn stream(
        &mut self,
        this: Resource<UdpSocket>,
        remote_address: Option<IpSocketAddress>,
    ) -> SocketResult<Streams> {
        let this = ours::<_, Socket>(&this);
        let is_stream =
            |child: &dyn std::any::Any| child.is::<Incoming>() || child.is::<Outgoing>();
        if self.table.iter_children(&this)?.any(|child| is_stream(child)) {
            let words = "the streams of the UDP socket are not dropped yet";
            return Err(SocketError::trap(wasmtime::format_err!("{words}")));
        }
        let net = Arc::clone(self.net);
        let udp = &mut self.table.get_mut(&this)?.udp;
        // Unlike in WASI 0.3, it has to be bound by the guest.
        let socket = Arc::clone(udp.bound()?);
        match remote_address {
            Some(remote) => udp.connect(&net, remote.into())?,
            None if udp.peer().is_some() => udp.disconnect()?,
            None => {}
        }
        let (is_ipv6, peer) = (udp.is_ipv6(), udp.peer());
        let incoming = Incoming { socket: Arc::clone(&socket) };
        let outgoing = Outgoing { socket, is_ipv6, peer, permits: 0, full: None };
        let incoming = self.table.push_child(incoming, &this)?;
        let outgoing = self.table.push_child(outgoing, &this)?;
        Ok((theirs(&incoming), theirs(&outgoing)))
    }

    fn local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(self.udp(&this)?.local_address()?.into())
    }

    fn remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(self.udp(&this)?.remote_address()?.into())
    }

    fn address_family(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(family(self.table.get(&ours::<_, Socket>(&this))?.udp.is_ipv6()))
    }

    fn unicast_hop_limit(&mut self, this: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(self.udp(&this)?.options().hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, this: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        self.set_udp_option(&this, |options| options.set_hop_limit(value))
    }

    fn receive_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&this)?.options().receive_buffer_size)
    }

    fn set_receive_buffer_size(
        &mut self,
        this: Resource<UdpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        self.set_udp_option(&this, |options| options.set_receive_buffer_size(value))
    }

    fn send_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&this)?.options().send_buffer_size)
    }

    fn set_send_buffer_size(&mut self, this: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        self.set_udp_option(&this, |options| options.set_send_buffer_size(value))
    }

    fn subscribe(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, ours::<_, Socket>(&this))
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Socket>::new_own(this.rep()))?;
        Ok(())
    }
}

impl HostIncomingDatagramStream for SocketsView<'_> {
    fn receive(
        &mut self,
        this: Resource<IncomingDatagramStream>,
        max_results: u64,
    ) -> SocketResult<Vec<IncomingDatagram>> {
        let incoming = self.table.get(&ours::<_, Incoming>(&this))?;
        let max = usize::try_from(max_results).unwrap_or(usize::MAX).min(DATAGRAMS_MAX);
        let (mut datagrams, mut bytes) = (Vec::new(), 0);
        while datagrams.len() < max && bytes < RECEIVE_BYTES_MAX {
            match incoming.socket.try_receive() {
                None => break,
                Some(Ok(Arrived { data, from })) => {
                    bytes += data.len();
                    let data = data.to_vec();
                    datagrams.push(IncomingDatagram { data, remote_address: from.into() });
                }
                // An error comes before what waits, so nothing was taken.
                Some(Err(Refused(kind))) => return Err(Code::from(kind).into()),
            }
        }
        Ok(datagrams)
    }

    fn subscribe(
        &mut self,
        this: Resource<IncomingDatagramStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, ours::<_, Incoming>(&this))
    }

    fn drop(&mut self, this: Resource<IncomingDatagramStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Incoming>::new_own(this.rep()))?;
        Ok(())
    }
}

impl HostOutgoingDatagramStream for SocketsView<'_> {
    fn check_send(&mut self, this: Resource<OutgoingDatagramStream>) -> SocketResult<u64> {
        let outgoing = self.table.get_mut(&ours::<_, Outgoing>(&this))?;
        outgoing.permits = if outgoing.is_full() { 0 } else { DATAGRAMS_MAX };
        Ok(u64::try_from(outgoing.permits).unwrap_or_default())
    }

    fn send(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
        datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        let outgoing = self.table.get_mut(&ours::<_, Outgoing>(&this))?;
        if datagrams.is_empty() {
            return Ok(0);
        }
        if datagrams.len() > std::mem::take(&mut outgoing.permits) {
            let words = "more datagrams than check-send permits";
            return Err(SocketError::trap(wasmtime::format_err!("{words}")));
        }
        let mut sent = 0;
        for datagram in &datagrams {
            match outgoing.send(datagram) {
                Ok(true) => sent += 1,
                Ok(false) => break,
                // Told by the next call, if it is still so.
                Err(_) if sent > 0 => break,
                Err(code) => return Err(code.into()),
            }
        }
        Ok(sent)
    }

    fn subscribe(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, ours::<_, Outgoing>(&this))
    }

    async fn drop(&mut self, this: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Outgoing>::new_own(this.rep()))?;
        Ok(())
    }
}
