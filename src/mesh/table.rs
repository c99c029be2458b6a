//! The routing table in use: [`Routes`] with the live state of every endpoint.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balancer::Backend;
use super::endpoint::EndpointState;
use super::ingress::RouteTable;
use super::routes::{Place, PortRef, Routes, Target};
use crate::net::PeerHandle;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) routes: Routes,
    /// Backends of each Service, in the order of its ports.
    by_service: BTreeMap<(String, String), Vec<Arc<Backend>>>,
    by_cluster_ip: BTreeMap<(IpAddr, u16), Arc<Backend>>,
    cluster_ips: BTreeMap<IpAddr, (String, String)>,
    by_node_port: BTreeMap<u16, Arc<Backend>>,
    pub(super) ingress: RouteTable<Arc<Backend>>,
    endpoints: BTreeMap<Target, Arc<EndpointState>>,
}

impl Table {
    /// Builds the table; endpoints that `old` knows keep their state.
    pub(super) fn build(
        routes: Routes,
        old: &Self,
        peer: impl Fn(&str) -> Option<PeerHandle>,
    ) -> Self {
        let mut table = Self::default();
        for (key, service) in &routes.services {
            let mut backends = Vec::with_capacity(service.ports.len());
            for port in &service.ports {
                let state_of = |target: &Target| {
                    Arc::clone(table.endpoints.entry(target.clone()).or_insert_with(|| {
                        let known = old.endpoints.get(target).cloned();
                        known.unwrap_or_else(|| Arc::new(new_state(target, &peer)))
                    }))
                };
                let endpoints = port.endpoints.iter().map(state_of).collect();
                let backend = Arc::new(Backend { endpoints });
                for ip in &service.cluster_ips {
                    table.by_cluster_ip.insert((*ip, port.port), Arc::clone(&backend));
                }
                if let Some(node_port) = port.node_port {
                    table.by_node_port.insert(node_port, Arc::clone(&backend));
                }
                backends.push(backend);
            }
            for ip in &service.cluster_ips {
                table.cluster_ips.insert(*ip, key.clone());
            }
            table.by_service.insert(key.clone(), backends);
        }
        table.routes = routes;
        table.ingress = table.routes.http.table.map(|backend| {
            let (namespace, name) = &backend.service;
            table.service_port(namespace, name, &backend.port)
        });
        table
    }

    /// A Service's port by number or name.
    pub(super) fn service_port(
        &self,
        namespace: &str,
        name: &str,
        port: &PortRef,
    ) -> Option<Arc<Backend>> {
        let key = (namespace.to_owned(), name.to_owned());
        let route = self.routes.services.get(&key)?;
        let at = route.ports.iter().position(|candidate| match port {
            PortRef::Number(number) => candidate.port == *number,
            PortRef::Name(name) => candidate.name == *name,
        })?;
        self.by_service.get(&key)?.get(at).cloned()
    }

    /// The backend behind a Service address.
    pub(super) fn cluster_ip(&self, at: SocketAddr) -> Option<Arc<Backend>> {
        self.by_cluster_ip.get(&(at.ip(), at.port())).cloned()
    }

    /// Whether the address is a Service's, at whatever port.
    pub(super) fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        self.cluster_ips.contains_key(&ip)
    }

    pub(super) fn node_port(&self, port: u16) -> Option<Arc<Backend>> {
        self.by_node_port.get(&port).cloned()
    }

    pub(super) fn node_ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.by_node_port.keys().copied()
    }

    /// One address as a backend of its own, with its state if it is known.
    pub(super) fn single(
        &self,
        address: SocketAddr,
        peer: impl Fn(&str) -> Option<PeerHandle>,
    ) -> Backend {
        let target = Target { address, place: self.routes.place_of(address.ip()) };
        let known = self.endpoints.get(&target).cloned();
        let state = known.unwrap_or_else(|| Arc::new(new_state(&target, &peer)));
        Backend { endpoints: vec![state] }
    }

    /// Whether a pod with this address belongs to this node.
    pub(super) fn is_local_pod(&self, ip: IpAddr) -> bool {
        self.routes.place_of(ip) == Place::Local
    }

    pub(super) fn close_unused_streams(&self) {
        for endpoint in self.endpoints.values() {
            endpoint.close_unused_streams();
        }
    }
}

fn new_state(target: &Target, peer: &impl Fn(&str) -> Option<PeerHandle>) -> EndpointState {
    let handle = match &target.place {
        Place::Node(node) => peer(node),
        Place::Local | Place::Outside => None,
    };
    EndpointState::new(target.address, target.place.clone(), handle)
}
