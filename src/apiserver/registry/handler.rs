//! The endpoints of the distribution specification.

use std::io::SeekFrom;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncSeekExt as _;
use tokio_util::io::ReaderStream;

use crate::api::user::UserInfo;
use crate::apiserver::context::Context;
use crate::apiserver::query::Query;
use crate::apiserver::registry::name::{self, OciError};
use crate::apiserver::{access, forward, response};

/// Root of the manifests in the store.
const MANIFESTS: &str = "/oci/manifests/";
/// Largest manifest, in bytes.
const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// Most tags in one answer.
const TAGS_MAX: usize = 1000;
/// Keys read at once.
const KEYS_PAGE: usize = 1000;
/// Follows every key of a digest, and no other of a tag before it.
const AFTER_DIGESTS: &str = "sha256;";
/// Repository under which servers exchange blobs; no client can name it.
const REPLICA: &str = "_replica";

/// How long another server may take to answer, before its body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// A manifest in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    digest: String,
    media_type: String,
    content: String,
}

type Answer = Result<Response<Body>, OciError>;

/// Answers by path and method.
pub(super) async fn respond(context: &Context, user: &UserInfo, request: Request<Body>) -> Answer {
    if !access::may_pull(user) {
        return Err(OciError::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            "authentication required",
        ));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) && !access::may_push(user) {
        let text = "only administrators push to the cluster's registry";
        return Err(OciError::new(StatusCode::FORBIDDEN, "DENIED", text));
    }
    let path = request.uri().path().trim_start_matches("/v2").trim_matches('/').to_owned();
    if path.is_empty() {
        return Ok(response::json(StatusCode::OK, &json!({})));
    }
    if let Some(digest) = path.strip_prefix(&format!("{REPLICA}/blobs/")) {
        return replica(context, user, digest, request).await;
    }
    let query = Query::parse(request.uri().query());
    if let Some((repository, session)) = path.split_once("/blobs/uploads") {
        name::repository(repository)?;
        return upload(context, repository, session.trim_start_matches('/'), &query, request).await;
    }
    if let Some((repository, digest)) = path.rsplit_once("/blobs/") {
        name::repository(repository)?;
        let start = range_start(request.headers());
        return blob(context, digest, request.method(), start).await;
    }
    if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        name::repository(repository)?;
        return manifest(context, repository, reference, request).await;
    }
    if let Some(repository) = path.strip_suffix("/tags/list") {
        name::repository(repository)?;
        return tags(context, repository, &Query::parse(request.uri().query())).await;
    }
    Err(OciError::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"))
}

fn not_allowed() -> OciError {
    OciError::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the method is not supported here")
}

fn with_headers(
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

const DIGEST_HEADER: header::HeaderName = header::HeaderName::from_static("docker-content-digest");

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
    if found.is_none() && fetch(context, hex).await? {
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

async fn upload(
    context: &Context,
    repository: &str,
    session: &str,
    query: &Query,
    request: Request<Body>,
) -> Answer {
    let uploads = &context.registry.uploads;
    let location = |id: &str| (header::LOCATION, format!("/v2/{repository}/blobs/uploads/{id}"));
    let range = |size: u64| (header::RANGE, format!("0-{}", size.saturating_sub(1)));
    match (request.method().clone(), session) {
        (Method::POST, "") => {
            if let Some(digest) = query.get("digest") {
                name::digest(digest)?;
            }
            let id = context.rng.uuid().to_string();
            uploads.begin(&id).await?;
            if let Some(digest) = query.get("digest") {
                return finish(context, repository, &id, digest, request.into_body()).await;
            }
            Ok(with_headers(StatusCode::ACCEPTED, &[location(&id), range(0)], Body::empty()))
        }
        (_, "") => Err(not_allowed()),
        (Method::PATCH, id) => {
            let size = uploads.append(id, request.into_body()).await?;
            Ok(with_headers(StatusCode::ACCEPTED, &[location(id), range(size)], Body::empty()))
        }
        (Method::PUT, id) => {
            let digest = query.get("digest").unwrap_or_default();
            finish(context, repository, id, digest, request.into_body()).await
        }
        (Method::GET, id) => {
            let size = uploads.size(id).await?;
            Ok(with_headers(StatusCode::NO_CONTENT, &[location(id), range(size)], Body::empty()))
        }
        (Method::DELETE, id) => {
            uploads.cancel(id).await?;
            Ok(with_headers(StatusCode::NO_CONTENT, &[], Body::empty()))
        }
        _ => Err(not_allowed()),
    }
}

/// Takes the last bytes of an upload, checks and keeps it, and copies it to the other servers.
async fn finish(context: &Context, repository: &str, id: &str, digest: &str, body: Body) -> Answer {
    let hex = name::digest(digest)?;
    keep(context, id, hex, body).await?;
    replicate(context, digest).await?;
    let headers = [
        (header::LOCATION, format!("/v2/{repository}/blobs/{digest}")),
        (DIGEST_HEADER, digest.to_owned()),
    ];
    Ok(with_headers(StatusCode::CREATED, &headers, Body::empty()))
}

async fn keep(context: &Context, id: &str, hex: &str, body: Body) -> Result<(), OciError> {
    let registry = &context.registry;
    registry.uploads.append(id, body).await?;
    let file = registry.uploads.finish(id, hex).await?;
    if let Err(cause) = registry.blobs.adopt(&file, hex).await {
        let _ = tokio::fs::remove_file(&file).await;
        return Err(OciError::io(&cause));
    }
    Ok(())
}

/// Copies a blob to every other server that answers: one of them may be all that is left later.
async fn replicate(context: &Context, digest: &str) -> Result<(), OciError> {
    let hex = name::digest(digest)?;
    for server in context.store.other_servers(&context.node_name) {
        let opened =
            context.registry.blobs.open(hex).await.map_err(|cause| OciError::io(&cause))?;
        let Some((file, _)) = opened else { continue };
        let mut request = forward::get(&format!("/v2/{REPLICA}/blobs/{digest}"));
        *request.method_mut() = Method::PUT;
        *request.body_mut() = Body::from_stream(ReaderStream::new(file));
        match context.forward.server(&server, request).await {
            Ok(answer) if forward::is_ok(&answer) => {}
            _ => {
                tracing::warn!(peer = server, blob.digest = digest, "a server did not take a blob")
            }
        }
    }
    Ok(())
}

/// Fetches a blob from another server. `false`: nobody has it.
pub(super) async fn fetch(context: &Context, hex: &str) -> Result<bool, OciError> {
    for server in context.store.other_servers(&context.node_name) {
        let request = forward::get(&format!("/v2/{REPLICA}/blobs/sha256:{hex}"));
        let asked = context.forward.server(&server, request);
        let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_TIMEOUT, asked).await else { continue };
        if !forward::is_ok(&answer) {
            continue;
        }
        let id = context.rng.uuid().to_string();
        context.registry.uploads.begin(&id).await?;
        match keep(context, &id, hex, answer.into_body()).await {
            Ok(()) => return Ok(true),
            Err(_) => tracing::warn!(peer = server, "a server sent a damaged blob"),
        }
    }
    Ok(false)
}

/// What servers ask of each other: a blob as it is here, or to take one.
async fn replica(
    context: &Context,
    user: &UserInfo,
    digest: &str,
    request: Request<Body>,
) -> Answer {
    if !user.groups.iter().any(|group| group == "edgeorc:servers") {
        return Err(OciError::new(StatusCode::FORBIDDEN, "DENIED", "this endpoint is for servers"));
    }
    let hex = name::digest(digest)?;
    let io = |cause: std::io::Error| OciError::io(&cause);
    let found = context.registry.blobs.open(hex).await.map_err(io)?;
    match (request.method().clone(), found) {
        (Method::GET, Some((file, size))) => {
            let headers = [(header::CONTENT_LENGTH, size.to_string())];
            Ok(with_headers(StatusCode::OK, &headers, Body::from_stream(ReaderStream::new(file))))
        }
        (Method::GET, None) => Err(OciError::not_found("BLOB_UNKNOWN", digest)),
        (Method::PUT, Some(_)) => Ok(with_headers(StatusCode::CREATED, &[], Body::empty())),
        (Method::PUT, None) => {
            let id = context.rng.uuid().to_string();
            context.registry.uploads.begin(&id).await?;
            keep(context, &id, hex, request.into_body()).await?;
            Ok(with_headers(StatusCode::CREATED, &[], Body::empty()))
        }
        _ => Err(not_allowed()),
    }
}

async fn manifest(
    context: &Context,
    repository: &str,
    reference: &str,
    request: Request<Body>,
) -> Answer {
    if !reference.starts_with("sha256:") {
        name::tag(reference)?;
    }
    let key = |reference: &str| format!("{MANIFESTS}{repository}/{reference}");
    match *request.method() {
        Method::GET | Method::HEAD => {
            let found = context.store.raw_get(&key(reference)).await?;
            let unknown =
                || OciError::not_found("MANIFEST_UNKNOWN", &format!("{repository}:{reference}"));
            let stored: Manifest =
                serde_json::from_slice(&found.ok_or_else(unknown)?).map_err(|_| unknown())?;
            let content = STANDARD.decode(&stored.content).map_err(|_| unknown())?;
            let headers = [
                (header::CONTENT_TYPE, stored.media_type),
                (header::CONTENT_LENGTH, content.len().to_string()),
                (DIGEST_HEADER, stored.digest),
            ];
            let is_head = request.method() == Method::HEAD;
            let body = if is_head { Body::empty() } else { Body::from(content) };
            Ok(with_headers(StatusCode::OK, &headers, body))
        }
        Method::PUT => {
            let media_type = request
                .headers()
                .get(header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or("application/vnd.oci.image.manifest.v1+json")
                .to_owned();
            let invalid =
                |why: &str| OciError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why);
            let content = Limited::new(request.into_body(), MANIFEST_BYTES_MAX)
                .collect()
                .await
                .map_err(|_| invalid("the manifest is too large or ended early"))?
                .to_bytes();
            serde_json::from_slice::<serde_json::Value>(&content)
                .map_err(|_| invalid("the manifest is not JSON"))?;
            let digest = format!("sha256:{}", hex::encode(Sha256::digest(&content)));
            if reference.starts_with("sha256:") && reference != digest {
                return Err(invalid("the manifest has another digest"));
            }
            let stored =
                Manifest { digest: digest.clone(), media_type, content: STANDARD.encode(&content) };
            let value =
                serde_json::to_vec(&stored).map_err(|_| invalid("the manifest cannot be kept"))?;
            context.store.raw_put(&key(&digest), value.clone()).await?;
            if reference != digest {
                context.store.raw_put(&key(reference), value).await?;
            }
            let headers = [
                (header::LOCATION, format!("/v2/{repository}/manifests/{digest}")),
                (DIGEST_HEADER, digest),
            ];
            Ok(with_headers(StatusCode::CREATED, &headers, Body::empty()))
        }
        _ => Err(not_allowed()),
    }
}

/// The tags of a repository in order, as the specification pages them: at most `n` after `last`.
async fn tags(context: &Context, repository: &str, query: &Query) -> Answer {
    let wanted = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(TAGS_MAX).min(TAGS_MAX);
    let last = query.get("last").unwrap_or_default();
    let prefix = format!("{MANIFESTS}{repository}/");
    // One more than asked for tells whether there is more.
    let mut tags = read_tags(context, &prefix, last, wanted.saturating_add(1)).await?;
    if tags.is_empty() && last.is_empty() {
        return Err(OciError::not_found("NAME_UNKNOWN", repository));
    }
    let has_more = tags.len() > wanted;
    tags.truncate(wanted);
    let mut answer = response::json(StatusCode::OK, &json!({"name": repository, "tags": tags}));
    if let (true, Some(last)) = (has_more, tags.last()) {
        let next = format!("</v2/{repository}/tags/list?n={wanted}&last={last}>; rel=\"next\"");
        if let Ok(next) = HeaderValue::from_str(&next) {
            answer.headers_mut().insert(header::LINK, next);
        }
    }
    Ok(answer)
}

/// The first `limit` tags after `last`. Digests and the repositories below lie between them.
async fn read_tags(
    context: &Context,
    prefix: &str,
    last: &str,
    limit: usize,
) -> Result<Vec<String>, OciError> {
    let mut tags = Vec::new();
    let mut after = format!("{prefix}{last}");
    while tags.len() < limit {
        let keys = context.store.raw_keys(prefix, &after, KEYS_PAGE).await?;
        let Some(end) = keys.last() else { break };
        after.clone_from(end);
        if end.strip_prefix(prefix).is_some_and(|name| name.starts_with("sha256:")) {
            after = format!("{prefix}{AFTER_DIGESTS}");
        }
        let is_tag = |name: &&str| !name.starts_with("sha256:") && !name.contains('/');
        let found = keys.iter().filter_map(|key| key.strip_prefix(prefix)).filter(is_tag);
        tags.extend(found.take(limit - tags.len()).map(str::to_owned));
    }
    Ok(tags)
}
