//! Gateways and HTTPRoutes as rules.

use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::action::{
    Action, Choice, HeaderChange, Mirror, PathChange, Protocol, Redirect, Rewrite,
};
use super::matcher::{HostTest, Owner, PathTest, Rule, ValueTest};
use super::table::{Building, CertificateUse};
use crate::api::gateway::{
    Attached, Gateway, GatewayObjects, HTTP_PORT, HTTPRoute, HTTPS_PORT, HeaderModifier,
    HttpBackendRef, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, PathModifier, RequestMirror,
    ServiceRef, ValueMatch, compile_regex, parse_duration, precedence,
};
use crate::mesh::routes::{BackendRef, PortRef};

/// Adds the rules of all routes at our Gateways; the oldest wins where two say different things.
pub(super) fn add(objects: &GatewayObjects, building: &mut Building<'_>) {
    let gateways = objects.our_gateways();
    for (number, gateway) in gateways.iter().enumerate() {
        add_listeners(objects, gateway, number, building);
    }
    let mut routes: Vec<_> = objects.routes.iter().collect();
    routes.sort_by_cached_key(|route| precedence(&route.metadata));
    for route in routes {
        let places = places(objects, &gateways, route);
        if !places.is_empty() {
            add_route(objects, route, &places, building);
        }
    }
}

/// Opens ports, shows certificates, and keeps listeners of one Gateway apart.
fn add_listeners(
    objects: &GatewayObjects,
    gateway: &Gateway,
    number: usize,
    building: &mut Building<'_>,
) {
    let namespace = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let states = objects.listeners(gateway);
    let mut hosts: std::collections::BTreeMap<u16, Vec<(String, usize)>> = Default::default();
    for (at, (listener, state)) in gateway.spec.listeners.iter().zip(&states).enumerate() {
        if !state.is_served() {
            continue;
        }
        let host = listener.hostname.clone().unwrap_or_default().to_ascii_lowercase();
        hosts.entry(listener.port).or_default().push((host.clone(), at));
        let is_tls = listener.protocol == "HTTPS";
        if !matches!(listener.port, HTTP_PORT | HTTPS_PORT) {
            building.ports.entry(listener.port).or_insert(is_tls);
        }
        let certificates = listener.tls.iter().flat_map(|tls| &tls.certificate_refs);
        for secret in certificates.filter_map(|one| objects.certificate(namespace, one).ok()) {
            let host = (!host.is_empty()).then(|| host.clone());
            building.certificates.push(CertificateUse {
                port: listener.port,
                hosts: host.into_iter().collect(),
                secret,
            });
        }
    }
    for (port, hosts) in hosts {
        building.matcher.isolate(port, number, hosts);
    }
}

/// A listener that a route's rules are for.
struct Place {
    port: u16,
    owner: Owner,
    hosts: Vec<HostTest>,
}

fn places(
    objects: &GatewayObjects,
    gateways: &[&std::sync::Arc<Gateway>],
    route: &HTTPRoute,
) -> Vec<Place> {
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    let mut places: Vec<Place> = Vec::new();
    for parent in &route.spec.parent_refs {
        let Some(gateway) = objects.parent(namespace, parent) else { continue };
        let number = gateways.iter().position(|one| std::sync::Arc::ptr_eq(one, gateway));
        let Some(number) = number else { continue };
        let states = objects.listeners(gateway);
        for Attached { listener, hosts } in
            objects.attach(gateway, route, parent).unwrap_or_default()
        {
            let owner = Owner { gateway: number, listener };
            let Some(port) = gateway.spec.listeners.get(listener).map(|one| one.port) else {
                continue;
            };
            let is_served = states.get(listener).is_some_and(|state| state.is_served());
            if !is_served || places.iter().any(|place| place.owner == owner) {
                continue;
            }
            let hosts = if hosts.is_empty() {
                vec![HostTest::Any]
            } else {
                hosts.iter().map(|host| HostTest::of_gateway(host)).collect()
            };
            places.push(Place { port, owner, hosts });
        }
    }
    places
}

fn add_route(
    objects: &GatewayObjects,
    route: &HTTPRoute,
    places: &[Place],
    building: &mut Building<'_>,
) {
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    let name = route.metadata.name.as_deref().unwrap_or_default();
    for (number, rule) in route.spec.rules.iter().enumerate() {
        let name = format!("httproute/{namespace}/{name}/{number}");
        let action = action(objects, namespace, &name, rule, building);
        let action = building.action(action);
        let any = [HttpRouteMatch::default()];
        let matches = if rule.matches.is_empty() { &any[..] } else { &rule.matches };
        for one in matches {
            let Some((path, rule)) = tests(one, action) else { continue };
            for place in places {
                for host in &place.hosts {
                    let rule = Rule { owner: Some(place.owner), ..rule.clone() };
                    building.rule(place.port, host, path.clone(), rule);
                }
            }
        }
    }
}

/// `None` when the match can never be: an expression or method that means nothing.
fn tests(one: &HttpRouteMatch, action: usize) -> Option<(PathTest, Rule)> {
    let path = one.path.as_ref();
    let text = path.and_then(|path| path.value.clone()).unwrap_or_else(|| "/".to_owned());
    let path = match path.and_then(|path| path.type_.as_deref()).unwrap_or("PathPrefix") {
        "Exact" => PathTest::Exact(text),
        "RegularExpression" => PathTest::Regex(compile_regex(&text)?),
        _ => PathTest::Prefix(text),
    };
    let method = match &one.method {
        None => None,
        Some(method) => Some(Method::from_bytes(method.as_bytes()).ok()?),
    };
    let mut rule = Rule { method, ..Rule::plain(action) };
    for header in &one.headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        // The first of several entries for one name counts.
        if rule.headers.iter().all(|(known, _)| *known != name) {
            rule.headers.push((name, value_test(header)?));
        }
    }
    for parameter in &one.query_params {
        if rule.query.iter().all(|(known, _)| *known != parameter.name) {
            rule.query.push((parameter.name.clone(), value_test(parameter)?));
        }
    }
    Some((path, rule))
}

fn value_test(value: &ValueMatch) -> Option<ValueTest> {
    match value.type_.as_deref() {
        Some("RegularExpression") => compile_regex(&value.value).map(ValueTest::Regex),
        _ => Some(ValueTest::Exact(value.value.clone())),
    }
}

fn action(
    objects: &GatewayObjects,
    namespace: &str,
    name: &str,
    rule: &HttpRouteRule,
    building: &Building<'_>,
) -> Action<BackendRef> {
    let mut action = Action::new(name, StatusCode::INTERNAL_SERVER_ERROR);
    let is_known = add_filters(objects, namespace, &rule.filters, &mut action);
    if let Some(timeouts) = &rule.timeouts {
        let limit = |text: &Option<String>| {
            let limit = text.as_deref().and_then(parse_duration)?;
            Some(if limit.is_zero() { Duration::MAX } else { limit })
        };
        action.timeout = limit(&timeouts.request);
        action.backend_timeout = limit(&timeouts.backend_request);
    }
    // A filter that cannot be applied must not be skipped: then nothing is served.
    if is_known {
        for backend in &rule.backend_refs {
            action.add(choice(objects, namespace, backend, building));
        }
    } else {
        action.redirect = None;
    }
    action
}

fn choice(
    objects: &GatewayObjects,
    namespace: &str,
    backend: &HttpBackendRef,
    building: &Building<'_>,
) -> Choice<BackendRef> {
    let mut own = Action::new("", StatusCode::INTERNAL_SERVER_ERROR);
    let is_known = add_filters(objects, namespace, &backend.filters, &mut own)
        && own.redirect.is_none()
        && own.rewrite.is_none()
        && own.mirrors.is_empty();
    let service = objects.backend(namespace, &backend.target()).ok().filter(|_| is_known);
    let target = service.map(to_backend);
    Choice {
        weight: u64::from(backend.weight.unwrap_or(1)),
        protocol: target.as_ref().map_or(Protocol::Http1, |one| building.protocol(one)),
        backend: target,
        request: own.request,
        response: own.response,
    }
}

fn to_backend(service: ServiceRef) -> BackendRef {
    BackendRef { service: (service.namespace, service.name), port: PortRef::Number(service.port) }
}

/// Returns whether all of them can be applied.
fn add_filters(
    objects: &GatewayObjects,
    namespace: &str,
    filters: &[HttpRouteFilter],
    action: &mut Action<BackendRef>,
) -> bool {
    filters.iter().all(|filter| add_filter(objects, namespace, filter, action).is_some())
}

fn add_filter(
    objects: &GatewayObjects,
    namespace: &str,
    filter: &HttpRouteFilter,
    action: &mut Action<BackendRef>,
) -> Option<()> {
    match filter.type_.as_str() {
        "RequestHeaderModifier" => {
            action.request = header_change(filter.request_header_modifier.as_ref()?)?;
        }
        "ResponseHeaderModifier" => {
            action.response = header_change(filter.response_header_modifier.as_ref()?)?;
        }
        "RequestMirror" => {
            action.mirrors.push(mirror(objects, namespace, filter.request_mirror.as_ref()?));
        }
        "RequestRedirect" => {
            let redirect = filter.request_redirect.as_ref()?;
            action.redirect = Some(Redirect {
                scheme: match redirect.scheme.as_deref() {
                    None => None,
                    Some("http") => Some("http"),
                    Some("https") => Some("https"),
                    Some(_) => return None,
                },
                host: redirect.hostname.clone(),
                port: redirect.port,
                path: path_change(redirect.path.as_ref())?,
                status: StatusCode::from_u16(redirect.status_code.unwrap_or(302)).ok()?,
            });
        }
        "URLRewrite" => {
            let rewrite = filter.url_rewrite.as_ref()?;
            let host = match &rewrite.hostname {
                None => None,
                Some(host) => Some(HeaderValue::from_str(host).ok()?),
            };
            action.rewrite = Some(Rewrite { host, path: path_change(rewrite.path.as_ref())? });
        }
        _ => return None,
    }
    Some(())
}

/// The outer `None`: it means nothing.
#[expect(clippy::option_option, reason = "absent is not the same as wrong")]
fn path_change(path: Option<&PathModifier>) -> Option<Option<PathChange>> {
    let Some(path) = path else { return Some(None) };
    match path.type_.as_str() {
        "ReplaceFullPath" => {
            let full = path.replace_full_path.clone().unwrap_or_default();
            let full = if full.starts_with('/') { full } else { format!("/{full}") };
            Some(Some(PathChange::Full(full)))
        }
        "ReplacePrefixMatch" => {
            Some(Some(PathChange::Prefix(path.replace_prefix_match.clone().unwrap_or_default())))
        }
        _ => None,
    }
}

fn header_change(modifier: &HeaderModifier) -> Option<HeaderChange> {
    let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
    let pairs = |pairs: &[crate::api::gateway::HeaderValuePair]| {
        let pair = |pair: &crate::api::gateway::HeaderValuePair| {
            Some((name(&pair.name)?, HeaderValue::from_str(&pair.value).ok()?))
        };
        pairs.iter().map(pair).collect::<Option<Vec<_>>>()
    };
    Some(HeaderChange {
        set: pairs(&modifier.set)?,
        add: pairs(&modifier.add)?,
        remove: modifier.remove.iter().map(|one| name(one)).collect::<Option<Vec<_>>>()?,
    })
}

fn mirror(objects: &GatewayObjects, namespace: &str, mirror: &RequestMirror) -> Mirror<BackendRef> {
    let (numerator, denominator) = match (&mirror.percent, &mirror.fraction) {
        (Some(percent), _) => (*percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, None) => (1, 1),
    };
    // A mirror that cannot be reached mirrors nothing; the request goes its way.
    let backend = objects.backend(namespace, &mirror.backend_ref).ok().map(to_backend);
    Mirror { backend, numerator, denominator }
}
