//! Keeps the status of disruption budgets: how many of the pods they select may be evicted now.
//!
//! Data in: budgets, pods, and how many pods the pods' owners want. Data out: the status of budgets,
//! which the eviction subresource counts down.
//!
//! # Invariants
//!
//! - Every status is written with the version that was read: an eviction that was granted meanwhile is
//!   never forgotten.
//! - While nobody can tell how many pods there should be, none may be evicted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::PostParams;
use kube::core::{Selector, SelectorExt as _};
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use crate::client::{
    Change, EventRecorder, EventType, Regarding, Store, is_not_found, revision_of,
};
use crate::controllers::disruption::plan::{View, needs_scale, plan};
use crate::controllers::object::{Key, controller_of, key};
use crate::controllers::queue::{Next, Queue, Workers};
use crate::controllers::{Context, dynamic};

mod plan;

/// Budgets reconciled at once.
const RUNS_MAX: usize = 8;
/// How long a run waits for the cache to show its writes.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// When to ask again for a scale that nobody could tell.
const SCALE_RETRY: Duration = Duration::from_secs(5);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    feed(&context, &queue);
    let workers =
        Workers { controller: "disruption", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

fn feed(context: &Context, queue: &Queue<Key>) {
    let informers = &context.informers;
    informers.pod_disruption_budgets.subscribe(queue.feed(
        |change: &Change<'_, PodDisruptionBudget>, keys| keys.push(key(change.object().as_ref())),
    ));
    let budgets = informers.pod_disruption_budgets.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        let pod = change.object();
        add_matching(&budgets, pod, keys);
        if let Change::Applied { old: Some(old), .. } = change
            && old.metadata.labels != pod.metadata.labels
        {
            add_matching(&budgets, old, keys);
        }
    }));
    let budgets = informers.pod_disruption_budgets.store.clone();
    informers.deployments.subscribe(queue.feed(move |change: &Change<'_, Deployment>, keys| {
        let replicas = |one: &Deployment| one.spec.as_ref().and_then(|spec| spec.replicas);
        if let Change::Applied { old: Some(old), new } = change
            && replicas(old) != replicas(new)
        {
            add_all(&budgets, &new.namespace().unwrap_or_default(), keys);
        }
    }));
    let budgets = informers.pod_disruption_budgets.store.clone();
    informers.replica_sets.subscribe(queue.feed(move |change: &Change<'_, ReplicaSet>, keys| {
        let replicas = |one: &ReplicaSet| one.spec.as_ref().and_then(|spec| spec.replicas);
        if let Change::Applied { old: Some(old), new } = change
            && replicas(old) != replicas(new)
        {
            add_all(&budgets, &new.namespace().unwrap_or_default(), keys);
        }
    }));
}

/// The budgets that select `pod`.
fn add_matching(budgets: &Store<PodDisruptionBudget>, pod: &Pod, keys: &mut Vec<Key>) {
    if budgets.is_empty() {
        return;
    }
    let all = budgets.in_namespace(&pod.namespace().unwrap_or_default());
    let matching = all.iter().filter(|budget| {
        selector_of(budget).is_some_and(|selector| selector.matches(pod.labels()))
    });
    keys.extend(matching.map(|budget| key(budget.as_ref())));
}

fn add_all(budgets: &Store<PodDisruptionBudget>, namespace: &str, keys: &mut Vec<Key>) {
    keys.extend(budgets.in_namespace(namespace).iter().map(|budget| key(budget.as_ref())));
}

/// What the budget selects; an absent selector selects nothing, an empty one everything.
fn selector_of(budget: &PodDisruptionBudget) -> Option<Selector> {
    Selector::try_from(budget.spec.as_ref()?.selector.clone()?).ok()
}

struct Controller {
    context: Context,
    events: EventRecorder,
}

impl Controller {
    async fn reconcile(&self, (namespace, name): Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(budget) = informers.pod_disruption_budgets.store.named(&namespace, &name) else {
            return Ok(Next::Wait);
        };
        let mut pods = informers.pods.store.in_namespace(&namespace);
        match selector_of(&budget) {
            Some(selector) => pods.retain(|pod| selector.matches(pod.labels())),
            None => pods.clear(),
        }
        let scale = if needs_scale(&budget) { self.scale_of(&pods).await? } else { Ok(0) };
        let view = View {
            budget: &budget,
            pods: &pods,
            scale: scale.as_ref().map(|scale| *scale).map_err(String::as_str),
            now: self.context.clock.now(),
        };
        let outcome = plan(&view);
        self.tell(&budget, &pods, scale.as_ref().err(), &outcome.not_deleted);
        let retry = scale.is_err().then_some(SCALE_RETRY);
        let next = Next::after(outcome.recheck_after.into_iter().chain(retry).min());
        if budget.status.as_ref() == Some(&outcome.status) {
            return Ok(next);
        }
        let mut written = budget.as_ref().clone();
        written.status = Some(outcome.status);
        let api: Api<PodDisruptionBudget> =
            Api::namespaced(self.context.client.clone(), &namespace);
        match api.replace_status(&name, &PostParams::default(), &written).await {
            Ok(written) => {
                let revision = revision_of(&written).unwrap_or(0);
                informers.pod_disruption_budgets.catch_up(revision, CATCH_UP_MAX).await;
                Ok(next)
            }
            Err(err) if is_not_found(&err) => Ok(Next::Wait),
            Err(err) => Err(err),
        }
    }

    /// How many pods the owners of `pods` want together; the inner error says whose number cannot be
    /// told.
    async fn scale_of(&self, pods: &[Arc<Pod>]) -> Result<Result<i32, String>, kube::Error> {
        // By uid: owners are counted once.
        let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else { continue };
            if wanted.contains_key(&owner.uid) {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            let of_owner =
                self.replicas(&namespace, &owner.api_version, &owner.kind, &owner.name).await?;
            let Some(scale) = of_owner else {
                return Ok(Err(format!("found no controllers for pod {:?}", pod.name_any())));
            };
            wanted.insert(owner.uid.clone(), scale.1);
            // Replica sets of one deployment are one owner, at the deployment's number.
            if let Some(uid) = scale.0 {
                wanted.insert(owner.uid.clone(), 0);
                wanted.insert(uid, scale.1);
            }
        }
        Ok(Ok(wanted.into_values().fold(0, i32::saturating_add)))
    }

    /// The number of pods an owner wants, and the uid of the owner's own controller if the number is
    /// that one's; `None` when it has no number.
    async fn replicas(
        &self,
        namespace: &str,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<Option<(Option<String>, i32)>, kube::Error> {
        let informers = &self.context.informers;
        if kind == "ReplicaSet" && api_version == "apps/v1" {
            let Some(set) = informers.replica_sets.store.named(namespace, name) else {
                return Ok(None);
            };
            let above = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment");
            if let Some(above) = above
                && let Some(deployment) = informers.deployments.store.named(namespace, &above.name)
            {
                let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
                return Ok(Some((Some(above.uid.clone()), replicas.unwrap_or(1))));
            }
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
            return Ok(Some((None, replicas.unwrap_or(1))));
        }
        let Some(resource) = dynamic::find(api_version, kind).filter(|resource| resource.has_scale)
        else {
            return Ok(None);
        };
        let api = dynamic::api(&self.context.client, resource, namespace);
        match api.get_scale(name).await {
            Ok(scale) => {
                let replicas = scale.spec.and_then(|spec| spec.replicas);
                Ok(Some((None, replicas.unwrap_or(0))))
            }
            Err(err) if is_not_found(&err) => Ok(None),
            Err(err) => Err(err),
        }
    }

    fn tell(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        failure: Option<&String>,
        not_deleted: &[Arc<Pod>],
    ) {
        let regarding = || Regarding::of(budget);
        let observed = budget.status.as_ref().and_then(|status| status.observed_generation);
        if pods.is_empty() && observed < budget.metadata.generation {
            let message = "No matching pods found";
            self.events.record(regarding(), EventType::Normal, "NoPods", message);
        }
        if let Some(failure) = failure {
            let message = format!("Failed to calculate the number of expected pods: {failure}");
            let reason = "CalculateExpectedPodCountFailed";
            self.events.record(regarding(), EventType::Warning, reason, message);
        }
        for pod in not_deleted {
            let place = crate::controllers::object::full_name(&budget.metadata);
            let message = format!("Pod was expected by PDB {place} to be deleted but it wasn't");
            let about = Regarding::of(pod.as_ref());
            self.events.record(about, EventType::Warning, "NotDeleted", message);
        }
    }
}
