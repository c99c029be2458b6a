//! The cluster as the scheduler sees it: nodes, and what their pods take.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::scheduler::need::{HostPort, Need, Resources};

/// Namespace and name.
pub type PodKey = (String, String);

/// What a pod is expected to use at least, until its node has been measured with it.
const EXPECTED: Resources =
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
    /// The host ports its pods hold.
    pub ports: Vec<HostPort>,
    /// How many pods of each group it has.
    pub groups: BTreeMap<String, u32>,
    /// How many pods of each claim of storage it has.
    pub claims: BTreeMap<PodKey, u32>,
    /// What is in use on the machine, as its heartbeat tells; `None` if it does not.
    pub measured: Option<Resources>,
    /// What pods take or are expected to use that came after that was measured.
    pub recent: Resources,
    /// Counts what was measured: tells which pods came after.
    measurements: u64,
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
}

impl Facts {
    /// What `node` says.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            is_unschedulable: spec.and_then(|spec| spec.unschedulable) == Some(true),
            allocatable: Resources::allocatable(node),
        }
    }
}

/// Where a pod is, and what it takes there.
#[derive(Debug, Clone)]
struct Placed {
    uid: String,
    node: String,
    need: Need,
    /// Chosen by us, not yet seen in the API.
    is_assumed: bool,
    /// The last measurement of the node when the pod came.
    measurement: u64,
}

impl Placed {
    fn new(uid: &str, node: &str, need: Need, is_assumed: bool) -> Self {
        Self { uid: uid.into(), node: node.into(), need, is_assumed, measurement: 0 }
    }
}

/// All nodes and placements. What is assumed counts as taken, so that nothing is given twice.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    nodes: Vec<NodeInfo>,
    by_name: BTreeMap<String, usize>,
    pods: BTreeMap<PodKey, Placed>,
    known: usize,
}

impl ClusterView {
    /// An empty cluster.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every node, known or only spoken of. The order means nothing.
    #[must_use]
    pub fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// The node that has pods of the claim; a claim that is not bound yet will be bound there.
    #[must_use]
    pub fn node_of_claim(&self, claim: &PodKey) -> Option<&str> {
        let node = self.nodes.iter().find(|node| node.claims.contains_key(claim));
        node.map(|node| node.name.as_str())
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(*self.by_name.get(name)?)
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nodes_known(&self) -> usize {
        self.known
    }

    /// Takes note of what a node is now; `None` when it is gone. Returns whether that may make a
    /// pod fit that did not.
    pub fn set_node(&mut self, name: &str, facts: Option<Facts>) -> bool {
        if facts.is_none() && !self.by_name.contains_key(name) {
            return false;
        }
        let Some(node) = self.entry(name) else {
            return false;
        };
        let (was_known, is_known) = (node.facts.is_some(), facts.is_some());
        let differs = node.facts != facts;
        node.facts = facts;
        match (was_known, is_known) {
            (false, true) => self.known += 1,
            (true, false) => self.known = self.known.saturating_sub(1),
            _ => {}
        }
        self.drop_if_empty(name);
        differs && is_known
    }

    /// Takes note of what is in use on a node. No pod fits for it that did not: it only makes one
    /// node better than another.
    pub fn set_measured(&mut self, name: &str, measured: Option<Resources>) {
        let Some(node) = self.by_name.get(name).and_then(|&at| self.nodes.get_mut(at)) else {
            return;
        };
        if node.measured != measured {
            node.measured = measured;
            node.recent = Resources::default();
            node.measurements += 1;
        }
    }

    /// Takes note that the API shows the pod on `node`.
    pub fn place(&mut self, key: &PodKey, uid: &str, node: &str, need: Need) {
        self.put(key, Placed::new(uid, node, need, false));
    }

    /// Counts the pod as on `node` before the API shows it.
    pub fn assume(&mut self, key: &PodKey, uid: &str, node: &str, need: Need) {
        self.put(key, Placed::new(uid, node, need, true));
    }

    /// Whether a choice for this very pod is made but not yet shown by the API.
    #[must_use]
    pub fn is_assumed(&self, key: &PodKey, uid: &str) -> bool {
        self.pods.get(key).is_some_and(|placed| placed.is_assumed && placed.uid == uid)
    }

    /// Takes back a choice that came to nothing.
    pub fn forget(&mut self, key: &PodKey, uid: &str) {
        if self.is_assumed(key, uid) {
            self.remove(key);
        }
    }

    /// The pod is gone or has ended. Returns whether it took something.
    pub fn remove(&mut self, key: &PodKey) -> bool {
        let Some(placed) = self.pods.remove(key) else {
            return false;
        };
        if let Some(&at) = self.by_name.get(&placed.node)
            && let Some(node) = self.nodes.get_mut(at)
        {
            node.release(&placed.need);
            if node.measurements == placed.measurement {
                node.recent = node.recent.minus(placed.need.resources.max(EXPECTED));
            }
        }
        self.drop_if_empty(&placed.node);
        true
    }

    fn put(&mut self, key: &PodKey, mut placed: Placed) {
        if let Some(known) = self.pods.get_mut(key)
            && known.uid == placed.uid
            && known.node == placed.node
            && known.need == placed.need
        {
            known.is_assumed = placed.is_assumed;
            return;
        }
        self.remove(key);
        if let Some(node) = self.entry(&placed.node) {
            node.take(&placed.need);
            placed.measurement = node.measurements;
            node.recent = node.recent.plus(placed.need.resources.max(EXPECTED));
        }
        self.pods.insert(key.clone(), placed);
    }

    fn entry(&mut self, name: &str) -> Option<&mut NodeInfo> {
        let at = match self.by_name.get(name) {
            Some(&at) => at,
            None => {
                self.nodes.push(NodeInfo { name: name.to_owned(), ..NodeInfo::default() });
                self.by_name.insert(name.to_owned(), self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        self.nodes.get_mut(at)
    }

    fn drop_if_empty(&mut self, name: &str) {
        let Some(&at) = self.by_name.get(name) else { return };
        if self.nodes.get(at).is_some_and(|node| node.facts.is_none() && node.used.pods == 0) {
            self.nodes.swap_remove(at);
            self.by_name.remove(name);
            if let Some(moved) = self.nodes.get(at) {
                self.by_name.insert(moved.name.clone(), at);
            }
        }
    }
}

impl NodeInfo {
    /// What counts as taken when nodes are compared: what pods asked for, or what is in use if that
    /// is more.
    #[must_use]
    pub fn load(&self) -> Resources {
        match self.measured {
            Some(measured) => self.used.max(measured.plus(self.recent)),
            None => self.used,
        }
    }

    fn take(&mut self, need: &Need) {
        self.used = self.used.plus(need.resources);
        self.ports.extend(need.ports.iter().cloned());
        if let Some(group) = &need.group {
            *self.groups.entry(group.clone()).or_insert(0) += 1;
        }
        for claim in &need.claims {
            *self.claims.entry(claim.clone()).or_insert(0) += 1;
        }
    }

    fn release(&mut self, need: &Need) {
        self.used = self.used.minus(need.resources);
        for port in &need.ports {
            if let Some(at) = self.ports.iter().position(|held| held == port) {
                self.ports.swap_remove(at);
            }
        }
        if let Some(group) = &need.group
            && let Some(count) = self.groups.get_mut(group)
        {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.groups.remove(group);
            }
        }
        for claim in &need.claims {
            if let Some(count) = self.claims.get_mut(claim) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.claims.remove(claim);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(pods: i64) -> Need {
        let resources =
            Resources { cpu_millis: 100, memory_bytes: 1, pods, ..Resources::default() };
        Need { resources, group: Some("g".into()), ..Need::default() }
    }

    fn key(name: &str) -> PodKey {
        ("default".into(), name.into())
    }

    #[test]
    fn an_assumption_holds_until_the_api_shows_or_refutes_it() {
        let mut view = ClusterView::new();
        view.set_node("a", Some(Facts::default()));
        view.assume(&key("p"), "1", "a", need(1));
        assert!(view.is_assumed(&key("p"), "1"));
        assert_eq!(view.node("a").unwrap().used.cpu_millis, 100);
        view.place(&key("p"), "1", "a", need(1));
        assert!(!view.is_assumed(&key("p"), "1"));
        assert_eq!(view.node("a").unwrap().used.cpu_millis, 100, "counted once");
        view.forget(&key("p"), "1");
        assert_eq!(view.node("a").unwrap().used.cpu_millis, 100, "what is shown is no assumption");
        view.remove(&key("p"));
        assert_eq!(view.node("a").unwrap().used, Resources::default());
        assert!(view.node("a").unwrap().groups.is_empty());
    }

    #[test]
    fn a_node_that_goes_keeps_its_pods_until_they_go() {
        let mut view = ClusterView::new();
        for name in ["a", "b", "c"] {
            view.set_node(name, Some(Facts::default()));
        }
        view.place(&key("p"), "1", "a", need(1));
        assert!(!view.set_node("a", None));
        assert_eq!((view.nodes().len(), view.nodes_known()), (3, 2));
        view.remove(&key("p"));
        assert_eq!(view.nodes().len(), 2);
        assert_eq!(view.node("c").unwrap().name, "c");
        assert!(view.node("a").is_none());
    }

    #[test]
    fn a_measured_node_counts_the_larger_of_asked_and_used_and_what_came_since() {
        let measured = |cpu_millis| Some(Resources { cpu_millis, ..Resources::default() });
        let load = |view: &ClusterView| view.node("a").unwrap().load().cpu_millis;
        let mut view = ClusterView::new();
        view.set_measured("a", measured(5));
        view.set_node("a", Some(Facts::default()));
        view.place(&key("p"), "1", "a", need(1));
        assert_eq!(load(&view), 100, "nobody has measured");
        view.set_measured("a", measured(30));
        assert_eq!(load(&view), 100);
        view.set_measured("a", measured(700));
        assert_eq!(load(&view), 700);
        view.assume(&key("q"), "2", "a", Need::default());
        assert_eq!(load(&view), 720, "it will use something");
        view.set_measured("a", measured(700));
        assert_eq!(load(&view), 720, "that was measured before");
        view.remove(&key("q"));
        view.remove(&key("p"));
        assert_eq!(load(&view), 700);
    }

    #[test]
    fn only_a_real_change_of_a_node_wakes_pods() {
        let mut view = ClusterView::new();
        assert!(view.set_node("a", Some(Facts::default())));
        assert!(!view.set_node("a", Some(Facts::default())));
        let cordoned = Facts { is_unschedulable: true, ..Facts::default() };
        assert!(view.set_node("a", Some(cordoned)));
    }
}
