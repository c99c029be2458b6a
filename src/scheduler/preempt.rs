//! Which pods would have to go for one of higher priority: a pure function as well.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::api::selector::LabelSelector;
use crate::scheduler::decide::Walk;
use crate::scheduler::filter::{Gone, Round};
use crate::scheduler::node::NodeInfo;
use crate::scheduler::reason::{Reason, counted};
use crate::scheduler::storage::Storage;
use crate::scheduler::view::{ClusterView, PodKey};

/// Nodes on which the victims are worked out before the best of them is taken.
const CANDIDATES_MAX: usize = 100;
/// What Kubernetes says of nodes where others leaving changes nothing.
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
/// What it says of nodes without pods of lower priority.
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// How many pods of a PodDisruptionBudget may be disrupted now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Its namespace, and that of its pods.
    pub namespace: String,
    /// Its pods.
    pub selector: LabelSelector,
    /// How many more of them may be disrupted.
    pub allowed: i32,
    /// Names of those that were let go: they are taken from `allowed` already.
    pub let_go: BTreeSet<String>,
}

impl Budget {
    /// What `budget` allows now; `None` without a status or with a selector that is none.
    #[must_use]
    pub fn of(budget: &PodDisruptionBudget) -> Option<Self> {
        let selector = budget.spec.as_ref()?.selector.as_ref();
        let status = budget.status.as_ref()?;
        let let_go = status.disrupted_pods.iter().flat_map(|pods| pods.keys().cloned());
        Some(Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: LabelSelector::from_typed(selector).ok()?,
            allowed: status.disruptions_allowed?,
            let_go: let_go.collect(),
        })
    }
}

/// A pod that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Victim {
    /// Its namespace and name.
    pub key: PodKey,
    /// Its uid.
    pub uid: String,
}

/// A node, and who has to leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The node's name.
    pub node: String,
    /// The most important first; without those that are leaving already.
    pub victims: Vec<Victim>,
    /// Pods of lower priority that waited for the node: they look for another one.
    pub displaced: Vec<PodKey>,
}

/// Who has to leave which node, so that a pod of `class` fits there.
///
/// # Errors
///
/// Kubernetes' words for why nobody leaving would help.
pub(super) fn preempt(
    view: &ClusterView,
    class: u32,
    who: &PodKey,
    storage: &Storage,
    seed: u64,
) -> Result<Plan, String> {
    let round = Round::new(view, class, Some(who), storage);
    let is_complete = storage.missing.is_none() && storage.devices.missing.is_none();
    let Some(round) = round.filter(|_| is_complete) else {
        return Err(String::new());
    };
    if !round.demand.may_preempt {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if is_under_way(&round, who) {
        return Err("not eligible due to terminating pod on the nominated node.".to_owned());
    }
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(Rank, u32, Vec<u32>)> = None;
    let mut candidates = 0;
    for slot in Walk::new(view.nodes.slots(), seed) {
        let Some(id) = u32::try_from(slot).ok() else { continue };
        let Some(node) = view.nodes.get(id).filter(|node| node.facts.is_some()) else { continue };
        match victims(&round, id, node) {
            Ok((violations, victims)) => {
                let rank = Rank::of(view, violations, &victims, node.lot(seed));
                if best.as_ref().is_none_or(|(best, ..)| rank < *best) {
                    best = Some((rank, id, victims));
                }
                candidates += 1;
                if candidates >= CANDIDATES_MAX {
                    break;
                }
            }
            Err(reasons) => {
                for reason in reasons {
                    *refused.entry(reason).or_insert(0) += 1;
                }
            }
        }
    }
    let Some((_, id, victims)) = best else {
        let nodes = view.nodes_known();
        return Err(format!("0/{nodes} nodes are available: {}.", counted(&refused)));
    };
    let node = view.nodes.get(id).ok_or_else(String::new)?;
    let leaving = victims.iter().filter_map(|pod| view.pods.get(*pod));
    let nominees = node.nominees.iter();
    Ok(Plan {
        node: node.name.clone(),
        victims: leaving
            .filter(|pod| !pod.is_ending)
            .map(|pod| Victim { key: (*pod.key).clone(), uid: pod.uid.to_string() })
            .collect(),
        displaced: nominees
            .filter(|nominee| nominee.priority < round.demand.priority && nominee.key != *who)
            .map(|nominee| nominee.key.clone())
            .collect(),
    })
}

/// Whether pods are leaving already for this one.
fn is_under_way(round: &Round<'_>, who: &PodKey) -> bool {
    let view = round.view;
    let node = view.nomination(who).and_then(|node| view.nodes.get(node));
    let pods = node.into_iter().flat_map(|node| &node.pods);
    let mut pods = pods.filter_map(|pod| view.pods.get(*pod));
    pods.any(|pod| pod.is_ending && priority(view, pod.class) < round.demand.priority)
}

fn priority(view: &ClusterView, class: u32) -> i32 {
    view.class(class).map_or(0, |class| class.demand.priority)
}

/// How many budgets would be overdrawn, and who has to go; or why that would not help.
fn victims<'a>(
    round: &Round<'a>,
    id: u32,
    node: &'a NodeInfo,
) -> Result<(usize, Vec<u32>), Vec<String>> {
    let view = round.view;
    let mut reasons: Vec<Reason<'_>> = Vec::new();
    let nobody = Gone::default();
    round.refusals(id, node, &nobody, false, &mut |reason| reasons.push(reason));
    let is_hopeless = reasons.iter().any(|reason| reason.is_final())
        || node.facts.as_ref().is_some_and(|facts| round.is_too_small(facts));
    if is_hopeless {
        return Err(vec![NOT_HELPFUL.to_owned()]);
    }
    let lower = node.pods.iter().copied().filter(|pod| {
        view.pods.get(*pod).is_some_and(|pod| priority(view, pod.class) < round.demand.priority)
    });
    let mut lower: Vec<_> = lower.collect();
    if lower.is_empty() {
        return Err(vec![NO_VICTIMS.to_owned()]);
    }
    let mut left = Vec::new();
    let all_gone = Gone::of(view, lower.clone());
    round.refusals(id, node, &all_gone, false, &mut |reason| left.push(reason));
    if !left.is_empty() {
        return Err(left.iter().map(ToString::to_string).collect());
    }
    // The most important is asked first whether it may stay.
    let importance = |pod: &u32| {
        let placed = view.pods.get(*pod);
        let class = placed.map_or(0, |pod| priority(view, pod.class));
        (Reverse(class), placed.map_or(0, |pod| pod.since), placed.map(|pod| pod.key.clone()))
    };
    lower.sort_by_cached_key(importance);
    let overdrawn = overdrawn(view, &lower);
    let (protected, free): (Vec<_>, Vec<_>) =
        lower.iter().copied().partition(|pod| overdrawn.contains(pod));
    let mut gone = lower.clone();
    for pod in protected.into_iter().chain(free) {
        let without: Vec<_> = gone.iter().copied().filter(|other| *other != pod).collect();
        if round.fits(id, node, &Gone::of(view, without.clone()), false) {
            gone = without;
        }
    }
    let violations = gone.iter().filter(|pod| overdrawn.contains(pod)).count();
    Ok((violations, gone))
}

/// Those of the pods whose leaving a budget would not allow, if they left in this order.
fn overdrawn(view: &ClusterView, pods: &[u32]) -> Vec<u32> {
    let mut left: Vec<_> = view.budgets.iter().map(|budget| budget.allowed).collect();
    let mut found = Vec::new();
    for id in pods {
        let Some(pod) = view.pods.get(*id) else { continue };
        let Some(class) = view.class(pod.class) else { continue };
        let is_its = |budget: &Budget| {
            budget.namespace == class.demand.namespace
                && budget.selector.matches_labels(&class.demand.labels)
                && !budget.let_go.contains(&pod.key.1)
        };
        let its = view.budgets.iter().zip(&mut left).filter(|(budget, _)| is_its(budget));
        let mut is_overdrawn = false;
        for (_, allowed) in its {
            *allowed -= 1;
            is_overdrawn |= *allowed < 0;
        }
        if is_overdrawn {
            found.push(*id);
        }
    }
    found
}

/// The less, the better: Kubernetes' order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    violations: usize,
    highest: i32,
    sum: i64,
    count: usize,
    /// Of the most important victims, the one that came first came the latest.
    earliest: Reverse<i64>,
    lot: u64,
}

impl Rank {
    fn of(view: &ClusterView, violations: usize, victims: &[u32], lot: u64) -> Self {
        let pods = victims.iter().filter_map(|pod| view.pods.get(*pod));
        let of = pods.map(|pod| (priority(view, pod.class), pod.since));
        let pods: Vec<_> = of.collect();
        let highest = pods.iter().map(|(priority, _)| *priority).max().unwrap_or(i32::MIN);
        // Lifted above zero, so that two of low priority count more than one.
        let lifted = |priority: i32| i64::from(priority) + i64::from(i32::MAX) + 1;
        let earliest = pods.iter().filter(|(priority, _)| *priority == highest);
        Self {
            violations,
            highest,
            sum: pods.iter().map(|(priority, _)| lifted(*priority)).sum(),
            count: pods.len(),
            earliest: Reverse(earliest.map(|(_, since)| *since).min().unwrap_or(i64::MAX)),
            lot,
        }
    }
}
