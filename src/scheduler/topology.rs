//! Which nodes are near each other: those with the same value of a label.

use std::collections::BTreeMap;

use crate::scheduler::slab::{NONE, at};

/// What a label of nodes says of them: which value each has, and how many have it.
#[derive(Debug, Clone, Default)]
pub(super) struct Topology {
    /// The label; empty: each node is a domain of its own, of the node's number.
    pub(super) label: String,
    /// The domain of each node; [`NONE`] without the label.
    domain_of: Vec<u32>,
    domains: BTreeMap<String, u32>,
    /// How many nodes each domain has.
    sizes: Vec<u32>,
    free: Vec<u32>,
    /// How many known nodes do not have the label.
    pub(super) missing: usize,
}

impl Topology {
    pub(super) fn new(label: &str) -> Self {
        Self { label: label.to_owned(), ..Self::default() }
    }

    /// Whether every node is a domain of its own.
    pub(super) fn is_each(&self) -> bool {
        self.label.is_empty()
    }

    /// The domain of a node; [`NONE`] if it has none.
    pub(super) fn domain(&self, node: u32) -> u32 {
        self.domain_of.get(at(node)).copied().unwrap_or(NONE)
    }

    /// How many domains have nodes; not told where each node is its own.
    pub(super) fn domains(&self) -> usize {
        self.domains.len()
    }

    /// Takes note of the labels that a node has now; `None`: it is gone.
    pub(super) fn set(
        &mut self,
        node: u32,
        labels: Option<&BTreeMap<String, String>>,
        had_labels: bool,
    ) {
        let place = at(node);
        if self.domain_of.len() <= place {
            self.domain_of.resize(place + 1, NONE);
        }
        if self.is_each() {
            if let Some(domain) = self.domain_of.get_mut(place) {
                *domain = if labels.is_some() { node } else { NONE };
            }
            return;
        }
        let old = self.domain(node);
        if let Some(size) = self.sizes.get_mut(at(old)) {
            *size = size.saturating_sub(1);
            if *size == 0 {
                self.domains.retain(|_, domain| *domain != old);
                self.free.push(old);
            }
        } else if had_labels {
            self.missing = self.missing.saturating_sub(1);
        }
        let value = labels.and_then(|labels| labels.get(&self.label));
        let domain = value.map_or(NONE, |value| self.enter(value));
        if domain == NONE && labels.is_some() {
            self.missing += 1;
        }
        if let Some(of_node) = self.domain_of.get_mut(place) {
            *of_node = domain;
        }
    }

    fn enter(&mut self, value: &str) -> u32 {
        let domain = match self.domains.get(value) {
            Some(&domain) => domain,
            None => {
                let domain = self.free.pop().unwrap_or_else(|| {
                    self.sizes.push(0);
                    u32::try_from(self.sizes.len() - 1).unwrap_or(NONE)
                });
                self.domains.insert(value.to_owned(), domain);
                domain
            }
        };
        if let Some(size) = self.sizes.get_mut(at(domain)) {
            *size += 1;
        }
        domain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_come_and_go_with_their_nodes() {
        let zone = |name: &str| BTreeMap::from([("zone".to_owned(), name.to_owned())]);
        let mut topology = Topology::new("zone");
        topology.set(0, Some(&zone("a")), false);
        topology.set(1, Some(&zone("a")), false);
        topology.set(2, Some(&BTreeMap::new()), false);
        assert_eq!(topology.domain(0), topology.domain(1));
        assert_eq!((topology.domain(2), topology.domains(), topology.missing), (NONE, 1, 1));
        topology.set(2, Some(&zone("b")), true);
        assert_eq!((topology.domains(), topology.missing), (2, 0));
        topology.set(0, None, true);
        topology.set(1, None, true);
        assert_eq!((topology.domains(), topology.domain(0), topology.missing), (1, NONE, 0));
    }

    #[test]
    fn every_node_is_a_domain_of_its_own() {
        let mut topology = Topology::new("");
        for node in 0..3 {
            topology.set(node, Some(&BTreeMap::new()), false);
        }
        topology.set(1, None, true);
        assert_eq!([0, 1, 2].map(|node| topology.domain(node)), [0, NONE, 2]);
        assert_eq!(topology.missing, 0);
    }
}
