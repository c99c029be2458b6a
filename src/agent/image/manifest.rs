//! Which layer of a manifest is the component, and which manifest of an index is for Wasm; for a
//! volume, what all its layers are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::agent::image::config;
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
/// Layers of this type hold nothing: an artifact without files has one.
const EMPTY_LAYER: &str = "application/vnd.oci.empty.v1+json";
/// Name of the file that a layer is.
const TITLE: &str = "org.opencontainers.image.title";
/// Says of a layer with a title that it is the archive of a folder, to be unpacked.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// Most layers of a volume.
pub(super) const LAYERS_MAX: usize = 128;
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
    /// The component is this layer, or the one file in it. The second blob says how it is started.
    Layer(Blob, Option<Blob>),
    /// It is an index, and this manifest is the one for Wasm, or for this machine.
    Manifest(Blob),
    /// The files of a volume come from these layers, the lowest first.
    Layers(Vec<Layer>),
}

/// One layer of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) blob: Blob,
    pub(super) form: Form,
}

/// How a layer becomes files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// It is an archive of them.
    Archive,
    /// It is one, with this name; the name is the registry's word, not checked yet.
    File(PathBuf),
}

/// Why a manifest gives no component, or no volume. Give up until the image changes.
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
    /// It is an index without this machine's platform.
    #[error("no match for platform in manifest: the image is for {0}")]
    NotForHere(String),
    /// It has more layers than a volume may.
    #[error("the image has {0} layers, more than the {LAYERS_MAX} allowed")]
    TooManyLayers(usize),
    /// Its layers are compressed in a way that this node does not know.
    #[error(
        "a layer of the image has the type {0}; tar archives without compression or with gzip can be unpacked"
    )]
    Compression(String),
    /// A digest of it is none.
    #[error("the manifest names the digest {0:?}; only sha256 is supported")]
    Digest(String),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    config: Option<Descriptor>,
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
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
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
        (Some(layers), _) => {
            let says = |config: &&Descriptor| config::TYPES.contains(&config.media_type.as_str());
            let config = manifest.config.as_ref().filter(says).map(Descriptor::blob).transpose()?;
            Ok(Found::Layer(layer(layers)?.blob()?, config))
        }
        (None, Some(manifests)) => entry(manifests)?.blob().map(Found::Manifest),
        (None, None) => Err(ManifestError::Malformed("it has no layers".to_owned())),
    }
}

/// Reads a manifest or an index as that of a volume.
pub(super) fn read_volume(content: &[u8]) -> Result<Found, ManifestError> {
    let manifest: Manifest = serde_json::from_slice(content)
        .map_err(|cause| ManifestError::Malformed(cause.to_string()))?;
    match (&manifest.layers, &manifest.manifests) {
        (Some(layers), _) if layers.len() > LAYERS_MAX => {
            Err(ManifestError::TooManyLayers(layers.len()))
        }
        (Some(layers), _) => {
            let layers = layers.iter().filter(|layer| layer.media_type != EMPTY_LAYER);
            layers.map(volume_layer).collect::<Result<_, _>>().map(Found::Layers)
        }
        (None, Some(manifests)) => volume_entry(manifests)?.blob().map(Found::Manifest),
        (None, None) => Err(ManifestError::Malformed("it has no layers".to_owned())),
    }
}

/// A layer is an archive if its type says so, unless it has a title: then it is that file, because
/// tools send files as "tar" when they are not told what they are.
fn volume_layer(layer: &Descriptor) -> Result<Layer, ManifestError> {
    let blob = layer.blob()?;
    let annotation = |key: &str| layer.annotations.as_ref().and_then(|all| all.get(key));
    let title = annotation(TITLE).filter(|title| !title.is_empty());
    let is_folder = annotation(UNPACK).is_some_and(|unpack| unpack == "true");
    let media = layer.media_type.as_str();
    let is_archive = media.contains(".tar") || media.contains("+tar");
    let form = match title {
        Some(title) if !is_folder => Form::File(PathBuf::from(title)),
        _ if TAR_LAYERS.contains(&media) || is_folder => Form::Archive,
        _ if is_archive && (media.ends_with("tar") || media.ends_with("gzip")) => Form::Archive,
        _ if is_archive => return Err(ManifestError::Compression(media.to_owned())),
        _ => Form::File(PathBuf::from(&blob.hex)),
    };
    Ok(Layer { blob, form })
}

/// The entry for this machine, else that for Wasm, else the only one there is.
fn volume_entry(manifests: &[Descriptor]) -> Result<&Descriptor, ManifestError> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let is_here = |entry: &&Descriptor| {
        entry.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture)
    };
    if let Some(own) = manifests.iter().find(is_here) {
        return Ok(own);
    }
    entry(manifests).map_err(|error| match error {
        ManifestError::NoPlatform(names) => ManifestError::NotForHere(names),
        other => other,
    })
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
            assert_eq!(found, Ok(Found::Layer(blob("a"), None)), "{media}");
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
        assert_eq!(read_json(&manifest), Ok(Found::Layer(wanted, None)));
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

    #[test]
    fn layers_of_a_volume_are_archives_or_files_by_their_title() {
        let layer = |media: &str, digit: &str, annotations: Value| json!({"mediaType": media, "digest": digest(digit), "annotations": annotations});
        let manifest = json!({"layers": [
            layer(TAR_LAYERS[1], "1", json!(null)),
            layer(TAR_LAYERS[0], "2", json!({TITLE: "model.bin"})),
            layer(TAR_LAYERS[1], "3", json!({TITLE: "folder", UNPACK: "true"})),
            layer("application/octet-stream", "4", json!({TITLE: "a/b.txt"})),
            layer("application/wasm", "5", json!({})),
            layer(EMPTY_LAYER, "6", json!(null)),
        ]});
        let Ok(Found::Layers(layers)) = read_volume(manifest.to_string().as_bytes()) else {
            panic!("no layers");
        };
        let forms: Vec<_> = layers.into_iter().map(|layer| layer.form).collect();
        let file = |name: &str| Form::File(PathBuf::from(name));
        assert_eq!(
            forms,
            [
                Form::Archive,
                file("model.bin"),
                Form::Archive,
                file("a/b.txt"),
                file(&"5".repeat(64))
            ]
        );
        let zstd = json!({"layers": [
            layer("application/vnd.oci.image.layer.v1.tar+zstd", "1", json!(null))]});
        assert!(matches!(read_volume(zstd.to_string().as_bytes()), Ok(Found::Layers(_))));
        let many: Vec<_> = (0..=LAYERS_MAX).map(|_| layer("x", "1", json!(null))).collect();
        let many = read_volume(json!({"layers": many}).to_string().as_bytes());
        assert_eq!(many, Err(ManifestError::TooManyLayers(LAYERS_MAX + 1)));
    }

    #[test]
    fn a_volume_is_taken_for_this_machine_before_any_other() {
        let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        let entry = |os: &str, arch: &str, digit: &str| json!({"digest": digest(digit), "platform": {"os": os, "architecture": arch}});
        let read =
            |manifests: Value| read_volume(json!({"manifests": manifests}).to_string().as_bytes());
        let both = json!([entry("wasip2", "wasm", "1"), entry("linux", here, "2")]);
        assert_eq!(read(both), Ok(Found::Manifest(blob("2"))));
        assert_eq!(read(json!([entry("wasip2", "wasm", "1")])), Ok(Found::Manifest(blob("1"))));
        let other = read(json!([entry("linux", "s390x", "1"), entry("linux", "mips", "2")]));
        assert_eq!(other, Err(ManifestError::NotForHere("linux/s390x, linux/mips".to_owned())));
    }
}
