//! The endpoints of the distribution specification.

use std::io::SeekFrom;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::io::AsyncSeekExt as _;
use tokio_util::io::ReaderStream;

use crate::api::user::UserInfo;
use crate::apiserver::context::Context;
use crate::apiserver::query::Query;
use crate::apiserver::registry::name::{self, OciError};
use crate::apiserver::registry::{manifests, push, referrers, replicas};
use crate::apiserver::{access, response};

pub(super) type Answer = Result<Response<Body>, OciError>;

/// Answers by path and method.
pub(super) async fn respond(context: &Context, user: &UserInfo, request: Request<Body>) -> Answer {
    if !access::may_pull(user) {
        return Err(OciError::unauthorized());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) && !access::may_push(user) {
        let text = "only administrators push to the cluster's registry";
        return Err(OciError::new(StatusCode::FORBIDDEN, "DENIED", text));
    }
    let path = request.uri().path().trim_start_matches("/v2").trim_matches('/').to_owned();
    if path.is_empty() {
        return Ok(response::json(StatusCode::OK, &json!({})));
    }
    if let Some(digest) = path.strip_prefix(&format!("{}/blobs/", replicas::REPLICA)) {
        return replicas::respond(context, user, digest, request).await;
    }
    let query = Query::parse(request.uri().query());
    if let Some((repository, session)) = path.split_once("/blobs/uploads") {
        name::repository(repository)?;
        return push::respond(
            context,
            repository,
            session.trim_start_matches('/'),
            &query,
            request,
        )
        .await;
    }
    if let Some((repository, digest)) = path.rsplit_once("/blobs/") {
        name::repository(repository)?;
        let start = range_start(request.headers());
        return blob(context, digest, request.method(), start).await;
    }
    if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        name::repository(repository)?;
        return manifests::respond(context, repository, reference, request).await;
    }
    if let Some(repository) = path.strip_suffix("/tags/list") {
        name::repository(repository)?;
        return manifests::tags(context, repository, &query).await;
    }
    if let Some((repository, digest)) = path.rsplit_once("/referrers/") {
        name::repository(repository)?;
        return referrers::list(context, repository, digest, &query).await;
    }
    Err(OciError::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"))
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
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

async fn blob(context: &Context, digest: &str, method: &Method, start: Option<u64>) -> Answer {
    let hex = name::digest(digest)?;
    let blobs = &context.registry.blobs;
    let io = |cause: std::io::Error| OciError::io(&cause);
    let mut found = blobs.open(hex).await.map_err(io)?;
    if found.is_none() && replicas::fetch(context, hex).await? {
        found = blobs.open(hex).await.map_err(io)?;
    }
    let (mut file, size) = found.ok_or_else(|| OciError::not_found("BLOB_UNKNOWN", digest))?;
    let mut headers = vec![
        (header::CONTENT_LENGTH, size.to_string()),
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (DIGEST_HEADER, digest.to_owned()),
    ];
    match *method {
        Method::HEAD => Ok(with_headers(StatusCode::OK, &headers, Body::empty())),
        Method::GET => {
            let code = match start {
                None => StatusCode::OK,
                Some(start) if start < size => {
                    file.seek(SeekFrom::Start(start)).await.map_err(io)?;
                    headers.retain(|(name, _)| *name != header::CONTENT_LENGTH);
                    headers.push((header::CONTENT_LENGTH, (size - start).to_string()));
                    let range = format!("bytes {start}-{}/{size}", size.saturating_sub(1));
                    headers.push((header::CONTENT_RANGE, range));
                    StatusCode::PARTIAL_CONTENT
                }
                Some(_) => {
                    let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                    let code = StatusCode::RANGE_NOT_SATISFIABLE;
                    return Ok(with_headers(code, &range, Body::empty()));
                }
            };
            Ok(with_headers(code, &headers, Body::from_stream(ReaderStream::new(file))))
        }
        _ => Err(not_allowed()),
    }
}
