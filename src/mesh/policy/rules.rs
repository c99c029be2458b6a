//! One NetworkPolicy, read: which pods it selects, and what it allows them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as ApiSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::facts::PodFacts;
use crate::api::selector::LabelSelector;
use crate::mesh::cidr::Cidr;
use crate::mesh::routes::Protocol;

/// What labels are.
pub(super) type Labels = BTreeMap<String, String>;

/// A policy. One that cannot be read selects the pods it can and allows nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) namespace: String,
    selector: LabelSelector,
    /// What may come in; `None`: the policy says nothing of it.
    pub(super) ingress: Option<Vec<Rule>>,
    /// What may go out; `None`: the policy says nothing of it.
    pub(super) egress: Option<Vec<Rule>>,
}

/// One rule: a peer and a port that are both named are allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// Empty is everyone.
    peers: Vec<Peer>,
    /// Empty is every port.
    ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Peer {
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `None`: all.
        pods: Option<LabelSelector>,
    },
    Block {
        cidr: Cidr,
        except: Vec<Cidr>,
    },
    /// Nobody: what was written cannot be read.
    Nobody,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    protocol: Protocol,
    number: Number,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Number {
    Any,
    /// From the first to the last.
    Range(u16, u16),
    /// As the pod that is asked calls it.
    Named(String),
    /// None: what was written cannot be read.
    Never,
}

/// The other end of a connection, from the policy's pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct Other<'a> {
    /// What is known of it, if it is a pod.
    pub(super) pod: Option<&'a PodFacts>,
    /// The labels of its namespace, if it is a pod.
    pub(super) namespace_labels: Option<&'a Labels>,
    /// The addresses it may be found under.
    pub(super) ips: &'a [IpAddr],
}

/// Which port of which pod is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    /// The pod that is asked, if it is one: its ports have names.
    pub(super) pod: Option<&'a PodFacts>,
}

impl Policy {
    /// Reads the object.
    pub(super) fn read(policy: &NetworkPolicy) -> Self {
        let namespace = policy.metadata.namespace.clone().unwrap_or_default();
        let Some(spec) = &policy.spec else {
            let selector = LabelSelector::nothing();
            return Self { namespace, selector, ingress: None, egress: None };
        };
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let egress = spec.egress.as_deref().unwrap_or_default();
        let has = |name: &str| types.iter().any(|one| one == name);
        // As the API fills it in, for objects that it has not.
        let has_ingress = types.is_empty() || has("Ingress");
        let has_egress = if types.is_empty() { !egress.is_empty() } else { has("Egress") };
        let ingress = spec.ingress.iter().flatten();
        let ingress = ingress.map(|rule| Rule::read(&rule.from, &rule.ports));
        let egress = egress.iter().map(|rule| Rule::read(&rule.to, &rule.ports));
        Self {
            namespace,
            // Without a selector: all pods.
            selector: spec.pod_selector.as_ref().map_or_else(LabelSelector::everything, selector),
            ingress: has_ingress.then(|| ingress.collect()),
            egress: has_egress.then(|| egress.collect()),
        }
    }

    /// Whether it is about pods of its namespace with these labels.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        self.selector.matches_labels(labels)
    }
}

/// One that cannot be read selects everything: a policy rather isolates too many pods than none.
fn selector(selector: &ApiSelector) -> LabelSelector {
    LabelSelector::from_json(&json!(selector)).unwrap_or_else(|_| LabelSelector::everything())
}

/// One that cannot be read allows nobody.
fn peer_selector(selector: &ApiSelector) -> LabelSelector {
    LabelSelector::from_json(&json!(selector)).unwrap_or_else(|_| LabelSelector::nothing())
}

impl Rule {
    fn read(
        peers: &Option<Vec<NetworkPolicyPeer>>,
        ports: &Option<Vec<NetworkPolicyPort>>,
    ) -> Self {
        Self {
            peers: peers.iter().flatten().map(Peer::read).collect(),
            ports: ports.iter().flatten().map(Port::read).collect(),
        }
    }

    /// Whether it allows `other`, for a policy of `namespace`.
    pub(super) fn allows(&self, namespace: &str, other: &Other<'_>, asked: &Asked<'_>) -> bool {
        (self.ports.is_empty() || self.ports.iter().any(|port| port.is(asked)))
            && (self.peers.is_empty() || self.peers.iter().any(|peer| peer.is(namespace, other)))
    }
}

impl Peer {
    fn read(peer: &NetworkPolicyPeer) -> Self {
        match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
            (Some(block), None, None) => Self::block(block).unwrap_or(Self::Nobody),
            (None, None, None) | (Some(_), _, _) => Self::Nobody,
            (None, namespaces, pods) => Self::Pods {
                namespaces: namespaces.as_ref().map(peer_selector),
                pods: pods.as_ref().map(peer_selector),
            },
        }
    }

    /// `None`: a range in it cannot be read.
    fn block(block: &IPBlock) -> Option<Self> {
        let except = block.except.iter().flatten().map(|range| Cidr::parse(range));
        let except: Option<Vec<Cidr>> = except.collect();
        Some(Self::Block { cidr: Cidr::parse(&block.cidr)?, except: except? })
    }

    fn is(&self, namespace: &str, other: &Other<'_>) -> bool {
        match self {
            Self::Block { cidr, except } => other
                .ips
                .iter()
                .any(|ip| cidr.contains(*ip) && !except.iter().any(|range| range.contains(*ip))),
            Self::Pods { namespaces, pods } => {
                let Some(pod) = other.pod else { return false };
                let is_there = match namespaces {
                    None => pod.namespace == namespace,
                    Some(selector) => {
                        other.namespace_labels.is_some_and(|labels| selector.matches_labels(labels))
                    }
                };
                is_there
                    && pods.as_ref().is_none_or(|selector| selector.matches_labels(&pod.labels))
            }
            Self::Nobody => false,
        }
    }
}

impl Port {
    fn read(port: &NetworkPolicyPort) -> Self {
        let protocol = Protocol::parse(port.protocol.as_deref());
        let number = match &port.port {
            None => Number::Any,
            Some(IntOrString::String(name)) => Number::Named(name.clone()),
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                match (u16::try_from(*first), u16::try_from(last)) {
                    (Ok(first), Ok(last)) => Number::Range(first, last),
                    _ => Number::Never,
                }
            }
        };
        match protocol {
            Some(protocol) => Self { protocol, number },
            None => Self { protocol: Protocol::Sctp, number: Number::Never },
        }
    }

    fn is(&self, asked: &Asked<'_>) -> bool {
        self.protocol == asked.protocol
            && match &self.number {
                Number::Any => true,
                Number::Range(first, last) => (*first..=*last).contains(&asked.port),
                Number::Named(name) => asked.pod.is_some_and(|pod| {
                    pod.ports.iter().any(|port| {
                        port.name == *name
                            && port.protocol == asked.protocol
                            && port.number == asked.port
                    })
                }),
                Number::Never => false,
            }
    }
}
