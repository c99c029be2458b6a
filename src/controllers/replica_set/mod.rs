//! Keeps as many pods as each replica set, or replication controller, wants: creates, deletes, adopts,
//! lets go, counts.
//!
//! Data in: replica sets, replication controllers and pods. Data out: pods, and the status of their
//! owners. A replication controller is worked on as the replica set that says the same.
//!
//! # Invariants
//!
//! - A run starts only once the cache shows the writes of the run before: nothing is made twice.
//! - Pods controlled by something else are never touched.

use std::collections::BTreeSet;
use std::marker::PhantomData;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::core::Selector;
use tokio_util::sync::CancellationToken;

use crate::client::{Change, EventRecorder};
use crate::controllers::Context;
use crate::controllers::object::{Key, is_active, is_controlled_by, key, selector_of};
use crate::controllers::owned::{CATCH_UP_MAX, Failure, PLAIN_WORDS, PodsOf, pod_of};
use crate::controllers::owner_keys::keys_of_pod_change;
use crate::controllers::queue::{Next, Queue, Workers};
use crate::controllers::replica_set::kinds::siblings;
use crate::controllers::replica_set::plan::{Plan, View, plan, status};

mod kinds;
mod plan;
#[cfg(test)]
mod plan_test;
mod rank;

pub(super) use kinds::Replicated;

/// Owners reconciled at once.
const RUNS_MAX: usize = 16;

/// Runs the controller of kind `K` until `cancel`.
pub(super) async fn run<K: Replicated>(
    context: Context,
    events: EventRecorder,
    cancel: CancellationToken,
) {
    let queue = Queue::new();
    let owners = K::informer(&context.informers);
    owners.subscribe(queue.feed(|change: &Change<'_, K>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    let known = owners.store.clone();
    context.informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        keys.extend(keys_of_pod_change(&known, change, selector));
    }));
    let workers =
        Workers { controller: K::CONTROLLER, runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller::<K> { context, events, kind: PhantomData };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

fn selector<K: Replicated>(owner: &K) -> Option<Selector> {
    selector_of(&owner.as_replica_set().spec.as_ref()?.selector)
}

struct Controller<K> {
    context: Context,
    events: EventRecorder,
    kind: PhantomData<fn() -> K>,
}

impl<K: Replicated> Controller<K> {
    async fn reconcile(&self, key: Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(owner) = K::informer(informers).store.named(&key.0, &key.1) else {
            return Ok(Next::Wait);
        };
        let replica_set = owner.as_replica_set();
        let selector = selector(owner.as_ref());
        let pods = informers.pods.store.in_namespace(&key.0);
        let plan = plan(&View {
            replica_set: &replica_set,
            selector: selector.as_ref(),
            pods: &pods,
            siblings: &self.siblings(owner.as_ref()),
            now: self.context.clock.now(),
        });
        let (context, events) = (&self.context, &self.events);
        let hand = PodsOf { context, events, owner: owner.as_ref(), words: PLAIN_WORDS };
        let failure = act(&hand, &replica_set, &plan).await.err();
        self.write_status(&hand, &replica_set, &plan, failure.as_ref()).await?;
        match failure {
            Some(failure) => Err(failure.error),
            None => Ok(Next::after(plan.recheck_after)),
        }
    }

    fn siblings(&self, owner: &K) -> BTreeSet<String> {
        let namespace = owner.namespace().unwrap_or_default();
        siblings(owner, &K::informer(&self.context.informers).store.in_namespace(&namespace))
    }

    /// Writes what the cache shows after the run's writes, if it differs from what is written.
    async fn write_status(
        &self,
        hand: &PodsOf<'_, K>,
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
            pods.retain(|pod| is_active(pod) && is_controlled_by(&pod.metadata, replica_set));
            pods
        };
        let failure = failure.map(|failure| (failure.reason, failure.words()));
        let wanted = status(replica_set, &active, failure, self.context.clock.now());
        if replica_set.status.as_ref().is_some_and(|written| is_same(written, &wanted)) {
            return Ok(());
        }
        let revision = hand.write_status(&wanted).await?;
        K::informer(informers).catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }
}

async fn act<K: Replicated>(
    hand: &PodsOf<'_, K>,
    replica_set: &ReplicaSet,
    plan: &Plan,
) -> Result<(), Failure> {
    if !plan.adopt.is_empty() || !plan.release.is_empty() {
        let claimed = hand.claim(&plan.adopt, &plan.release).await;
        let revision = claimed.map_err(|error| Failure { reason: "FailedAdopt", error })?;
        hand.context.informers.pods.catch_up(revision, CATCH_UP_MAX).await;
    }
    if plan.create > 0 {
        let template = replica_set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        let mut pod = pod_of(hand.owner, template.unwrap_or(&Default::default()));
        pod.metadata.generate_name = Some(format!("{}-", replica_set.name_any()));
        hand.create(&vec![pod; plan.create]).await?;
    }
    if !plan.delete.is_empty() {
        hand.delete(&plan.delete).await?;
    }
    Ok(())
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
