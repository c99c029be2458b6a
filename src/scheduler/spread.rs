//! How evenly pods are spread: one constraint of one pod over all nodes.

use std::collections::{BTreeMap, BTreeSet};

use crate::scheduler::classes::{Class, SpreadTerm};
use crate::scheduler::demand::Spread;
use crate::scheduler::filter::Gone;
use crate::scheduler::node::Facts;
use crate::scheduler::reason::Reason;
use crate::scheduler::slab::NONE;
use crate::scheduler::terms::Term;
use crate::scheduler::topology::Topology;
use crate::scheduler::view::ClusterView;

/// A constraint as it stands now.
pub(super) struct Skew<'a> {
    pub(super) spread: &'a Spread,
    topology: &'a Topology,
    counts: Counts<'a>,
    /// Number of the term.
    pub(super) term: u32,
    /// The least count of all domains that count.
    min: u32,
    /// The pod counts itself.
    own: u32,
}

/// Pods in each domain.
enum Counts<'a> {
    /// As counted: every node of a domain counts.
    All(&'a Term),
    /// On the nodes that count.
    Some(BTreeMap<u32, u32>),
}

impl Counts<'_> {
    fn of(&self, domain: u32) -> u32 {
        match self {
            Self::All(term) => term.count(domain).staying(),
            Self::Some(counts) => counts.get(&domain).copied().unwrap_or(0),
        }
    }
}

impl<'a> Skew<'a> {
    /// `together` are all constraints of its kind: nodes that lack a label of one of them count for
    /// none.
    pub(super) fn new(
        view: &'a ClusterView,
        class: &'a Class,
        spread: &'a Spread,
        term: SpreadTerm,
        together: &[(&'a Spread, &'a SpreadTerm)],
    ) -> Option<Self> {
        let known = view.terms.get(term.by_domain)?;
        let topology = view.terms.topology(known.topology)?;
        let own = u32::from(class.matches.contains(&term.by_domain));
        let topologies = together
            .iter()
            .filter_map(|(_, term)| view.terms.topology(view.terms.get(term.by_domain)?.topology));
        let topologies: Vec<_> = topologies.collect();
        let leaves_out =
            spread.honors_taints || (spread.honors_affinity && class.demand.wishes.selects_nodes());
        let counts_all = !leaves_out && topologies.iter().all(|topology| topology.missing == 0);
        let (counts, min) = if counts_all {
            let is_everywhere = known.counts().len() >= topology.domains();
            let min = if !is_everywhere || topology.domains() < at_least(spread) {
                0
            } else {
                known.counts().map(|(_, count)| count.staying()).min().unwrap_or(0)
            };
            (Counts::All(known), min)
        } else {
            let counts = some(view, class, spread, term, &topologies);
            let is_enough = counts.len() >= at_least(spread);
            let min = counts.values().copied().min().filter(|_| is_enough).unwrap_or(0);
            (Counts::Some(counts), min)
        };
        Some(Self { spread, topology, counts, term: term.by_domain, min, own })
    }

    /// Whether the node would make it too uneven. `awaited` more pods of the term are to come there.
    pub(super) fn refusal(
        &self,
        view: &ClusterView,
        node: u32,
        gone: &Gone,
        awaited: u32,
    ) -> Option<Reason<'a>> {
        let domain = self.topology.domain(node);
        if domain == NONE {
            return Some(Reason::SpreadLabel);
        }
        let mut count = self.counts.of(domain);
        if !gone.pods.is_empty() {
            count = count.saturating_sub(gone.count(view, self.term).staying());
        }
        count = count.saturating_add(awaited);
        let skew = (count + self.own).saturating_sub(self.min.min(count));
        (skew > self.spread.skew_max).then_some(Reason::Spread)
    }

    /// How many pods there are in the node's domain, and the domain; `None` without the label.
    pub(super) fn count(&self, node: u32) -> Option<(u32, u32)> {
        let domain = self.topology.domain(node);
        (domain != NONE).then(|| (domain, self.counts.of(domain)))
    }
}

fn at_least(spread: &Spread) -> usize {
    usize::try_from(spread.domains_min).unwrap_or(usize::MAX)
}

/// Pods in each domain that has nodes that count, on those nodes.
fn some(
    view: &ClusterView,
    class: &Class,
    spread: &Spread,
    term: SpreadTerm,
    topologies: &[&Topology],
) -> BTreeMap<u32, u32> {
    let mut counts = BTreeMap::new();
    let (Some(by_domain), Some(by_node)) =
        (view.terms.get(term.by_domain), view.terms.get(term.by_node))
    else {
        return counts;
    };
    let Some(topology) = view.terms.topology(by_domain.topology) else { return counts };
    let wishes = &class.demand.wishes;
    let takes = |name: &str, facts: &Facts| {
        (!spread.honors_affinity || wishes.accepts(name, facts))
            && (!spread.honors_taints
                || (wishes.untolerated(&facts.taints).is_none()
                    && (!facts.is_unschedulable || wishes.tolerates_cordon())))
    };
    for (id, node) in view.nodes.iter() {
        let Some(facts) = &node.facts else { continue };
        let has_all = topologies.iter().all(|topology| topology.domain(id) != NONE);
        if has_all && takes(&node.name, facts) {
            *counts.entry(topology.domain(id)).or_insert(0) += by_node.count(id).staying();
        }
    }
    counts
}

/// Points of the nodes for the soft constraints, most for the emptiest: Kubernetes' formula.
pub(super) fn soft_scores(skews: &[Skew<'_>], nodes: &[u32]) -> Option<Vec<i64>> {
    if skews.is_empty() {
        return None;
    }
    let domains = |skew: &Skew<'_>| {
        let found: BTreeSet<_> =
            nodes.iter().filter_map(|node| Some(skew.count(*node)?.0)).collect();
        found.len()
    };
    // The more domains, the more a pod in one of them counts.
    let weights: Vec<_> = skews.iter().map(|skew| ln_milli(domains(skew) + 2)).collect();
    let raw = |node: u32| {
        let mut sum = 0;
        for (skew, weight) in skews.iter().zip(&weights) {
            let (_, count) = skew.count(node)?;
            sum += i64::from(count) * weight + (i64::from(skew.spread.skew_max) - 1) * 1000;
        }
        Some(sum)
    };
    let raw: Vec<Option<i64>> = nodes.iter().map(|node| raw(*node)).collect();
    let known = || raw.iter().flatten().copied();
    let (min, max) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
    let normal = |points: Option<i64>| match points {
        None => 0,
        Some(_) if max == 0 => 100,
        Some(points) => 100 * (max + min - points) / max,
    };
    Some(raw.into_iter().map(normal).collect())
}

/// A thousand times the natural logarithm.
fn ln_milli(number: usize) -> i64 {
    let number = f64::from(u32::try_from(number).unwrap_or(u32::MAX));
    #[expect(clippy::cast_possible_truncation, reason = "at most 22181")]
    let milli = (number.ln() * 1000.0) as i64;
    milli
}
