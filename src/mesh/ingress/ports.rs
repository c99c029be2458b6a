//! Ports of Gateways beside the node's own ingress: listeners that come and go.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::server::Entry;
use crate::mesh::Mesh;

/// Ports that Gateways can have open at once; more are told as closed.
const PORTS_MAX: usize = 64;

/// The open listeners.
#[derive(Debug)]
pub(in crate::mesh) struct GatewayPorts {
    ip: Option<IpAddr>,
    /// Threads that serve them.
    threads: Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<u16, Listener>,
    closed: BTreeMap<u16, String>,
}

#[derive(Debug)]
struct Listener {
    is_tls: bool,
    address: SocketAddr,
    cancel: CancellationToken,
}

impl GatewayPorts {
    pub(in crate::mesh) fn new(ip: Option<IpAddr>, threads: Handle) -> Self {
        Self { ip, threads, state: Mutex::default() }
    }

    /// Opens and closes listeners until they are those `wanted` (with TLS or without). A port that
    /// cannot be opened is tried again at the next change.
    pub(in crate::mesh) fn sync(&self, wanted: &BTreeMap<u16, bool>, mesh: &Mesh) {
        let Some(ip) = self.ip else { return };
        let mut state = self.state.lock();
        let state = &mut *state;
        state.open.retain(|port, listener| {
            let is_wanted = wanted.get(port) == Some(&listener.is_tls);
            if !is_wanted {
                info!(port, "gateway port closed");
                // Connections that run go on; only the listener ends.
                listener.cancel.cancel();
            }
            is_wanted
        });
        state.closed.retain(|port, _| wanted.contains_key(port));
        for (port, is_tls) in wanted {
            if state.open.contains_key(port) {
                continue;
            }
            let opened = if state.open.len() < PORTS_MAX {
                self.listen(SocketAddr::new(ip, *port))
            } else {
                Err(io::Error::other("too many ports"))
            };
            match opened {
                Ok((listener, address)) => {
                    info!(port, "gateway port opened");
                    let cancel = mesh.0.tasks.token().child_token();
                    let one = Listener { is_tls: *is_tls, address, cancel: cancel.clone() };
                    state.open.insert(*port, one);
                    state.closed.remove(port);
                    self.spawn(mesh, listener, Entry { port: *port, is_tls: *is_tls }, cancel);
                }
                Err(err) => {
                    let text = err.to_string();
                    if state.closed.insert(*port, text).is_none() {
                        warn!(port, %err, "cannot open gateway port");
                    }
                }
            }
        }
    }

    fn listen(&self, at: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
        let listener = std::net::TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        let _threads = self.threads.enter();
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    }

    fn spawn(&self, mesh: &Mesh, listener: TcpListener, entry: Entry, cancel: CancellationToken) {
        let serving = mesh.clone();
        let task = async move |_| serving.serve_entry(listener, entry, &cancel).await;
        mesh.0.tasks.spawn_on(&self.threads, "gateway-port", task);
    }
}

impl Mesh {
    /// Ports of Gateways that are open, with the addresses they listen on.
    #[must_use]
    pub fn open_gateway_ports(&self) -> BTreeMap<u16, SocketAddr> {
        let state = self.0.ingress.ports.state.lock();
        state.open.iter().map(|(port, listener)| (*port, listener.address)).collect()
    }

    /// Ports of Gateways that could not be opened, and why.
    #[must_use]
    pub fn closed_gateway_ports(&self) -> BTreeMap<u16, String> {
        self.0.ingress.ports.state.lock().closed.clone()
    }
}
