//! What a pod's claims are to be, and which may be let go of: pure functions.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::api::device_claims::{self, FINALIZER, POD_CLAIM_NAME};
use crate::api::names::{SUFFIX_LEN, generate_name};
use crate::controllers::object::{
    controller_of, controller_reference, is_controlled_by, is_deleting, is_terminal, node_name,
};

/// A claim that a pod waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted<'a> {
    pub(super) entry: &'a str,
    pub(super) template: &'a str,
}

/// The claims that are to be made for the pod.
pub(super) fn wanted(pod: &Pod) -> Vec<Wanted<'_>> {
    let open = device_claims::of_pod(pod).filter(|named| named.claim.is_none());
    open.filter_map(|named| Some(Wanted { entry: named.entry, template: named.template? }))
        .collect()
}

/// What the pod's status says of claims already.
pub(super) fn statuses(pod: &Pod) -> Vec<Value> {
    let told = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
    let told = told.into_iter().flatten();
    told.map(|status| match &status.resource_claim_name {
        Some(claim) => json!({ "name": status.name, "resourceClaimName": claim }),
        None => json!({ "name": status.name }),
    })
    .collect()
}

/// The claim of the pod's entry. Its name is the same each time, so that it is made once.
pub(super) fn claim(
    pod: &Pod,
    wanted: &Wanted<'_>,
    template: &ResourceClaimTemplate,
) -> ResourceClaim {
    let metadata = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM_NAME.to_owned(), wanted.entry.to_owned());
    let base = format!("{}-{}-", pod.name_any(), wanted.entry);
    // Of the entry as well: a long base is cut.
    let digest = Sha256::digest(format!("{}/{}", pod.uid().unwrap_or_default(), wanted.entry));
    let suffix = hex::encode(digest);
    ResourceClaim {
        metadata: ObjectMeta {
            name: Some(generate_name(&base, suffix.get(..SUFFIX_LEN).unwrap_or_default())),
            namespace: pod.namespace(),
            labels: metadata.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// Whether the claim is the one that was made for the pod's entry.
pub(super) fn is_for(claim: &ResourceClaim, pod: &Pod, entry: &str) -> bool {
    is_controlled_by(&claim.metadata, pod)
        && claim.annotations().get(POD_CLAIM_NAME).is_some_and(|name| name == entry)
}

/// Name and uid of the pods that the claim is reserved for.
pub(super) fn consumers(claim: &ResourceClaim) -> Vec<(&str, &str)> {
    let all = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    let pods = all.filter(|consumer| {
        consumer.resource == "pods" && consumer.api_group.as_deref().unwrap_or_default().is_empty()
    });
    pods.map(|consumer| (consumer.name.as_str(), consumer.uid.as_str())).collect()
}

/// The status without the consumers that are gone, and without devices when there is none left; `None`:
/// it stays as it is.
pub(super) fn released(claim: &ResourceClaim, gone: &[String]) -> Option<Value> {
    let status = claim.status.as_ref()?;
    let had = status.reserved_for.as_deref().unwrap_or_default();
    let kept: Vec<_> = had.iter().filter(|consumer| !gone.contains(&consumer.uid)).collect();
    if kept.is_empty() {
        let is_free = status.allocation.is_none() && had.is_empty();
        let nothing = json!({ "reservedFor": null, "allocation": null, "devices": null });
        return (!is_free).then_some(nothing);
    }
    (kept.len() < had.len()).then(|| json!({ "reservedFor": kept }))
}

/// The claim's finalizers without ours, if ours holds nothing any more. One that has no devices and is
/// not being deleted may be about to get some: the scheduler sets the finalizer first.
pub(super) fn finalizers(claim: &ResourceClaim) -> Option<Vec<String>> {
    let had = claim.metadata.finalizers.as_ref()?;
    let is_held = claim.status.as_ref().is_some_and(|status| status.allocation.is_some());
    if is_held || !is_deleting(&claim.metadata) || !had.iter().any(|name| name == FINALIZER) {
        return None;
    }
    Some(had.iter().filter(|name| *name != FINALIZER).cloned().collect())
}

/// Name and uid of the pod that the claim was made for.
pub(super) fn owner(claim: &ResourceClaim) -> Option<(&str, &str)> {
    let owner = controller_of(&claim.metadata)?;
    let is_made = claim.annotations().contains_key(POD_CLAIM_NAME);
    (is_made && owner.kind == "Pod" && !is_deleting(&claim.metadata))
        .then_some((owner.name.as_str(), owner.uid.as_str()))
}

/// Whether no pod has the claim.
pub(super) fn is_unused(claim: &ResourceClaim) -> bool {
    let status = claim.status.as_ref();
    status
        .is_none_or(|s| s.allocation.is_none() && s.reserved_for.iter().flatten().next().is_none())
}

/// Whether the pod runs no more: it has ended, or was deleted before it had a node.
pub(super) fn is_over(pod: &Pod) -> bool {
    is_terminal(pod) || (is_deleting(&pod.metadata) && node_name(pod).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "0123456789"},
            "spec": {"containers": [], "resourceClaims": [
                {"name": "a", "resourceClaimTemplateName": "t"},
                {"name": "b", "resourceClaimTemplateName": "t"},
                {"name": "c", "resourceClaimName": "own"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn given(consumers: &[&str]) -> ResourceClaim {
        let consumers: Vec<_> = consumers
            .iter()
            .map(|uid| json!({"resource": "pods", "name": format!("pod-{uid}"), "uid": uid}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n", "finalizers": ["other", FINALIZER]},
            "spec": {},
            "status": {"allocation": {}, "reservedFor": consumers},
        }))
        .unwrap()
    }

    #[test]
    fn a_claim_is_made_for_each_entry_with_a_template_once() {
        let told =
            json!({"resourceClaimStatuses": [{"name": "a", "resourceClaimName": "p-a-01234"}]});
        let (new, half) = (pod(json!({})), pod(told));
        assert_eq!(wanted(&new).iter().map(|w| w.entry).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(wanted(&half).iter().map(|w| w.entry).collect::<Vec<_>>(), ["b"]);
        assert_eq!(statuses(&half).len(), 1);
        let template: ResourceClaimTemplate = serde_json::from_value(json!({
            "metadata": {"name": "t"},
            "spec": {"metadata": {"labels": {"l": "1"}}, "spec": {"devices": {"requests": [
                {"name": "r", "exactly": {"deviceClassName": "x"}}]}}},
        }))
        .unwrap();
        let made = claim(&new, &wanted(&new)[0], &template);
        assert!(
            made.name_any().starts_with("p-a-")
                && made.name_any().len() == "p-a-".len() + SUFFIX_LEN
        );
        assert_eq!(made.name_any(), claim(&new, &wanted(&new)[0], &template).name_any());
        assert_eq!(made.labels()["l"], "1");
        assert_eq!(made.annotations()[POD_CLAIM_NAME], "a");
        assert_eq!(owner(&made), Some(("p", "0123456789")));
        assert!(made.spec.devices.is_some() && is_unused(&made));
        assert!(is_for(&made, &new, "a") && !is_for(&made, &new, "b"));
        let mut long = new.clone();
        long.metadata.name = Some("p".repeat(60));
        let names: Vec<_> =
            wanted(&long).iter().map(|w| claim(&long, w, &template).name_any()).collect();
        assert!(names[0] != names[1] && names[0].len() <= 63, "{names:?}");
    }

    #[test]
    fn devices_are_given_back_with_the_last_pod_that_uses_them() {
        let shared = given(&["1", "2"]);
        assert_eq!(consumers(&shared), [("pod-1", "1"), ("pod-2", "2")]);
        assert_eq!(released(&shared, &[]), None);
        let left = released(&shared, &["1".to_owned()]).unwrap();
        assert_eq!(left["reservedFor"][0]["uid"], "2");
        assert!(left.get("allocation").is_none());
        let free = released(&shared, &["1".to_owned(), "2".to_owned()]).unwrap();
        assert_eq!(free, json!({"reservedFor": null, "allocation": null, "devices": null}));
        assert!(released(&given(&[]), &[]).is_some(), "given to nobody");
        assert_eq!(released(&ResourceClaim::default(), &[]), None);
    }

    #[test]
    fn the_finalizer_goes_when_the_claim_does_and_has_no_devices() {
        let mut claim = given(&[]);
        assert_eq!(finalizers(&claim), None, "it has devices");
        claim.status = None;
        assert_eq!(finalizers(&claim), None, "it may be about to get some");
        claim.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(finalizers(&claim), Some(vec!["other".to_owned()]));
    }

    #[test]
    fn a_pod_is_over_when_it_will_not_run() {
        assert!(!is_over(&pod(json!({"phase": "Running"}))));
        assert!(is_over(&pod(json!({"phase": "Failed"}))));
        let mut pod = pod(json!({"phase": "Pending"}));
        pod.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(is_over(&pod));
        pod.spec.as_mut().unwrap().node_name = Some("one".to_owned());
        assert!(!is_over(&pod), "its node ends it");
    }
}
