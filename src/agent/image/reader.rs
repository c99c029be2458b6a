//! Reads images for those who copy them: what they are made of and who signed them, from the same
//! places and with the same trust as a node that runs them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body_util::BodyExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use crate::agent::image::credentials::Keyring;
use crate::agent::image::distribution::{Fault, Source};
use crate::agent::image::fetch::{self, CHUNK_TIMEOUT};
use crate::agent::image::manifest::{self, Found};
use crate::agent::image::reference::{OWN_REGISTRY, Reference, hex_of};
use crate::agent::image::{Registries, sources};
use crate::config::Proxies;

/// Largest credentials file of Docker, in bytes.
const DOCKER_CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Tries of one manifest, and tries in a row that bring not one byte of a blob.
const TRIES_MAX: u32 = 5;

/// Why something was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No place has it. Give up.
    #[error("{0}")]
    Missing(String),
    /// It cannot be had now, or never. A person must look.
    #[error("{0}")]
    Failed(String),
    /// The file it is written to refused. A person must make room.
    #[error("cannot write: {0}")]
    Disk(#[from] std::io::Error),
}

/// The way to registries.
pub struct ImageReader {
    client: Option<kube::Client>,
    registries: Registries,
    keyring: Keyring,
}

/// An image by name; nothing of it is read yet.
pub struct RemoteImage {
    reference: Reference,
    sources: Vec<Source>,
    /// The one that had it last.
    chosen: AtomicUsize,
}

impl std::fmt::Debug for ImageReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageReader").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RemoteImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteImage").field("reference", &self.reference).finish_non_exhaustive()
    }
}

/// Which blob of an image is its component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentBlob {
    /// Hex of the digest of the manifest that names it.
    pub manifest: String,
    /// Hex of its own digest.
    pub layer: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Where an image's copy stands in the cluster's own registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlace {
    /// The repository.
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
}

/// The place of the copy of an image, from its name as pods have it.
///
/// # Errors
///
/// The name is none, or none that a repository can have.
pub fn copy_place(image: &str) -> Result<CopyPlace, String> {
    let reference = Reference::parse(image).map_err(|why| why.to_string())?;
    let repository = if reference.is_own() {
        Some(reference.repository.clone())
    } else {
        reference.copy_repository()
    };
    let repository = repository.ok_or_else(|| {
        format!("{image:?}: the cluster's registry can have no repository of this name")
    })?;
    Ok(CopyPlace { repository, reference: reference.reference })
}

impl ImageReader {
    /// With the mirrors and credentials of a `registries.yaml`, and the credentials of Docker's
    /// `config.json` as far as they stand in it; either may be missing. `client` leads to the cluster's
    /// own registry.
    #[must_use]
    pub fn open(
        client: Option<kube::Client>,
        registries_file: Option<PathBuf>,
        docker_config: Option<&Path>,
        proxies: &Proxies,
    ) -> Self {
        let registries = Registries::open(registries_file, None, proxies);
        let small = |path: &&Path| {
            std::fs::metadata(path).is_ok_and(|meta| meta.len() <= DOCKER_CONFIG_BYTES_MAX)
        };
        let config = docker_config.filter(small).and_then(|path| std::fs::read(path).ok());
        let secret = config.map(|config| {
            let data = [(".dockerconfigjson".to_owned(), ByteString(config))];
            Secret { data: Some(data.into()), ..Secret::default() }
        });
        Self { client, registries, keyring: Keyring::of(secret.as_slice()) }
    }

    /// Where an image is.
    ///
    /// # Errors
    ///
    /// The name is none, or it is of the cluster's own registry and there is no way to it.
    pub fn image(&self, name: &str) -> Result<RemoteImage, ReadError> {
        let reference = Reference::parse(name).map_err(|why| ReadError::Failed(why.to_string()))?;
        let sources = if reference.is_own() {
            let Some(client) = &self.client else {
                return Err(ReadError::Failed(format!(
                    "{name:?} is in the cluster's own registry ({OWN_REGISTRY}), and there is no kubeconfig to reach it; an image from elsewhere begins with its registry's name, such as docker.io/"
                )));
            };
            sources::all(client, &self.registries, &reference, &self.keyring)
        } else {
            sources::outside(&self.registries, &reference, &self.keyring)
        };
        Ok(RemoteImage { reference, sources, chosen: AtomicUsize::new(0) })
    }
}

impl RemoteImage {
    /// `HOST/REPOSITORY`.
    #[must_use]
    pub fn name(&self) -> String {
        self.reference.name()
    }

    /// The name with tag or digest.
    #[must_use]
    pub fn full_name(&self) -> String {
        self.reference.to_string()
    }

    /// Tag or `sha256:` digest.
    #[must_use]
    pub fn reference(&self) -> &str {
        &self.reference.reference
    }

    /// Hex of the digest of the manifest for WebAssembly in an index; `None`: `content` is no index.
    ///
    /// # Errors
    ///
    /// [`ReadError::Failed`]: nothing in it runs on a node.
    pub fn wasm_entry(content: &[u8]) -> Result<Option<String>, ReadError> {
        // An image of files, for volumes, is taken as it is.
        let found =
            manifest::read(content).or_else(|why| manifest::read_volume(content).map_err(|_| why));
        match found {
            Ok(Found::Layer(..) | Found::Layers(_)) => Ok(None),
            Ok(Found::Manifest(blob)) => Ok(Some(blob.hex)),
            Err(why) => Err(ReadError::Failed(why.to_string())),
        }
    }

    /// A manifest by tag or digest, with the hex of its digest.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn manifest(&self, reference: &str) -> Result<(String, Bytes), ReadError> {
        let mut faults = Vec::new();
        for at in self.order() {
            let Some(source) = self.sources.get(at) else { continue };
            match manifest_from(source, reference).await {
                Ok(found) => {
                    self.chosen.store(at, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(fault) => faults.push((source.host().to_owned(), fault)),
            }
        }
        Err(match fetch::sum(&self.reference, faults) {
            Fault::Missing(why) => ReadError::Missing(why),
            fault => ReadError::Failed(fault.to_string()),
        })
    }

    /// The component of the image, as the registry has it now.
    ///
    /// # Errors
    ///
    /// See [`ReadError`]; an image without a component is [`ReadError::Failed`].
    pub async fn component(&self) -> Result<ComponentBlob, ReadError> {
        let mut reference = self.reference().to_owned();
        for _ in 0..=fetch::INDEX_DEPTH_MAX {
            let (manifest, content) = self.manifest(&reference).await?;
            match manifest::read(&content) {
                Ok(Found::Layer(blob, _)) => {
                    let unsized_ = || ReadError::Failed("its manifest tells no size".to_owned());
                    let bytes = blob.size.ok_or_else(unsized_)?;
                    return Ok(ComponentBlob { manifest, layer: blob.hex, bytes });
                }
                Ok(Found::Manifest(blob)) => reference = format!("sha256:{}", blob.hex),
                Ok(Found::Layers(_)) => break,
                Err(why) => return Err(ReadError::Failed(why.to_string())),
            }
        }
        Err(ReadError::Failed("the image has no component".to_owned()))
    }

    /// The indexes of what refers to a manifest: the registry's own, and that under the tag which
    /// stands for it; a registry may have both. Empty: nothing, or nobody can tell.
    pub async fn referrers(&self, hex: &str) -> Vec<Bytes> {
        for at in self.order() {
            let Some(source) = self.sources.get(at) else { continue };
            let own = source.referrers(hex).await.ok();
            let tagged = manifest_from(source, &format!("sha256-{hex}")).await.ok();
            let found: Vec<_> = own.into_iter().chain(tagged.map(|(_, content)| content)).collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// Writes a blob of `size` bytes to `file`, from where that stands. A transfer that breaks off goes
    /// on where it ended.
    ///
    /// # Errors
    ///
    /// See [`ReadError`]; what was written then is of no use.
    pub async fn copy_blob(
        &self,
        digest: &str,
        size: u64,
        file: &mut File,
    ) -> Result<(), ReadError> {
        let hex = hex_of(digest)
            .ok_or_else(|| ReadError::Failed(format!("{digest:?} is no sha256 digest")))?;
        let start = file.stream_position().await?;
        let mut faults = Vec::new();
        for at in self.order() {
            let Some(source) = self.sources.get(at) else { continue };
            file.seek(std::io::SeekFrom::Start(start)).await?;
            match copy_from(source, hex, size, file, start).await {
                Ok(()) => return Ok(()),
                Err(Fault::Disk(cause)) => return Err(cause.into()),
                Err(fault) => faults.push((source.host().to_owned(), fault)),
            }
        }
        Err(ReadError::Failed(fetch::sum(&self.reference, faults).to_string()))
    }

    /// All sources, the one that had something last first.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let (chosen, count) = (self.chosen.load(Ordering::Relaxed), self.sources.len());
        std::iter::once(chosen).chain((0..count).filter(move |at| *at != chosen))
    }
}

async fn manifest_from(source: &Source, reference: &str) -> Result<(String, Bytes), Fault> {
    let mut tries = 0;
    let content = loop {
        tries += 1;
        match source.manifest(reference).await {
            Err(Fault::Unavailable { retry_after, .. }) if tries < TRIES_MAX => {
                tokio::time::sleep(retry_after.max(fetch::RETRY_MIN)).await;
            }
            content => break content?,
        }
    };
    let hex = hex::encode(Sha256::digest(&content));
    if hex_of(reference).is_some_and(|wanted| wanted != hex) {
        return Err(Fault::Refused("it sent another manifest than the digest names".to_owned()));
    }
    Ok((hex, content))
}

async fn copy_from(
    source: &Source,
    hex: &str,
    size: u64,
    file: &mut File,
    start: u64,
) -> Result<(), Fault> {
    let (mut hash, mut written, mut tries) = (Sha256::new(), 0_u64, 0);
    while written < size || size == 0 {
        let before = written;
        match continue_blob(source, hex, size, file, (&mut hash, &mut written)).await {
            Ok(()) => break,
            Err(Fault::Unavailable { message, retry_after }) => {
                tries = if written > before { 0 } else { tries + 1 };
                if tries >= TRIES_MAX {
                    return Err(Fault::Unavailable { message, retry_after });
                }
                tracing::debug!(message, written, "blob not complete");
                tokio::time::sleep(retry_after.max(fetch::RETRY_MIN)).await;
            }
            Err(fault) => return Err(fault),
        }
        file.seek(std::io::SeekFrom::Start(start + written)).await?;
    }
    if hex::encode(hash.finalize()) != hex {
        return Err(Fault::Refused("it sent other bytes than the digest names".to_owned()));
    }
    Ok(())
}

/// One transfer, from what was written on.
async fn continue_blob(
    source: &Source,
    hex: &str,
    size: u64,
    file: &mut File,
    (hash, written): (&mut Sha256, &mut u64),
) -> Result<(), Fault> {
    let (body, from) = source.blob(hex, *written).await?;
    // A registry without ranges sends all of it again.
    let mut skip = written.saturating_sub(from);
    let mut chunks = body.into_data_stream();
    loop {
        let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.try_next())
            .await
            .map_err(|_| Fault::unavailable("the registry stopped sending"))?
            .map_err(|cause| Fault::unavailable(format!("the transfer broke off: {cause}")))?;
        let Some(mut chunk) = chunk else { break };
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= known as u64;
        let chunk = chunk.split_off(known);
        if *written + chunk.len() as u64 > size {
            return Err(Fault::Refused(format!("it sent more than the {size} bytes announced")));
        }
        file.write_all(&chunk).await?;
        hash.update(&chunk);
        *written += chunk.len() as u64;
    }
    file.flush().await?;
    if *written < size {
        let why = format!("the transfer ended at byte {written} of {size}");
        return Err(Fault::unavailable(why));
    }
    Ok(())
}
