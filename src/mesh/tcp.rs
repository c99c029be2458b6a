//! Byte connections: to a Service, a pod anywhere, or outside.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;
use tracing::debug;

use super::Mesh;
use super::balancer::Backend;
use super::caller;
use super::decisions::Fault;
use super::endpoint::{EndpointState, InFlight};
use super::outside;
use super::policy::{Caller, Origin, is_denied};
use super::routes::{Place, Protocol};
use super::splice::Counted;
use super::wire::{self, Carries};
use crate::net::BoxIo;

/// Endpoints that are tried for one connection.
const ATTEMPTS_MAX: usize = 3;

impl Mesh {
    /// Opens a byte stream to a Service's address, a pod of any node, or an address outside.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` when nothing listens or no endpoint is ready, `HostUnreachable` when the
    /// pod's node is gone, `TimedOut`, and `PermissionDenied` for the host's own addresses.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the attempt is given up.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<BoxIo> {
        self.connect_as(Origin::Node, None, to).await
    }

    /// As [`Self::connect`], for the socket `from` of the pod `caller` of this node: its network
    /// policies and those of the pod it reaches must allow it, else it is refused.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the attempt is given up.
    pub async fn connect_from(
        &self,
        caller: Caller<'_>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<BoxIo> {
        self.connect_as(Origin::Pod(caller), Some(from), to).await
    }

    async fn connect_as(
        &self,
        origin: Origin<'_>,
        from: Option<SocketAddr>,
        to: SocketAddr,
    ) -> io::Result<BoxIo> {
        let backend = {
            let table = self.0.table.load();
            match table.cluster_ip(to) {
                Some(backend) => backend,
                None if table.is_cluster_ip(to.ip()) => {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                None => Arc::new(table.single(to, |node| self.peer(node))),
            }
        };
        self.connect_backend(&self.for_client(backend, origin.uid()), origin, from).await
    }

    /// Connects to one of a Service's endpoints, which sees `from` as its peer; another one if that
    /// fails.
    pub(super) async fn connect_backend(
        &self,
        backend: &Backend,
        origin: Origin<'_>,
        from: Option<SocketAddr>,
    ) -> io::Result<BoxIo> {
        self.connect_one_of(backend, origin, from).await.map(|(io, _)| io)
    }

    /// The same, and tells which it is.
    pub(super) async fn connect_one_of(
        &self,
        backend: &Backend,
        origin: Origin<'_>,
        from: Option<SocketAddr>,
    ) -> io::Result<(BoxIo, Arc<EndpointState>)> {
        let mut tried: Vec<Arc<EndpointState>> = Vec::new();
        let mut last = io::ErrorKind::ConnectionRefused.into();
        let mut newer: Option<Arc<Backend>> = None;
        while tried.len() < ATTEMPTS_MAX {
            let backend = newer.as_deref().unwrap_or(backend);
            let Some(endpoint) = backend.pick(&tried, &self.0.dice, self.now_ms()) else {
                let Some(awaited) = &backend.awaited else { break };
                newer = Box::pin(self.await_endpoint(awaited, &tried)).await;
                if newer.is_some() { continue } else { break }
            };
            let in_flight = InFlight::new(&endpoint);
            let started = Instant::now();
            match self.connect_endpoint(&endpoint, origin, from).await {
                Ok(io) => {
                    endpoint.succeeded(started.elapsed(), self.now_ms());
                    let io: BoxIo = Box::new(Counted { io, _in_flight: in_flight });
                    return Ok((io, endpoint));
                }
                Err(err) if is_denied(&err) => return Err(err),
                Err(err) => {
                    debug!(endpoint = %endpoint.address, %err, "endpoint not reached");
                    let verdict = backend.failed(&endpoint, Fault::Unreachable, self.now_ms());
                    self.0.metrics.decisions.judged(Fault::Unreachable, verdict);
                    last = err;
                    tried.push(endpoint);
                }
            }
        }
        Err(last)
    }

    pub(super) async fn connect_endpoint(
        &self,
        endpoint: &EndpointState,
        origin: Origin<'_>,
        from: Option<SocketAddr>,
    ) -> io::Result<BoxIo> {
        self.admit(origin, endpoint, Protocol::Tcp).await?;
        let to = endpoint.address;
        match &endpoint.place {
            Place::Local => {
                self.0.local.connect(from.map(|from| caller::shown(from, to.ip())), to).await
            }
            Place::Outside => Ok(Box::new(outside::connect(to).await?)),
            Place::Node(_) => {
                let peer = endpoint.peer.as_ref().ok_or(io::ErrorKind::HostUnreachable)?;
                let conn = wire::connection(peer).await?;
                let from = from.map(|from| caller::shown(from, to.ip()));
                Ok(Box::new(wire::open(&conn, Carries::Tcp { from }, to, origin.into()).await?))
            }
        }
    }

    /// The way to another node, for endpoints.
    pub(super) fn peer(&self, node: &str) -> Option<crate::net::PeerHandle> {
        Some(self.0.peers.as_ref()?.handle(node, crate::net::Alpn::Mesh))
    }
}
