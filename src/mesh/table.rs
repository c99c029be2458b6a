//! The routing table in use: [`Routes`] with the live state of every endpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::affinity::Affinity;
use super::balancer::{Backend, Tier};
use super::endpoint::EndpointState;
use super::ingress::RouteTable;
use super::node_port::{Door, DoorRoute};
use super::routes::{
    Place, PortRef, PortRoute, Protocol, Routes, ServiceKey, ServiceRoute, Target,
};
use super::traffic::Subject;
use super::waiting::{Awaited, AwaitedKey};
use crate::net::PeerHandle;

/// What affinity belongs to: a port of a Service.
type AffinityKey = (ServiceKey, Protocol, u16);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) routes: Routes,
    /// Backends of each Service, in the order of its ports.
    by_service: BTreeMap<ServiceKey, Vec<ByFamily>>,
    by_cluster_ip: BTreeMap<(Protocol, IpAddr, u16), Arc<Backend>>,
    cluster_ips: BTreeSet<IpAddr>,
    /// What this node listens at.
    doors: BTreeMap<Door, DoorRoute>,
    pub(super) ingress: RouteTable<Arc<Backend>>,
    endpoints: BTreeMap<Target, Arc<EndpointState>>,
    /// Pods behind Services, by address.
    pods: BTreeMap<IpAddr, Arc<Subject>>,
    affinities: BTreeMap<AffinityKey, Arc<Affinity>>,
    awaited: BTreeMap<AwaitedKey, Arc<Awaited>>,
}

/// The backends of one port. Clients stay within their family where there are endpoints of both: a
/// pod may listen in one only, and then its Service should say so.
#[derive(Debug, Clone)]
struct ByFamily {
    first: PortBackends,
    /// Those of the other family.
    second: Option<PortBackends>,
    is_v6_first: bool,
}

impl ByFamily {
    /// For clients that ask at an address.
    fn at(&self, ip: IpAddr) -> &PortBackends {
        match &self.second {
            Some(second) if ip.is_ipv6() != self.is_v6_first => second,
            _ => &self.first,
        }
    }
}

/// The backends of one port and family, which are one and the same where no policy tells clients apart.
#[derive(Debug, Clone)]
struct PortBackends {
    all: Arc<Backend>,
    /// For clients in the cluster.
    internal: Arc<Backend>,
    /// For clients outside.
    external: Arc<Backend>,
}

impl Table {
    /// Builds the table; endpoints and clients that `old` knows keep their state.
    pub(super) fn build(
        routes: Routes,
        old: &Self,
        peer: impl Fn(&str) -> Option<PeerHandle>,
    ) -> Self {
        let mut table = Self { pods: pods(&routes, old), ..Self::default() };
        for (key, service) in &routes.services {
            let mut builder = Builder { table: &mut table, routes: &routes, old, peer: &peer };
            let ports: Vec<ByFamily> =
                service.ports.iter().map(|port| builder.by_family(key, service, port)).collect();
            for (port, backends) in service.ports.iter().zip(&ports) {
                table.add_port(key, service, port, backends);
            }
            table.add_health(key, service);
            for ip in &service.cluster_ips {
                table.cluster_ips.insert(*ip);
            }
            table.by_service.insert(key.clone(), ports);
        }
        table.routes = routes;
        table.ingress = table.routes.http.table.map(|backend| {
            let (namespace, name) = &backend.service;
            table.service_port(namespace, name, &backend.port)
        });
        table
    }

    fn add_port(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRoute,
        port: &PortRoute,
        backends: &ByFamily,
    ) {
        let at = |ip: &IpAddr| (port.protocol, *ip, port.port);
        for ip in &service.cluster_ips {
            self.by_cluster_ip.insert(at(ip), Arc::clone(&backends.at(*ip).internal));
        }
        for ip in &service.outer_ips {
            // Kubernetes leads clients in the cluster to all endpoints, whatever the policy.
            let all = || Arc::clone(&backends.at(*ip).all);
            self.by_cluster_ip.entry(at(ip)).or_insert_with(all);
        }
        let door = |number: u16| match port.protocol {
            Protocol::Tcp => Some(Door::Tcp(number)),
            Protocol::Udp => Some(Door::Udp(number)),
            Protocol::Sctp => None,
        };
        let leading_to = |source_ranges: &[_]| DoorRoute::Service {
            service: key.clone(),
            backend: Arc::clone(&backends.first.external),
            source_ranges: source_ranges.to_vec(),
        };
        if let Some(door) = port.node_port.and_then(door) {
            self.doors.insert(door, leading_to(&[]));
        }
        if let Some(door) = door(port.port).filter(|_| service.is_balanced) {
            // Of two Services that want one port, the first by name has it.
            self.doors.entry(door).or_insert_with(|| leading_to(&service.source_ranges));
        }
    }

    fn add_health(&mut self, key: &ServiceKey, service: &ServiceRoute) {
        if let Some(port) = service.health_port {
            let route = DoorRoute::Health { service: key.clone(), count: service.local_count };
            self.doors.insert(Door::Tcp(port), route);
        }
    }

    /// A Service's port by number or name, with all its endpoints.
    pub(super) fn service_port(
        &self,
        namespace: &str,
        name: &str,
        port: &PortRef,
    ) -> Option<Arc<Backend>> {
        self.port_backends(namespace, name, port).map(|backends| Arc::clone(&backends.all))
    }

    /// The same for clients in the cluster. A headless Service has no such thing: its clients choose
    /// an endpoint by name.
    pub(super) fn internal_port(
        &self,
        namespace: &str,
        name: &str,
        port: &PortRef,
    ) -> Option<Arc<Backend>> {
        let key = (namespace.to_owned(), name.to_owned());
        if self.routes.services.get(&key)?.is_headless {
            return None;
        }
        self.port_backends(namespace, name, port).map(|backends| Arc::clone(&backends.internal))
    }

    fn port_backends(&self, namespace: &str, name: &str, port: &PortRef) -> Option<&PortBackends> {
        let key = (namespace.to_owned(), name.to_owned());
        let route = self.routes.services.get(&key)?;
        let at = route.ports.iter().position(|candidate| {
            candidate.protocol == Protocol::Tcp
                && match port {
                    PortRef::Number(number) => candidate.port == *number,
                    PortRef::Name(name) => candidate.name == *name,
                }
        })?;
        self.by_service.get(&key)?.get(at).map(|families| &families.first)
    }

    /// The backend behind a Service address.
    pub(super) fn cluster_ip(&self, at: SocketAddr) -> Option<Arc<Backend>> {
        self.by_cluster_ip.get(&(Protocol::Tcp, at.ip(), at.port())).cloned()
    }

    /// The backend behind a Service address, for datagrams.
    pub(super) fn cluster_ip_udp(&self, at: SocketAddr) -> Option<Arc<Backend>> {
        self.by_cluster_ip.get(&(Protocol::Udp, at.ip(), at.port())).cloned()
    }

    /// Whether the address is a Service's, at whatever port.
    pub(super) fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        self.cluster_ips.contains(&ip)
    }

    /// What is behind a port of this node.
    pub(super) fn door(&self, door: Door) -> Option<&DoorRoute> {
        self.doors.get(&door)
    }

    pub(super) fn doors(&self) -> impl Iterator<Item = Door> + '_ {
        self.doors.keys().copied()
    }

    /// One address as a backend of its own, with its state if it is known.
    pub(super) fn single(
        &self,
        address: SocketAddr,
        peer: impl Fn(&str) -> Option<PeerHandle>,
    ) -> Backend {
        let target = Target { address, place: self.routes.place_of(address.ip()) };
        let known = self.endpoints.get(&target).cloned();
        let pod = self.pod(address.ip());
        let state = known.unwrap_or_else(|| Arc::new(new_state(&target, &peer).of_pod(pod)));
        Backend::new(vec![state], |_| Tier::Node)
    }

    /// The pod at an address, if a Service has it.
    pub(super) fn pod(&self, ip: IpAddr) -> Option<&Arc<Subject>> {
        self.pods.get(&ip)
    }

    /// Whether anything is called so in a series of pods.
    pub(super) fn pod_names(&self) -> BTreeSet<(&str, &str)> {
        self.pods.values().map(|pod| (pod.namespace.as_str(), pod.name.as_str())).collect()
    }

    /// Whether a pod with this address belongs to this node.
    pub(super) fn is_local_pod(&self, ip: IpAddr) -> bool {
        self.routes.place_of(ip) == Place::Local
    }

    /// Closes all kept streams: this node is about to stop.
    pub(super) fn drop_kept_streams(&self) {
        for endpoint in self.endpoints.values() {
            while endpoint.take_stream().is_some() {}
        }
    }

    pub(super) fn close_unused_streams(&self) {
        for endpoint in self.endpoints.values() {
            endpoint.close_unused_streams();
        }
    }
}

/// Makes the backends of one table.
struct Builder<'a, P> {
    table: &'a mut Table,
    routes: &'a Routes,
    old: &'a Table,
    peer: &'a P,
}

impl<P: Fn(&str) -> Option<PeerHandle>> Builder<'_, P> {
    fn by_family(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRoute,
        port: &PortRoute,
    ) -> ByFamily {
        let is_v6_first = service.is_v6_first;
        let first = port.of_family(is_v6_first);
        let second = port.of_family(!is_v6_first);
        if first.endpoints.is_empty() || second.endpoints.is_empty() {
            let first = self.port(key, service, port, true);
            return ByFamily { first, second: None, is_v6_first };
        }
        let first = self.port(key, service, &first, true);
        let second = Some(self.port(key, service, &second, false));
        ByFamily { first, second, is_v6_first }
    }

    /// Those who waited while there were no endpoints are told of the first family only.
    fn port(
        &mut self,
        key: &ServiceKey,
        service: &ServiceRoute,
        port: &PortRoute,
        is_first: bool,
    ) -> PortBackends {
        let affinity = service.affinity_seconds.map(|seconds| {
            let key = (key.clone(), port.protocol, port.port);
            let known = self.old.affinities.get(&key).filter(|known| known.is_for(seconds));
            let affinity = known.cloned().unwrap_or_else(|| Arc::new(Affinity::new(seconds)));
            self.table.affinities.insert(key, Arc::clone(&affinity));
            affinity
        });
        let subject = Arc::new(Subject::new(&key.0, &key.1));
        let of = (&subject, affinity.as_ref());
        let is_awaited = service.scales_from_zero && is_first;
        let awaited =
            |view: &'static str| is_awaited.then(|| (key.clone(), port.protocol, port.port, view));
        let all = self.backend(&port.endpoints, of, awaited("all"));
        let mut other = |targets: &Option<Vec<Target>>, view| match targets {
            Some(targets) => self.backend(targets, of, awaited(view)),
            None => Arc::clone(&all),
        };
        let internal = other(&port.internal, "internal");
        let external = if port.external == port.internal {
            Arc::clone(&internal)
        } else {
            other(&port.external, "external")
        };
        PortBackends { all, internal, external }
    }

    fn backend(
        &mut self,
        targets: &[Target],
        (service, affinity): (&Arc<Subject>, Option<&Arc<Affinity>>),
        awaited: Option<AwaitedKey>,
    ) -> Arc<Backend> {
        let state_of = |target: &Target| {
            let pod = self.table.pods.get(&target.address.ip());
            Arc::clone(self.table.endpoints.entry(target.clone()).or_insert_with(|| {
                let known = self.old.endpoints.get(target);
                // What was learnt of a pod says nothing of the next one at its address.
                let known = known.filter(|known| is_same(known.pod.as_ref(), pod)).cloned();
                known.unwrap_or_else(|| Arc::new(new_state(target, self.peer).of_pod(pod)))
            }))
        };
        let endpoints = targets.iter().map(state_of).collect();
        let tier = |endpoint: &EndpointState| self.routes.tier_of(&endpoint.place);
        let backend = Backend::new(endpoints, tier).with_affinity(affinity.cloned());
        let awaited = awaited.map(|key| {
            let known = self.old.awaited.get(&key).cloned();
            let awaited = known.unwrap_or_else(|| Arc::new(Awaited::new(&key.0)));
            self.table.awaited.insert(key, Arc::clone(&awaited));
            awaited
        });
        let backend = Arc::new(backend.of_service(service).awaiting(awaited));
        if let Some(awaited) = &backend.awaited {
            awaited.tell(&backend);
        }
        backend
    }
}

/// The pods of `routes`; those that `old` has as well keep their counters.
fn pods(routes: &Routes, old: &Table) -> BTreeMap<IpAddr, Arc<Subject>> {
    let subject = |(ip, (namespace, name)): (&IpAddr, &(String, String))| {
        let known = old.pods.get(ip).filter(|known| known.is(namespace, name)).cloned();
        (*ip, known.unwrap_or_else(|| Arc::new(Subject::new(namespace, name))))
    };
    routes.pods.iter().map(subject).collect()
}

fn is_same(a: Option<&Arc<Subject>>, b: Option<&Arc<Subject>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => a.is(&b.namespace, &b.name),
        _ => false,
    }
}

fn new_state(target: &Target, peer: &impl Fn(&str) -> Option<PeerHandle>) -> EndpointState {
    let handle = match &target.place {
        Place::Node(node) => peer(node),
        Place::Local | Place::Outside => None,
    };
    EndpointState::new(target.address, target.place.clone(), handle)
}
