//! Images as volumes: all files of an image in a folder, by the digest of its manifest.
//!
//! Layers come the way of components: same endpoints, credentials, back-off, resumed transfers. The
//! folder is made once for all pods; when it is there, its layers are of no use any more, and go as
//! any image that nobody uses.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::agent::dirs::{make_private, remove_folder};
use crate::agent::image::distribution::{Fault, Source};
use crate::agent::image::known::Content;
use crate::agent::image::manifest::{Form, Layer};
use crate::agent::image::reference::Reference;
use crate::agent::image::tree::{LIMITS, unpack};
use crate::agent::image::{ImageError, Images, ROUNDS_MAX, ReadyVolume, Wanted};

/// Largest layer, in bytes, and the largest sum of an image's layers.
const LAYER_BYTES_MAX: u64 = 8 << 30;
const LAYERS_BYTES_MAX: u64 = LIMITS.bytes;
/// Ending of a folder that is being filled, or removed.
pub(super) const TEMPORARY: &str = "tmp";
/// Things looked at when a folder is measured; the rest counts nothing.
const MEASURED_MAX: usize = 1_000_000;

impl Images {
    pub(super) async fn volume_quietly(
        &self,
        wanted: &Wanted<'_>,
        had: Option<ReadyVolume>,
    ) -> Result<ReadyVolume, ImageError> {
        if let Some(had) = had
            && self.take_tree(wanted.uid(), &had.hex).await
        {
            return Ok(had);
        }
        let settings = self.registries.settings();
        let reference = Reference::parse(settings.stand_in(wanted.image))?;
        for _ in 0..ROUNDS_MAX {
            let resolved = self.resolve(wanted, &reference, Content::Tree).await?;
            if self.take_tree(wanted.uid(), &resolved.layer).await {
                let digest = resolved.manifest.as_ref().unwrap_or(&resolved.layer);
                let id = format!("{}@sha256:{digest}", reference.name());
                return Ok(ReadyVolume { hex: resolved.layer, id });
            }
        }
        Err(ImageError::Vanished)
    }

    /// Notes that the pod uses a volume's files. Whether they are there.
    async fn take_tree(&self, uid: &str, hex: &str) -> bool {
        self.ledger.lock().begin(uid, hex);
        // Whoever has the turn may be deleting them; whoever comes after this finds them in use.
        let _turn = self.locks.lock(hex).await;
        self.dirs.image_tree(hex).exists()
    }

    /// Has the registry say that it has the layers of a folder that is here: one may be named in the
    /// manifest of a registry that has none of it.
    async fn prove_held(
        &self,
        source: &Source,
        layers: &[Layer],
        repository: &str,
    ) -> Result<(), Fault> {
        for Layer { blob, .. } in layers {
            let pulled = (blob.hex.clone(), repository.to_owned());
            if self.swarm.is_ours(&pulled) {
                continue;
            }
            if !source.holds(&blob.hex).await {
                let why = "the registry does not say that it has the image's layers";
                return Err(Fault::unavailable(why));
            }
            self.swarm.keep(&blob.hex, repository);
        }
        Ok(())
    }

    /// Fetches the layers of the manifest `hex` and makes its folder, unless that is there. Gives
    /// the bytes of the layers.
    pub(super) async fn fetch_tree(
        &self,
        source: &Source,
        hex: &str,
        layers: Vec<Layer>,
        repository: &str,
    ) -> Result<u64, Fault> {
        let sizes = layers.iter().map(|layer| layer.blob.size.unwrap_or(0));
        let bytes = sizes.fold(0_u64, u64::saturating_add);
        if bytes > LAYERS_BYTES_MAX {
            return Err(Fault::Refused(format!(
                "the image has {bytes} bytes, more than the {LAYERS_BYTES_MAX} allowed"
            )));
        }
        let turn = self.locks.lock(hex).await;
        if self.dirs.image_tree(hex).exists() {
            self.prove_held(source, &layers, repository).await?;
            return Ok(bytes);
        }
        let mut fetched = BTreeSet::new();
        for layer in &layers {
            if fetched.insert(&layer.blob.hex) {
                self.fetch(source, &layer.blob, repository, LAYER_BYTES_MAX).await?;
            }
        }
        let files = layers.into_iter().map(|layer| (self.blob(&layer.blob.hex), layer.form));
        let (files, tree) = (files.collect::<Vec<_>>(), self.dirs.image_tree(hex));
        // When nobody waits for it any more, unpacking ends; until then it keeps the turn.
        let cancel = CancellationToken::new();
        let _ends_with_us = cancel.clone().drop_guard();
        let work = move || {
            let done = make_tree(&files, &tree, &cancel);
            drop(turn);
            done
        };
        let done = tokio::task::spawn_blocking(work).await;
        match done.unwrap_or_else(|cause| Err(io::Error::other(cause))) {
            Ok(()) => Ok(bytes),
            Err(cause) => Err(match cause.kind() {
                io::ErrorKind::InvalidData => Fault::Refused(cause.to_string()),
                // A layer was deleted before it was unpacked: the next pull fetches it again.
                io::ErrorKind::NotFound => Fault::unavailable("a layer of the image is gone"),
                _ => Fault::Disk(cause),
            }),
        }
    }
}

/// Makes a volume's folder whole or not at all, also after a power cut.
fn make_tree(
    layers: &[(PathBuf, Form)],
    tree: &Path,
    cancel: &CancellationToken,
) -> io::Result<()> {
    let Some(folder) = tree.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    make_private(folder)?;
    let temporary = tree.with_extension(TEMPORARY);
    remove_folder(&temporary)?;
    let made = unpack(layers, &temporary, LIMITS, cancel).and_then(|bytes| {
        // One call instead of one per file.
        rustix::fs::syncfs(fs::File::open(&temporary)?)?;
        fs::rename(&temporary, tree)?;
        fs::File::open(folder)?.sync_all()?;
        tracing::info!(bytes, folder = %tree.display(), "image unpacked for volumes");
        Ok(())
    });
    if made.is_err() {
        let _ = remove_folder(&temporary);
    }
    made
}

/// Length of all files below a folder, in bytes. Follows no link.
pub(super) fn tree_bytes(root: &Path) -> u64 {
    let (mut folders, mut bytes, mut seen) = (vec![root.to_owned()], 0_u64, 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MEASURED_MAX {
                return bytes;
            }
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => bytes = bytes.saturating_add(meta.len()),
                Err(_) => {}
            }
        }
    }
    bytes
}
