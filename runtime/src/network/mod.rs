//! The node's switch: which pod of this node listens at which address.
//!
//! Data in: connections, requests and flows of datagrams for pod addresses, from the mesh; binds,
//! listens, connects and datagrams from guests. Data out: pipes in memory to guests' listeners,
//! requests handed to HTTP components, datagrams in the queues of guests' sockets.
//!
//! # Invariants
//!
//! - Ports belong to pods: the same port of two pods never collides, containers of one pod share
//!   one table and one loopback.
//! - Nothing here opens a host socket.
//! - A listener's queue and a pipe's buffer are bounded; a full queue refuses.
//! - Datagrams that wait are bounded by socket, by flow and by pod; what is beyond is dropped.
//! - A listener that goes with its container is waited for a moment; one that its guest closed is
//!   not.

mod client;
mod datagrams;
mod error;
mod pod;
mod ports;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

pub(crate) use self::datagrams::{Arrived, DATAGRAM_BYTES_MAX, DatagramSocket, Refused, SendError};
pub use self::error::{HttpError, Unsent};
pub(crate) use self::pod::{PodNet, SocketSlot, unknown_peer};
pub(crate) use self::ports::{Accepted, BindError, Binding, Intake, Listener};
use crate::types::{Body, BoxIo, Datagrams};

/// Bytes that one direction of a pipe in memory holds before the writer waits.
pub(crate) const PIPE_BYTES: usize = 64 << 10;

/// The node's switch.
#[derive(Debug, Default)]
pub struct VirtualNetwork {
    pods: ArcSwap<BTreeMap<IpAddr, Arc<PodNet>>>,
}

impl VirtualNetwork {
    /// An empty network.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a pod with this address lives on this node.
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        self.pods.load().contains_key(&ip)
    }

    /// Namespace and uid of the pod of this node that has the address.
    #[must_use]
    pub fn owner(&self, ip: IpAddr) -> Option<(Arc<str>, Arc<str>)> {
        self.pods.load().get(&ip).map(|pod| pod.owner())
    }

    /// Whether something listens at this address on this node.
    #[must_use]
    pub fn is_listening(&self, at: SocketAddr) -> bool {
        self.pods.load().get(&at.ip()).is_some_and(|pod| pod.ports().listener(at).is_some())
    }

    /// Opens a byte stream to a pod on this node. The guest sees an unspecified peer address.
    ///
    /// # Errors
    ///
    /// `HostUnreachable` if no pod here has the address, `ConnectionRefused` if nothing listens at
    /// the port or its backlog is full.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped call leaves no connection behind.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<BoxIo> {
        self.connect_from(unknown_peer(to), to).await
    }

    /// As [`VirtualNetwork::connect`], telling the guest who calls; a caller of another family of
    /// addresses than the guest's is unspecified.
    ///
    /// # Errors
    ///
    /// As [`VirtualNetwork::connect`].
    pub async fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> io::Result<BoxIo> {
        self.pod(to.ip())?.dial(from, to).await
    }

    /// Carries a flow of datagrams to a pod on this node, until one side lets go of it. The guest
    /// sees them come from `from`, or from another port of that address if `from` is taken by
    /// another flow to the same socket; what it sends there goes back on the flow.
    ///
    /// # Errors
    ///
    /// `HostUnreachable` if no pod here has the address, `ConnectionRefused` if no socket is bound
    /// at the port.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped call ends the flow.
    pub async fn datagrams(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        flow: Datagrams,
    ) -> io::Result<()> {
        self.pod(to.ip())?.receive(from, to, flow).await
    }

    fn pod(&self, ip: IpAddr) -> io::Result<Arc<PodNet>> {
        let pod = self.pods.load().get(&ip).map(Arc::clone);
        pod.ok_or_else(|| io::ErrorKind::HostUnreachable.into())
    }

    /// Sends a request to a pod on this node: to an HTTP component directly, to a guest with a
    /// TCP listener by HTTP/1.1 over a pipe in memory.
    ///
    /// # Errors
    ///
    /// See [`HttpError`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped call drops the request; a guest that took it already is not told.
    pub async fn http(
        &self,
        to: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HttpError> {
        let pod = self.pods.load().get(&to.ip()).map(Arc::clone);
        match pod {
            Some(pod) => pod.http(to, request).await,
            None => Err(HttpError::Refused(Unsent::new(request))),
        }
    }

    /// Puts a pod's addresses on the network.
    ///
    /// # Errors
    ///
    /// The address that another pod has already.
    pub(crate) fn attach(&self, pod: &Arc<PodNet>) -> Result<(), IpAddr> {
        let mut taken = None;
        self.pods.rcu(|pods| {
            taken = pod.ips().iter().copied().find(|ip| pods.contains_key(ip));
            let mut pods = BTreeMap::clone(pods);
            if taken.is_none() {
                pods.extend(pod.ips().iter().map(|ip| (*ip, Arc::clone(pod))));
            }
            pods
        });
        taken.map_or(Ok(()), Err)
    }

    /// Takes a pod's addresses off the network.
    pub(crate) fn detach(&self, pod: &Arc<PodNet>) {
        self.pods.rcu(|pods| {
            let mut pods = BTreeMap::clone(pods);
            pods.retain(|_, other| !Arc::ptr_eq(other, pod));
            pods
        });
    }
}
