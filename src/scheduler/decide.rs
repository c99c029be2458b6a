//! The choice of a node: a pure function of cluster view, pod and seed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::scheduler::demand::{Demand, key_of};
use crate::scheduler::filter::{Gone, Round};
use crate::scheduler::node::mix;
use crate::scheduler::reason::{Changes, Unschedulable};
use crate::scheduler::score::{Candidate, best};
use crate::scheduler::storage::Storage;
use crate::scheduler::view::{ClusterView, PodKey};

/// Clusters up to this size are looked at whole; in larger ones the search stops once this many nodes
/// fit, since the best of many is hardly better than the best of these.
pub(super) const FEASIBLE_NODES_MAX: usize = 128;
/// As much of all nodes, in percent, is looked at for pods that like some nodes better: those may be
/// few. Kubernetes' share of a large cluster.
const PREFERRED_PERCENT: usize = 5;

/// The node for `pod`, or why there is none. `seed` decides between equals.
///
/// # Errors
///
/// [`Unschedulable`]: wait for a node or a pod to change, then decide again.
pub fn decide<'a>(view: &'a ClusterView, pod: &Pod, seed: u64) -> Result<&'a str, Unschedulable> {
    decide_with(view, pod, &Storage::default(), seed)
}

/// As [`decide`], for a pod with claims.
///
/// # Errors
///
/// As [`decide`].
pub fn decide_with<'a>(
    view: &'a ClusterView,
    pod: &Pod,
    storage: &Storage,
    seed: u64,
) -> Result<&'a str, Unschedulable> {
    let (demand, key) = (Demand::of(pod), key_of(pod));
    let chosen = match view.class_of(&demand) {
        Some(class) => choose(view, class, Some(&key), storage, seed)?,
        None => {
            let mut view = view.clone();
            let class = view.enter_class(demand);
            choose(&view, class, Some(&key), storage, seed)?
        }
    };
    Ok(view.node_name(chosen))
}

/// As [`decide_with`], for the pod `who` of a class that is known: nothing is copied. The number of
/// the node.
pub(super) fn choose(
    view: &ClusterView,
    class: u32,
    who: Option<&PodKey>,
    storage: &Storage,
    seed: u64,
) -> Result<u32, Unschedulable> {
    if let Some(reason) = storage.missing.as_ref().or(storage.devices.missing.as_ref()) {
        return Err(Unschedulable {
            nodes: view.nodes_known(),
            reasons: BTreeMap::from([(reason.clone(), 0)]),
            helped_by: Changes::STORAGE.and(Changes::DEVICES),
            ..Unschedulable::default()
        });
    }
    let Some(round) = Round::new(view, class, who, storage) else {
        return Err(Unschedulable::default());
    };
    // Pods left this node for it: where it fits now, nothing better is looked for.
    if let Some(id) = who.and_then(|who| view.nomination(who))
        && let Some(node) = view.nodes.get(id)
        && node.facts.is_some()
        && round.fits(id, node, &Gone::default(), false)
    {
        return Ok(id);
    }
    let feasible = feasible(&round, seed);
    let extra = match &round.asker {
        Some(asker) => asker.points(&feasible).map_err(|reason| round.refuse_for(&reason))?,
        None => Vec::new(),
    };
    best(&round, &feasible, &extra, seed).ok_or_else(|| round.refuse())
}

/// Nodes that take the pod: all of a small cluster, enough of a large one.
fn feasible<'a>(round: &Round<'a>, seed: u64) -> Vec<Candidate<'a>> {
    let view = round.view;
    let wanted = wanted(round);
    let mut feasible = Vec::with_capacity(wanted.min(view.nodes_known()));
    let nobody = Gone::default();
    let known = round.class.eligible.as_ref().filter(|known| known.generation == view.generation);
    let slots = known.map_or(view.nodes.slots(), |known| known.nodes.len());
    for slot in Walk::new(slots, seed) {
        let id = match known {
            Some(known) => known.nodes.get(slot).copied(),
            None => u32::try_from(slot).ok(),
        };
        // Cheaper than to look at the node, and for most of them the end.
        let id = id.filter(|id| round.may_be_near(*id));
        let Some((id, node)) = id.and_then(|id| Some((id, view.nodes.get(id)?))) else { continue };
        let Some(facts) = &node.facts else { continue };
        if round.fits(id, node, &nobody, known.is_some()) {
            feasible.push(Candidate { id, node, facts });
            if feasible.len() >= wanted {
                break;
            }
        }
    }
    feasible
}

/// How many nodes that take the pod are enough.
fn wanted(round: &Round<'_>) -> usize {
    let prefers = round.demand.wishes.prefers_nodes() || !round.class.preferred.is_empty();
    if !prefers {
        return FEASIBLE_NODES_MAX;
    }
    (round.view.nodes_known() * PREFERRED_PERCENT / 100).max(FEASIBLE_NODES_MAX)
}

/// Every number below a bound once, in an order of the seed's: neighbours in it are no neighbours in
/// the list, so that no part of the cluster is looked at more than another.
pub(super) struct Walk {
    at: usize,
    step: usize,
    left: usize,
    bound: usize,
}

impl Walk {
    pub(super) fn new(bound: usize, seed: u64) -> Self {
        let within = |number: u64| usize::try_from(number % (bound.max(1) as u64)).unwrap_or(0);
        let mut step = within(mix(seed ^ 1)).max(1);
        while gcd(step, bound) > 1 {
            step += 1;
        }
        Self { at: within(mix(seed)), step, left: bound, bound }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let here = self.at;
        self.at = (self.at + self.step) % self.bound.max(1);
        Some(here)
    }
}

fn gcd(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_sees_every_place_once() {
        for bound in [0, 1, 2, 3, 10, 97, 128, 1000] {
            for seed in 0..20 {
                let mut seen: Vec<_> = Walk::new(bound, seed).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..bound).collect::<Vec<_>>(), "{bound} {seed}");
            }
        }
    }
}
