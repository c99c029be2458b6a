//! Persistent volumes that are folders of one node: how the provisioner marks them and how the
//! scheduler, the controller and the agent recognise them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use serde_json::json;

use crate::api::quantity::parse_bytes;
use crate::api::selector::{LabelSelector, node_term_matches};

/// `provisioner` of the storage classes whose volumes are folders of a node.
pub const PROVISIONER: &str = "edgeorc.io/local-path";
/// Name of the storage class that every cluster has.
pub const CLASS_DEFAULT: &str = "local-path";
/// Annotation of a volume that names who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotation that makes a storage class the default.
pub const IS_DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Annotation of a Node: the folder of its provisioned volumes.
pub const VOLUMES_PATH: &str = "edgeorc.io/volumes-path";
/// Finalizer of a provisioned volume: its node takes it off when the folder is gone.
pub const FOLDER_FINALIZER: &str = "edgeorc.io/local-path";
/// Finalizer of a volume that is bound.
pub const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
/// Finalizer of a claim that pods use.
pub const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// Label by which volumes name their node.
pub const HOST_LABEL: &str = "kubernetes.io/hostname";

/// Whether the cluster's own provisioner made the volume.
#[must_use]
pub fn is_provisioned(volume: &PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(PROVISIONED_BY)).is_some_and(|by| by == PROVISIONER)
}

/// The terms of the volume's node affinity; empty: it is good on every node.
#[must_use]
pub fn node_terms(volume: &PersistentVolume) -> &[NodeSelectorTerm] {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.map_or(&[], |required| &required.node_selector_terms)
}

/// The one node that the volume names by its host name; `None` when it names none or several.
#[must_use]
pub fn node_of(volume: &PersistentVolume) -> Option<&str> {
    let [term] = node_terms(volume) else { return None };
    let mut named = term
        .match_expressions
        .iter()
        .flatten()
        .filter(|wanted| wanted.key == HOST_LABEL && wanted.operator == "In");
    match named.next()?.values.as_deref() {
        Some([node]) => Some(node),
        _ => None,
    }
}

/// Whether the volume can be used on a node with this name and these labels.
#[must_use]
pub fn is_usable_on(
    volume: &PersistentVolume,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let terms = node_terms(volume);
    terms.is_empty() || terms.iter().any(|term| node_term_matches(term, name, labels))
}

/// Whether the volume is free, or kept for this claim, and is what the claim asks for.
#[must_use]
pub fn is_match(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(spec), Some(wanted)) = (&volume.spec, &claim.spec) else { return false };
    let is_free = match &spec.claim_ref {
        None => true,
        // An administrator keeps it for a claim by name; a uid says that it is taken.
        Some(kept) => {
            kept.uid.as_deref().unwrap_or_default().is_empty()
                && kept.name == claim.metadata.name
                && kept.namespace == claim.metadata.namespace
        }
    };
    let class = |name: &Option<String>| name.clone().unwrap_or_default();
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let offered = spec.access_modes.as_deref().unwrap_or_default();
    let modes = wanted.access_modes.as_deref().unwrap_or_default();
    is_free
        && volume.metadata.deletion_timestamp.is_none()
        && class(&spec.storage_class_name) == class(&wanted.storage_class_name)
        && mode(&spec.volume_mode) == mode(&wanted.volume_mode)
        && modes.iter().all(|mode| offered.contains(mode))
        && capacity(volume) >= request(claim)
        && is_selected(volume, wanted.selector.as_ref())
}

fn is_selected(volume: &PersistentVolume, selector: Option<&v1::LabelSelector>) -> bool {
    let Some(selector) = selector else { return true };
    // Validation lets no selector in that cannot be read; one that is there selects nothing.
    let selector =
        LabelSelector::from_json(&json!(selector)).unwrap_or_else(|_| LabelSelector::nothing());
    let label = |key: &str| volume.metadata.labels.as_ref()?.get(key).map(String::as_str);
    selector.matches_with(label)
}

/// Bytes that the volume has.
#[must_use]
pub fn capacity(volume: &PersistentVolume) -> i64 {
    let amount = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    amount.and_then(|amount| parse_bytes(&amount.0).ok()).unwrap_or(0)
}

/// Bytes that the claim asks for.
#[must_use]
pub fn request(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let amount = resources.and_then(|resources| resources.requests.as_ref()?.get("storage"));
    amount.and_then(|amount| parse_bytes(&amount.0).ok()).unwrap_or(0)
}

/// Names of the claims that the pod's volumes refer to.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|v| v.persistent_volume_claim.as_ref()).map(|c| c.claim_name.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_local_volume_names_its_node() {
        let volume = |values: serde_json::Value| -> PersistentVolume {
            serde_json::from_value(json!({"spec": {"nodeAffinity": {"required": {
                "nodeSelectorTerms": [{"matchExpressions": [
                    {"key": HOST_LABEL, "operator": "In", "values": values}]}]}}}}))
            .unwrap()
        };
        assert_eq!(node_of(&volume(json!(["a"]))), Some("a"));
        assert_eq!(node_of(&volume(json!(["a", "b"]))), None);
        assert_eq!(node_of(&PersistentVolume::default()), None);
    }

    #[test]
    fn a_volume_matches_by_class_modes_size_labels_and_who_it_is_kept_for() {
        let volume = |more: serde_json::Value| -> PersistentVolume {
            let mut volume = json!({"metadata": {"labels": {"disk": "fast"}}, "spec": {
                "storageClassName": "c", "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
                "capacity": {"storage": "2Gi"}}});
            json_patch::merge(&mut volume, &more);
            serde_json::from_value(volume).unwrap()
        };
        let claim = |more: serde_json::Value| -> PersistentVolumeClaim {
            let mut claim = json!({"metadata": {"namespace": "n", "name": "data"}, "spec": {
                "storageClassName": "c", "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}});
            json_patch::merge(&mut claim, &more);
            serde_json::from_value(claim).unwrap()
        };
        let (any, plain) = (volume(json!({})), claim(json!({})));
        assert!(is_match(&any, &plain));
        for refused in [
            json!({"spec": {"storageClassName": "d"}}),
            json!({"spec": {"accessModes": ["ReadOnlyMany"]}}),
            json!({"spec": {"capacity": {"storage": "1Mi"}}}),
            json!({"spec": {"volumeMode": "Block"}}),
            json!({"spec": {"claimRef": {"namespace": "n", "name": "other"}}}),
            json!({"spec": {"claimRef": {"namespace": "n", "name": "data", "uid": "taken"}}}),
        ] {
            assert!(!is_match(&volume(refused.clone()), &plain), "{refused}");
        }
        let kept = json!({"spec": {"claimRef": {"namespace": "n", "name": "data"}}});
        assert!(is_match(&volume(kept), &plain));
        let selecting =
            |value: &str| claim(json!({"spec": {"selector": {"matchLabels": {"disk": value}}}}));
        assert!(is_match(&any, &selecting("fast")));
        assert!(!is_match(&any, &selecting("slow")));
    }
}
