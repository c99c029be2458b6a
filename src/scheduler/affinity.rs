//! What a pod says about the nodes it may or would like to run on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeAffinity, Pod, Taint, Toleration};

use crate::api::selector::node_term_matches;
use crate::scheduler::node::Facts;

const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
/// The taint a cordoned node counts as having.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A pod's wishes about nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wishes {
    pub(super) node_name: Option<String>,
    node_selector: BTreeMap<String, String>,
    node_affinity: Option<NodeAffinity>,
    tolerations: Vec<Toleration>,
}

impl Wishes {
    pub(super) fn of(pod: &Pod) -> Self {
        let Some(spec) = pod.spec.as_ref() else { return Self::default() };
        Self {
            node_name: spec.node_name.clone().filter(|name| !name.is_empty()),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: spec.affinity.as_ref().and_then(|a| a.node_affinity.clone()),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
        }
    }

    /// Whether the pod names nodes, or asks for labels of them.
    pub(super) fn chooses_nodes(&self) -> bool {
        self.node_name.is_some() || self.selects_nodes()
    }

    /// Whether the pod asks for labels of nodes.
    pub(super) fn selects_nodes(&self) -> bool {
        !self.node_selector.is_empty()
            || self.node_affinity.as_ref().is_some_and(|affinity| {
                affinity.required_during_scheduling_ignored_during_execution.is_some()
            })
    }

    /// Whether some nodes are better for the pod than others by their labels.
    pub(super) fn prefers_nodes(&self) -> bool {
        self.node_affinity.as_ref().is_some_and(|affinity| {
            let preferred = &affinity.preferred_during_scheduling_ignored_during_execution;
            preferred.as_ref().is_some_and(|list| !list.is_empty())
        })
    }

    /// Whether the pod names another node.
    pub(super) fn names_another(&self, node: &str) -> bool {
        self.node_name.as_deref().is_some_and(|wanted| wanted != node)
    }

    /// Whether the pod may run on a cordoned node.
    pub(super) fn tolerates_cordon(&self) -> bool {
        let cordon = Taint {
            key: UNSCHEDULABLE.to_owned(),
            effect: NO_SCHEDULE.to_owned(),
            ..Taint::default()
        };
        self.tolerates(&cordon)
    }

    /// The first taint that keeps the pod away.
    pub(super) fn untolerated<'t>(&self, taints: &'t [Taint]) -> Option<&'t Taint> {
        taints.iter().find(|taint| {
            matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE) && !self.tolerates(taint)
        })
    }

    /// How many taints speak against the node without forbidding it.
    pub(super) fn discouraging(&self, taints: &[Taint]) -> usize {
        let discourages =
            |taint: &&Taint| taint.effect == PREFER_NO_SCHEDULE && !self.tolerates(taint);
        taints.iter().filter(discourages).count()
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|toleration| tolerates(toleration, taint))
    }

    /// Whether node selector and required affinity accept the node.
    pub(super) fn accepts(&self, name: &str, facts: &Facts) -> bool {
        let mut selector = self.node_selector.iter();
        let required = self.node_affinity.as_ref().and_then(|affinity| {
            affinity.required_during_scheduling_ignored_during_execution.as_ref()
        });
        selector.all(|(key, value)| facts.labels.get(key) == Some(value))
            && required.is_none_or(|required| {
                let mut terms = required.node_selector_terms.iter();
                terms.any(|term| node_term_matches(term, name, &facts.labels))
            })
    }

    /// The sum of the weights of the preferences the node meets. An empty one is met nowhere.
    pub(super) fn preference(&self, name: &str, facts: &Facts) -> i64 {
        let preferred = self.node_affinity.as_ref().and_then(|affinity| {
            affinity.preferred_during_scheduling_ignored_during_execution.as_ref()
        });
        let wishes = preferred.into_iter().flatten();
        let met = wishes.filter(|wish| node_term_matches(&wish.preference, name, &facts.labels));
        met.map(|wish| i64::from(wish.weight)).sum()
    }
}

/// Whether `toleration` covers `taint`.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &'_ Option<String>, other: &str| field.as_deref().unwrap_or("") == other;
    let (key, effect) = (
        toleration.key.as_deref().unwrap_or_default(),
        toleration.effect.as_deref().unwrap_or_default(),
    );
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            let value = taint.value.as_deref().unwrap_or_default();
            !key.is_empty() && text(&toleration.value, value)
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn wishes(node_affinity: &Value) -> Wishes {
        let affinity = json!({ "nodeAffinity": node_affinity });
        let pod = json!({ "spec": { "containers": [], "affinity": affinity } });
        Wishes::of(&serde_json::from_value(pod).unwrap())
    }

    fn has(key: &str, value: &str) -> Value {
        json!({ "key": key, "operator": "In", "values": [value] })
    }

    fn labelled(pairs: &[(&str, &str)]) -> Facts {
        let labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Facts { labels: labels.collect(), ..Facts::default() }
    }

    #[test]
    fn one_required_term_is_enough_and_all_of_it_has_to_hold() {
        let required = |terms: Value| {
            let required = json!({ "nodeSelectorTerms": terms });
            wishes(&json!({ "requiredDuringSchedulingIgnoredDuringExecution": required }))
        };
        let fast = json!({ "matchExpressions": [has("disk", "ssd"), has("arch", "arm")] });
        let named = json!({
            "matchExpressions": [has("disk", "hdd")], "matchFields": [has("metadata.name", "n")],
        });
        let either = required(json!([fast, named]));
        for (name, labels, expected) in [
            ("x", &[("disk", "ssd"), ("arch", "arm")][..], true),
            ("x", &[("disk", "ssd")], false),
            ("x", &[("arch", "arm")], false),
            ("n", &[("disk", "hdd")], true),
            ("x", &[("disk", "hdd")], false),
            ("n", &[], false),
        ] {
            assert_eq!(either.accepts(name, &labelled(labels)), expected, "{name} {labels:?}");
        }
        // A required term that asks for nothing matches no node, alone and beside others.
        assert!(!required(json!([{}])).accepts("n", &labelled(&[("disk", "ssd")])));
        let beside = required(json!([{}, { "matchExpressions": [has("disk", "ssd")] }]));
        assert!(beside.accepts("n", &labelled(&[("disk", "ssd")])));
        assert!(!beside.accepts("n", &labelled(&[("disk", "hdd")])));
    }

    #[test]
    fn preferences_add_up_and_an_empty_one_says_nothing() {
        let preferred = json!([
            { "weight": 3, "preference": { "matchExpressions": [has("disk", "ssd")] } },
            { "weight": 40, "preference": { "matchExpressions": [has("arch", "arm")] } },
            { "weight": 100, "preference": {} },
        ]);
        let wishes =
            wishes(&json!({ "preferredDuringSchedulingIgnoredDuringExecution": preferred }));
        for (labels, expected) in [
            (&[("disk", "ssd"), ("arch", "arm")][..], 43),
            (&[("disk", "ssd")], 3),
            (&[("arch", "arm")], 40),
            (&[], 0),
        ] {
            assert_eq!(wishes.preference("n", &labelled(labels)), expected, "{labels:?}");
        }
    }

    #[test]
    fn a_toleration_covers_what_it_names() {
        let taint: Taint =
            serde_json::from_value(json!({ "key": "k", "value": "v", "effect": "NoSchedule" }))
                .unwrap();
        for (toleration, expected) in [
            (json!({ "operator": "Exists" }), true),
            (json!({ "key": "k", "operator": "Exists" }), true),
            (json!({ "key": "k", "value": "v" }), true),
            (json!({ "key": "k", "value": "w" }), false),
            (json!({ "key": "k", "operator": "Exists", "effect": "NoExecute" }), false),
            (json!({ "key": "other", "operator": "Exists" }), false),
            (json!({ "value": "v" }), false),
        ] {
            let parsed = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&parsed, &taint), expected, "{toleration}");
        }
    }
}
