//! `pods/proxy` and `services/proxy`: HTTP to a port in the cluster, for clients that reach only this server.
//!
//! The name in the path is `[SCHEME:]NAME[:PORT]`, as Kubernetes has it. Behind `https` anybody is believed:
//! pods have certificates of their own making.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use serde_json::Value;

use crate::api::json::{int_at, items_at, text_at};
use crate::api::meta;
use crate::api::status::Status;
use crate::apiserver::aggregate::{sanitize, trust};
use crate::apiserver::backend::{self, Place};
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::request_info::RequestInfo;
use crate::apiserver::streaming::Target;
use crate::store::{Freshness, Key};

/// Port of a pod that names none: what its HTTP component is served at.
const HTTP_PORT_DEFAULT: u16 = 8080;

/// What the name in the path says.
#[derive(Debug, PartialEq, Eq)]
struct Asked<'a> {
    is_secure: bool,
    name: &'a str,
    /// Number or name; empty is the only one.
    port: &'a str,
}

impl<'a> Asked<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let is_known = matches!(scheme, "" | "http" | "https") && !name.is_empty();
        is_known.then_some(Self { is_secure: scheme == "https", name, port })
    }
}

/// Whether a request is one for here.
pub(super) fn is_for(info: &RequestInfo) -> bool {
    info.subresource.as_deref() == Some("proxy")
        && matches!((info.resource.group, info.resource.plural), ("", "pods" | "services"))
}

/// Passes a request on, and its answer back.
pub(super) async fn respond(
    context: &Context,
    info: &RequestInfo,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let own = request.uri().path().to_owned();
    if info.rest.is_empty() && matches!(*request.method(), Method::GET | Method::HEAD) {
        return moved(&own, request.uri().query());
    }
    let text = info.name.as_deref().unwrap_or_default();
    let asked = Asked::parse(text);
    let asked =
        asked.ok_or_else(|| Status::bad_request(format!("invalid proxy request {text:?}")))?;
    let namespace = info.namespace.as_deref().unwrap_or_default();
    let (places, host) = if info.resource.plural == "pods" {
        (vec![of_pod(context, info, &asked).await?], format!("{}.{namespace}.pod", asked.name))
    } else {
        let key = Key::new(info.resource, Some(namespace), asked.name);
        let found = context.store.get(&key, Freshness::Any).await;
        if found.map_err(|error| ApiError::store(error, &key))?.is_none() {
            return Err(Status::not_found(info.resource, asked.name).into());
        }
        let found = backend::places(context, (namespace, asked.name), asked.port).await;
        (found.map_err(Status::unavailable)?.0, format!("{}.{namespace}.svc", asked.name))
    };
    if places.is_empty() {
        let what = format!("no endpoints available for service {:?}", asked.name);
        return Err(Status::unavailable(what).into());
    }
    let tls = if asked.is_secure {
        let config = trust::anybody().map_err(Status::internal)?;
        Some((Arc::new(config), host.clone()))
    } else {
        None
    };
    let path = if info.rest.is_empty() { "/" } else { info.rest.as_str() };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri: Uri = format!("{path}{query}").parse().map_err(|_| Status::no_such_path())?;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    sanitize(request.headers_mut());
    if let Ok(host) = HeaderValue::from_str(&host) {
        request.headers_mut().insert(header::HOST, host);
    }
    let answer = backend::ask(context, &places, tls.as_ref(), request).await;
    let mut answer = answer.map_err(|cause| {
        Status::unavailable(format!("error trying to reach {}: {cause}", asked.name))
    })?;
    sanitize(answer.headers_mut());
    let base = own.strip_suffix(&info.rest).unwrap_or(&own);
    lead_back(&mut answer, base);
    Ok(answer)
}

/// Paths of a page are relative to a folder.
fn moved(path: &str, query: Option<&str>) -> Result<Response<Body>, ApiError> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let to = HeaderValue::from_str(&format!("{path}/{query}"));
    answer.headers_mut().insert(header::LOCATION, to.map_err(|_| Status::no_such_path())?);
    Ok(answer)
}

/// A redirect to a path of the server behind leads through here as well.
fn lead_back(answer: &mut Response<Body>, base: &str) {
    let location = answer.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
    let path = location.filter(|to| to.starts_with('/') && !to.starts_with("//"));
    if let Some(Ok(to)) = path.map(|path| HeaderValue::from_str(&format!("{base}{path}"))) {
        answer.headers_mut().insert(header::LOCATION, to);
    }
}

/// Where a pod is, and its port.
async fn of_pod(
    context: &Context,
    info: &RequestInfo,
    asked: &Asked<'_>,
) -> Result<Place, ApiError> {
    let key = Key::new(info.resource, info.namespace.as_deref(), asked.name);
    let found = context.store.get(&key, Freshness::Any).await;
    let found = found.map_err(|error| ApiError::store(error, &key))?;
    let pod = found.ok_or_else(|| Status::not_found(info.resource, asked.name))?.object;
    let node = text_at(&pod, "/spec/nodeName");
    if node.is_empty() {
        let what = format!("pod {} does not have a host assigned", asked.name);
        return Err(Status::unavailable(what).into());
    }
    let port = port_of(&pod, asked.port).ok_or_else(|| {
        Status::bad_request(format!("pod {} has no port {:?}", asked.name, asked.port))
    })?;
    let target = Target {
        namespace: info.namespace.clone().unwrap_or_default(),
        pod: asked.name.to_owned(),
        uid: meta::uid(&pod).to_owned(),
        node: node.to_owned(),
        container: String::new(),
    };
    Ok(Place::Pod { target, port })
}

/// The port by its number or name; the first that a container names, if none is asked for.
fn port_of(pod: &Value, asked: &str) -> Option<u16> {
    if let Ok(number) = asked.parse() {
        return Some(number);
    }
    let containers = items_at(pod, "/spec/containers").iter();
    let mut ports = containers.flat_map(|container| items_at(container, "/ports"));
    let named = |port: &&Value| asked.is_empty() || text_at(port, "/name") == asked;
    let found = ports.find(named).and_then(|port| int_at(port, "/containerPort"));
    match found {
        Some(number) => u16::try_from(number).ok(),
        None => asked.is_empty().then_some(HTTP_PORT_DEFAULT),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_says_scheme_and_port() {
        let asked = |is_secure, name, port| Some(Asked { is_secure, name, port });
        for (text, wanted) in [
            ("web", asked(false, "web", "")),
            ("web:80", asked(false, "web", "80")),
            ("https:web:admin", asked(true, "web", "admin")),
            ("http:web:", asked(false, "web", "")),
            ("ftp:web:80", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(Asked::parse(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_pods_port_is_found_by_number_name_or_as_the_first() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "ports": [
            {"containerPort": 81, "name": "web"}, {"containerPort": 82, "name": "admin"}]}]}});
        for (asked, wanted) in [("", Some(81)), ("admin", Some(82)), ("9", Some(9)), ("x", None)] {
            assert_eq!(port_of(&pod, asked), wanted, "{asked}");
        }
        assert_eq!(port_of(&json!({}), ""), Some(HTTP_PORT_DEFAULT));
    }

    #[test]
    fn a_redirect_leads_back_through_the_proxy() {
        for (to, wanted) in [
            ("/login", "/api/v1/namespaces/n/pods/p/proxy/login"),
            ("login", "login"),
            ("//other/x", "//other/x"),
            ("http://other/x", "http://other/x"),
        ] {
            let mut answer = Response::new(Body::empty());
            answer.headers_mut().insert(header::LOCATION, to.parse().unwrap());
            lead_back(&mut answer, "/api/v1/namespaces/n/pods/p/proxy");
            assert_eq!(answer.headers()[header::LOCATION], wanted);
        }
    }
}
