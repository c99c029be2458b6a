//! Which nodes are fit for the pods of a daemon set.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use kube::ResourceExt as _;

use crate::api::selector::node_term_matches;
use crate::controllers::node::tolerates;
use crate::controllers::object::node_name;
use crate::controllers::owned::pod_of;
use crate::controllers::revisions::POD_LABEL;

/// What every pod of a daemon set tolerates: it stays on a node in trouble.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// What those tolerate that use the node's network.
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");
const NODE_FIELD: &str = "metadata.name";

/// How a node suits a daemon set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fitness {
    /// A pod should be there.
    pub(super) should_run: bool,
    /// A pod that is there may stay.
    pub(super) may_stay: bool,
}

/// Judges `node` as the scheduler will, but for what is free on it.
pub(super) fn fitness(set: &DaemonSet, node: &Node) -> Fitness {
    let none = Fitness { should_run: false, may_stay: false };
    let Some(spec) = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else {
        return none;
    };
    let name = node.name_any();
    let is_elsewhere =
        spec.node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name);
    if is_elsewhere || !is_selected(spec, &name, node.labels()) {
        return none;
    }
    let tolerations = tolerations(spec);
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let refused = |taint: &&Taint| !tolerations.iter().any(|one| tolerates(one, taint));
    let refused: Vec<&Taint> = taints.filter(refused).collect();
    let has = |effect: &str| refused.iter().any(|taint| taint.effect == effect);
    Fitness { should_run: !has("NoSchedule") && !has("NoExecute"), may_stay: !has("NoExecute") }
}

fn is_selected(spec: &PodSpec, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let mut wanted = spec.node_selector.iter().flatten();
    if !wanted.all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let required =
        spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()).and_then(
            |affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref(),
        );
    required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| node_term_matches(term, name, labels))
    })
}

/// What a pod of `spec` tolerates, with what all pods of daemon sets do.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut tolerations = spec.tolerations.clone().unwrap_or_default();
    let network = (spec.host_network == Some(true)).then_some(NETWORK_UNAVAILABLE);
    for (key, effect) in TOLERATED.iter().copied().chain(network) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    tolerations
}

/// The set's pod for `node`, of the revision with that hash. The scheduler binds it there and nowhere
/// else, and says so when it does not fit.
pub(super) fn pod_for(set: &DaemonSet, node: &str, hash: &str) -> Pod {
    let template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let mut pod = pod_of(set, &template);
    pod.metadata.generate_name = Some(format!("{}-", set.name_any()));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_LABEL.to_owned(), hash.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let affinity = spec.affinity.get_or_insert_default();
    let affinity = affinity.node_affinity.get_or_insert_default();
    // What the template asks for is judged already.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: NODE_FIELD.to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
            match_expressions: None,
        }],
    });
    pod
}

/// The node a pod is on or is meant for.
pub(super) fn target(pod: &Pod) -> Option<&str> {
    if let Some(node) = node_name(pod) {
        return Some(node);
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter());
    let mut named = fields.flatten().filter(|field| field.key == NODE_FIELD);
    named.find_map(|field| field.values.as_ref()?.first()).map(String::as_str)
}
