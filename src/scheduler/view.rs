//! The cluster as the scheduler sees it: nodes, and what their pods take.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::scheduler::classes::{Class, Classes};
use crate::scheduler::demand::{Demand, Namespaces, key_of};
use crate::scheduler::extension::{Extensions, Profiles};
use crate::scheduler::need::Resources;
use crate::scheduler::node::{EXPECTED, Facts, NodeInfo, Nominee};
use crate::scheduler::preempt::Budget;
use crate::scheduler::slab::Slab;
use crate::scheduler::terms::Terms;

/// Namespace and name.
pub type PodKey = (String, String);

/// Where a pod is, and what it takes there.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) key: Arc<PodKey>,
    pub(super) uid: Box<str>,
    pub(super) node: u32,
    pub(super) class: u32,
    /// Chosen by us, not yet seen in the API.
    is_assumed: bool,
    /// It was told to end.
    pub(super) is_ending: bool,
    /// When it came, in seconds.
    pub(super) since: i64,
    /// The last measurement of the node when the pod came.
    measurement: u64,
}

/// All nodes and placements. What is assumed counts as taken, so that nothing is given twice.
#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    pub(super) nodes: Slab<NodeInfo>,
    by_name: BTreeMap<String, u32>,
    known: usize,
    pub(super) pods: Slab<Placed>,
    by_key: BTreeMap<Arc<PodKey>, u32>,
    pub(super) classes: Classes,
    pub(super) terms: Terms,
    /// Which nodes have pods of each claim of storage, and how many.
    claims: BTreeMap<PodKey, BTreeMap<u32, u32>>,
    pub(super) namespaces: Namespaces,
    /// How many nodes have each image.
    pub(super) images: BTreeMap<String, usize>,
    pub(super) budgets: Vec<Budget>,
    nominations: BTreeMap<PodKey, u32>,
    /// Counts the changes of what nodes say of themselves.
    pub(super) generation: u64,
    pub(super) extensions: Extensions,
}

impl ClusterView {
    /// An empty cluster.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every node, known or only spoken of. The order means nothing.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter().map(|(_, node)| node)
    }

    /// The node that has pods of the claim; a claim that is not bound yet will be bound there.
    #[must_use]
    pub fn node_of_claim(&self, claim: &PodKey) -> Option<&str> {
        let (&node, _) = self.claims.get(claim)?.first_key_value()?;
        self.nodes.get(node).map(|node| node.name.as_str())
    }

    /// How many volumes of pods on nodes are of the claim.
    pub(super) fn uses_of_claim(&self, claim: &PodKey) -> usize {
        let nodes = self.claims.get(claim).into_iter().flatten();
        nodes.map(|(_, count)| usize::try_from(*count).unwrap_or(usize::MAX)).sum()
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(*self.by_name.get(name)?)
    }

    /// Its number.
    pub(super) fn node_id(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nodes_known(&self) -> usize {
        self.known
    }

    /// How many pods are on nodes.
    #[must_use]
    pub fn pods_placed(&self) -> usize {
        self.pods.len()
    }

    /// How many different pods there are: pods that ask for the same count once.
    #[must_use]
    pub fn classes_known(&self) -> usize {
        self.classes.len()
    }

    pub(super) fn class(&self, id: u32) -> Option<&Class> {
        self.classes.get(id)
    }

    /// Takes note of what a node is now; `None` when it is gone. Returns whether that may make a
    /// pod fit that did not.
    pub fn set_node(&mut self, name: &str, facts: Option<Facts>) -> bool {
        if facts.is_none() && !self.by_name.contains_key(name) {
            return false;
        }
        let id = self.enter_node(name);
        let Some(node) = self.nodes.get_mut(id) else { return false };
        if node.facts == facts {
            self.drop_if_empty(id);
            return false;
        }
        self.generation += 1;
        let is_known = facts.is_some();
        node.revision = self.generation;
        let had = std::mem::replace(&mut node.facts, facts);
        let labels = node.facts.as_ref().map(|facts| facts.labels.clone());
        let images = node.facts.as_ref().map(|facts| facts.images.clone()).unwrap_or_default();
        match (had.is_some(), is_known) {
            (false, true) => self.known += 1,
            (true, false) => self.known = self.known.saturating_sub(1),
            _ => {}
        }
        for image in had.iter().flat_map(|facts| facts.images.keys()) {
            if let Some(nodes) = self.images.get_mut(image) {
                *nodes = nodes.saturating_sub(1);
                if *nodes == 0 {
                    self.images.remove(image);
                }
            }
        }
        for image in images.into_keys() {
            *self.images.entry(image).or_insert(0) += 1;
        }
        let was_known = had.is_some();
        if had.map(|facts| facts.labels) != labels {
            self.move_node(id, labels.as_ref(), was_known);
        }
        self.drop_if_empty(id);
        is_known
    }

    /// The node has other labels now: its pods are near others.
    fn move_node(&mut self, id: u32, labels: Option<&BTreeMap<String, String>>, had_labels: bool) {
        let pods = self.nodes.get(id).map(|node| node.pods.clone()).unwrap_or_default();
        self.count_all(id, &pods, false);
        for topology in self.terms.topologies_mut() {
            topology.set(id, labels, had_labels);
        }
        self.count_all(id, &pods, true);
    }

    fn count_all(&mut self, node: u32, pods: &[u32], is_more: bool) {
        for pod in pods {
            if let Some((class, is_ending)) = self.pods.get(*pod).map(|p| (p.class, p.is_ending)) {
                self.count(class, node, is_ending, is_more);
            }
        }
    }

    /// Takes note of what is in use on a node. No pod fits for it that did not: it only makes one
    /// node better than another.
    pub fn set_measured(&mut self, name: &str, measured: Option<Resources>) {
        let Some(node) = self.by_name.get(name).and_then(|&id| self.nodes.get_mut(id)) else {
            return;
        };
        if node.measured != measured {
            node.measured = measured;
            node.recent = Resources::default();
            node.measurements += 1;
        }
    }

    /// Takes note of the labels of a namespace; `None` when it is gone.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
        self.match_namespaces();
    }

    /// Pods of these schedulers are placed with these plugins from now on.
    pub fn set_profiles(&mut self, profiles: Profiles) {
        self.extensions = Extensions::new(profiles);
    }

    /// Takes note of how many pods may be disrupted.
    pub fn set_budgets(&mut self, budgets: Vec<Budget>) {
        self.budgets = budgets;
    }

    /// Takes note that the API shows the pod on `node`.
    /// Returns whether that is news to the view.
    pub fn place(&mut self, pod: &Pod, node: &str) -> bool {
        let class = self.enter_class(Demand::of_placed(pod));
        self.put(pod, node, class, false)
    }

    /// Counts the pod as on `node` before the API shows it.
    pub fn assume(&mut self, pod: &Pod, node: &str) {
        let class = self.enter_class(Demand::of_placed(pod));
        self.put(pod, node, class, true);
    }

    /// As [`Self::assume`], of a pod whose class is known.
    pub(super) fn assume_class(&mut self, pod: &Pod, node: &str, class: u32) {
        self.put(pod, node, class, true);
    }

    /// Whether a choice for this very pod is made but not yet shown by the API.
    #[must_use]
    pub fn is_assumed(&self, key: &PodKey, uid: &str) -> bool {
        self.placed(key).is_some_and(|placed| placed.is_assumed && *placed.uid == *uid)
    }

    fn placed(&self, key: &PodKey) -> Option<&Placed> {
        self.pods.get(*self.by_key.get(key)?)
    }

    /// Takes back a choice that came to nothing.
    pub fn forget(&mut self, key: &PodKey, uid: &str) {
        if self.is_assumed(key, uid) {
            self.remove(key);
        }
    }

    /// The pod is gone or has ended. Returns whether it took something.
    pub fn remove(&mut self, key: &PodKey) -> bool {
        let Some(id) = self.by_key.remove(key) else { return false };
        let Some(placed) = self.pods.remove(id) else { return false };
        self.count(placed.class, placed.node, placed.is_ending, false);
        let need = self.classes.get(placed.class).map(|class| Arc::clone(&class.demand));
        if let (Some(node), Some(demand)) = (self.nodes.get_mut(placed.node), need) {
            node.release(&demand.need);
            if let Some(at) = node.pods.iter().position(|pod| *pod == id) {
                node.pods.swap_remove(at);
            }
            if node.measurements == placed.measurement {
                node.recent = node.recent.minus(demand.need.resources.max(EXPECTED));
            }
            for claim in &demand.need.claims {
                self.release_claim(claim, placed.node);
            }
        }
        self.classes.release(placed.class);
        self.drop_if_empty(placed.node);
        true
    }

    fn release_claim(&mut self, claim: &PodKey, node: u32) {
        let Some(nodes) = self.claims.get_mut(claim) else { return };
        if let Some(count) = nodes.get_mut(&node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                nodes.remove(&node);
            }
        }
        if nodes.is_empty() {
            self.claims.remove(claim);
        }
    }

    fn put(&mut self, pod: &Pod, node: &str, class: u32, is_assumed: bool) -> bool {
        let key = key_of(pod);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let is_ending = pod.metadata.deletion_timestamp.is_some();
        let node_id = self.enter_node(node);
        self.denominate(&key);
        if let Some(&id) = self.by_key.get(&key)
            && let Some(known) = self.pods.get_mut(id)
            && (*known.uid == *uid && known.node == node_id && known.class == class)
        {
            known.is_assumed = is_assumed;
            return self.end(id, is_ending);
        }
        // Held before the old one goes: the node or the class could go with it.
        self.classes.hold(class);
        self.remove(&key);
        let node_id = self.enter_node(node);
        let status = pod.status.as_ref();
        let since = status.and_then(|status| status.start_time.as_ref());
        let since = since.or(pod.metadata.creation_timestamp.as_ref());
        let key = Arc::new(key);
        let demand = self.classes.get(class).map(|class| Arc::clone(&class.demand));
        let (Some(info), Some(demand)) = (self.nodes.get_mut(node_id), demand) else {
            return false;
        };
        let id = self.pods.insert(Placed {
            key: Arc::clone(&key),
            uid: uid.into(),
            node: node_id,
            class,
            is_assumed,
            is_ending,
            since: since.map_or(i64::MAX, |time| time.0.as_second()),
            measurement: info.measurements,
        });
        info.take(&demand.need);
        info.recent = info.recent.plus(demand.need.resources.max(EXPECTED));
        info.pods.push(id);
        for claim in &demand.need.claims {
            *self.claims.entry(claim.clone()).or_default().entry(node_id).or_insert(0) += 1;
        }
        self.by_key.insert(key, id);
        self.count(class, node_id, is_ending, true);
        true
    }

    /// Takes note that the pod was told to end, before the API shows it.
    pub(super) fn set_ending(&mut self, key: &PodKey) {
        if let Some(&id) = self.by_key.get(key) {
            self.end(id, true);
        }
    }

    /// Returns whether that is news.
    fn end(&mut self, id: u32, is_ending: bool) -> bool {
        let Some(pod) = self.pods.get_mut(id).filter(|pod| pod.is_ending != is_ending) else {
            return false;
        };
        pod.is_ending = is_ending;
        let (class, node) = (pod.class, pod.node);
        self.count(class, node, !is_ending, false);
        self.count(class, node, is_ending, true);
        true
    }

    /// Keeps what leaves `node` for the pod, which waits for it.
    pub fn nominate(&mut self, pod: &Pod, node: &str) {
        let key = key_of(pod);
        let class = self.enter_class(Demand::of_placed(pod));
        let Some(id) = self.node_id(node) else { return };
        if self.nominations.get(&key) == Some(&id) {
            return;
        }
        self.denominate(&key);
        let priority = self.classes.get(class).map_or(0, |class| class.demand.priority);
        if let Some(info) = self.nodes.get_mut(id) {
            info.nominees.push(Nominee { key: key.clone(), priority, class });
            self.classes.hold(class);
            self.nominations.insert(key, id);
        }
    }

    /// The pod waits for no node in particular. Returns whether it did.
    pub fn denominate(&mut self, key: &PodKey) -> bool {
        let Some(id) = self.nominations.remove(key) else { return false };
        let Some(node) = self.nodes.get_mut(id) else { return false };
        let Some(at) = node.nominees.iter().position(|nominee| nominee.key == *key) else {
            return false;
        };
        let nominee = node.nominees.swap_remove(at);
        self.classes.release(nominee.class);
        self.drop_if_empty(id);
        true
    }

    /// The node that pods left, or leave, for this one.
    pub(super) fn nomination(&self, key: &PodKey) -> Option<u32> {
        self.nominations.get(key).copied()
    }

    /// Its name.
    pub(super) fn nomination_name(&self, key: &PodKey) -> Option<&str> {
        self.nomination(key).map(|id| self.node_name(id))
    }

    /// The name of a node; empty if there is none of that number.
    pub(super) fn node_name(&self, id: u32) -> &str {
        self.nodes.get(id).map_or("", |node| node.name.as_str())
    }

    fn enter_node(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.by_name.get(name) {
            return id;
        }
        let id = self.nodes.insert(NodeInfo::new(name));
        self.by_name.insert(name.to_owned(), id);
        id
    }

    fn drop_if_empty(&mut self, id: u32) {
        if self.nodes.get(id).is_some_and(NodeInfo::is_empty)
            && let Some(node) = self.nodes.remove(id)
        {
            self.by_name.remove(&node.name);
        }
    }

    /// The nodes that take pods of `demand` as far as their labels and taints go.
    pub(super) fn eligible_nodes(&self, demand: &Demand) -> Vec<u32> {
        let takes = |node: &NodeInfo| {
            let facts = node.facts.as_ref();
            facts.is_some_and(|facts| {
                crate::scheduler::filter::by_facts(demand, &node.name, facts).is_none()
            })
        };
        let nodes = self.nodes.iter();
        nodes.filter(|(_, node)| takes(node)).map(|(id, _)| id).collect()
    }
}
