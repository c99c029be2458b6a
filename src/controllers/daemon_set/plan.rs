//! What gives each fit node its pod: a pure function.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::core::Selector;

use crate::controllers::daemon_set::nodes::{Fitness, fitness, pod_for, target};
use crate::controllers::object::{
    Availability, availability, is_deleting, is_ready, is_terminal, phase,
};
use crate::controllers::owned::{Claimed, claim};
use crate::controllers::revisions::{self, POD_LABEL, beyond_limit, hash_of};
use crate::controllers::template::{Rounding, count, share};

/// Pods created, and pods deleted, in one run; the next run goes on from there.
pub(super) const BURST_MAX: usize = 250;

/// What a run sees.
pub(super) struct View<'a> {
    pub(super) set: &'a DaemonSet,
    /// `None` when the selector is malformed or empty: then only the status is kept.
    pub(super) selector: Option<&'a Selector>,
    /// All pods of the namespace.
    pub(super) pods: &'a [Arc<Pod>],
    /// All revisions of the namespace.
    pub(super) revisions: &'a [Arc<ControllerRevision>],
    /// All nodes.
    pub(super) nodes: &'a [Arc<Node>],
    /// How much longer a failed pod stays on its node before it is replaced.
    pub(super) backing_off: &'a BTreeMap<String, Duration>,
    pub(super) now: Timestamp,
}

/// Why a pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It failed; the node gets another one.
    Failed,
    /// It ended, as a pod of a daemon set should not; the node gets another one.
    Succeeded,
    /// The node is not fit, gone, or has another one.
    Surplus,
    /// Its template is not the present one.
    Outdated,
}

/// What a run does, in this order.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) pods: Claimed<Pod>,
    pub(super) revisions: Claimed<ControllerRevision>,
    /// What makes the present template the newest revision.
    pub(super) revision: Option<revisions::Write>,
    /// The pods to delete.
    pub(super) delete: Vec<(Arc<Pod>, Why)>,
    /// The pods to make.
    pub(super) create: Vec<Pod>,
    /// Revisions nobody can want back.
    pub(super) forget: Vec<Arc<ControllerRevision>>,
    /// The status as it should be before the writes above.
    pub(super) status: DaemonSetStatus,
    /// When a pod becomes available, or a failed one is replaced.
    pub(super) recheck_after: Option<Duration>,
}

/// How a daemon set is updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// `false`: pods are updated by hand.
    pub(super) is_rolling: bool,
    /// Nodes that may have an old pod and a new one.
    pub(super) max_surge: i32,
    /// Nodes that may have no pod that serves, for the sake of an update.
    pub(super) max_unavailable: i32,
    pub(super) min_ready_seconds: i32,
}

impl Wish {
    /// The wish of `set` that is meant for `desired` nodes.
    pub(super) fn of(set: &DaemonSet, desired: i32) -> Self {
        let spec = set.spec.as_ref();
        let strategy = spec.and_then(|spec| spec.update_strategy.as_ref());
        let is_rolling =
            strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete");
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let of = |value| share(value, desired, Rounding::Up);
        let max_surge = rolling.and_then(|r| r.max_surge.as_ref()).map_or(0, of);
        let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).map_or(1, of);
        let max_unavailable = if max_surge == 0 { unavailable.max(1) } else { unavailable };
        let min_ready_seconds = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        Self { is_rolling, max_surge, max_unavailable, min_ready_seconds }
    }
}

pub(super) fn plan(view: &View<'_>) -> Plan {
    let set = view.set;
    let pods = claim(set, view.selector, view.pods, |_| true);
    let revisions = claim(set, view.selector, view.revisions, |_| true);
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let collisions = set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let present = revisions::present(set, &template, collisions, &revisions.owned);
    let nodes = nodes(view, &pods.owned);
    let desired = nodes.values().filter(|place| place.fitness.should_run).count();
    let wish = Wish::of(set, count(desired));
    let step = Step { view, wish, hash: &present.hash, nodes: &nodes };
    let mut plan = Plan {
        revision: None,
        delete: Vec::new(),
        create: Vec::new(),
        forget: Vec::new(),
        status: step.status(),
        recheck_after: step.next_available(),
        pods,
        revisions,
    };
    let is_settled = plan.pods.is_settled() && plan.revisions.is_settled();
    if is_deleting(&set.metadata) || view.selector.is_none() || !is_settled {
        return plan;
    }
    plan.revision.clone_from(&present.write);
    step.manage(&mut plan);
    if wish.is_rolling {
        step.roll(&mut plan);
    }
    plan.create.truncate(BURST_MAX);
    plan.delete.truncate(BURST_MAX);
    let used: BTreeSet<&str> = plan.pods.owned.iter().filter_map(|pod| hash_label(pod)).collect();
    let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit);
    plan.forget = beyond_limit(limit, &plan.revisions.owned, |one| {
        one.name_any() == present.name || used.contains(hash_of(set, one).as_str())
    });
    plan
}

fn hash_label(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(POD_LABEL).map(String::as_str)
}

/// A node, or the name of one that is gone, and the set's pods on it.
struct Place {
    fitness: Fitness,
    /// Oldest first.
    pods: Vec<Arc<Pod>>,
}

fn nodes(view: &View<'_>, owned: &[Arc<Pod>]) -> BTreeMap<String, Place> {
    let mut nodes: BTreeMap<String, Place> = view
        .nodes
        .iter()
        .map(|node| {
            let place = Place { fitness: fitness(view.set, node), pods: Vec::new() };
            (node.name_any(), place)
        })
        .collect();
    for pod in owned {
        // One that is bound nowhere and meant for nowhere is as good as on a node that is gone.
        let name = target(pod).unwrap_or_default().to_owned();
        let gone = Fitness { should_run: false, may_stay: false };
        let place = nodes.entry(name).or_insert(Place { fitness: gone, pods: Vec::new() });
        place.pods.push(Arc::clone(pod));
    }
    for place in nodes.values_mut() {
        place.pods.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
            (created, pod.name_any())
        });
    }
    nodes
}

struct Step<'a> {
    view: &'a View<'a>,
    wish: Wish,
    /// Of the present template.
    hash: &'a str,
    nodes: &'a BTreeMap<String, Place>,
}

impl Step<'_> {
    fn is_new(&self, pod: &Pod) -> bool {
        hash_label(pod) == Some(self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        !is_deleting(&pod.metadata)
            && availability(pod, self.wish.min_ready_seconds, self.view.now)
                == Availability::Available
    }

    /// Sees that each fit node has one pod, and the others none.
    fn manage(&self, plan: &mut Plan) {
        for (node, place) in self.nodes {
            let exists = self.view.nodes.iter().any(|known| known.name_any() == *node);
            if !place.fitness.may_stay {
                // An agent that is there still ends its pod; without one, pod-gc does.
                let doomed = place
                    .pods
                    .iter()
                    .filter(|pod| !is_deleting(&pod.metadata) && (exists || pod_is_unbound(pod)));
                plan.delete.extend(doomed.map(|pod| (Arc::clone(pod), Why::Surplus)));
            } else if place.pods.is_empty() {
                if place.fitness.should_run {
                    plan.create.push(pod_for(self.view.set, node, self.hash));
                }
            } else {
                self.tidy(node, place, plan);
            }
        }
    }

    /// Replaces pods that have ended, and thins out what is too much.
    fn tidy(&self, node: &str, place: &Place, plan: &mut Plan) {
        let mut running = Vec::new();
        for pod in place.pods.iter().filter(|pod| !is_deleting(&pod.metadata)) {
            match phase(pod) {
                "Failed" => match self.view.backing_off.get(node) {
                    Some(left) => plan.recheck_after = earliest(plan.recheck_after, *left),
                    None => plan.delete.push((Arc::clone(pod), Why::Failed)),
                },
                "Succeeded" => plan.delete.push((Arc::clone(pod), Why::Succeeded)),
                _ => running.push(pod),
            }
        }
        let is_surging = self.wish.is_rolling && self.wish.max_surge > 0;
        let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
            running.iter().partition(|pod| is_surging && self.is_new(pod));
        for same in [new, old] {
            // The oldest stays; one that serves before one that does not.
            let mut same = same;
            same.sort_by_key(|pod| Reverse(node_is_known(pod)));
            let surplus = same.into_iter().skip(1);
            plan.delete.extend(surplus.map(|pod| (Arc::clone(pod), Why::Surplus)));
        }
    }

    /// Replaces pods of other templates.
    fn roll(&self, plan: &mut Plan) {
        let fit = self.nodes.iter().filter(|(_, place)| place.fitness.should_run);
        let doomed: BTreeSet<String> = plan.delete.iter().map(|(pod, _)| pod.name_any()).collect();
        let mut places = Vec::new();
        for (node, place) in fit {
            let alive = |pod: &&Arc<Pod>| {
                !is_deleting(&pod.metadata)
                    && !is_terminal(pod)
                    && !doomed.contains(&pod.name_any())
            };
            let (new, old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
                place.pods.iter().filter(alive).partition(|pod| self.is_new(pod));
            places.push((node.as_str(), new.first().copied(), old.first().copied(), place));
        }
        if self.wish.max_surge > 0 {
            self.surge(&places, plan);
        } else {
            self.replace(&places, plan);
        }
    }

    /// Without surge: the old pod goes, then `manage` makes the new one.
    fn replace(&self, places: &[Pair<'_>], plan: &mut Plan) {
        let mut unavailable = 0;
        let mut candidates = Vec::new();
        for (_, new, old, _) in places {
            match (new, old) {
                (None, Some(old)) if self.is_available(old) => candidates.push(*old),
                // It serves nobody: replacing it costs nothing.
                (None, Some(old)) => {
                    unavailable += 1;
                    plan.delete.push((Arc::clone(old), Why::Outdated));
                }
                (Some(new), None) if self.is_available(new) => {}
                _ => unavailable += 1,
            }
        }
        let room = usize::try_from(self.wish.max_unavailable - unavailable).unwrap_or(0);
        let doomed = candidates.into_iter().take(room);
        plan.delete.extend(doomed.map(|pod| (Arc::clone(pod), Why::Outdated)));
    }

    /// With surge: the new pod comes, and when it is available the old one goes.
    fn surge(&self, places: &[Pair<'_>], plan: &mut Plan) {
        let mut surging = 0;
        let (mut now, mut candidates) = (Vec::new(), Vec::new());
        for (node, new, old, place) in places {
            let Some(old) = old else { continue };
            let Some(new) = new else {
                // One that has ended or is on its way out is waited for.
                let is_over = |pod: &Arc<Pod>| is_deleting(&pod.metadata) || is_terminal(pod);
                let is_changing = place.pods.iter().any(is_over);
                if is_changing {
                    surging += 1;
                } else if self.is_available(old) {
                    candidates.push(*node);
                } else {
                    now.push(*node);
                }
                continue;
            };
            if !self.is_available(old) {
                plan.delete.push((Arc::clone(old), Why::Outdated));
                continue;
            }
            surging += 1;
            if self.is_available(new) {
                plan.delete.push((Arc::clone(old), Why::Outdated));
            }
        }
        let room = usize::try_from(self.wish.max_surge - surging).unwrap_or(0);
        let chosen = now.into_iter().chain(candidates.into_iter().take(room));
        plan.create.extend(chosen.map(|node| pod_for(self.view.set, node, self.hash)));
    }

    fn next_available(&self) -> Option<Duration> {
        let pods = self.nodes.values().flat_map(|place| &place.pods);
        let left =
            |pod: &Arc<Pod>| match availability(pod, self.wish.min_ready_seconds, self.view.now) {
                Availability::In(left) => Some(left),
                Availability::Available | Availability::No => None,
            };
        pods.filter_map(left).min()
    }

    fn status(&self) -> DaemonSetStatus {
        let of = |test: &dyn Fn(&Place) -> bool| {
            count(self.nodes.values().filter(|place| test(place)).count())
        };
        let wanted = |place: &Place| place.fitness.should_run;
        let any = |place: &Place, test: &dyn Fn(&Pod) -> bool| place.pods.iter().any(|p| test(p));
        let desired = of(&wanted);
        let available = of(&|place| wanted(place) && any(place, &|pod| self.is_available(pod)));
        let ready = |pod: &Pod| is_ready(pod) && !is_deleting(&pod.metadata);
        let was = self.view.set.status.as_ref();
        DaemonSetStatus {
            desired_number_scheduled: desired,
            current_number_scheduled: of(&|place| wanted(place) && !place.pods.is_empty()),
            number_misscheduled: of(&|place| !wanted(place) && !place.pods.is_empty()),
            number_ready: of(&|place| wanted(place) && any(place, &ready)),
            updated_number_scheduled: Some(of(&|place| {
                wanted(place) && any(place, &|pod| self.is_new(pod))
            })),
            number_available: Some(available),
            number_unavailable: Some(desired - available),
            observed_generation: self.view.set.metadata.generation,
            collision_count: was.and_then(|was| was.collision_count),
            conditions: was.and_then(|was| was.conditions.clone()),
        }
    }
}

/// Node, its new pod and its old pod.
type Pair<'a> = (&'a str, Option<&'a Arc<Pod>>, Option<&'a Arc<Pod>>, &'a Place);

fn pod_is_unbound(pod: &Pod) -> bool {
    crate::controllers::object::node_name(pod).is_none()
}

fn node_is_known(pod: &Pod) -> bool {
    !pod_is_unbound(pod)
}

fn earliest(a: Option<Duration>, b: Duration) -> Option<Duration> {
    Some(a.map_or(b, |a| a.min(b)))
}
