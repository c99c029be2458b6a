//! Which routes attach to which listeners, and which references count.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use crate::api::gateway::listener::{ListenerState, intersect};
use crate::api::gateway::types::{
    BackendObjectRef, GROUP, Gateway, GatewayClass, HTTPRoute, Listener, ObjectRef, ParentRef,
    ReferenceGrant,
};
use crate::api::gateway::{CONTROLLER, HTTP_PORT, HTTPS_PORT};
use crate::api::selector::LabelSelector;

/// All objects that routing by the Gateway API depends on.
#[derive(Debug, Clone, Default)]
pub struct GatewayObjects {
    /// Classes.
    pub classes: Vec<Arc<GatewayClass>>,
    /// Gateways of all classes.
    pub gateways: Vec<Arc<Gateway>>,
    /// Routes.
    pub routes: Vec<Arc<HTTPRoute>>,
    /// Grants.
    pub grants: Vec<Arc<ReferenceGrant>>,
    /// Labels of each namespace.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// A listener that a route attaches to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its place in the Gateway's list.
    pub listener: usize,
    /// For these hosts; empty: for every host.
    pub hosts: Vec<String>,
}

/// Why a route attaches to no listener of a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No listener has the name and port that the route names.
    NoMatchingParent,
    /// The listeners want other routes, or routes from elsewhere.
    NotAllowedByListeners,
    /// The listeners are for other hosts.
    NoMatchingListenerHostname,
}

impl Refusal {
    /// The spec's reason.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoMatchingParent => "NoMatchingParent",
            Self::NotAllowedByListeners => "NotAllowedByListeners",
            Self::NoMatchingListenerHostname => "NoMatchingListenerHostname",
        }
    }
}

/// Why a reference does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefProblem {
    /// The spec's reason.
    pub reason: &'static str,
    /// What to tell.
    pub message: String,
}

/// A Service's port that a reference means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The Service's port.
    pub port: u16,
}

/// Who comes first where two objects say different things: the older, then by name.
#[must_use]
pub fn precedence(meta: &ObjectMeta) -> (bool, Option<Timestamp>, String, String) {
    let created = meta.creation_timestamp.as_ref().map(|time| time.0);
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (created.is_none(), created, text(&meta.namespace), text(&meta.name))
}

/// Group, kind and namespace of who refers.
type From<'a> = (&'a str, &'a str, &'a str);
/// Group, kind, namespace and name of what is referred to.
type To<'a> = (&'a str, &'a str, &'a str, &'a str);

impl GatewayObjects {
    /// Whether the Gateway's class is one of ours.
    #[must_use]
    pub fn is_ours(&self, gateway: &Gateway) -> bool {
        let class = self
            .classes
            .iter()
            .find(|class| class.metadata.name.as_deref() == Some(&gateway.spec.gateway_class_name));
        class.is_some_and(|class| class.spec.controller_name == CONTROLLER)
    }

    /// Our Gateways, the oldest first.
    #[must_use]
    pub fn our_gateways(&self) -> Vec<&Arc<Gateway>> {
        let mut ours: Vec<_> = self.gateways.iter().filter(|one| self.is_ours(one)).collect();
        ours.sort_by_cached_key(|gateway| precedence(&gateway.metadata));
        ours
    }

    /// The states of a Gateway's listeners, by what it says itself and by what older Gateways made
    /// of their ports.
    #[must_use]
    pub fn listeners(&self, gateway: &Gateway) -> Vec<ListenerState> {
        let protocols = self.protocols();
        let mut states = ListenerState::of(gateway);
        for (state, listener) in states.iter_mut().zip(&gateway.spec.listeners) {
            let taken = protocols.get(&listener.port);
            if state.is_served() && taken.is_some_and(|taken| *taken != listener.protocol) {
                let message = format!("port {} is in use for another protocol", listener.port);
                state.refusal = Some(("PortUnavailable", message));
            }
        }
        states
    }

    /// What is spoken at each port: the oldest Gateway decides, after the ingress.
    fn protocols(&self) -> BTreeMap<u16, String> {
        let mut protocols =
            BTreeMap::from([(HTTP_PORT, "HTTP".to_owned()), (HTTPS_PORT, "HTTPS".to_owned())]);
        for gateway in self.our_gateways() {
            for (state, listener) in ListenerState::of(gateway).iter().zip(&gateway.spec.listeners)
            {
                if state.is_served() {
                    protocols.entry(listener.port).or_insert_with(|| listener.protocol.clone());
                }
            }
        }
        protocols
    }

    /// The Gateway that `parent` of a route in `namespace` means, if it is one of ours.
    #[must_use]
    pub fn parent(&self, namespace: &str, parent: &ParentRef) -> Option<&Arc<Gateway>> {
        let is_gateway = parent.group.as_deref().unwrap_or(GROUP) == GROUP
            && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway";
        let within = parent.namespace.as_deref().unwrap_or(namespace);
        let mut found = self.gateways.iter().filter(|gateway| {
            let meta = &gateway.metadata;
            meta.name.as_deref() == Some(&parent.name) && meta.namespace.as_deref() == Some(within)
        });
        found.find(|gateway| is_gateway && self.is_ours(gateway))
    }

    /// The listeners of `gateway` that `route` attaches to by `parent`.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn attach(
        &self,
        gateway: &Gateway,
        route: &HTTPRoute,
        parent: &ParentRef,
    ) -> Result<Vec<Attached>, Refusal> {
        let states = ListenerState::of(gateway);
        let named: Vec<(usize, &Listener, &ListenerState)> = gateway
            .spec
            .listeners
            .iter()
            .zip(&states)
            .enumerate()
            .map(|(at, (listener, state))| (at, listener, state))
            .filter(|(_, listener, _)| {
                parent.section_name.as_ref().is_none_or(|name| *name == listener.name)
                    && parent.port.is_none_or(|port| port == listener.port)
            })
            .collect();
        if named.is_empty() {
            return Err(Refusal::NoMatchingParent);
        }
        let allowed: Vec<_> = named
            .into_iter()
            .filter(|(_, listener, state)| {
                state.takes_http_routes && self.is_allowed(gateway, route, listener)
            })
            .collect();
        if allowed.is_empty() {
            return Err(Refusal::NotAllowedByListeners);
        }
        let attached: Vec<Attached> = allowed
            .into_iter()
            .filter_map(|(at, listener, _)| {
                let hosts = intersect(listener.hostname.as_deref(), &route.spec.hostnames)?;
                Some(Attached { listener: at, hosts })
            })
            .collect();
        if attached.is_empty() {
            return Err(Refusal::NoMatchingListenerHostname);
        }
        Ok(attached)
    }

    fn is_allowed(&self, gateway: &Gateway, route: &HTTPRoute, listener: &Listener) -> bool {
        let from = listener.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
        let route_in = route.metadata.namespace.as_deref().unwrap_or_default();
        match from.and_then(|from| from.from.as_deref()).unwrap_or("Same") {
            "All" => true,
            "Same" => gateway.metadata.namespace.as_deref() == Some(route_in),
            "Selector" => {
                let selector = from.and_then(|from| from.selector.as_ref());
                let selector = selector.and_then(|one| LabelSelector::from_json(&json!(one)).ok());
                let labels = self.namespaces.get(route_in);
                match (selector, labels) {
                    (Some(selector), Some(labels)) => selector.matches_labels(labels),
                    _ => false,
                }
            }
            _ => false,
        }
    }

    /// Whether a reference is within a namespace, or granted.
    fn is_granted(&self, from: From<'_>, to: To<'_>) -> bool {
        let ((from_group, from_kind, from_in), (group, kind, namespace, name)) = (from, to);
        from_in == namespace
            || self.grants.iter().any(|grant| {
                grant.metadata.namespace.as_deref() == Some(namespace)
                    && grant.spec.from.iter().any(|one| {
                        one.group == from_group && one.kind == from_kind && one.namespace == from_in
                    })
                    && grant.spec.to.iter().any(|one| {
                        one.group == group
                            && one.kind == kind
                            && one.name.as_deref().is_none_or(|n| n.is_empty() || n == name)
                    })
            })
    }

    /// The Service port that a route in `namespace` means. Whether it exists is not looked at.
    ///
    /// # Errors
    ///
    /// `InvalidKind` and `RefNotPermitted`; `BackendNotFound` when it names no port.
    pub fn backend(
        &self,
        namespace: &str,
        backend: &BackendObjectRef,
    ) -> Result<ServiceRef, RefProblem> {
        let group = backend.group.as_deref().unwrap_or_default();
        let kind = backend.kind.as_deref().unwrap_or("Service");
        let problem = |reason, message| RefProblem { reason, message };
        if !group.is_empty() || kind != "Service" {
            let message = format!("backends of kind {kind} are not served");
            return Err(problem("InvalidKind", message));
        }
        let within = backend.namespace.as_deref().unwrap_or(namespace);
        if !self.is_granted((GROUP, "HTTPRoute", namespace), ("", kind, within, &backend.name)) {
            let message = format!("no ReferenceGrant allows service {within}/{}", backend.name);
            return Err(problem("RefNotPermitted", message));
        }
        let Some(port) = backend.port else {
            let message = format!("no port of service {within}/{} is named", backend.name);
            return Err(problem("BackendNotFound", message));
        };
        Ok(ServiceRef { namespace: within.to_owned(), name: backend.name.clone(), port })
    }

    /// Namespace and name of the Secret that a Gateway in `namespace` means.
    ///
    /// # Errors
    ///
    /// `InvalidCertificateRef` and `RefNotPermitted`.
    pub fn certificate(
        &self,
        namespace: &str,
        secret: &ObjectRef,
    ) -> Result<(String, String), RefProblem> {
        let group = secret.group.as_deref().unwrap_or_default();
        let kind = secret.kind.as_deref().unwrap_or("Secret");
        if !group.is_empty() || kind != "Secret" {
            let message = format!("certificates of kind {kind} are not served");
            return Err(RefProblem { reason: "InvalidCertificateRef", message });
        }
        let within = secret.namespace.as_deref().unwrap_or(namespace);
        if !self.is_granted((GROUP, "Gateway", namespace), ("", kind, within, &secret.name)) {
            let message = format!("no ReferenceGrant allows secret {within}/{}", secret.name);
            return Err(RefProblem { reason: "RefNotPermitted", message });
        }
        Ok((within.to_owned(), secret.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn objects(listeners: Value) -> GatewayObjects {
        let label = |team: &str| BTreeMap::from([("team".to_owned(), team.to_owned())]);
        GatewayObjects {
            classes: vec![object(json!({"metadata": {"name": "edgeorc"},
                "spec": {"controllerName": CONTROLLER}}))],
            gateways: vec![object(json!({"metadata": {"namespace": "infra", "name": "gw"},
                "spec": {"gatewayClassName": "edgeorc", "listeners": listeners}}))],
            namespaces: BTreeMap::from([
                ("infra".to_owned(), BTreeMap::new()),
                ("red".to_owned(), label("red")),
                ("blue".to_owned(), label("blue")),
            ]),
            ..GatewayObjects::default()
        }
    }

    fn route(namespace: &str, hosts: &[&str]) -> HTTPRoute {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": "r"},
            "spec": {"hostnames": hosts}}))
        .unwrap()
    }

    fn parent(section: Option<&str>, port: Option<u16>) -> ParentRef {
        ParentRef {
            namespace: Some("infra".to_owned()),
            name: "gw".to_owned(),
            section_name: section.map(str::to_owned),
            port,
            ..ParentRef::default()
        }
    }

    #[test]
    fn a_route_attaches_where_the_listener_lets_it() {
        let all = objects(json!([
            {"name": "same", "port": 80, "protocol": "HTTP"},
            {"name": "all", "port": 81, "protocol": "HTTP", "hostname": "*.a.com",
             "allowedRoutes": {"namespaces": {"from": "All"}}},
            {"name": "red", "port": 82, "protocol": "HTTP", "allowedRoutes": {"namespaces":
                {"from": "Selector", "selector": {"matchLabels": {"team": "red"}}}}},
        ]));
        let attach = |route: &HTTPRoute, parent: &ParentRef| {
            let namespace = route.metadata.namespace.as_deref().unwrap();
            let gateway = all.parent(namespace, parent).unwrap();
            let attached = all.attach(gateway, route, parent)?;
            Ok(attached.into_iter().map(|one| one.listener).collect::<Vec<_>>())
        };
        let any = parent(None, None);
        assert_eq!(attach(&route("infra", &[]), &any), Ok(vec![0, 1]));
        assert_eq!(attach(&route("red", &["x.a.com"]), &any), Ok(vec![1, 2]));
        assert_eq!(
            attach(&route("blue", &["b.com"]), &any),
            Err(Refusal::NoMatchingListenerHostname)
        );
        assert_eq!(
            attach(&route("blue", &[]), &parent(Some("red"), None)),
            Err(Refusal::NotAllowedByListeners)
        );
        assert_eq!(attach(&route("red", &[]), &parent(None, Some(82))), Ok(vec![2]));
        for nowhere in [parent(Some("none"), None), parent(None, Some(1))] {
            assert_eq!(attach(&route("red", &[]), &nowhere), Err(Refusal::NoMatchingParent));
        }
        assert!(
            all.parent("red", &ParentRef { name: "gw".into(), ..Default::default() }).is_none()
        );
    }

    #[test]
    fn a_gateway_of_another_class_is_not_ours() {
        let mut all = objects(json!([]));
        assert_eq!(all.our_gateways().len(), 1);
        all.classes = vec![object(json!({"metadata": {"name": "edgeorc"},
            "spec": {"controllerName": "example.com/other"}}))];
        assert!(all.our_gateways().is_empty());
        assert!(all.parent("infra", &parent(None, None)).is_none());
    }

    #[test]
    fn the_oldest_gateway_decides_what_is_spoken_at_a_port() {
        let mut all = objects(json!([{"name": "a", "port": 9000, "protocol": "HTTP"}]));
        all.gateways.push(object(json!({"metadata": {"namespace": "infra", "name": "later"},
            "spec": {"gatewayClassName": "edgeorc", "listeners": [
                {"name": "a", "port": 9000, "protocol": "HTTPS"},
                {"name": "b", "port": 443, "protocol": "HTTP"},
                {"name": "c", "port": 9001, "protocol": "HTTPS"}]}})));
        let states = all.listeners(&all.gateways[1]);
        let reasons: Vec<_> = states.iter().map(|s| s.refusal.as_ref().map(|r| r.0)).collect();
        assert_eq!(reasons, [Some("PortUnavailable"), Some("PortUnavailable"), None]);
        assert!(all.listeners(&all.gateways[0])[0].is_served());
    }

    #[test]
    fn references_into_another_namespace_need_a_grant_from_there() {
        let mut all = objects(json!([]));
        let backend = |value: Value| -> BackendObjectRef { serde_json::from_value(value).unwrap() };
        let there = backend(json!({"name": "web", "namespace": "blue", "port": 80}));
        assert_eq!(all.backend("red", &there).unwrap_err().reason, "RefNotPermitted");
        assert!(all.backend("blue", &there).is_ok());
        let secret = ObjectRef {
            name: "tls".to_owned(),
            namespace: Some("blue".to_owned()),
            ..ObjectRef::default()
        };
        assert_eq!(all.certificate("infra", &secret).unwrap_err().reason, "RefNotPermitted");
        all.grants.push(object(json!({"metadata": {"namespace": "blue", "name": "g"}, "spec": {
            "from": [{"group": GROUP, "kind": "HTTPRoute", "namespace": "red"}],
            "to": [{"group": "", "kind": "Service", "name": "web"}]}})));
        assert_eq!(
            all.backend("red", &there),
            Ok(ServiceRef { namespace: "blue".into(), name: "web".into(), port: 80 })
        );
        let other = backend(json!({"name": "db", "namespace": "blue", "port": 80}));
        assert_eq!(all.backend("red", &other).unwrap_err().reason, "RefNotPermitted");
        assert_eq!(all.certificate("infra", &secret).unwrap_err().reason, "RefNotPermitted");
        all.grants.push(object(json!({"metadata": {"namespace": "blue", "name": "h"}, "spec": {
            "from": [{"group": GROUP, "kind": "Gateway", "namespace": "infra"}],
            "to": [{"group": "", "kind": "Secret"}]}})));
        assert_eq!(all.certificate("infra", &secret), Ok(("blue".into(), "tls".into())));
        let bucket = backend(json!({"kind": "Bucket", "group": "x.com", "name": "b"}));
        assert_eq!(all.backend("red", &bucket).unwrap_err().reason, "InvalidKind");
    }
}
