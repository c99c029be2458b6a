//! Pods that ask for the same are of one class: what follows from it is worked out once.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::node_place::ZONE;
use crate::scheduler::demand::{Demand, HARD_AFFINITY_WEIGHT, Matcher, PodTerm};
use crate::scheduler::slab::Slab;
use crate::scheduler::terms::Count;
use crate::scheduler::view::ClusterView;

/// Classes without pods that are kept, for pods that come again.
const IDLE_MAX: usize = 1024;

/// A constraint of the pods of a class: its count by domain, and by node.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpreadTerm {
    /// By the domains of the constraint.
    pub(super) by_domain: u32,
    /// By node: for nodes that do not count.
    pub(super) by_node: u32,
}

/// Nodes that take pods of the class as far as their labels and taints go.
#[derive(Debug, Clone)]
pub(super) struct Eligible {
    /// The view's generation that this holds for.
    pub(super) generation: u64,
    pub(super) nodes: Arc<Vec<u32>>,
}

/// Pods that ask for the same.
#[derive(Debug, Clone)]
pub(super) struct Class {
    pub(super) demand: Arc<Demand>,
    fingerprint: u64,
    /// Another number for each class there ever was.
    pub(super) born: u64,
    /// How many pods there are of it on nodes.
    pub(super) pods: usize,
    /// When it was last asked for.
    used: u64,
    /// Terms that are about its pods.
    pub(super) matches: Vec<u32>,
    /// What a node needs to have near: each about pods that match all of its terms.
    pub(super) affinity: Vec<u32>,
    /// Each of these terms alone: pods that come later are drawn by them.
    drawn: Vec<u32>,
    /// What a node must not have near.
    pub(super) anti_affinity: Vec<u32>,
    /// What a node would better have near, or not.
    pub(super) preferred: Vec<(u32, i64)>,
    /// Parallel to the demand's constraints.
    pub(super) spread: Vec<SpreadTerm>,
    /// The pods of its controller by node and by zone, if it says nothing of spreading or packing.
    pub(super) group: Option<(u32, u32)>,
    pub(super) eligible: Option<Eligible>,
}

impl Class {
    /// The terms that it has, once for each time it has them.
    fn terms(&self) -> impl Iterator<Item = u32> {
        let spread = self.spread.iter().flat_map(|term| [term.by_domain, term.by_node]);
        let group = self.group.iter().flat_map(|(node, zone)| [*node, *zone]);
        self.affinity
            .iter()
            .chain(&self.drawn)
            .chain(&self.anti_affinity)
            .copied()
            .chain(self.preferred.iter().map(|(term, _)| *term))
            .chain(spread)
            .chain(group)
    }
}

/// All classes.
#[derive(Debug, Clone, Default)]
pub(super) struct Classes {
    slab: Slab<Class>,
    by_fingerprint: BTreeMap<u64, Vec<u32>>,
    idle: usize,
    uses: u64,
}

impl Classes {
    pub(super) fn get(&self, id: u32) -> Option<&Class> {
        self.slab.get(id)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Class> {
        self.slab.get_mut(id)
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    fn find(&self, demand: &Demand, fingerprint: u64) -> Option<u32> {
        let known = self.by_fingerprint.get(&fingerprint)?;
        let is_it = |id: &u32| self.slab.get(*id).is_some_and(|class| *class.demand == *demand);
        known.iter().copied().find(is_it)
    }

    /// One pod more or less of the class is on a node.
    pub(super) fn hold(&mut self, id: u32) {
        let Some(class) = self.slab.get_mut(id) else { return };
        if class.pods == 0 {
            self.idle = self.idle.saturating_sub(1);
        }
        class.pods += 1;
    }

    pub(super) fn release(&mut self, id: u32) {
        let Some(class) = self.slab.get_mut(id) else { return };
        class.pods = class.pods.saturating_sub(1);
        if class.pods == 0 {
            self.idle += 1;
        }
    }
}

impl ClusterView {
    /// The class of pods that ask for `demand`, if there is one.
    pub(super) fn class_of(&self, demand: &Demand) -> Option<u32> {
        self.classes.find(demand, demand.fingerprint())
    }

    /// The class of pods that ask for `demand`, made if need be. It changes no answer: it makes the
    /// next ones fast.
    pub(super) fn enter_class(&mut self, demand: Demand) -> u32 {
        let fingerprint = demand.fingerprint();
        self.classes.uses += 1;
        let now = self.classes.uses;
        if let Some(id) = self.classes.find(&demand, fingerprint) {
            if let Some(class) = self.classes.get_mut(id) {
                class.used = now;
            }
            return id;
        }
        let demand = Arc::new(demand);
        let class = Class {
            fingerprint,
            born: now,
            pods: 0,
            used: now,
            matches: self.terms_about(&demand),
            affinity: Vec::new(),
            drawn: Vec::new(),
            anti_affinity: Vec::new(),
            preferred: Vec::new(),
            spread: Vec::new(),
            group: None,
            eligible: None,
            demand: Arc::clone(&demand),
        };
        let id = self.classes.slab.insert(class);
        self.classes.by_fingerprint.entry(fingerprint).or_default().push(id);
        self.classes.idle += 1;
        self.enter_terms(id, &demand);
        self.sweep_classes();
        id
    }

    /// Brings up to date what is worked out ahead for the class; not for the first of its pods, which
    /// may be the only one.
    pub(super) fn refresh_class(&mut self, id: u32) {
        let Some(class) = self.classes.get(id) else { return };
        let is_fresh =
            class.eligible.as_ref().is_some_and(|known| known.generation == self.generation);
        if is_fresh || class.pods == 0 || !class.demand.wishes.chooses_nodes() {
            return;
        }
        let nodes = Arc::new(self.eligible_nodes(&class.demand));
        let generation = self.generation;
        if let Some(class) = self.classes.get_mut(id) {
            class.eligible = Some(Eligible { generation, nodes });
        }
    }

    fn terms_about(&self, demand: &Demand) -> Vec<u32> {
        let about = self.terms.iter();
        about
            .filter(|(_, term)| term.matcher.matches(demand, &self.namespaces))
            .map(|(id, _)| id)
            .collect()
    }

    fn enter_terms(&mut self, id: u32, demand: &Demand) {
        let labels = |term: &PodTerm| Matcher::Labels(term.pods.clone());
        let all: Vec<_> = demand.affinity.iter().map(|term| term.pods.clone()).collect();
        let mut affinity = Vec::new();
        let mut drawn = Vec::new();
        for term in &demand.affinity {
            drawn.push(self.enter_term(&labels(term), &term.key));
            let matcher = if all.len() == 1 { labels(term) } else { Matcher::All(all.clone()) };
            affinity.push(self.enter_term(&matcher, &term.key));
        }
        let anti = demand.anti_affinity.iter();
        let anti_affinity = anti.map(|term| self.enter_term(&labels(term), &term.key)).collect();
        let preferred = demand.preferred.iter();
        let preferred = preferred
            .map(|(weight, term)| (self.enter_term(&labels(term), &term.key), *weight))
            .collect();
        let constraints = demand.spread.iter();
        let spread = constraints
            .map(|constraint| {
                let matcher = Matcher::Labels(constraint.pods.clone());
                let by_domain = self.enter_term(&matcher, &constraint.key);
                SpreadTerm { by_domain, by_node: self.enter_term(&matcher, "") }
            })
            .collect();
        let is_spread = demand.spread.is_empty() && !demand.packs;
        let group = demand.need.group.as_ref().filter(|_| is_spread);
        let group = group.map(|uid| {
            let matcher = Matcher::Group(uid.clone());
            (self.enter_term(&matcher, ""), self.enter_term(&matcher, ZONE))
        });
        if let Some(class) = self.classes.get_mut(id) {
            class.affinity = affinity;
            class.drawn = drawn;
            class.anti_affinity = anti_affinity;
            class.preferred = preferred;
            class.spread = spread;
            class.group = group;
        }
    }

    /// The number of a term; a new one is counted, and told to the classes it is about.
    fn enter_term(&mut self, matcher: &Matcher, key: &str) -> u32 {
        let (topology, is_new) = self.terms.enter_topology(key);
        if is_new {
            let nodes = self.nodes.iter();
            let labels: Vec<_> = nodes
                .filter_map(|(id, node)| Some((id, node.facts.as_ref()?.labels.clone())))
                .collect();
            if let Some(topology) = self.terms.topology_mut(topology) {
                for (id, labels) in &labels {
                    topology.set(*id, Some(labels), false);
                }
            }
        }
        let (term, is_new) = self.terms.enter(matcher, topology);
        if is_new {
            self.match_term(term, matcher);
        }
        term
    }

    /// Tells the classes that the term is about them, and counts their pods.
    fn match_term(&mut self, term: u32, matcher: &Matcher) {
        let mut about = Vec::new();
        let mut has_pods = false;
        for (id, class) in self.classes.slab.iter_mut() {
            if matcher.matches(&class.demand, &self.namespaces) {
                class.matches.push(term);
                has_pods |= class.pods > 0;
                about.push(id);
            }
        }
        if !has_pods {
            return;
        }
        for (_, pod) in self.pods.iter() {
            if about.binary_search(&pod.class).is_ok() {
                let count =
                    Count { matched: 1, ending: u32::from(pod.is_ending), ..Count::default() };
                self.terms.change(term, pod.node, count, true);
            }
        }
    }

    /// Labels of namespaces changed: terms that ask for them are about other pods now.
    pub(super) fn match_namespaces(&mut self) {
        let terms = self.terms.iter();
        let selecting: Vec<_> = terms
            .filter(|(_, term)| term.matcher.selects_namespaces())
            .map(|(id, term)| (id, term.matcher.clone()))
            .collect();
        for (term, matcher) in selecting {
            self.terms.forget_matched(term);
            for (_, class) in self.classes.slab.iter_mut() {
                class.matches.retain(|other| *other != term);
            }
            self.match_term(term, &matcher);
        }
    }

    /// Counts a pod of the class on `node` in all terms that it concerns, or takes it out.
    pub(super) fn count(&mut self, id: u32, node: u32, is_ending: bool, is_more: bool) {
        let Some(class) = self.classes.slab.get(id) else { return };
        let terms = &mut self.terms;
        let matched = Count { matched: 1, ending: u32::from(is_ending), ..Count::default() };
        for term in &class.matches {
            terms.change(*term, node, matched, is_more);
        }
        for term in &class.anti_affinity {
            terms.change(*term, node, Count { repelling: 1, ..Count::default() }, is_more);
        }
        for term in &class.drawn {
            let weight = Count { weight: HARD_AFFINITY_WEIGHT, ..Count::default() };
            terms.change(*term, node, weight, is_more);
        }
        for (term, weight) in &class.preferred {
            terms.change(*term, node, Count { weight: *weight, ..Count::default() }, is_more);
        }
    }

    /// Drops the classes that nobody asked for the longest, once there are too many without pods.
    fn sweep_classes(&mut self) {
        if self.classes.idle <= IDLE_MAX {
            return;
        }
        let slab = self.classes.slab.iter();
        let mut idle: Vec<_> =
            slab.filter(|(_, class)| class.pods == 0).map(|(id, class)| (class.used, id)).collect();
        idle.sort_unstable();
        let nominees = self.nodes.iter().flat_map(|(_, node)| &node.nominees);
        let held: Vec<_> = nominees.map(|nominee| nominee.class).collect();
        idle.truncate(idle.len().saturating_sub(IDLE_MAX / 2));
        for (_, id) in idle.into_iter().filter(|(_, id)| !held.contains(id)) {
            self.drop_class(id);
        }
    }

    fn drop_class(&mut self, id: u32) {
        let Some(class) = self.classes.slab.remove(id) else { return };
        self.classes.idle = self.classes.idle.saturating_sub(1);
        if let Some(ids) = self.classes.by_fingerprint.get_mut(&class.fingerprint) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.classes.by_fingerprint.remove(&class.fingerprint);
            }
        }
        for term in class.terms() {
            if self.terms.leave(term) {
                for (_, class) in self.classes.slab.iter_mut() {
                    class.matches.retain(|other| *other != term);
                }
            }
        }
    }
}
