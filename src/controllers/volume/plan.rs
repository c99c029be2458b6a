//! What is done next for one claim: a pure function of what the caches show.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::json;

use crate::api::local_volume::{
    self, FOLDER_FINALIZER, HOST_LABEL, IS_DEFAULT_CLASS, PROVISIONED_BY, PROVISIONER,
};
use crate::controllers::object::{is_deleting, is_terminal, node_name};

/// What a claim needs.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// Nothing until something changes.
    Wait,
    /// A pod must be on a node first.
    WaitForConsumer,
    /// The claim named no class and there is a default one.
    SetClass(String),
    /// Bind it to this volume.
    Bind(Arc<PersistentVolume>),
    /// Make a volume on this node.
    Provision(String),
    /// Its volume is gone.
    Lose,
    /// No pod uses it any more: it may go.
    Release,
}

/// A node where a pod of the claim is.
#[derive(Debug, Clone)]
pub(super) struct Consumer {
    pub(super) node: String,
    pub(super) labels: BTreeMap<String, String>,
}

/// The step for `claim`. `is_used`: a pod that has not ended names it.
pub(super) fn plan(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Arc<StorageClass>],
    consumer: Option<&Consumer>,
    is_used: bool,
) -> Step {
    if is_deleting(&claim.metadata) {
        let is_protected = claim.finalizers().iter().any(|f| f == local_volume::CLAIM_FINALIZER);
        return if is_protected && !is_used { Step::Release } else { Step::Wait };
    }
    let Some(spec) = &claim.spec else { return Step::Wait };
    if let Some(name) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        return match volumes.iter().find(|volume| volume.name_any() == name) {
            Some(volume) if is_of(volume, claim) || local_volume::is_match(volume, claim) => {
                Step::Bind(Arc::clone(volume))
            }
            Some(_) => Step::Wait,
            None if phase(claim) == "Pending" => Step::Wait,
            None => Step::Lose,
        };
    }
    let Some(class) = &spec.storage_class_name else {
        return default_class(classes).map_or(Step::Wait, Step::SetClass);
    };
    // Begun by an earlier run that was cut short.
    if let Some(volume) = volumes.iter().find(|volume| is_of(volume, claim)) {
        return Step::Bind(Arc::clone(volume));
    }
    let class = classes.iter().find(|one| one.name_any() == *class);
    let waits = class
        .is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let is_reachable = |volume: &PersistentVolume| match consumer {
        Some(at) => local_volume::is_usable_on(volume, &at.node, &at.labels),
        None => !waits,
    };
    let found = volumes
        .iter()
        .filter(|volume| local_volume::is_match(volume, claim) && is_reachable(volume))
        // One that is kept for the claim, then the smallest.
        .min_by_key(|v| {
            let is_kept = v.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
            (!is_kept, local_volume::capacity(v), v.name_any())
        });
    if let Some(volume) = found {
        return Step::Bind(Arc::clone(volume));
    }
    let is_ours = class.is_some_and(|class| class.provisioner == PROVISIONER);
    match consumer {
        Some(at) if is_ours => Step::Provision(at.node.clone()),
        None if is_ours || waits => Step::WaitForConsumer,
        _ => Step::Wait,
    }
}

/// Whether the volume is taken by this very claim.
pub(super) fn is_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let taken_by = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    taken_by.is_some_and(|taken| taken.uid.is_some() && taken.uid == claim.metadata.uid)
}

pub(super) fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// The newest class that is marked as the default.
fn default_class(classes: &[Arc<StorageClass>]) -> Option<String> {
    let is_default = |class: &&Arc<StorageClass>| {
        class.annotations().get(IS_DEFAULT_CLASS).is_some_and(|value| value == "true")
    };
    let created = |class: &&Arc<StorageClass>| {
        let at = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (at, std::cmp::Reverse(class.name_any()))
    };
    classes.iter().filter(is_default).max_by_key(created).map(|class| class.name_any())
}

/// The pod that decides where the claim's volume is: the first by name that has a node.
pub(super) fn consumers<'a>(
    pods: &'a [Arc<Pod>],
    claim: &'a str,
) -> impl Iterator<Item = &'a Arc<Pod>> {
    pods.iter().filter(move |pod| {
        !is_terminal(pod) && local_volume::claims_of(pod).any(|name| name == claim)
    })
}

/// The node of the first consumer that has one.
pub(super) fn consumer_node(pods: &[Arc<Pod>], claim: &str) -> Option<String> {
    consumers(pods, claim).find_map(|pod| node_name(pod)).map(str::to_owned)
}

/// The volume that is made for `claim` on `node`, in a folder below `folder`.
pub(super) fn volume_for(
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
    node: &str,
    folder: &str,
) -> PersistentVolume {
    let name = volume_name(claim);
    let spec = claim.spec.clone().unwrap_or_default();
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": HOST_LABEL, "operator": "In", "values": [node]}]}]}});
    let source = json!({"path": format!("{folder}/{name}")});
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            finalizers: Some(vec![FOLDER_FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: spec.resources.and_then(|resources| resources.requests),
            claim_ref: Some(reference(claim)),
            local: serde_json::from_value(source).ok(),
            node_affinity: serde_json::from_value(affinity).ok(),
            persistent_volume_reclaim_policy: class
                .and_then(|class| class.reclaim_policy.clone())
                .or_else(|| Some("Delete".to_owned())),
            storage_class_name: spec.storage_class_name,
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        ..PersistentVolume::default()
    }
}

/// Name of the volume that is made for `claim`.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

/// How a volume names its claim.
pub(super) fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        name: claim.metadata.name.clone(),
        namespace: claim.metadata.namespace.clone(),
        uid: claim.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({"metadata": {"namespace": "n", "name": "data", "uid": "u1",
            "finalizers": [local_volume::CLAIM_FINALIZER]}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": "local-path",
            "resources": {"requests": {"storage": "1Gi"}}}});
        json_patch::merge(&mut claim, &more);
        serde_json::from_value(claim).unwrap()
    }

    fn class(name: &str, provisioner: &str, mode: &str) -> Arc<StorageClass> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name,
                "annotations": {IS_DEFAULT_CLASS: (name == "local-path").to_string()}},
                "provisioner": provisioner, "volumeBindingMode": mode}))
            .unwrap(),
        )
    }

    fn classes() -> Vec<Arc<StorageClass>> {
        vec![
            class("local-path", PROVISIONER, "WaitForFirstConsumer"),
            class("manual", "kubernetes.io/no-provisioner", "Immediate"),
        ]
    }

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut volume = json!({"metadata": {"name": name}, "spec": {"storageClassName": "manual",
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": size}}});
        json_patch::merge(&mut volume, &more);
        Arc::new(serde_json::from_value(volume).unwrap())
    }

    fn on(node: &str) -> Option<Consumer> {
        let labels = [(HOST_LABEL.to_owned(), node.to_owned())].into();
        Some(Consumer { node: node.to_owned(), labels })
    }

    #[test]
    fn a_volume_is_made_where_the_first_pod_is() {
        let open = claim(json!({}));
        assert_eq!(plan(&open, &[], &classes(), None, true), Step::WaitForConsumer);
        let step = plan(&open, &[], &classes(), on("a").as_ref(), true);
        assert_eq!(step, Step::Provision("a".into()));
        let made = Arc::new(volume_for(&open, Some(&classes()[0]), "a", "/data/volumes"));
        assert!(is_of(&made, &open));
        assert_eq!(local_volume::node_of(&made), Some("a"));
        assert!(local_volume::is_provisioned(&made));
        let spec = made.spec.as_ref().unwrap();
        assert_eq!(spec.local.as_ref().unwrap().path, "/data/volumes/pvc-u1");
        // Whatever was cut short is gone on with.
        let step = plan(&open, &[Arc::clone(&made)], &classes(), None, true);
        assert_eq!(step, Step::Bind(made));
    }

    #[test]
    fn a_claim_without_a_class_gets_the_default_one_and_the_empty_class_is_one() {
        let open = claim(json!({"spec": {"storageClassName": null}}));
        let step = plan(&open, &[], &classes(), None, false);
        assert_eq!(step, Step::SetClass("local-path".into()));
        let none = claim(json!({"spec": {"storageClassName": ""}}));
        assert_eq!(plan(&none, &[], &classes(), on("a").as_ref(), true), Step::Wait);
    }

    #[test]
    fn the_smallest_volume_that_fits_is_bound_and_one_kept_for_the_claim_before_it() {
        let wanted = claim(json!({"spec": {"storageClassName": "manual"}}));
        let kept = json!({"spec": {"claimRef": {"namespace": "n", "name": "data"}}});
        let (large, small) = (volume("large", "5Gi", json!({})), volume("small", "1Gi", json!({})));
        let tiny = volume("tiny", "1Mi", json!({}));
        let all = [large.clone(), small.clone(), tiny];
        assert_eq!(plan(&wanted, &all, &classes(), None, false), Step::Bind(small));
        let kept = volume("kept", "9Gi", kept);
        let all = [large, kept.clone()];
        assert_eq!(plan(&wanted, &all, &classes(), None, false), Step::Bind(kept));
    }

    #[test]
    fn a_claim_in_use_is_kept_and_a_lost_volume_is_told() {
        let doomed = claim(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert_eq!(plan(&doomed, &[], &classes(), None, true), Step::Wait);
        assert_eq!(plan(&doomed, &[], &classes(), None, false), Step::Release);
        let lost = claim(json!({"spec": {"volumeName": "gone"}, "status": {"phase": "Bound"}}));
        assert_eq!(plan(&lost, &[], &classes(), None, true), Step::Lose);
    }
}
