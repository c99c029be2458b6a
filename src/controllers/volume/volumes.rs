//! The volume's side: available, released, deleted.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{DeleteParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tracing::info;

use crate::api::local_volume::{self, FOLDER_FINALIZER, VOLUME_FINALIZER};
use crate::client::is_not_found;
use crate::controllers::Context;
use crate::controllers::object::{is_deleting, patch_as_read, patch_status_as_read};
use crate::controllers::queue::Next;

/// Brings one volume's phase and finalizers up to date.
pub(super) async fn reconcile(context: &Context, name: &str) -> Result<Next, kube::Error> {
    let Some(volume) = context.informers.volumes.store.named("", name) else {
        return Ok(Next::Wait);
    };
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let is_taken = is_taken(context, &volume).await?;
    if is_deleting(&volume.metadata) {
        return let_go(context, &api, &volume, is_taken).await;
    }
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    let has_uid = spec.claim_ref.as_ref().is_some_and(|claim| claim.uid.is_some());
    if is_taken {
        return Ok(Next::Wait);
    }
    if !has_uid {
        if phase != "Available" {
            patch_status_as_read(&api, &volume, json!({"phase": "Available"})).await?;
        }
        return Ok(Next::Wait);
    }
    let (wanted, message) = released(&volume);
    if phase != wanted {
        patch_status_as_read(&api, &volume, json!({"phase": wanted, "message": message})).await?;
        // The cache shows it, and this runs again.
        return Ok(Next::Wait);
    }
    if spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete")
        && local_volume::is_provisioned(&volume)
    {
        info!(volume = name, "the claim is gone, deleting its volume");
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: volume.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(name, &params).await {
            Err(err) if !is_not_found(&err) => return Err(err),
            _ => {}
        }
    }
    Ok(Next::Wait)
}

/// The phase of a volume whose claim is gone, and why. `Failed`: its policy asks for what nobody does here.
fn released(volume: &PersistentVolume) -> (&'static str, Option<&'static str>) {
    let spec = volume.spec.as_ref();
    // Who provisioned it is who deletes it.
    let has_provisioner = local_volume::is_provisioned(volume)
        || volume.annotations().contains_key("pv.kubernetes.io/provisioned-by");
    match spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) {
        Some("Recycle") => {
            ("Failed", Some("nothing recycles volumes here: use the policy Retain, or Delete"))
        }
        Some("Delete") if !has_provisioner => {
            ("Failed", Some("nobody who could delete it has provisioned this volume"))
        }
        _ => ("Released", None),
    }
}

/// Whether the claim that has the volume exists. A "no" of the cache is checked with the API: what
/// follows from it is that data is deleted.
async fn is_taken(context: &Context, volume: &PersistentVolume) -> Result<bool, kube::Error> {
    let Some(taken) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone()) else {
        return Ok(false);
    };
    let Some(uid) = taken.uid else { return Ok(false) };
    let (namespace, name) = (taken.namespace.unwrap_or_default(), taken.name.unwrap_or_default());
    let is_it = |claim: &PersistentVolumeClaim| claim.metadata.uid.as_deref() == Some(&uid);
    let known = context.informers.claims.store.named(&namespace, &name);
    if known.is_some_and(|claim| is_it(&claim)) {
        return Ok(true);
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace);
    Ok(api.get_opt(&name).await?.is_some_and(|claim| is_it(&claim)))
}

/// Takes the finalizers off that hold a deleted volume for nothing.
async fn let_go(
    context: &Context,
    api: &Api<PersistentVolume>,
    volume: &PersistentVolume,
    is_taken: bool,
) -> Result<Next, kube::Error> {
    let is_node_gone = local_volume::node_of(volume)
        .is_some_and(|node| context.informers.nodes.store.named("", node).is_none());
    let kept: Vec<&String> = volume
        .finalizers()
        .iter()
        .filter(|finalizer| match finalizer.as_str() {
            VOLUME_FINALIZER => is_taken,
            // The folder went with its node.
            FOLDER_FINALIZER => is_taken || !is_node_gone,
            _ => true,
        })
        .collect();
    if kept.len() < volume.finalizers().len() {
        patch_as_read(api, volume, json!({"metadata": {"finalizers": kept}})).await?;
    }
    Ok(Next::Wait)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_volume_nobody_can_reclaim_has_failed_and_says_why() {
        let phase = |policy: &str, annotations: Value| {
            let volume: PersistentVolume = serde_json::from_value(json!({
                "metadata": {"name": "v", "annotations": annotations},
                "spec": {"persistentVolumeReclaimPolicy": policy},
            }))
            .unwrap();
            let (phase, message) = released(&volume);
            assert_eq!(message.is_some(), phase == "Failed");
            phase
        };
        let provisioned = json!({"pv.kubernetes.io/provisioned-by": "example.com/disks"});
        assert_eq!(phase("Retain", json!({})), "Released");
        assert_eq!(phase("Delete", json!({})), "Failed");
        assert_eq!(phase("Delete", provisioned), "Released");
        assert_eq!(phase("Recycle", json!({})), "Failed");
    }
}
