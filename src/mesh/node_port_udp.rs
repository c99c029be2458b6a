//! Node ports of UDP: each client address is a flow, which keeps the endpoint that its first
//! datagram was given until it is silent for a while or the endpoint is no longer the Service's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use super::Mesh;
use super::balancer::{Backend, Tier};
use super::endpoint::EndpointState;
use super::node_port::{Door, DoorRoute};
use super::policy::Origin;
use super::routes::Place;
use super::table::Table;
use super::udp::{DATAGRAM_BYTES_MAX, Datagrams};

/// Clients of one port at once; datagrams of those beyond are lost.
const FLOWS_MAX: usize = 1024;
/// Datagrams of one client that wait; those beyond are lost.
const WAITING_MAX: usize = 32;
/// Silence after which a flow ends: what connection tracking allows a flow with answers.
const FLOW_IDLE_MAX: Duration = Duration::from_secs(120);
/// Pause after the socket failed.
const PAUSE: Duration = Duration::from_millis(100);

/// One client of one port.
struct Flow {
    mesh: Mesh,
    door: Door,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    endpoint: Arc<EndpointState>,
    incoming: mpsc::Receiver<Bytes>,
}

impl Mesh {
    pub(super) fn spawn_node_port_udp(
        &self,
        door: Door,
        socket: UdpSocket,
        cancel: CancellationToken,
    ) {
        let mesh = self.clone();
        self.0.tasks.spawn("node-port-udp", move |_| async move {
            let serving = mesh.serve_node_port_udp(door, Arc::new(socket));
            let _ = cancel.run_until_cancelled(serving).await;
        });
    }

    async fn serve_node_port_udp(&self, door: Door, socket: Arc<UdpSocket>) {
        let mut flows: BTreeMap<SocketAddr, mpsc::Sender<Bytes>> = BTreeMap::new();
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let (size, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(err) => {
                    // Also how the host tells that a client of before is gone.
                    trace!(?door, %err, "cannot receive a datagram");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let data = Bytes::copy_from_slice(buffer.get(..size).unwrap_or_default());
            let data = match flows.get(&client).map(|flow| flow.try_send(data.clone())) {
                Some(Ok(()) | Err(mpsc::error::TrySendError::Full(_))) => continue,
                Some(Err(mpsc::error::TrySendError::Closed(data))) => data,
                None => data,
            };
            flows.remove(&client);
            if flows.len() >= FLOWS_MAX {
                flows.retain(|_, flow| !flow.is_closed());
            }
            if flows.len() >= FLOWS_MAX {
                debug!(?door, "too many clients of a node port");
                continue;
            }
            if let Some(flow) = self.open_flow(door, client, &socket) {
                // A new channel has room.
                let _ = flow.try_send(data);
                flows.insert(client, flow);
            }
        }
    }

    fn open_flow(
        &self,
        door: Door,
        client: SocketAddr,
        socket: &Arc<UdpSocket>,
    ) -> Option<mpsc::Sender<Bytes>> {
        let table = self.0.table.load_full();
        let route = table.door(door).filter(|route| route.admits(client.ip()))?;
        if table.routes.place_of(client.ip().to_canonical()) != Place::Outside {
            // Pods come by other ways.
            debug!(?door, peer = %client, "a client with a pod's address is not let in");
            return None;
        }
        let DoorRoute::Service { backend, .. } = route else { return None };
        let who = client.ip().to_canonical().to_string();
        let backend = self.for_client(Arc::clone(backend), &who);
        let endpoint = backend.pick(&[], &self.0.dice, self.now_ms())?;
        self.0.metrics.node_port_connections.inc();
        let (sender, incoming) = mpsc::channel(WAITING_MAX);
        let flow = Flow {
            mesh: self.clone(),
            door,
            socket: Arc::clone(socket),
            client,
            endpoint,
            incoming,
        };
        self.0.tasks.spawn_until_cancelled("node-port-flow", flow.run(table));
        Some(sender)
    }
}

impl Flow {
    /// Carries datagrams both ways until the flow is over. `seen_in` is the table that the endpoint
    /// is of.
    async fn run(mut self, mut seen_in: Arc<Table>) {
        let (mut near, far) = Datagrams::pair();
        let only = Backend::new(vec![Arc::clone(&self.endpoint)], |_| Tier::Node);
        let mesh = self.mesh.clone();
        let origin = Origin::client(self.client.ip());
        let carrying = mesh.datagrams_to(&only, origin, self.client, far);
        tokio::pin!(carrying);
        loop {
            tokio::select! {
                data = self.incoming.recv() => {
                    let Some(data) = data else { return };
                    if !self.is_current(&mut seen_in) {
                        // The next datagram begins a new flow, to another endpoint.
                        return;
                    }
                    let _ = near.tx.try_send(data);
                }
                data = near.rx.recv() => {
                    let Some(data) = data else { return };
                    let _ = self.socket.try_send_to(&data, self.client);
                }
                ended = &mut carrying => {
                    if let Err(err) = ended {
                        trace!(door = ?self.door, %err, "a flow of a node port ended");
                    }
                    return;
                }
                () = tokio::time::sleep(FLOW_IDLE_MAX) => return,
            }
        }
    }

    /// Whether the endpoint still is the Service's; looked at when the table has changed.
    fn is_current(&self, seen_in: &mut Arc<Table>) -> bool {
        let table = self.mesh.0.table.load();
        if Arc::ptr_eq(&table, seen_in) {
            return true;
        }
        let Some(DoorRoute::Service { backend, .. }) = table.door(self.door) else { return false };
        let is_there = backend.endpoints.iter().any(|one| Arc::ptr_eq(one, &self.endpoint));
        *seen_in = Arc::clone(&table);
        is_there
    }
}
