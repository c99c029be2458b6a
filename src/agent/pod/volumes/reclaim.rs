//! Removes the folders of persistent volumes that were deleted: the data lives on this node, so
//! this node removes it, and the volume's object goes when it has.
//!
//! # Invariants
//!
//! - Only the folder of a volume whose deletion was asked for, and that no claim has, is removed;
//!   never one whose object is merely not to be seen.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::pod::objects::NodeSources;
use crate::api::local_volume::{self, FOLDER_FINALIZER, VOLUME_FINALIZER};
use crate::client::{informer, is_conflict, is_not_found};
use crate::rt::TaskGroup;

/// Pause before a removal that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the task works with.
pub(crate) struct Reclaim {
    pub(crate) client: kube::Client,
    pub(crate) node: Arc<NodeSources>,
}

impl Reclaim {
    /// Follows the cluster's persistent volumes until `cancel`.
    pub(crate) async fn run(self, tasks: TaskGroup, cancel: CancellationToken) {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let volumes = informer(api.clone(), watcher::Config::default(), &tasks);
        if cancel.run_until_cancelled(volumes.ready()).await != Some(true) {
            return;
        }
        let mut changed = volumes.changed();
        loop {
            changed.borrow_and_update();
            let mut is_left = false;
            for volume in volumes.store.state() {
                if is_to_go(&volume, &self.node.node_name) {
                    is_left |= !self.remove(&api, &volume).await;
                }
            }
            let pause = if is_left { RETRY } else { Duration::MAX };
            tokio::select! {
                () = cancel.cancelled() => return,
                more = changed.changed() => if more.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Removes the folder, then the finalizer. Returns whether both are gone.
    async fn remove(&self, api: &Api<PersistentVolume>, volume: &PersistentVolume) -> bool {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        if is_folder_removed(volume) {
            let folder = self.node.dirs.persistent_volume(name);
            match tokio::fs::remove_dir_all(&folder).await {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    warn!(%err, volume = name, "a volume's folder cannot be removed");
                    return false;
                }
                _ => info!(volume = name, "volume's folder removed"),
            }
        }
        let finalizers: Vec<&String> = volume
            .metadata
            .finalizers
            .iter()
            .flatten()
            .filter(|finalizer| *finalizer != FOLDER_FINALIZER)
            .collect();
        // The version makes the patch fail when somebody else has changed the list meanwhile.
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": volume.metadata.resource_version,
        }});
        match api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => true,
            Err(err) if is_not_found(&err) => true,
            // The change that was in the way wakes this task.
            Err(err) if is_conflict(&err) => true,
            Err(err) => {
                debug!(%err, volume = name, "a volume's finalizer was not removed");
                false
            }
        }
    }
}

/// Whether the volume's folder is on `node` and its deletion has been asked for.
fn is_to_go(volume: &PersistentVolume, node: &str) -> bool {
    let has = |wanted: &str| volume.metadata.finalizers.iter().flatten().any(|f| f == wanted);
    volume.metadata.deletion_timestamp.is_some()
        && has(FOLDER_FINALIZER)
        // A claim still has it: somebody deleted the volume before its claim.
        && !has(VOLUME_FINALIZER)
        && local_volume::is_provisioned(volume)
        && local_volume::node_of(volume) == Some(node)
}

/// Whether the data goes with the volume; `Retain` leaves it to people.
fn is_folder_removed(volume: &PersistentVolume) -> bool {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    policy == Some("Delete")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_deleted_volumes_of_this_node_lose_their_folder() {
        let volume = |deleted: Option<&str>, by: &str, node: &str| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": {"name": "pvc-1", "deletionTimestamp": deleted,
                    "finalizers": [FOLDER_FINALIZER],
                    "annotations": {"pv.kubernetes.io/provisioned-by": by}},
                "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
            }))
            .unwrap()
        };
        let at = Some("2026-01-01T00:00:00Z");
        assert!(is_to_go(&volume(at, local_volume::PROVISIONER, "a"), "a"));
        let mut claimed = volume(at, local_volume::PROVISIONER, "a");
        claimed.metadata.finalizers.as_mut().unwrap().push(VOLUME_FINALIZER.to_owned());
        assert!(!is_to_go(&claimed, "a"), "a claim still has it");
        assert!(!is_to_go(&volume(None, local_volume::PROVISIONER, "a"), "a"));
        assert!(!is_to_go(&volume(at, local_volume::PROVISIONER, "b"), "a"));
        assert!(!is_to_go(&volume(at, "somebody-else", "a"), "a"));
    }

    #[test]
    fn data_that_is_to_be_retained_stays() {
        let volume = |policy: &str| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"persistentVolumeReclaimPolicy": policy}}))
                .unwrap()
        };
        assert!(is_folder_removed(&volume("Delete")));
        assert!(!is_folder_removed(&volume("Retain")));
        assert!(!is_folder_removed(&PersistentVolume::default()));
    }
}
