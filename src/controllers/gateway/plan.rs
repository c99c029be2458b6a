//! The status that objects should have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::api::gateway::{
    BackendObjectRef, CONTROLLER, GROUP, Gateway, GatewayClass, GatewayObjects, HTTPRoute,
    Listener, ListenerState, ParentRef, RefProblem, compile_regex, ingress_is_ours,
};
use crate::controllers::gateway::conditions::{Condition, written};

/// Features of the Gateway API that are served, as its conformance tests name them, in order.
const FEATURES: &[&str] = &[
    "Gateway",
    "GatewayHTTPListenerIsolation",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
];
/// Filters that are applied.
const FILTERS: &[&str] = &[
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
];
/// Addresses in a status: the spec's bound.
const ADDRESSES_MAX: usize = 16;
/// Parents in a route's status: the spec's bound.
const PARENTS_MAX: usize = 32;

/// Everything that status depends on.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) objects: GatewayObjects,
    pub(super) ingresses: Vec<Arc<Ingress>>,
    pub(super) ingress_classes: Vec<Arc<IngressClass>>,
    /// Ports of each Service, by namespace and name.
    pub(super) services: BTreeMap<(String, String), BTreeSet<u16>>,
    /// Those of type `kubernetes.io/tls`.
    pub(super) secrets: Vec<Arc<Secret>>,
    pub(super) nodes: Nodes,
    pub(super) now: String,
}

/// The nodes that are ready.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) count: usize,
    pub(super) addresses: BTreeSet<String>,
    /// Ports that nodes could not open: node and reason.
    pub(super) closed: BTreeMap<u16, Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    GatewayClass,
    Gateway,
    HttpRoute,
    Ingress,
}

/// A status to write, if the object is still as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Write {
    pub(super) kind: Kind,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) resource_version: Option<String>,
    pub(super) status: Value,
}

impl Write {
    /// `None` when the object says so already.
    fn new(kind: Kind, meta: &ObjectMeta, had: Option<&Value>, status: Value) -> Option<Self> {
        let says =
            |(key, value): (&String, &Value)| had.and_then(|had| had.get(key)) == Some(value);
        let is_there = status.as_object().is_some_and(|status| status.iter().all(says));
        (!is_there).then(|| Self {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            status,
        })
    }
}

/// All that must be written.
pub(super) fn plan(view: &View) -> Vec<Write> {
    let objects = &view.objects;
    let classes = objects.classes.iter().filter_map(|class| plan_class(view, class));
    let gateways = objects.our_gateways().into_iter();
    let gateways = gateways.filter_map(|gateway| plan_gateway(view, gateway));
    let routes = objects.routes.iter().filter_map(|route| plan_route(view, route));
    let ingresses = view.ingresses.iter().filter_map(|ingress| plan_ingress(view, ingress));
    classes.chain(gateways).chain(routes).chain(ingresses).collect()
}

fn plan_class(view: &View, class: &GatewayClass) -> Option<Write> {
    if class.spec.controller_name != CONTROLLER {
        return None;
    }
    let had = class.status.as_ref();
    let conditions = if class.spec.parameters_ref.is_none() {
        Condition::yes("Accepted", "Accepted")
    } else {
        Condition::no("Accepted", "InvalidParameters", "there are no parameters")
    };
    let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
    let status = json!({
        "conditions": written_for(&[conditions], had, &class.metadata, view),
        "supportedFeatures": features,
    });
    Write::new(Kind::GatewayClass, &class.metadata, had, status)
}

fn written_for(
    conditions: &[Condition],
    had: Option<&Value>,
    meta: &ObjectMeta,
    view: &View,
) -> Value {
    let had = had.and_then(|had| had.get("conditions"));
    written(conditions, had, meta.generation.unwrap_or(0), &view.now)
}

fn plan_gateway(view: &View, gateway: &Gateway) -> Option<Write> {
    let had = gateway.status.as_ref();
    let states = view.objects.listeners(gateway);
    let listeners: Vec<(Value, bool, bool)> = gateway
        .spec
        .listeners
        .iter()
        .zip(&states)
        .enumerate()
        .map(|(at, (listener, state))| listener_status(view, gateway, at, listener, state))
        .collect();
    let valid = listeners.iter().filter(|(_, is_valid, _)| *is_valid).count();
    let is_programmed = listeners.iter().any(|(_, _, is_programmed)| *is_programmed);
    let reason = if valid == listeners.len() { "Accepted" } else { "ListenersNotValid" };
    let accepted = if !gateway.spec.addresses.is_empty() {
        let text = "the addresses of a Gateway are those of the nodes";
        Condition::no("Accepted", "UnsupportedAddress", text)
    } else if valid > 0 || is_programmed {
        Condition::yes("Accepted", reason)
    } else {
        Condition::no("Accepted", reason, "no listener can be served")
    };
    let programmed = if view.nodes.addresses.is_empty() {
        Condition::no("Programmed", "AddressNotAssigned", "no node is ready")
    } else if accepted.holds && is_programmed {
        Condition::yes("Programmed", "Programmed")
    } else {
        Condition::no("Programmed", "Invalid", "no listener is served")
    };
    let addresses = view.nodes.addresses.iter().take(ADDRESSES_MAX);
    let addresses: Vec<Value> =
        addresses.map(|ip| json!({"type": "IPAddress", "value": ip})).collect();
    let status = json!({
        "addresses": addresses,
        "conditions": written_for(&[accepted, programmed], had, &gateway.metadata, view),
        "listeners": listeners.into_iter().map(|(status, _, _)| status).collect::<Vec<_>>(),
    });
    Write::new(Kind::Gateway, &gateway.metadata, had, status)
}

/// The listener's status, whether it is valid, and whether it is served.
fn listener_status(
    view: &View,
    gateway: &Gateway,
    at: usize,
    listener: &Listener,
    state: &ListenerState,
) -> (Value, bool, bool) {
    let accepted = match (&state.refusal, state.conflict) {
        (Some((reason, message)), _) => Condition::no("Accepted", reason, message.clone()),
        (None, Some(reason)) => Condition::no("Accepted", reason, "another listener has this port"),
        (None, None) => port_condition(view, listener.port),
    };
    let conflicted = match state.conflict {
        Some(reason) => Condition::yes("Conflicted", reason),
        None => Condition::no("Conflicted", "NoConflicts", ""),
    };
    let (refs, has_certificate) = certificates(view, gateway, listener);
    let resolved = if state.has_unknown_kinds {
        let text = "only HTTPRoutes are served";
        Condition::no("ResolvedRefs", "InvalidRouteKinds", text)
    } else {
        refs
    };
    let is_valid = accepted.holds && resolved.holds;
    let is_served = accepted.holds && has_certificate;
    let programmed = if is_served {
        Condition::yes("Programmed", "Programmed")
    } else {
        Condition::no("Programmed", "Invalid", "the listener is not served")
    };
    let kinds = if state.takes_http_routes {
        json!([{"group": GROUP, "kind": "HTTPRoute"}])
    } else {
        json!([])
    };
    let had = gateway.status.as_ref().and_then(|status| status.get("listeners"));
    let had = had.and_then(Value::as_array).and_then(|all| {
        all.iter().find(|one| one.get("name").and_then(Value::as_str) == Some(&listener.name))
    });
    let conditions = [accepted, programmed, resolved, conflicted];
    let status = json!({
        "name": listener.name,
        "supportedKinds": kinds,
        "attachedRoutes": attached(view, gateway, at),
        "conditions": written_for(&conditions, had, &gateway.metadata, view),
    });
    (status, is_valid, is_served)
}

fn port_condition(view: &View, port: u16) -> Condition {
    let closed = view.nodes.closed.get(&port).map(Vec::as_slice).unwrap_or_default();
    let text = format!("port {port} cannot be opened on {}", closed.join(", "));
    if closed.is_empty() {
        Condition::yes("Accepted", "Accepted")
    } else if closed.len() >= view.nodes.count {
        Condition::no("Accepted", "PortUnavailable", text)
    } else {
        Condition { message: text, ..Condition::yes("Accepted", "Accepted") }
    }
}

/// `ResolvedRefs`, and whether a certificate can be shown where one is needed.
fn certificates(view: &View, gateway: &Gateway, listener: &Listener) -> (Condition, bool) {
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let refs = listener.tls.iter().flat_map(|tls| &tls.certificate_refs);
    let mut problem: Option<RefProblem> = None;
    let mut good = 0;
    for secret in refs {
        let found = view.objects.certificate(namespace, secret).and_then(|name| {
            let invalid = |message: &str| RefProblem {
                reason: "InvalidCertificateRef",
                message: format!("secret {}/{} {message}", name.0, name.1),
            };
            let is_it = |one: &&Arc<Secret>| {
                let meta = &one.metadata;
                meta.namespace.as_ref() == Some(&name.0) && meta.name.as_ref() == Some(&name.1)
            };
            let found = view.secrets.iter().find(is_it);
            let secret = found.ok_or_else(|| invalid("of type kubernetes.io/tls is not there"))?;
            if is_certificate(secret) { Ok(()) } else { Err(invalid("holds no certificate")) }
        });
        match found {
            Ok(()) => good += 1,
            Err(err) => problem = problem.or(Some(err)),
        }
    }
    let condition = match problem {
        None => Condition::yes("ResolvedRefs", "ResolvedRefs"),
        Some(problem) => Condition::no("ResolvedRefs", problem.reason, problem.message),
    };
    let needs_one = listener.protocol == "HTTPS"
        && listener.tls.as_ref().is_some_and(|tls| !tls.certificate_refs.is_empty());
    (condition, !needs_one || good > 0)
}

/// Whether both entries look like PEM of the right kind.
fn is_certificate(secret: &Secret) -> bool {
    let holds = |key: &str, label: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        let text = data.and_then(|data| std::str::from_utf8(&data.0).ok()).unwrap_or_default();
        text.contains("-----BEGIN ") && text.contains(label)
    };
    holds("tls.crt", "CERTIFICATE-----") && holds("tls.key", "PRIVATE KEY-----")
}

/// How many routes attach to the listener.
fn attached(view: &View, gateway: &Gateway, at: usize) -> usize {
    let objects = &view.objects;
    let attaches = |route: &&Arc<HTTPRoute>| {
        let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
        route.spec.parent_refs.iter().any(|parent| {
            let found = objects.parent(namespace, parent);
            found.is_some_and(|found| {
                found.metadata.uid == gateway.metadata.uid
                    && found.metadata.name == gateway.metadata.name
                    && found.metadata.namespace == gateway.metadata.namespace
            }) && objects
                .attach(gateway, route, parent)
                .is_ok_and(|all| all.iter().any(|one| one.listener == at))
        })
    };
    objects.routes.iter().filter(attaches).count()
}

fn plan_route(view: &View, route: &HTTPRoute) -> Option<Write> {
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    let had = route.status.as_ref();
    let before = had.and_then(|had| had.get("parents")).and_then(Value::as_array);
    let before = before.map(Vec::as_slice).unwrap_or_default();
    let is_our_entry =
        |one: &Value| one.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER);
    let mut parents: Vec<Value> = before.iter().filter(|one| !is_our_entry(one)).cloned().collect();
    let mut named: Vec<&ParentRef> = Vec::new();
    for parent in &route.spec.parent_refs {
        let Some(gateway) = view.objects.parent(namespace, parent) else { continue };
        if named.contains(&parent) || parents.len() >= PARENTS_MAX {
            continue;
        }
        named.push(parent);
        let parent_ref = without_nulls(json!(parent));
        let had = before
            .iter()
            .find(|one| is_our_entry(one) && one.get("parentRef") == Some(&parent_ref));
        let accepted = match (view.objects.attach(gateway, route, parent), unsupported(route)) {
            (Err(refusal), _) => {
                Condition::no("Accepted", refusal.reason(), "no listener takes the route")
            }
            (Ok(_), Some(text)) => Condition::no("Accepted", "UnsupportedValue", text),
            (Ok(_), None) => Condition::yes("Accepted", "Accepted"),
        };
        let resolved = match backends(view, namespace, route) {
            Ok(()) => Condition::yes("ResolvedRefs", "ResolvedRefs"),
            Err(problem) => Condition::no("ResolvedRefs", problem.reason, problem.message),
        };
        parents.push(json!({
            "parentRef": parent_ref,
            "controllerName": CONTROLLER,
            "conditions": written_for(&[accepted, resolved], had, &route.metadata, view),
        }));
    }
    if parents.is_empty() && before.is_empty() {
        return None;
    }
    Write::new(Kind::HttpRoute, &route.metadata, had, json!({"parents": parents}))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    }
}

/// What of the route cannot be served.
fn unsupported(route: &HTTPRoute) -> Option<String> {
    for rule in &route.spec.rules {
        let filters = rule.filters.iter();
        let filters = filters.chain(rule.backend_refs.iter().flat_map(|one| &one.filters));
        for filter in filters {
            if !FILTERS.contains(&filter.type_.as_str()) {
                return Some(format!("filter {} is not supported", filter.type_));
            }
        }
        for one in &rule.matches {
            let path = one.path.iter().map(|path| (path.type_.as_deref(), path.value.as_deref()));
            let values = one.headers.iter().chain(&one.query_params);
            let values = values.map(|one| (one.type_.as_deref(), Some(one.value.as_str())));
            for (kind, value) in path.chain(values) {
                let value = value.unwrap_or_default();
                if kind == Some("RegularExpression") && compile_regex(value).is_none() {
                    return Some(format!("{value:?} is no regular expression"));
                }
            }
        }
    }
    None
}

/// The first backend that does not count.
fn backends(view: &View, namespace: &str, route: &HTTPRoute) -> Result<(), RefProblem> {
    let mirrors = |filters: &[crate::api::gateway::HttpRouteFilter]| -> Vec<BackendObjectRef> {
        let mirrors = filters.iter().filter_map(|filter| filter.request_mirror.as_ref());
        mirrors.map(|mirror| mirror.backend_ref.clone()).collect()
    };
    for rule in &route.spec.rules {
        let own = rule.backend_refs.iter().map(|one| one.target());
        for backend in own.chain(mirrors(&rule.filters)) {
            let service = view.objects.backend(namespace, &backend)?;
            let key = (service.namespace, service.name);
            let ports = view.services.get(&key);
            if !ports.is_some_and(|ports| ports.contains(&service.port)) {
                let message = format!("service {}/{} has no port {}", key.0, key.1, service.port);
                return Err(RefProblem { reason: "BackendNotFound", message });
            }
        }
    }
    Ok(())
}

fn plan_ingress(view: &View, ingress: &Ingress) -> Option<Write> {
    if !ingress_is_ours(ingress, &view.ingress_classes) {
        return None;
    }
    let had = ingress.status.as_ref().and_then(|status| serde_json::to_value(status).ok());
    let addresses: Vec<Value> =
        view.nodes.addresses.iter().take(ADDRESSES_MAX).map(|ip| json!({"ip": ip})).collect();
    let status = json!({"loadBalancer": {"ingress": addresses}});
    Write::new(Kind::Ingress, &ingress.metadata, had.as_ref(), status)
}
