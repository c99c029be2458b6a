//! The routing table as pure data, built from Kubernetes objects.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::api::networking::v1::Ingress;

use super::cidr::Cidr;
use super::ingress::{HttpObjects, HttpRoutes};

/// Label that ties an EndpointSlice to its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
pub(super) type ServiceKey = (String, String);

/// Everything the mesh routes by. Built whole from objects; a pure function of them.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    pub(super) me: String,
    pub(super) services: BTreeMap<ServiceKey, ServiceRoute>,
    pub(super) nodes: Vec<NodeRoute>,
    pub(super) http: HttpRoutes,
}

/// One Service.
#[derive(Debug, Clone, Default)]
pub(super) struct ServiceRoute {
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) external_name: Option<String>,
    pub(super) ports: Vec<PortRoute>,
    /// Addresses of ready endpoints, for headless Services.
    pub(super) ready: Vec<IpAddr>,
    /// Ready endpoints that have a host name.
    pub(super) hosts: BTreeMap<String, Vec<IpAddr>>,
}

/// One port of a Service.
#[derive(Debug, Clone)]
pub(super) struct PortRoute {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
    pub(super) endpoints: Vec<Target>,
}

/// Where a port's traffic may go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) place: Place,
}

/// Who can reach an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A pod of this node.
    Local,
    /// A pod of another node.
    Node(Arc<str>),
    /// No pod: an address on the host's networks.
    Outside,
}

/// One node and the addresses of its pods.
#[derive(Debug, Clone)]
pub(super) struct NodeRoute {
    pub(super) name: Arc<str>,
    pub(super) pod_cidrs: Vec<Cidr>,
}

/// A Service port as an Ingress names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BackendRef {
    pub(super) service: ServiceKey,
    pub(super) port: PortRef,
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PortRef {
    Number(u16),
    Name(String),
}

impl Routes {
    /// The table of node `me`.
    #[must_use]
    pub fn build<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
        nodes: impl IntoIterator<Item = &'a Node>,
        ingresses: impl IntoIterator<Item = &'a Ingress>,
        me: &str,
    ) -> Self {
        let mut routes = Self { me: me.to_owned(), ..Self::default() };
        routes.nodes = nodes.into_iter().filter_map(node_route).collect();
        let mut slices_of: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
            if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
                slices_of.entry((namespace, service)).or_default().push(slice);
            }
        }
        for service in services {
            let meta = &service.metadata;
            let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { continue };
            let slices = slices_of.get(&(namespace.as_str(), name.as_str()));
            let route = routes.service(service, slices.map_or(&[], Vec::as_slice));
            routes.services.insert((namespace.clone(), name.clone()), route);
        }
        let ingresses: Vec<_> = ingresses.into_iter().cloned().map(Arc::new).collect();
        if !ingresses.is_empty() {
            routes.http = HttpRoutes::build(&HttpObjects { ingresses, ..HttpObjects::default() });
        }
        routes
    }

    /// The same with these routes of HTTP in place of those by the Ingresses.
    #[must_use]
    pub fn with_http(mut self, http: HttpRoutes) -> Self {
        self.http = http;
        self
    }

    /// Who can reach a pod address: by the nodes' pod ranges.
    pub(super) fn place_of(&self, ip: IpAddr) -> Place {
        let owner = self.nodes.iter().find(|node| node.pod_cidrs.iter().any(|c| c.contains(ip)));
        match owner {
            Some(node) if *node.name == *self.me => Place::Local,
            Some(node) => Place::Node(Arc::clone(&node.name)),
            None => Place::Outside,
        }
    }

    fn service(&self, service: &Service, slices: &[&EndpointSlice]) -> ServiceRoute {
        let Some(spec) = &service.spec else { return ServiceRoute::default() };
        if spec.type_.as_deref() == Some("ExternalName") {
            return ServiceRoute {
                external_name: spec.external_name.clone(),
                ..Default::default()
            };
        }
        let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let mut cluster_ips: Vec<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
        cluster_ips.dedup();
        let mut route = ServiceRoute { cluster_ips, ..Default::default() };
        route.ports = spec
            .ports
            .iter()
            .flatten()
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|port| self.port(port, slices))
            .collect();
        for endpoint in usable(slices) {
            let ips: Vec<IpAddr> =
                endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
            if let Some(hostname) = &endpoint.hostname {
                route.hosts.entry(hostname.clone()).or_default().extend(&ips);
            }
            route.ready.extend(ips);
        }
        route.ready.sort_unstable();
        route.ready.dedup();
        route
    }

    fn port(&self, port: &ServicePort, slices: &[&EndpointSlice]) -> Option<PortRoute> {
        let name = port.name.clone().unwrap_or_default();
        let mut endpoints = Vec::new();
        // Slices name the Service's port and say what it is on their pods, which may differ from
        // slice to slice when the target port is a name.
        let with_port = |slice: &&&EndpointSlice| {
            let ports = slice.ports.iter().flatten();
            let is_it = |p: &&_| endpoint_port_is(p, &name);
            ports.clone().find(is_it).and_then(|p| p.port).and_then(|p| u16::try_from(p).ok())
        };
        let on_port: Vec<(u16, &EndpointSlice)> =
            slices.iter().filter_map(|slice| Some((with_port(&slice)?, *slice))).collect();
        let of_port: Vec<&EndpointSlice> = on_port.iter().map(|(_, slice)| *slice).collect();
        let is_any_ready = has_ready(&of_port);
        for (number, slice) in on_port {
            for endpoint in slice.endpoints.iter().flatten() {
                if is_usable(endpoint, is_any_ready) {
                    self.add_targets(endpoint, number, &mut endpoints);
                }
            }
        }
        endpoints.sort();
        endpoints.dedup();
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        Some(PortRoute { name, port: u16::try_from(port.port).ok()?, node_port, endpoints })
    }

    fn add_targets(&self, endpoint: &Endpoint, port: u16, into: &mut Vec<Target>) {
        for ip in &endpoint.addresses {
            let Ok(ip) = ip.parse::<IpAddr>() else { continue };
            let place = match self.place_of(ip) {
                // A slice may know the node before the Node object's range has arrived here.
                Place::Outside => match (&endpoint.node_name, &endpoint.target_ref) {
                    (Some(node), Some(_)) if *node == self.me => Place::Local,
                    (Some(node), Some(_)) => Place::Node(node.as_str().into()),
                    _ => Place::Outside,
                },
                place => place,
            };
            into.push(Target { address: SocketAddr::new(ip, port), place });
        }
    }
}

fn endpoint_port_is(
    port: &k8s_openapi::api::discovery::v1::EndpointPort,
    service_port: &str,
) -> bool {
    port.name.as_deref().unwrap_or_default() == service_port
        && port.protocol.as_deref().unwrap_or("TCP") == "TCP"
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn has_ready(slices: &[&EndpointSlice]) -> bool {
    slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).any(is_ready)
}

/// Ready ones; when there is none, those that still serve while they end.
fn is_usable(endpoint: &Endpoint, is_any_ready: bool) -> bool {
    let Some(conditions) = &endpoint.conditions else { return true };
    if is_any_ready {
        return conditions.ready.unwrap_or(true);
    }
    conditions.serving.unwrap_or(false) && conditions.terminating.unwrap_or(false)
}

fn usable<'a>(slices: &[&'a EndpointSlice]) -> Vec<&'a Endpoint> {
    let is_any_ready = has_ready(slices);
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    endpoints.filter(|endpoint| is_usable(endpoint, is_any_ready)).collect()
}

fn node_route(node: &Node) -> Option<NodeRoute> {
    let spec = node.spec.as_ref()?;
    let ranges = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let pod_cidrs = ranges.filter_map(|range| Cidr::parse(range)).collect();
    Some(NodeRoute { name: node.metadata.name.as_deref()?.into(), pod_cidrs })
}

#[cfg(test)]
#[path = "routes_test.rs"]
mod tests;
