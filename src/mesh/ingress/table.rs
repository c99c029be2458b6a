//! The routes of HTTP as pure data, built from objects, and the same with live backends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{Request, StatusCode};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use super::action::{Action, Protocol};
use super::matcher::{ActionId, Head, HostTest, Matcher, PathTest, Rule};
use super::{from_gateway, from_ingress};
use crate::api::gateway::GatewayObjects;
use crate::mesh::routes::{BackendRef, PortRef};

/// Namespace and name of a Secret.
pub type SecretName = (String, String);

/// What the routes of HTTP are built from.
#[derive(Debug, Default)]
pub struct HttpObjects {
    /// Ingresses of all classes.
    pub ingresses: Vec<Arc<Ingress>>,
    /// Their classes.
    pub ingress_classes: Vec<Arc<IngressClass>>,
    /// Everything of the Gateway API.
    pub gateway: GatewayObjects,
    /// Services: what their ports speak.
    pub services: Vec<Arc<Service>>,
}

/// Routes of HTTP as pure data.
#[derive(Debug, Clone, Default)]
pub struct HttpRoutes {
    pub(in crate::mesh) table: RouteTable<BackendRef>,
    pub(super) certificates: Vec<CertificateUse>,
    /// Ports of Gateways beside the ingress' own, and whether they speak TLS.
    pub(super) ports: BTreeMap<u16, bool>,
}

/// Which certificate is shown where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::mesh) struct CertificateUse {
    pub(super) port: u16,
    /// In lower case, `*.` for wildcards; empty: the names in the certificate, and where nothing
    /// else fits.
    pub(super) hosts: Vec<String>,
    pub(super) secret: SecretName,
}

impl HttpRoutes {
    /// The routes; a pure function of the objects.
    #[must_use]
    pub fn build(objects: &HttpObjects) -> Self {
        let mut building = Building::new(&objects.services);
        from_gateway::add(&objects.gateway, &mut building);
        from_ingress::add(&objects.ingresses, &objects.ingress_classes, &mut building);
        building.finish()
    }

    /// The Secrets whose certificates are wanted, by name.
    #[must_use]
    pub fn secrets(&self) -> BTreeSet<SecretName> {
        self.certificates.iter().map(|one| one.secret.clone()).collect()
    }
}

/// Rules and what becomes of their requests.
#[derive(Debug, Clone)]
pub(in crate::mesh) struct RouteTable<B> {
    matcher: Arc<Matcher>,
    actions: Vec<Arc<Action<B>>>,
}

impl<B> Default for RouteTable<B> {
    fn default() -> Self {
        Self { matcher: Arc::default(), actions: Vec::new() }
    }
}

impl<B> RouteTable<B> {
    /// What becomes of a request at `port`, and how many bytes of its path a prefix matched.
    pub(super) fn find<R>(
        &self,
        port: u16,
        host: &str,
        request: &Request<R>,
    ) -> Option<(Arc<Action<B>>, usize)> {
        let found = self.matcher.find(port, &Head::of(host, request))?;
        Some((Arc::clone(self.actions.get(found.action)?), found.prefix_bytes))
    }

    /// Names of all routes.
    pub(in crate::mesh) fn names(&self) -> BTreeSet<&str> {
        self.actions.iter().map(|action| &*action.name).collect()
    }

    /// The same with other backends.
    pub(in crate::mesh) fn map<U>(&self, resolve: impl Fn(&B) -> Option<U>) -> RouteTable<U> {
        RouteTable {
            matcher: Arc::clone(&self.matcher),
            actions: self.actions.iter().map(|action| Arc::new(action.map(&resolve))).collect(),
        }
    }
}

/// A table that is being made.
#[derive(Debug)]
pub(super) struct Building<'a> {
    services: BTreeMap<(&'a str, &'a str), &'a Service>,
    pub(super) matcher: Matcher,
    actions: Vec<Arc<Action<BackendRef>>>,
    pub(super) certificates: Vec<CertificateUse>,
    pub(super) ports: BTreeMap<u16, bool>,
}

impl<'a> Building<'a> {
    fn new(services: &'a [Arc<Service>]) -> Self {
        let named = services.iter().filter_map(|service| {
            let meta = &service.metadata;
            Some(((meta.namespace.as_deref()?, meta.name.as_deref()?), service.as_ref()))
        });
        Self {
            services: named.collect(),
            matcher: Matcher::default(),
            actions: Vec::new(),
            certificates: Vec::new(),
            ports: BTreeMap::new(),
        }
    }

    pub(super) fn action(&mut self, action: Action<BackendRef>) -> ActionId {
        self.actions.push(Arc::new(action));
        self.actions.len() - 1
    }

    pub(super) fn rule(&mut self, port: u16, host: &HostTest, path: PathTest, rule: Rule) {
        self.matcher.add(port, host, path, rule);
    }

    /// What the port of a Service speaks.
    pub(super) fn protocol(&self, backend: &BackendRef) -> Protocol {
        let (namespace, name) = &backend.service;
        let service = self.services.get(&(namespace.as_str(), name.as_str()));
        let ports = service.and_then(|service| service.spec.as_ref()?.ports.as_deref());
        let found = ports.unwrap_or_default().iter().find(|port| match &backend.port {
            PortRef::Number(number) => port.port == i32::from(*number),
            PortRef::Name(name) => port.name.as_ref() == Some(name),
        });
        match found.and_then(|port| port.app_protocol.as_deref()) {
            Some("kubernetes.io/h2c" | "h2c" | "grpc") => Protocol::H2c,
            _ => Protocol::Http1,
        }
    }

    fn finish(mut self) -> HttpRoutes {
        self.matcher.finish();
        HttpRoutes {
            table: RouteTable { matcher: Arc::new(self.matcher), actions: self.actions },
            certificates: self.certificates,
            ports: self.ports,
        }
    }
}

/// An action of an Ingress: what its backends lack is a matter of time.
pub(super) fn ingress_action(name: &str) -> Action<BackendRef> {
    Action::new(name, StatusCode::SERVICE_UNAVAILABLE)
}
