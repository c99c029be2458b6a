//! What policies need to know of a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use crate::mesh::routes::Protocol;

/// On the mirror of a pod that a node has from a file: the uid by which the node knows the pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// One pod. Small: every node keeps those of all pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodFacts {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    /// Where it is to run or runs.
    pub(super) node: Option<String>,
    /// Its addresses, once its node has told them; none of a pod that has ended.
    pub(super) ips: Vec<IpAddr>,
    pub(super) ports: Vec<NamedPort>,
}

/// A port that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamedPort {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

impl PodFacts {
    /// Of the object; `None` for one that has no uid.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let annotations = meta.annotations.as_ref();
        let mirrored = annotations.and_then(|all| all.get(MIRROR_ANNOTATION));
        let spec = pod.spec.as_ref();
        Some(Self {
            uid: mirrored.or(meta.uid.as_ref())?.clone(),
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            labels: meta.labels.clone().unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()),
            ips: ips(pod),
            ports: spec.map(|spec| ports(spec.containers.iter())).unwrap_or_default(),
        })
    }
}

/// A pod that has ended keeps its addresses in its status; they are another pod's by then.
fn ips(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let many = status.pod_ips.iter().flatten().map(|one| &one.ip);
    let mut ips: Vec<IpAddr> =
        many.chain(&status.pod_ip).filter_map(|text| text.parse().ok()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

fn ports<'a>(containers: impl Iterator<Item = &'a Container>) -> Vec<NamedPort> {
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|port| {
        Some(NamedPort {
            name: port.name.clone()?,
            protocol: Protocol::parse(port.protocol.as_deref())?,
            number: u16::try_from(port.container_port).ok()?,
        })
    });
    named.collect()
}
