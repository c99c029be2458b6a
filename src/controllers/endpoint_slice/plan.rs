//! Which slices a service should have, given its pods and the slices it has: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use crate::controllers::object::{
    controller_reference, is_deleting, is_ready, is_terminal, node_name,
};

/// Names the service a slice belongs to.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Names who keeps a slice; slices of others are left alone.
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// This controller, in Kubernetes' word for it.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Marks the slices of services without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Endpoints in one slice: a change rewrites no more than this.
const ENDPOINTS_MAX: usize = 100;

/// What a run sees.
pub(super) struct View<'a> {
    pub(super) service: &'a Service,
    /// All pods of the namespace.
    pub(super) pods: &'a [Arc<Pod>],
    /// The service's slices kept by this controller, by name.
    pub(super) slices: &'a [Arc<EndpointSlice>],
    /// The zone of each node that is in one.
    pub(super) zones: &'a Zones,
}

/// Zones by node.
pub(super) type Zones = BTreeMap<String, String>;

/// What a run does.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    /// Each with the name and the version of the slice it replaces.
    pub(super) update: Vec<EndpointSlice>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

/// The ports of a slice in a form that can be compared; pods that resolve a named port to
/// different numbers are in different slices.
type Ports = Vec<(Option<String>, String, i32, Option<String>)>;

pub(super) fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let families = families(view.service);
    for family in Family::ALL {
        let of_family = |slice: &&Arc<EndpointSlice>| slice.address_type == family.name();
        let slices: Vec<_> = view.slices.iter().filter(of_family).cloned().collect();
        if families.contains(&family) {
            plan_family(view, family, slices, &mut plan);
        } else {
            plan.delete.extend(slices);
        }
    }
    plan
}

/// The slices of one family.
fn plan_family(
    view: &View<'_>,
    family: Family,
    mut free: Vec<Arc<EndpointSlice>>,
    plan: &mut Plan,
) {
    let mut wanted: BTreeMap<Ports, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for pod in view.pods.iter().filter(|pod| is_backend(view.service, pod)) {
        if let Some(endpoint) = endpoint(view, family, pod) {
            let ports = ports(view.service, pod);
            wanted.entry(ports).or_default().insert(pod.name_any(), endpoint);
        }
    }
    let is_empty = wanted.is_empty();
    for (ports, endpoints) in wanted {
        let (same, others) = free.into_iter().partition(|slice| ports_of(slice) == ports);
        free = others;
        fill(&Group { service: view.service, family, ports: &ports }, endpoints, same, plan);
    }
    // One empty slice stays, so that an empty service is told from one not yet looked at.
    if is_empty {
        let ports = ports_of_service(view.service);
        let empty = Group { service: view.service, family, ports: &ports }.slice(Vec::new());
        if free.is_empty() {
            plan.create.push(empty);
        } else {
            replace(&free.remove(0), empty, plan);
        }
    }
    plan.delete.extend(free);
}

/// A family of addresses, as slices name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn has(self, ip: &str) -> bool {
        ip.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_ipv6() == (self == Self::V6))
    }
}

/// The families of the service; by its addresses if it does not say.
fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else { return vec![Family::V4] };
    let named = spec.ip_families.iter().flatten();
    let named: Vec<_> =
        named.filter_map(|name| Family::ALL.into_iter().find(|one| one.name() == name)).collect();
    if !named.is_empty() {
        return named;
    }
    let is_v6 = spec.cluster_ip.as_deref().is_some_and(|ip| Family::V6.has(ip));
    vec![if is_v6 { Family::V6 } else { Family::V4 }]
}

/// What the slices of a group have in common.
struct Group<'a> {
    service: &'a Service,
    family: Family,
    ports: &'a Ports,
}

/// Whether the service selects the pod, and the pod has not ended.
pub(super) fn is_backend(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value))
    }) && !is_terminal(pod)
}

/// Puts `endpoints` into the slices where they are, the rest where there is room, then into new
/// slices: a change touches as few slices as it can.
fn fill(
    group: &Group<'_>,
    mut endpoints: BTreeMap<String, Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
    plan: &mut Plan,
) {
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let names: BTreeSet<_> = slice.endpoints.iter().flatten().filter_map(pod_name).collect();
        let stay: Vec<_> = names.into_iter().filter_map(|name| endpoints.remove(name)).collect();
        kept.push((slice, stay));
    }
    for (_, stay) in &mut kept {
        while stay.len() < ENDPOINTS_MAX {
            let Some((_, endpoint)) = endpoints.pop_first() else { break };
            stay.push(endpoint);
        }
    }
    for (old, stay) in kept {
        if stay.is_empty() {
            plan.delete.push(old);
        } else {
            replace(&old, group.slice(stay), plan);
        }
    }
    let rest: Vec<_> = endpoints.into_values().collect();
    for part in rest.chunks(ENDPOINTS_MAX) {
        plan.create.push(group.slice(part.to_vec()));
    }
}

fn pod_name(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref()?.name.as_deref()
}

/// Plans to write `new` over `old`, unless it says the same.
fn replace(old: &EndpointSlice, mut new: EndpointSlice, plan: &mut Plan) {
    let is_same = old.endpoints.clone().unwrap_or_default()
        == new.endpoints.clone().unwrap_or_default()
        && ports_of(old) == ports_of(&new)
        && old.address_type == new.address_type
        && new.labels().iter().all(|(key, value)| old.labels().get(key) == Some(value))
        && old.metadata.owner_references == new.metadata.owner_references;
    new.metadata.name.clone_from(&old.metadata.name);
    new.metadata.generate_name = None;
    new.metadata.uid.clone_from(&old.metadata.uid);
    new.metadata.resource_version.clone_from(&old.metadata.resource_version);
    if !is_same {
        plan.update.push(new);
    }
}

impl Group<'_> {
    fn slice(&self, mut endpoints: Vec<Endpoint>) -> EndpointSlice {
        let service = self.service;
        endpoints.sort_by(|a, b| pod_name(a).cmp(&pod_name(b)));
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_NAME.to_owned(), service.name_any());
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        let ports =
            self.ports.iter().cloned().map(|(name, protocol, port, app_protocol)| EndpointPort {
                name: Some(name.unwrap_or_default()),
                protocol: Some(protocol),
                port: Some(port),
                app_protocol,
            });
        EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", service.name_any())),
                namespace: service.namespace(),
                labels: Some(labels),
                owner_references: Some(vec![controller_reference(service)]),
                ..ObjectMeta::default()
            },
            address_type: self.family.name().to_owned(),
            endpoints: Some(endpoints),
            ports: Some(ports.collect()),
        }
    }
}

fn ports_of(slice: &EndpointSlice) -> Ports {
    let ports = slice.ports.iter().flatten().map(|port| {
        (
            port.name.clone().filter(|name| !name.is_empty()),
            port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port.port.unwrap_or(0),
            port.app_protocol.clone(),
        )
    });
    ports.collect()
}

/// The service's ports as the pod serves them; a named port the pod lacks is left out.
fn ports(service: &Service, pod: &Pod) -> Ports {
    resolve(service, |name, protocol| container_port(pod, name, protocol))
}

fn ports_of_service(service: &Service) -> Ports {
    resolve(service, |_, _| None)
}

fn resolve(service: &Service, named: impl Fn(&str, &str) -> Option<i32>) -> Ports {
    let target = |port: &ServicePort| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        match &port.target_port {
            Some(IntOrString::Int(number)) if *number > 0 => Some(*number),
            Some(IntOrString::String(name)) if !name.is_empty() => named(name, protocol),
            _ => Some(port.port),
        }
    };
    let all = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    all.filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let name = port.name.clone().filter(|name| !name.is_empty());
        Some((name, protocol, target(port)?, port.app_protocol.clone()))
    })
    .collect()
}

fn container_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let mut all = spec.containers.iter().chain(sidecars).flat_map(|one| one.ports.iter().flatten());
    let found = all.find(|port| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    found.map(|port| port.container_port)
}

/// The pod as an endpoint; `None` while it has no address of the family.
fn endpoint(view: &View<'_>, family: Family, pod: &Pod) -> Option<Endpoint> {
    let (service, status) = (view.service, pod.status.as_ref()?);
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let address = all.into_iter().find(|ip| family.has(ip))?;
    let spec = service.spec.as_ref()?;
    let (is_serving, is_terminating) = (is_ready(pod), is_deleting(&pod.metadata));
    let publishes_all = spec.publish_not_ready_addresses == Some(true);
    let is_ready = publishes_all || (is_serving && !is_terminating);
    let pod_spec = pod.spec.as_ref();
    let subdomain = pod_spec.and_then(|spec| spec.subdomain.as_ref());
    let hostname = pod_spec
        .and_then(|spec| spec.hostname.clone())
        .filter(|name| !name.is_empty() && subdomain == service.metadata.name.as_ref());
    let node = node_name(pod);
    let zone = node.and_then(|node| view.zones.get(node)).cloned();
    Some(Endpoint {
        addresses: vec![address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(is_ready),
            serving: Some(is_serving),
            terminating: Some(is_terminating),
        }),
        hostname,
        hints: hints(spec.traffic_distribution.as_deref(), node, zone.as_deref())
            .filter(|_| is_ready),
        node_name: node.map(str::to_owned),
        zone,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.namespace(),
            name: Some(pod.name_any()),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// Whose clients should use an endpoint, by the service's `trafficDistribution`.
fn hints(
    distribution: Option<&str>,
    node: Option<&str>,
    zone: Option<&str>,
) -> Option<EndpointHints> {
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.map(|node| vec![ForNode { name: node.to_owned() }]);
    match distribution? {
        "PreferSameNode" => {
            for_nodes.map(|nodes| EndpointHints { for_nodes: Some(nodes), for_zones })
        }
        "PreferClose" | "PreferSameZone" => {
            for_zones.map(|zones| EndpointHints { for_zones: Some(zones), for_nodes: None })
        }
        _ => None,
    }
}
