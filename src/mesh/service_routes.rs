//! Where the traffic of one Service goes: its ports, and for each the endpoints that a client may
//! be led to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde::{Deserialize, Serialize};

use super::cidr::Cidr;
use super::routes::{Place, Routes, Target};
use crate::api::node_load::SCALES_FROM_ZERO;

/// Longest time that a client keeps its endpoint: a day, as the API allows.
const AFFINITY_SECONDS_MAX: u64 = 86_400;

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Protocol {
    Tcp,
    Udp,
    /// Kept for names; nothing of it is carried.
    Sctp,
}

impl Protocol {
    /// For metrics and the log.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// As the API writes it; none is TCP.
    pub(super) fn parse(text: Option<&str>) -> Option<Self> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// One Service.
#[derive(Debug, Clone, Default)]
pub(super) struct ServiceRoute {
    pub(super) cluster_ips: Vec<IpAddr>,
    /// IPv6 is its first family.
    pub(super) is_v6_first: bool,
    /// It has no address: clients choose among its endpoints by name.
    pub(super) is_headless: bool,
    pub(super) external_name: Option<String>,
    pub(super) ports: Vec<PortRoute>,
    /// Ready endpoints that have names of their own: all of a headless Service.
    pub(super) hosts: Vec<HostRoute>,
    /// How long a client keeps its endpoint, in seconds.
    pub(super) affinity_seconds: Option<u64>,
    /// Addresses of the nodes or of others that lead here, at the Service's own ports.
    pub(super) outer_ips: Vec<IpAddr>,
    /// Whether this node listens at the Service's own ports.
    pub(super) is_balanced: bool,
    /// Who may come in by a load balancer's address; empty is everyone.
    pub(super) source_ranges: Vec<Cidr>,
    /// Where this node says how many endpoints it has.
    pub(super) health_port: Option<u16>,
    /// Ready endpoints on this node.
    pub(super) local_count: usize,
    /// Without endpoints its requests wait: its workload is scaled from zero by them.
    pub(super) scales_from_zero: bool,
}

/// One port of a Service.
#[derive(Debug, Clone)]
pub(super) struct PortRoute {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) node_port: Option<u16>,
    /// All that serve.
    pub(super) endpoints: Vec<Target>,
    /// Those for clients in the cluster, if not all.
    pub(super) internal: Option<Vec<Target>>,
    /// Those for clients outside, if not all.
    pub(super) external: Option<Vec<Target>>,
}

impl PortRoute {
    /// The same with the endpoints of one family only.
    pub(super) fn of_family(&self, is_v6: bool) -> Self {
        let of = |targets: &[Target]| {
            targets.iter().filter(|one| one.address.is_ipv6() == is_v6).cloned().collect::<Vec<_>>()
        };
        Self {
            name: self.name.clone(),
            endpoints: of(&self.endpoints),
            internal: self.internal.as_deref().map(of),
            external: self.external.as_deref().map(of),
            ..*self
        }
    }
}

/// One endpoint that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostRoute {
    pub(super) ip: IpAddr,
    /// As the pod says; one that says nothing is called by its address.
    pub(super) hostname: Option<String>,
    /// Name, protocol and number of each of its ports.
    pub(super) ports: Vec<(String, Protocol, u16)>,
}

impl HostRoute {
    /// Its label within the Service's domain.
    pub(super) fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| dashed(self.ip))
    }
}

/// `10-42-0-5`, `fd00-42--5`: an address as a label.
pub(super) fn dashed(ip: IpAddr) -> String {
    let text = ip.to_string().replace(['.', ':'], "-");
    // A label neither begins nor ends with a dash.
    match (text.starts_with('-'), text.ends_with('-')) {
        (true, true) => format!("0{text}0"),
        (true, false) => format!("0{text}"),
        (false, true) => format!("{text}0"),
        (false, false) => text,
    }
}

impl ServiceRoute {
    /// Of the Service and its slices, as seen from the node of `routes`.
    pub(super) fn build(routes: &Routes, service: &Service, slices: &[&EndpointSlice]) -> Self {
        let Some(spec) = &service.spec else { return Self::default() };
        if spec.type_.as_deref() == Some("ExternalName") {
            return Self { external_name: spec.external_name.clone(), ..Self::default() };
        }
        let is_headless = spec.cluster_ip.as_deref() == Some("None");
        let view = View { routes, spec, slices };
        let mut route = Self {
            cluster_ips: cluster_ips(spec),
            is_v6_first: is_v6_first(spec),
            is_headless,
            ports: spec.ports.iter().flatten().filter_map(|port| view.port(port)).collect(),
            hosts: hosts(slices, is_headless),
            affinity_seconds: affinity(spec).filter(|_| !is_headless),
            local_count: view.local_count(),
            scales_from_zero: service
                .metadata
                .annotations
                .as_ref()
                .is_some_and(|annotations| annotations.contains_key(SCALES_FROM_ZERO)),
            ..Self::default()
        };
        if !is_headless {
            route.add_outside(service, spec);
        }
        route
    }

    fn add_outside(&mut self, service: &Service, spec: &ServiceSpec) {
        let mut outer: Vec<&str> = spec.external_ips.iter().flatten().map(String::as_str).collect();
        if spec.type_.as_deref() == Some("LoadBalancer") {
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
            // With `Proxy`, clients in the cluster are to pass the load balancer as others do.
            let direct = ingress.filter(|one| one.ip_mode.as_deref() != Some("Proxy"));
            outer.extend(direct.filter_map(|one| one.ip.as_deref()));
            self.is_balanced = spec.load_balancer_class.is_none();
            let ranges = spec.load_balancer_source_ranges.iter().flatten();
            self.source_ranges = ranges.filter_map(|range| Cidr::parse(range.trim())).collect();
            let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
            let health = spec.health_check_node_port.filter(|_| is_local);
            self.health_port = health.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        }
        self.outer_ips = outer.into_iter().filter_map(|ip| ip.parse().ok()).collect();
        self.outer_ips.sort_unstable();
        self.outer_ips.dedup();
    }

    /// The ports of that protocol.
    pub(super) fn has_protocol(&self, protocol: Protocol) -> bool {
        self.ports.iter().any(|port| port.protocol == protocol)
    }
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in ips.filter_map(|ip| ip.parse().ok()) {
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    found
}

/// By its families, or where they are not told by its address.
fn is_v6_first(spec: &ServiceSpec) -> bool {
    match spec.ip_families.iter().flatten().next() {
        Some(family) => family == "IPv6",
        None => cluster_ips(spec).first().is_some_and(IpAddr::is_ipv6),
    }
}

fn affinity(spec: &ServiceSpec) -> Option<u64> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|all| all.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(10_800);
    Some(u64::try_from(seconds).unwrap_or(0).clamp(1, AFFINITY_SECONDS_MAX))
}

/// What a Service's endpoints are looked at with.
struct View<'a> {
    routes: &'a Routes,
    spec: &'a ServiceSpec,
    slices: &'a [&'a EndpointSlice],
}

/// An endpoint that may be used, with the target that it is.
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    target: Target,
}

impl View<'_> {
    fn port(&self, port: &ServicePort) -> Option<PortRoute> {
        let name = port.name.clone().unwrap_or_default();
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        let all = self.candidates(&name, protocol);
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        let endpoints = targets(serving(&all));
        let near = self.nearest(serving(&all)).map(targets);
        let local = || targets(serving_here(&all));
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        let internal =
            if is_local(&self.spec.internal_traffic_policy) { Some(local()) } else { near.clone() };
        let external =
            if is_local(&self.spec.external_traffic_policy) { Some(local()) } else { near };
        let port = u16::try_from(port.port).ok()?;
        Some(PortRoute { name, port, protocol, node_port, endpoints, internal, external })
    }

    /// All endpoints on the port. Slices name the Service's port and say what it is on their pods,
    /// which may differ from slice to slice when the target port is a name.
    fn candidates(&self, name: &str, protocol: Protocol) -> Vec<Candidate<'_>> {
        let mut found = Vec::new();
        for slice in self.slices {
            let mut ports = slice.ports.iter().flatten();
            let number = ports
                .find(|port| endpoint_port_is(port, name, protocol))
                .and_then(|port| u16::try_from(port.port?).ok());
            let Some(number) = number else { continue };
            for endpoint in slice.endpoints.iter().flatten() {
                let ips = endpoint.addresses.iter().filter_map(|ip| ip.parse().ok());
                found.extend(ips.map(|ip| Candidate {
                    endpoint,
                    target: Target {
                        address: SocketAddr::new(ip, number),
                        place: self.place(ip, endpoint),
                    },
                }));
            }
        }
        found
    }

    fn place(&self, ip: IpAddr, endpoint: &Endpoint) -> Place {
        match self.routes.place_of(ip) {
            // A slice may know the node before the Node object's range has arrived here.
            Place::Outside => match (&endpoint.node_name, &endpoint.target_ref) {
                (Some(node), Some(_)) if *node == self.routes.me => Place::Local,
                (Some(node), Some(_)) => Place::Node(node.as_str().into()),
                _ => Place::Outside,
            },
            place => place,
        }
    }

    /// Those that their hints keep for this node or this zone; `None` when the hints say nothing,
    /// since some have none or none is for here.
    fn nearest<'b>(&self, all: Vec<&'b Candidate<'b>>) -> Option<Vec<&'b Candidate<'b>>> {
        self.spec.traffic_distribution.as_ref()?;
        let is_mine = |candidate: &&'b Candidate<'b>| {
            let hints = candidate.endpoint.hints.as_ref();
            let nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
            nodes.map(|nodes| nodes.iter().any(|node| node.name == self.routes.me))
        };
        let zone = self.routes.my_zone();
        let is_here = |candidate: &&'b Candidate<'b>| {
            let hints = candidate.endpoint.hints.as_ref();
            let zones = hints.and_then(|hints| hints.for_zones.as_ref());
            zones.map(|zones| zones.iter().any(|one| Some(one.name.as_str()) == zone))
        };
        filtered(&all, is_mine).or_else(|| filtered(&all, is_here))
    }

    /// Ready endpoints on this node: pods, not their ports.
    fn local_count(&self) -> usize {
        let endpoints = self.slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let mut here: Vec<IpAddr> = endpoints
            .filter(|endpoint| is_ready(endpoint))
            .flat_map(|endpoint| endpoint.addresses.iter().map(move |ip| (ip, endpoint)))
            .filter_map(|(ip, endpoint)| Some((ip.parse::<IpAddr>().ok()?, endpoint)))
            .filter(|(ip, endpoint)| self.place(*ip, endpoint) == Place::Local)
            .map(|(ip, _)| ip)
            .collect();
        here.sort_unstable();
        here.dedup();
        // A pod of both families is one.
        let six = here.iter().filter(|ip| ip.is_ipv6()).count();
        six.max(here.len() - six)
    }
}

/// Those for which `test` holds, if all of them have what it tests and it holds for some.
fn filtered<'b>(
    all: &[&'b Candidate<'b>],
    test: impl Fn(&&'b Candidate<'b>) -> Option<bool>,
) -> Option<Vec<&'b Candidate<'b>>> {
    let found: Vec<_> = all.iter().filter(|one| test(one) == Some(true)).copied().collect();
    (!found.is_empty() && all.iter().all(|one| test(one).is_some())).then_some(found)
}

/// Ready ones; when there is none, those that still serve while they end.
fn serving<'b>(all: &'b [Candidate<'b>]) -> Vec<&'b Candidate<'b>> {
    serving_of(all.iter().collect())
}

/// The same of those on this node.
fn serving_here<'b>(all: &'b [Candidate<'b>]) -> Vec<&'b Candidate<'b>> {
    serving_of(all.iter().filter(|one| one.target.place == Place::Local).collect())
}

fn serving_of<'b>(all: Vec<&'b Candidate<'b>>) -> Vec<&'b Candidate<'b>> {
    let is_any_ready = all.iter().any(|one| is_ready(one.endpoint));
    let is_used = |one: &&Candidate<'_>| {
        if is_any_ready { is_ready(one.endpoint) } else { is_ending_well(one.endpoint) }
    };
    all.into_iter().filter(is_used).collect()
}

fn targets(candidates: Vec<&Candidate<'_>>) -> Vec<Target> {
    let mut targets: Vec<Target> = candidates.iter().map(|one| one.target.clone()).collect();
    targets.sort();
    targets.dedup();
    targets
}

/// The ready endpoints that have names, each once with all its ports.
fn hosts(slices: &[&EndpointSlice], is_headless: bool) -> Vec<HostRoute> {
    let mut found: BTreeMap<IpAddr, HostRoute> = BTreeMap::new();
    for slice in slices {
        let ports: Vec<(String, Protocol, u16)> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let protocol = Protocol::parse(port.protocol.as_deref())?;
                let number = u16::try_from(port.port?).ok()?;
                Some((port.name.clone().unwrap_or_default(), protocol, number))
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten().filter(|one| is_ready(one)) {
            let hostname = endpoint.hostname.as_ref().filter(|name| !name.is_empty());
            if !is_headless && hostname.is_none() {
                continue;
            }
            for ip in endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()) {
                let host = found.entry(ip).or_insert_with(|| HostRoute {
                    ip,
                    hostname: None,
                    ports: Vec::new(),
                });
                host.hostname =
                    hostname.map(|name| name.to_ascii_lowercase()).or(host.hostname.take());
                let more = ports.iter().filter(|port| !host.ports.contains(port));
                let more: Vec<_> = more.cloned().collect();
                host.ports.extend(more);
            }
        }
    }
    found.into_values().collect()
}

fn endpoint_port_is(port: &EndpointPort, service_port: &str, protocol: Protocol) -> bool {
    port.name.as_deref().unwrap_or_default() == service_port
        && Protocol::parse(port.protocol.as_deref()) == Some(protocol)
}

/// One that says nothing is ready.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn is_ending_well(endpoint: &Endpoint) -> bool {
    let Some(conditions) = &endpoint.conditions else { return false };
    conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false)
}

#[cfg(test)]
#[path = "service_routes_test.rs"]
mod tests;
