//! The policies in force, as one table that is swapped whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::facts::PodFacts;
use super::rules::{Asked, Labels, Other, Policy};
use crate::mesh::cidr::Cidr;
use crate::mesh::routes::Protocol;

/// Everything by which connections are judged. Replaced whole, never edited in place.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// Pods of all nodes, by uid.
    pub(super) pods: BTreeMap<Arc<str>, Arc<PodFacts>>,
    /// The same by node and address.
    pub(super) by_ip: BTreeMap<Arc<str>, BTreeMap<IpAddr, Arc<PodFacts>>>,
    pub(super) namespaces: Arc<BTreeMap<String, Labels>>,
    /// The pods of this node that some policy selects, by uid.
    pub(super) rules: BTreeMap<Arc<str>, Arc<PodRules>>,
    /// Namespaces that have policies, and for which directions.
    pub(super) isolating: Arc<BTreeMap<String, Directions>>,
}

/// What a namespace's policies are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Directions {
    pub(super) has_ingress: bool,
    pub(super) has_egress: bool,
}

/// The policies of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PodRules {
    /// Those that say what may come in; none: everything may.
    pub(super) ingress: Vec<Arc<Policy>>,
    /// Those that say what may go out; none: everything may.
    pub(super) egress: Vec<Arc<Policy>>,
}

/// What the table says of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mesh) enum Ruling {
    Allowed,
    Denied,
    /// Denied by what is known, which is not all: a pod in it is too new.
    Unsettled,
}

/// A pod by what identifies it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodRef<'a> {
    pub(super) namespace: &'a str,
    pub(super) uid: &'a str,
}

/// Who wants to come in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Incoming<'a> {
    /// A pod of the node `node`, whose pods have addresses of `ranges`.
    Pod { uid: &'a str, node: &'a str, ranges: &'a [Cidr] },
    /// No pod: a node or a client outside.
    Host(&'a [IpAddr]),
    /// Nobody said.
    Untold,
}

/// Where a pod wants to go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Outgoing<'a> {
    /// A pod of this node.
    Here(PodRef<'a>),
    /// A pod of another node.
    There { node: &'a str },
    /// No pod.
    Outside,
}

impl Policies {
    /// Whether there is no policy at all.
    pub(in crate::mesh) fn is_empty(&self) -> bool {
        self.isolating.is_empty()
    }

    /// What is known of a pod, for the log.
    pub(super) fn pod(&self, uid: &str) -> Option<&PodFacts> {
        self.pods.get(uid).map(AsRef::as_ref)
    }

    /// May `from` come in at a port of the pod `to` of this node?
    pub(super) fn ingress(
        &self,
        to: PodRef<'_>,
        protocol: Protocol,
        port: u16,
        from: Incoming<'_>,
    ) -> Ruling {
        let Some(directions) = self.isolating.get(to.namespace) else { return Ruling::Allowed };
        if !directions.has_ingress {
            return Ruling::Allowed;
        }
        if matches!(from, Incoming::Pod { uid, .. } if uid == to.uid) {
            return Ruling::Allowed;
        }
        let Some(facts) = self.known(to) else { return Ruling::Unsettled };
        let Some(rules) = self.rules.get(to.uid) else { return Ruling::Allowed };
        if rules.ingress.is_empty() {
            return Ruling::Allowed;
        }
        let asked = Asked { protocol, port, pod: Some(facts) };
        let judge = |other: &Other<'_>| is_allowed(&rules.ingress, true, other, &asked);
        match from {
            Incoming::Host(ips) => {
                settled(judge(&Other { pod: None, namespace_labels: None, ips }))
            }
            Incoming::Untold => settled(judge(&Other::nobody())),
            Incoming::Pod { uid, node, ranges } => {
                let pod = self.pods.get(uid).filter(|pod| pod.node.as_deref() == Some(node));
                let Some(pod) = pod else {
                    return or_unsettled(judge(&Other::nobody()));
                };
                // A node gives its pods addresses of its own range, whatever their status says.
                let is_sound = pod.ips.iter().all(|ip| is_in(ranges, *ip));
                let ips = if is_sound { pod.ips.as_slice() } else { &[] };
                let is_allowed = judge(&self.other(pod, ips));
                if ips.is_empty() { or_unsettled(is_allowed) } else { settled(is_allowed) }
            }
        }
    }

    /// May the pod `from` of this node go to `to`?
    pub(super) fn egress(
        &self,
        from: PodRef<'_>,
        protocol: Protocol,
        to: SocketAddr,
        way: Outgoing<'_>,
    ) -> Ruling {
        let Some(directions) = self.isolating.get(from.namespace) else { return Ruling::Allowed };
        if !directions.has_egress {
            return Ruling::Allowed;
        }
        if matches!(way, Outgoing::Here(pod) if pod.uid == from.uid) {
            return Ruling::Allowed;
        }
        if self.known(from).is_none() {
            return Ruling::Unsettled;
        }
        let Some(rules) = self.rules.get(from.uid) else { return Ruling::Allowed };
        if rules.egress.is_empty() {
            return Ruling::Allowed;
        }
        let pod = match way {
            Outgoing::Here(pod) => self.known(pod),
            Outgoing::There { node } => {
                self.by_ip.get(node).and_then(|pods| pods.get(&to.ip())).map(AsRef::as_ref)
            }
            Outgoing::Outside => None,
        };
        let ips = [to.ip().to_canonical()];
        let asked = Asked { protocol, port: to.port(), pod };
        let other = match pod {
            Some(pod) => self.other(pod, &ips),
            None => Other { pod: None, namespace_labels: None, ips: &ips },
        };
        let is_allowed = is_allowed(&rules.egress, false, &other, &asked);
        match (way, pod) {
            (Outgoing::Outside, _) | (_, Some(_)) => settled(is_allowed),
            _ => or_unsettled(is_allowed),
        }
    }

    /// What is known of a pod of this node.
    fn known(&self, pod: PodRef<'_>) -> Option<&PodFacts> {
        self.pods.get(pod.uid).filter(|facts| facts.namespace == pod.namespace).map(AsRef::as_ref)
    }

    fn other<'a>(&'a self, pod: &'a PodFacts, ips: &'a [IpAddr]) -> Other<'a> {
        Other { pod: Some(pod), namespace_labels: self.namespaces.get(&pod.namespace), ips }
    }
}

impl Other<'static> {
    fn nobody() -> Self {
        Self { pod: None, namespace_labels: None, ips: &[] }
    }
}

fn is_allowed(
    policies: &[Arc<Policy>],
    is_ingress: bool,
    other: &Other<'_>,
    asked: &Asked<'_>,
) -> bool {
    policies.iter().any(|policy| {
        let rules = if is_ingress { &policy.ingress } else { &policy.egress };
        rules.iter().flatten().any(|rule| rule.allows(&policy.namespace, other, asked))
    })
}

fn is_in(ranges: &[Cidr], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(ip))
}

fn settled(is_allowed: bool) -> Ruling {
    if is_allowed { Ruling::Allowed } else { Ruling::Denied }
}

fn or_unsettled(is_allowed: bool) -> Ruling {
    if is_allowed { Ruling::Allowed } else { Ruling::Unsettled }
}
