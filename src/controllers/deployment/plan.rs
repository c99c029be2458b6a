//! What brings a deployment one step nearer to its wish: a pure function.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::core::Selector;

use crate::controllers::deployment::rollout::{Part, Scale, grow, proportional, roll};
use crate::controllers::deployment::status::{Rollout, is_complete, status};
use crate::controllers::deployment::template::{
    DESIRED, FAILED, HASH_LABEL, MAX, REVISION, REVISION_HISTORY, ROLLBACK, Wish, age_key,
    annotation, annotations_to_copy, find_new, revision, without_hash,
};
use crate::controllers::object::{
    controller_reference, is_controlled_by, is_deleting, is_terminal,
};
use crate::controllers::owned::claim;
use crate::controllers::template::hash;

/// Old replica sets kept for undo when a deployment does not say.
const HISTORY_LEN_DEFAULT: usize = 10;
/// The longest `revision-history` annotation.
const REVISION_HISTORY_BYTES_MAX: usize = 2000;

/// What a run sees.
pub(super) struct View<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) selector: Option<&'a Selector>,
    /// All replica sets of the namespace.
    pub(super) replica_sets: &'a [Arc<ReplicaSet>],
    /// All pods of the namespace.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

/// A change of one replica set, made with the version in `of`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Edit {
    pub(super) of: Arc<ReplicaSet>,
    /// The replicas it should have from now on, if that changes.
    pub(super) replicas: Option<i32>,
    /// Annotations to set.
    pub(super) annotations: BTreeMap<String, String>,
    /// `minReadySeconds`, if that changes.
    pub(super) min_ready_seconds: Option<i32>,
}

/// What a run does, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Replica sets that match and have no controller.
    pub(super) adopt: Vec<Arc<ReplicaSet>>,
    /// Replica sets of ours that no longer match.
    pub(super) release: Vec<Arc<ReplicaSet>>,
    /// The replica set of a template not seen before.
    pub(super) create: Option<Box<ReplicaSet>>,
    /// Changes to replica sets.
    pub(super) edits: Vec<Edit>,
    /// Old replica sets nobody can want back.
    pub(super) delete: Vec<Arc<ReplicaSet>>,
    /// The revision the deployment should say it is at, if it does not.
    pub(super) revision: Option<String>,
    /// The rollout is taken back to this.
    pub(super) rollback: Option<Box<Rollback>>,
    /// The status as it should be.
    pub(super) status: DeploymentStatus,
    /// When to look for a missed deadline.
    pub(super) recheck_after: Option<Duration>,
}

/// Where a rollout that failed is taken back to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rollback {
    /// The revision that had the template.
    pub(super) to: u64,
    pub(super) template: PodTemplateSpec,
}

/// The replica sets of a deployment, the one of its present template apart.
struct Sets {
    new: Option<Arc<ReplicaSet>>,
    /// Oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

pub(super) fn plan(view: &View<'_>) -> Plan {
    let claimed = claim(view.deployment, view.selector, view.replica_sets, |_| true);
    let is_claimed = claimed.is_settled();
    let mut plan = Plan { adopt: claimed.adopt, release: claimed.release, ..Plan::default() };
    let new = find_new(view.deployment, &claimed.owned);
    let mut old: Vec<_> = claimed
        .owned
        .into_iter()
        .filter(|set| new.as_ref().is_none_or(|new| new.uid() != set.uid()))
        .collect();
    old.sort_by_key(|set| age_key(set));
    let sets = Sets { new, old };
    if is_claimed && !is_deleting(&view.deployment.metadata) && view.selector.is_some() {
        let wish = Wish::of(view.deployment);
        if wish.is_paused {
            scale_all(view, wish, &sets, &mut plan);
        } else {
            progress(view, wish, &sets, &mut plan);
        }
    }
    let created = plan.create.as_ref().map(|set| set.name_any());
    let rollout = Rollout { new: sets.new.as_deref(), old: &sets.old, created };
    let (status, recheck_after) = status(view.deployment, &rollout, view.now);
    plan.status = status;
    plan.recheck_after = recheck_after;
    let is_failed = take_back(view.deployment, &sets, &mut plan);
    mark_failed(&sets, is_failed, &mut plan);
    if is_complete(view.deployment, &plan.status) {
        plan.delete = beyond_history(view.deployment, &sets.old);
    }
    plan
}

/// Plans the way back when the rollout has missed its deadline and the deployment wants that. Returns
/// whether the present template has failed, `None` when that is not known yet.
fn take_back(deployment: &Deployment, sets: &Sets, plan: &mut Plan) -> Option<bool> {
    if is_complete(deployment, &plan.status) {
        return Some(false);
    }
    let is_wanted = deployment.annotations().get(ROLLBACK).is_some_and(|value| value == "true");
    let conditions = plan.status.conditions.iter().flatten();
    let has_failed = conditions.into_iter().any(|condition| {
        condition.type_ == "Progressing"
            && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    });
    let may_act = !Wish::of(deployment).is_paused && !is_deleting(&deployment.metadata);
    if !is_wanted || !has_failed || !may_act || sets.new.is_none() {
        return None;
    }
    let good =
        |set: &&Arc<ReplicaSet>| annotation(set, FAILED) != Some("true") && revision(set) > 0;
    let target = sets.old.iter().filter(good).max_by_key(|set| revision(set))?;
    let template = target.spec.as_ref()?.template.as_ref()?;
    let rollback = Rollback { to: revision(target), template: without_hash(template) };
    plan.rollback = Some(Box::new(rollback));
    Some(true)
}

/// Notes on the replica set of the present template whether that has failed.
fn mark_failed(sets: &Sets, is_failed: Option<bool>, plan: &mut Plan) {
    let (Some(new), Some(is_failed)) = (&sets.new, is_failed) else { return };
    let was_failed = annotation(new, FAILED).is_some_and(|value| value == "true");
    if was_failed == is_failed {
        return;
    }
    let mark = (FAILED.to_owned(), is_failed.to_string());
    match plan.edits.iter_mut().find(|edit| edit.of.uid() == new.uid()) {
        Some(edit) => edit.annotations.extend([mark]),
        None => plan.edits.push(Edit {
            of: Arc::clone(new),
            replicas: None,
            annotations: BTreeMap::from([mark]),
            min_ready_seconds: None,
        }),
    }
}

fn progress(view: &View<'_>, wish: Wish, sets: &Sets, plan: &mut Plan) {
    let was_scaled = sets.all().any(|set| {
        let desired = annotation(set, DESIRED).and_then(|text| text.parse::<i32>().ok());
        wanted(set) > 0 && desired.is_some_and(|desired| desired != wish.replicas)
    });
    if was_scaled && sets.new.is_some() {
        scale_all(view, wish, sets, plan);
        return;
    }
    if wish.is_recreate {
        recreate(view, wish, sets, plan);
        return;
    }
    let mut new = sets.new.as_deref().map(scale).unwrap_or_default();
    let mut old: Vec<_> = sets.old.iter().map(|set| scale(set)).collect();
    if sets.all().all(|set| is_seen(set)) {
        roll(wish, &mut new, &mut old);
    } else {
        grow(wish, &mut new, &old);
    }
    edit_new(view, wish, sets, new.wanted, plan);
    for (set, scale) in sets.old.iter().zip(&old) {
        edit_old(wish, set, scale.wanted, plan);
    }
}

/// All old pods go, and are really gone, before the first new one comes.
fn recreate(view: &View<'_>, wish: Wish, sets: &Sets, plan: &mut Plan) {
    for set in &sets.old {
        edit_old(wish, set, 0, plan);
    }
    let is_old_pod = |pod: &&Arc<Pod>| {
        let is_old = |set: &Arc<ReplicaSet>| is_controlled_by(&pod.metadata, set.as_ref());
        !is_terminal(pod) && sets.old.iter().any(is_old)
    };
    if plan.edits.is_empty() && !view.pods.iter().any(|pod| is_old_pod(&pod)) {
        edit_new(view, wish, sets, wish.replicas, plan);
    }
}

/// Follows a change of `spec.replicas` without rolling: the only replica set that has pods takes
/// it all; several share it in proportion.
fn scale_all(view: &View<'_>, wish: Wish, sets: &Sets, plan: &mut Plan) {
    let mut active: Vec<_> = sets.all().filter(|set| wanted(set) > 0).collect();
    let is_new = |set: &ReplicaSet| sets.new.as_ref().is_some_and(|new| new.uid() == set.uid());
    let wishes: Vec<i32> = match active.as_slice() {
        [] => {
            match sets.old.last() {
                // While rollouts are on hold, the last template goes on.
                Some(last) if sets.new.is_none() => edit_old(wish, last, wish.replicas, plan),
                _ if sets.new.is_some() => edit_new(view, wish, sets, wish.replicas, plan),
                _ => {}
            }
            return;
        }
        [_] => vec![wish.replicas],
        _ => {
            let allowed = if wish.replicas > 0 { wish.total_max() } else { 0 };
            largest_first(&mut active, allowed);
            let status = view.deployment.status.as_ref().and_then(|status| status.replicas);
            let part = |set: &&Arc<ReplicaSet>| {
                let of = annotation(set, MAX).and_then(|text| text.parse().ok());
                let of = of.filter(|&of| of > 0).or(status).unwrap_or(0);
                Part { size: wanted(set), of }
            };
            proportional(&active.iter().map(part).collect::<Vec<_>>(), allowed)
        }
    };
    for (set, replicas) in active.into_iter().zip(wishes) {
        if is_new(set) {
            edit_new(view, wish, sets, replicas, plan);
        } else {
            edit_old(wish, set, replicas, plan);
        }
    }
}

/// Of two of a size, the younger first where there are to be more pods, and the older where fewer.
fn largest_first(sets: &mut [&Arc<ReplicaSet>], total: i32) {
    let has = sets.iter().fold(0_i32, |sum, set| sum.saturating_add(wanted(set)));
    let is_growth = total > has;
    sets.sort_by(|a, b| {
        let by_age = age_key(a).cmp(&age_key(b));
        wanted(b).cmp(&wanted(a)).then(if is_growth { by_age.reverse() } else { by_age })
    });
}

impl Sets {
    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.new.iter().chain(&self.old)
    }
}

fn scale(set: &ReplicaSet) -> Scale {
    let available = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
    let there = set.status.as_ref().map_or(0, |status| status.replicas);
    Scale { wanted: wanted(set), available, there }
}

/// Whether the status is of the present spec. One from before may tell of pods that are on their way out:
/// nothing is taken away for what it says.
fn is_seen(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation);
    observed >= set.metadata.generation
}

/// `spec.replicas` of a replica set.
pub(super) fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn scale_annotations(wish: Wish) -> BTreeMap<String, String> {
    BTreeMap::from([
        (DESIRED.to_owned(), wish.replicas.to_string()),
        (MAX.to_owned(), wish.total_max().to_string()),
    ])
}

fn edit_old(wish: Wish, set: &Arc<ReplicaSet>, replicas: i32, plan: &mut Plan) {
    let is_scaled = wanted(set) != replicas;
    let mut annotations = BTreeMap::new();
    // An empty old replica set is not worth a write for its annotations.
    if is_scaled || replicas > 0 {
        annotations = scale_annotations(wish);
        annotations.retain(|key, value| annotation(set, key) != Some(value));
    }
    if is_scaled || !annotations.is_empty() {
        let replicas = is_scaled.then_some(replicas);
        plan.edits.push(Edit {
            of: Arc::clone(set),
            replicas,
            annotations,
            min_ready_seconds: None,
        });
    }
}

/// Creates the replica set of the present template, or brings it up to date.
fn edit_new(view: &View<'_>, wish: Wish, sets: &Sets, replicas: i32, plan: &mut Plan) {
    let old_revision = sets.old.iter().map(|set| revision(set)).max().unwrap_or(0);
    let Some(new) = &sets.new else {
        let revision = (old_revision + 1).to_string();
        plan.create = Some(Box::new(replica_set(view.deployment, wish, replicas, &revision)));
        plan.revision = differing_revision(view.deployment, revision);
        return;
    };
    let mut annotations = annotations_to_copy(view.deployment);
    annotations.extend(scale_annotations(wish));
    let mut current = revision(new);
    if current <= old_revision {
        if let Some(history) = longer_history(new) {
            annotations.insert(REVISION_HISTORY.to_owned(), history);
        }
        current = old_revision + 1;
        annotations.insert(REVISION.to_owned(), current.to_string());
    }
    annotations.retain(|key, value| annotation(new, key) != Some(value));
    let min_ready_wanted =
        view.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let min_ready = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let min_ready_seconds = (min_ready != min_ready_wanted).then_some(min_ready_wanted);
    let replicas = (wanted(new) != replicas).then_some(replicas);
    if replicas.is_some() || min_ready_seconds.is_some() || !annotations.is_empty() {
        plan.edits.push(Edit { of: Arc::clone(new), replicas, annotations, min_ready_seconds });
    }
    plan.revision = differing_revision(view.deployment, current.to_string());
}

fn differing_revision(deployment: &Deployment, revision: String) -> Option<String> {
    (deployment.annotations().get(REVISION) != Some(&revision)).then_some(revision)
}

/// The revisions a replica set had, with the one it loses now; `None` when it had none.
fn longer_history(set: &ReplicaSet) -> Option<String> {
    let lost = annotation(set, REVISION)?;
    let history = annotation(set, REVISION_HISTORY).unwrap_or_default();
    let mut numbers: Vec<_> = history.split(',').filter(|number| !number.is_empty()).collect();
    numbers.push(lost);
    while numbers.join(",").len() > REVISION_HISTORY_BYTES_MAX {
        numbers.remove(0);
    }
    Some(numbers.join(","))
}

/// The replica set of the deployment's present template.
fn replica_set(deployment: &Deployment, wish: Wish, replicas: i32, revision: &str) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = hash(&spec.template, collisions.unwrap_or(0));
    let mut template = spec.template;
    let labels =
        template.metadata.get_or_insert_with(ObjectMeta::default).labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    let mut annotations = annotations_to_copy(deployment);
    annotations.extend(scale_annotations(wish));
    annotations.insert(REVISION.to_owned(), revision.to_owned());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Old, empty replica sets past the number kept for undo, the oldest revisions first.
fn beyond_history(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Arc<ReplicaSet>> {
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(HISTORY_LEN_DEFAULT);
    let mut kept: Vec<_> = old.iter().filter(|set| !is_deleting(&set.metadata)).cloned().collect();
    kept.sort_by_key(|set| (revision(set), age_key(set)));
    kept.truncate(kept.len().saturating_sub(limit));
    kept.retain(|set| is_empty(set));
    kept
}

fn is_empty(set: &ReplicaSet) -> bool {
    let status = set.status.as_ref();
    wanted(set) == 0
        && status.is_none_or(|status| status.replicas == 0)
        && is_seen(set)
        && !is_deleting(&set.metadata)
}
