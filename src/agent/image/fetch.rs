//! Pulling: which endpoint, which layer, and its bytes, resumed where they ended.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::agent::image::credentials::Keyring;
use crate::agent::image::distribution::{Fault, Source};
use crate::agent::image::known::{Content, Resolved};
use crate::agent::image::manifest::{self, Blob, Found};
use crate::agent::image::metrics::Origin;
use crate::agent::image::part::{Pace, Part, Transfer};
use crate::agent::image::reference::Reference;
use crate::agent::image::swarm::Claim;
use crate::agent::image::{ImageConfig, Images, Peering, config, sources};

/// Largest component, in bytes.
pub(super) const COMPONENT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Largest blob that is taken from the cluster's registry at once: the handshakes with three others, who may
/// be asked by a whole fleet, carry about as much.
const SMALL_BYTES_MAX: u64 = 32 * 1024;
/// How long one piece of compiled code may take to arrive.
pub(super) const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// The least that a registry must send: 4 kbit/s. One that is slower gives up its place, and its next
/// try waits behind the others.
const PACE: Pace = Pace { bytes: 16 * 1024, window: Duration::from_secs(30) };
/// Tries in a row that bring less of a layer than that.
const TRIES_MAX: u32 = 5;
/// Tries for a manifest: there may be another endpoint, and the pull as a whole is tried again.
const MANIFEST_TRIES_MAX: u32 = 2;
/// First and longest pause between them.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Indexes within indexes.
pub(super) const INDEX_DEPTH_MAX: usize = 2;

impl Images {
    /// Resolves the reference and fetches its content, unless that is here. Says whether it took one
    /// of the pod's own secrets.
    pub(super) async fn pull(
        &self,
        reference: &Reference,
        keyring: &Keyring,
        content: Content,
    ) -> Result<(Resolved, bool), Fault> {
        let mut faults = Vec::new();
        for source in self.sources(reference, keyring) {
            match self.pull_from(&source, reference, content).await {
                Ok(resolved) => return Ok((resolved, source.was_opened_by_secret())),
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
        // Perhaps it is for want of a mirror or a credential.
        let complaint = self.registries.complaint();
        Err(sum(reference, faults)
            .with(complaint.map(|why| format!("; registries.yaml is broken: {why}"))))
    }

    /// The places to ask for an image, in order.
    pub(super) fn sources(&self, reference: &Reference, keyring: &Keyring) -> Vec<Source> {
        sources::all(&self.client, &self.registries, reference, keyring)
    }

    async fn pull_from(
        &self,
        source: &Source,
        reference: &Reference,
        content: Content,
    ) -> Result<Resolved, Fault> {
        let (digest, mut manifest) = self.manifest(source, &reference.reference).await?;
        let mut own = digest.clone();
        for _ in 0..=INDEX_DEPTH_MAX {
            let found = match content {
                Content::Component => manifest::read(&manifest),
                Content::Tree => manifest::read_volume(&manifest),
            };
            match found.map_err(|why| Fault::Refused(why.to_string()))? {
                Found::Layer(blob, config) => {
                    let config = match config {
                        Some(config) => Some(self.config(source, &config).await?),
                        None => None,
                    };
                    self.fetch(source, &blob, &reference.scope(), COMPONENT_BYTES_MAX).await?;
                    return Ok(Resolved { config, ..Resolved::of(blob.hex, Some(digest), None) });
                }
                Found::Layers(layers) => {
                    let scope = reference.scope();
                    let bytes = Some(self.fetch_tree(source, &own, layers, &scope).await?);
                    return Ok(Resolved::of(own, Some(digest), bytes));
                }
                Found::Manifest(blob) => {
                    let name = format!("sha256:{}", blob.hex);
                    (own, manifest) = self.manifest(source, &name).await?;
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

    /// What an image says of its process.
    async fn config(&self, source: &Source, blob: &Blob) -> Result<ImageConfig, Fault> {
        let mut tries = 0;
        loop {
            match source.config(&blob.hex).await {
                Ok(content) => return config::read(blob, &content),
                Err(fault) => self.pause(fault, &mut tries, MANIFEST_TRIES_MAX).await?,
            }
        }
    }

    /// Brings one blob into its place, unless it is there: from another node, or from the registry.
    /// Whoever wants the same blob meanwhile waits here and finds it.
    ///
    /// Other nodes are asked only for what the registry would give to this pod: `source` carries the
    /// pod's credentials, and says whether it holds the blob. They give what they pulled out of the
    /// same repository, and nothing else.
    pub(super) async fn fetch(
        &self,
        source: &Source,
        blob: &Blob,
        repository: &str,
        bytes_max: u64,
    ) -> Result<(), Fault> {
        if let Some(size) = blob.size
            && size > bytes_max
        {
            return Err(Fault::Refused(format!(
                "the component has {size} bytes, more than the {bytes_max} allowed"
            )));
        }
        let _turn = self.locks.lock(&blob.hex).await;
        // Had it come out of another repository alone, whoever names this one might have no right to
        // it: a registry may name in its manifests what it has not.
        let pulled = (blob.hex.clone(), repository.to_owned());
        if self.blob(&blob.hex).exists() && self.swarm.is_ours(&pulled) {
            return Ok(());
        }
        let mut part = Part::open(self.blob(&blob.hex)).await?;
        part.check_room(blob.size.unwrap_or(0)).await?;
        let claim = self.swarm.claim(&blob.hex, repository);
        let peering = self.peering.as_ref();
        // A server has the cluster's registry in its own process, and what is small is here before others
        // are asked.
        let is_small = blob.size.is_some_and(|size| size <= SMALL_BYTES_MAX);
        let is_at_hand = |peering: &&Peering| source.is_own() && (peering.is_server || is_small);
        let peering = peering.filter(|peering| !is_at_hand(peering));
        let mut is_whole = false;
        if let Some(peering) = peering.filter(|peering| !(peering.others)().is_empty())
            && source.holds(&blob.hex).await
        {
            is_whole = self.fetch_from_peers(peering, blob, &mut part, &claim).await?;
        }
        if !is_whole {
            claim.has(part.size());
            self.fetch_from_registry(source, (blob, bytes_max), &mut part, &claim).await?;
        }
        // Before the claim ends: whoever asks is told one or the other.
        self.swarm.keep(&blob.hex, repository);
        Ok(())
    }

    /// Goes on with the blob until it is whole. A place is held for a try, not between two.
    async fn fetch_from_registry(
        &self,
        source: &Source,
        (blob, bytes_max): (&Blob, u64),
        part: &mut Part,
        claim: &Claim<'_>,
    ) -> Result<(), Fault> {
        let origin = if source.is_own() { Origin::Server } else { Origin::Registry };
        let heard = |bytes, size| {
            self.compiler.metrics().pulled(origin, bytes);
            claim.has(size);
        };
        let mut tries = 0;
        loop {
            let before = part.size();
            let outcome = {
                let _place = self.places.take(source.host()).await?;
                match stream(source, blob, bytes_max, part, &heard).await {
                    Ok(()) => part.finish(&blob.hex).await,
                    Err(fault) => Err(fault),
                }
            };
            let Err(fault) = outcome else { return Ok(()) };
            tracing::debug!(
                %fault, registry = source.host(), image.digest = blob.hex, received = part.size(),
                "blob not complete"
            );
            if part.size() >= before.saturating_add(PACE.bytes) {
                tries = 0;
            }
            self.pause(fault, &mut tries, TRIES_MAX).await?;
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
async fn stream(
    source: &Source,
    blob: &Blob,
    bytes_max: u64,
    part: &mut Part,
    heard: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<(), Fault> {
    if blob.size.is_some_and(|size| part.size() == size) {
        return Ok(());
    }
    let (body, start) = source.blob(&blob.hex, part.size()).await?;
    let limit = blob.size.unwrap_or(bytes_max);
    part.receive(body, Transfer { start, limit, pace: PACE, heard }).await?;
    match blob.size {
        Some(size) if part.size() < size => {
            let at = part.size();
            Err(Fault::unavailable(format!("the transfer ended at byte {at} of {size}")))
        }
        _ => Ok(()),
    }
}
