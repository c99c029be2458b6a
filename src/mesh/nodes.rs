//! The nodes that traffic goes to, and which of them an address belongs to.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::cidr::Cidr;
use crate::api::node_place::ZONE;

/// One node.
#[derive(Debug, Clone)]
pub(super) struct NodeRoute {
    /// Of its pods' addresses.
    pub(super) pod_cidrs: Vec<Cidr>,
    /// Its own addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// Its zone, where it has one.
    pub(super) zone: Option<String>,
}

/// All nodes. A table looks up each endpoint's, so neither look-up goes through all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeRoutes {
    by_name: BTreeMap<Arc<str>, NodeRoute>,
    /// The ranges of pods by their first address. Those of a cluster do not overlap.
    ranges: BTreeMap<IpAddr, (Cidr, Arc<str>)>,
}

impl NodeRoutes {
    /// Of nodes that have a name and a spec.
    pub(super) fn build<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        let mut all = Self::default();
        for node in nodes {
            let (Some(name), Some(spec)) = (node.metadata.name.as_deref(), &node.spec) else {
                continue;
            };
            let name: Arc<str> = name.into();
            let ranges = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
            let pod_cidrs: Vec<_> = ranges.filter_map(|range| Cidr::parse(range)).collect();
            for range in &pod_cidrs {
                let owner = || (*range, Arc::clone(&name));
                all.ranges.entry(range.first()).or_insert_with(owner);
            }
            let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned();
            let addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
            let addresses = addresses.into_iter().flatten();
            let addresses = addresses.filter_map(|one| one.address.parse().ok()).collect();
            all.by_name.insert(name, NodeRoute { pod_cidrs, addresses, zone });
        }
        all
    }

    /// The node of that name.
    pub(super) fn get(&self, name: &str) -> Option<&NodeRoute> {
        self.by_name.get(name)
    }

    /// The node whose pods have addresses of this range.
    pub(super) fn owner(&self, ip: IpAddr) -> Option<&Arc<str>> {
        let (_, (range, name)) = self.ranges.range(..=ip).next_back()?;
        range.contains(ip).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ranges: &[&str]) -> Node {
        let node = json!({
            "metadata": {"name": name, "labels": {ZONE: "a"}},
            "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        });
        serde_json::from_value(node).unwrap()
    }

    #[test]
    fn an_address_belongs_to_the_node_in_whose_range_it_is() {
        let nodes = [
            node("a", &["10.42.1.0/24", "fd00:42:1::/64"]),
            // Written with an address within it.
            node("b", &["10.42.2.7/24", "fd00:42:2::/64"]),
            node("c", &["10.42.4.0/22"]),
            Node::default(),
        ];
        let nodes = NodeRoutes::build(&nodes);
        let owner = |ip: &str| nodes.owner(ip.parse().unwrap()).map(AsRef::as_ref);
        for (ip, name) in [
            ("10.42.0.255", None),
            ("10.42.1.0", Some("a")),
            ("10.42.1.255", Some("a")),
            ("10.42.2.0", Some("b")),
            ("10.42.3.1", None),
            ("10.42.7.255", Some("c")),
            ("10.42.8.0", None),
            ("fd00:42::1", None),
            ("fd00:42:1::5", Some("a")),
            ("fd00:42:2:0:ffff::", Some("b")),
            ("fd00:42:2:1::", None),
        ] {
            assert_eq!(owner(ip), name, "{ip}");
        }
        assert_eq!(nodes.get("a").unwrap().zone.as_deref(), Some("a"));
        assert!(nodes.get("d").is_none());
    }
}
