//! Which pod CIDR each node has: a pure function over the book of allocations.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::config::PodCidrs;

/// Number of the CIDR -> name of the node it belongs to.
pub(super) type Book = BTreeMap<u32, String>;

/// What a run finds out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allocation {
    /// The book as it should be.
    pub(super) book: Book,
    /// What each node without a CIDR gets, once the book is written.
    pub(super) assign: BTreeMap<String, String>,
    /// Nodes for which nothing is left.
    pub(super) starved: Vec<String>,
}

impl Allocation {
    /// The ranges that a node is to have: the one it has or gets, and by its number in the book
    /// the one of IPv6.
    pub(super) fn cidrs(&self, node: &str, has: Option<&String>, cidrs: PodCidrs) -> Vec<String> {
        let Some(first) = has.or_else(|| self.assign.get(node)) else { return Vec::new() };
        let number = self.book.iter().find(|(_, owner)| *owner == node).map(|(number, _)| *number);
        let six = number.and_then(|number| cidrs.cidr_v6(number));
        std::iter::once(first.clone()).chain(six).collect()
    }
}

/// Enters every node into `book`: those that have a CIDR under that, the others under the lowest
/// free number; nodes that are gone are struck out. A CIDR from a time when nodes got larger or
/// smaller ones stays with its node, under all numbers that it touches.
///
/// `nodes` maps names to the CIDR a node has. The book is one object, written with the version
/// read: two leaders cannot give the same number twice, as they could if they only looked at nodes.
pub(super) fn allocate(
    book: &Book,
    nodes: &BTreeMap<String, Option<String>>,
    cidrs: PodCidrs,
) -> Allocation {
    let mut kept: Book = book
        .iter()
        .filter(|(number, node)| **number < cidrs.count() && nodes.contains_key(*node))
        .map(|(number, node)| (*number, node.clone()))
        .collect();
    let numbers_of: BTreeMap<&str, RangeInclusive<u32>> = nodes
        .iter()
        .filter_map(|(node, cidr)| Some((node.as_str(), cidrs.numbers(cidr.as_deref()?))))
        .collect();
    kept.retain(|known, owner| {
        numbers_of.get(owner.as_str()).is_none_or(|numbers| numbers.contains(known))
    });
    for (node, numbers) in numbers_of {
        for number in numbers {
            kept.entry(number).or_insert_with(|| node.to_owned());
        }
    }
    let mut booked: BTreeMap<String, u32> = BTreeMap::new();
    for (number, owner) in &kept {
        booked.entry(owner.clone()).or_insert(*number);
    }
    let (mut assign, mut starved) = (BTreeMap::new(), Vec::new());
    // Numbers below are all taken.
    let mut next = 0;
    for node in nodes.iter().filter(|(_, cidr)| cidr.is_none()).map(|(node, _)| node) {
        let free = || (next..cidrs.count()).find(|at| !kept.contains_key(at));
        match booked.get(node).copied().or_else(free) {
            Some(number) => {
                if !booked.contains_key(node) {
                    next = number + 1;
                }
                kept.insert(number, node.clone());
                assign.insert(node.clone(), cidrs.cidr(number));
            }
            None => starved.push(node.clone()),
        }
    }
    Allocation { book: kept, assign, starved }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(all: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
        all.iter().map(|(name, cidr)| ((*name).to_owned(), cidr.map(str::to_owned))).collect()
    }

    fn book(all: &[(u32, &str)]) -> Book {
        all.iter().map(|(number, name)| (*number, (*name).to_owned())).collect()
    }

    #[test]
    fn nodes_get_the_lowest_free_number() {
        let known = book(&[(0, "a"), (2, "c")]);
        let nodes = nodes(&[
            ("a", Some("10.42.0.0/24")),
            ("b", None),
            ("c", Some("10.42.2.0/24")),
            ("d", None),
        ]);
        let got = allocate(&known, &nodes, PodCidrs::default());
        assert_eq!(got.book, book(&[(0, "a"), (1, "b"), (2, "c"), (3, "d")]));
        assert_eq!(got.assign["b"], "10.42.1.0/24");
        assert_eq!(got.assign["d"], "10.42.3.0/24");
    }

    #[test]
    fn a_node_has_a_range_of_each_family_that_the_cluster_has() {
        let services = crate::config::ServiceCidrs::default();
        let both = PodCidrs::build(Some("10.42.0.0/16,fd00:42::/48"), None, &services).unwrap();
        let has = nodes(&[("a", Some("10.42.3.0/24")), ("b", None)]);
        let got = allocate(&Book::new(), &has, both);
        let had = has["a"].as_ref();
        assert_eq!(got.cidrs("a", had, both), ["10.42.3.0/24", "fd00:42:0:3::/64"]);
        assert_eq!(got.cidrs("b", None, both), ["10.42.0.0/24", "fd00:42::/64"]);
        assert_eq!(got.cidrs("b", None, PodCidrs::default()), ["10.42.0.0/24"]);
        assert!(got.cidrs("nobody", None, both).is_empty());
    }

    #[test]
    fn a_booked_number_is_kept_when_the_node_was_not_told_yet() {
        let got = allocate(&book(&[(7, "a")]), &nodes(&[("a", None)]), PodCidrs::default());
        assert_eq!(got.assign["a"], "10.42.7.0/24");
    }

    #[test]
    fn what_a_node_has_counts_even_when_the_book_is_lost() {
        let got = allocate(
            &Book::new(),
            &nodes(&[("a", None), ("b", Some("10.42.0.0/24"))]),
            PodCidrs::default(),
        );
        assert_eq!(got.book, book(&[(0, "b"), (1, "a")]));
    }

    #[test]
    fn a_node_that_is_gone_frees_its_number() {
        let got = allocate(&book(&[(0, "gone")]), &nodes(&[("a", None)]), PodCidrs::default());
        assert_eq!(got.book, book(&[(0, "a")]));
    }

    #[test]
    fn the_257th_node_goes_without() {
        let names: Vec<_> = (0..257).map(|at| format!("n{at:03}")).collect();
        let nodes = names.iter().map(|name| (name.clone(), None)).collect();
        let got = allocate(&Book::new(), &nodes, PodCidrs::default());
        assert_eq!((got.book.len(), got.starved), (256, vec!["n256".to_owned()]));
    }

    #[test]
    fn cidrs_of_another_size_stay_and_their_addresses_are_not_given_again() {
        let old = nodes(&[
            ("a", Some("10.42.0.0/24")),
            ("b", Some("10.42.1.0/24")),
            ("c", Some("10.42.9.0/24")),
            ("d", None),
        ]);
        let known = book(&[(0, "a"), (1, "b"), (9, "c"), (200, "a")]);
        let cidrs =
            PodCidrs::build(None, Some(22), &crate::config::ServiceCidrs::default()).unwrap();
        let got = allocate(&known, &old, cidrs);
        assert_eq!(got.book, book(&[(0, "a"), (1, "d"), (2, "c")]));
        assert_eq!(got.assign["d"], "10.42.4.0/22");
        let gone = nodes(&[("b", Some("10.42.1.0/24")), ("d", Some("10.42.4.0/22")), ("e", None)]);
        let got = allocate(&got.book, &gone, cidrs);
        assert_eq!(got.assign["e"], "10.42.8.0/22", "b still lives in the first");
    }

    proptest! {
        #[test]
        fn no_number_is_ever_given_twice(steps in prop::collection::vec((0..40_u8, any::<bool>()), 1..80)) {
            let (mut known, mut has) = (Book::new(), BTreeMap::<String, Option<String>>::new());
            for (node, comes) in steps {
                let name = format!("n{node}");
                if comes { has.entry(name).or_insert(None); } else { has.remove(&name); }
                let got = allocate(&known, &has, PodCidrs::default());
                for (name, cidr) in got.assign {
                    // Every other write to a node is lost: the book must remember.
                    if node % 2 == 0 { has.insert(name, Some(cidr)); }
                }
                let cidrs: Vec<_> = has.values().flatten().collect();
                let distinct: std::collections::BTreeSet<_> = cidrs.iter().collect();
                prop_assert_eq!(cidrs.len(), distinct.len());
                known = got.book;
            }
        }
    }
}
