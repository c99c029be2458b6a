//! A node as the scheduler sees it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::{Node, NodeStatus, Taint};

use crate::api::resource_names::is_extended;
use crate::scheduler::need::{HostPort, Need, Resources, extended};

/// What a pod is expected to use at least, until its node has been measured with it.
pub(super) const EXPECTED: Resources =
    Resources { cpu_millis: 20, memory_bytes: 16 << 20, ephemeral_bytes: 0, pods: 0 };

/// A node and what is taken of it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// What is known of the node itself; `None` while only pods speak of it.
    pub facts: Option<Facts>,
    /// What its pods take, assumed ones included.
    pub used: Resources,
    /// What is in use on the machine, as its heartbeat tells; `None` if it does not.
    pub measured: Option<Resources>,
    /// What pods take or are expected to use that came after that was measured.
    pub recent: Resources,
    /// What its pods take of kinds that only some nodes have.
    pub extended: BTreeMap<String, i64>,
    /// The host ports its pods hold.
    pub ports: Vec<HostPort>,
    /// Its pods.
    pub(super) pods: Vec<u32>,
    /// Pods for which others were told to leave it.
    pub(super) nominees: Vec<Nominee>,
    /// Counts what was measured: tells which pods came after.
    pub(super) measurements: u64,
    /// Another number each time that the node says something else of itself.
    pub(super) revision: u64,
    /// Tells nodes that are alike apart, whatever their order.
    pub(super) fingerprint: u64,
}

/// A pod that waits for others to leave.
#[derive(Debug, Clone)]
pub(super) struct Nominee {
    /// Its namespace and name.
    pub(super) key: (String, String),
    pub(super) priority: i32,
    pub(super) class: u32,
}

/// What a node says of itself, as far as it matters to a choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub is_unschedulable: bool,
    /// What it can give.
    pub allocatable: Resources,
    /// What it can give of kinds that only some nodes have.
    pub extended: BTreeMap<String, i64>,
    /// Bytes of the images it has, by name.
    pub images: BTreeMap<String, i64>,
}

impl Facts {
    /// What `node` says.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let images = status.and_then(|status| status.images.as_ref()).into_iter().flatten();
        let named = images.flat_map(|image| {
            let bytes = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), bytes))
        });
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            is_unschedulable: spec.and_then(|spec| spec.unschedulable) == Some(true),
            allocatable: Resources::allocatable(node),
            extended: status.map(extended_of).unwrap_or_default(),
            images: named.collect(),
        }
    }
}

/// What the node can give of kinds that only some nodes have: what an administrator patched into its
/// capacity counts as well, which a kubelet takes over into what can be given.
fn extended_of(status: &NodeStatus) -> BTreeMap<String, i64> {
    let mut amounts = extended(status.capacity.as_ref());
    amounts.retain(|name, _| is_extended(name));
    amounts.extend(extended(status.allocatable.as_ref()));
    amounts
}

impl NodeInfo {
    pub(super) fn new(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self { name: name.to_owned(), fingerprint: hasher.finish(), ..Self::default() }
    }

    /// What counts as taken when nodes are compared: what pods asked for, or what is in use if that
    /// is more.
    #[must_use]
    pub fn load(&self) -> Resources {
        match self.measured {
            Some(measured) => self.used.max(measured.plus(self.recent)),
            None => self.used,
        }
    }

    pub(super) fn take(&mut self, need: &Need) {
        self.used = self.used.plus(need.resources);
        self.ports.extend(need.ports.iter().cloned());
        for (name, amount) in &need.extended {
            *self.extended.entry(name.clone()).or_insert(0) += amount;
        }
    }

    pub(super) fn release(&mut self, need: &Need) {
        self.used = self.used.minus(need.resources);
        for port in &need.ports {
            if let Some(at) = self.ports.iter().position(|held| held == port) {
                self.ports.swap_remove(at);
            }
        }
        for (name, amount) in &need.extended {
            if let Some(taken) = self.extended.get_mut(name) {
                *taken -= amount;
                if *taken == 0 {
                    self.extended.remove(name);
                }
            }
        }
    }

    /// Whether nothing is known of it and nobody is on it.
    pub(super) fn is_empty(&self) -> bool {
        self.facts.is_none() && self.pods.is_empty() && self.nominees.is_empty()
    }

    /// A place of its own for every seed, whatever the order of nodes: decides between equals.
    pub(super) fn lot(&self, seed: u64) -> u64 {
        mix(self.fingerprint ^ seed)
    }
}

/// Spreads the bits of a number over all of it.
pub(super) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_patched_into_the_capacity_can_be_given() {
        let node = json!({ "metadata": { "name": "n" }, "status": {
            "capacity": {
                "cpu": "4", "example.com/dongle": "2", "example.com/line": "4",
                "attachments.kubernetes.io/disk": "8", "hugepages-2Mi": "1Gi",
            },
            "allocatable": { "cpu": "4", "example.com/line": "3" },
        }});
        let facts = Facts::of(&serde_json::from_value(node).unwrap());
        let expected = [("example.com/dongle".to_owned(), 2), ("example.com/line".to_owned(), 3)];
        assert_eq!(facts.extended, expected.into());
    }
}
