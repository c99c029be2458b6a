//! What brings a stateful set one step nearer to its wish: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;
use kube::core::Selector;

use crate::controllers::object::{
    Availability, availability, is_deleting, is_ready, is_terminal, phase,
};
use crate::controllers::owned::{Claimed, claim};
use crate::controllers::revisions::{self, POD_LABEL, Present, beyond_limit, template_of};
use crate::controllers::stateful_set::identity::{
    claim_owners, claims, identity, is_claim_stale, ordinal_of, pod, pod_name,
};
use crate::controllers::stateful_set::status::status;
use crate::controllers::template::{Rounding, share};

/// Pods created or deleted in one run of a parallel set; the next run goes on from there.
pub(super) const BURST_MAX: usize = 500;

/// What a run sees.
pub(super) struct View<'a> {
    pub(super) set: &'a StatefulSet,
    /// `None` when the selector is malformed or empty: then only the status is kept.
    pub(super) selector: Option<&'a Selector>,
    /// All pods of the namespace.
    pub(super) pods: &'a [Arc<Pod>],
    /// All revisions of the namespace.
    pub(super) revisions: &'a [Arc<ControllerRevision>],
    /// All claims of the namespace.
    pub(super) claims: &'a [Arc<PersistentVolumeClaim>],
    pub(super) now: Timestamp,
}

/// Why a pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It failed; another one takes its place.
    Failed,
    /// It ended, as a pod of a stateful set should not; another one takes its place.
    Succeeded,
    /// Its ordinal is not wanted any more.
    ScaledDown,
    /// Its template is not the present one.
    Outdated,
    /// It does not serve, and its template was given up before it did.
    Abandoned,
}

/// A pod to be made, after its claims.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Birth {
    pub(super) claims: Vec<PersistentVolumeClaim>,
    pub(super) pod: Pod,
}

/// What a run does, in this order.
#[derive(Debug)]
pub(super) struct Plan {
    /// Whose pods are.
    pub(super) pods: Claimed<Pod>,
    /// Whose revisions are.
    pub(super) revisions: Claimed<ControllerRevision>,
    /// What makes the present template the newest revision.
    pub(super) revision: Option<revisions::Write>,
    /// Claims that get other owners.
    pub(super) own_claims: Vec<(Arc<PersistentVolumeClaim>, Vec<OwnerReference>)>,
    /// Claims that pods wait for, and that somebody has deleted.
    pub(super) claims: Vec<PersistentVolumeClaim>,
    /// Pods that lost the labels that say who they are.
    pub(super) relabel: Vec<(Arc<Pod>, BTreeMap<String, String>)>,
    /// Pods to make.
    pub(super) create: Vec<Birth>,
    /// Pods to delete.
    pub(super) delete: Vec<(Arc<Pod>, Why)>,
    /// Revisions nobody can want back.
    pub(super) forget: Vec<Arc<ControllerRevision>>,
    /// The status as it should be before the writes above.
    pub(super) status: StatefulSetStatus,
    /// When a ready pod becomes available.
    pub(super) recheck_after: Option<Duration>,
}

/// What a stateful set asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) replicas: i32,
    /// The first ordinal.
    pub(super) start: i32,
    /// One after the other, or all at once.
    pub(super) is_ordered: bool,
    /// The ordinals below keep the revision they have; `None` when pods are updated by hand.
    pub(super) partition: Option<i32>,
    /// How many pods may be unavailable while others are updated.
    pub(super) max_unavailable: i32,
    pub(super) min_ready_seconds: i32,
}

impl Wish {
    pub(super) fn of(set: &StatefulSet) -> Self {
        let spec = set.spec.as_ref();
        let strategy = spec.and_then(|spec| spec.update_strategy.as_ref());
        let is_rolling =
            strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete");
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
        let start = spec.and_then(|spec| spec.ordinals.as_ref()).and_then(|o| o.start).unwrap_or(0);
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0).max(0);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let unavailable = unavailable.map_or(1, |max| share(max, replicas, Rounding::Up));
        let policy = spec.and_then(|spec| spec.pod_management_policy.as_deref());
        Self {
            replicas,
            start,
            is_ordered: policy != Some("Parallel"),
            partition: is_rolling.then(|| start.saturating_add(partition)),
            max_unavailable: unavailable.max(1),
            min_ready_seconds: spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0),
        }
    }

    fn wants(self, ordinal: i32) -> bool {
        ordinal >= self.start && ordinal < self.start.saturating_add(self.replicas)
    }
}

/// The revisions that pods are made of.
pub(super) struct Revisions<'a> {
    /// The one that is left behind; the same as `update` when no update is under way.
    pub(super) current: String,
    /// That of the present template.
    pub(super) update: &'a str,
    /// The template of `current`.
    pub(super) current_template: PodTemplateSpec,
}

pub(super) fn plan(view: &View<'_>) -> Plan {
    let set = view.set;
    let is_member = |pod: &Pod| ordinal_of(set, &pod.name_any()).is_some();
    let pods = claim(set, view.selector, view.pods, is_member);
    let revisions = claim(set, view.selector, view.revisions, |_| true);
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let present = revisions::present(set, &template, collisions, &revisions.owned);
    let known = current(set, &revisions.owned, &present, &template);
    let wish = Wish::of(set);
    let mut plan = Plan {
        revision: None,
        own_claims: Vec::new(),
        claims: Vec::new(),
        relabel: Vec::new(),
        create: Vec::new(),
        delete: Vec::new(),
        forget: Vec::new(),
        status: status(set, wish, &known, &pods.owned, view.now),
        recheck_after: None,
        pods,
        revisions,
    };
    plan.recheck_after = next_available(&plan.pods.owned, wish, view.now);
    let is_settled = plan.pods.is_settled() && plan.revisions.is_settled();
    if is_deleting(&set.metadata) || view.selector.is_none() || !is_settled {
        return plan;
    }
    plan.revision.clone_from(&present.write);
    Step { view, wish, known: &known, template: &template }.take(&mut plan);
    let used: BTreeSet<String> = plan
        .pods
        .owned
        .iter()
        .filter_map(|pod| pod.labels().get(POD_LABEL).cloned())
        .chain([known.current.clone(), present.name.clone()])
        .collect();
    let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit);
    plan.forget = beyond_limit(limit, &plan.revisions.owned, |one| used.contains(&one.name_any()));
    plan
}

/// The revision that pods below the partition have.
fn current<'a>(
    set: &StatefulSet,
    owned: &[Arc<ControllerRevision>],
    present: &'a Present,
    template: &PodTemplateSpec,
) -> Revisions<'a> {
    let named = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let found = owned.iter().find(|revision| Some(revision.name_any().as_str()) == named);
    let found = found.and_then(|found| Some((found.name_any(), template_of(found)?)));
    let (current, current_template) =
        found.unwrap_or_else(|| (present.name.clone(), template.clone()));
    Revisions { current, update: &present.name, current_template }
}

/// When the next ready pod becomes available.
fn next_available(pods: &[Arc<Pod>], wish: Wish, now: Timestamp) -> Option<Duration> {
    let left = |pod: &Arc<Pod>| match availability(pod, wish.min_ready_seconds, now) {
        Availability::In(left) => Some(left),
        Availability::Available | Availability::No => None,
    };
    pods.iter().filter_map(left).min()
}

/// The revision a pod is of.
pub(super) fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(POD_LABEL).map(String::as_str)
}

/// Whether the pod runs and is ready.
pub(super) fn is_running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

/// Whether the pod serves, and has for long enough.
pub(super) fn is_serving(pod: &Pod, wish: Wish, now: Timestamp) -> bool {
    is_running_and_ready(pod)
        && !is_deleting(&pod.metadata)
        && availability(pod, wish.min_ready_seconds, now) == Availability::Available
}

/// Whether the run may do more after what was just planned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Go {
    On,
    Stop,
}

struct Step<'a> {
    view: &'a View<'a>,
    wish: Wish,
    known: &'a Revisions<'a>,
    template: &'a PodTemplateSpec,
}

impl Step<'_> {
    fn take(&self, plan: &mut Plan) {
        let mut wanted: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        let mut condemned: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        for pod in &plan.pods.owned {
            let Some(ordinal) = ordinal_of(self.view.set, &pod.name_any()) else { continue };
            let list = if self.wish.wants(ordinal) { &mut wanted } else { &mut condemned };
            list.insert(ordinal, Arc::clone(pod));
        }
        for (pods, is_condemned) in [(&wanted, false), (&condemned, true)] {
            for (ordinal, pod) in pods {
                self.own_claims(*ordinal, pod, is_condemned, plan);
            }
        }
        if self.fill(&wanted, plan) == Go::On && self.drain(&condemned, plan) == Go::On {
            self.update(&wanted, plan);
        }
        plan.create.truncate(BURST_MAX);
        plan.delete.truncate(BURST_MAX);
    }

    /// Lets go or holds on to the claims of a pod, as the retention policy says.
    fn own_claims(&self, ordinal: i32, pod: &Pod, is_condemned: bool, plan: &mut Plan) {
        for wanted in claims(self.view.set, ordinal) {
            let Some(claim) = self.claim(&wanted.name_any()) else { continue };
            if is_deleting(&claim.metadata) {
                continue;
            }
            if let Some(owners) = claim_owners(self.view.set, pod, is_condemned, &claim) {
                plan.own_claims.push((claim, owners));
            }
        }
    }

    fn claim(&self, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.view.claims.iter().find(|claim| claim.name_any() == name).cloned()
    }

    /// Sees that every wanted ordinal has a pod that serves.
    fn fill(&self, wanted: &BTreeMap<i32, Arc<Pod>>, plan: &mut Plan) -> Go {
        let end = self.wish.start.saturating_add(self.wish.replicas);
        for ordinal in self.wish.start..end {
            let is_done = match wanted.get(&ordinal) {
                None => self.give_birth(ordinal, plan),
                Some(pod) => self.look_after(ordinal, pod, plan),
            };
            if !is_done && self.wish.is_ordered {
                return Go::Stop;
            }
            // The rest of a large set comes with the next runs.
            if plan.create.len() >= BURST_MAX {
                return Go::Stop;
            }
        }
        Go::On
    }

    /// Plans the missing pod of an ordinal, unless its claims are still on their way out.
    fn give_birth(&self, ordinal: i32, plan: &mut Plan) -> bool {
        let (set, name) = (self.view.set, pod_name(self.view.set, ordinal));
        let mut missing = Vec::new();
        for claim in claims(set, ordinal) {
            match self.claim(&claim.name_any()) {
                None => missing.push(claim),
                Some(found) if is_claim_stale(set, &name, &found) => return false,
                Some(_) => {}
            }
        }
        let keeps_old = self.wish.partition.is_some_and(|partition| ordinal < partition);
        let (template, revision) = if keeps_old {
            (&self.known.current_template, self.known.current.as_str())
        } else {
            (self.template, self.known.update)
        };
        plan.create.push(Birth { claims: missing, pod: pod(set, ordinal, template, revision) });
        false
    }

    /// Whether nothing stands in the way of what is behind this pod.
    fn look_after(&self, ordinal: i32, pod: &Arc<Pod>, plan: &mut Plan) -> bool {
        if is_deleting(&pod.metadata) {
            return false;
        }
        if is_terminal(pod) {
            let why = if phase(pod) == "Failed" { Why::Failed } else { Why::Succeeded };
            plan.delete.push((Arc::clone(pod), why));
            return false;
        }
        let labels = identity(self.view.set, ordinal);
        if labels.iter().any(|(key, value)| pod.labels().get(key) != Some(value)) {
            plan.relabel.push((Arc::clone(pod), labels));
        }
        if phase(pod) == "Pending" {
            let missing = claims(self.view.set, ordinal);
            let is_missing =
                |claim: &PersistentVolumeClaim| self.claim(&claim.name_any()).is_none();
            plan.claims.extend(missing.into_iter().filter(is_missing));
        }
        if is_serving(pod, self.wish, self.view.now) {
            return true;
        }
        // It would be in the way for ever: nobody mends a template that was given up. In a parallel
        // set nothing waits for it, and its turn comes with the update.
        let is_in_the_way =
            self.wish.partition.is_some_and(|least| self.wish.is_ordered || ordinal < least);
        if is_in_the_way && self.is_abandoned(pod) && !is_running_and_ready(pod) {
            plan.delete.push((Arc::clone(pod), Why::Abandoned));
        }
        false
    }

    /// Whether the pod is of a revision between the current and the present one.
    fn is_abandoned(&self, pod: &Pod) -> bool {
        revision_of(pod)
            .is_some_and(|revision| revision != self.known.current && revision != self.known.update)
    }

    /// Removes pods that are not wanted, the highest first. In order, one that does not serve is
    /// waited for while a lower one does not serve either.
    fn drain(&self, condemned: &BTreeMap<i32, Arc<Pod>>, plan: &mut Plan) -> Go {
        let serves = |pod: &Pod| is_serving(pod, self.wish, self.view.now);
        // One that has ended will never serve: nothing would come of waiting for it.
        let is_idle = |pod: &Pod| !serves(pod) && !is_terminal(pod);
        let first_idle = condemned.iter().find(|(_, pod)| is_idle(pod)).map(|(at, _)| *at);
        for (ordinal, pod) in condemned.iter().rev() {
            let may_go = !self.wish.is_ordered
                || serves(pod)
                || first_idle == Some(*ordinal)
                || is_terminal(pod);
            if may_go && !is_deleting(&pod.metadata) {
                plan.delete.push((Arc::clone(pod), Why::ScaledDown));
            }
            if self.wish.is_ordered {
                return Go::Stop;
            }
        }
        Go::On
    }

    /// Deletes pods of other templates, the highest first, so that they come back with the present
    /// one. Those that are missing on the way down are waited for: a lower pod has its turn when
    /// those above it serve, even one that does not serve itself.
    fn update(&self, wanted: &BTreeMap<i32, Arc<Pod>>, plan: &mut Plan) {
        let Some(partition) = self.wish.partition else { return };
        let doomed: BTreeSet<String> = plan.delete.iter().map(|(pod, _)| pod.name_any()).collect();
        let end = self.wish.start.saturating_add(self.wish.replicas);
        let mut missing = 0;
        for ordinal in (partition..end).rev() {
            let pod = wanted.get(&ordinal).filter(|pod| !doomed.contains(&pod.name_any()));
            let is_outdated = |pod: &&Arc<Pod>| {
                revision_of(pod) != Some(self.known.update) && !is_deleting(&pod.metadata)
            };
            if let Some(outdated) = pod.filter(is_outdated) {
                plan.delete.push((Arc::clone(outdated), Why::Outdated));
                missing += 1;
            } else if pod.is_none_or(|pod| !is_serving(pod, self.wish, self.view.now)) {
                missing += 1;
            }
            if missing >= self.wish.max_unavailable {
                return;
            }
        }
    }
}
