//! The choice of a node: a pure function of cluster view, pod and seed.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;

use crate::scheduler::affinity::Wishes;
use crate::scheduler::need::Need;
use crate::scheduler::storage::Storage;
use crate::scheduler::view::{ClusterView, Facts, NodeInfo};

/// Clusters up to this size are looked at whole; in larger ones the search stops once enough nodes
/// fit, since the best of many is hardly better than the best of these.
const FEASIBLE_NODES_MAX: usize = 128;

/// Weights of the scores, each from 0 to 100. The first four are Kubernetes'; spreading over nodes
/// is stronger than there: two replicas on one node are one power cut.
const WEIGHT_FREE: i64 = 1;
const WEIGHT_BALANCED: i64 = 1;
const WEIGHT_PREFERENCE: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;
const WEIGHT_SPREAD: i64 = 5;
/// The best score of each kind.
const SCORE_MAX: i64 = 100;

/// Why no node takes a pod: how many nodes there are, and how many have each reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them refuse for each reason. A node may have several.
    pub reasons: BTreeMap<String, usize>,
}

impl fmt::Display for Unschedulable {
    /// As Kubernetes words it; people and tests search for parts of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available: ", self.nodes)?;
        let mut counted: Vec<_> =
            // What has no count is about the pod, not about nodes.
            self.reasons.iter().map(|(reason, count)| match count {
                0 => reason.clone(),
                count => format!("{count} {reason}"),
            }).collect();
        counted.sort();
        write!(f, "{}.", counted.join(", "))
    }
}

/// The node for `pod`, or why there is none. `seed` decides between equals.
///
/// # Errors
///
/// [`Unschedulable`]: wait for a node or a pod to change, then decide again.
pub fn decide<'a>(view: &'a ClusterView, pod: &Pod, seed: u64) -> Result<&'a str, Unschedulable> {
    decide_with(view, pod, &Storage::default(), seed)
}

/// As [`decide`], for a pod with claims of storage.
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
    if let Some(reason) = &storage.missing {
        let reasons = BTreeMap::from([(reason.clone(), 0)]);
        return Err(Unschedulable { nodes: view.nodes_known(), reasons });
    }
    let storage = storage.on(view);
    let (wishes, need) = (Wishes::of(pod), Need::of(pod));
    let nodes = view.nodes();
    let mut reasons = BTreeMap::new();
    let mut feasible = Vec::new();
    let start = usize::try_from(seed % (nodes.len().max(1) as u64)).unwrap_or(0);
    let (before, from) = nodes.split_at(start);
    for node in from.iter().chain(before) {
        let Some(facts) = &node.facts else { continue };
        let refusals = match storage.refusal(&node.name, facts) {
            None => refusals(node, facts, &wishes, &need),
            Some(reason) => Refusals::One(reason.to_owned()),
        };
        match refusals {
            Refusals::None => feasible.push((node, facts)),
            Refusals::One(reason) => *reasons.entry(reason).or_insert(0) += 1,
            Refusals::Lacks(lacking) => {
                for reason in lacking {
                    *reasons.entry(reason.to_owned()).or_insert(0) += 1;
                }
            }
        }
        if feasible.len() >= FEASIBLE_NODES_MAX {
            break;
        }
    }
    best(&feasible, &wishes, &need, seed)
        .ok_or(Unschedulable { nodes: view.nodes_known(), reasons })
}

/// Why a node does not take a pod.
enum Refusals {
    None,
    One(String),
    Lacks(Vec<&'static str>),
}

fn refusals(node: &NodeInfo, facts: &Facts, wishes: &Wishes<'_>, need: &Need) -> Refusals {
    if facts.is_unschedulable && !wishes.tolerates_cordon() {
        return Refusals::One("node(s) were unschedulable".to_owned());
    }
    if wishes.names_another(&node.name) {
        return Refusals::One("node(s) didn't match the requested node name".to_owned());
    }
    if let Some(taint) = wishes.untolerated(&facts.taints) {
        let (key, value) = (&taint.key, taint.value.as_deref().unwrap_or_default());
        return Refusals::One(format!("node(s) had untolerated taint {{{key}: {value}}}"));
    }
    if !wishes.accepts(&node.name, facts) {
        return Refusals::One("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    let clashes = |wanted| node.ports.iter().any(|held| held.clashes(wanted));
    if need.ports.iter().any(clashes) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Refusals::One(reason.to_owned());
    }
    let lacking = lacking(node, facts, need);
    if lacking.is_empty() { Refusals::None } else { Refusals::Lacks(lacking) }
}

/// What the node has too little of. A pod that asks for nothing of a kind always fits in it.
fn lacking(node: &NodeInfo, facts: &Facts, need: &Need) -> Vec<&'static str> {
    let free = facts.allocatable.minus(node.used);
    let wanted = need.resources;
    [
        ("Too many pods", wanted.pods, free.pods),
        ("Insufficient cpu", wanted.cpu_millis, free.cpu_millis),
        ("Insufficient memory", wanted.memory_bytes, free.memory_bytes),
        ("Insufficient ephemeral-storage", wanted.ephemeral_bytes, free.ephemeral_bytes),
    ]
    .into_iter()
    .filter(|&(_, wanted, free)| wanted > 0 && wanted > free)
    .map(|(reason, ..)| reason)
    .collect()
}

fn best<'a>(
    feasible: &[(&'a NodeInfo, &'a Facts)],
    wishes: &Wishes<'_>,
    need: &Need,
    seed: u64,
) -> Option<&'a str> {
    let preferences: Vec<_> =
        feasible.iter().map(|(node, facts)| wishes.preference(&node.name, facts)).collect();
    let preference_max = preferences.iter().copied().max().unwrap_or(0);
    let discouraging: Vec<_> =
        feasible.iter().map(|(_, facts)| wishes.discouraging(&facts.taints)).collect();
    let discouraging_max = i64::try_from(discouraging.iter().copied().max().unwrap_or(0)).ok()?;
    let group_size = |node: &NodeInfo| {
        need.group.as_ref().and_then(|group| node.groups.get(group)).copied().unwrap_or(0)
    };
    let group_min = feasible.iter().map(|(node, _)| group_size(node)).min().unwrap_or(0);
    let mut best: Vec<&'a str> = Vec::new();
    let mut best_score = i64::MIN;
    for (((node, facts), preference), discouraging) in
        feasible.iter().zip(preferences).zip(discouraging)
    {
        let discouraging = i64::try_from(discouraging).unwrap_or(i64::MAX);
        let score = WEIGHT_FREE * free_score(node, facts, need)
            + WEIGHT_BALANCED * balanced_score(node, facts, need)
            + WEIGHT_PREFERENCE * share(preference, preference_max)
            + WEIGHT_TAINTS * (SCORE_MAX - share(discouraging, discouraging_max))
            + WEIGHT_SPREAD * spread_score(group_size(node) - group_min);
        if score > best_score {
            best_score = score;
            best.clear();
        }
        if score == best_score {
            best.push(&node.name);
        }
    }
    // The order of nodes turns with the seed as well; the names make it the same for every order.
    best.sort_unstable();
    let at = usize::try_from(seed % (best.len().max(1) as u64)).ok()?;
    best.get(at).copied()
}

fn share(part: i64, whole: i64) -> i64 {
    if whole <= 0 { 0 } else { part.saturating_mul(SCORE_MAX) / whole }
}

/// The emptier, the better: the mean of the free shares of cpu and memory with the pod in place.
fn free_score(node: &NodeInfo, facts: &Facts, need: &Need) -> i64 {
    let (cpu, memory) = free_shares(node, facts, need);
    i64::midpoint(cpu, memory)
}

/// The more even, the better: a node short of one resource only cannot use what is left.
fn balanced_score(node: &NodeInfo, facts: &Facts, need: &Need) -> i64 {
    let (cpu, memory) = free_shares(node, facts, need);
    SCORE_MAX - (cpu - memory).abs()
}

/// Measured use counts here and not in [`lacking`]: a busy node is the worse choice, but one that is
/// left to the last pod that asks for nothing.
fn free_shares(node: &NodeInfo, facts: &Facts, need: &Need) -> (i64, i64) {
    let left = facts.allocatable.minus(node.load()).minus(need.resources);
    (
        share(left.cpu_millis.max(0), facts.allocatable.cpu_millis),
        share(left.memory_bytes.max(0), facts.allocatable.memory_bytes),
    )
}

/// Full marks for the nodes with the fewest pods of the group, half for one more, and so on: one
/// pod of difference always outweighs how empty a node is.
fn spread_score(more_than_min: u32) -> i64 {
    SCORE_MAX / (1 + i64::from(more_than_min))
}
