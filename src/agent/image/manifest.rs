//! Which layer of a manifest is the component, and which manifest of an index is for Wasm.

use serde::Deserialize;

use crate::agent::image::reference::hex_of;

/// Media types of the manifests this node can read, as an `Accept` header.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// Media types of layers that are components or modules, the usual one first.
const WASM_LAYERS: &[&str] = &[
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
/// Media types of layers that are archives, or files pushed without a type.
const TAR_LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/wasm+gzip",
    "application/wasm+zstd",
];
/// Operating systems of Wasm platforms, the newest first.
const WASM_SYSTEMS: &[&str] = &["wasip2", "wasip3", "wasip1", "wasi"];

/// A blob by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// Hex of its SHA-256.
    pub(super) hex: String,
    /// Its size, if the manifest tells.
    pub(super) size: Option<u64>,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// The component is this layer, or the one file in it.
    Layer(Blob),
    /// It is an index, and this manifest is the one for Wasm.
    Manifest(Blob),
}

/// Why a manifest gives no component. Give up until the image changes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ManifestError {
    /// It is no manifest.
    #[error("the registry sent no image manifest: {0}")]
    Malformed(String),
    /// It is an image of something else.
    #[error(
        "the image has no WebAssembly layer{0}; an image made for containers can be replaced under `images` in registries.yaml"
    )]
    NotWasm(String),
    /// It is an index without a Wasm platform.
    #[error(
        "no match for platform in manifest: the image is for {0}, not for WebAssembly; it can be replaced under `images` in registries.yaml"
    )]
    NoPlatform(String),
    /// A digest of it is none.
    #[error("the manifest names the digest {0:?}; only sha256 is supported")]
    Digest(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: Option<u64>,
    artifact_type: Option<String>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Descriptor {
    fn blob(&self) -> Result<Blob, ManifestError> {
        let hex = hex_of(&self.digest).ok_or_else(|| ManifestError::Digest(self.digest.clone()))?;
        Ok(Blob { hex: hex.to_owned(), size: self.size })
    }
}

/// Reads a manifest or an index.
pub(super) fn read(content: &[u8]) -> Result<Found, ManifestError> {
    let manifest: Manifest = serde_json::from_slice(content)
        .map_err(|cause| ManifestError::Malformed(cause.to_string()))?;
    match (&manifest.layers, &manifest.manifests) {
        (Some(layers), _) => layer(layers)?.blob().map(Found::Layer),
        (None, Some(manifests)) => entry(manifests)?.blob().map(Found::Manifest),
        (None, None) => Err(ManifestError::Malformed("it has no layers".to_owned())),
    }
}

fn layer(layers: &[Descriptor]) -> Result<&Descriptor, ManifestError> {
    let is_wasm = |layer: &&Descriptor| WASM_LAYERS.contains(&layer.media_type.as_str());
    if let Some(layer) = layers.iter().find(is_wasm) {
        return Ok(layer);
    }
    // `FROM scratch` and one `COPY`: what else is in a longer image only a container could use.
    match layers {
        [only] if TAR_LAYERS.contains(&only.media_type.as_str()) => Ok(only),
        [] => Err(ManifestError::NotWasm(String::new())),
        [first, ..] => Err(ManifestError::NotWasm(format!(
            ": it has {} of type {}",
            layers.len(),
            first.media_type
        ))),
    }
}

/// The entry for the newest Wasm platform; without platforms, the only one there is.
fn entry(manifests: &[Descriptor]) -> Result<&Descriptor, ManifestError> {
    let rank = |entry: &Descriptor| {
        let platform = entry.platform.as_ref()?;
        let system = WASM_SYSTEMS.iter().position(|system| *system == platform.os);
        match system {
            Some(rank) => Some(rank),
            None if platform.architecture.starts_with("wasm") => Some(WASM_SYSTEMS.len()),
            None => None,
        }
    };
    let ranked = manifests.iter().filter_map(|entry| Some((rank(entry)?, entry)));
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(best);
    }
    let is_artifact = |entry: &&Descriptor| {
        entry.artifact_type.as_deref().is_some_and(|kind| kind.contains("wasm"))
    };
    if let Some(artifact) = manifests.iter().find(is_artifact) {
        return Ok(artifact);
    }
    match manifests {
        [only] if only.platform.is_none() => Ok(only),
        _ => {
            let names = manifests.iter().filter_map(|entry| entry.platform.as_ref());
            let names: Vec<_> = names.map(|p| format!("{}/{}", p.os, p.architecture)).collect();
            Err(ManifestError::NoPlatform(names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn read_json(manifest: &Value) -> Result<Found, ManifestError> {
        read(manifest.to_string().as_bytes())
    }

    fn blob(digit: &str) -> Blob {
        Blob { hex: digit.repeat(64), size: None }
    }

    #[test]
    fn the_wasm_layer_is_found_and_its_digest_checked() {
        let manifest = |media: &str, digest: &str| {
            json!({"layers": [
                {"mediaType": "text/plain", "digest": "sha256:x"},
                {"mediaType": media, "digest": digest},
            ]})
        };
        for media in WASM_LAYERS {
            let found = read_json(&manifest(media, &digest("a")));
            assert_eq!(found, Ok(Found::Layer(blob("a"))), "{media}");
        }
        let escape = read_json(&manifest("application/wasm", "sha256:../../x"));
        assert!(matches!(escape, Err(ManifestError::Digest(_))));
        let container = read_json(&manifest(TAR_LAYERS[1], &digest("a")));
        assert!(container.unwrap_err().to_string().contains("registries.yaml"));
    }

    #[test]
    fn one_archive_alone_may_hold_the_component() {
        let manifest =
            json!({"layers": [{"mediaType": TAR_LAYERS[3], "digest": digest("b"), "size": 7}]});
        let wanted = Blob { size: Some(7), ..blob("b") };
        assert_eq!(read_json(&manifest), Ok(Found::Layer(wanted)));
    }

    #[test]
    fn an_index_gives_the_newest_wasm_platform() {
        let entry = |os: &str, arch: &str, digit: &str| json!({"digest": digest(digit), "platform": {"os": os, "architecture": arch}});
        let all = json!({"manifests": [
            entry("linux", "amd64", "1"), entry("wasip1", "wasm", "2"), entry("wasip2", "wasm", "3"),
        ]});
        assert_eq!(read_json(&all), Ok(Found::Manifest(blob("3"))));
        let docker =
            json!({"manifests": [entry("linux", "arm64", "1"), entry("wasi", "wasm", "2")]});
        assert_eq!(read_json(&docker), Ok(Found::Manifest(blob("2"))));
        let only = json!({"manifests": [{"digest": digest("4")}]});
        assert_eq!(read_json(&only), Ok(Found::Manifest(blob("4"))));
        let none =
            json!({"manifests": [entry("linux", "arm64", "1"), entry("linux", "amd64", "2")]});
        let refused = read_json(&none).unwrap_err().to_string();
        assert!(refused.contains("linux/arm64, linux/amd64"), "{refused}");
    }
}
