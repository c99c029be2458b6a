//! A UDP socket, for both versions of the interface.

use std::net::SocketAddr;
use std::sync::Arc;

use super::address::{any_address, is_of_family, is_remote};
use super::code::Code;
use super::options::Options;
use crate::network::{DATAGRAM_BYTES_MAX, DatagramSocket, PodNet, SendError, SocketSlot};

/// One socket.
pub(super) struct Udp {
    /// Counts it among the pod's sockets.
    _slot: SocketSlot,
    is_ipv6: bool,
    options: Options,
    bound: Option<Arc<DatagramSocket>>,
    peer: Option<SocketAddr>,
}

impl Udp {
    pub(super) fn new(slot: SocketSlot, is_ipv6: bool) -> Self {
        Self { _slot: slot, is_ipv6, options: Options::udp(), bound: None, peer: None }
    }

    pub(super) fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    pub(super) fn bind(&mut self, net: &Arc<PodNet>, at: SocketAddr) -> Result<(), Code> {
        if self.bound.is_some() {
            return Err(Code::InvalidState);
        }
        if !is_of_family(at, self.is_ipv6) {
            return Err(Code::InvalidArgument);
        }
        self.bound = Some(DatagramSocket::bind(net, at, self.receive_bytes())?);
        Ok(())
    }

    /// The bound socket; binds any port if none is bound.
    pub(super) fn bound_or_bind(&mut self, net: &Arc<PodNet>) -> Result<Arc<DatagramSocket>, Code> {
        if let Some(bound) = &self.bound {
            return Ok(Arc::clone(bound));
        }
        let any = SocketAddr::new(any_address(self.is_ipv6), 0);
        let bound = DatagramSocket::bind(net, any, self.receive_bytes())?;
        Ok(Arc::clone(self.bound.insert(bound)))
    }

    pub(super) fn bound(&self) -> Result<&Arc<DatagramSocket>, Code> {
        self.bound.as_ref().ok_or(Code::InvalidState)
    }

    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Talks to this address only from now on.
    pub(super) fn connect(&mut self, net: &Arc<PodNet>, to: SocketAddr) -> Result<(), Code> {
        if !is_of_family(to, self.is_ipv6) || !is_remote(to) {
            return Err(Code::InvalidArgument);
        }
        self.bound_or_bind(net)?.set_peer(Some(to));
        self.peer = Some(to);
        Ok(())
    }

    pub(super) fn disconnect(&mut self) -> Result<(), Code> {
        self.peer.take().ok_or(Code::InvalidState)?;
        self.bound()?.set_peer(None);
        Ok(())
    }

    /// Where a datagram is to go: to the peer, or to the address that the guest names.
    pub(super) fn destination(&self, to: Option<SocketAddr>) -> Result<SocketAddr, Code> {
        destination(self.is_ipv6, self.peer, to)
    }

    pub(super) fn local_address(&self) -> Result<SocketAddr, Code> {
        let bound = self.bound()?;
        Ok(self.peer.map_or_else(|| bound.address(), |peer| bound.address_towards(peer)))
    }

    pub(super) fn remote_address(&self) -> Result<SocketAddr, Code> {
        self.peer.ok_or(Code::InvalidState)
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn set_option(
        &mut self,
        change: impl FnOnce(&mut Options) -> Result<(), Code>,
    ) -> Result<(), Code> {
        change(&mut self.options)?;
        if let Some(bound) = &self.bound {
            bound.set_bytes_max(self.receive_bytes());
        }
        Ok(())
    }

    fn receive_bytes(&self) -> usize {
        usize::try_from(self.options.receive_buffer_size).unwrap_or(usize::MAX)
    }
}

/// Checks where a datagram of a socket with this peer is to go.
pub(super) fn destination(
    is_ipv6: bool,
    peer: Option<SocketAddr>,
    to: Option<SocketAddr>,
) -> Result<SocketAddr, Code> {
    match (to, peer) {
        (Some(to), _) if !is_of_family(to, is_ipv6) || !is_remote(to) => Err(Code::InvalidArgument),
        (Some(to), Some(peer)) if to != peer => Err(Code::InvalidArgument),
        (Some(to), _) | (None, Some(to)) => Ok(to),
        (None, None) => Err(Code::InvalidArgument),
    }
}

/// Checks the size of a datagram.
pub(super) fn check_size(data: &[u8]) -> Result<(), Code> {
    if data.len() > DATAGRAM_BYTES_MAX { Err(Code::DatagramTooLarge) } else { Ok(()) }
}

/// Sends a datagram; waits while its flow is full.
pub(super) async fn send(bound: &DatagramSocket, to: SocketAddr, data: &[u8]) -> Result<(), Code> {
    bound.send(to, data).await.map_err(|error| match error {
        SendError::Unreachable => Code::InvalidArgument,
        // It waits for that.
        SendError::Full(_) => Code::Other,
    })
}
