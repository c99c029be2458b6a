//! Aggregation: versions of API groups that other servers answer, behind Services. Kubernetes'
//! kube-aggregator.
//!
//! Data in: requests for paths that are nobody's here, and APIServices. Data out: the same requests, with
//! the user in headers, and the answers.
//!
//! # Invariants
//!
//! - What this server answers by itself is never asked of another.
//! - A backend gets no credentials: who asks is in `X-Remote-User` and `X-Remote-Group`, which nobody
//!   else can set.

mod discovery;
pub(super) mod trust;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::api;
use crate::api::json::{int_at, is_true, is_unset, text_at};
use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::apiserver::access;
use crate::apiserver::backend;
use crate::apiserver::body::BODY_BYTES_MAX;
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::store::{Freshness, Key};

pub(super) use discovery::{add_to_root, group_document};

/// How long a backend may take until it begins to answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Headers that concern one connection, and credentials: neither goes on.
const KEPT_BACK: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// A port of a Service that says this is spoken to without TLS: our addition.
const PLAIN: &str = "http";
const KEEP_ALIVE: &str = "keep-alive";
const REMOTE: &str = "x-remote-";
const REMOTE_USER: &str = "x-remote-user";
const REMOTE_GROUP: &str = "x-remote-group";

/// Group and version of a path below `/apis`.
pub(super) fn group_version(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.strip_prefix("/apis/")?.trim_end_matches('/').split('/');
    let (group, version) = (parts.next()?, parts.next()?);
    (!group.is_empty() && !version.is_empty()).then_some((group, version))
}

/// The APIService with a Service for the version of the group.
pub(super) async fn find(
    context: &Context,
    group: &str,
    version: &str,
) -> Result<Option<Value>, ApiError> {
    let Some(resource) = api::find("apiregistration.k8s.io", "v1", "apiservices") else {
        return Ok(None);
    };
    let key = Key::new(resource, None, &format!("{version}.{group}"));
    let found = context.store.get(&key, Freshness::Any).await;
    let found = found.map_err(|error| ApiError::store(error, &key))?;
    Ok(found.map(|stored| stored.object).filter(|it| !is_unset(it.pointer("/spec/service"))))
}

/// Lets the server behind the APIService answer.
pub(super) async fn respond(
    context: &Context,
    user: &UserInfo,
    api_service: &Value,
    mut request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    if !access::may_do_everything(user) {
        let verb = request.method().as_str().to_lowercase();
        return Err(Status::forbidden_path(&user.name, &verb, request.uri().path()).into());
    }
    sanitize(request.headers_mut());
    introduce(request.headers_mut(), user)?;
    let path = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let uri: Uri = path.parse().map_err(|_| Status::no_such_path())?;
    *request.uri_mut() = uri;
    // The backend is asked by HTTP/1.1, where a body of unknown length comes in chunks.
    *request.version_mut() = Version::HTTP_11;
    let request = request.map(|body| {
        let limited = Limited::new(body, BODY_BYTES_MAX);
        Body::new(limited.map_err(axum::Error::new))
    });
    let asked = tokio::time::timeout(ANSWER_MAX, ask(context, api_service, request));
    let answer = match asked.await {
        Ok(answer) => answer,
        Err(_) => Err("it does not answer in time".to_owned()),
    };
    let mut answer = answer.map_err(|cause| unavailable(api_service, &cause))?;
    if answer.status().is_redirection() && answer.headers().contains_key(header::LOCATION) {
        // It would lead the client and its credentials elsewhere (CVE-2022-3172).
        let refused = "the backend attempted to redirect this request, which is not permitted";
        return Err(Status::bad_gateway(refused).into());
    }
    sanitize(answer.headers_mut());
    Ok(answer)
}

/// Sends `request` to the server behind the APIService.
async fn ask(
    context: &Context,
    api_service: &Value,
    mut request: Request<Body>,
) -> Result<Response<Body>, String> {
    let text = |path: &str| text_at(api_service, path);
    let (namespace, name) = (text("/spec/service/namespace"), text("/spec/service/name"));
    let host = format!("{name}.{namespace}.svc");
    if let Ok(host) = HeaderValue::from_str(&host) {
        request.headers_mut().insert(header::HOST, host);
    }
    let wanted = int_at(api_service, "/spec/service/port").unwrap_or(443).to_string();
    let (places, port) = backend::places(context, (namespace, name), &wanted).await?;
    // Who names certificates wants them looked at.
    let is_plain = text("/spec/caBundle").is_empty() && text_at(&port, "/appProtocol") == PLAIN;
    let tls = if is_plain { None } else { Some((Arc::new(client_config(api_service)?), host)) };
    backend::ask(context, &places, tls.as_ref(), request).await
}

/// Whom the server must be.
fn client_config(api_service: &Value) -> Result<ClientConfig, String> {
    if is_true(api_service, "/spec/insecureSkipTLSVerify") {
        return trust::anybody();
    }
    let bundle = STANDARD.decode(text_at(api_service, "/spec/caBundle"));
    let bundle = bundle.map_err(|_| "its caBundle is no base64".to_owned())?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bundle) {
        let certificate = certificate.map_err(|err| format!("its caBundle: {err}"))?;
        roots.add(certificate).map_err(|err| format!("its caBundle: {err}"))?;
    }
    trust::these(roots)
}

fn unavailable(api_service: &Value, cause: &str) -> Status {
    let name = api::meta::name(api_service);
    Status::unavailable(format!(
        "the server is currently unable to handle the request: APIService {name}: {cause}"
    ))
}

/// Takes out what may not pass.
pub(super) fn sanitize(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>())
        .filter_map(|name| name.parse().ok())
        .collect();
    let is_remote = |name: &&HeaderName| {
        name.as_str().starts_with(REMOTE) || name.as_str().starts_with("impersonate-")
    };
    let remote: Vec<HeaderName> = headers.keys().filter(is_remote).cloned().collect();
    for name in named.iter().chain(&remote).chain(&KEPT_BACK) {
        headers.remove(name);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(header::AUTHORIZATION);
}

/// Says who asks.
fn introduce(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), ApiError> {
    let value = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|_| ApiError::from(Status::bad_request("the user's name cannot be sent on")))
    };
    headers.insert(REMOTE_USER, value(&user.name)?);
    for group in &user.groups {
        headers.append(REMOTE_GROUP, value(group)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_this_server_says_who_asks() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "root"),
            ("x-remote-extra-scopes", "all"),
            ("authorization", "Bearer x"),
            ("impersonate-user", "root"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("accept", "application/json"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        sanitize(&mut headers);
        introduce(&mut headers, &UserInfo::new("jane", &["team-a", "system:authenticated"]))
            .unwrap();
        let mut shown: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "accept: application/json",
                "x-remote-group: system:authenticated",
                "x-remote-group: team-a",
                "x-remote-user: jane",
            ]
        );
    }

    #[test]
    fn a_path_names_group_and_version() {
        let metrics = "/apis/external.metrics.k8s.io/v1beta1/namespaces/n/m";
        assert_eq!(group_version(metrics), Some(("external.metrics.k8s.io", "v1beta1")));
        for other in ["/apis", "/apis/", "/apis/apps", "/api/v1/pods", "/apis//v1"] {
            assert_eq!(group_version(other), None, "{other}");
        }
    }
}
