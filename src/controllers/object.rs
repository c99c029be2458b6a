//! What every controller asks of objects: who owns them, whether pods serve.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, ObjectMeta, OwnerReference, Time,
};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Selector;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::client::is_not_found;

/// Namespace and name of an object, as the key of a queue.
pub(crate) type Key = (String, String);

/// The key of `object`.
pub(crate) fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// `namespace/name`, for messages.
pub(crate) fn full_name(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Deletes the object if it is still the version that was read. One that is gone is no error.
///
/// # Errors
///
/// A conflict if it has changed, or what the API answers otherwise.
pub(crate) async fn delete_as_read<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let preconditions =
        Preconditions { uid: object.uid(), resource_version: object.resource_version() };
    let params = DeleteParams::default().preconditions(preconditions);
    match api.delete(&object.name_any(), &params).await {
        Err(err) if !is_not_found(&err) => Err(err),
        _ => Ok(()),
    }
}

/// Applies a merge patch to the very version that was read. Returns the object as it is then.
///
/// # Errors
///
/// A conflict if it has changed, or what the API answers otherwise.
pub(crate) async fn patch_as_read<K>(
    api: &Api<K>,
    read: &K,
    mut patch: Value,
) -> Result<K, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    json_patch::merge(&mut patch, &version(read));
    api.patch(&read.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await
}

/// As [`patch_as_read`], for the status.
///
/// # Errors
///
/// As [`patch_as_read`].
pub(crate) async fn patch_status_as_read<K>(
    api: &Api<K>,
    read: &K,
    status: Value,
) -> Result<K, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut patch = json!({ "status": status });
    json_patch::merge(&mut patch, &version(read));
    api.patch_status(&read.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await
}

fn version<K: Resource>(read: &K) -> Value {
    json!({"metadata": {"uid": read.uid(), "resourceVersion": read.resource_version()}})
}

/// The owner that controls the object, if one does.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` controls the object.
pub(crate) fn is_controlled_by<K: Resource>(meta: &ObjectMeta, owner: &K) -> bool {
    match (controller_of(meta), owner.meta().uid.as_ref()) {
        (Some(reference), Some(uid)) => reference.uid == *uid,
        _ => false,
    }
}

/// The reference that makes `owner` the controller of an object.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The object's owner references without the one to `uid`.
pub(crate) fn owners_without(meta: &ObjectMeta, uid: &str) -> Vec<OwnerReference> {
    meta.owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned().collect()
}

/// Whether deletion of the object has begun.
pub(crate) fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// A label selector in the form that matches; `None` when it is malformed, and matches nothing.
pub(crate) fn selector_of(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok().filter(|selector| !selector.selects_all())
}

/// The condition of that type.
pub(crate) fn condition<'a>(pod: &'a Pod, condition_type: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == condition_type)
}

/// The pod's conditions with `DisruptionTarget`: somebody ends the pod, not the pod itself. `None`
/// when one says so already.
pub(crate) fn disrupted(
    pod: &Pod,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<Vec<PodCondition>> {
    const TYPE: &str = "DisruptionTarget";
    if condition(pod, TYPE).is_some_and(|condition| condition.status == "True") {
        return None;
    }
    let had = pod.status.as_ref().and_then(|status| status.conditions.clone());
    let mut conditions = had.unwrap_or_default();
    conditions.retain(|condition| condition.type_ != TYPE);
    conditions.push(PodCondition {
        type_: TYPE.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    });
    Some(conditions)
}

/// Whether the pod's Ready condition is true.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when the pod is ready, if it is and says so.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// The pod's phase; empty before it has one.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has ended for good.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as one of its owner's: it has not ended and is not being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(&pod.metadata)
}

/// The node the pod is bound to.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether a ready pod has been so for long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Availability {
    /// Ready for at least the time asked.
    Available,
    /// Ready; available after this much longer, if it stays so.
    In(Duration),
    /// Not ready.
    No,
}

/// Whether `pod` has been ready for `min_ready_seconds` at `now`.
pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    if !is_ready(pod) {
        return Availability::No;
    }
    let wanted = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    if wanted.is_zero() {
        return Availability::Available;
    }
    let Some(since) = ready_since(pod) else {
        return Availability::No;
    };
    match wanted.checked_sub(elapsed(since, now)) {
        None | Some(Duration::ZERO) => Availability::Available,
        Some(left) => Availability::In(left),
    }
}

/// The time from `since` to `now`; zero when the clock went back.
pub(crate) fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodStatus;

    use super::*;

    fn ready_pod(since: i64) -> Pod {
        let ready = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(Timestamp::from_second(since).unwrap())),
            ..PodCondition::default()
        };
        let status = PodStatus { conditions: Some(vec![ready]), ..PodStatus::default() };
        Pod { status: Some(status), ..Pod::default() }
    }

    #[test]
    fn a_pod_is_available_once_it_was_ready_long_enough() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let pod = ready_pod(100);
        assert_eq!(availability(&pod, 0, at(100)), Availability::Available);
        assert_eq!(availability(&pod, 10, at(104)), Availability::In(Duration::from_secs(6)));
        assert_eq!(availability(&pod, 10, at(110)), Availability::Available);
        assert_eq!(availability(&pod, 10, at(90)), Availability::In(Duration::from_secs(10)));
        assert_eq!(availability(&Pod::default(), 0, at(100)), Availability::No);
    }

    #[test]
    fn a_pod_is_said_to_be_disrupted_once() {
        let now = Timestamp::from_second(200).unwrap();
        let mut pod = ready_pod(100);
        let conditions = disrupted(&pod, "DeletionByPodGC", "gone", now).unwrap();
        let types: Vec<_> =
            conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
        assert_eq!(types, [("Ready", "True"), ("DisruptionTarget", "True")]);
        assert_eq!(conditions[1].reason.as_deref(), Some("DeletionByPodGC"));
        pod.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(disrupted(&pod, "DeletionByTaintManager", "other", now), None);
    }

    #[test]
    fn what_controllers_make_holds_up_the_deletion_of_its_owner() {
        let meta =
            ObjectMeta { name: Some("p".into()), uid: Some("u".into()), ..ObjectMeta::default() };
        let owner = controller_reference(&Pod { metadata: meta, ..Pod::default() });
        assert_eq!((owner.api_version.as_str(), owner.kind.as_str()), ("v1", "Pod"));
        assert_eq!((owner.name.as_str(), owner.uid.as_str()), ("p", "u"));
        assert_eq!((owner.controller, owner.block_owner_deletion), (Some(true), Some(true)));
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        assert!(selector_of(&LabelSelector::default()).is_none());
    }
}
