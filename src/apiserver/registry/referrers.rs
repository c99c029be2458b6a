//! Which manifests name another as their subject: signatures, descriptions of what is in an image.

use axum::body::Body;
use http::header::HeaderName;
use http::{StatusCode, header};
use serde_json::{Value, json};

use crate::apiserver::context::Context;
use crate::apiserver::query::Query;
use crate::apiserver::registry::handler::{Answer, with_headers};
use crate::apiserver::registry::name::{self, OciError};

/// Root of the lists in the store.
const REFERRERS: &str = "/oci/referrers/";
/// Most entries of one answer.
const REFERRERS_MAX: usize = 1000;
/// Media type of the answer.
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Names the filters of the query that were heeded.
const FILTERS_HEADER: HeaderName = HeaderName::from_static("oci-filters-applied");
/// The filter there is.
const ARTIFACT_TYPE: &str = "artifactType";

/// Notes the subject of a manifest, which is pushed as `digest` with its size; returns it.
pub(super) async fn add(
    context: &Context,
    repository: &str,
    manifest: &Value,
    media_type: &str,
    (digest, size): (&str, usize),
) -> Result<Option<String>, OciError> {
    let Some(key) = key_of(repository, manifest, digest) else { return Ok(None) };
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str);
    let mut entry = json!({"mediaType": media_type, "digest": digest, "size": size});
    let kind = text("/artifactType").or_else(|| text("/config/mediaType"));
    for (field, value) in [
        (ARTIFACT_TYPE, kind.map(Value::from)),
        ("annotations", manifest.get("annotations").cloned()),
    ] {
        if let (Some(value), Some(entry)) = (value, entry.as_object_mut()) {
            entry.insert(field.to_owned(), value);
        }
    }
    context.store.raw_put(&key, entry.to_string().into_bytes()).await?;
    Ok(text("/subject/digest").map(str::to_owned))
}

/// Key of the note that a manifest has a subject, if it has one.
pub(super) fn key_of(repository: &str, manifest: &Value, digest: &str) -> Option<String> {
    let subject = manifest.pointer("/subject/digest")?.as_str()?;
    name::digest(subject).ok()?;
    Some(format!("{REFERRERS}{repository}/{subject}/{digest}"))
}

/// The same, of digests in hex.
pub(super) fn key(repository: &str, subject: &str, hex: &str) -> String {
    format!("{REFERRERS}{repository}/sha256:{subject}/sha256:{hex}")
}

/// The manifests whose subject `digest` is, as an index; those of one type if asked for it.
pub(super) async fn list(
    context: &Context,
    repository: &str,
    digest: &str,
    query: &Query,
) -> Answer {
    name::digest(digest)?;
    let prefix = format!("{REFERRERS}{repository}/{digest}/");
    let wanted = query.get(ARTIFACT_TYPE);
    let mut manifests: Vec<Value> = Vec::new();
    for key in context.store.raw_keys(&prefix, "", REFERRERS_MAX).await? {
        let entry = context.store.raw_get(&key).await?;
        let entry: Option<Value> = entry.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let is_wanted = |entry: &Value| {
            wanted.is_none() || entry.get(ARTIFACT_TYPE).and_then(Value::as_str) == wanted
        };
        manifests.extend(entry.filter(is_wanted));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests});
    let mut headers = vec![(header::CONTENT_TYPE, INDEX_TYPE.to_owned())];
    if wanted.is_some() {
        headers.push((FILTERS_HEADER, ARTIFACT_TYPE.to_owned()));
    }
    Ok(with_headers(StatusCode::OK, &headers, Body::from(index.to_string())))
}
