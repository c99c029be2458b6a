//! Pulling from the cluster's registry, over the API's own connection.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt as _;

use crate::agent::dirs::temporary_name;
use crate::agent::image::reference::Reference;
use crate::agent::image::{ImageError, Images, Resolved};

/// Largest manifest, in bytes.
const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// Largest component, in bytes.
const COMPONENT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long one piece of a blob may take to arrive.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Media types of layers that are components or modules.
const LAYER_TYPES: &[&str] = &["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

fn failed(cause: impl ToString) -> ImageError {
    ImageError::Pull(cause.to_string())
}

impl Images {
    /// Resolves the reference and fetches its component, unless that is here.
    pub(super) async fn pull(&self, reference: &Reference) -> Result<Resolved, ImageError> {
        let path = format!("/v2/{}/manifests/{}", reference.repository, reference.reference);
        let answer = self.get(&path).await?;
        let content = http_body_util::Limited::new(answer, MANIFEST_BYTES_MAX);
        let content = content.collect().await.map_err(failed)?.to_bytes();
        if let Some(wanted) = reference.reference.strip_prefix("sha256:")
            && hex::encode(Sha256::digest(&content)) != wanted
        {
            return Err(failed("the registry sent another manifest than the digest names"));
        }
        let manifest: Value = serde_json::from_slice(&content).map_err(failed)?;
        let digest =
            layer(&manifest).ok_or_else(|| failed("the image has no WebAssembly layer"))?;
        let blob = self.blob(&digest);
        if !blob.exists() {
            self.fetch(&reference.repository, &digest).await?;
        }
        Ok(Resolved { layer: digest })
    }

    async fn get(&self, path: &str) -> Result<Body, ImageError> {
        let request = http::Request::get(path).body(Body::empty()).map_err(failed)?;
        let answer = self.client.send(request).await.map_err(failed)?;
        if !answer.status().is_success() {
            let what = path.trim_start_matches("/v2/");
            return Err(failed(format!("the registry answers {} for {what}", answer.status())));
        }
        Ok(answer.into_body())
    }

    /// Fetches one blob into its place, checking its digest on the way.
    async fn fetch(&self, repository: &str, hex: &str) -> Result<(), ImageError> {
        let body = self.get(&format!("/v2/{repository}/blobs/sha256:{hex}")).await?;
        let place = self.blob(hex);
        let folder = self.dirs.images().join("sha256");
        fs::create_dir_all(&folder).await?;
        let temporary = folder.join(temporary_name(&place));
        let mut file = File::create(&temporary).await?;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        let mut chunks = body.into_data_stream();
        loop {
            let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.try_next())
                .await
                .map_err(|_| failed("the registry stopped sending"))?
                .map_err(failed)?;
            let Some(chunk) = chunk else { break };
            size += chunk.len() as u64;
            if size > COMPONENT_BYTES_MAX {
                return Err(failed(format!(
                    "the component is larger than {COMPONENT_BYTES_MAX} bytes"
                )));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await?;
        }
        if hex::encode(hash.finalize()) != hex {
            let _ = fs::remove_file(&temporary).await;
            return Err(failed("the registry sent other bytes than the digest names"));
        }
        file.sync_all().await?;
        fs::rename(&temporary, &place).await?;
        Ok(())
    }
}

/// Hex of the digest of the WebAssembly layer.
fn layer(manifest: &Value) -> Option<String> {
    let layers = manifest.get("layers")?.as_array()?;
    let text = |layer: &Value, key: &str| layer.get(key).and_then(Value::as_str).map(str::to_owned);
    let is_wasm = |layer: &&Value| {
        text(layer, "mediaType").is_some_and(|media| LAYER_TYPES.contains(&media.as_str()))
    };
    let digest = text(layers.iter().find(is_wasm)?, "digest")?;
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit());
    is_hex.then(|| hex.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_wasm_layer_is_found_and_its_digest_checked() {
        let digest = "a".repeat(64);
        let manifest = json!({"layers": [
            {"mediaType": "text/plain", "digest": "sha256:x"},
            {"mediaType": "application/wasm", "digest": format!("sha256:{digest}")},
        ]});
        assert_eq!(layer(&manifest), Some(digest));
        let escape =
            json!({"layers": [{"mediaType": "application/wasm", "digest": "sha256:../../x"}]});
        assert_eq!(layer(&escape), None);
    }
}
