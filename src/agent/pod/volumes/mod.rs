//! Volumes of a pod as folders of the host, and their mounts.
//!
//! Data in: the pod, the objects it names ([`Sources`]). Data out: folders below the pod's own,
//! and [`Mount`](edgeorc_runtime::Mount)s for its containers. `docs/volumes.md` says what is
//! supported.
//!
//! # Invariants
//!
//! - No path that a pod or a guest chose leads out of its volume: every step is taken from an open
//!   folder, no link is followed, and a mount holds its folder open.
//! - Volumes that the agent fills are read-only for guests, and change whole.

mod atomic;
pub(crate) mod claim;
mod content;
mod etc;
mod host_path;
pub(crate) mod image;
pub(crate) mod live;
mod mount;
pub(crate) mod reclaim;
pub(crate) mod token;
#[cfg(test)]
mod volumes_test;

use k8s_openapi::api::core::v1::{Pod, Volume};
use parking_lot::Mutex;

pub(crate) use content::TokenKey;
pub(crate) use etc::lookups;
pub(crate) use mount::{mounts, shown_mounts};

use crate::agent::dirs::{PodDir, remove_folder};
use crate::agent::pod::env::{ConfigError, Sources};

/// Largest volume, in bytes, that is kept in memory for the tokens in it.
const MEMORY_BYTES_MAX: usize = 64 * 1024;

/// One write of volumes at a time in this process: a pod's start and a live update may meet.
static WRITING: Mutex<()> = Mutex::new(());

/// Makes the folders of all volumes of `pod` and writes what they hold. Blocks on the disk.
pub(crate) fn write_volumes(pod: &Pod, dir: &PodDir, sources: &Sources) -> Result<(), ConfigError> {
    let _writing = WRITING.lock();
    for volume in volumes_of(pod) {
        if let Some(payload) = content::payload(pod, volume, sources)? {
            if !has_token(volume) || !write_in_memory(dir, &volume.name, &payload) {
                let folder = dir.volume(&volume.name);
                dir.make(&folder)?;
                atomic::write(&folder, &payload)?;
            }
            continue;
        }
        let folder = dir.volume(&volume.name);
        if is_empty_dir(volume) {
            dir.make(&folder)?;
        } else if volume.host_path.is_none()
            && volume.persistent_volume_claim.is_none()
            && volume.image.is_none()
        {
            return Err(ConfigError::Unsupported(format!(
                "volume {} is of a type that this node does not have; emptyDir, configMap, secret, projected, downwardAPI, hostPath, persistentVolumeClaim and image are there",
                volume.name
            )));
        }
    }
    Ok(etc::write(pod, dir, sources)?)
}

/// Tokens are renewed every hour or so: where there is a file system in memory, they wear no disk out.
fn write_in_memory(dir: &PodDir, volume: &str, payload: &atomic::Payload) -> bool {
    let Some(folder) = dir.volume_in_memory(volume) else { return false };
    if payload.values().map(|file| file.content.len()).sum::<usize>() > MEMORY_BYTES_MAX {
        return false;
    }
    match dir.make(&folder).and_then(|()| atomic::write(&folder, payload)) {
        Ok(_) => true,
        Err(err) => {
            tracing::debug!(%err, volume, "no room in memory for a volume, its disk serves");
            let _ = remove_folder(&folder);
            false
        }
    }
}

fn has_token(volume: &Volume) -> bool {
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    sources.into_iter().any(|source| source.service_account_token.is_some())
}

/// Writes anew what has changed in the volumes that the agent fills, each for itself: one that cannot be
/// made any more stays as it is. Returns the volumes that have changed, and why one has not.
pub(crate) fn update_volumes(
    pod: &Pod,
    dir: &PodDir,
    sources: &Sources,
) -> (Vec<String>, Option<ConfigError>) {
    let _writing = WRITING.lock();
    let (mut changed, mut failed) = (Vec::new(), None);
    for volume in volumes_of(pod).filter(|volume| is_filled(volume)) {
        let folder = dir.volume(&volume.name);
        // Not yet written: the pod's start will.
        if atomic::data(&folder).is_none() {
            continue;
        }
        let update = || match content::payload(pod, volume, sources)? {
            Some(payload) => Ok(atomic::write(&folder, &payload)?),
            None => Ok::<_, ConfigError>(false),
        };
        match update() {
            Ok(true) => changed.push(volume.name.clone()),
            Ok(false) => {}
            Err(cause) => failed = Some(cause),
        }
    }
    (changed, failed)
}

pub(crate) fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

/// An emptyDir, said or by default. `medium: Memory` is one like any other: guests' files are in
/// the host's page cache anyway.
fn is_empty_dir(volume: &Volume) -> bool {
    let named = Volume { name: volume.name.clone(), ..Volume::default() };
    match &volume.empty_dir {
        Some(dir) => matches!(dir.medium.as_deref(), None | Some("" | "Memory")),
        None => *volume == named,
    }
}

/// Whether the agent writes the files of the volume.
fn is_filled(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}
