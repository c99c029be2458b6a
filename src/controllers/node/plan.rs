//! What to do about silent nodes and the pods on them: a pure function.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;

use crate::api::unique_pod::{REPLACED_AFTER, is_fenced};
use crate::controllers::Settings;
use crate::controllers::object::{controller_of, is_deleting, is_ready, is_terminal, node_name};

/// The node says it is not ready.
pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node says nothing.
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(super) const EFFECTS: [&str; 2] = ["NoSchedule", "NoExecute"];
/// Conditions that keep pods from being scheduled while they are true, and their taints.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// What an agent says of its node, and others when it is silent. Other conditions are of whoever wrote them.
const OF_AGENT: [&str; 6] =
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure", "UnderVoltage", "Overheated"];
/// Nobody may be put on the node: it is cordoned.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Set by a person who knows that the node is off: what ran there runs no more.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// With this many nodes, a leader that hears only its own is taken for the one cut off.
const NODES_TO_DOUBT_ONESELF: usize = 3;

/// What a run sees.
pub(super) struct View<'a> {
    pub(super) settings: &'a Settings,
    /// The node this leader runs on.
    pub(super) me: &'a str,
    pub(super) nodes: &'a [Heard],
    pub(super) pods: &'a [Arc<Pod>],
    /// How long this leader has been listening.
    pub(super) listening_for: Duration,
    /// How long each taint, by node and key, has been seen by this leader.
    pub(super) tainted_for: &'a BTreeMap<(String, String), Duration>,
    pub(super) now: Timestamp,
}

/// A node, and how long it has been silent; where most are late, as if it were alone in that.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) node: Arc<Node>,
    pub(super) silent_for: Duration,
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// The node has fallen silent: its conditions are not known any more.
    SetUnknown { node: Arc<Node>, conditions: Vec<NodeCondition> },
    /// The node's health taints as they should be, its other taints untouched.
    SetTaints { node: Arc<Node>, taints: Vec<Taint> },
    /// Nobody can tell whether the pod serves: it is not ready.
    SetNotReady(Arc<Pod>),
    /// The pod is deleted. `is_forced`: at once, without its agent.
    Evict { pod: Arc<Pod>, is_forced: bool },
}

/// The writes to make.
pub(super) fn plan(view: &View<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut nodes = BTreeMap::new();
    for heard in view.nodes {
        let is_silent = heard.silent_for >= view.settings.node_silent_after;
        if is_silent && let Some(conditions) = unknown(&heard.node, view.now) {
            steps.push(Step::SetUnknown { node: Arc::clone(&heard.node), conditions });
        }
        let health = if is_silent { Health::Unknown } else { health(&heard.node) };
        if let Some(taints) = taints(&heard.node, health, view.now) {
            steps.push(Step::SetTaints { node: Arc::clone(&heard.node), taints });
        }
        nodes.insert(heard.node.name_any(), (heard, health, is_silent));
    }
    let brakes = Brakes::of(view);
    let mut evictions = 0;
    for pod in view.pods.iter().filter(|pod| !is_terminal(pod)) {
        let Some((heard, health, is_silent)) = node_name(pod).and_then(|name| nodes.get(name))
        else {
            continue;
        };
        if *health == Health::Unknown && *is_silent && is_ready(pod) {
            steps.push(Step::SetNotReady(Arc::clone(pod)));
        }
        let Some(is_forced) = eviction(view, brakes, pod, heard, *health) else { continue };
        // Those that are left out are seen to in the next run.
        if evictions < view.settings.evictions_per_run_max {
            evictions += 1;
            steps.push(Step::Evict { pod: Arc::clone(pod), is_forced });
        }
    }
    steps
}

/// The nodes whose pods [`plan`] may touch: those that are silent, and those with a taint that
/// drives pods out. The pods of all others need not be looked at.
pub(super) fn troubled(settings: &Settings, nodes: &[Heard]) -> BTreeSet<String> {
    let is_troubled = |heard: &&Heard| {
        let spec = heard.node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        heard.silent_for >= settings.node_silent_after
            || taints.iter().any(|taint| taint.effect == "NoExecute")
    };
    nodes.iter().filter(is_troubled).map(|heard| heard.node.name_any()).collect()
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Ready,
    NotReady,
    Unknown,
}

fn health(node: &Node) -> Health {
    match condition(node, "Ready").map(|condition| condition.status.as_str()) {
        Some("True") => Health::Ready,
        Some("Unknown") => Health::Unknown,
        Some(_) | None => Health::NotReady,
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// The conditions of a silent node; `None` when they say so already.
fn unknown(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    if condition(node, "Ready").is_some_and(|condition| condition.status == "Unknown") {
        return None;
    }
    let status = node.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    let never = conditions.is_empty();
    if !conditions.iter().any(|condition| condition.type_ == "Ready") {
        conditions.push(NodeCondition { type_: "Ready".to_owned(), ..NodeCondition::default() });
    }
    let of_agent = |condition: &&mut NodeCondition| OF_AGENT.contains(&condition.type_.as_str());
    for condition in conditions.iter_mut().filter(of_agent) {
        if condition.status == "Unknown" {
            continue;
        }
        condition.status = "Unknown".to_owned();
        let (reason, message) = if never {
            ("NodeStatusNeverUpdated", "Kubelet never posted node status.")
        } else {
            ("NodeStatusUnknown", "Kubelet stopped posting node status.")
        };
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.to_owned());
        condition.last_transition_time = Some(Time(now));
    }
    Some(conditions)
}

/// The node's taints with those of its health; `None` when they are so already.
fn taints(node: &Node, health: Health, now: Timestamp) -> Option<Vec<Taint>> {
    let has = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let of_health = match health {
        Health::Ready => None,
        Health::NotReady => Some(NOT_READY),
        Health::Unknown => Some(UNREACHABLE),
    };
    let mut wanted: Vec<(&str, &str)> =
        of_health.into_iter().flat_map(|key| EFFECTS.map(|effect| (key, effect))).collect();
    let is_true = |kind: &str| condition(node, kind).is_some_and(|found| found.status == "True");
    let pressures = PRESSURES.iter().filter(|(kind, _)| is_true(kind));
    wanted.extend(pressures.map(|(_, key)| (*key, "NoSchedule")));
    let is_cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    wanted.extend(is_cordoned.then_some((UNSCHEDULABLE, "NoSchedule")));
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let is_ours = |taint: &Taint| {
        let (key, effect) = (taint.key.as_str(), taint.effect.as_str());
        ([NOT_READY, UNREACHABLE].contains(&key) && EFFECTS.contains(&effect))
            || (effect == "NoSchedule"
                && (key == UNSCHEDULABLE || PRESSURES.iter().any(|(_, of)| *of == key)))
    };
    let mut taints: Vec<_> =
        has.iter().filter(|taint| !is_ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (taints != has).then_some(taints)
}

/// What holds evictions back: the more nodes seem dead, the likelier it is the leader that is
/// cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brakes {
    /// Evict as tolerations say.
    Off,
    /// No evictions for reasons of health; taints set by people still count.
    On,
}

impl Brakes {
    fn of(view: &View<'_>) -> Self {
        if is_in_doubt(view.settings, view.me, view.nodes) { Self::On } else { Self::Off }
    }
}

/// Whether the leader on the node `me` hears so few that it may be the one cut off.
pub(super) fn is_in_doubt(settings: &Settings, me: &str, nodes: &[Heard]) -> bool {
    let is_heard = |heard: &&Heard| heard.silent_for < settings.node_silent_after;
    let visible: Vec<_> =
        nodes.iter().filter(is_heard).map(|heard| heard.node.name_any()).collect();
    let is_alone = nodes.len() >= NODES_TO_DOUBT_ONESELF && visible.iter().all(|name| name == me);
    nodes.len() < 2 || visible.len() * 2 < nodes.len() || is_alone
}

/// Whether the pod must leave its node now, and if so whether by force.
fn eviction(
    view: &View<'_>,
    brakes: Brakes,
    pod: &Pod,
    heard: &Heard,
    health: Health,
) -> Option<bool> {
    let node = &heard.node;
    // A node heard from again is left to its agent, which posts its status in a moment.
    let is_back = health == Health::Unknown && heard.silent_for < view.settings.node_silent_after;
    // Agents may still be looking for this leader. The node of the leader before has been silent for longer
    // than this one has been listening.
    let is_early = view.listening_for.max(heard.silent_for) < view.settings.eviction_quiet_time;
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let must_leave = taints.iter().filter(|taint| taint.effect == "NoExecute").any(|taint| {
        let is_of_health = taint.key == NOT_READY || taint.key == UNREACHABLE;
        let is_held = brakes == Brakes::On || is_early || is_back;
        if is_of_health && (is_held || !is_current(taint, health)) {
            return false;
        }
        let key = (node.name_any(), taint.key.clone());
        let tainted_for = view.tainted_for.get(&key).copied().unwrap_or(Duration::ZERO);
        patience(pod, taint, is_of_health.then_some(view.settings.default_toleration))
            .is_some_and(|patience| tainted_for >= patience)
    });
    // A person vouches for it that nothing of the pod runs any more.
    let is_off = health != Health::Ready
        && taints.iter().any(|taint| {
            taint.key == OUT_OF_SERVICE && patience(pod, taint, None) == Some(Duration::ZERO)
        });
    if is_off && (must_leave || is_deleting(&pod.metadata)) {
        return Some(true);
    }
    if !must_leave {
        return None;
    }
    // The agent of a silent node cannot confirm that the pod is gone. A replica set's pod is
    // replaced at once, and is stopped when the node returns. A stateful set's is marked deleted, so
    // that its node does not start it again, and removed when its node has stopped it by itself. Any
    // other may be one of a kind, and stays Terminating until the node returns or is deleted.
    let is_replaceable = controller_of(&pod.metadata)
        .is_some_and(|owner| matches!(owner.kind.as_str(), "ReplicaSet" | "ReplicationController"));
    let is_stopped = is_fenced(pod)
        && is_deleting(&pod.metadata)
        && heard.silent_for.min(view.listening_for) >= REPLACED_AFTER;
    let is_forced = health == Health::Unknown && (is_replaceable || is_stopped);
    if is_deleting(&pod.metadata) { is_forced.then_some(true) } else { Some(is_forced) }
}

fn is_current(taint: &Taint, health: Health) -> bool {
    match health {
        Health::Ready => false,
        Health::NotReady => taint.key == NOT_READY,
        Health::Unknown => taint.key == UNREACHABLE,
    }
}

/// How long the pod stays on a node with `taint`: `None` for ever. Of several tolerations the first
/// counts, as in Kubernetes. Without one it is `default`, or no time at all.
fn patience(pod: &Pod, taint: &Taint, default: Option<Duration>) -> Option<Duration> {
    let tolerations =
        pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let Some(first) = tolerations.iter().find(|toleration| tolerates(toleration, taint)) else {
        return Some(default.unwrap_or(Duration::ZERO));
    };
    let seconds = first.toleration_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Whether `toleration` lets a pod bear `taint`.
pub(in crate::controllers) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is_unset_or = |field: Option<&str>, value: &str| {
        field.is_none_or(|field| field.is_empty() || field == value)
    };
    let key = toleration.key.as_deref();
    let covers = match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => {
            key.is_some_and(|key| !key.is_empty())
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        Some(_) => false,
    };
    covers
        && is_unset_or(key, &taint.key)
        && is_unset_or(toleration.effect.as_deref(), &taint.effect)
}
