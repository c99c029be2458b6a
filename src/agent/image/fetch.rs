//! Pulling: which endpoint, which layer, and its bytes, resumed where they ended.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::agent::dirs::make_private;
use crate::agent::image::credentials::Keyring;
use crate::agent::image::distribution::{Fault, Source};
use crate::agent::image::manifest::{self, Blob, Found};
use crate::agent::image::reference::Reference;
use crate::agent::image::{Images, Resolved, sources};

/// Largest component, in bytes.
pub(super) const COMPONENT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long one piece of a blob may take to arrive.
pub(super) const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Tries in a row that bring not one byte of a layer.
const TRIES_MAX: u32 = 5;
/// Tries for a manifest: there may be another endpoint, and the pull as a whole is tried again.
const MANIFEST_TRIES_MAX: u32 = 2;
/// First and longest pause between them.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Indexes within indexes.
const INDEX_DEPTH_MAX: usize = 2;
/// Bytes read at a time of a blob that was begun before.
const READ_BYTES: usize = 64 * 1024;
/// Ending of a blob that is not complete.
pub(super) const PART: &str = "part";

impl Images {
    /// Resolves the reference and fetches its component, unless that is here.
    pub(super) async fn pull(
        &self,
        reference: &Reference,
        keyring: &Keyring,
    ) -> Result<Resolved, Fault> {
        let mut faults = Vec::new();
        for source in self.sources(reference, keyring) {
            match self.pull_from(&source, reference).await {
                Ok(resolved) => return Ok(resolved),
                // No other endpoint mends the disk.
                Err(fault @ Fault::Disk(_)) => return Err(fault),
                // Most images have none, and the registry itself has the last word.
                Err(fault) if source.is_copy() => {
                    tracing::debug!(%fault, "no copy of the image in the cluster's registry");
                }
                Err(fault) => {
                    tracing::debug!(%fault, registry = source.host(), "endpoint without the image");
                    faults.push((source.host().to_owned(), fault));
                }
            }
        }
        Err(sum(reference, faults))
    }

    /// The places to ask for an image, in order.
    pub(super) fn sources(&self, reference: &Reference, keyring: &Keyring) -> Vec<Source> {
        sources::all(&self.client, &self.registries, reference, keyring)
    }

    async fn pull_from(&self, source: &Source, reference: &Reference) -> Result<Resolved, Fault> {
        let (digest, mut content) = self.manifest(source, &reference.reference).await?;
        for _ in 0..=INDEX_DEPTH_MAX {
            let found = manifest::read(&content).map_err(|why| Fault::Refused(why.to_string()))?;
            match found {
                Found::Layer(blob) => {
                    self.fetch(source, &blob).await?;
                    return Ok(Resolved { layer: blob.hex, manifest: Some(digest) });
                }
                Found::Manifest(blob) => {
                    (_, content) = self.manifest(source, &format!("sha256:{}", blob.hex)).await?;
                }
            }
        }
        Err(Fault::Refused("the image is an index of indexes of indexes".to_owned()))
    }

    /// A manifest with the hex of its digest, which is checked if the reference is one.
    async fn manifest(
        &self,
        source: &Source,
        reference: &str,
    ) -> Result<(String, bytes::Bytes), Fault> {
        let mut tries = 0;
        let tries_max = if source.is_copy() { 1 } else { MANIFEST_TRIES_MAX };
        let content = loop {
            match source.manifest(reference).await {
                Ok(content) => break content,
                Err(fault) => self.pause(fault, &mut tries, tries_max).await?,
            }
        };
        let hex = hex::encode(Sha256::digest(&content));
        if let Some(wanted) = reference.strip_prefix("sha256:")
            && hex != wanted
        {
            let why = "it sent another manifest than the digest names";
            return Err(Fault::Refused(why.to_owned()));
        }
        Ok((hex, content))
    }

    /// Brings one blob into its place, unless it is there. Whoever wants the same blob meanwhile
    /// waits here and finds it.
    async fn fetch(&self, source: &Source, blob: &Blob) -> Result<(), Fault> {
        if let Some(size) = blob.size
            && size > COMPONENT_BYTES_MAX
        {
            return Err(Fault::Refused(format!(
                "the component has {size} bytes, more than the {COMPONENT_BYTES_MAX} allowed"
            )));
        }
        let _turn = self.locks.lock(&blob.hex).await;
        if self.blob(&blob.hex).exists() {
            return Ok(());
        }
        let permit = self.downloads.acquire().await;
        let _permit = permit.map_err(|_| Fault::unavailable("the agent is stopping"))?;
        let mut part = Part::open(self.blob(&blob.hex)).await?;
        let mut tries = 0;
        loop {
            let before = part.size;
            let outcome = match stream(source, blob, &mut part).await {
                Ok(()) => part.finish(&blob.hex).await,
                Err(fault) => Err(fault),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(fault) => {
                    tracing::debug!(
                        %fault, registry = source.host(), image.digest = blob.hex, received = part.size,
                        "blob not complete"
                    );
                    if part.size > before {
                        tries = 0;
                    }
                    self.pause(fault, &mut tries, TRIES_MAX).await?;
                }
            }
        }
    }

    /// Waits before the next try; gives the fault back when another try cannot help.
    async fn pause(&self, fault: Fault, tries: &mut u32, tries_max: u32) -> Result<(), Fault> {
        *tries += 1;
        match fault {
            Fault::Unavailable { retry_after, .. } if *tries < tries_max => {
                let wait = RETRY_MIN.saturating_mul(1 << (*tries).min(16)).min(RETRY_MAX);
                let spread = u64::try_from(wait.as_millis() / 2).unwrap_or(0);
                let wait = wait / 2 + Duration::from_millis(self.rng.below(spread));
                tokio::time::sleep(wait.max(retry_after)).await;
                Ok(())
            }
            fault => Err(fault),
        }
    }
}

/// What all endpoints together said.
pub(super) fn sum(reference: &Reference, faults: Vec<(String, Fault)>) -> Fault {
    let texts: Vec<_> = faults.iter().map(|(host, fault)| format!("{host}: {fault}")).collect();
    let message = format!("failed to pull and unpack image \"{reference}\": {}", texts.join("; "));
    // If one of them may do better later, so may the pull.
    let mut kind = Fault::Refused(message.clone());
    for (_, fault) in faults {
        kind = match fault {
            Fault::Unavailable { retry_after, .. } => {
                return Fault::Unavailable { message, retry_after };
            }
            Fault::Denied(_) => Fault::Denied(message.clone()),
            Fault::Missing(_) => Fault::Missing(message.clone()),
            Fault::Refused(_) | Fault::Disk(_) => kind,
        };
    }
    kind
}

/// Appends what is missing of a blob.
async fn stream(source: &Source, blob: &Blob, part: &mut Part) -> Result<(), Fault> {
    if blob.size.is_some_and(|size| part.size == size) {
        return Ok(());
    }
    let (body, start) = source.blob(&blob.hex, part.size).await?;
    if start != part.size {
        part.restart().await?;
    }
    let limit = blob.size.unwrap_or(COMPONENT_BYTES_MAX);
    let mut chunks = body.into_data_stream();
    loop {
        let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.try_next())
            .await
            .map_err(|_| Fault::unavailable("the registry stopped sending"))?
            .map_err(|cause| Fault::unavailable(format!("the transfer broke off: {cause}")))?;
        let Some(chunk) = chunk else { break };
        if part.size + chunk.len() as u64 > limit {
            part.restart().await?;
            return Err(Fault::Refused(format!("it sent more than the {limit} bytes announced")));
        }
        part.append(&chunk).await?;
    }
    match blob.size {
        Some(size) if part.size < size => {
            Err(Fault::unavailable(format!("the transfer ended at byte {} of {size}", part.size)))
        }
        _ => Ok(()),
    }
}

/// A blob that is being received: its name is fixed, so that the next try goes on with it.
pub(super) struct Part {
    place: PathBuf,
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
    /// It holds bytes of an earlier life, which a power cut may have torn.
    is_resumed: bool,
}

impl Part {
    /// Opens what is there of the blob at `place`, and hashes it.
    pub(super) async fn open(place: PathBuf) -> Result<Self, Fault> {
        if let Some(folder) = place.parent() {
            make_private(folder)?;
        }
        let path = place.with_extension(PART);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .await?;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = file.read(&mut buffer).await?;
            let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { break };
            hash.update(read);
            size += count as u64;
        }
        Ok(Self { place, path, file, hash, size, is_resumed: size > 0 })
    }

    /// Bytes that are here.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Gives up: nothing stays of it.
    pub(super) async fn remove(self) {
        let _ = fs::remove_file(&self.path).await;
    }

    /// Adds bytes at the end.
    pub(super) async fn append(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        self.file.write_all(chunk).await?;
        self.hash.update(chunk);
        self.size += chunk.len() as u64;
        Ok(())
    }

    /// Forgets what is here.
    pub(super) async fn restart(&mut self) -> Result<(), Fault> {
        self.file = File::create(&self.path).await?;
        (self.hash, self.size, self.is_resumed) = (Sha256::new(), 0, false);
        Ok(())
    }

    /// Puts the blob into its place if it is what its digest says.
    pub(super) async fn finish(&mut self, hex: &str) -> Result<(), Fault> {
        let is_good = hex::encode(self.hash.clone().finalize()) == hex;
        if !is_good {
            let was_resumed = self.is_resumed;
            self.restart().await?;
            let why = "it sent other bytes than the digest names".to_owned();
            return Err(if was_resumed { Fault::unavailable(why) } else { Fault::Refused(why) });
        }
        self.file.flush().await?;
        self.file.sync_all().await?;
        fs::rename(&self.path, &self.place).await?;
        if let Some(folder) = self.place.parent() {
            File::open(folder).await?.sync_all().await?;
        }
        Ok(())
    }
}
