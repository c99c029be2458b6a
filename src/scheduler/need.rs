//! What a pod takes from a node, and what a node has to give.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Node, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::api::local_volume;
use crate::api::quantity::{parse_bytes, parse_cpu_millis};

/// Pods on a node whose status names no limit, as the kubelet's default.
const PODS_DEFAULT: i64 = 110;
/// Name of the resource.
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// Amounts of what every node shares out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: i64,
    /// Memory.
    pub memory_bytes: i64,
    /// Disk for logs and for volumes that live as long as their pod.
    pub ephemeral_bytes: i64,
    /// Pods.
    pub pods: i64,
}

impl Resources {
    /// What `node` can give to pods.
    #[must_use]
    pub fn allocatable(node: &Node) -> Self {
        let status = node.status.as_ref();
        let amounts = status.and_then(|status| {
            status.allocatable.as_ref().filter(|all| !all.is_empty()).or(status.capacity.as_ref())
        });
        let pods = amounts.and_then(|amounts| amounts.get("pods")).and_then(|n| n.0.parse().ok());
        let mut found = Self { pods: pods.unwrap_or(PODS_DEFAULT), ..Self::of(amounts) };
        if amounts.is_none_or(|amounts| !amounts.contains_key(EPHEMERAL_STORAGE)) {
            // A node that does not say how large its disk is: only it can tell what fits.
            found.ephemeral_bytes = i64::MAX;
        }
        found
    }

    pub(super) fn of(amounts: Option<&BTreeMap<String, Quantity>>) -> Self {
        let amount = |name: &str| amounts.and_then(|amounts| amounts.get(name));
        let cpu = amount("cpu").and_then(|cpu| parse_cpu_millis(&cpu.0).ok());
        let bytes = |name| amount(name).and_then(|bytes| parse_bytes(&bytes.0).ok()).unwrap_or(0);
        Self {
            cpu_millis: cpu.unwrap_or(0),
            memory_bytes: bytes("memory"),
            ephemeral_bytes: bytes(EPHEMERAL_STORAGE),
            pods: 0,
        }
    }

    /// The sum of two amounts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.saturating_add(other.ephemeral_bytes),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    /// What is left of this after `other` is taken.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.saturating_sub(other.ephemeral_bytes),
            pods: self.pods.saturating_sub(other.pods),
        }
    }

    /// The larger of two amounts, each kind by itself.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.max(other.ephemeral_bytes),
            pods: self.pods.max(other.pods),
        }
    }
}

/// Amounts of what only some nodes have, by name: GPIO lines, cameras, accelerators.
pub(super) fn extended(amounts: Option<&BTreeMap<String, Quantity>>) -> BTreeMap<String, i64> {
    let amounts = amounts.into_iter().flatten();
    amounts
        .filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory" | "pods" | EPHEMERAL_STORAGE))
        .filter_map(|(name, amount)| Some((name.clone(), parse_bytes(&amount.0).ok()?)))
        .collect()
}

/// What containers take, of every kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Amounts {
    common: Resources,
    extended: BTreeMap<String, i64>,
}

impl Amounts {
    fn of(amounts: Option<&BTreeMap<String, Quantity>>) -> Self {
        Self { common: Resources::of(amounts), extended: extended(amounts) }
    }

    fn plus(mut self, other: &Self) -> Self {
        self.common = self.common.plus(other.common);
        for (name, amount) in &other.extended {
            let sum = self.extended.entry(name.clone()).or_insert(0);
            *sum = sum.saturating_add(*amount);
        }
        self
    }

    fn max(mut self, other: &Self) -> Self {
        self.common = self.common.max(other.common);
        for (name, amount) in &other.extended {
            let most = self.extended.entry(name.clone()).or_insert(0);
            *most = (*most).max(*amount);
        }
        self
    }
}

/// A port of the node that a container wants for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port.
    pub port: i32,
    /// The address; empty for every one.
    pub ip: String,
}

impl HostPort {
    /// Whether the two cannot be had on one node.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        let is_any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.protocol == other.protocol
            && self.port == other.port
            && (self.ip == other.ip || is_any(&self.ip) || is_any(&other.ip))
    }
}

/// What a pod takes from its node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// Its effective request, and itself as one pod.
    pub resources: Resources,
    /// What it takes of kinds that only some nodes have, by name.
    pub extended: BTreeMap<String, i64>,
    /// Its host ports.
    pub ports: Vec<HostPort>,
    /// The uid of its controller: the pods of one are spread over nodes.
    pub group: Option<String>,
    /// Namespace and name of the claims of storage it names.
    pub claims: Vec<(String, String)>,
}

impl Need {
    /// What `pod` takes.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let mut owners = pod.metadata.owner_references.iter().flatten();
        let group = owners.find(|owner| owner.controller == Some(true));
        let Amounts { common, mut extended } = request(pod);
        extended.retain(|_, amount| *amount > 0);
        Self {
            resources: Resources { pods: 1, ..common },
            extended,
            ports: host_ports(pod),
            group: group.map(|owner| owner.uid.clone()),
            claims: local_volume::claims_of(pod)
                .map(|name| (pod.metadata.namespace.clone().unwrap_or_default(), name.to_owned()))
                .collect(),
        }
    }
}

/// The effective request: mains and sidecars run together; a plain init container runs alone, but
/// for the sidecars started before it.
fn request(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::default();
    };
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let request = container_request(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.plus(&request);
            peak = peak.max(&sidecars);
        } else {
            peak = peak.max(&request.plus(&sidecars));
        }
    }
    let mains = spec.containers.iter().map(container_request);
    let together = mains.fold(sidecars, |sum, request| sum.plus(&request)).max(&peak);
    let together = of_whole(spec.resources.as_ref(), together);
    if spec.overhead.is_none() {
        return together;
    }
    together.plus(&Amounts::of(spec.overhead.as_ref()))
}

/// What is asked for the pod as a whole counts where it is more than what its containers ask for together; its
/// limit stands in where nobody asks.
fn of_whole(whole: Option<&ResourceRequirements>, mut together: Amounts) -> Amounts {
    let Some(whole) = whole else { return together };
    let asked = Resources::of(whole.requests.as_ref());
    let limit = Resources::of(whole.limits.as_ref());
    let first = |amounts: [i64; 2]| amounts.into_iter().find(|amount| *amount > 0).unwrap_or(0);
    let sum = together.common;
    together.common.cpu_millis = first([asked.cpu_millis.max(sum.cpu_millis), limit.cpu_millis]);
    together.common.memory_bytes =
        first([asked.memory_bytes.max(sum.memory_bytes), limit.memory_bytes]);
    together
}

/// Requests; a limit stands in for a request that is not there.
fn container_request(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else {
        return Amounts::default();
    };
    let Some(limits) = resources.limits.as_ref().filter(|limits| !limits.is_empty()) else {
        return Amounts::of(resources.requests.as_ref());
    };
    let mut amounts = limits.clone();
    amounts.extend(resources.requests.clone().unwrap_or_default());
    Amounts::of(Some(&amounts))
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    });
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: port.host_port.filter(|&port| port > 0)?,
                ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn container(cpu: &str, memory: &str, restart_policy: Value) -> Value {
        json!({
            "name": "c", "restartPolicy": restart_policy,
            "resources": { "requests": { "cpu": cpu, "memory": memory } },
        })
    }

    #[test]
    fn the_request_is_the_peak_of_init_and_main_containers() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "initContainers": [
                container("100m", "10Mi", json!("Always")),
                container("2", "1Mi", Value::Null),
            ],
            "containers": [container("500m", "64Mi", Value::Null), {
                "name": "limited", "resources": { "limits": { "cpu": "1", "memory": "1Mi" } },
            }],
        }}))
        .unwrap();
        let resources = Need::of(&pod).resources;
        assert_eq!(resources.cpu_millis, 2_100);
        assert_eq!(resources.memory_bytes, 75 << 20);
        assert_eq!(resources.pods, 1);
    }

    #[test]
    fn what_is_asked_for_the_whole_pod_counts_instead_of_its_containers() {
        let asks = |whole: Value, containers: Value| {
            let spec = json!({
                "overhead": { "cpu": "10m" }, "resources": whole, "containers": containers,
            });
            let pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            let resources = Need::of(&pod).resources;
            (resources.cpu_millis, resources.memory_bytes >> 20)
        };
        let more = container("200m", "36Mi", Value::Null);
        let two = json!([container("500m", "64Mi", Value::Null), more]);
        assert_eq!(asks(json!({ "requests": { "cpu": "2" } }), two.clone()), (2_010, 100));
        let less = json!({ "requests": { "cpu": "1m" } });
        assert_eq!(asks(less, two.clone()), (710, 100), "no less than they ask for");
        let limited = json!({ "requests": { "memory": "1Gi" }, "limits": { "cpu": "4" } });
        assert_eq!(asks(limited.clone(), two), (710, 1024));
        assert_eq!(asks(limited, json!([{ "name": "c" }])), (4_010, 1024), "nobody asks for cpu");
    }

    #[test]
    fn what_only_some_nodes_have_is_added_up_by_name() {
        let gpio = |count: &str| json!({ "resources": { "limits": { "edgeorc.io/gpio": count } } });
        let mut first = gpio("2");
        first["name"] = json!("a");
        let mut second = gpio("1");
        second["name"] = json!("b");
        let pod: Pod =
            serde_json::from_value(json!({ "spec": { "containers": [first, second] }})).unwrap();
        assert_eq!(Need::of(&pod).extended, [("edgeorc.io/gpio".to_owned(), 3)].into());
    }

    #[test]
    fn host_ports_clash_on_the_same_address() {
        let port = |port, ip: &str| HostPort { protocol: "TCP".into(), port, ip: ip.into() };
        assert!(port(80, "").clashes(&port(80, "10.0.0.1")));
        assert!(!port(80, "10.0.0.2").clashes(&port(80, "10.0.0.1")));
        assert!(!port(80, "").clashes(&port(81, "")));
    }

    #[test]
    fn what_a_runtime_class_takes_is_added() {
        let pod: Pod = serde_json::from_value(json!({ "spec": {
            "overhead": { "cpu": "250m", "memory": "120Mi" },
            "initContainers": [container("2", "1Mi", Value::Null)],
            "containers": [container("500m", "64Mi", Value::Null)],
        }}))
        .unwrap();
        let resources = Need::of(&pod).resources;
        assert_eq!((resources.cpu_millis, resources.memory_bytes), (2_250, 184 << 20));
    }
}
