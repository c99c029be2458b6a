//! Nine pods in three namespaces on two nodes, and policies, in few words.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::compiler::PolicyCompiler;
use super::table::{Incoming, Outgoing, PodRef, Policies, Ruling};
use crate::mesh::cidr::Cidr;
use crate::mesh::routes::Protocol;

pub(super) fn object<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

pub(super) fn policy(namespace: &str, name: &str, spec: &Value) -> Arc<NetworkPolicy> {
    object(json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec }))
}

pub(super) fn namespace(name: &str, labels: &Value) -> Arc<Namespace> {
    object(json!({ "metadata": { "name": name, "labels": labels } }))
}

/// A pod whose uid is `NAMESPACE/NAME`.
pub(super) fn pod(namespace: &str, name: &str, labels: &Value, node: &str, ip: &str) -> Arc<Pod> {
    object(json!({
        "metadata": {
            "namespace": namespace, "name": name, "labels": labels,
            "uid": format!("{namespace}/{name}"),
        },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "ports": [
            { "name": "serve-80-tcp", "containerPort": 80 },
            { "name": "serve-81-tcp", "containerPort": 81, "protocol": "TCP" },
            { "name": "serve-80-udp", "containerPort": 80, "protocol": "UDP" },
        ]}]},
        "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
    }))
}

pub(super) const NODES: [&str; 2] = ["one", "two"];
pub(super) const PODS: [&str; 9] = ["x/a", "x/b", "x/c", "y/a", "y/b", "y/c", "z/a", "z/b", "z/c"];

fn split(pod: &str) -> PodRef<'_> {
    let (namespace, _) = pod.split_once('/').unwrap();
    PodRef { namespace, uid: pod }
}

/// Pods `a` and `b` of each namespace are on node one, `c` on node two.
pub(super) fn node_of(pod: &str) -> &'static str {
    if pod.ends_with('c') { NODES[1] } else { NODES[0] }
}

/// `x/a` is 10.42.0.10, `x/c` is 10.42.1.12, `y/a` is 10.42.0.20 and so on.
pub(super) fn ip_of(pod: &str) -> IpAddr {
    let (namespace, name) = pod.split_once('/').unwrap();
    let of = |text: &str, first: u8| text.as_bytes()[0] - first;
    let net = if node_of(pod) == NODES[0] { 0 } else { 1 };
    IpAddr::from([10, 42, net, 10 + 10 * of(namespace, b'x') + of(name, b'a')])
}

pub(super) fn pods() -> Vec<Arc<Pod>> {
    let one = |uid: &&str| {
        let (namespace, name) = uid.split_once('/').unwrap();
        pod(namespace, name, &json!({ "pod": name }), node_of(uid), &ip_of(uid).to_string())
    };
    PODS.iter().map(one).collect()
}

pub(super) fn namespaces() -> Vec<Arc<Namespace>> {
    ["x", "y", "z"].iter().map(|name| namespace(name, &json!({ "ns": name }))).collect()
}

/// The tables of both nodes under some policies: namespace and spec.
pub(super) struct World(BTreeMap<&'static str, Policies>);

impl World {
    pub(super) fn new(policies: &[(&str, Value)]) -> Self {
        let policies: Vec<_> = policies
            .iter()
            .enumerate()
            .map(|(at, (namespace, spec))| policy(namespace, &format!("p{at}"), spec))
            .collect();
        let table = |me: &&'static str| {
            let mut compiler = PolicyCompiler::new(me);
            (*me, compiler.update(&policies, &pods(), &namespaces()).unwrap())
        };
        Self(NODES.iter().map(table).collect())
    }

    pub(super) fn on(&self, node: &str) -> &Policies {
        &self.0[node]
    }

    pub(super) fn egress(&self, from: &str, to: &str, port: u16, protocol: Protocol) -> Ruling {
        let here = node_of(from);
        let way = if node_of(to) == here {
            Outgoing::Here(split(to))
        } else {
            Outgoing::There { node: node_of(to) }
        };
        self.on(here).egress(split(from), protocol, SocketAddr::new(ip_of(to), port), way)
    }

    pub(super) fn ingress(&self, from: &str, to: &str, port: u16, protocol: Protocol) -> Ruling {
        let ranges = [Cidr::parse("10.42.0.0/24").unwrap(), Cidr::parse("10.42.1.0/24").unwrap()];
        let node = node_of(from);
        let ranges = if node == NODES[0] { &ranges[..1] } else { &ranges[1..] };
        let incoming = Incoming::Pod { uid: from, node, ranges };
        self.on(node_of(to)).ingress(split(to), protocol, port, incoming)
    }

    /// What a pod sees of its way to an address outside.
    pub(super) fn outside(&self, from: &str, to: &str) -> bool {
        let way = Outgoing::Outside;
        let table = self.on(node_of(from));
        table.egress(split(from), Protocol::Tcp, to.parse().unwrap(), way) == Ruling::Allowed
    }

    /// What a client outside, or a node, sees of a pod.
    pub(super) fn admits_outsider(&self, ip: &str, to: &str, port: u16) -> bool {
        let ips = [ip.parse().unwrap()];
        let table = self.on(node_of(to));
        table.ingress(split(to), Protocol::Tcp, port, Incoming::Host(&ips)) == Ruling::Allowed
    }

    pub(super) fn reaches(&self, from: &str, to: &str, port: u16, protocol: Protocol) -> bool {
        let rulings =
            [self.egress(from, to, port, protocol), self.ingress(from, to, port, protocol)];
        assert!(!rulings.contains(&Ruling::Unsettled), "{from} to {to}");
        rulings == [Ruling::Allowed; 2]
    }

    /// Each pair of pods at TCP port 80, and nothing but what `wanted` says.
    pub(super) fn check(&self, wanted: impl Fn(&str, &str) -> bool) {
        self.check_at(80, Protocol::Tcp, wanted);
    }

    pub(super) fn check_at(
        &self,
        port: u16,
        protocol: Protocol,
        wanted: impl Fn(&str, &str) -> bool,
    ) {
        for from in PODS {
            for to in PODS {
                let is_wanted = from == to || wanted(from, to);
                let is = self.reaches(from, to, port, protocol);
                assert_eq!(is, is_wanted, "{from} to {to}, {protocol:?} {port}");
            }
        }
    }
}
