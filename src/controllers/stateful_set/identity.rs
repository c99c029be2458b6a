//! Who a stateful set's pods are: names, ordinals, and the storage that goes with them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt as _;

use crate::controllers::object::{controller_of, controller_reference};
use crate::controllers::owned::pod_of;
use crate::controllers::revisions::POD_LABEL;

/// Selects the one pod of that name.
const NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The pod's ordinal.
const INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in a pod's name, if it is one that `set` would give.
pub(super) fn ordinal_of(set: &StatefulSet, pod_name: &str) -> Option<i32> {
    let number = pod_name.strip_prefix(&set.name_any())?.strip_prefix('-')?;
    let ordinal: i32 = number.parse().ok()?;
    (ordinal >= 0 && number == ordinal.to_string()).then_some(ordinal)
}

/// The name of the pod with that ordinal.
pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name_any())
}

/// The labels that say who a pod is.
pub(super) fn identity(set: &StatefulSet, ordinal: i32) -> BTreeMap<String, String> {
    BTreeMap::from([
        (NAME_LABEL.to_owned(), pod_name(set, ordinal)),
        (INDEX_LABEL.to_owned(), ordinal.to_string()),
    ])
}

/// The pod with that ordinal, of the revision `revision` whose template is `template`.
pub(super) fn pod(
    set: &StatefulSet,
    ordinal: i32,
    template: &PodTemplateSpec,
    revision: &str,
) -> Pod {
    let mut pod = pod_of(set, template);
    let name = pod_name(set, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.extend(identity(set, ordinal));
    labels.insert(POD_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    let mut volumes: Vec<Volume> = claim_templates(set)
        .map(|template| {
            let claim_name = claim_name(&template.name_any(), &name);
            let source = PersistentVolumeClaimVolumeSource { claim_name, read_only: Some(false) };
            let persistent_volume_claim = Some(source);
            Volume { name: template.name_any(), persistent_volume_claim, ..Volume::default() }
        })
        .collect();
    // A claim stands before a volume of the same name.
    let others = spec.volumes.take().into_iter().flatten();
    let is_shadowed = |volume: &Volume| claim_templates(set).any(|t| t.name_any() == volume.name);
    volumes.extend(others.filter(|volume| !is_shadowed(volume)));
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    pod.metadata.name = Some(name);
    pod
}

fn claim_templates(set: &StatefulSet) -> impl Iterator<Item = &PersistentVolumeClaim> {
    set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten())
}

fn claim_name(template: &str, pod: &str) -> String {
    format!("{template}-{pod}")
}

/// The claims of the pod with that ordinal, as they are made.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let pod = pod_name(set, ordinal);
    let selected = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone());
    let owners = owners_at_birth(set);
    let of = |template: &PersistentVolumeClaim| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selected.clone().unwrap_or_default());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(&template.name_any(), &pod)),
                namespace: set.namespace(),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                owner_references: owners.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    claim_templates(set).map(of).collect()
}

/// What becomes of the claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Retention {
    /// They go with the set.
    pub(super) deleted_with_set: bool,
    /// They go when the set is scaled down below them.
    pub(super) deleted_with_pod: bool,
}

impl Retention {
    pub(super) fn of(set: &StatefulSet) -> Self {
        let policy = set.spec.as_ref();
        let policy = policy.and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
        let is_delete = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
        Self {
            deleted_with_set: is_delete(policy.and_then(|policy| policy.when_deleted.as_ref())),
            deleted_with_pod: is_delete(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }
}

fn owners_at_birth(set: &StatefulSet) -> Option<Vec<OwnerReference>> {
    Retention::of(set).deleted_with_set.then(|| vec![controller_reference(set)])
}

/// The owners that a claim of `pod` should have: garbage collection deletes it with them. `None` when
/// it has these, or is another controller's.
pub(super) fn claim_owners(
    set: &StatefulSet,
    pod: &Pod,
    is_condemned: bool,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let retention = Retention::of(set);
    let has = claim.metadata.owner_references.clone().unwrap_or_default();
    let set_uid = set.uid().unwrap_or_default();
    let is_ours = |owner: &OwnerReference| {
        owner.uid == set_uid || (owner.kind == "Pod" && owner.name == pod.name_any())
    };
    if controller_of(&claim.metadata).is_some_and(|owner| !is_ours(owner)) {
        return None;
    }
    let mut wanted: Vec<_> = has.iter().filter(|owner| !is_ours(owner)).cloned().collect();
    if is_condemned && retention.deleted_with_pod {
        wanted.push(controller_reference(pod));
    } else if retention.deleted_with_set {
        wanted.push(controller_reference(set));
    }
    (has != wanted).then_some(wanted)
}

/// Whether the claim is on its way out with a pod that had this name before: the next one waits.
pub(super) fn is_claim_stale(
    set: &StatefulSet,
    pod_name: &str,
    claim: &PersistentVolumeClaim,
) -> bool {
    let meta = &claim.metadata;
    let owners = meta.owner_references.iter().flatten();
    let is_of_a_gone_pod = Retention::of(set).deleted_with_pod
        && owners.into_iter().any(|owner| owner.kind == "Pod" && owner.name == pod_name);
    meta.deletion_timestamp.is_some() || is_of_a_gone_pod
}
