//! The ports of this node that lead to Services: node ports, ports of load balancers, and ports at
//! which load balancers ask whether this node has endpoints. They come and go with the Services.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Mesh;
use super::balancer::Backend;
use super::cidr::Cidr;
use super::policy::Origin;
use super::routes::{Place, ServiceKey};
use super::splice::splice;
use crate::net;

/// Connections to all ports of this node at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// Pause after a failed accept: the process is out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Door {
    Tcp(u16),
    Udp(u16),
}

impl Door {
    fn port(self) -> u16 {
        match self {
            Self::Tcp(port) | Self::Udp(port) => port,
        }
    }
}

/// What is behind a port of this node.
#[derive(Debug, Clone)]
pub(super) enum DoorRoute {
    /// A port of a Service.
    Service { service: ServiceKey, backend: Arc<Backend>, source_ranges: Vec<Cidr> },
    /// How many endpoints of the Service are on this node.
    Health { service: ServiceKey, count: usize },
}

impl DoorRoute {
    /// Whether clients with this address may come in.
    pub(super) fn admits(&self, client: IpAddr) -> bool {
        match self {
            Self::Service { source_ranges, .. } => {
                let client = client.to_canonical();
                source_ranges.is_empty() || source_ranges.iter().any(|range| range.contains(client))
            }
            Self::Health { .. } => true,
        }
    }
}

/// The open listeners.
#[derive(Debug)]
pub(super) struct NodePorts {
    ip: Option<IpAddr>,
    open: Mutex<BTreeMap<Door, Listener>>,
    /// Those that could not be opened, so that each is told once.
    closed: Mutex<BTreeSet<Door>>,
    connections: Arc<Semaphore>,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    cancel: CancellationToken,
}

impl NodePorts {
    pub(super) fn new(ip: Option<IpAddr>) -> Self {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { ip, open: Mutex::default(), closed: Mutex::default(), connections }
    }

    /// Those of TCP.
    pub(super) fn open(&self) -> BTreeMap<u16, SocketAddr> {
        let open = self.open.lock();
        let tcp = open.iter().filter(|(door, _)| matches!(door, Door::Tcp(_)));
        tcp.map(|(door, listener)| (door.port(), listener.address)).collect()
    }

    /// Those of UDP.
    pub(super) fn open_udp(&self) -> BTreeMap<u16, SocketAddr> {
        let open = self.open.lock();
        let udp = open.iter().filter(|(door, _)| matches!(door, Door::Udp(_)));
        udp.map(|(door, listener)| (door.port(), listener.address)).collect()
    }

    /// Opens and closes listeners until they are those `wanted`. A port that cannot be opened is
    /// tried again at the next change.
    pub(super) fn sync(&self, wanted: &[Door], mesh: &Mesh) {
        let Some(ip) = self.ip else { return };
        let mut open = self.open.lock();
        open.retain(|door, listener| {
            let is_wanted = wanted.contains(door);
            if !is_wanted {
                info!(?door, "node port closed");
                // Connections that run go on; only the listener ends.
                listener.cancel.cancel();
            }
            is_wanted
        });
        let mut closed = self.closed.lock();
        closed.retain(|door| wanted.contains(door));
        for door in wanted {
            if open.contains_key(door) {
                continue;
            }
            let cancel = mesh.0.tasks.token().child_token();
            let connections = &self.connections;
            match mesh.open_door(*door, SocketAddr::new(ip, door.port()), &cancel, connections) {
                Ok(address) => {
                    info!(?door, "node port opened");
                    closed.remove(door);
                    open.insert(*door, Listener { address, cancel });
                }
                Err(err) if closed.insert(*door) => warn!(?door, %err, "cannot open node port"),
                Err(err) => debug!(?door, %err, "still cannot open node port"),
            }
        }
    }
}

impl Mesh {
    fn open_door(
        &self,
        door: Door,
        at: SocketAddr,
        cancel: &CancellationToken,
        connections: &Arc<Semaphore>,
    ) -> io::Result<SocketAddr> {
        match door {
            Door::Tcp(_) => {
                let listener = std::net::TcpListener::bind(at)?;
                listener.set_nonblocking(true)?;
                let listener = TcpListener::from_std(listener)?;
                let address = listener.local_addr()?;
                self.spawn_node_port(door, listener, cancel.clone(), Arc::clone(connections));
                Ok(address)
            }
            Door::Udp(_) => {
                let socket = std::net::UdpSocket::bind(at)?;
                socket.set_nonblocking(true)?;
                let socket = UdpSocket::from_std(socket)?;
                let address = socket.local_addr()?;
                self.spawn_node_port_udp(door, socket, cancel.clone());
                Ok(address)
            }
        }
    }

    fn spawn_node_port(
        &self,
        door: Door,
        listener: TcpListener,
        cancel: CancellationToken,
        connections: Arc<Semaphore>,
    ) {
        let mesh = self.clone();
        self.0.tasks.spawn("node-port", move |_| async move {
            let accepting = async {
                loop {
                    let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
                    let (client, from) = match listener.accept().await {
                        Ok(accepted) => accepted,
                        Err(err) => {
                            warn!(?door, %err, "cannot accept a connection");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let serving = mesh.clone();
                    mesh.0.tasks.spawn_until_cancelled("node-port-connection", async move {
                        serving.serve_node_port(door, client, from).await;
                        drop(permit);
                    });
                }
            };
            let _ = cancel.run_until_cancelled(accepting).await;
        });
    }

    async fn serve_node_port(&self, door: Door, client: TcpStream, from: SocketAddr) {
        self.0.metrics.node_port_connections.inc();
        let ip = from.ip().to_canonical();
        let (route, place) = {
            let table = self.0.table.load();
            (table.door(door).cloned(), table.routes.place_of(ip))
        };
        if place != Place::Outside {
            // Pods come by other ways.
            debug!(?door, peer = %from, "a client with a pod's address is not let in");
            return;
        }
        let Some(route) = route.filter(|route| route.admits(ip)) else { return };
        let (service, backend) = match route {
            DoorRoute::Service { service, backend, .. } => (service, backend),
            DoorRoute::Health { service, count } => {
                return super::health_port::serve(client, &service, count).await;
            }
        };
        net::attend(&client);
        let backend = self.for_client(backend, &ip.to_string());
        match self.connect_backend(&backend, Origin::client(from.ip()), Some(from)).await {
            Ok(pod) => splice(client, pod, self.0.tasks.token()).await,
            Err(err) => {
                let (namespace, name) = &service;
                debug!(?door, namespace, name, %err, "no endpoint for a node port connection");
                // A reset: nothing was served, which an orderly end would not say.
                let _ = client.set_zero_linger();
            }
        }
    }
}
