//! Whether a node takes a pod.

use crate::scheduler::classes::Class;
use crate::scheduler::demand::Demand;
use crate::scheduler::devices::Devices;
use crate::scheduler::extension::Asker;
use crate::scheduler::need::{HostPort, Need, Resources};
use crate::scheduler::node::{Facts, NodeInfo};
use crate::scheduler::reason::{Changes, Reason, Unschedulable};
use crate::scheduler::slab::NONE;
use crate::scheduler::spread::Skew;
use crate::scheduler::storage::Placed as PlacedStorage;
use crate::scheduler::storage::Storage;
use crate::scheduler::terms::Count;
use crate::scheduler::view::{ClusterView, PodKey};

/// One pod's round over the nodes: what is the same for all of them.
pub(super) struct Round<'a> {
    pub(super) view: &'a ClusterView,
    pub(super) class: &'a Class,
    pub(super) demand: &'a Demand,
    /// The pod itself, which does not count as waiting.
    pub(super) who: Option<&'a PodKey>,
    storage: PlacedStorage<'a>,
    /// The hard constraints of spreading.
    spread: Vec<Skew<'a>>,
    /// Terms about this pod that pods somewhere must not have near.
    repelled: Vec<u32>,
    /// The first of pods that all want to be near each other goes anywhere.
    is_first: bool,
    /// Asks the plugins of its scheduler.
    pub(super) asker: Option<Asker<'a>>,
}

/// Pods that are looked at as if they had left one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Gone {
    pub(super) pods: Vec<u32>,
    resources: Resources,
}

impl Gone {
    /// The pods with these numbers.
    pub(super) fn of(view: &ClusterView, pods: Vec<u32>) -> Self {
        let resources = pods.iter().filter_map(|pod| need_of(view, *pod));
        let resources = resources.fold(Resources::default(), |sum, need| sum.plus(need.resources));
        Self { pods, resources }
    }

    fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn needs<'v>(&'v self, view: &'v ClusterView) -> impl Iterator<Item = &'v Need> {
        self.pods.iter().filter_map(|pod| need_of(view, *pod))
    }

    /// What the counts of `term` lose in the domain of the node.
    pub(super) fn count(&self, view: &ClusterView, term: u32) -> Count {
        let mut lost = Count::default();
        for pod in self.pods.iter().filter_map(|pod| view.pods.get(*pod)) {
            let Some(class) = view.class(pod.class) else { continue };
            if class.matches.contains(&term) {
                let ending = u32::from(pod.is_ending);
                lost = lost.plus(Count { matched: 1, ending, ..Count::default() });
            }
            if class.anti_affinity.contains(&term) {
                lost = lost.plus(Count { repelling: 1, ..Count::default() });
            }
        }
        lost
    }
}

fn need_of(view: &ClusterView, pod: u32) -> Option<&Need> {
    Some(&view.class(view.pods.get(pod)?.class)?.demand.need)
}

/// What labels, taints and names say against a node.
pub(super) fn by_facts<'f>(demand: &Demand, name: &str, facts: &'f Facts) -> Option<Reason<'f>> {
    let wishes = &demand.wishes;
    if facts.is_unschedulable && !wishes.tolerates_cordon() {
        return Some(Reason::Unschedulable);
    }
    if wishes.names_another(name) {
        return Some(Reason::NodeName);
    }
    if let Some(taint) = wishes.untolerated(&facts.taints) {
        return Some(Reason::taint(taint));
    }
    (!wishes.accepts(name, facts)).then_some(Reason::NodeAffinity)
}

impl<'a> Round<'a> {
    /// Of a pod of `class`; `None` if there is no such class.
    pub(super) fn new(
        view: &'a ClusterView,
        class: u32,
        who: Option<&'a PodKey>,
        storage: &'a Storage,
    ) -> Option<Self> {
        let class = view.class(class)?;
        let demand = &*class.demand;
        let hard = demand.spread.iter().zip(&class.spread).filter(|(spread, _)| spread.is_hard);
        let hard: Vec<_> = hard.collect();
        let spread =
            hard.iter().filter_map(|(spread, term)| Skew::new(view, class, spread, **term, &hard));
        let repelled = class.matches.iter().copied();
        let is_repelling = |term: &u32| view.terms.get(*term).is_some_and(|t| t.repelling > 0);
        let is_met = |term: &u32| view.terms.get(*term).is_some_and(|t| t.is_met_anywhere());
        let is_own = |term: &u32| class.matches.contains(term);
        Some(Self {
            view,
            class,
            demand,
            who,
            storage: storage.on(view),
            spread: spread.collect(),
            repelled: repelled.filter(is_repelling).collect(),
            is_first: !class.affinity.is_empty()
                && class.affinity.iter().all(is_own)
                && !class.affinity.iter().any(is_met),
            asker: Asker::new(&view.extensions, demand, class.born),
        })
    }

    /// Whether the node takes the pod. `gone` pods count as having left it; `is_eligible` says that
    /// its labels and taints were looked at.
    pub(super) fn fits(&self, id: u32, node: &'a NodeInfo, gone: &Gone, is_eligible: bool) -> bool {
        let mut fits = true;
        self.refusals(id, node, gone, is_eligible, &mut |_| fits = false);
        fits
    }

    /// Tells `each` why the node does not take the pod. As with Kubernetes, the first plugin that
    /// refuses has the word; only of resources there may be several.
    pub(super) fn refusals(
        &self,
        id: u32,
        node: &'a NodeInfo,
        gone: &Gone,
        is_eligible: bool,
        each: &mut impl FnMut(Reason<'a>),
    ) {
        let Some(facts) = &node.facts else { return };
        if !is_eligible && let Some(reason) = by_facts(self.demand, &node.name, facts) {
            return each(reason);
        }
        if !self.demand.need.ports.is_empty() && !self.has_ports(node, gone) {
            return each(Reason::Ports);
        }
        let mut is_full = false;
        self.lacking(node, facts, gone, &mut |reason| {
            is_full = true;
            each(reason);
        });
        if is_full {
            return;
        }
        if self.is_claim_in_use(node, gone) {
            return each(Reason::ClaimInUse);
        }
        if let Some(text) = self.storage.refusal(&node.name, facts) {
            return each(Reason::Storage(text));
        }
        if let Some(text) = self.devices().refusal(&node.name, facts) {
            return each(Reason::Devices(text));
        }
        for skew in &self.spread {
            let awaited = self.awaited(node).filter(|class| class.matches.contains(&skew.term));
            let awaited = u32::try_from(awaited.count()).unwrap_or(u32::MAX);
            if let Some(reason) = skew.refusal(self.view, id, gone, awaited) {
                return each(reason);
            }
        }
        // The plugins come last: they cost the most.
        let reason = self
            .by_neighbours(id, node, gone)
            .or_else(|| self.asker.as_ref().and_then(|asker| asker.refusal(id, node)));
        if let Some(reason) = reason {
            each(reason);
        }
    }

    /// What its claims of devices ask for.
    pub(super) fn devices(&self) -> &'a Devices {
        self.storage.devices()
    }

    fn has_ports(&self, node: &NodeInfo, gone: &Gone) -> bool {
        let wanted = &self.demand.need.ports;
        let clashes = |held: &HostPort| wanted.iter().any(|port| held.clashes(port));
        let freed = gone.needs(self.view).flat_map(|need| &need.ports);
        let (held, freed) = (
            node.ports.iter().filter(|p| clashes(p)).count(),
            freed.filter(|p| clashes(p)).count(),
        );
        held <= freed && !self.waiting(node).any(|need| need.ports.iter().any(clashes))
    }

    /// The classes of the pods that the node is kept for.
    fn awaited<'n>(&'n self, node: &'n NodeInfo) -> impl Iterator<Item = &'n Class> {
        let nominees = node.nominees.iter().filter(|nominee| {
            nominee.priority >= self.demand.priority && self.who != Some(&nominee.key)
        });
        nominees.filter_map(|nominee| self.view.class(nominee.class))
    }

    /// What these pods need.
    fn waiting<'n>(&'n self, node: &'n NodeInfo) -> impl Iterator<Item = &'n Need> {
        self.awaited(node).map(|class| &class.demand.need)
    }

    /// Whether a claim that one pod alone may use is another's, or kept for one that is to come.
    fn is_claim_in_use(&self, node: &NodeInfo, gone: &Gone) -> bool {
        self.storage.exclusive.iter().any(|&(claim, uses)| {
            let of = |need: &Need| need.claims.iter().filter(|named| *named == claim).count();
            let freed: usize = gone.needs(self.view).map(of).sum();
            let kept: usize = self.waiting(node).map(of).sum();
            uses + kept > freed
        })
    }

    /// What the node has too little of. A pod that asks for nothing of a kind always fits in it.
    fn lacking(
        &self,
        node: &'a NodeInfo,
        facts: &Facts,
        gone: &Gone,
        each: &mut impl FnMut(Reason<'a>),
    ) {
        let mut used = node.used;
        if !gone.is_empty() {
            used = used.minus(gone.resources);
        }
        if !node.nominees.is_empty() {
            used = self.waiting(node).fold(used, |used, need| used.plus(need.resources));
        }
        let free = facts.allocatable.minus(used);
        let wanted = self.demand.need.resources;
        for (reason, wanted, free) in [
            (Reason::Pods, wanted.pods, free.pods),
            (Reason::Cpu, wanted.cpu_millis, free.cpu_millis),
            (Reason::Memory, wanted.memory_bytes, free.memory_bytes),
            (Reason::EphemeralStorage, wanted.ephemeral_bytes, free.ephemeral_bytes),
        ] {
            if wanted > 0 && wanted > free {
                each(reason);
            }
        }
        for (name, wanted) in &self.demand.need.extended {
            let of = |need: &Need| need.extended.get(name).copied().unwrap_or(0);
            let taken = node.extended.get(name).copied().unwrap_or(0);
            let freed: i64 = gone.needs(self.view).map(of).sum();
            let kept: i64 = self.waiting(node).map(of).sum();
            let has = facts.extended.get(name).copied().unwrap_or(0);
            if *wanted > has - taken + freed - kept {
                each(Reason::Extended(name));
            }
        }
    }

    /// Whether the node could never give what the pod asks for, with nobody on it.
    pub(super) fn is_too_small(&self, facts: &Facts) -> bool {
        let (has, wanted) = (facts.allocatable, self.demand.need.resources);
        let lacks =
            |name: &String, amount: i64| amount > facts.extended.get(name).copied().unwrap_or(0);
        wanted.pods > has.pods
            || (wanted.cpu_millis > has.cpu_millis && wanted.cpu_millis > 0)
            || (wanted.memory_bytes > has.memory_bytes && wanted.memory_bytes > 0)
            || (wanted.ephemeral_bytes > has.ephemeral_bytes && wanted.ephemeral_bytes > 0)
            || self.demand.need.extended.iter().any(|(name, amount)| lacks(name, *amount))
    }

    /// The count of a term near the node, without who is gone; `None` where the node lacks the label.
    fn near(&self, term: u32, node: u32, gone: &Gone) -> Option<Count> {
        let known = self.view.terms.get(term)?;
        let domain = self.view.terms.topology(known.topology)?.domain(node);
        if domain == NONE {
            return None;
        }
        let count = known.count(domain);
        Some(if gone.is_empty() { count } else { count.minus(gone.count(self.view, term)) })
    }

    /// Whether the pods that it must be near may be there. No look at the node itself.
    pub(super) fn may_be_near(&self, node: u32) -> bool {
        let nobody = Gone::default();
        let is_met = |term: &u32| self.near(*term, node, &nobody).is_some_and(|it| it.matched > 0);
        self.is_first || self.class.affinity.iter().all(is_met)
    }

    /// Pods that the node is kept for count as neighbours to stay away from, not as ones to be near:
    /// they may not come.
    fn by_neighbours(&self, node: u32, info: &NodeInfo, gone: &Gone) -> Option<Reason<'a>> {
        for term in &self.class.affinity {
            let is_near = match self.near(*term, node, gone) {
                Some(count) => count.matched > 0 || self.is_first,
                None => false,
            };
            if !is_near {
                return Some(Reason::Affinity);
            }
        }
        let has = |term: &u32, what: fn(Count) -> u32| {
            self.near(*term, node, gone).is_some_and(|count| what(count) > 0)
        };
        let has_label = |term: &u32| self.near(*term, node, gone).is_some();
        let comes = |term: &u32| self.awaited(info).any(|class| class.matches.contains(term));
        let is_apart =
            |term: &u32| !(has(term, |count| count.matched) || has_label(term) && comes(term));
        if !self.class.anti_affinity.iter().all(is_apart) {
            return Some(Reason::AntiAffinity);
        }
        let repels = |class: &Class| {
            let shared = |term: &&u32| self.class.matches.contains(term) && has_label(term);
            class.anti_affinity.iter().any(|term| shared(&term))
        };
        let repelled = self.repelled.iter().any(|term| has(term, |count| count.repelling))
            || self.awaited(info).any(repels);
        repelled.then_some(Reason::ExistingAntiAffinity)
    }

    /// No node takes the pod for one reason, which has nothing to do with them.
    pub(super) fn refuse_for(&self, reason: &Reason<'_>) -> Unschedulable {
        let nodes = self.view.nodes_known();
        Unschedulable {
            nodes,
            helped_by: reason.helped_by(),
            is_passing: reason.is_passing(),
            reasons: [(reason.to_string(), nodes)].into(),
            preemption: String::new(),
        }
    }

    /// Why no node takes the pod, all nodes looked at.
    pub(super) fn refuse(&self) -> Unschedulable {
        let mut counts = std::collections::BTreeMap::<Reason<'_>, usize>::new();
        let nobody = Gone::default();
        for (id, node) in self.view.nodes.iter() {
            self.refusals(id, node, &nobody, false, &mut |reason| {
                *counts.entry(reason).or_insert(0) += 1;
            });
        }
        let changes = counts.keys().map(|reason| reason.helped_by());
        Unschedulable {
            nodes: self.view.nodes_known(),
            helped_by: changes.fold(Changes::NODE, Changes::and),
            is_passing: counts.keys().any(Reason::is_passing),
            reasons: counts.into_iter().map(|(reason, n)| (reason.to_string(), n)).collect(),
            preemption: String::new(),
        }
    }
}
