//! Ingresses (`networking.k8s.io/v1`) as rules.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressClass, IngressSpec};

use super::action::{Action, Choice, HeaderChange, Redirect};
use super::matcher::{ActionId, HostTest, PathTest, Rule};
use super::table::{Building, CertificateUse, ingress_action};
use crate::api::gateway::{HTTP_PORT, HTTPS_PORT, ingress_is_ours, parse_duration, precedence};
use crate::api::quantity::parse_bytes;
use crate::mesh::routes::{BackendRef, PortRef};

/// `"true"`: requests without TLS are sent to HTTPS.
const SSL_REDIRECT: &str = "edgeorc.io/ssl-redirect";
/// Bytes of a request's body, as a quantity such as `10Mi`.
const BODY_SIZE_MAX: &str = "edgeorc.io/max-body-size";
/// Time for a request, such as `30s`.
const REQUEST_TIMEOUT: &str = "edgeorc.io/request-timeout";

/// Adds the rules of all Ingresses that are ours; the oldest wins where two say different things.
pub(super) fn add(
    ingresses: &[Arc<Ingress>],
    classes: &[Arc<IngressClass>],
    building: &mut Building<'_>,
) {
    let mut ours: Vec<_> = ingresses.iter().filter(|one| ingress_is_ours(one, classes)).collect();
    ours.sort_by_cached_key(|ingress| precedence(&ingress.metadata));
    for ingress in ours {
        add_one(ingress, building);
    }
}

fn annotation<'a>(ingress: &'a Ingress, name: &str) -> Option<&'a str> {
    ingress.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn add_one(ingress: &Ingress, building: &mut Building<'_>) {
    let meta = &ingress.metadata;
    let (Some(spec), Some(namespace)) = (&ingress.spec, &meta.namespace) else { return };
    let name = format!("ingress/{namespace}/{}", meta.name.as_deref().unwrap_or_default());
    let to_https = (annotation(ingress, SSL_REDIRECT) == Some("true")).then(|| {
        let mut action = ingress_action(&name);
        action.redirect = Some(Redirect {
            scheme: Some("https"),
            host: None,
            port: None,
            path: None,
            status: StatusCode::PERMANENT_REDIRECT,
        });
        building.action(action)
    });
    let mut actions: Vec<(&IngressBackend, ActionId)> = Vec::new();
    let mut action_of = |backend, building: &mut Building<'_>| {
        if let Some((_, known)) = actions.iter().find(|(known, _)| *known == backend) {
            return *known;
        }
        let made = building.action(action(ingress, &name, namespace, backend, building));
        actions.push((backend, made));
        made
    };
    for rule in spec.rules.iter().flatten() {
        let host = HostTest::of_ingress(rule.host.as_deref().unwrap_or_default());
        for path in rule.http.iter().flat_map(|http| &http.paths) {
            let action = action_of(&path.backend, building);
            let text = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
            let test = match path.path_type.as_str() {
                "Exact" => PathTest::Exact(text.to_owned()),
                _ => PathTest::Prefix(text.to_owned()),
            };
            building.rule(HTTPS_PORT, &host, test.clone(), Rule::plain(action));
            building.rule(HTTP_PORT, &host, test, Rule::plain(to_https.unwrap_or(action)));
        }
    }
    if let Some(backend) = &spec.default_backend {
        let action = action_of(backend, building);
        building.matcher.set_default(HTTPS_PORT, action);
        building.matcher.set_default(HTTP_PORT, to_https.unwrap_or(action));
    }
    add_certificates(spec, namespace, building);
}

fn action(
    ingress: &Ingress,
    name: &str,
    namespace: &str,
    backend: &IngressBackend,
    building: &Building<'_>,
) -> Action<BackendRef> {
    let mut action = ingress_action(name);
    // A backend that is an object of another kind cannot be served.
    let backend = backend_ref(namespace, backend);
    if backend.is_none() {
        action.missing = StatusCode::INTERNAL_SERVER_ERROR;
    }
    action.add(Choice {
        weight: 1,
        protocol: backend.as_ref().map(|one| building.protocol(one)).unwrap_or_default(),
        backend,
        request: HeaderChange::default(),
        response: HeaderChange::default(),
    });
    if let Some(bytes) = annotation(ingress, BODY_SIZE_MAX).and_then(|text| parse_bytes(text).ok())
    {
        action.body_bytes_max = u64::try_from(bytes).unwrap_or(0);
    }
    action.timeout = annotation(ingress, REQUEST_TIMEOUT)
        .and_then(parse_duration)
        .map(|limit| if limit.is_zero() { Duration::MAX } else { limit });
    action
}

fn backend_ref(namespace: &str, backend: &IngressBackend) -> Option<BackendRef> {
    let service = backend.service.as_ref()?;
    let port = service.port.as_ref()?;
    let port = match (port.number.and_then(|number| u16::try_from(number).ok()), &port.name) {
        (Some(number), _) => PortRef::Number(number),
        (None, Some(name)) => PortRef::Name(name.clone()),
        (None, None) => return None,
    };
    Some(BackendRef { service: (namespace.to_owned(), service.name.clone()), port })
}

fn add_certificates(spec: &IngressSpec, namespace: &str, building: &mut Building<'_>) {
    for tls in spec.tls.iter().flatten() {
        let Some(secret) = tls.secret_name.as_ref().filter(|name| !name.is_empty()) else {
            continue;
        };
        let hosts = tls.hosts.iter().flatten().map(|host| host.to_ascii_lowercase());
        building.certificates.push(CertificateUse {
            port: HTTPS_PORT,
            hosts: hosts.collect(),
            secret: (namespace.to_owned(), secret.clone()),
        });
    }
}
