//! Rolls a deployment's template out through replica sets.
//!
//! Data in: deployments, their replica sets, and for `Recreate` the pods. Data out: replica sets,
//! the revision annotation and the status of deployments.
//!
//! # Invariants
//!
//! - Never more than `replicas + maxSurge` pods are asked for, never fewer than
//!   `replicas - maxUnavailable` available ones are left by a step.
//! - A template has one replica set; going back to a template goes back to its replica set.
//! - No pod is taken away by a status that is older than its replica set's spec.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Selector;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::{
    Change, EventRecorder, EventType, Regarding, Store, is_already_exists, is_not_found,
    revision_of,
};
use crate::controllers::Context;
use crate::controllers::deployment::plan::{Edit, Plan, Rollback, View, plan, wanted};
use crate::controllers::deployment::template::is_same;
use crate::controllers::object::{Key, controller_of, is_controlled_by, key, selector_of};
use crate::controllers::owned::{PLAIN_WORDS, PodsOf, words_of};
use crate::controllers::owner_keys::{adopter_keys, owner_key};
use crate::controllers::queue::{Next, Queue, Workers};

mod plan;
#[cfg(test)]
mod plan_test;
#[cfg(test)]
mod random_test;
mod rollout;
#[cfg(test)]
mod rollout_test;
mod status;
pub(super) mod template;

/// Deployments reconciled at once.
const RUNS_MAX: usize = 8;
/// How long a run waits for the cache to show its writes.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.deployments.subscribe(queue.feed(|change: &Change<'_, Deployment>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    let deployments = informers.deployments.store.clone();
    informers.replica_sets.subscribe(queue.feed(move |change: &Change<'_, ReplicaSet>, keys| {
        keys_of_replica_set(&deployments, change.object(), keys);
        if let Change::Applied { old: Some(old), .. } = change {
            keys_of_replica_set(&deployments, old, keys);
        }
    }));
    // `Recreate` waits for the last old pod to be gone.
    let replica_sets = informers.replica_sets.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        let Change::Removed(pod) = change else { return };
        let namespace = pod.namespace().unwrap_or_default();
        let owner = controller_of(&pod.metadata)
            .filter(|owner| owner.kind == "ReplicaSet")
            .and_then(|owner| replica_sets.named(&namespace, &owner.name));
        if let Some(owner) = owner.as_ref().and_then(|owner| controller_of(&owner.metadata)) {
            keys.push((namespace, owner.name.clone()));
        }
    }));
    let workers =
        Workers { controller: "deployment", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

fn selector(deployment: &Deployment) -> Option<Selector> {
    selector_of(&deployment.spec.as_ref()?.selector)
}

/// The deployments a replica set concerns: its controller, or all that match an orphan.
fn keys_of_replica_set(
    deployments: &Store<Deployment>,
    replica_set: &ReplicaSet,
    keys: &mut Vec<Key>,
) {
    keys.extend(owner_key::<Deployment>(&replica_set.metadata));
    keys.extend(adopter_keys(deployments, &replica_set.metadata, selector));
}

struct Controller {
    context: Context,
    events: EventRecorder,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(deployment) = informers.deployments.store.named(&key.0, &key.1) else {
            return Ok(Next::Wait);
        };
        let selector = selector(&deployment);
        let plan = plan(&View {
            deployment: &deployment,
            selector: selector.as_ref(),
            replica_sets: &informers.replica_sets.store.in_namespace(&key.0),
            pods: &informers.pods.store.in_namespace(&key.0),
            now: self.context.clock.now(),
        });
        let act = Act {
            context: &self.context,
            events: &self.events,
            sets: Api::namespaced(self.context.client.clone(), &key.0),
            deployments: Api::namespaced(self.context.client.clone(), &key.0),
            deployment: &deployment,
        };
        act.run(plan).await
    }
}

/// One run's writes.
struct Act<'a> {
    context: &'a Context,
    events: &'a EventRecorder,
    sets: Api<ReplicaSet>,
    deployments: Api<Deployment>,
    deployment: &'a Arc<Deployment>,
}

impl Act<'_> {
    async fn run(&self, plan: Plan) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let hand = PodsOf {
            context: self.context,
            events: self.events,
            owner: self.deployment.as_ref(),
            words: PLAIN_WORDS,
        };
        let mut revision = hand.claim(&plan.adopt, &plan.release).await?;
        if let Some(set) = &plan.create {
            revision = revision.max(self.create(set).await?);
        }
        for edit in &plan.edits {
            revision = revision.max(self.edit(edit).await?);
        }
        for set in &plan.delete {
            self.delete(set).await?;
        }
        informers.replica_sets.catch_up(revision, CATCH_UP_MAX).await;
        let revision = self.write_deployment(&plan).await?;
        informers.deployments.catch_up(revision, CATCH_UP_MAX).await;
        if let Some(rollback) = &plan.rollback {
            let revision = self.take_back(rollback).await?;
            informers.deployments.catch_up(revision, CATCH_UP_MAX).await;
        }
        Ok(Next::after(plan.recheck_after))
    }

    /// Gives the deployment the template of an earlier revision, unless somebody has changed its spec
    /// meanwhile.
    async fn take_back(&self, rollback: &Rollback) -> Result<u64, kube::Error> {
        let name = self.deployment.name_any();
        let mut fresh = self.deployments.get(&name).await?;
        let is_same = fresh.uid() == self.deployment.uid()
            && fresh.metadata.generation == self.deployment.metadata.generation;
        let Some(spec) = fresh.spec.as_mut().filter(|_| is_same) else { return Ok(0) };
        spec.template = rollback.template.clone();
        let written = self.deployments.replace(&name, &PostParams::default(), &fresh).await?;
        let message = format!("Rolled back deployment \"{name}\" to revision {}", rollback.to);
        let regarding = Regarding::of(self.deployment.as_ref());
        self.events.record(regarding, EventType::Warning, "DeploymentRollback", message);
        Ok(revision_of(&written).unwrap_or(0))
    }

    /// Says in the status why there is no new replica set.
    async fn report_not_created(&self, why: &str) -> Result<(), kube::Error> {
        let was = self.deployment.status.clone().unwrap_or_default();
        let status = status::not_created(&was, why, self.context.clock.now());
        if is_same_status(&was, &status) {
            return Ok(());
        }
        let status = serde_json::to_value(&status).map_err(kube::Error::SerdeError)?;
        let revision = self.patch_status(self.deployment.resource_version(), status).await?;
        self.context.informers.deployments.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }

    async fn create(&self, set: &ReplicaSet) -> Result<u64, kube::Error> {
        match self.sets.create(&PostParams::default(), set).await {
            Ok(created) => {
                let (name, replicas) = (created.name_any(), wanted(&created));
                let deployment = self.deployment.name_any();
                debug!(deployment, replica_set = name, replicas, "replica set created");
                if replicas > 0 {
                    self.tell(format!("Scaled up replica set {name} from 0 to {replicas}"));
                }
                Ok(revision_of(&created).unwrap_or(0))
            }
            Err(err) if is_already_exists(&err) => {
                self.resolve_collision(set).await?;
                Err(err)
            }
            Err(err) => {
                self.events.record(
                    Regarding::of(self.deployment.as_ref()),
                    EventType::Warning,
                    "ReplicaSetCreateError",
                    format!("Failed to create new replica set {}: {err}", set.name_any()),
                );
                self.report_not_created(&words_of(&err)).await?;
                Err(err)
            }
        }
    }

    /// The name is taken. By our own replica set: the cache was late. By another template's: count
    /// the collision, which changes the hash of the next try.
    async fn resolve_collision(&self, set: &ReplicaSet) -> Result<(), kube::Error> {
        let Some(found) = self.sets.get_opt(&set.name_any()).await? else {
            return Ok(());
        };
        let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone());
        let is_ours = is_controlled_by(&found.metadata, self.deployment.as_ref())
            && template(&found)
                .zip(template(set))
                .is_some_and(|(found, wanted)| is_same(&found, &wanted));
        if is_ours {
            return Ok(());
        }
        let status = self.deployment.status.as_ref();
        let collisions = status.and_then(|status| status.collision_count).unwrap_or(0);
        let status = json!({ "collisionCount": collisions.saturating_add(1) });
        let revision = self.patch_status(self.deployment.resource_version(), status).await?;
        self.context.informers.deployments.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }

    async fn edit(&self, edit: &Edit) -> Result<u64, kube::Error> {
        let mut spec = serde_json::Map::new();
        if let Some(replicas) = edit.replicas {
            spec.insert("replicas".to_owned(), replicas.into());
        }
        if let Some(seconds) = edit.min_ready_seconds {
            spec.insert("minReadySeconds".to_owned(), seconds.into());
        }
        let metadata = json!({ "annotations": edit.annotations });
        let revision = self.patch_set(&edit.of, metadata, Value::Object(spec)).await?;
        if let Some(replicas) = edit.replicas {
            let (name, from) = (edit.of.name_any(), wanted(&edit.of));
            let direction = if replicas > from { "up" } else { "down" };
            let deployment = self.deployment.name_any();
            debug!(deployment, replica_set = name, from, replicas, "replica set scaled");
            self.tell(format!("Scaled {direction} replica set {name} from {from} to {replicas}"));
        }
        Ok(revision)
    }

    async fn delete(&self, set: &ReplicaSet) -> Result<(), kube::Error> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: set.uid(),
                resource_version: set.resource_version(),
            }),
            ..DeleteParams::background()
        };
        match self.sets.delete(&set.name_any(), &params).await {
            Err(err) if !is_not_found(&err) => Err(err),
            _ => Ok(()),
        }
    }

    async fn patch_set(
        &self,
        set: &ReplicaSet,
        mut metadata: Value,
        spec: Value,
    ) -> Result<u64, kube::Error> {
        let identity = json!({ "uid": set.uid(), "resourceVersion": set.resource_version() });
        json_patch::merge(&mut metadata, &identity);
        let mut patch = json!({ "metadata": metadata });
        if let (Some(patch), Value::Object(spec)) = (patch.as_object_mut(), spec) {
            patch.insert("spec".to_owned(), spec.into());
        }
        let params = PatchParams::default();
        let patched = self.sets.patch(&set.name_any(), &params, &Patch::Merge(patch)).await?;
        Ok(revision_of(&patched).unwrap_or(0))
    }

    /// Writes the revision annotation, then the status, where they differ from what is written.
    async fn write_deployment(&self, plan: &Plan) -> Result<u64, kube::Error> {
        let mut version = self.deployment.resource_version();
        let mut revision = 0;
        if let Some(number) = &plan.revision {
            let patch = json!({ "metadata": {
                "resourceVersion": version,
                "annotations": { template::REVISION: number },
            }});
            let name = self.deployment.name_any();
            let params = PatchParams::default();
            let patched = self.deployments.patch(&name, &params, &Patch::Merge(patch)).await?;
            revision = revision_of(&patched).unwrap_or(0);
            version = patched.resource_version();
        }
        let written = self.deployment.status.clone().unwrap_or_default();
        if !is_same_status(&written, &plan.status) {
            let status = serde_json::to_value(&plan.status).map_err(kube::Error::SerdeError)?;
            revision = self.patch_status(version, status).await?;
        }
        Ok(revision)
    }

    async fn patch_status(
        &self,
        version: Option<String>,
        status: Value,
    ) -> Result<u64, kube::Error> {
        let patch = json!({ "metadata": { "resourceVersion": version }, "status": status });
        let name = self.deployment.name_any();
        let params = PatchParams::default();
        let patched = self.deployments.patch_status(&name, &params, &Patch::Merge(patch)).await?;
        Ok(revision_of(&patched).unwrap_or(0))
    }

    fn tell(&self, message: String) {
        let regarding = Regarding::of(self.deployment.as_ref());
        self.events.record(regarding, EventType::Normal, "ScalingReplicaSet", message);
    }
}

/// Whether two statuses say the same, an absent count being zero.
fn is_same_status(
    a: &k8s_openapi::api::apps::v1::DeploymentStatus,
    b: &k8s_openapi::api::apps::v1::DeploymentStatus,
) -> bool {
    let counts = |status: &k8s_openapi::api::apps::v1::DeploymentStatus| {
        [
            status.replicas,
            status.updated_replicas,
            status.ready_replicas,
            status.available_replicas,
            status.unavailable_replicas,
        ]
        .map(|count| count.unwrap_or(0))
    };
    counts(a) == counts(b)
        && a.observed_generation == b.observed_generation
        && a.conditions.clone().unwrap_or_default() == b.conditions.clone().unwrap_or_default()
}
