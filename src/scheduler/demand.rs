//! All that a pod asks of a place, read from it once: equal pods share one.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::{
    Pod, PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

use crate::api::selector::{LabelSelector, Operator, Requirement};
use crate::scheduler::affinity::Wishes;
use crate::scheduler::need::Need;
use crate::scheduler::view::PodKey;

/// The scheduler pods ask for when they name none.
pub const SCHEDULER_NAME: &str = "default-scheduler";
/// The same, but for filling nodes one after the other: the empty ones can be switched off.
pub const BINPACK_NAME: &str = "binpack";
/// A pod's weight for another that must be near it, which it is not asked about itself.
pub(super) const HARD_AFFINITY_WEIGHT: i64 = 1;

/// Which pods a term is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Matcher {
    /// Pods by their namespace and labels.
    Labels(Labels),
    /// Pods that all of them are about.
    All(Vec<Labels>),
    /// The pods of one controller, by its uid.
    Group(String),
}

/// Pods by their namespace and labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    /// Names of namespaces.
    namespaces: Vec<String>,
    /// Labels of further namespaces.
    namespace_selector: Option<LabelSelector>,
    selector: LabelSelector,
}

/// The name of an image as nodes tell it: without a tag or digest the newest is meant.
fn with_tag(image: &str) -> String {
    let name = image.rsplit_once('/').map_or(image, |(_, name)| name);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

/// Labels of namespaces, by name.
pub(super) type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

impl Labels {
    fn matches(&self, demand: &Demand, namespaces: &Namespaces) -> bool {
        if !self.selector.matches_labels(&demand.labels) {
            return false;
        }
        let is_selected = |selector: &LabelSelector| {
            selector.is_everything()
                || namespaces
                    .get(&demand.namespace)
                    .is_some_and(|labels| selector.matches_labels(labels))
        };
        self.namespaces.contains(&demand.namespace)
            || self.namespace_selector.as_ref().is_some_and(is_selected)
    }
}

impl Matcher {
    /// Whether it is about pods of `demand`.
    pub(super) fn matches(&self, demand: &Demand, namespaces: &Namespaces) -> bool {
        match self {
            Self::Labels(labels) => labels.matches(demand, namespaces),
            Self::All(all) => all.iter().all(|labels| labels.matches(demand, namespaces)),
            Self::Group(uid) => demand.need.group.as_ref() == Some(uid),
        }
    }

    /// Whether the labels of namespaces matter to it.
    pub(super) fn selects_namespaces(&self) -> bool {
        let selects =
            |l: &Labels| l.namespace_selector.as_ref().is_some_and(|s| !s.is_everything());
        match self {
            Self::Labels(labels) => selects(labels),
            Self::All(all) => all.iter().any(selects),
            Self::Group(_) => false,
        }
    }
}

/// Pods, and the label of nodes that says what counts as near them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PodTerm {
    pub(super) pods: Labels,
    pub(super) key: String,
}

/// How evenly pods are to be spread over the values of a label of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Spread {
    pub(super) key: String,
    pub(super) pods: Labels,
    pub(super) skew_max: u32,
    /// Rather no place than an uneven one.
    pub(super) is_hard: bool,
    pub(super) domains_min: u32,
    /// Nodes that the pod's node selector and affinity exclude do not count.
    pub(super) honors_affinity: bool,
    /// Nodes with taints that the pod does not tolerate do not count.
    pub(super) honors_taints: bool,
}

/// All that a pod asks of a place.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Demand {
    pub(super) namespace: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) need: Need,
    pub(super) wishes: Wishes,
    pub(super) affinity: Vec<PodTerm>,
    pub(super) anti_affinity: Vec<PodTerm>,
    /// Weights below zero are for being far from them.
    pub(super) preferred: Vec<(i64, PodTerm)>,
    pub(super) spread: Vec<Spread>,
    pub(super) images: Vec<String>,
    pub(super) priority: i32,
    /// Pods of lower priority may have to go for it.
    pub(super) may_preempt: bool,
    /// Full nodes are better than empty ones.
    pub(super) packs: bool,
    /// The scheduler it asks for, unless that is the default one.
    pub(super) scheduler: Option<String>,
}

impl Demand {
    /// What `pod` asks for.
    pub(super) fn of(pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let mut demand = Self {
            need: Need::of(pod),
            wishes: Wishes::of(pod),
            namespace,
            labels,
            may_preempt: true,
            ..Self::default()
        };
        let Some(spec) = &pod.spec else { return demand };
        demand.priority = spec.priority.unwrap_or(0);
        demand.may_preempt = spec.preemption_policy.as_deref() != Some("Never");
        demand.scheduler =
            spec.scheduler_name.clone().filter(|name| !name.is_empty() && name != SCHEDULER_NAME);
        demand.packs = spec.scheduler_name.as_deref() == Some(BINPACK_NAME);
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        demand.images = containers.filter_map(|c| c.image.as_deref().map(with_tag)).collect();
        for constraint in spec.topology_spread_constraints.iter().flatten() {
            let spread = demand.spread_of(constraint);
            demand.spread.push(spread);
        }
        let Some(affinity) = &spec.affinity else { return demand };
        let near = affinity.pod_affinity.as_ref();
        let far = affinity.pod_anti_affinity.as_ref();
        let required =
            near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        demand.affinity = required.into_iter().flatten().map(|term| demand.term(term)).collect();
        let required =
            far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        demand.anti_affinity =
            required.into_iter().flatten().map(|term| demand.term(term)).collect();
        let weighted = |sign: i64, wishes: Option<&Vec<WeightedPodAffinityTerm>>| -> Vec<_> {
            let wishes = wishes.into_iter().flatten();
            wishes
                .map(|wish| (sign * i64::from(wish.weight), demand.term(&wish.pod_affinity_term)))
                .collect()
        };
        let preferred =
            near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        let mut all = weighted(1, preferred);
        let preferred =
            far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
        all.extend(weighted(-1, preferred));
        demand.preferred = all;
        demand
    }

    /// What a pod that has a node asked for when it had none.
    pub(super) fn of_placed(pod: &Pod) -> Self {
        let mut demand = Self::of(pod);
        demand.wishes.node_name = None;
        demand
    }

    fn term(&self, term: &PodAffinityTerm) -> PodTerm {
        let mut selector = LabelSelector::from_typed(term.label_selector.as_ref())
            .unwrap_or_else(|_| LabelSelector::nothing());
        selector = self.with_keys(selector, term.match_label_keys.as_ref(), Operator::In);
        selector = self.with_keys(selector, term.mismatch_label_keys.as_ref(), Operator::NotIn);
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(self.namespace.clone());
        }
        namespaces.sort();
        namespaces.dedup();
        let namespace_selector = term.namespace_selector.as_ref().map(|selector| {
            LabelSelector::from_typed(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing())
        });
        PodTerm {
            pods: Labels { namespaces, namespace_selector, selector },
            key: term.topology_key.clone(),
        }
    }

    fn spread_of(&self, constraint: &TopologySpreadConstraint) -> Spread {
        let selector = LabelSelector::from_typed(constraint.label_selector.as_ref())
            .unwrap_or_else(|_| LabelSelector::nothing());
        let keys = constraint.match_label_keys.as_ref();
        let selector = self.with_keys(selector, keys, Operator::In);
        let count = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1);
        Spread {
            key: constraint.topology_key.clone(),
            pods: Labels {
                namespaces: vec![self.namespace.clone()],
                namespace_selector: None,
                selector,
            },
            skew_max: count(Some(constraint.max_skew)),
            is_hard: constraint.when_unsatisfiable != "ScheduleAnyway",
            domains_min: count(constraint.min_domains),
            honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }

    /// The selector, and for each of the keys that the pod has a label of: its value, or any other.
    fn with_keys(
        &self,
        mut selector: LabelSelector,
        keys: Option<&Vec<String>>,
        operator: Operator,
    ) -> LabelSelector {
        for key in keys.into_iter().flatten() {
            let Some(value) = self.labels.get(key) else { continue };
            let requirement =
                Requirement { key: key.clone(), operator, values: vec![value.clone()] };
            selector = selector.and(requirement).unwrap_or_else(|_| LabelSelector::nothing());
        }
        selector
    }

    /// Equal demands have the same; others seldom do.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.namespace.hash(&mut hasher);
        self.labels.hash(&mut hasher);
        self.need.group.hash(&mut hasher);
        self.priority.hash(&mut hasher);
        self.need.resources.cpu_millis.hash(&mut hasher);
        self.need.resources.memory_bytes.hash(&mut hasher);
        self.images.hash(&mut hasher);
        hasher.finish()
    }
}

/// Namespace and name of `pod`.
pub(super) fn key_of(pod: &Pod) -> PodKey {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn demand(spec: &Value) -> Demand {
        let pod = json!({
            "metadata": { "name": "p", "namespace": "shop", "labels": { "app": "web", "v": "2" } },
            "spec": spec,
        });
        Demand::of(&serde_json::from_value(pod).unwrap())
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn other(namespace: &str, pairs: &[(&str, &str)]) -> Demand {
        Demand { namespace: namespace.to_owned(), labels: labels(pairs), ..Demand::default() }
    }

    #[test]
    fn a_term_is_about_the_pods_it_selects() {
        let namespaces: Namespaces =
            [("shop".to_owned(), labels(&[("team", "a")])), ("bank".to_owned(), labels(&[]))]
                .into();
        let web = json!({ "matchLabels": { "app": "web" } });
        let cases = [
            (json!({ "labelSelector": web }), [true, false, false]),
            (json!({ "labelSelector": web, "namespaces": ["bank"] }), [false, true, false]),
            (json!({ "labelSelector": web, "namespaceSelector": {} }), [true, true, false]),
            (
                json!({ "labelSelector": web, "namespaceSelector": { "matchLabels": { "team": "a" } } }),
                [true, false, false],
            ),
            (json!({ "labelSelector": {} }), [true, false, true]),
            (json!({}), [false, false, false]),
            (json!({ "labelSelector": web, "matchLabelKeys": ["v"] }), [false, false, false]),
            (json!({ "labelSelector": web, "mismatchLabelKeys": ["v"] }), [true, false, false]),
        ];
        for (mut term, expected) in cases {
            term["topologyKey"] = json!("zone");
            let demand = demand(&json!({ "containers": [], "affinity": { "podAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [term] }}}));
            let matcher = Matcher::Labels(demand.affinity[0].pods.clone());
            let found = [
                other("shop", &[("app", "web")]),
                other("bank", &[("app", "web")]),
                other("shop", &[("app", "db")]),
            ]
            .map(|other| matcher.matches(&other, &namespaces));
            assert_eq!(found, expected, "{term}");
        }
    }

    #[test]
    fn constraints_have_kubernetes_defaults() {
        let demand = demand(&json!({ "containers": [], "topologySpreadConstraints": [
            { "maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
              "labelSelector": { "matchLabels": { "app": "web" } }, "matchLabelKeys": ["v", "w"] },
            { "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway",
              "nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor", "minDomains": 3 },
        ]}));
        let [hard, soft] = &demand.spread[..] else { panic!("{:?}", demand.spread) };
        assert!(hard.is_hard && hard.honors_affinity && !hard.honors_taints);
        assert_eq!((hard.skew_max, hard.domains_min), (2, 1));
        let matcher = Matcher::Labels(hard.pods.clone());
        let none = Namespaces::new();
        assert!(matcher.matches(&other("shop", &[("app", "web"), ("v", "2")]), &none));
        assert!(!matcher.matches(&other("shop", &[("app", "web"), ("v", "1")]), &none));
        assert!(!soft.is_hard && !soft.honors_affinity && soft.honors_taints);
        assert_eq!((soft.skew_max, soft.domains_min), (1, 3));
    }

    #[test]
    fn preferences_to_be_far_weigh_below_zero() {
        let term = json!({ "topologyKey": "zone", "labelSelector": {} });
        let wish = json!([{ "weight": 7, "podAffinityTerm": term }]);
        let demand = demand(&json!({ "containers": [], "affinity": {
            "podAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": wish },
            "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": wish },
        }}));
        let weights: Vec<_> = demand.preferred.iter().map(|(weight, _)| *weight).collect();
        assert_eq!(weights, [7, -7]);
    }
}
