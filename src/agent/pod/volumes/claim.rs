//! Persistent volume claims: where on this node the volume is that a claim is bound to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::agent::dirs::{Dirs, PodDir, make_private, read_json};
use crate::agent::pod::api::{PodApi, PodApiError};
use crate::agent::pod::env::ConfigError;
use crate::agent::pod::objects::NodeSources;
use crate::agent::pod::plan;
use crate::agent::pod::volumes::volumes_of;
use crate::api::local_volume;

/// How long a pod's start waits for its claim to be bound before it is tried again later.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at a claim that is being bound.
const BIND_LOOK: Duration = Duration::from_millis(50);

/// A bound claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The claim's uid: another claim of the same name is another volume.
    pub(crate) uid: String,
    pub(crate) place: Place,
    pub(crate) is_read_only: bool,
    /// What the volume holds at most; notes of the first version have none.
    #[serde(default)]
    pub(crate) bytes_max: Option<u64>,
}

/// Where the volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// A folder of the agent's own.
    Own(PathBuf),
    /// A path of the host that the administrator made a volume of; the node's configuration must
    /// allow it.
    Host(String),
}

/// The claims that `pod` names, bound and present.
pub(super) fn wanted(pod: &Pod) -> BTreeSet<String> {
    volumes_of(pod)
        .filter_map(|v| v.persistent_volume_claim.as_ref())
        .map(|claim| claim.claim_name.clone())
        .collect()
}

/// Finds the volumes of `pod`'s claims, and makes the folders of those that are new.
pub(crate) async fn collect(
    api: &dyn PodApi,
    node: &NodeSources,
    pod: &Pod,
    dir: &PodDir,
) -> Result<BTreeMap<String, Claim>, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut claims = BTreeMap::new();
    for name in wanted(pod) {
        let file = dir.object_file("claim", &name);
        // A bound claim stays bound, and a pod's claims do not change while it lives.
        let claim = match read_json::<Claim>(&file) {
            Some(kept) => kept,
            None => {
                let claim = bound(api, node, namespace, &name).await?;
                dir.keep_aside("claim", &name, &claim).await?;
                claim
            }
        };
        if let Place::Own(folder) = &claim.place {
            make_private(folder)?;
        }
        claims.insert(name, claim);
    }
    Ok(claims)
}

async fn bound(
    api: &dyn PodApi,
    node: &NodeSources,
    namespace: &str,
    name: &str,
) -> Result<Claim, ConfigError> {
    let unread = |err: PodApiError| ConfigError::Unread {
        kind: "persistentvolumeclaim",
        name: name.to_owned(),
        reason: err.to_string(),
    };
    let until = Instant::now() + BIND_PATIENCE;
    loop {
        let found = api.claim(namespace, name).await.map_err(unread)?;
        let claim = found.ok_or_else(|| ConfigError::NoObject {
            kind: "persistentvolumeclaim",
            name: name.to_owned(),
        })?;
        if let Some(volume) = bound_volume(&claim) {
            let found = api.volume(volume).await.map_err(unread)?;
            let volume = found.ok_or_else(|| ConfigError::NoObject {
                kind: "persistentvolume",
                name: volume.to_owned(),
            })?;
            return place(&claim, &volume, &node.node_name, &node.dirs);
        }
        if Instant::now() >= until {
            return Err(ConfigError::Unavailable(format!(
                "persistentvolumeclaim \"{name}\" is not bound to a volume yet"
            )));
        }
        tokio::time::sleep(BIND_LOOK).await;
    }
}

/// Name of the volume that the claim is bound to.
fn bound_volume(claim: &PersistentVolumeClaim) -> Option<&str> {
    let phase = claim.status.as_ref()?.phase.as_deref()?;
    let volume = claim.spec.as_ref()?.volume_name.as_deref()?;
    (phase == "Bound").then_some(volume)
}

fn place(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    node_name: &str,
    dirs: &Dirs,
) -> Result<Claim, ConfigError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    let refused =
        |why: &str| ConfigError::Unsupported(format!("persistentvolume \"{name}\": {why}"));
    let is_of_claim = spec.claim_ref.as_ref().is_some_and(|r| r.uid == claim.metadata.uid);
    if !is_of_claim {
        return Err(ConfigError::Unavailable(format!(
            "persistentvolume \"{name}\" is bound to another claim"
        )));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(refused("volumeMode Block is not supported, a guest sees folders"));
    }
    if local_volume::node_of(volume).is_some_and(|of| of != node_name) {
        return Err(refused("it is on another node"));
    }
    let place = if local_volume::is_provisioned(volume) {
        Place::Own(dirs.persistent_volume(name))
    } else if let Some(local) = &spec.local {
        Place::Host(local.path.clone())
    } else if let Some(host) = &spec.host_path {
        Place::Host(host.path.clone())
    } else {
        return Err(refused(
            "it is of a type that this node does not have; local and hostPath are there",
        ));
    };
    let capacity = spec.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
    let bytes_max = capacity.and_then(|size| plan::bytes(&size.0));
    let modes = spec.access_modes.unwrap_or_default();
    let is_read_only = !modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany");
    let uid = claim.metadata.uid.clone().unwrap_or_default();
    Ok(Claim { uid, place, is_read_only, bytes_max })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn placed(pv: Value) -> Result<Claim, String> {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::create(root.path().to_owned()).unwrap();
        let claim = serde_json::from_value(json!({"metadata": {"name": "c", "uid": "1"}})).unwrap();
        let volume = serde_json::from_value(pv).unwrap();
        place(&claim, &volume, "node-1", &dirs).map_err(|err| err.to_string())
    }

    fn on(node: &str) -> Value {
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}})
    }

    #[test]
    fn a_volume_is_used_on_its_own_node_by_its_own_claim_only() {
        let provisioned = json!({"pv.kubernetes.io/provisioned-by": "edgeorc.io/local-path"});
        let pv = |node: &str, uid: &str| {
            json!({
                "metadata": {"name": "pvc-1", "annotations": provisioned},
                "spec": {"local": {"path": "/etc"}, "claimRef": {"uid": uid}, "nodeAffinity": on(node)},
            })
        };
        let claim = placed(pv("node-1", "1")).unwrap();
        // Whatever path the object says: the agent's own folder has the data.
        assert!(matches!(claim.place, Place::Own(path) if path.ends_with("volumes/pvc-1")));
        assert!(placed(pv("node-2", "1")).unwrap_err().contains("on another node"));
        assert!(placed(pv("node-1", "2")).unwrap_err().contains("bound to another claim"));
    }

    #[test]
    fn a_volume_that_an_administrator_made_needs_the_nodes_permission() {
        let claim = placed(json!({"metadata": {"name": "v"}, "spec": {
            "local": {"path": "/srv/a"}, "claimRef": {"uid": "1"},
            "accessModes": ["ReadOnlyMany"], "nodeAffinity": on("node-1")}}))
        .unwrap();
        assert_eq!(claim.place, Place::Host("/srv/a".into()));
        assert!(claim.is_read_only);
        let nfs = placed(json!({"metadata": {"name": "v"}, "spec": {
            "nfs": {"server": "s", "path": "/"}, "claimRef": {"uid": "1"}}}));
        assert!(nfs.unwrap_err().contains("local and hostPath are there"));
    }
}
