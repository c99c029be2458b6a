//! How many pods of each kind there are near each node, counted as pods come and go.
//!
//! A term is a set of pods and a label of nodes: a constraint of some pod, or how the pods of one
//! controller are spread. A choice looks its counts up, whatever the number of pods.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::scheduler::demand::Matcher;
use crate::scheduler::slab::{NONE, Slab, at};
use crate::scheduler::topology::Topology;

/// Pods of one domain, as they concern one term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// Pods the term is about.
    pub(super) matched: u32,
    /// Those of them that are ending.
    pub(super) ending: u32,
    /// Pods that must not have pods near them that the term is about.
    pub(super) repelling: u32,
    /// How much the pods here would like pods near them that the term is about.
    pub(super) weight: i64,
}

impl Count {
    /// Pods the term is about that stay.
    pub(super) fn staying(self) -> u32 {
        self.matched.saturating_sub(self.ending)
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            matched: self.matched.saturating_add(other.matched),
            ending: self.ending.saturating_add(other.ending),
            repelling: self.repelling.saturating_add(other.repelling),
            weight: self.weight.saturating_add(other.weight),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            matched: self.matched.saturating_sub(other.matched),
            ending: self.ending.saturating_sub(other.ending),
            repelling: self.repelling.saturating_sub(other.repelling),
            weight: self.weight.saturating_sub(other.weight),
        }
    }
}

/// A set of pods, a label of nodes, and the counts.
#[derive(Debug, Clone)]
pub(super) struct Term {
    pub(super) matcher: Matcher,
    /// Number of the topology.
    pub(super) topology: u32,
    fingerprint: u64,
    /// Classes of pods that have it.
    users: usize,
    counts: BTreeMap<u32, Count>,
    /// Domains with repelling pods: most terms have none.
    pub(super) repelling: usize,
    /// Domains with a weight.
    pub(super) weighing: usize,
}

impl Term {
    /// The count of one domain.
    pub(super) fn count(&self, domain: u32) -> Count {
        self.counts.get(&domain).copied().unwrap_or_default()
    }

    /// Every domain with a count.
    pub(super) fn counts(&self) -> impl ExactSizeIterator<Item = (u32, Count)> {
        self.counts.iter().map(|(domain, count)| (*domain, *count))
    }

    /// Whether any pod the term is about is anywhere.
    pub(super) fn is_met_anywhere(&self) -> bool {
        self.counts.values().any(|count| count.matched > 0)
    }

    fn change(&mut self, domain: u32, change: Count, is_more: bool) {
        if domain == NONE {
            return;
        }
        let count = self.counts.entry(domain).or_default();
        let (repelled, weighed) = (count.repelling > 0, count.weight != 0);
        *count = if is_more { count.plus(change) } else { count.minus(change) };
        let now = *count;
        if now == Count::default() {
            self.counts.remove(&domain);
        }
        step(&mut self.repelling, repelled, now.repelling > 0);
        step(&mut self.weighing, weighed, now.weight != 0);
    }
}

fn step(count: &mut usize, was: bool, is: bool) {
    match (was, is) {
        (false, true) => *count += 1,
        (true, false) => *count = count.saturating_sub(1),
        _ => {}
    }
}

/// All terms that some pod has.
#[derive(Debug, Clone, Default)]
pub(super) struct Terms {
    terms: Slab<Term>,
    by_fingerprint: BTreeMap<u64, Vec<u32>>,
    topologies: Vec<Topology>,
}

impl Terms {
    pub(super) fn get(&self, id: u32) -> Option<&Term> {
        self.terms.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Term)> {
        self.terms.iter()
    }

    pub(super) fn topology(&self, id: u32) -> Option<&Topology> {
        self.topologies.get(at(id))
    }

    pub(super) fn topologies_mut(&mut self) -> impl Iterator<Item = &mut Topology> {
        self.topologies.iter_mut()
    }

    /// The number of a topology; a new one has to be told of all nodes: the second value says so.
    pub(super) fn enter_topology(&mut self, label: &str) -> (u32, bool) {
        let found = self.topologies.iter().position(|topology| topology.label == label);
        let is_new = found.is_none();
        if is_new {
            self.topologies.push(Topology::new(label));
        }
        let id = found.unwrap_or(self.topologies.len().saturating_sub(1));
        (u32::try_from(id).unwrap_or(NONE), is_new)
    }

    pub(super) fn topology_mut(&mut self, id: u32) -> Option<&mut Topology> {
        self.topologies.get_mut(at(id))
    }

    /// The number of a term, which one more class has. The second value says whether it is new: its
    /// pods are to be counted then.
    pub(super) fn enter(&mut self, matcher: &Matcher, topology: u32) -> (u32, bool) {
        let mut hasher = DefaultHasher::new();
        (matcher, topology).hash(&mut hasher);
        let fingerprint = hasher.finish();
        let known = self.by_fingerprint.entry(fingerprint).or_default();
        let found = known.iter().copied().find(|id| {
            self.terms
                .get(*id)
                .is_some_and(|term| term.topology == topology && term.matcher == *matcher)
        });
        if let Some(id) = found {
            if let Some(term) = self.terms.get_mut(id) {
                term.users += 1;
            }
            return (id, false);
        }
        let term = Term {
            matcher: matcher.clone(),
            topology,
            fingerprint,
            users: 1,
            counts: BTreeMap::new(),
            repelling: 0,
            weighing: 0,
        };
        let id = self.terms.insert(term);
        known.push(id);
        (id, true)
    }

    /// One class less has the term. Returns whether that was the last: the term is gone then.
    pub(super) fn leave(&mut self, id: u32) -> bool {
        let Some(term) = self.terms.get_mut(id) else { return false };
        term.users = term.users.saturating_sub(1);
        if term.users > 0 {
            return false;
        }
        let fingerprint = term.fingerprint;
        self.terms.remove(id);
        if let Some(ids) = self.by_fingerprint.get_mut(&fingerprint) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_fingerprint.remove(&fingerprint);
            }
        }
        true
    }

    /// Counts `change` on `node` in, or out.
    pub(super) fn change(&mut self, id: u32, node: u32, change: Count, is_more: bool) {
        let Some(term) = self.terms.get_mut(id) else { return };
        let topology = self.topologies.get(at(term.topology));
        let domain = topology.map_or(NONE, |topology| topology.domain(node));
        term.change(domain, change, is_more);
    }

    /// Drops all that is counted of pods the term is about: they are counted again.
    pub(super) fn forget_matched(&mut self, id: u32) {
        let Some(term) = self.terms.get_mut(id) else { return };
        term.counts.retain(|_, count| {
            count.matched = 0;
            count.ending = 0;
            *count != Count::default()
        });
    }
}
