//! Why a pod waits: what each node says, and what would help. Made of the same function that decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::scheduler::configuration::{CONFIG_NAME, CONFIG_NAMESPACE};
use crate::scheduler::decide::choose;
use crate::scheduler::demand::{BINPACK_NAME, Demand, SCHEDULER_NAME, key_of};
use crate::scheduler::devices::{Assumed, DeviceShelf, Devices, ELSEWHERE, NONE_FREE, Selectors};
use crate::scheduler::extension::Profiles;
use crate::scheduler::filter::{Gone, Round};
use crate::scheduler::node::{Facts, NodeInfo};
use crate::scheduler::preempt::{Budget, preempt};
use crate::scheduler::reason::Reason;
use crate::scheduler::run::{is_served, load_of, scheduler_name};
use crate::scheduler::score::{Candidate, scores};
use crate::scheduler::storage::{Shelf, Storage};
use crate::scheduler::view::ClusterView;

/// The seed of explanations: the same question has the same answer.
const SEED: u64 = 0;

/// The cluster's objects, as they were read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Pods of all namespaces.
    pub pods: Vec<Pod>,
    /// The nodes' heartbeats.
    pub leases: Vec<Lease>,
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Claims of storage of all namespaces.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Vec<PersistentVolume>,
    /// How volumes are made.
    pub classes: Vec<StorageClass>,
    /// Claims of devices of all namespaces.
    pub resource_claims: Vec<ResourceClaim>,
    /// What devices can be asked for.
    pub device_classes: Vec<DeviceClass>,
    /// The devices that there are.
    pub resource_slices: Vec<ResourceSlice>,
    /// Whose pods rather stay when one has to go.
    pub budgets: Vec<PodDisruptionBudget>,
    /// Schedulers that the configuration makes, with their plugins.
    pub profiles: Profiles,
}

/// What one node says to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeAnswer {
    /// The node's name.
    pub node: String,
    /// Whether it takes the pod.
    pub fits: bool,
    /// How good a place it is, among those that take the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Because>,
}

/// One reason of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Because {
    /// The plugin that says so, by Kubernetes' name, or by that of its configuration.
    pub plugin: String,
    /// In Kubernetes' words.
    pub reason: String,
    /// What would help.
    pub hint: String,
}

/// Why a pod waits, or where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// The node it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The node that it would go to now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<String>,
    /// In one sentence.
    pub message: String,
    /// What each node says, sorted by name.
    pub nodes: Vec<NodeAnswer>,
}

impl Shelf for Snapshot {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        let is_it = |claim: &&PersistentVolumeClaim| {
            claim.metadata.namespace.as_deref() == Some(namespace)
                && claim.metadata.name.as_deref() == Some(name)
        };
        self.claims.iter().find(is_it).cloned().map(Arc::new)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        let is_it = |volume: &&PersistentVolume| volume.metadata.name.as_deref() == Some(name);
        self.volumes.iter().find(is_it).cloned().map(Arc::new)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.iter().cloned().map(Arc::new).collect()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        let is_it = |class: &&StorageClass| class.metadata.name.as_deref() == Some(name);
        self.classes.iter().find(is_it).cloned().map(Arc::new)
    }
}

impl DeviceShelf for Snapshot {
    fn resource_claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        let is_it = |claim: &&ResourceClaim| {
            claim.metadata.namespace.as_deref() == Some(namespace)
                && claim.metadata.name.as_deref() == Some(name)
        };
        self.resource_claims.iter().find(is_it).cloned().map(Arc::new)
    }

    fn resource_claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.resource_claims.iter().cloned().map(Arc::new).collect()
    }

    fn device_class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        let is_it = |class: &&DeviceClass| class.metadata.name.as_deref() == Some(name);
        self.device_classes.iter().find(is_it).cloned().map(Arc::new)
    }

    fn resource_slices(&self) -> Vec<Arc<ResourceSlice>> {
        self.resource_slices.iter().cloned().map(Arc::new).collect()
    }
}

impl Snapshot {
    /// What the nodes say to the pod; `None` if there is no such pod.
    #[must_use]
    pub fn explain(&self, namespace: &str, name: &str) -> Option<Explanation> {
        let is_it = |pod: &&Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.metadata.name.as_deref() == Some(name)
        };
        let pod = self.pods.iter().find(is_it)?;
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let mut demand = Demand::of(pod);
        if node.is_some() {
            demand.wishes.node_name = None;
        }
        let mut view = self.view(pod);
        let class = view.enter_class(demand);
        let devices = Devices::of(pod, self, &Assumed::default(), &mut Selectors::default());
        let (key, storage) = (key_of(pod), Storage::of(pod, self).with(devices));
        let round = Round::new(&view, class, Some(&key), &storage)?;
        let choice = choose(&view, class, Some(&key), &storage, SEED);
        let is_placed_here = node.is_none() && is_served(&scheduler_name(pod), &self.profiles);
        let message = match (&node, waits_for(pod, &self.profiles), &choice) {
            (Some(node), ..) => format!("the pod is on node {node}"),
            (None, Some(text), _) => text,
            (None, None, Ok(id)) => {
                format!("the pod can go to node {}", view.node_name(*id))
            }
            (None, None, Err(refusal)) => {
                let mut refusal = refusal.clone();
                refusal.preemption = match preempt(&view, class, &key, &storage, SEED) {
                    Ok(plan) => {
                        let count = plan.victims.len();
                        format!("{count} pod(s) of lower priority on {} would go.", plan.node)
                    }
                    Err(text) => text,
                };
                refusal.to_string()
            }
        };
        Some(Explanation {
            pod: format!("{namespace}/{name}"),
            choice: choice.ok().map(|id| view.node_name(id).to_owned()).filter(|_| is_placed_here),
            node,
            message,
            nodes: answers(&round, &storage),
        })
    }

    /// The cluster without the pod itself.
    fn view(&self, asked: &Pod) -> ClusterView {
        let mut view = ClusterView::new();
        view.set_profiles(self.profiles.clone());
        view.set_budgets(self.budgets.iter().filter_map(Budget::of).collect());
        for namespace in &self.namespaces {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            view.set_namespace(&namespace.name_any(), Some(labels));
        }
        for node in &self.nodes {
            view.set_node(&node.name_any(), Some(Facts::of(node)));
        }
        for lease in &self.leases {
            view.set_measured(&lease.name_any(), load_of(lease));
        }
        for pod in &self.pods {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let is_over = matches!(phase, Some("Succeeded" | "Failed"));
            if is_over || pod.metadata.uid == asked.metadata.uid {
                continue;
            }
            let spec = pod.spec.as_ref();
            let status = pod.status.as_ref();
            if let Some(node) = spec.and_then(|spec| spec.node_name.as_deref()) {
                view.place(pod, node);
            } else if let Some(node) = status.and_then(|s| s.nominated_node_name.as_deref()) {
                view.nominate(pod, node);
            }
        }
        view
    }
}

/// What keeps the pod from being looked at.
fn waits_for(pod: &Pod, profiles: &Profiles) -> Option<String> {
    let wanted = scheduler_name(pod);
    if !is_served(&wanted, profiles) {
        let mut names: BTreeSet<_> = profiles.keys().map(String::as_str).collect();
        names.extend([SCHEDULER_NAME, BINPACK_NAME]);
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        return Some(format!(
            "no scheduler {wanted} runs here, spec.schedulerName can be: {names}"
        ));
    }
    let spec = pod.spec.as_ref()?;
    let gates: Vec<_> =
        spec.scheduling_gates.iter().flatten().map(|gate| gate.name.as_str()).collect();
    if gates.is_empty() {
        return None;
    }
    Some(format!("the pod waits behind its scheduling gates: {}", gates.join(", ")))
}

fn answers(round: &Round<'_>, storage: &Storage) -> Vec<NodeAnswer> {
    let mut fitting = Vec::new();
    let mut all = BTreeMap::new();
    let nobody = Gone::default();
    for (id, node) in round.view.nodes.iter() {
        let Some(facts) = &node.facts else { continue };
        let mut reasons = Vec::new();
        round.refusals(id, node, &nobody, false, &mut |reason| {
            reasons.push(because(round, node, facts, &reason));
        });
        if let Some(text) = &storage.missing {
            reasons.push(Because {
                plugin: "VolumeBinding".to_owned(),
                reason: text.clone(),
                hint: "make the claim, or the volume it waits for".to_owned(),
            });
        }
        if let Some(text) = &storage.devices.missing {
            reasons.push(Because {
                plugin: "DynamicResources".to_owned(),
                reason: text.clone(),
                hint: "make the claim, its template or its device class".to_owned(),
            });
        }
        if reasons.is_empty() {
            fitting.push(Candidate { id, node, facts });
        }
        let fits = reasons.is_empty();
        let answer = NodeAnswer { node: node.name.clone(), fits, score: None, reasons };
        all.insert(node.name.clone(), answer);
    }
    // A plugin that fails is in the message.
    let extra = round.asker.as_ref().and_then(|asker| asker.points(&fitting).ok());
    for (candidate, score) in
        fitting.iter().zip(scores(round, &fitting, extra.as_deref().unwrap_or_default()))
    {
        if let Some(answer) = all.get_mut(&candidate.node.name) {
            answer.score = Some(score);
        }
    }
    all.into_values().collect()
}

fn because(round: &Round<'_>, node: &NodeInfo, facts: &Facts, reason: &Reason<'_>) -> Because {
    let hint = hint(round, node, facts, reason);
    Because { plugin: reason.plugin().to_owned(), reason: reason.to_string(), hint }
}

fn hint(round: &Round<'_>, node: &NodeInfo, facts: &Facts, reason: &Reason<'_>) -> String {
    let (wanted, used, has) = (round.demand.need.resources, node.used, facts.allocatable);
    let short = |unit: &str, wanted: i64, used: i64, has: i64| {
        let free = (has - used).max(0);
        if wanted > has {
            format!(
                "the pod asks for {wanted}{unit}, the node has {has}{unit} in all: ask for less"
            )
        } else {
            format!(
                "the pod asks for {wanted}{unit}, {free}{unit} of {has}{unit} are free: ask for less, \
                 or make room"
            )
        }
    };
    match reason {
        Reason::Unschedulable => {
            format!("the node is cordoned: `kubectl uncordon {}`", node.name)
        }
        Reason::NodeName => "the pod names another node in spec.nodeName".to_owned(),
        Reason::Taint { key, value } => {
            format!("tolerate the taint {key}={value}, or take it off the node")
        }
        Reason::NodeAffinity => {
            "label the node as spec.nodeSelector and node affinity ask, or ask for less".to_owned()
        }
        Reason::Ports => "another pod there has the host port: use another one, or none".to_owned(),
        Reason::Pods => format!("the node takes {} pods: `node start --max-pods`", has.pods),
        Reason::Cpu => short("m", wanted.cpu_millis, used.cpu_millis, has.cpu_millis),
        Reason::Memory => {
            let mib = |bytes: i64| bytes >> 20;
            short("Mi", mib(wanted.memory_bytes), mib(used.memory_bytes), mib(has.memory_bytes))
        }
        Reason::EphemeralStorage => {
            let mib = |bytes: i64| bytes >> 20;
            let (wanted, used) = (mib(wanted.ephemeral_bytes), mib(used.ephemeral_bytes));
            short("Mi", wanted, used, mib(has.ephemeral_bytes))
        }
        Reason::Extended(name) => {
            let of = |amounts: &BTreeMap<String, i64>| amounts.get(*name).copied().unwrap_or(0);
            short("", of(&round.demand.need.extended), of(&node.extended), of(&facts.extended))
        }
        Reason::ClaimInUse => {
            "another pod has the claim, which is ReadWriteOncePod: wait until it is gone".to_owned()
        }
        Reason::Storage(_) => "the pod's volume is, or has to be made, elsewhere".to_owned(),
        Reason::Devices(text) => device_hint(round.devices(), node, facts, text),
        Reason::Spread => {
            "its domain has too many of these pods already: raise maxSkew, add nodes in the others, \
             or use whenUnsatisfiable: ScheduleAnyway"
                .to_owned()
        }
        Reason::SpreadLabel => "label the node with the constraint's topologyKey".to_owned(),
        Reason::Affinity => "no pod that the pod wants to be near is there".to_owned(),
        Reason::AntiAffinity => "a pod that the pod must not be near is there".to_owned(),
        Reason::ExistingAntiAffinity => "a pod there must not be near this one".to_owned(),
        Reason::Extension { plugin, .. } => format!(
            "pluginConfig {plugin} in ConfigMap {CONFIG_NAMESPACE}/{CONFIG_NAME} says what it wants"
        ),
        Reason::NotAsked => "wait: more nodes are looked at with each try".to_owned(),
    }
}

fn device_hint(devices: &Devices, node: &NodeInfo, facts: &Facts, text: &str) -> String {
    let shown = "`kubectl get resourceslices,resourceclaims -A` shows what there is and who has it";
    let lacking = match text {
        ELSEWHERE => {
            return "a claim of the pod has its devices elsewhere, and other pods use them: let the pod \
                    go there, or make another claim"
                .to_owned();
        }
        NONE_FREE => devices.lacking(&node.name, facts),
        _ => {
            return "mend the expression: where a device may be without an attribute, ask with has()"
                .to_owned();
        }
    };
    if lacking.is_empty() {
        return format!("there are free devices, not all that are asked for at once: {shown}");
    }
    format!("no device of class {} that would do is free there: {shown}", lacking.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::testing::{node, pod};

    #[test]
    fn each_node_says_what_it_wants() {
        let named = |name: &str, changes: serde_json::Value| {
            let mut pod = pod(&changes);
            pod.metadata.name = Some(name.to_owned());
            pod.metadata.uid = Some(name.to_owned());
            pod
        };
        let wants = json!({ "spec": { "containers": [{
            "name": "c", "resources": { "requests": { "cpu": "3" } },
        }]}});
        let mut on_a = wants.clone();
        on_a["spec"]["nodeName"] = json!("a");
        let taint = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } });
        let mut snapshot = Snapshot {
            nodes: vec![node("a", &json!({})), node("b", &taint)],
            pods: vec![named("first", on_a), named("second", wants)],
            ..Snapshot::default()
        };
        let told = snapshot.explain("default", "second").unwrap();
        assert!(told.message.starts_with("0/2 nodes are available: 1 Insufficient cpu, 1 node(s)"));
        assert!(told.message.contains("preemption: 0/2 nodes are available: "), "{}", told.message);
        let hints: Vec<_> = told
            .nodes
            .iter()
            .map(|answer| {
                let because = &answer.reasons[0];
                (answer.node.as_str(), because.plugin.as_str(), because.hint.as_str())
            })
            .collect();
        assert_eq!(
            hints,
            [
                (
                    "a",
                    "NodeResourcesFit",
                    "the pod asks for 3000m, 1000m of 4000m are free: ask for less, or make room"
                ),
                ("b", "TaintToleration", "tolerate the taint k=, or take it off the node"),
            ]
        );
        snapshot.nodes.push(node("c", &json!({})));
        let told = snapshot.explain("default", "second").unwrap();
        assert_eq!(told.choice.as_deref(), Some("c"));
        assert!(told.nodes.iter().any(|answer| answer.fits && answer.score.is_some()));
        let told = snapshot.explain("default", "first").unwrap();
        assert_eq!((told.node.as_deref(), told.choice), (Some("a"), None));
        assert_eq!(snapshot.explain("default", "third"), None);
    }

    #[test]
    fn who_would_go_is_not_whom_a_budget_keeps() {
        let with = |name: &str, spec: serde_json::Value| {
            let mut spec = spec;
            let requests = json!({ "requests": { "cpu": "3" } });
            spec["containers"] = json!([{ "name": "c", "resources": requests }]);
            let mut pod = pod(&json!({ "spec": spec }));
            pod.metadata.labels = Some([("app".to_owned(), name.to_owned())].into());
            pod.metadata.name = Some(name.to_owned());
            pod.metadata.uid = Some(name.to_owned());
            pod
        };
        for (kept, goes) in [("low-a", "b"), ("low-b", "a")] {
            let budget = json!({
                "metadata": { "namespace": "default" },
                "spec": { "selector": { "matchLabels": { "app": kept } } },
                "status": { "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1,
                    "expectedPods": 1 },
            });
            let snapshot = Snapshot {
                nodes: vec![node("a", &json!({})), node("b", &json!({}))],
                pods: vec![
                    with("low-a", json!({ "nodeName": "a" })),
                    with("low-b", json!({ "nodeName": "b" })),
                    with("vital", json!({ "priority": 10 })),
                ],
                budgets: vec![serde_json::from_value(budget).unwrap()],
                ..Snapshot::default()
            };
            let told = snapshot.explain("default", "vital").unwrap().message;
            assert!(
                told.contains(&format!("1 pod(s) of lower priority on {goes} would go")),
                "{told}"
            );
        }
    }

    #[test]
    fn it_is_told_which_devices_are_wanting_and_where() {
        let claim = |name: &str, status: serde_json::Value| {
            let wanted = json!({ "deviceClassName": "camera", "allocationMode": "ExactCount",
                "count": 1 });
            let claim = json!({
                "metadata": { "name": name, "namespace": "default", "uid": name },
                "spec": { "devices": { "requests": [{ "name": "r", "exactly": wanted }] } },
                "status": status,
            });
            serde_json::from_value(claim).unwrap()
        };
        let taken = json!({ "allocation": { "devices": { "results": [
            { "request": "r", "driver": "edgeorc.io", "pool": "a", "device": "only" }] } } });
        let class = json!({ "metadata": { "name": "camera" }, "spec": {} });
        let slice = json!({ "metadata": { "name": "a" }, "spec": {
            "driver": "edgeorc.io", "nodeName": "a", "devices": [{ "name": "only" }],
            "pool": { "name": "a", "generation": 1, "resourceSliceCount": 1 },
        }});
        let claims = json!([{ "name": "c", "resourceClaimName": "c" }]);
        let mut snapshot = Snapshot {
            nodes: vec![node("a", &json!({})), node("b", &json!({}))],
            pods: vec![pod(&json!({ "spec": { "resourceClaims": claims } }))],
            resource_claims: vec![claim("c", json!({})), claim("other", taken)],
            device_classes: vec![serde_json::from_value(class).unwrap()],
            resource_slices: vec![serde_json::from_value(slice).unwrap()],
            ..Snapshot::default()
        };
        let told = snapshot.explain("default", "p").unwrap();
        let words = "0/2 nodes are available: 2 cannot allocate all claims. preemption: 0/2 nodes \
                     are available: 2 Preemption is not helpful for scheduling.";
        assert_eq!(told.message, words);
        let because = &told.nodes[0].reasons[0];
        assert_eq!(because.plugin, "DynamicResources");
        assert!(because.hint.starts_with("no device of class camera that would do is free there"));
        snapshot.resource_claims.pop();
        assert_eq!(snapshot.explain("default", "p").unwrap().choice.as_deref(), Some("a"));
        snapshot.device_classes.clear();
        let told = snapshot.explain("default", "p").unwrap();
        let words = "0/2 nodes are available: device class camera does not exist.";
        assert!(told.message.starts_with(words), "{}", told.message);
        assert_eq!(told.nodes[0].reasons[0].plugin, "DynamicResources");
    }

    #[test]
    fn a_pod_of_a_scheduler_that_nobody_runs_goes_nowhere() {
        let asks = |name: &str| {
            let snapshot = Snapshot {
                nodes: vec![node("a", &json!({}))],
                pods: vec![pod(&json!({ "spec": { "schedulerName": name } }))],
                profiles: [("own".to_owned(), Arc::default())].into(),
                ..Snapshot::default()
            };
            snapshot.explain("default", "p").unwrap()
        };
        for name in ["default-scheduler", "binpack", "own"] {
            assert_eq!(asks(name).message, "the pod can go to node a");
        }
        let told = asks("other");
        assert_eq!(
            told.message,
            "no scheduler other runs here, spec.schedulerName can be: binpack, default-scheduler, \
             own"
        );
        assert_eq!(told.choice, None);
    }
}
