//! The routing table as pure data, built from Kubernetes objects.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;

use super::balancer::Tier;
use super::ingress::{HttpObjects, HttpRoutes};
use super::nodes::NodeRoutes;
pub(super) use super::service_routes::{PortRoute, Protocol, ServiceRoute};

/// Label that ties an EndpointSlice to its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
pub(super) type ServiceKey = (String, String);

/// Everything the mesh routes by. Built whole from objects; a pure function of them.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    pub(super) me: String,
    pub(super) services: BTreeMap<ServiceKey, ServiceRoute>,
    pub(super) nodes: NodeRoutes,
    pub(super) http: HttpRoutes,
    /// Namespace and name of the pods behind Services, by address.
    pub(super) pods: BTreeMap<IpAddr, (String, String)>,
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
        routes.nodes = NodeRoutes::build(nodes);
        let mut slices_of: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            let labels = slice.metadata.labels.as_ref();
            let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
            routes.add_pods(slice);
            if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
                slices_of.entry((namespace, service)).or_default().push(slice);
            }
        }
        for service in services {
            let meta = &service.metadata;
            let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { continue };
            let slices = slices_of.get(&(namespace.as_str(), name.as_str()));
            let slices = slices.map_or(&[][..], Vec::as_slice);
            let route = ServiceRoute::build(&routes, service, slices);
            routes.services.insert((namespace.clone(), name.clone()), route);
        }
        let ingresses: Vec<_> = ingresses.into_iter().cloned().map(Arc::new).collect();
        if !ingresses.is_empty() {
            routes.http = HttpRoutes::build(&HttpObjects { ingresses, ..HttpObjects::default() });
        }
        routes
    }

    fn add_pods(&mut self, slice: &EndpointSlice) {
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(target) = endpoint.target_ref.as_ref() else { continue };
            let namespace = target.namespace.as_ref().or(slice.metadata.namespace.as_ref());
            let (Some("Pod"), Some(name), Some(namespace)) =
                (target.kind.as_deref(), &target.name, namespace)
            else {
                continue;
            };
            for ip in endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()) {
                self.pods.insert(ip, (namespace.clone(), name.clone()));
            }
        }
    }

    /// The same with these routes of HTTP in place of those by the Ingresses.
    #[must_use]
    pub fn with_http(mut self, http: HttpRoutes) -> Self {
        self.http = http;
        self
    }

    /// Who can reach a pod address: by the nodes' pod ranges.
    pub(super) fn place_of(&self, ip: IpAddr) -> Place {
        match self.nodes.owner(ip) {
            Some(name) if **name == *self.me => Place::Local,
            Some(name) => Place::Node(Arc::clone(name)),
            None => Place::Outside,
        }
    }

    /// The zone of this node.
    pub(super) fn my_zone(&self) -> Option<&str> {
        self.zone_of(&self.me)
    }

    /// How near an endpoint is to this node.
    pub(super) fn tier_of(&self, place: &Place) -> Tier {
        match place {
            Place::Local => Tier::Node,
            Place::Outside => Tier::Cluster,
            Place::Node(name) => match self.my_zone() {
                Some(mine) if self.zone_of(name) == Some(mine) => Tier::Zone,
                _ => Tier::Cluster,
            },
        }
    }

    fn zone_of(&self, node: &str) -> Option<&str> {
        self.nodes.get(node)?.zone.as_deref()
    }
}

#[cfg(test)]
#[path = "routes_test.rs"]
mod tests;
