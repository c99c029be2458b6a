//! Who asks: on the node where it is asked, and in the head of a stream to another node.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderValue;
use serde::{Deserialize, Serialize};

use super::table::Policies;

/// Field of a request between nodes with its [`Sender`]. Set by the mesh whatever a guest wrote
/// there, and taken off by the mesh of the other node.
pub(in crate::mesh) const SENDER: http::HeaderName =
    http::HeaderName::from_static("edgeorc-mesh-sender");

/// [`SENDER`] of a node's own ingress.
const NODE: HeaderValue = HeaderValue::from_static("node");
/// Longest uid of a pod.
const UID_BYTES_MAX: usize = 64;

/// A pod of this node, as whoever runs it knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodOwner {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its uid.
    pub uid: Arc<str>,
}

/// A pod of this node that asks for something.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its uid.
    pub uid: &'a str,
}

/// Who asks, on this node.
#[derive(Debug, Clone, Copy)]
pub(in crate::mesh) enum Origin<'a> {
    /// A pod.
    Pod(Caller<'a>),
    /// The ingress: the connection is this node's.
    Node,
    /// A client outside, at a port of this node.
    Client(IpAddr),
}

impl<'a> Origin<'a> {
    /// A client at a port of this node. One on this very machine is the node.
    pub(in crate::mesh) fn client(ip: IpAddr) -> Self {
        let ip = ip.to_canonical();
        if ip.is_loopback() { Self::Node } else { Self::Client(ip) }
    }

    /// Whom session affinity remembers; "" is nobody in particular.
    pub(in crate::mesh) fn uid(&self) -> &'a str {
        match self {
            Self::Pod(caller) => caller.uid,
            Self::Node | Self::Client(_) => "",
        }
    }
}

/// Who asks, as its node says. The receiver believes it of pods that the API has on that node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::mesh) enum Sender {
    /// A pod of that node, by its uid.
    Pod(String),
    /// That node's ingress.
    Node,
    /// A client outside, at a port of that node.
    Client(IpAddr),
    /// A node of an older version does not say.
    Untold,
}

impl From<Origin<'_>> for Sender {
    fn from(origin: Origin<'_>) -> Self {
        match origin {
            Origin::Pod(caller) => Self::Pod(caller.uid.to_owned()),
            Origin::Node => Self::Node,
            Origin::Client(ip) => Self::Client(ip),
        }
    }
}

impl Origin<'_> {
    /// As a field of a request.
    pub(in crate::mesh) fn to_field(self) -> HeaderValue {
        match self {
            Self::Node => NODE,
            Self::Pod(caller) => field(format_args!("pod {}", caller.uid)),
            Self::Client(ip) => field(format_args!("client {ip}")),
        }
    }
}

/// What cannot be a field says nothing, which the other node takes for nobody.
fn field(text: fmt::Arguments<'_>) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).unwrap_or(HeaderValue::from_static(""))
}

impl Sender {
    /// For the log.
    pub(super) fn words(&self, node: &str, policies: &Policies) -> String {
        match self {
            Self::Pod(uid) => match policies.pod(uid) {
                Some(pod) => format!("{}/{}", pod.namespace, pod.name),
                None => format!("pod {uid} of node {node}"),
            },
            Self::Node => format!("node {node}"),
            Self::Client(ip) => ip.to_string(),
            Self::Untold => format!("node {node}, for whom it does not say"),
        }
    }

    /// As [`Origin::to_field`] wrote it.
    pub(in crate::mesh) fn from_field(field: Option<&HeaderValue>) -> Self {
        let Some(text) = field.and_then(|field| field.to_str().ok()) else { return Self::Untold };
        match text.split_once(' ') {
            None if text == "node" => Self::Node,
            Some(("pod", uid)) if !uid.is_empty() && uid.len() <= UID_BYTES_MAX => {
                Self::Pod(uid.to_owned())
            }
            Some(("client", ip)) => ip.parse().map_or(Self::Untold, Self::Client),
            _ => Self::Untold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_read_from_the_field_it_was_written_to() {
        let caller = Caller { namespace: "default", uid: "6a1f" };
        for origin in [
            Origin::Pod(caller),
            Origin::Node,
            Origin::client("192.0.2.1".parse().unwrap()),
            Origin::client("2001:db8::1".parse().unwrap()),
        ] {
            let field = origin.to_field();
            assert_eq!(Sender::from_field(Some(&field)), Sender::from(origin));
        }
        for bad in ["", "pod", "pod ", "client x", "nodes", "node x"] {
            let field = HeaderValue::from_static(bad);
            assert_eq!(Sender::from_field(Some(&field)), Sender::Untold, "{bad}");
        }
        assert_eq!(Sender::from_field(None), Sender::Untold);
    }

    #[test]
    fn a_client_on_the_machine_itself_is_the_node() {
        for ip in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let origin = Origin::client(ip.parse().unwrap());
            assert_eq!(Sender::from(origin), Sender::Node, "{ip}");
        }
    }
}
