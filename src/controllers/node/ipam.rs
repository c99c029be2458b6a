//! Which pod CIDR each node has: a pure function over the book of allocations.

use std::collections::BTreeMap;

/// How many nodes the range `A.B.0.0/16` serves with a /24 each.
const CIDRS_MAX: u16 = 256;

/// Number of the CIDR -> name of the node it belongs to.
pub(super) type Book = BTreeMap<u8, String>;

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

/// Enters every node into `book`: those that have a CIDR under that, the others under the lowest
/// free number; nodes that are gone are struck out.
///
/// `nodes` maps names to the CIDR a node has. The book is one object, written with the version
/// read: two leaders cannot give the same number twice, as they could if they only looked at nodes.
pub(super) fn allocate(
    book: &Book,
    nodes: &BTreeMap<String, Option<String>>,
    prefix: (u8, u8),
) -> Allocation {
    let mut kept: Book = book
        .iter()
        .filter(|(_, node)| nodes.contains_key(*node))
        .map(|(number, node)| (*number, node.clone()))
        .collect();
    for (node, cidr) in nodes {
        if let Some(number) = cidr.as_deref().and_then(|cidr| parse(cidr, prefix)) {
            kept.retain(|&known, owner| owner != node || known == number);
            kept.entry(number).or_insert_with(|| node.clone());
        }
    }
    let (mut assign, mut starved) = (BTreeMap::new(), Vec::new());
    for node in nodes.iter().filter(|(_, cidr)| cidr.is_none()).map(|(node, _)| node) {
        let booked = kept.iter().find(|(_, owner)| *owner == node).map(|(number, _)| *number);
        let free = || {
            (0..CIDRS_MAX).filter_map(|at| u8::try_from(at).ok()).find(|at| !kept.contains_key(at))
        };
        match booked.or_else(free) {
            Some(number) => {
                kept.insert(number, node.clone());
                assign.insert(node.clone(), cidr(number, prefix));
            }
            None => starved.push(node.clone()),
        }
    }
    Allocation { book: kept, assign, starved }
}

fn cidr(number: u8, (a, b): (u8, u8)) -> String {
    format!("{a}.{b}.{number}.0/24")
}

fn parse(cidr: &str, (a, b): (u8, u8)) -> Option<u8> {
    let rest = cidr.strip_prefix(&format!("{a}.{b}."))?;
    rest.strip_suffix(".0/24")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: (u8, u8) = (10, 42);

    fn nodes(all: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
        all.iter().map(|(name, cidr)| ((*name).to_owned(), cidr.map(str::to_owned))).collect()
    }

    fn book(all: &[(u8, &str)]) -> Book {
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
        let got = allocate(&known, &nodes, PREFIX);
        assert_eq!(got.book, book(&[(0, "a"), (1, "b"), (2, "c"), (3, "d")]));
        assert_eq!(got.assign["b"], "10.42.1.0/24");
        assert_eq!(got.assign["d"], "10.42.3.0/24");
    }

    #[test]
    fn a_booked_number_is_kept_when_the_node_was_not_told_yet() {
        let got = allocate(&book(&[(7, "a")]), &nodes(&[("a", None)]), PREFIX);
        assert_eq!(got.assign["a"], "10.42.7.0/24");
    }

    #[test]
    fn what_a_node_has_counts_even_when_the_book_is_lost() {
        let got =
            allocate(&Book::new(), &nodes(&[("a", None), ("b", Some("10.42.0.0/24"))]), PREFIX);
        assert_eq!(got.book, book(&[(0, "b"), (1, "a")]));
    }

    #[test]
    fn a_node_that_is_gone_frees_its_number() {
        let got = allocate(&book(&[(0, "gone")]), &nodes(&[("a", None)]), PREFIX);
        assert_eq!(got.book, book(&[(0, "a")]));
    }

    #[test]
    fn the_257th_node_goes_without() {
        let names: Vec<_> = (0..257).map(|at| format!("n{at:03}")).collect();
        let nodes = names.iter().map(|name| (name.clone(), None)).collect();
        let got = allocate(&Book::new(), &nodes, PREFIX);
        assert_eq!((got.book.len(), got.starved), (256, vec!["n256".to_owned()]));
    }

    proptest! {
        #[test]
        fn no_number_is_ever_given_twice(steps in prop::collection::vec((0..40_u8, any::<bool>()), 1..80)) {
            let (mut known, mut has) = (Book::new(), BTreeMap::<String, Option<String>>::new());
            for (node, comes) in steps {
                let name = format!("n{node}");
                if comes { has.entry(name).or_insert(None); } else { has.remove(&name); }
                let got = allocate(&known, &has, PREFIX);
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
