//! Manifests and tags: small, and in the replicated store.

use std::collections::BTreeSet;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use http::header::HeaderName;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::apiserver::context::Context;
use crate::apiserver::query::Query;
use crate::apiserver::registry::handler::{Answer, DIGEST_HEADER, not_allowed, with_headers};
use crate::apiserver::registry::name::{self, OciError};
use crate::apiserver::registry::{referrers, replicas};
use crate::apiserver::response;

/// Root of the manifests in the store.
pub(super) const MANIFESTS: &str = "/oci/manifests/";
/// Largest manifest, in bytes: it is one entry of the store.
const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// Most that is read of one that is larger.
const DRAINED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most tags or repositories in one answer.
const PAGE_MAX: usize = 1000;
/// Keys read at once.
const KEYS_PAGE: usize = 1000;
/// Follows every key of a digest, and no other of a tag before it.
const AFTER_DIGESTS: &str = "sha256;";
/// Media type of a manifest that does not tell its own.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Tells a client that the registry keeps the list of referrers itself.
const SUBJECT_HEADER: HeaderName = HeaderName::from_static("oci-subject");

/// A manifest in the store.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    digest: String,
    media_type: String,
    content: String,
    /// Unix seconds; 0 in those of earlier versions.
    #[serde(default)]
    pushed_at: i64,
}

/// A manifest as it is stored, for those who look at all of them.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) digest: String,
    pub(super) content: Vec<u8>,
    /// Unix seconds.
    pub(super) pushed_at: i64,
}

/// Answers a request for the manifest that a tag or digest names.
pub(super) async fn respond(
    context: &Context,
    repository: &str,
    reference: &str,
    request: Request<Body>,
) -> Answer {
    let is_digest = reference.contains(':');
    let checked = if is_digest { name::digest(reference).map(drop) } else { name::tag(reference) };
    match *request.method() {
        Method::GET | Method::HEAD => {
            // What cannot be a name is the name of nothing.
            let found = match checked {
                Ok(()) => read(context, repository, reference).await?,
                Err(_) => None,
            };
            let unknown =
                || OciError::not_found("MANIFEST_UNKNOWN", &format!("{repository}:{reference}"));
            let stored = found.ok_or_else(unknown)?;
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
            checked?;
            put(context, repository, reference, request).await
        }
        Method::DELETE => {
            checked?;
            delete(context, repository, reference).await
        }
        _ => Err(not_allowed()),
    }
}

fn key(repository: &str, reference: &str) -> String {
    format!("{MANIFESTS}{repository}/{reference}")
}

async fn read(
    context: &Context,
    repository: &str,
    reference: &str,
) -> Result<Option<Manifest>, OciError> {
    let found = context.store.raw_get(&key(repository, reference)).await?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Reads a stored manifest. `None`: it is none.
pub(super) fn parse(stored: &[u8]) -> Option<Kept> {
    let Manifest { digest, content, pushed_at, .. } = serde_json::from_slice(stored).ok()?;
    Some(Kept { digest, content: STANDARD.decode(content).ok()?, pushed_at })
}

async fn put(
    context: &Context,
    repository: &str,
    reference: &str,
    request: Request<Body>,
) -> Answer {
    let invalid = |why: &str| OciError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why);
    let named = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let named = named.filter(|named| !named.is_empty()).map(str::to_owned);
    let content = read_manifest(request.into_body()).await?;
    let parsed: Value =
        serde_json::from_slice(&content).map_err(|_| invalid("the manifest is not JSON"))?;
    let inside = parsed.get("mediaType").and_then(Value::as_str).unwrap_or(MANIFEST_TYPE);
    let media_type = named.unwrap_or_else(|| inside.to_owned());
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&content)));
    if reference.contains(':') && reference != digest {
        let why = "the manifest has another digest";
        return Err(OciError::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", why));
    }
    check(context, &parsed).await?;
    let mut headers = vec![
        (header::LOCATION, format!("/v2/{repository}/manifests/{digest}")),
        (DIGEST_HEADER, digest.clone()),
    ];
    // First: a manifest that is there is found by its subject.
    let size = content.len();
    let subject =
        referrers::add(context, repository, &parsed, &media_type, (&digest, size)).await?;
    headers.extend(subject.map(|subject| (SUBJECT_HEADER, subject)));
    let stored = Manifest {
        digest: digest.clone(),
        media_type,
        content: STANDARD.encode(&content),
        pushed_at: context.clock.now().as_second(),
    };
    let value = serde_json::to_vec(&stored).map_err(|_| invalid("the manifest cannot be kept"))?;
    context.store.raw_put(&key(repository, &digest), value.clone()).await?;
    if reference != digest {
        context.store.raw_put(&key(repository, reference), value).await?;
    }
    Ok(with_headers(StatusCode::CREATED, &headers, Body::empty()))
}

/// Reads a manifest. One that is too large is read as well, so that its client reads the answer.
async fn read_manifest(body: Body) -> Result<Vec<u8>, OciError> {
    let mut chunks = Limited::new(body, DRAINED_BYTES_MAX).into_data_stream();
    let (mut content, mut length) = (Vec::new(), 0_usize);
    while let Some(chunk) = chunks.next().await {
        let Ok(chunk) = chunk else {
            if length > MANIFEST_BYTES_MAX {
                break;
            }
            let why = "the manifest ended early";
            return Err(OciError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why));
        };
        length = length.saturating_add(chunk.len());
        if length <= MANIFEST_BYTES_MAX {
            content.extend_from_slice(&chunk);
        }
    }
    if length > MANIFEST_BYTES_MAX {
        let message = format!("manifests may have at most {MANIFEST_BYTES_MAX} bytes");
        return Err(OciError::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
    }
    Ok(content)
}

/// Refuses what is no manifest, and one whose config or layers nobody has pushed.
async fn check(context: &Context, manifest: &Value) -> Result<(), OciError> {
    let invalid = |why: &str| OciError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", why);
    if manifest.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
        return Err(invalid("schemaVersion must be 2"));
    }
    let layers = manifest.get("layers").and_then(Value::as_array).into_iter().flatten();
    for part in manifest.get("config").into_iter().chain(layers) {
        // What says where else it is need not be here.
        if part.get("urls").is_some() {
            continue;
        }
        let digest = part.get("digest").and_then(Value::as_str);
        let digest = digest.ok_or_else(|| invalid("config and layers need a digest each"))?;
        let found = replicas::hold(context, name::digest(digest)?).await?;
        let size = found.ok_or_else(|| OciError::not_found("MANIFEST_BLOB_UNKNOWN", digest))?;
        let said = part.get("size").and_then(Value::as_u64);
        if said.is_some_and(|said| said != size) {
            return Err(invalid(&format!("{digest} has {size} bytes, not as the manifest says")));
        }
    }
    Ok(())
}

/// The names of all repositories in order: at most `n` after `last`.
pub(super) async fn catalog(context: &Context, query: &Query) -> Answer {
    let wanted = page_size(query)?;
    let last = query.get("last").unwrap_or_default();
    let mut repositories = BTreeSet::new();
    let mut after = String::new();
    loop {
        let keys = context.store.raw_keys(MANIFESTS, &after, KEYS_PAGE).await?;
        let Some(end) = keys.last() else { break };
        after.clone_from(end);
        let names = keys.iter().filter_map(|key| key.strip_prefix(MANIFESTS)?.rsplit_once('/'));
        repositories
            .extend(names.map(|(name, _)| name.to_owned()).filter(|name| name.as_str() > last));
        // The names of keys are not in the order of repositories: all are looked at, the first are kept.
        while repositories.len() > wanted.saturating_add(1) {
            repositories.pop_last();
        }
    }
    let has_more = repositories.len() > wanted;
    let names: Vec<String> = repositories.into_iter().take(wanted).collect();
    let mut answer = response::json(StatusCode::OK, &json!({"repositories": names}));
    if let (true, Some(last)) = (has_more, names.last()) {
        link(&mut answer, &format!("/v2/_catalog?n={wanted}&last={last}"));
    }
    Ok(answer)
}

/// Most entries that a page is to have.
fn page_size(query: &Query) -> Result<usize, OciError> {
    let Some(wanted) = query.get("n") else { return Ok(PAGE_MAX) };
    let wanted: usize = wanted.parse().map_err(|_| {
        let why = "n must be a number";
        OciError::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", why)
    })?;
    Ok(wanted.min(PAGE_MAX))
}

/// Tells where the next page is.
fn link(answer: &mut Response<Body>, path: &str) {
    if let Ok(next) = HeaderValue::from_str(&format!("<{path}>; rel=\"next\"")) {
        answer.headers_mut().insert(header::LINK, next);
    }
}

/// Removes a tag; or a manifest by its digest, with all tags that name it. Its blobs go by
/// [`super::gc`]: others may name them.
async fn delete(context: &Context, repository: &str, reference: &str) -> Answer {
    let unknown = || OciError::not_found("MANIFEST_UNKNOWN", &format!("{repository}:{reference}"));
    let stored = read(context, repository, reference).await?.ok_or_else(unknown)?;
    let mut keys = vec![key(repository, reference)];
    if reference == stored.digest {
        let mut last = String::new();
        loop {
            let prefix = key(repository, "");
            let tags = read_tags(context, &prefix, &last, PAGE_MAX).await?;
            let Some(end) = tags.last() else { break };
            last.clone_from(end);
            for tag in tags {
                let named = read(context, repository, &tag).await?;
                if named.is_some_and(|named| named.digest == stored.digest) {
                    keys.push(key(repository, &tag));
                }
            }
        }
        let content = STANDARD.decode(&stored.content).unwrap_or_default();
        let parsed = serde_json::from_slice(&content).unwrap_or_default();
        keys.extend(referrers::key_of(repository, &parsed, &stored.digest));
    }
    context.store.raw_delete(&keys).await?;
    Ok(with_headers(StatusCode::ACCEPTED, &[], Body::empty()))
}

/// The tags of a repository in order, as the specification pages them: at most `n` after `last`.
pub(super) async fn tags(context: &Context, repository: &str, query: &Query) -> Answer {
    let wanted = page_size(query)?;
    let last = query.get("last").unwrap_or_default();
    let prefix = format!("{MANIFESTS}{repository}/");
    // One more than asked for tells whether there is more.
    let mut tags = read_tags(context, &prefix, last, wanted.saturating_add(1)).await?;
    if tags.is_empty() && last.is_empty() && !has_digest(context, repository).await? {
        return Err(OciError::not_found("NAME_UNKNOWN", repository));
    }
    let has_more = tags.len() > wanted;
    tags.truncate(wanted);
    let mut answer = response::json(StatusCode::OK, &json!({"name": repository, "tags": tags}));
    if let (true, Some(last)) = (has_more, tags.last()) {
        link(&mut answer, &format!("/v2/{repository}/tags/list?n={wanted}&last={last}"));
    }
    Ok(answer)
}

/// Whether a repository has a manifest, tagged or not.
async fn has_digest(context: &Context, repository: &str) -> Result<bool, OciError> {
    let prefix = key(repository, "sha256:");
    Ok(!context.store.raw_keys(&prefix, "", 1).await?.is_empty())
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
