//! Keeps as many pods as each replica set wants: creates, deletes, adopts, lets go, counts.
//!
//! Data in: replica sets and pods. Data out: pods, and the status of replica sets.
//!
//! # Invariants
//!
//! - A run starts only once the cache shows the writes of the run before: nothing is made twice.
//! - Pods controlled by something else are never touched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::SelectorExt as _;
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::{
    Change, EventRecorder, EventType, Regarding, Store, is_not_found, revision_of,
};
use crate::controllers::Context;
use crate::controllers::object::{
    Key, controller_of, controller_reference, full_name, is_controlled_by, is_deleting, key,
    owners_without, selector_of,
};
use crate::controllers::queue::{Next, Queue, Workers};
use crate::controllers::replica_set::plan::{Plan, View, plan, status};

mod plan;
#[cfg(test)]
mod plan_test;
mod rank;

/// Replica sets reconciled at once.
const RUNS_MAX: usize = 16;
/// How long a run waits for the cache to show its writes.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// Pods deleted at once.
const DELETES_AT_ONCE: usize = 32;
/// Pods created at once, at most: batches start at one and double while all goes well.
const CREATES_AT_ONCE: usize = 64;

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.replica_sets.subscribe(queue.feed(|change: &Change<'_, ReplicaSet>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    let replica_sets = informers.replica_sets.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        keys_of_pod_change(&replica_sets, change, keys);
    }));
    let workers =
        Workers { controller: "replica-set", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

/// The replica sets a pod's change concerns: its controller, the one it had, or all that match.
fn keys_of_pod_change(
    replica_sets: &Store<ReplicaSet>,
    change: &Change<'_, Pod>,
    keys: &mut Vec<Key>,
) {
    let pod = change.object();
    let namespace = pod.namespace().unwrap_or_default();
    let mut add_owner = |meta: &ObjectMeta| {
        if let Some(owner) = controller_of(meta).filter(|owner| owner.kind == "ReplicaSet") {
            keys.push((namespace.clone(), owner.name.clone()));
        }
    };
    if let Change::Applied { old: Some(old), .. } = change {
        add_owner(&old.metadata);
    }
    add_owner(&pod.metadata);
    if controller_of(&pod.metadata).is_none() && matches!(change, Change::Applied { .. }) {
        let matching = replica_sets.in_namespace(&namespace).into_iter().filter(|replica_set| {
            let selector = replica_set.spec.as_ref().and_then(|spec| selector_of(&spec.selector));
            selector.is_some_and(|selector| selector.matches(pod.labels()))
        });
        keys.extend(matching.map(|replica_set| key(replica_set.as_ref())));
    }
}

struct Controller {
    context: Context,
    events: EventRecorder,
}

/// Why pods could not be made or removed, as condition and event say it.
struct Failure {
    reason: &'static str,
    error: kube::Error,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(replica_set) = informers.replica_sets.store.named(&key.0, &key.1) else {
            return Ok(Next::Wait);
        };
        let selector = replica_set.spec.as_ref().and_then(|spec| selector_of(&spec.selector));
        let pods = informers.pods.store.in_namespace(&key.0);
        let plan = plan(&View {
            replica_set: &replica_set,
            selector: selector.as_ref(),
            pods: &pods,
            siblings: &self.siblings(&replica_set),
            now: self.context.clock.now(),
        });
        let failure = self.act(&replica_set, &plan).await.err();
        self.write_status(&replica_set, &plan, failure.as_ref()).await?;
        match failure {
            Some(failure) => Err(failure.error),
            None => Ok(Next::after(plan.recheck_after)),
        }
    }

    fn siblings(&self, replica_set: &ReplicaSet) -> BTreeSet<String> {
        let owner = controller_of(&replica_set.metadata).map(|owner| &owner.uid);
        let namespace = replica_set.namespace().unwrap_or_default();
        let mut siblings: BTreeSet<_> = replica_set.uid().into_iter().collect();
        if owner.is_some() {
            let all = self.context.informers.replica_sets.store.in_namespace(&namespace);
            siblings.extend(all.iter().filter_map(|other| {
                let is_sibling = controller_of(&other.metadata).map(|owner| &owner.uid) == owner;
                other.uid().filter(|_| is_sibling)
            }));
        }
        siblings
    }

    async fn act(&self, replica_set: &ReplicaSet, plan: &Plan) -> Result<(), Failure> {
        let pods: Api<Pod> = Api::namespaced(
            self.context.client.clone(),
            &replica_set.namespace().unwrap_or_default(),
        );
        let failed = |error| Failure { reason: "FailedAdopt", error };
        if !plan.adopt.is_empty() || !plan.release.is_empty() {
            self.claim(replica_set, plan, &pods).await.map_err(failed)?;
        }
        if plan.create > 0 {
            self.create(replica_set, plan.create, &pods).await?;
        }
        if !plan.delete.is_empty() {
            self.delete(replica_set, &plan.delete, &pods).await?;
        }
        Ok(())
    }

    /// Takes in pods that match and have no controller, lets go those that no longer match.
    async fn claim(
        &self,
        replica_set: &ReplicaSet,
        plan: &Plan,
        pods: &Api<Pod>,
    ) -> Result<(), kube::Error> {
        let uid = replica_set.uid().unwrap_or_default();
        let mut revision = 0;
        for pod in &plan.release {
            let owners = owners_without(&pod.metadata, &uid);
            revision = revision.max(patch_owners(pods, pod, &owners).await?);
        }
        if !plan.adopt.is_empty() && self.is_still_there(replica_set).await? {
            for pod in &plan.adopt {
                let mut owners = owners_without(&pod.metadata, &uid);
                owners.push(controller_reference(replica_set));
                revision = revision.max(patch_owners(pods, pod, &owners).await?);
            }
        }
        self.context.informers.pods.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }

    /// Asks the server, not the cache: a deleted owner must not adopt.
    async fn is_still_there(&self, replica_set: &ReplicaSet) -> Result<bool, kube::Error> {
        let api: Api<ReplicaSet> = Api::namespaced(
            self.context.client.clone(),
            &replica_set.namespace().unwrap_or_default(),
        );
        let fresh = api.get_opt(&replica_set.name_any()).await?;
        Ok(fresh
            .is_some_and(|fresh| fresh.uid() == replica_set.uid() && !is_deleting(&fresh.metadata)))
    }

    /// Creates pods in batches of 1, 2, 4 …, so that what must fail fails once, not 500 times.
    async fn create(
        &self,
        replica_set: &ReplicaSet,
        wanted: usize,
        pods: &Api<Pod>,
    ) -> Result<(), Failure> {
        let pod = pod_of(replica_set);
        let (mut left, mut batch, mut revision, mut failure) = (wanted, 1_usize, 0, None);
        while left > 0 && failure.is_none() {
            let now = batch.min(left);
            let params = PostParams::default();
            let creates = (0..now).map(|_| pods.create(&params, &pod));
            for outcome in join_all(creates).await {
                match outcome {
                    Ok(created) => {
                        revision = revision.max(revision_of(&created).unwrap_or(0));
                        self.tell(
                            replica_set,
                            EventType::Normal,
                            "SuccessfulCreate",
                            format!("Created pod: {}", created.name_any()),
                        );
                    }
                    Err(error) => failure = Some(error),
                }
            }
            left -= now;
            batch = (batch * 2).min(CREATES_AT_ONCE);
        }
        self.context.informers.pods.catch_up(revision, CATCH_UP_MAX).await;
        match failure {
            None => Ok(()),
            Some(error) => {
                let message = format!("Error creating: {}", words_of(&error));
                self.tell(replica_set, EventType::Warning, "FailedCreate", message);
                Err(Failure { reason: "FailedCreate", error })
            }
        }
    }

    async fn delete(
        &self,
        replica_set: &ReplicaSet,
        doomed: &[Arc<Pod>],
        pods: &Api<Pod>,
    ) -> Result<(), Failure> {
        let mut failure = None;
        for batch in doomed.chunks(DELETES_AT_ONCE) {
            let deletes = batch.iter().map(|pod| async move {
                let params = DeleteParams {
                    preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
                    ..DeleteParams::default()
                };
                (pod, pods.delete(&pod.name_any(), &params).await)
            });
            for (pod, outcome) in join_all(deletes).await {
                match outcome {
                    Ok(_) => self.tell(
                        replica_set,
                        EventType::Normal,
                        "SuccessfulDelete",
                        format!("Deleted pod: {}", pod.name_any()),
                    ),
                    Err(err) if is_not_found(&err) => {}
                    Err(error) => failure = Some(Failure { reason: "FailedDelete", error }),
                }
            }
            if failure.is_some() {
                break;
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
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

    /// Writes what the cache shows after the run's writes, if it differs from what is written.
    async fn write_status(
        &self,
        replica_set: &ReplicaSet,
        plan: &Plan,
        failure: Option<&Failure>,
    ) -> Result<(), kube::Error> {
        let namespace = replica_set.namespace().unwrap_or_default();
        let informers = &self.context.informers;
        let active = if plan.create == 0 && plan.delete.is_empty() {
            plan.active.clone()
        } else {
            let mut pods = informers.pods.store.in_namespace(&namespace);
            pods.retain(|pod| {
                crate::controllers::object::is_active(pod)
                    && is_controlled_by(&pod.metadata, replica_set)
            });
            pods
        };
        let failure = failure.map(|failure| (failure.reason, words_of(&failure.error)));
        let wanted = status(replica_set, &active, failure, self.context.clock.now());
        if replica_set.status.as_ref().is_some_and(|written| is_same(written, &wanted)) {
            return Ok(());
        }
        let api: Api<ReplicaSet> = Api::namespaced(self.context.client.clone(), &namespace);
        let patch = json!({
            "metadata": { "resourceVersion": replica_set.meta().resource_version },
            "status": wanted,
        });
        let name = replica_set.name_any();
        let written =
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        let revision = revision_of(&written).unwrap_or(0);
        informers.replica_sets.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }

    fn tell(
        &self,
        replica_set: &ReplicaSet,
        event_type: EventType,
        reason: &'static str,
        message: String,
    ) {
        let name = full_name(&replica_set.metadata);
        debug!(object.name = name, object.reason = reason, message, "replica set event");
        self.events.record(Regarding::of(replica_set), event_type, reason, message);
    }
}

/// Whether two statuses say the same, an absent count being zero.
fn is_same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let counts = |status: &ReplicaSetStatus| {
        [
            status.replicas,
            status.fully_labeled_replicas.unwrap_or(0),
            status.ready_replicas.unwrap_or(0),
            status.available_replicas.unwrap_or(0),
        ]
    };
    let conditions = |status: &ReplicaSetStatus| status.conditions.clone().unwrap_or_default();
    counts(a) == counts(b)
        && a.observed_generation == b.observed_generation
        && conditions(a) == conditions(b)
}

/// A pod of the replica set's template, to be named by the server.
fn pod_of(replica_set: &ReplicaSet) -> Pod {
    let template = replica_set.spec.as_ref().and_then(|spec| spec.template.clone());
    let template = template.unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", replica_set.name_any())),
            namespace: replica_set.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(replica_set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

async fn patch_owners(
    pods: &Api<Pod>,
    pod: &Pod,
    owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
) -> Result<u64, kube::Error> {
    let patch = json!({ "metadata": {
        "uid": pod.uid(),
        "resourceVersion": pod.resource_version(),
        "ownerReferences": owners,
    }});
    match pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(patched) => Ok(revision_of(&patched).unwrap_or(0)),
        Err(err) if is_not_found(&err) => Ok(0),
        Err(err) => Err(err),
    }
}

/// What the server said, without the client's wrapping.
fn words_of(err: &kube::Error) -> String {
    match err {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
