//! Which of the nodes that take a pod is the best.

use crate::scheduler::filter::Round;
use crate::scheduler::node::{Facts, NodeInfo};
use crate::scheduler::spread::{Skew, soft_scores};

/// Weights of the scores, each from 0 to 100: Kubernetes', but spreading the pods of one controller
/// over nodes is stronger than there: two replicas on one node are one power cut.
const WEIGHT_RESOURCES: i64 = 1;
const WEIGHT_BALANCED: i64 = 1;
const WEIGHT_NODE_AFFINITY: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;
const WEIGHT_POD_AFFINITY: i64 = 2;
const WEIGHT_TOPOLOGY: i64 = 2;
const WEIGHT_IMAGES: i64 = 1;
const WEIGHT_GROUP: i64 = 5;
/// The best score of each kind.
const SCORE_MAX: i64 = 100;
/// Bytes of an image from which on it counts that a node has it, and beyond which it counts no more.
/// Kubernetes' 23 MB to 1 GB are for container images; components are a twentieth of that.
const IMAGE_BYTES_MIN: i64 = 1 << 20;
const IMAGE_BYTES_MAX: i64 = 64 << 20;

/// A node that takes the pod.
pub(super) struct Candidate<'a> {
    pub(super) id: u32,
    pub(super) node: &'a NodeInfo,
    pub(super) facts: &'a Facts,
}

/// The best of the nodes; `seed` decides between equals, whatever their order. `extra` are points that
/// plugins gave, or nothing.
pub(super) fn best(
    round: &Round<'_>,
    nodes: &[Candidate<'_>],
    extra: &[i64],
    seed: u64,
) -> Option<u32> {
    let scores = scores(round, nodes, extra);
    let ranked = nodes.iter().zip(scores);
    ranked.max_by_key(|(node, score)| (*score, node.node.lot(seed))).map(|(node, _)| node.id)
}

/// The points of each node, with those that plugins gave.
pub(super) fn scores(round: &Round<'_>, nodes: &[Candidate<'_>], extra: &[i64]) -> Vec<i64> {
    let mut sums: Vec<_> = nodes.iter().map(|node| of_resources(round, node)).collect();
    for (sum, extra) in sums.iter_mut().zip(extra) {
        *sum += extra;
    }
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *sum += weight * score;
        }
    };
    let wishes = &round.demand.wishes;
    if wishes.prefers_nodes() {
        let points = nodes.iter().map(|node| wishes.preference(&node.node.name, node.facts));
        add(WEIGHT_NODE_AFFINITY, of_most(points.collect()));
    }
    if nodes.iter().any(|node| !node.facts.taints.is_empty()) {
        let against = nodes
            .iter()
            .map(|node| i64::try_from(wishes.discouraging(&node.facts.taints)).unwrap_or(i64::MAX));
        let against = of_most(against.collect());
        add(WEIGHT_TAINTS, against.into_iter().map(|points| SCORE_MAX - points).collect());
    }
    if let Some(points) = of_neighbours(round, nodes) {
        add(WEIGHT_POD_AFFINITY, points);
    }
    let soft = round.demand.spread.iter().zip(&round.class.spread);
    let soft: Vec<_> = soft.filter(|(spread, _)| !spread.is_hard).collect();
    if !soft.is_empty() {
        let skews = soft
            .iter()
            .filter_map(|(spread, term)| Skew::new(round.view, round.class, spread, **term, &soft));
        let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
        if let Some(points) = soft_scores(&skews.collect::<Vec<_>>(), &ids) {
            add(WEIGHT_TOPOLOGY, points);
        }
    }
    if let Some((by_node, by_zone)) = round.class.group {
        if let Some(points) = of_group(round, nodes, by_node) {
            add(WEIGHT_GROUP, points);
        }
        if let Some(points) = of_group(round, nodes, by_zone) {
            add(WEIGHT_TOPOLOGY, points);
        }
    }
    if !round.view.images.is_empty() {
        add(WEIGHT_IMAGES, nodes.iter().map(|node| of_images(round, node.facts)).collect());
    }
    sums
}

/// Each as a share of the most.
fn of_most(points: Vec<i64>) -> Vec<i64> {
    let most = points.iter().copied().max().unwrap_or(0);
    points.into_iter().map(|points| share(points, most)).collect()
}

fn share(part: i64, whole: i64) -> i64 {
    if whole <= 0 { 0 } else { part.saturating_mul(SCORE_MAX) / whole }
}

/// The emptier and the more even, the better; for packing, the fuller.
///
/// Measured use counts here and not for whether a pod fits: a busy node is the worse choice, but one
/// that is left to the last pod that asks for nothing.
fn of_resources(round: &Round<'_>, node: &Candidate<'_>) -> i64 {
    let has = node.facts.allocatable;
    let left = has.minus(node.node.load()).minus(round.demand.need.resources);
    let (cpu, memory) = (
        share(left.cpu_millis.max(0), has.cpu_millis),
        share(left.memory_bytes.max(0), has.memory_bytes),
    );
    let free = i64::midpoint(cpu, memory);
    if round.demand.packs {
        // Evenness would keep pods that ask for one kind only from filling a node.
        return WEIGHT_RESOURCES * (SCORE_MAX - free);
    }
    // The standard deviation of two shares is half of what is between them.
    let deviation = (cpu - memory).abs() / 2;
    WEIGHT_RESOURCES * free + WEIGHT_BALANCED * (SCORE_MAX - deviation)
}

/// What pods near each node, and the pod itself, would like; `None` if nobody says anything.
fn of_neighbours(round: &Round<'_>, nodes: &[Candidate<'_>]) -> Option<Vec<i64>> {
    let (view, class) = (round.view, round.class);
    let is_weighing = |term: &&u32| view.terms.get(**term).is_some_and(|term| term.weighing > 0);
    let theirs: Vec<_> = class.matches.iter().filter(is_weighing).collect();
    if theirs.is_empty() && class.preferred.is_empty() {
        return None;
    }
    let near = |term: u32, node: u32| {
        let term = view.terms.get(term)?;
        Some(term.count(view.terms.topology(term.topology)?.domain(node)))
    };
    let raw = |node: u32| {
        let own = class.preferred.iter().map(|(term, weight)| {
            near(*term, node).map_or(0, |count| weight * i64::from(count.matched))
        });
        let theirs = theirs.iter().map(|term| near(**term, node).map_or(0, |count| count.weight));
        own.sum::<i64>() + theirs.sum::<i64>()
    };
    let raw: Vec<_> = nodes.iter().map(|node| raw(node.id)).collect();
    let (min, max) = (raw.iter().copied().min()?, raw.iter().copied().max()?);
    Some(raw.into_iter().map(|points| share(points - min, max - min)).collect())
}

/// Full marks for the domains with the fewest pods of the controller, half for one more, and so on:
/// one pod of difference outweighs how empty a node is. `None` if they all have the same.
fn of_group(round: &Round<'_>, nodes: &[Candidate<'_>], term: u32) -> Option<Vec<i64>> {
    let term = round.view.terms.get(term)?;
    let topology = round.view.terms.topology(term.topology)?;
    if term.counts().len() == 0 {
        return None;
    }
    let counts: Vec<_> = nodes
        .iter()
        .map(|node| i64::from(term.count(topology.domain(node.id)).staying()))
        .collect();
    let least = counts.iter().copied().min().unwrap_or(0);
    Some(counts.into_iter().map(|count| SCORE_MAX / (1 + count - least)).collect())
}

/// Bytes that need not be fetched, less where few nodes have them: else all would go to those few.
fn of_images(round: &Round<'_>, facts: &Facts) -> i64 {
    let nodes = i64::try_from(round.view.nodes_known()).unwrap_or(i64::MAX).max(1);
    let present = round.demand.images.iter().filter_map(|image| {
        let bytes = facts.images.get(image)?;
        let having = i64::try_from(*round.view.images.get(image)?).ok()?;
        Some(
            i64::try_from(i128::from(*bytes) * i128::from(having) / i128::from(nodes)).unwrap_or(0),
        )
    });
    let images = i64::try_from(round.demand.images.len()).unwrap_or(1).max(1);
    let most = IMAGE_BYTES_MAX.saturating_mul(images);
    let bytes = present.sum::<i64>().clamp(IMAGE_BYTES_MIN, most);
    share(bytes - IMAGE_BYTES_MIN, most - IMAGE_BYTES_MIN)
}
