//! Pushes a component to the cluster's own OCI registry.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::api::{ApiError, Session, build};
use super::exit::Failure;

/// Host part of the references to the cluster's own registry.
pub(super) const OWN_REGISTRY: &str = "registry.edgeorc.local";
/// Media type of a component or module (OCI Wasm artifact layout).
const LAYER_TYPE: &str = "application/wasm";
/// Media type of its configuration.
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Media type of an image manifest.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Characters of the digest that make the tag: enough to tell builds apart.
const TAG_CHARS: usize = 12;

/// Pushes `wasm` as `<namespace>/<name>`, tagged with the start of its digest. Returns the image
/// reference.
pub(super) async fn push(session: &Session, name: &str, wasm: &[u8]) -> Result<String, Failure> {
    let repository = format!("{}/{name}", session.namespace);
    let layer = digest(wasm);
    let config = json!({
        "architecture": "wasm", "os": "wasip2", "layerDigests": [layer],
    })
    .to_string();
    let config_digest = digest(config.as_bytes());
    blob(session, &repository, &layer, wasm).await?;
    blob(session, &repository, &config_digest, config.as_bytes()).await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer, "size": wasm.len()}],
    });
    let tag: String = layer.trim_start_matches("sha256:").chars().take(TAG_CHARS).collect();
    let path = format!("/v2/{repository}/manifests/{tag}");
    session
        .json_or_empty(Method::PUT, &path, MANIFEST_TYPE, manifest.to_string().into_bytes())
        .await?;
    Ok(format!("{OWN_REGISTRY}/{repository}:{tag}"))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Uploads one blob in one piece, unless the registry has it.
async fn blob(
    session: &Session,
    repository: &str,
    digest: &str,
    bytes: &[u8],
) -> Result<(), Failure> {
    let head = build(
        Method::HEAD,
        &format!("/v2/{repository}/blobs/{digest}"),
        LAYER_TYPE,
        "*/*",
        Vec::new(),
    )?;
    match session.send(head).await {
        Ok(_) => return Ok(()),
        Err(ApiError::Refused { code: StatusCode::NOT_FOUND, .. }) => {}
        Err(refused) => return Err(refused.into()),
    }
    let start = format!("/v2/{repository}/blobs/uploads/");
    let (_, headers, _) =
        session.send(build(Method::POST, &start, LAYER_TYPE, "*/*", Vec::new())?).await?;
    let location = headers
        .get(http::header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| Failure::failed("the registry gave no place to upload to"))?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let put = format!("{}{separator}digest={digest}", path_of(location));
    session
        .send(build(Method::PUT, &put, "application/octet-stream", "*/*", bytes.to_vec())?)
        .await?;
    Ok(())
}

/// Path and query of a location that may be absolute.
fn path_of(location: &str) -> String {
    location
        .parse::<http::Uri>()
        .ok()
        .and_then(|uri| uri.path_and_query().map(ToString::to_string))
        .unwrap_or_else(|| location.to_owned())
}

impl Session {
    /// Sends bytes and parses the answer when it is JSON.
    async fn json_or_empty(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value, ApiError> {
        let (_, _, answer) = self.send(build(method, path, content_type, "*/*", body)?).await?;
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }
}
