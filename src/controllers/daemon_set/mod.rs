//! Gives each node that is fit for it one pod of each daemon set.
//!
//! Data in: daemon sets, nodes, pods and revisions. Data out: pods that the scheduler binds to the node
//! each is meant for, revisions, and the status of daemon sets.
//!
//! # Invariants
//!
//! - A node has one pod of a set, or an old one and a new one while an update surges.
//! - An update leaves no more nodes without a pod that serves than it may.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::core::Selector;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Change, EventRecorder, EventType};
use crate::controllers::Context;
use crate::controllers::daemon_set::backoff::Pauses;
use crate::controllers::daemon_set::nodes::target;
use crate::controllers::daemon_set::plan::{Plan, View, Why, plan};
use crate::controllers::object::{Key, full_name, key, selector_of};
use crate::controllers::owned::{CATCH_UP_MAX, Failure, PLAIN_WORDS, PodsOf};
use crate::controllers::owner_keys::{adopter_keys, keys_of_pod_change, owner_key};
use crate::controllers::queue::{Next, Queue, Workers};
use crate::controllers::revisions::{self, Written};

mod backoff;
mod nodes;
mod plan;
#[cfg(test)]
mod plan_test;

/// Daemon sets reconciled at once.
const RUNS_MAX: usize = 8;

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.daemon_sets.subscribe(queue.feed(|change: &Change<'_, DaemonSet>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    let sets = informers.daemon_sets.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        keys.extend(keys_of_pod_change(&sets, change, selector));
    }));
    let sets = informers.daemon_sets.store.clone();
    let feed = queue.feed(move |change: &Change<'_, ControllerRevision>, keys| {
        let meta = &change.object().metadata;
        keys.extend(owner_key::<DaemonSet>(meta));
        keys.extend(adopter_keys(&sets, meta, selector));
    });
    informers.controller_revisions.subscribe(feed);
    let sets = informers.daemon_sets.store.clone();
    informers.nodes.subscribe(queue.feed(move |change: &Change<'_, Node>, keys| {
        if matters(change) {
            keys.extend(sets.state().iter().map(|set| key(set.as_ref())));
        }
    }));
    let workers =
        Workers { controller: "daemon-set", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events, pauses: Mutex::default() };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

/// Whether a change of a node may change who is fit: heartbeats and figures do not.
fn matters(change: &Change<'_, Node>) -> bool {
    let Change::Applied { old: Some(old), new } = change else { return true };
    let taints = |node: &Node| {
        let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        taints.map(|t| (t.key.clone(), t.value.clone(), t.effect.clone())).collect::<Vec<_>>()
    };
    old.labels() != new.labels() || taints(old) != taints(new)
}

fn selector(set: &DaemonSet) -> Option<Selector> {
    selector_of(&set.spec.as_ref()?.selector)
}

struct Controller {
    context: Context,
    events: EventRecorder,
    pauses: Mutex<Pauses>,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(set) = informers.daemon_sets.store.named(&key.0, &key.1) else {
            return Ok(Next::Wait);
        };
        let selector = selector(&set);
        let backing_off = self.pauses.lock().left(&set, Instant::now());
        let plan = plan(&View {
            set: &set,
            selector: selector.as_ref(),
            pods: &informers.pods.store.in_namespace(&key.0),
            revisions: &informers.controller_revisions.store.in_namespace(&key.0),
            nodes: &informers.nodes.store.state(),
            backing_off: &backing_off,
            now: self.context.clock.now(),
        });
        let (context, events) = (&self.context, &self.events);
        let hand = PodsOf { context, events, owner: set.as_ref(), words: PLAIN_WORDS };
        self.act(&hand, plan).await
    }

    async fn act(&self, hand: &PodsOf<'_, DaemonSet>, plan: Plan) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let revision = hand.claim(&plan.pods.adopt, &plan.pods.release).await?;
        informers.pods.catch_up(revision, CATCH_UP_MAX).await;
        let revision = hand.claim(&plan.revisions.adopt, &plan.revisions.release).await?;
        informers.controller_revisions.catch_up(revision, CATCH_UP_MAX).await;
        let mut status = plan.status.clone();
        if let Some(write) = &plan.revision {
            match revisions::write(&hand.api(), hand.owner, write).await? {
                Written::At(revision) => {
                    informers.controller_revisions.catch_up(revision, CATCH_UP_MAX).await;
                }
                Written::NameTaken => {
                    let collisions = status.collision_count.unwrap_or(0).saturating_add(1);
                    status.collision_count = Some(collisions);
                    let revision = hand.write_status(&status).await?;
                    informers.daemon_sets.catch_up(revision, CATCH_UP_MAX).await;
                    return Ok(Next::After(std::time::Duration::ZERO));
                }
            }
        }
        let was = hand.owner.status.as_ref();
        if !was.is_some_and(|was| is_same(was, &status)) {
            let revision = hand.write_status(&status).await?;
            informers.daemon_sets.catch_up(revision, CATCH_UP_MAX).await;
        }
        let failure = self.change(hand, &plan).await.err();
        revisions::forget(&hand.api(), &plan.forget).await?;
        match failure {
            Some(failure) => Err(failure.error),
            None => Ok(Next::after(plan.recheck_after)),
        }
    }

    async fn change(&self, hand: &PodsOf<'_, DaemonSet>, plan: &Plan) -> Result<(), Failure> {
        self.pauses.lock().note(hand.owner, &plan.delete, Instant::now());
        for (pod, why) in &plan.delete {
            let (reason, word) = match why {
                Why::Failed => ("FailedDaemonPod", "failed"),
                Why::Succeeded => ("SucceededDaemonPod", "succeeded"),
                Why::Surplus | Why::Outdated => continue,
            };
            let (name, node) = (full_name(&pod.metadata), target(pod).unwrap_or_default());
            let message =
                format!("Found {word} daemon pod {name} on node {node}, will try to kill it");
            hand.tell(EventType::Warning, reason, message);
        }
        let doomed: Vec<Arc<Pod>> = plan.delete.iter().map(|(pod, _)| Arc::clone(pod)).collect();
        if !doomed.is_empty() {
            hand.delete(&doomed).await?;
        }
        if plan.create.is_empty() { Ok(()) } else { hand.create(&plan.create).await }
    }
}

/// Whether two statuses say the same, an absent count being zero.
fn is_same(a: &DaemonSetStatus, b: &DaemonSetStatus) -> bool {
    let of = |status: &DaemonSetStatus| {
        (
            [
                Some(status.desired_number_scheduled),
                Some(status.current_number_scheduled),
                Some(status.number_misscheduled),
                Some(status.number_ready),
                status.updated_number_scheduled,
                status.number_available,
                status.number_unavailable,
            ]
            .map(|count| count.unwrap_or(0)),
            status.observed_generation,
        )
    };
    of(a) == of(b)
}
