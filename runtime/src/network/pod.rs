//! One pod on the network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use super::PIPE_BYTES;
use super::client;
use super::error::{HttpError, Unsent};
use super::ports::{Accepted, BindError, Binding, Listener, Ports, wildcards};
use crate::serve::serve_pipe;
use crate::tasks::Guests;
use crate::types::{Body, BodyError, BoxIo, PodConfig, PodId, Uplink};

/// Peer address when the caller has none.
pub(crate) const UNKNOWN_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Sockets that all guests of one pod may have open at the same time.
const SOCKETS_PER_POD_MAX: usize = 1024;

/// One open socket of a pod.
#[derive(Debug)]
pub(crate) struct SocketSlot(Arc<AtomicUsize>);

impl Drop for SocketSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pod's addresses, ports and ways out.
pub(crate) struct PodNet {
    id: PodId,
    hostname: String,
    ips: Vec<IpAddr>,
    ports: Arc<Ports>,
    sockets: Arc<AtomicUsize>,
    guests: Arc<Guests>,
    uplink: Arc<dyn Uplink>,
    /// Ends the pod's connections that no guest owns.
    over: CancellationToken,
}

impl std::fmt::Debug for PodNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodNet")
            .field("id", &self.id)
            .field("ips", &self.ips)
            .finish_non_exhaustive()
    }
}

impl PodNet {
    pub(crate) fn new(
        pod: &PodConfig,
        guests: Arc<Guests>,
        uplink: Arc<dyn Uplink>,
        over: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: pod.id.clone(),
            hostname: pod.hostname.clone(),
            ips: pod.ips.clone(),
            ports: Ports::new(pod.ips.clone()),
            sockets: Arc::default(),
            guests,
            uplink,
            over,
        })
    }

    pub(crate) fn id(&self) -> &PodId {
        &self.id
    }

    pub(crate) fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    pub(crate) fn ports(&self) -> &Arc<Ports> {
        &self.ports
    }

    pub(crate) fn guests(&self) -> &Arc<Guests> {
        &self.guests
    }

    /// Takes a socket from the pod's number, if there is one left.
    pub(crate) fn socket(&self) -> Option<SocketSlot> {
        let slot = SocketSlot(Arc::clone(&self.sockets));
        // Dropping the slot takes the count back.
        (self.sockets.fetch_add(1, Ordering::Relaxed) < SOCKETS_PER_POD_MAX).then_some(slot)
    }

    /// Binds a port at all of the pod's addresses.
    pub(crate) fn bind_all(&self, port: u16) -> Result<Vec<Binding>, BindError> {
        wildcards(port).into_iter().map(|at| self.ports.bind(at)).collect()
    }

    /// Whether an address is the pod's own.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.ips.contains(&ip)
    }

    /// The pod's address that a peer at `to` sees.
    pub(crate) fn source(&self, to: IpAddr) -> SocketAddr {
        let ip = if to.is_loopback() {
            to
        } else {
            let same_family = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
            self.ips.iter().find(same_family).copied().unwrap_or(UNKNOWN_PEER.ip())
        };
        SocketAddr::new(ip, self.ports.ephemeral())
    }

    /// Connects to a listener of this pod.
    pub(crate) fn dial(self: &Arc<Self>, from: SocketAddr, to: SocketAddr) -> io::Result<BoxIo> {
        match self.ports.listener(to).ok_or(io::ErrorKind::ConnectionRefused)? {
            Listener::Tcp(backlog) => Ok(Box::new(enqueue(&backlog, from, to)?)),
            Listener::Http(service) => {
                let (near, far) = tokio::io::duplex(PIPE_BYTES);
                let over = self.over.clone();
                // Ends with the connection or with the pod.
                drop(self.guests.spawn(serve_pipe(far, service, over)));
                Ok(Box::new(near))
            }
        }
    }

    /// A guest of this pod connects to `to`.
    pub(crate) async fn connect(
        self: Arc<Self>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<BoxIo> {
        if self.is_own(to.ip()) {
            return self.dial(from, to);
        }
        self.uplink.connect(&self.id, to).await
    }

    /// A guest of this pod looks up a name.
    pub(crate) async fn resolve(self: Arc<Self>, name: String) -> Vec<IpAddr> {
        if let Ok(ip) = name.parse() {
            return vec![ip];
        }
        if name == "localhost" {
            return vec![Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
        }
        if name == self.hostname {
            return self.ips.clone();
        }
        self.uplink.resolve(&self.id, &name).await
    }

    /// A request for a listener of this pod.
    pub(crate) async fn http(
        self: Arc<Self>,
        to: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HttpError> {
        match self.ports.listener(to) {
            Some(Listener::Http(service)) => service.call(request).await,
            Some(Listener::Tcp(backlog)) => match enqueue(&backlog, UNKNOWN_PEER, to) {
                Ok(pipe) => client::send(&self.guests, self.over.clone(), pipe, request).await,
                Err(_) => Err(HttpError::Refused(Unsent::new(request))),
            },
            None => Err(HttpError::Refused(Unsent::new(request))),
        }
    }

    /// A guest of this pod sends a request.
    pub(crate) async fn send(
        self: Arc<Self>,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, BodyError> {
        match self.own_address(request.uri()) {
            Some(to) => Ok(self.http(to, request).await?),
            None => self.uplink.http(&self.id, request).await,
        }
    }

    /// The listener's address if the authority names this pod.
    fn own_address(&self, uri: &http::Uri) -> Option<SocketAddr> {
        let authority = uri.authority()?;
        let host = authority.host().trim_matches(['[', ']']);
        let ip = match host {
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            _ => host.parse().ok()?,
        };
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let to = SocketAddr::new(ip, authority.port_u16().unwrap_or(default));
        self.is_own(ip).then_some(to)
    }
}

fn enqueue(
    backlog: &tokio::sync::mpsc::Sender<Accepted>,
    from: SocketAddr,
    to: SocketAddr,
) -> io::Result<tokio::io::DuplexStream> {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    backlog
        .try_send(Accepted { io: Box::new(far), peer: from, local: to })
        .map_err(|_| io::ErrorKind::ConnectionRefused)?;
    Ok(near)
}
