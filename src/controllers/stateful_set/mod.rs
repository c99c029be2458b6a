//! Gives each stateful set its pods: each with a name, a place in an order, and storage of its own.
//!
//! Data in: stateful sets, their pods, claims and revisions. Data out: pods, claims, revisions, and
//! the status of stateful sets.
//!
//! # Invariants
//!
//! - A pod is made only when the API holds none of its name: an ordinal never has two.
//! - In an ordered set one pod changes at a time, and only while those before it serve.
//! - A claim outlives its pod unless the retention policy says otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Selector;
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::client::{
    Change, EventRecorder, EventType, is_already_exists, is_not_found, revision_of,
};
use crate::controllers::Context;
use crate::controllers::object::{Key, key, selector_of};
use crate::controllers::owned::{CATCH_UP_MAX, Failure, PodsOf, Words, patch_owners, words_of};
use crate::controllers::owner_keys::{adopter_keys, keys_of_pod_change, owner_key};
use crate::controllers::queue::{Next, Queue, Workers};
use crate::controllers::revisions::{self, Written};
use crate::controllers::stateful_set::plan::{Birth, Plan, View, Why, plan};
use crate::controllers::stateful_set::status::is_same;

mod identity;
mod plan;
#[cfg(test)]
mod plan_test;
#[cfg(test)]
mod random_test;
mod status;
#[cfg(test)]
mod world_test;

/// Stateful sets reconciled at once.
const RUNS_MAX: usize = 8;

const WORDS: Words = Words {
    created: |pod, set| format!("create Pod {pod} in StatefulSet {set} successful"),
    deleted: |pod, set| format!("delete Pod {pod} in StatefulSet {set} successful"),
    not_created: |pod, set, why| {
        format!("create Pod {pod} in StatefulSet {set} failed error: {why}")
    },
};

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.stateful_sets.subscribe(queue.feed(|change: &Change<'_, StatefulSet>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    let sets = informers.stateful_sets.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        keys.extend(keys_of_pod_change(&sets, change, selector));
    }));
    let sets = informers.stateful_sets.store.clone();
    let feed = queue.feed(move |change: &Change<'_, ControllerRevision>, keys| {
        let meta = &change.object().metadata;
        keys.extend(owner_key::<StatefulSet>(meta));
        keys.extend(adopter_keys(&sets, meta, selector));
    });
    informers.controller_revisions.subscribe(feed);
    // A claim that is gone lets a pod come back; one that changed hands is put right.
    let sets = informers.stateful_sets.store.clone();
    let feed = queue.feed(move |change: &Change<'_, PersistentVolumeClaim>, keys| {
        let claim = change.object();
        let namespace = claim.namespace().unwrap_or_default();
        let is_one_of = |set: &Arc<StatefulSet>| is_claim_of(set, &claim.name_any());
        keys.extend(
            sets.in_namespace(&namespace).iter().filter(|set| is_one_of(set)).map(|s| key(&**s)),
        );
    });
    informers.claims.subscribe(feed);
    let workers =
        Workers { controller: "stateful-set", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

fn selector(set: &StatefulSet) -> Option<Selector> {
    selector_of(&set.spec.as_ref()?.selector)
}

fn is_claim_of(set: &StatefulSet, claim: &str) -> bool {
    let templates = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    templates.into_iter().any(|template| {
        let rest = claim.strip_prefix(&template.name_any());
        let pod = rest.and_then(|rest| rest.strip_prefix('-'));
        pod.is_some_and(|pod| identity::ordinal_of(set, pod).is_some())
    })
}

struct Controller {
    context: Context,
    events: EventRecorder,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(set) = informers.stateful_sets.store.named(&key.0, &key.1) else {
            return Ok(Next::Wait);
        };
        let selector = selector(&set);
        let plan = plan(&View {
            set: &set,
            selector: selector.as_ref(),
            pods: &informers.pods.store.in_namespace(&key.0),
            revisions: &informers.controller_revisions.store.in_namespace(&key.0),
            claims: &informers.claims.store.in_namespace(&key.0),
            now: self.context.clock.now(),
        });
        let (context, events) = (&self.context, &self.events);
        let hand = PodsOf { context, events, owner: set.as_ref(), words: WORDS };
        Act { hand }.run(plan).await
    }
}

/// One run's writes.
struct Act<'a> {
    hand: PodsOf<'a, StatefulSet>,
}

impl Act<'_> {
    async fn run(&self, plan: Plan) -> Result<Next, kube::Error> {
        let informers = &self.hand.context.informers;
        let revision = self.hand.claim(&plan.pods.adopt, &plan.pods.release).await?;
        informers.pods.catch_up(revision, CATCH_UP_MAX).await;
        let revision = self.hand.claim(&plan.revisions.adopt, &plan.revisions.release).await?;
        informers.controller_revisions.catch_up(revision, CATCH_UP_MAX).await;
        let mut status = plan.status.clone();
        let failure = match self.number(&plan).await? {
            Written::NameTaken => {
                let collisions = status.collision_count.unwrap_or(0).saturating_add(1);
                status.collision_count = Some(collisions);
                self.write_status(&status, true).await?;
                return Ok(Next::After(std::time::Duration::ZERO));
            }
            // Whoever waits for a rollout sees the revision before the pods move.
            Written::At(_) => {
                self.write_status(&status, false).await?;
                self.change(&plan).await.err()
            }
        };
        revisions::forget(&self.hand.api(), &plan.forget).await?;
        match failure {
            Some(failure) => Err(failure.error),
            None => Ok(Next::after(plan.recheck_after)),
        }
    }

    async fn number(&self, plan: &Plan) -> Result<Written, kube::Error> {
        let Some(write) = &plan.revision else { return Ok(Written::At(0)) };
        let api: Api<ControllerRevision> = self.hand.api();
        let written = revisions::write(&api, self.hand.owner, write).await?;
        if let Written::At(revision) = written {
            let informer = &self.hand.context.informers.controller_revisions;
            informer.catch_up(revision, CATCH_UP_MAX).await;
        }
        Ok(written)
    }

    /// Pods and their claims.
    async fn change(&self, plan: &Plan) -> Result<(), Failure> {
        let failed = |reason| move |error| Failure { reason, error };
        let claims: Api<PersistentVolumeClaim> = self.hand.api();
        let mut revision = 0;
        for (claim, owners) in &plan.own_claims {
            let written = patch_owners(&claims, claim.as_ref(), owners).await;
            revision = revision.max(written.map_err(failed("FailedUpdate"))?);
        }
        for claim in &plan.claims {
            revision = revision.max(self.make_claim(&claims, claim, None).await?);
        }
        for (pod, labels) in &plan.relabel {
            self.relabel(pod, labels).await.map_err(failed("FailedUpdate"))?;
        }
        for birth in &plan.create {
            for claim in &birth.claims {
                let made = self.make_claim(&claims, claim, Some(birth)).await?;
                revision = revision.max(made);
            }
        }
        self.hand.context.informers.claims.catch_up(revision, CATCH_UP_MAX).await;
        let pods: Vec<Pod> = plan.create.iter().map(|birth| birth.pod.clone()).collect();
        if !pods.is_empty() {
            self.hand.create(&pods).await?;
        }
        self.tell_why(plan);
        let doomed: Vec<Arc<Pod>> = plan.delete.iter().map(|(pod, _)| Arc::clone(pod)).collect();
        if doomed.is_empty() { Ok(()) } else { self.hand.delete(&doomed).await }
    }

    async fn make_claim(
        &self,
        api: &Api<PersistentVolumeClaim>,
        claim: &PersistentVolumeClaim,
        birth: Option<&Birth>,
    ) -> Result<u64, Failure> {
        let (name, set) = (claim.name_any(), self.hand.owner.name_any());
        let pod = birth.map_or_else(String::new, |birth| format!(" Pod {}", birth.pod.name_any()));
        let said = format!("create Claim {name}{pod} in StatefulSet {set}");
        match api.create(&PostParams::default(), claim).await {
            Ok(made) => {
                let message = format!("{said} success");
                self.hand.tell(EventType::Normal, "SuccessfulCreate", message);
                Ok(revision_of(&made).unwrap_or(0))
            }
            // It is there from an earlier life of the pod.
            Err(err) if is_already_exists(&err) => Ok(0),
            Err(error) => {
                let message = format!("{said} failed error: {}", words_of(&error));
                self.hand.tell(EventType::Warning, "FailedCreate", message);
                Err(Failure { reason: "FailedCreate", error })
            }
        }
    }

    async fn relabel(
        &self,
        pod: &Pod,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), kube::Error> {
        let patch = json!({ "metadata": {
            "uid": pod.uid(), "resourceVersion": pod.resource_version(), "labels": labels,
        }});
        let (api, params) = (self.hand.api::<Pod>(), PatchParams::default());
        match api.patch(&pod.name_any(), &params, &Patch::Merge(patch)).await {
            Err(err) if !is_not_found(&err) => Err(err),
            _ => Ok(()),
        }
    }

    fn tell_why(&self, plan: &Plan) {
        let set = self.hand.owner;
        let of = format!(
            "StatefulSet {}/{}",
            set.meta().namespace.as_deref().unwrap_or_default(),
            set.name_any()
        );
        for (pod, why) in &plan.delete {
            let name = pod.name_any();
            let (reason, message) = match why {
                Why::Failed => {
                    ("RecreatingFailedPod", format!("{of} is recreating failed Pod {name}"))
                }
                Why::Succeeded => {
                    let message = format!("{of} is recreating terminated Pod {name}");
                    ("RecreatingTerminatedPod", message)
                }
                Why::Abandoned => (
                    "RecreatingAbandonedPod",
                    format!("{of} is recreating Pod {name}, whose revision was given up"),
                ),
                Why::ScaledDown | Why::Outdated => continue,
            };
            self.hand.tell(EventType::Warning, reason, message);
        }
    }

    async fn write_status(
        &self,
        status: &k8s_openapi::api::apps::v1::StatefulSetStatus,
        is_forced: bool,
    ) -> Result<(), kube::Error> {
        let written = self.hand.owner.status.as_ref();
        if !is_forced && written.is_some_and(|written| is_same(written, status)) {
            return Ok(());
        }
        let revision = self.hand.write_status(status).await?;
        self.hand.context.informers.stateful_sets.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }
}
