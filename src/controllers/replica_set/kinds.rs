//! The kinds that are worked on as replica sets.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{
    ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Informer, Informers};
use crate::controllers::object::controller_of;

/// A kind that keeps a number of equal pods.
pub(crate) trait Replicated:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The controller's name in logs.
    const CONTROLLER: &'static str;

    /// The replica set that says the same. Its status is written back as it is: the fields are equal.
    fn as_replica_set(&self) -> Cow<'_, ReplicaSet>;

    /// The cache of this kind.
    fn informer(informers: &Informers) -> &Informer<Self>;
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replica-set";

    fn as_replica_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn informer(informers: &Informers) -> &Informer<Self> {
        &informers.replica_sets
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

    fn as_replica_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().map(|spec| ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: spec.replicas,
            selector: LabelSelector { match_labels: spec.selector, ..LabelSelector::default() },
            template: spec.template,
        });
        let status = self.status.clone().map(status);
        Cow::Owned(ReplicaSet { metadata: self.metadata.clone(), spec, status })
    }

    fn informer(informers: &Informers) -> &Informer<Self> {
        &informers.replication_controllers
    }
}

/// The uids of `owner` and of those of `all` that have the same controller: replica sets of one
/// deployment.
pub(super) fn siblings<K: Replicated>(owner: &K, all: &[Arc<K>]) -> BTreeSet<String> {
    let above = controller_of(owner.meta()).map(|above| &above.uid);
    let is_sibling = |other: &&Arc<K>| {
        above.is_some() && controller_of(other.meta()).map(|above| &above.uid) == above
    };
    let others = all.iter().filter(is_sibling).filter_map(|other| other.uid());
    owner.uid().into_iter().chain(others).collect()
}

fn status(status: ReplicationControllerStatus) -> ReplicaSetStatus {
    let conditions = status.conditions.map(|conditions| {
        let of = conditions.into_iter().map(|condition| ReplicaSetCondition {
            last_transition_time: condition.last_transition_time,
            message: condition.message,
            reason: condition.reason,
            status: condition.status,
            type_: condition.type_,
        });
        of.collect()
    });
    ReplicaSetStatus {
        available_replicas: status.available_replicas,
        conditions,
        fully_labeled_replicas: status.fully_labeled_replicas,
        observed_generation: status.observed_generation,
        ready_replicas: status.ready_replicas,
        replicas: status.replicas,
        ..ReplicaSetStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn siblings_are_those_of_the_same_controller() {
        let set = |uid: &str, above: Option<&str>| -> Arc<ReplicaSet> {
            let owners = above.map(|above| {
                json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": above,
                    "controller": true}])
            });
            let metadata = json!({"name": uid, "uid": uid, "ownerReferences": owners});
            Arc::new(serde_json::from_value(json!({ "metadata": metadata })).unwrap())
        };
        let all = [
            set("new", Some("d")),
            set("old", Some("d")),
            set("other", Some("e")),
            set("alone", None),
            set("single", None),
        ];
        let of = |at: usize| siblings(&*all[at], &all).into_iter().collect::<Vec<_>>();
        assert_eq!(of(0), ["new", "old"]);
        assert_eq!(of(2), ["other"]);
        assert_eq!(of(3), ["alone"], "without a controller it is on its own");
    }

    #[test]
    fn a_replication_controller_says_what_a_replica_set_would() {
        let labels = json!({"app": "web"});
        let template = json!({"metadata": {"labels": labels}, "spec": {"containers": []}});
        let status = json!({"replicas": 2, "readyReplicas": 1, "observedGeneration": 4,
            "conditions": [{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}]});
        let metadata = json!({"name": "web", "uid": "u"});
        let old: ReplicationController = serde_json::from_value(json!({"metadata": metadata,
            "spec": {"replicas": 3, "selector": labels, "template": template},
            "status": status}))
        .unwrap();
        let new: ReplicaSet = serde_json::from_value(json!({"metadata": metadata,
            "spec": {"replicas": 3, "selector": {"matchLabels": labels}, "template": template},
            "status": status}))
        .unwrap();
        assert_eq!(*old.as_replica_set(), new);
    }
}
