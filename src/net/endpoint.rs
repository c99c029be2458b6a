//! One UDP socket: listens, dials, and hands out connections whose peers were checked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::net::config::NetConfig;
use crate::net::connection::{Alpn, Connection};
use crate::net::driver::Drivers;
use crate::net::fabric::Fabric;
use crate::net::identity::{Identity, IdentityError, Peer};
use crate::net::tunnel::Tunnels;
use crate::net::verify;
use crate::net::watchdog::{Silence, Watchdog};
use crate::rt::TaskGroup;

/// Connections that wait to be accepted; more wait with their handshake done.
const BACKLOG_MAX: usize = 64;
/// Pause between two log lines about a flood.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);
/// Packets after which the receiver acknowledges at the latest
/// (draft-ietf-quic-ack-frequency): what it answers mostly carries the acknowledgement before that.
const PACKETS_PER_ACK: u32 = 10;
/// Close code for a peer that has no business with this ALPN.
const CODE_FORBIDDEN: u32 = 2;

/// Why the endpoint did not start. Its text is for the person who started the process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process has the port. Stop it or choose another.
    #[error("address {address}/udp is already in use by another process")]
    InUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address is not this machine's, or the port is not allowed.
    #[error("cannot listen on {address}/udp: {source}")]
    Socket {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificates or limits do not fit.
    #[error("cannot set up QUIC: {0}")]
    Setup(String),
}

/// Why there is no connection. Nothing was sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answered, or the handshake failed. Retry with back-off.
    #[error("cannot connect to {peer} at {address}: {reason}")]
    Failed {
        /// Node expected there, or `?`.
        peer: String,
        /// Where it was tried.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// No address is known for the node and it has not connected itself. Retry when it has.
    #[error("no address known for node {peer}")]
    NoAddress {
        /// Node asked for.
        peer: String,
    },
    /// The last attempts failed and the next is not due yet. Use another node, or retry later.
    #[error("node {peer} is down: {reason}")]
    Down {
        /// Node asked for.
        peer: String,
        /// How the last attempt ended.
        reason: String,
    },
    /// This process is ending. Give up.
    #[error("the endpoint is closed")]
    Closed,
}

/// The node's QUIC endpoint. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quic: quinn::Endpoint,
    drivers: Arc<Drivers>,
    identity: Identity,
    config: NetConfig,
    tasks: TaskGroup,
    watchdog: Arc<Watchdog>,
    tunnels: Tunnels,
    arrived: mpsc::Sender<Connection>,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<Connection>>,
}

/// How much is done for a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    /// Time for the handshake.
    pub(super) timeout: Duration,
    /// How many times as long as others of its kind it may be silent.
    pub(super) strain: u32,
}

impl Endpoint {
    /// Listens on `address` (port 0: the system chooses). Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(
        address: SocketAddr,
        identity: Identity,
        config: NetConfig,
        tasks: &TaskGroup,
    ) -> Result<Self, BindError> {
        Self::bind_on(&Handle::current(), address, identity, config, tasks)
    }

    /// As [`Self::bind`]; packets are worked on by `threads`, all else happens on those of the caller.
    /// Who waits for a peer's packets then does not wait for the caller's other tasks.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind_on(
        threads: &Handle,
        address: SocketAddr,
        identity: Identity,
        config: NetConfig,
        tasks: &TaskGroup,
    ) -> Result<Self, BindError> {
        let tls = identity.quic_server_config().map_err(setup)?;
        let crypto = QuicServerConfig::try_from(tls).map_err(setup)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        // The answers to the dialler's pings tell both ends that the other one lives.
        server.transport_config(transport(&config, None).map(Arc::new).map_err(BindError::Setup)?);
        server.max_incoming(config.handshakes_max);
        let drivers = Arc::new(Drivers::on(threads));
        let (quic, fabric) =
            open(address, identity.node_name(), Some(server), Arc::clone(&drivers) as _)
                .map_err(|source| cannot_bind(address, source))?;
        let (arrived, arrivals) = mpsc::channel(BACKLOG_MAX);
        let tasks = tasks.child();
        let arrivals = tokio::sync::Mutex::new(arrivals);
        let tunnels = Tunnels::new(fabric, identity.clone(), &tasks);
        let watchdog = Arc::new(Watchdog::default());
        let looking = Arc::clone(&watchdog)
            .run(Silence { base: config.idle_timeout, most: config.silence_max });
        tasks.spawn_until_cancelled("quic-watchdog", looking);
        let inner =
            Inner { quic, drivers, identity, config, tasks, watchdog, tunnels, arrived, arrivals };
        let endpoint = Self(Arc::new(inner));
        endpoint.spawn_acceptor();
        Ok(endpoint)
    }

    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.0.quic.local_addr().ok()
    }

    /// Connections that are open, and handshakes that have begun.
    #[cfg(test)]
    pub(super) fn open_connections(&self) -> usize {
        self.0.quic.open_connections()
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &NetConfig {
        &self.0.config
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0.identity
    }

    /// The ways to other nodes that are not UDP.
    #[must_use]
    pub fn tunnels(&self) -> &Tunnels {
        &self.0.tunnels
    }

    /// The next connection on which the peer may open streams: every inbound one, and those that
    /// [`crate::net::Peers`] dialled for Raft, mesh and node (tell them apart by
    /// [`Connection::is_dialled`]). Hand each to [`crate::net::Peers::adopt`], then serve it. `None` when the endpoint is closed. One caller at a time.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn accept(&self) -> Option<Connection> {
        let mut arrivals = self.0.arrivals.lock().await;
        self.0.tasks.token().run_until_cancelled(arrivals.recv()).await.flatten()
    }

    /// Dials `address` and checks that a node of the cluster answers: `expected_node`, if given.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Failed`] or [`ConnectError::Closed`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the attempt is given up.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expected_node: Option<&str>,
        alpn: Alpn,
    ) -> Result<Connection, ConnectError> {
        let effort = Effort { timeout: self.0.config.handshake_timeout, strain: 1 };
        self.connect_within(address, expected_node, alpn, &effort).await
    }

    /// As [`Self::connect`].
    pub(super) async fn connect_within(
        &self,
        address: SocketAddr,
        expected_node: Option<&str>,
        alpn: Alpn,
        effort: &Effort,
    ) -> Result<Connection, ConnectError> {
        let peer = expected_node.unwrap_or("?").to_owned();
        let failed = |reason: String| ConnectError::Failed { peer, address, reason };
        if self.0.tasks.token().is_cancelled() {
            return Err(ConnectError::Closed);
        }
        let tls = verify::client_config(&self.0.identity, expected_node, alpn);
        let dialler = self.0.identity.peer();
        let patience = alpn.patience(&dialler).saturating_mul(effort.strain);
        let keep_alive = self.0.config.keep_alive.saturating_mul(patience);
        let config = transport(&self.0.config, Some(keep_alive));
        let config = match config.and_then(|transport| client(tls, transport)) {
            Ok(config) => config,
            Err(reason) => return Err(failed(reason)),
        };
        let dial = || self.0.quic.connect_with(config, address, "edgeorc.invalid");
        let (quic, home) = self.0.drivers.drive(dial);
        let connecting = match quic {
            Ok(connecting) => connecting,
            Err(err) => return Err(failed(err.to_string())),
        };
        match tokio::time::timeout(effort.timeout, connecting).await {
            Err(_) => Err(failed("no answer in time".to_owned())),
            Ok(Err(err)) => Err(failed(err.to_string())),
            Ok(Ok(quic)) => match peer_of(&quic) {
                Some(peer) => {
                    let conn =
                        Connection::new(quic, peer, alpn, (true, patience), &self.0.config, home);
                    self.0.watchdog.watch(conn.held());
                    Ok(conn)
                }
                None => Err(failed("the peer showed no readable certificate".to_owned())),
            },
        }
    }

    /// Closes every connection and stops listening; returns when the peers were told, or soon after.
    pub async fn close(&self) {
        self.0.tasks.token().cancel();
        self.0.quic.close(0_u32.into(), b"shutting down");
        let _ = tokio::time::timeout(self.0.config.idle_timeout, self.0.quic.wait_idle()).await;
    }

    /// Lets [`Self::accept`] hand out a connection that this side dialled.
    pub(super) async fn offer(&self, conn: Connection) {
        // A closed queue means that nobody serves; the dialler can still use the connection.
        let _ = self.0.arrived.send(conn).await;
    }

    fn spawn_acceptor(&self) {
        let (quic, config) = (self.0.quic.clone(), self.0.config.clone());
        let drivers = Arc::clone(&self.0.drivers);
        let (arrived, tasks) = (self.0.arrived.clone(), self.0.tasks.clone());
        let watchdog = Arc::clone(&self.0.watchdog);
        let complaints = Complaints::default();
        let handshakes = Arc::new(Semaphore::new(config.handshakes_max));
        self.0.tasks.spawn_until_cancelled("quic-accept", async move {
            while let Some(incoming) = quic.accept().await {
                let open = quic.open_connections();
                if open >= config.connections_max {
                    complaints.once(|| warn!(connections = open, "too many connections, refusing"));
                    incoming.refuse();
                    continue;
                }
                let begun = config.handshakes_max - handshakes.available_permits();
                let is_busy = open >= config.connections_until_retry
                    || begun >= config.handshakes_until_retry;
                if is_busy && !incoming.remote_address_validated() {
                    // Fails only when the dialler has proved its address, which was just denied.
                    let _ = incoming.retry();
                    continue;
                }
                let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                    complaints.once(|| warn!("too many handshakes at once, refusing"));
                    incoming.refuse();
                    continue;
                };
                let (arrived, config) = (arrived.clone(), config.clone());
                let drivers = Arc::clone(&drivers);
                let watchdog = Arc::clone(&watchdog);
                tasks.spawn_until_cancelled("quic-handshake", async move {
                    let accepted = tokio::time::timeout(
                        config.handshake_timeout,
                        admit(incoming, &drivers, &config),
                    );
                    let accepted = accepted.await;
                    drop(permit);
                    if let Ok(Some(conn)) = accepted {
                        let count = watchdog.count(conn.peer(), conn.alpn());
                        if count >= config.connections_per_peer_max {
                            debug!(peer = %conn.peer().user, "too many connections of one peer");
                            return conn.close("too many connections");
                        }
                        watchdog.watch(conn.held());
                        // Fails only when the endpoint is gone, and the connection with it.
                        let _ = arrived.send(conn).await;
                    }
                });
            }
        });
    }
}

/// Says once in a while what happens all the time.
#[derive(Debug, Default)]
struct Complaints(parking_lot::Mutex<Option<Instant>>);

impl Complaints {
    fn once(&self, say: impl FnOnce()) {
        let mut last = self.0.lock();
        if last.is_none_or(|at| at.elapsed() >= COMPLAINT_PAUSE) {
            *last = Some(Instant::now());
            say();
        }
    }
}

/// Opens the socket of the node called `name`; `server`: for those who dial it.
pub(super) fn open(
    address: SocketAddr,
    name: &str,
    server: Option<quinn::ServerConfig>,
    runtime: Arc<dyn quinn::Runtime>,
) -> std::io::Result<(quinn::Endpoint, Fabric)> {
    let socket = runtime.wrap_udp_socket(std::net::UdpSocket::bind(address)?)?;
    let fabric = Fabric::new(socket, name);
    let (config, socket) = (quinn::EndpointConfig::default(), Arc::new(fabric.clone()));
    let quic = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime)?;
    Ok((quic, fabric))
}

fn cannot_bind(address: SocketAddr, source: std::io::Error) -> BindError {
    if source.kind() == std::io::ErrorKind::AddrInUse {
        BindError::InUse { address }
    } else {
        BindError::Socket { address, source }
    }
}

/// Finishes the handshake and checks that the peer may use the ALPN it chose.
async fn admit(
    incoming: quinn::Incoming,
    drivers: &Drivers,
    config: &NetConfig,
) -> Option<Connection> {
    let address = incoming.remote_address();
    let (connecting, home) = drivers.drive(|| incoming.accept());
    let connected = match connecting {
        Ok(connecting) => connecting.await,
        Err(err) => Err(err),
    };
    let quic = match connected {
        Ok(quic) => quic,
        Err(err) => {
            debug!(peer.address = %address, %err, "inbound handshake failed");
            return None;
        }
    };
    let data = quic.handshake_data()?.downcast::<HandshakeData>().ok()?;
    let alpn = Alpn::from_bytes(data.protocol.as_deref()?)?;
    let peer = peer_of(&quic).unwrap_or_default();
    if !alpn.admits_dialler(&peer) {
        warn!(peer.address = %address, peer = %peer.user, %alpn, "peer may not use this protocol");
        quic.close(CODE_FORBIDDEN.into(), b"forbidden");
        return None;
    }
    let opened = (false, alpn.patience_of_listener(&peer));
    Some(Connection::new(quic, peer, alpn, opened, config, home))
}

/// Who the verified certificate of a connection names; `None` without one.
fn peer_of(quic: &quinn::Connection) -> Option<Peer> {
    let chain = quic.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Peer::from_certificate(chain.first()?).ok()
}

pub(super) fn client(
    tls: Result<rustls::ClientConfig, IdentityError>,
    transport: quinn::TransportConfig,
) -> Result<quinn::ClientConfig, String> {
    let crypto = QuicClientConfig::try_from(tls.map_err(|err| err.to_string())?)
        .map_err(|err| err.to_string())?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// How a connection behaves whose silences this end breaks after `keep_alive`, if at all.
pub(super) fn transport(
    config: &NetConfig,
    keep_alive: Option<Duration>,
) -> Result<quinn::TransportConfig, String> {
    let mut transport = quinn::TransportConfig::default();
    let idle = config.silence_max.try_into().map_err(|_| "idle timeout is too long".to_owned())?;
    transport
        .keep_alive_interval(keep_alive)
        .max_idle_timeout(Some(idle))
        .stream_receive_window(config.stream_window_bytes.into())
        .receive_window(config.connection_window_bytes.into())
        .send_window(config.send_window_bytes)
        .max_concurrent_bidi_streams(config.streams_max.into())
        .max_concurrent_uni_streams(0_u32.into())
        .datagram_receive_buffer_size(None)
        // A first guess of a LAN's round trip: the default of a third of a second makes the first
        // lost packet cost a second.
        .initial_rtt(Duration::from_millis(50));
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(PACKETS_PER_ACK.into());
    transport.ack_frequency_config(Some(acks));
    Ok(transport)
}

fn setup(err: impl std::fmt::Display) -> BindError {
    BindError::Setup(err.to_string())
}
