//! What controllers do with the objects that belong to them: take in, let go, make, delete.
//!
//! # Invariants
//!
//! - Objects controlled by something else are never touched; a deleted owner adopts nothing.
//! - After a write the cache shows it before the run goes on: nothing is made twice.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt as _};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tracing::debug;

use crate::client::{EventRecorder, EventType, Regarding, Store, is_not_found, revision_of};
use crate::controllers::Context;
use crate::controllers::object::{
    controller_of, controller_reference, full_name, is_controlled_by, is_deleting, owners_without,
};

/// How long a run waits for the cache to show its writes.
pub(super) const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// Pods deleted at once.
const DELETES_AT_ONCE: usize = 32;
/// Pods created at once, at most: batches start at one and double while all goes well.
const CREATES_AT_ONCE: usize = 64;

/// The objects of a namespace as one owner sees them.
#[derive(Debug)]
pub(super) struct Claimed<K> {
    /// Those that are the owner's and match.
    pub(super) owned: Vec<Arc<K>>,
    /// Those that match and have no controller: they become the owner's.
    pub(super) adopt: Vec<Arc<K>>,
    /// The owner's that no longer match: they are let go.
    pub(super) release: Vec<Arc<K>>,
}

/// Sorts `objects` by whose they are. With `selector` `None` the owner's own stay its own, and no
/// others come in.
pub(super) fn claim<K: Resource, O: Resource>(
    owner: &O,
    selector: Option<&Selector>,
    objects: &[Arc<K>],
    may_be_ours: impl Fn(&K) -> bool,
) -> Claimed<K> {
    let is_alive = !is_deleting(owner.meta());
    let none = BTreeMap::new();
    let mut claimed = Claimed { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    for object in objects {
        let meta = object.meta();
        let matches = selector.is_some_and(|selector| {
            selector.matches(meta.labels.as_ref().unwrap_or(&none)) && may_be_ours(object)
        });
        if is_controlled_by(meta, owner) {
            if matches || selector.is_none() {
                claimed.owned.push(Arc::clone(object));
            } else if is_alive && !is_deleting(meta) {
                claimed.release.push(Arc::clone(object));
            }
        } else if matches && is_alive && controller_of(meta).is_none() && !is_deleting(meta) {
            claimed.adopt.push(Arc::clone(object));
        }
    }
    claimed
}

impl<K> Claimed<K> {
    /// Whether there is nothing to take in or let go.
    pub(super) fn is_settled(&self) -> bool {
        self.adopt.is_empty() && self.release.is_empty()
    }
}

/// A pod of `template`, without a name.
pub(super) fn pod_of<O>(owner: &O, template: &PodTemplateSpec) -> Pod
where
    O: Resource<DynamicType = ()>,
{
    let template = template.clone();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: owner.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Why pods could not be made or removed, as condition and event say it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: &'static str,
    pub(super) error: kube::Error,
}

impl Failure {
    /// What the server said.
    pub(super) fn words(&self) -> String {
        words_of(&self.error)
    }
}

/// What the server said, without the client's wrapping.
pub(super) fn words_of(err: &kube::Error) -> String {
    match err {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// How events tell of a pod: its name and the owner's to a sentence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    pub(super) created: fn(&str, &str) -> String,
    pub(super) deleted: fn(&str, &str) -> String,
    /// The third is what the server said.
    pub(super) not_created: fn(&str, &str, &str) -> String,
}

/// As ReplicaSets, ReplicationControllers and DaemonSets speak.
pub(super) const PLAIN_WORDS: Words = Words {
    created: |pod, _| format!("Created pod: {pod}"),
    deleted: |pod, _| format!("Deleted pod: {pod}"),
    not_created: |_, _, why| format!("Error creating: {why}"),
};

/// The pods of one owner, to be changed.
pub(super) struct PodsOf<'a, O> {
    pub(super) context: &'a Context,
    pub(super) events: &'a EventRecorder,
    pub(super) owner: &'a O,
    pub(super) words: Words,
}

impl<O> PodsOf<'_, O>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    /// The door to objects of the owner's namespace.
    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let namespace = self.owner.namespace().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), &namespace)
    }

    /// Takes in and lets go. Returns the highest revision written.
    pub(super) async fn claim<K>(
        &self,
        adopt: &[Arc<K>],
        release: &[Arc<K>],
    ) -> Result<u64, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let uid = self.owner.uid().unwrap_or_default();
        let api = self.api::<K>();
        let mut revision = 0;
        for object in release {
            let owners = owners_without(object.meta(), &uid);
            revision = revision.max(patch_owners(&api, object.as_ref(), &owners).await?);
        }
        if !adopt.is_empty() && self.is_still_there().await? {
            for object in adopt {
                let mut owners = owners_without(object.meta(), &uid);
                owners.push(controller_reference(self.owner));
                revision = revision.max(patch_owners(&api, object.as_ref(), &owners).await?);
            }
        }
        Ok(revision)
    }

    /// Asks the server, not the cache: a deleted owner must not adopt.
    async fn is_still_there(&self) -> Result<bool, kube::Error> {
        let fresh = self.api::<O>().get_opt(&self.owner.name_any()).await?;
        Ok(fresh.is_some_and(|fresh| fresh.uid() == self.owner.uid() && !is_deleting(fresh.meta())))
    }

    /// Creates pods in batches of 1, 2, 4 …, so that what must fail fails once, not 500 times.
    pub(super) async fn create(&self, pods: &[Pod]) -> Result<(), Failure> {
        let (api, owner) = (self.api::<Pod>(), self.owner.name_any());
        let (mut left, mut batch, mut revision, mut failure) = (pods, 1_usize, 0, None);
        while !left.is_empty() && failure.is_none() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let params = PostParams::default();
            let creates = now.iter().map(|pod| api.create(&params, pod));
            for (pod, outcome) in now.iter().zip(join_all(creates).await) {
                match outcome {
                    Ok(created) => {
                        revision = revision.max(revision_of(&created).unwrap_or(0));
                        let message = (self.words.created)(&created.name_any(), &owner);
                        self.tell(EventType::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) => failure = Some((pod.name_any(), error)),
                }
            }
            left = later;
            batch = (batch * 2).min(CREATES_AT_ONCE);
        }
        self.context.informers.pods.catch_up(revision, CATCH_UP_MAX).await;
        let Some((pod, error)) = failure else { return Ok(()) };
        let message = (self.words.not_created)(&pod, &owner, &words_of(&error));
        self.tell(EventType::Warning, "FailedCreate", message);
        Err(Failure { reason: "FailedCreate", error })
    }

    /// Deletes pods, and waits until the cache knows.
    pub(super) async fn delete(&self, doomed: &[Arc<Pod>]) -> Result<(), Failure> {
        let (api, owner) = (self.api::<Pod>(), self.owner.name_any());
        for batch in doomed.chunks(DELETES_AT_ONCE) {
            let api = &api;
            let deletes = batch.iter().map(|pod| async move {
                let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
                let params = DeleteParams::default().preconditions(preconditions);
                (pod, api.delete(&pod.name_any(), &params).await)
            });
            let mut failure = None;
            for (pod, outcome) in join_all(deletes).await {
                match outcome {
                    Ok(_) => {
                        let message = (self.words.deleted)(&pod.name_any(), &owner);
                        self.tell(EventType::Normal, "SuccessfulDelete", message);
                    }
                    Err(err) if is_not_found(&err) => {}
                    Err(error) => failure = Some(Failure { reason: "FailedDelete", error }),
                }
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        let is_settled = |store: &Store<Pod>| {
            doomed.iter().all(|pod| {
                let found = store.named(&pod.namespace().unwrap_or_default(), &pod.name_any());
                found.is_none_or(|found| found.uid() != pod.uid() || is_deleting(&found.metadata))
            })
        };
        self.context.informers.pods.settled(CATCH_UP_MAX, is_settled).await;
        Ok(())
    }

    /// Tells people what happened to the owner.
    pub(super) fn tell(&self, event_type: EventType, reason: &'static str, message: String) {
        let name = full_name(self.owner.meta());
        debug!(object.name = name, object.reason = reason, message, "event of an owner of pods");
        self.events.record(Regarding::of(self.owner), event_type, reason, message);
    }

    /// Writes the owner's status, if it is still the version that was read. Returns its revision.
    pub(super) async fn write_status(&self, status: &impl Serialize) -> Result<u64, kube::Error> {
        let patch = json!({
            "metadata": { "resourceVersion": self.owner.meta().resource_version },
            "status": status,
        });
        let (api, name, params) = (self.api::<O>(), self.owner.name_any(), PatchParams::default());
        let written = api.patch_status(&name, &params, &Patch::Merge(patch)).await?;
        Ok(revision_of(&written).unwrap_or(0))
    }
}

/// Sets the owners of an object that is still the version that was read. Returns its revision, 0
/// when it is gone.
pub(super) async fn patch_owners<K>(
    api: &Api<K>,
    object: &K,
    owners: &[OwnerReference],
) -> Result<u64, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    patch_metadata(api, object, json!({ "ownerReferences": owners })).await
}

/// Changes the metadata of an object that is still the version that was read. Returns its revision,
/// 0 when it is gone.
pub(super) async fn patch_metadata<K>(
    api: &Api<K>,
    object: &K,
    mut change: Value,
) -> Result<u64, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    if let Some(metadata) = change.as_object_mut() {
        metadata.insert("uid".to_owned(), json!(object.uid()));
        metadata.insert("resourceVersion".to_owned(), json!(object.resource_version()));
    }
    let patch = json!({ "metadata": change });
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(patched) => Ok(revision_of(&patched).unwrap_or(0)),
        Err(err) if is_not_found(&err) => Ok(0),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::object::selector_of;
    use k8s_openapi::api::apps::v1::StatefulSet;

    fn pod(name: &str, labels: &Value, owner: Option<&str>) -> Arc<Pod> {
        let owners = owner.map(|uid| {
            json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "x", "uid": uid,
                "controller": true}])
        });
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": labels, "ownerReferences": owners},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn what_is_ours_stays_what_nobody_has_comes_and_what_others_have_is_left_alone() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "x", "uid": "me"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "", "template": {}},
        }))
        .unwrap();
        let selector = selector_of(&set.spec.as_ref().unwrap().selector);
        let (ours, other) = (json!({"a": "b"}), json!({"a": "c"}));
        let pods = [
            pod("own", &ours, Some("me")),
            pod("left", &other, Some("me")),
            pod("orphan", &ours, None),
            pod("misnamed", &ours, None),
            pod("foreign", &ours, Some("other")),
            pod("unlike", &other, None),
        ];
        let names = |pods: &[Arc<Pod>]| pods.iter().map(|p| p.name_any()).collect::<Vec<_>>();
        let may_be = |pod: &Pod| pod.name_any() != "misnamed";
        let claimed = claim(&set, selector.as_ref(), &pods, may_be);
        assert_eq!(names(&claimed.owned), ["own"]);
        assert_eq!(names(&claimed.adopt), ["orphan"]);
        assert_eq!(names(&claimed.release), ["left"]);
        assert!(!claimed.is_settled());
        let blind = claim(&set, None, &pods, may_be);
        assert_eq!(names(&blind.owned), ["own", "left"]);
        assert!(blind.is_settled());
        let mut going = set;
        going.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
        let claimed = claim(&going, selector.as_ref(), &pods, may_be);
        assert!(claimed.is_settled());
        assert_eq!(names(&claimed.owned), ["own"]);
    }
}
