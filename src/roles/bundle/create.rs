//! From registries into an archive.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::agent::{ImageReader, ReadError, RemoteImage};
use crate::api::image_policy::BUNDLE_LAYER_PREFIX;
use crate::config::Proxies;
use crate::roles::bundle::archive::ArchiveWriter;
use crate::roles::bundle::{
    BLOB_BYTES_MAX, BundleError, DEPTH_MAX, Descriptor, INDEX_TYPE, Manifest, NAME_ANNOTATION,
    TAG_ANNOTATION, Tell,
};

/// Most referrers of one image that are looked at.
const REFERRERS_MAX: usize = 64;

/// What goes into a bundle.
#[derive(Debug, Clone)]
pub struct BundlePlan {
    /// The archive to write.
    pub file: PathBuf,
    /// The images, by the names that pods have.
    pub images: Vec<String>,
    /// `registries.yaml`; it need not exist.
    pub registries_file: Option<PathBuf>,
    /// Docker's `config.json`; it need not exist.
    pub docker_config: Option<PathBuf>,
    /// Proxies on the way to registries.
    pub proxies: Proxies,
    /// All platforms of an image, not only the one that runs on nodes.
    pub all_platforms: bool,
}

/// What an archive holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundled {
    /// Name, digest and number of signature manifests of each image.
    pub images: Vec<(String, String, usize)>,
    /// How many blobs.
    pub blobs: usize,
    /// How many bytes they have.
    pub bytes: u64,
}

/// Writes the images with their signatures into an archive. `client` leads to the cluster's own
/// registry; without it, images of that are refused.
///
/// # Errors
///
/// See [`BundleError`]; nothing is left of the archive.
pub async fn create(
    plan: &BundlePlan,
    client: Option<kube::Client>,
    tell: Tell<'_>,
) -> Result<Bundled, BundleError> {
    let docker = plan.docker_config.as_deref();
    let reader = ImageReader::open(client, plan.registries_file.clone(), docker, &plan.proxies);
    let mut archive = ArchiveWriter::create(&plan.file).await?;
    match fill(plan, &reader, &mut archive, tell).await {
        Ok((images, entries)) => {
            let (blobs, bytes) = archive.written();
            let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries});
            archive.finish(index.to_string().as_bytes()).await?;
            Ok(Bundled { images, blobs, bytes })
        }
        Err(failed) => {
            archive.discard().await;
            Err(failed)
        }
    }
}

type Filled = (Vec<(String, String, usize)>, Vec<Value>);

async fn fill(
    plan: &BundlePlan,
    reader: &ImageReader,
    archive: &mut ArchiveWriter,
    tell: Tell<'_>,
) -> Result<Filled, BundleError> {
    let (mut images, mut entries) = (Vec::new(), Vec::new());
    for name in &plan.images {
        tell(&format!("fetching {name}"));
        let failed =
            |why: ReadError| BundleError::Image { image: name.clone(), why: why.to_string() };
        let image = reader.image(name).map_err(failed)?;
        let (hex, content) = image.manifest(image.reference()).await.map_err(failed)?;
        let transfer = Transfer { image: &image, all_platforms: plan.all_platforms };
        transfer.manifest(archive, &hex, &content, 0).await?;
        let entry = entry(&image, image.reference(), &hex, &content)?;
        let is_new = !entries.contains(&entry);
        let signatures = if is_new {
            tell(&format!("fetching signatures of {name}"));
            transfer.signatures(archive, &hex, &mut entries).await?
        } else {
            0
        };
        if is_new {
            entries.push(entry);
        }
        images.push((image.full_name(), format!("sha256:{hex}"), signatures));
    }
    Ok((images, entries))
}

/// An entry of the index: the full name where containerd and Docker look for it, and the tag where
/// other tools do.
fn entry(image: &RemoteImage, tag: &str, hex: &str, content: &[u8]) -> Result<Value, BundleError> {
    let manifest = parse(image, content)?;
    let is_digest = tag.starts_with("sha256:");
    let separator = if is_digest { '@' } else { ':' };
    let mut annotations = json!({NAME_ANNOTATION: format!("{}{separator}{tag}", image.name())});
    if let (false, Some(fields)) = (is_digest, annotations.as_object_mut()) {
        fields.insert(TAG_ANNOTATION.to_owned(), json!(tag));
    }
    Ok(json!({
        "mediaType": manifest.media_type(),
        "digest": format!("sha256:{hex}"),
        "size": content.len(),
        "annotations": annotations,
    }))
}

fn parse(image: &RemoteImage, content: &[u8]) -> Result<Manifest, BundleError> {
    Manifest::parse(content).map_err(|why| BundleError::Image { image: image.full_name(), why })
}

/// One image on its way.
struct Transfer<'a> {
    image: &'a RemoteImage,
    all_platforms: bool,
}

impl Transfer<'_> {
    fn failed(&self, why: impl ToString) -> BundleError {
        BundleError::Image { image: self.image.full_name(), why: why.to_string() }
    }

    /// A manifest with all it names; of an index, what runs on nodes.
    async fn manifest(
        &self,
        archive: &mut ArchiveWriter,
        hex: &str,
        content: &[u8],
        depth: usize,
    ) -> Result<(), BundleError> {
        let manifest = parse(self.image, content)?;
        let wanted = match RemoteImage::wasm_entry(content) {
            Ok(wanted) => wanted,
            Err(_) if self.all_platforms => None,
            Err(why) => return Err(self.failed(why)),
        };
        for child in manifest.manifests.iter().flatten() {
            let child_hex = child.hex().map_err(|why| self.failed(why))?;
            if !self.all_platforms && wanted.as_deref() != Some(child_hex) {
                continue;
            }
            if depth >= DEPTH_MAX {
                return Err(self.failed("the image is an index of indexes of indexes"));
            }
            let found = self.image.manifest(&child.digest).await;
            let (_, content) = found.map_err(|why| self.failed(why))?;
            Box::pin(self.manifest(archive, child_hex, &content, depth + 1)).await?;
        }
        self.blobs(archive, &manifest).await?;
        archive.manifest(hex, content).await
    }

    async fn blobs(
        &self,
        archive: &mut ArchiveWriter,
        manifest: &Manifest,
    ) -> Result<(), BundleError> {
        for blob in manifest.config.iter().chain(&manifest.layers) {
            if blob.size > BLOB_BYTES_MAX {
                return Err(self.failed(format!(
                    "the blob {} has {} bytes, the cluster's registry takes at most {BLOB_BYTES_MAX}",
                    blob.digest, blob.size
                )));
            }
            let hex = blob.hex().map_err(|why| self.failed(why))?;
            archive.blob(self.image, hex, blob.size).await?;
        }
        Ok(())
    }

    /// What `cosign` left beside the image; how many manifests.
    async fn signatures(
        &self,
        archive: &mut ArchiveWriter,
        hex: &str,
        entries: &mut Vec<Value>,
    ) -> Result<usize, BundleError> {
        let mut count = 0;
        let tag = format!("sha256-{hex}.sig");
        match self.image.manifest(&tag).await {
            Ok((found, content)) => {
                self.blobs(archive, &parse(self.image, &content)?).await?;
                archive.manifest(&found, &content).await?;
                entries.push(entry(self.image, &tag, &found, &content)?);
                count += 1;
            }
            Err(ReadError::Missing(_)) => {}
            Err(why) => return Err(self.failed(why)),
        }
        let mut referrers = Vec::new();
        for content in self.image.referrers(hex).await {
            referrers.extend(parse(self.image, &content)?.manifests.into_iter().flatten());
        }
        let (mut kept, mut seen) = (Vec::new(), BTreeSet::new());
        for referrer in referrers {
            if kept.len() >= REFERRERS_MAX {
                break;
            }
            if !seen.insert(referrer.digest.clone()) {
                continue;
            }
            if let Some(found) = self.referrer(archive, &referrer).await? {
                kept.push(found);
            }
        }
        if kept.is_empty() {
            return Ok(count);
        }
        count += kept.len();
        // Under the tag that stands for the endpoint in registries without it.
        let index =
            json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": kept}).to_string();
        let found = hex_of_content(index.as_bytes());
        archive.manifest(&found, index.as_bytes()).await?;
        entries.push(entry(self.image, &format!("sha256-{hex}"), &found, index.as_bytes())?);
        Ok(count)
    }

    /// A referrer, if it is a Sigstore bundle.
    async fn referrer(
        &self,
        archive: &mut ArchiveWriter,
        referrer: &Descriptor,
    ) -> Result<Option<Value>, BundleError> {
        let kind = referrer.artifact_type.as_deref().unwrap_or_default();
        let is_other = |kind: &str| {
            !kind.is_empty()
                && !kind.starts_with(BUNDLE_LAYER_PREFIX)
                && kind != "application/vnd.oci.empty.v1+json"
        };
        if is_other(kind) {
            return Ok(None);
        }
        let hex = referrer.hex().map_err(|why| self.failed(why))?;
        let found = self.image.manifest(&referrer.digest).await;
        let (_, content) = found.map_err(|why| self.failed(why))?;
        let manifest = parse(self.image, &content)?;
        let is_bundle = |layer: &Descriptor| layer.media_type.starts_with(BUNDLE_LAYER_PREFIX);
        if !manifest.layers.iter().any(is_bundle) {
            return Ok(None);
        }
        self.blobs(archive, &manifest).await?;
        archive.manifest(hex, &content).await?;
        Ok(Some(json!({
            "mediaType": manifest.media_type(),
            "digest": referrer.digest,
            "size": content.len(),
            "artifactType": kind,
            "annotations": referrer.annotations,
        })))
    }
}

fn hex_of_content(content: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(content))
}
