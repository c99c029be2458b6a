//! The endpoints of the distribution specification.

use std::io::SeekFrom;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::api::user::UserInfo;
use crate::apiserver::context::Context;
use crate::apiserver::query::Query;
use crate::apiserver::registry::name::{self, OciError};
use crate::apiserver::registry::{manifests, push, referrers, replicas};
use crate::apiserver::{access, response, service_account};

/// `"true"` on a service account: its tokens push to the repositories of its namespace.
const PUSH_ANNOTATION: &str = "edgeorc.io/registry-push";

/// Where clients of Docker's registry look for the names of all repositories.
const CATALOG: &str = "_catalog";

pub(super) type Answer = Result<Response<Body>, OciError>;

/// What is asked of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint<'a> {
    /// An upload by its session, or a new one.
    Upload(&'a str),
    /// A blob by its digest.
    Blob(&'a str),
    /// A manifest by its tag or digest.
    Manifest(&'a str),
    Tags,
    /// Manifests that name the one of this digest as their subject.
    Referrers(&'a str),
}

impl<'a> Endpoint<'a> {
    /// Takes a path apart: the repository's name, and what is asked of it.
    fn parse(path: &'a str) -> Option<(&'a str, Self)> {
        if let Some((repository, session)) = path.split_once("/blobs/uploads") {
            return Some((repository, Self::Upload(session.trim_start_matches('/'))));
        }
        if let Some((repository, digest)) = path.rsplit_once("/blobs/") {
            return Some((repository, Self::Blob(digest)));
        }
        if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
            return Some((repository, Self::Manifest(reference)));
        }
        if let Some(repository) = path.strip_suffix("/tags/list") {
            return Some((repository, Self::Tags));
        }
        let (repository, digest) = path.rsplit_once("/referrers/")?;
        Some((repository, Self::Referrers(digest)))
    }
}

/// Answers by path and method.
pub(super) async fn respond(context: &Context, user: &UserInfo, request: Request<Body>) -> Answer {
    if !access::may_pull(user) {
        return Err(OciError::unauthorized());
    }
    let path = request.uri().path();
    // Once: a repository's name may begin with it as well.
    let path = path.strip_prefix("/v2").unwrap_or(path).trim_matches('/').to_owned();
    let asked = Endpoint::parse(&path);
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        check_push(context, user, asked.map(|(repository, _)| repository)).await?;
    }
    let query = Query::parse(request.uri().query());
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match path.as_str() {
        "" | CATALOG if !is_read => return Err(not_allowed()),
        "" => return Ok(response::json(StatusCode::OK, &json!({}))),
        CATALOG => return manifests::catalog(context, &query).await,
        _ => {}
    }
    if let Some(digest) = path.strip_prefix(&format!("{}/blobs/", replicas::REPLICA)) {
        return replicas::respond(context, user, digest, request).await;
    }
    let Some((repository, endpoint)) = asked else {
        return Err(OciError::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"));
    };
    name::repository(repository)?;
    match endpoint {
        Endpoint::Upload(session) => {
            push::respond(context, &user.name, repository, session, &query, request).await
        }
        Endpoint::Blob(digest) => {
            blob(context, digest, request.method(), range(request.headers())).await
        }
        Endpoint::Manifest(reference) => {
            manifests::respond(context, repository, reference, request).await
        }
        Endpoint::Tags | Endpoint::Referrers(_) if !is_read => Err(not_allowed()),
        Endpoint::Tags => manifests::tags(context, repository, &query).await,
        Endpoint::Referrers(digest) => referrers::list(context, repository, digest, &query).await,
    }
}

/// Refuses who may not change `repository`: all but administrators, servers, and a service account
/// that is told to push, in the repositories below its namespace's name.
async fn check_push(
    context: &Context,
    user: &UserInfo,
    repository: Option<&str>,
) -> Result<(), OciError> {
    if access::may_push(user) {
        return Ok(());
    }
    let own = repository.and_then(|name| name.split_once('/')).map(|(namespace, _)| namespace);
    if let Some(namespace) = own
        && service_account::is_annotated(context, user, namespace, PUSH_ANNOTATION).await.map_err(
            |_| {
                OciError::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "UNKNOWN",
                    "the store does not answer",
                )
            },
        )?
    {
        return Ok(());
    }
    let text = format!(
        "{:?} may not push here: administrators may, and service accounts with the annotation \
         {PUSH_ANNOTATION}: \"true\", to repositories that begin with their namespace and a slash",
        user.name
    );
    Err(OciError::new(StatusCode::FORBIDDEN, "DENIED", text))
}

pub(super) fn not_allowed() -> OciError {
    OciError::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the method is not supported here")
}

pub(super) fn with_headers(
    code: StatusCode,
    headers: &[(header::HeaderName, String)],
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name.clone(), value);
        }
    }
    response
}

pub(super) const DIGEST_HEADER: header::HeaderName =
    header::HeaderName::from_static("docker-content-digest");

/// First byte of `Range: bytes=N-`: what a transfer that broke off asks for. Other ranges may be
/// ignored, and are.
pub(in crate::apiserver) fn range_start(headers: &HeaderMap) -> Option<u64> {
    range(headers).filter(|(_, last)| *last == u64::MAX).map(|(start, _)| start)
}

/// First and last byte of `Range: bytes=N-` or `bytes=N-M`. Those from the end, and several, may be ignored,
/// and are.
fn range(headers: &HeaderMap) -> Option<(u64, u64)> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    let last = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
    (first <= last).then_some((first, last))
}

async fn blob(
    context: &Context,
    digest: &str,
    method: &Method,
    range: Option<(u64, u64)>,
) -> Answer {
    let hex = name::digest(digest)?;
    let blobs = &context.registry.blobs;
    let io = |cause: std::io::Error| OciError::io(&cause);
    let unknown = || OciError::not_found("BLOB_UNKNOWN", digest);
    let headers = |size: u64| {
        vec![
            (header::CONTENT_LENGTH, size.to_string()),
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
            (DIGEST_HEADER, digest.to_owned()),
        ]
    };
    if *method == Method::HEAD {
        // Whoever hears that it is here does not send it.
        let size = replicas::hold(context, hex).await?.ok_or_else(unknown)?;
        return Ok(with_headers(StatusCode::OK, &headers(size), Body::empty()));
    }
    let mut found = blobs.open(hex).await.map_err(io)?;
    if found.is_none() && replicas::fetch(context, hex).await? {
        found = blobs.open(hex).await.map_err(io)?;
    }
    let (mut file, size) = found.ok_or_else(unknown)?;
    let mut headers = headers(size);
    match *method {
        Method::GET => {
            let mut wanted = size;
            let code = match range {
                None => StatusCode::OK,
                Some((start, last)) if start < size => {
                    file.seek(SeekFrom::Start(start)).await.map_err(io)?;
                    let last = last.min(size.saturating_sub(1));
                    wanted = last - start + 1;
                    headers.retain(|(name, _)| *name != header::CONTENT_LENGTH);
                    headers.push((header::CONTENT_LENGTH, wanted.to_string()));
                    headers.push((header::CONTENT_RANGE, format!("bytes {start}-{last}/{size}")));
                    StatusCode::PARTIAL_CONTENT
                }
                Some(_) => {
                    let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                    let code = StatusCode::RANGE_NOT_SATISFIABLE;
                    return Ok(with_headers(code, &range, Body::empty()));
                }
            };
            Ok(with_headers(
                code,
                &headers,
                Body::from_stream(ReaderStream::new(file.take(wanted))),
            ))
        }
        _ => Err(not_allowed()),
    }
}
