//! Judges what the mesh is about to open, on both of its ends.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::denials::Denial;
use super::origin::{Caller, Origin, PodOwner, Sender};
use super::table::{Incoming, Outgoing, PodRef, Policies, Ruling};
use crate::mesh::Mesh;
use crate::mesh::endpoint::EndpointState;
use crate::mesh::nodes::NodeRoute;
use crate::mesh::routes::{Place, Protocol};

/// How long a connection waits for the table to hear of a pod that it does not know yet.
const SETTLE_MAX: Duration = Duration::from_secs(3);

/// Which policies are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mesh) enum Way {
    /// Those of the pod that is asked.
    Ingress,
    /// Those of the pod that asks.
    Egress,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A network policy forbids it. Give up: no other endpoint is tried, as in Kubernetes, where
/// policies are asked after the endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("denied by a network policy ({})", .0.name())]
pub(in crate::mesh) struct Denied(pub(in crate::mesh) Way);

impl From<Denied> for io::Error {
    /// A guest sees a refused connection.
    fn from(denied: Denied) -> Self {
        Self::new(io::ErrorKind::ConnectionRefused, denied)
    }
}

/// Whether a policy, not the endpoint, is why there is no connection.
pub(in crate::mesh) fn is_denied(err: &io::Error) -> bool {
    err.get_ref().is_some_and(|inner| inner.is::<Denied>())
}

impl<'a> From<Caller<'a>> for PodRef<'a> {
    fn from(caller: Caller<'a>) -> Self {
        Self { namespace: caller.namespace, uid: caller.uid }
    }
}

impl<'a> From<&'a PodOwner> for PodRef<'a> {
    fn from(owner: &'a PodOwner) -> Self {
        Self { namespace: &owner.namespace, uid: &owner.uid }
    }
}

impl Mesh {
    /// Puts other policies in force, for everything that is opened from now on. What is open stays.
    pub fn set_policies(&self, policies: Policies) {
        self.0.policies.store(policies.into());
        self.0.policies_changed.send_modify(|count| *count = count.wrapping_add(1));
        // The next request asks anew.
        self.0.ingress.forget_http2();
    }

    /// Judges what `origin` is about to open to an endpoint: by the policies of the pod that asks,
    /// and by those of the pod that is asked if it is on this node.
    pub(in crate::mesh) async fn admit(
        &self,
        origin: Origin<'_>,
        endpoint: &EndpointState,
        protocol: Protocol,
    ) -> Result<(), Denied> {
        if self.0.policies.load().is_empty() {
            return Ok(());
        }
        let to = endpoint.address;
        let owner = match endpoint.place {
            Place::Local => self.0.local.owner(to.ip()),
            Place::Node(_) | Place::Outside => None,
        };
        if let Origin::Pod(caller) = origin {
            let way = match (&endpoint.place, &owner) {
                (Place::Node(node), _) => Outgoing::There { node },
                (Place::Local, Some(owner)) => Outgoing::Here(owner.into()),
                // Nobody is there.
                (Place::Local, None) => Outgoing::Outside,
                (Place::Outside, _) => Outgoing::Outside,
            };
            let judged =
                self.settled(|policies| policies.egress(caller.into(), protocol, to, way)).await;
            self.tell(judged, (Way::Egress, protocol, to), caller.uid, None)?;
        }
        let Some(owner) = owner else { return Ok(()) };
        let table = self.0.table.load_full();
        let me = table.routes.nodes.get(&self.0.node_name);
        let client;
        let from = match origin {
            Origin::Pod(caller) => Incoming::Pod {
                uid: caller.uid,
                node: &self.0.node_name,
                ranges: me.map_or(&[], |node| &node.pod_cidrs),
            },
            Origin::Node => Incoming::Host(addresses(me)),
            Origin::Client(ip) => {
                client = [ip];
                Incoming::Host(&client)
            }
        };
        let judged = self
            .settled(|policies| policies.ingress((&owner).into(), protocol, to.port(), from))
            .await;
        if judged {
            return Ok(());
        }
        let sender = Sender::from(origin);
        self.tell(
            judged,
            (Way::Ingress, protocol, to),
            &owner.uid,
            Some((&sender, &self.0.node_name)),
        )
    }

    /// Judges what another node brings for a pod of this one.
    pub(in crate::mesh) async fn admit_peer(
        &self,
        peer: &str,
        sender: &Sender,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Result<(), Denied> {
        if self.0.policies.load().is_empty() {
            return Ok(());
        }
        let Some(owner) = self.0.local.owner(to.ip()) else { return Ok(()) };
        let table = self.0.table.load_full();
        let node = table.routes.nodes.get(peer);
        let client;
        let from = match sender {
            Sender::Pod(uid) => {
                Incoming::Pod { uid, node: peer, ranges: node.map_or(&[], |node| &node.pod_cidrs) }
            }
            Sender::Node => Incoming::Host(addresses(node)),
            // A node speaks for clients outside, and not for others' pods in their name.
            Sender::Client(ip) if table.routes.place_of(*ip) == Place::Outside => {
                client = [*ip];
                Incoming::Host(&client)
            }
            Sender::Client(_) | Sender::Untold => Incoming::Untold,
        };
        let judged = self
            .settled(|policies| policies.ingress((&owner).into(), protocol, to.port(), from))
            .await;
        self.tell(judged, (Way::Ingress, protocol, to), &owner.uid, Some((sender, peer)))
    }

    /// Asks the table, again and again while it may still hear of a pod.
    async fn settled(&self, ask: impl Fn(&Policies) -> Ruling) -> bool {
        match ask(&self.0.policies.load()) {
            Ruling::Allowed => return true,
            Ruling::Denied => return false,
            Ruling::Unsettled => {}
        }
        let mut changed = self.0.policies_changed.subscribe();
        let settling = async {
            loop {
                changed.borrow_and_update();
                match ask(&self.0.policies.load()) {
                    Ruling::Allowed => return true,
                    Ruling::Denied => return false,
                    Ruling::Unsettled => {}
                }
                if changed.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(SETTLE_MAX, settling).await.unwrap_or(false)
    }

    fn tell(
        &self,
        is_allowed: bool,
        (way, protocol, to): (Way, Protocol, SocketAddr),
        uid: &str,
        sender: Option<(&Sender, &str)>,
    ) -> Result<(), Denied> {
        if is_allowed {
            return Ok(());
        }
        let policies = self.0.policies.load();
        let other = sender.map(|(sender, node)| sender.words(node, &policies));
        let other = other.unwrap_or_else(|| to.to_string());
        let denial = Denial { way, protocol, to, pod: policies.pod(uid), other: &other };
        self.0.metrics.policy_denials.denied(&denial, self.now_ms());
        Err(Denied(way))
    }
}

fn addresses(node: Option<&NodeRoute>) -> &[IpAddr] {
    node.map_or(&[], |node| &node.addresses)
}
