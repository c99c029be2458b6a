//! NodePorts: TCP listeners that come and go with the Services that ask for them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Mesh;
use super::splice::splice;

/// Connections to all NodePorts of this node at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// Pause after a failed accept: the process is out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The open listeners.
#[derive(Debug)]
pub(super) struct NodePorts {
    ip: Option<IpAddr>,
    open: Mutex<BTreeMap<u16, Listener>>,
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
        Self { ip, open: Mutex::default(), connections }
    }

    pub(super) fn open(&self) -> BTreeMap<u16, SocketAddr> {
        self.open.lock().iter().map(|(port, listener)| (*port, listener.address)).collect()
    }

    /// Opens and closes listeners until they are those `wanted`. A port that cannot be opened is
    /// tried again at the next change.
    pub(super) fn sync(&self, wanted: &[u16], mesh: &Mesh) {
        let Some(ip) = self.ip else { return };
        let mut open = self.open.lock();
        open.retain(|port, listener| {
            let is_wanted = wanted.contains(port);
            if !is_wanted {
                info!(port, "node port closed");
                // Connections that run go on; only the listener ends.
                listener.cancel.cancel();
            }
            is_wanted
        });
        for port in wanted {
            if open.contains_key(port) {
                continue;
            }
            match listen(SocketAddr::new(ip, *port)) {
                Ok((listener, address)) => {
                    info!(port, "node port opened");
                    let cancel = mesh.0.tasks.token().child_token();
                    open.insert(*port, Listener { address, cancel: cancel.clone() });
                    mesh.spawn_node_port(*port, listener, cancel, Arc::clone(&self.connections));
                }
                Err(err) => warn!(port, %err, "cannot open node port"),
            }
        }
    }
}

fn listen(at: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Mesh {
    fn spawn_node_port(
        &self,
        port: u16,
        listener: TcpListener,
        cancel: CancellationToken,
        connections: Arc<Semaphore>,
    ) {
        let mesh = self.clone();
        self.0.tasks.spawn("node-port", move |_| async move {
            let accepting = async {
                loop {
                    let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
                    let client = match listener.accept().await {
                        Ok((client, _)) => client,
                        Err(err) => {
                            warn!(port, %err, "cannot accept a connection");
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let serving = mesh.clone();
                    mesh.0.tasks.spawn_until_cancelled("node-port-connection", async move {
                        serving.serve_node_port(port, client).await;
                        drop(permit);
                    });
                }
            };
            let _ = cancel.run_until_cancelled(accepting).await;
        });
    }

    async fn serve_node_port(&self, port: u16, client: TcpStream) {
        self.0.metrics.node_port_connections.inc();
        let Some(backend) = self.0.table.load().node_port(port) else { return };
        // Fails only on a connection that is gone already.
        let _ = client.set_nodelay(true);
        match self.connect_backend(&backend).await {
            Ok(pod) => splice(client, pod, self.0.tasks.token()).await,
            Err(err) => debug!(port, %err, "no endpoint for a node port connection"),
        }
    }
}
