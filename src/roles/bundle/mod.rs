//! Air-gap bundles: images with their signatures in one file, and from it into the cluster's registry.
//!
//! A bundle is an OCI image layout in a tar archive, which other tools write and read as well.
//!
//! ```text
//! oci-layout                 {"imageLayoutVersion": "1.0.0"}
//! blobs/sha256/<hex>         manifests, configurations, layers, payloads of signatures
//! index.json                 the images by name, and their signatures by the tags cosign gives them
//! ```
//!
//! Data in: image names and registries, or an archive. Data out: an archive, or repositories in the
//! cluster's registry that stand for the images' own.
//!
//! # Invariants
//!
//! - No file is ever made from what an archive names: blobs are found in it by digest, and sent on.
//! - Every blob is checked against its digest: here when it is written, by the registry when it is
//!   pushed.
//! - One piece of a blob at most is in memory.
//! - An archive appears under its name only when it is whole.

mod archive;
#[cfg(test)]
mod bundle_test;
mod create;
mod folder;
mod load;

use serde::Deserialize;
use serde_json::Value;

pub use create::{BundlePlan, Bundled, create};
pub(super) use folder::load_folder;
pub use load::{LoadPlan, Loaded, load};

/// Annotation of an entry of the index: the image's full name, as containerd and Docker write it.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// Annotation of an entry of the index: a tag, or the full name.
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// Media types of manifests.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Indexes within indexes.
const DEPTH_MAX: usize = 3;
/// Largest manifest, in bytes; the registry's limit.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// Largest blob, in bytes; the registry's limit.
const BLOB_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Why a bundle was not made or not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The file cannot be read or written. A person must look.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The archive is not what it should be. Get another one.
    #[error("{path}: {why}")]
    Archive {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// An image cannot be had, or cannot be kept. A person must look.
    #[error("{image}: {why}")]
    Image {
        /// Its name.
        image: String,
        /// What happened.
        why: String,
    },
    /// The registry's disk is full. Retry once there is room; another bundle may fit.
    #[error("{image}: the disk of the cluster's registry is full")]
    NoRoom {
        /// The image that did not fit.
        image: String,
    },
    /// The cluster cannot be reached. Retry: what was loaded so far stays.
    #[error("the cluster's registry cannot be reached: {0}")]
    Unreachable(String),
}

/// What is being done, for people.
type Tell<'a> = &'a mut (dyn FnMut(&str) + Send);

/// A manifest or an index, as far as it names others.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: Value,
}

impl Descriptor {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).and_then(Value::as_str)
    }

    fn hex(&self) -> Result<&str, String> {
        hex_of(&self.digest).ok_or_else(|| format!("{:?} is no sha256 digest", self.digest))
    }
}

impl Manifest {
    fn parse(content: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(content).map_err(|cause| format!("its manifest is damaged: {cause}"))
    }

    fn is_index(&self) -> bool {
        self.manifests.is_some()
    }

    fn media_type(&self) -> &str {
        let usual = if self.is_index() { INDEX_TYPE } else { MANIFEST_TYPE };
        self.media_type.as_deref().unwrap_or(usual)
    }
}

/// The hex of a `sha256:` digest.
fn hex_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    (hex.len() == 64 && hex.chars().all(is_hex)).then_some(hex)
}
