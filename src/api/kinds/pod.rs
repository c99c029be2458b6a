//! Pod.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::ephemeral;
use crate::api::field_error::Errors;
use crate::api::json::{int_at, items_at, set, str_at, text_at};
use crate::api::kinds::{pod_claims, pod_qos, pod_spec, pod_update, pod_warnings};
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy, Subresource};
use crate::api::table::{age, since};

/// Said of a pod that nobody may put on a node yet.
const GATED: (&str, &str) =
    ("SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates");
const GATES: &str = "/spec/schedulingGates";
/// Shown where there is nothing.
const NONE: &str = "<none>";

const fn subresource(
    name: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource { name, kind, group: "", version: "", verbs }
}

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "pods",
    singular: "pod",
    kind: "Pod",
    list_kind: "PodList",
    description: "WebAssembly containers that run together on one node.",
    short_names: &["po"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[
        subresource("attach", "PodAttachOptions", &["create", "get"]),
        subresource("binding", "Binding", &["create"]),
        subresource("ephemeralcontainers", "Pod", &["get", "patch", "update"]),
        Subresource {
            name: "eviction",
            kind: "Eviction",
            group: "policy",
            version: "v1",
            verbs: &["create"],
        },
        subresource("exec", "PodExecOptions", &["create", "get"]),
        subresource("log", "Pod", &["get"]),
        subresource("portforward", "PodPortForwardOptions", &["create", "get"]),
        subresource("proxy", "PodProxyOptions", &["create", "delete", "get", "patch", "update"]),
    ],
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::text("Status"),
        Column::text("Restarts"),
        Column::AGE,
        Column::wide("IP"),
        Column::wide("Node"),
        Column::wide("Nominated Node"),
        Column::wide("Readiness Gates"),
    ],
    field_selectors: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    strategy: Strategy {
        default: pod_spec::default,
        prepare_create,
        validate: |pod, errors| {
            pod_spec::validate(pod, "spec", errors);
            pod_claims::validate_statuses(pod, errors);
        },
        validate_create,
        validate_update: pod_update::validate,
        warnings: |pod| pod_warnings::warnings(pod, "spec"),
        cells,
        check_name: names::check_dns1123_subdomain,
        ..Strategy::plain(typed::<Pod>)
    },
};

/// A new pod waits, on no node unless it names one.
fn prepare_create(pod: &mut Value) {
    // The class depends on requests that limits stand in for.
    pod_spec::default(pod);
    let mut status = json!({ "phase": "Pending", "qosClass": pod_qos::qos_class(pod) });
    if !items_at(pod, GATES).is_empty() {
        let (reason, message) = GATED;
        let condition = json!({ "type": "PodScheduled", "status": "False", "reason": reason,
            "message": message, "lastProbeTime": null, "lastTransitionTime": null });
        set(&mut status, "conditions", json!([condition]));
    }
    set(pod, "status", status);
}

fn validate_create(pod: &Value, errors: &mut Errors) {
    ephemeral::validate_create(pod, errors);
    if !items_at(pod, GATES).is_empty() && !text_at(pod, "/spec/nodeName").is_empty() {
        let detail = "nodeName cannot be set until all schedulingGates have been cleared";
        errors.forbidden("spec.nodeName", detail);
    }
}

/// How many of the pod's readiness gates are open, of how many.
fn readiness_gates(pod: &Value) -> String {
    let gates = items_at(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let conditions = items_at(pod, "/status/conditions");
    let is_open = |gate: &&Value| {
        let name = text_at(gate, "/conditionType");
        conditions.iter().any(|c| text_at(c, "/type") == name && text_at(c, "/status") == "True")
    };
    format!("{}/{}", gates.iter().filter(is_open).count(), gates.len())
}

/// Whether an init container goes on beside the mains.
fn is_sidecar(pod: &Value, name: &str) -> bool {
    items_at(pod, "/spec/initContainers")
        .iter()
        .any(|c| text_at(c, "/name") == name && text_at(c, "/restartPolicy") == "Always")
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let shown = Shown::of(pod);
    let restarts = match &shown.last_restart {
        Some(at) if shown.restarts > 0 => {
            format!("{} ({} ago)", shown.restarts, since(Some(at), now))
        }
        _ => shown.restarts.to_string(),
    };
    let or_none = |pointer: &str| {
        let text = text_at(pod, pointer);
        if text.is_empty() { NONE.to_owned() } else { text.to_owned() }
    };
    vec![
        json!(meta::name(pod)),
        json!(format!("{}/{}", shown.ready, shown.total)),
        json!(shown.reason),
        json!(restarts),
        json!(age(pod, now)),
        json!(or_none("/status/podIP")),
        json!(or_none("/spec/nodeName")),
        json!(or_none("/status/nominatedNodeName")),
        json!(readiness_gates(pod)),
    ]
}

/// The columns that Kubernetes' printer works out.
struct Shown {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<String>,
}

impl Shown {
    /// As `kubectl get pods` has always said it.
    fn of(pod: &Value) -> Self {
        let phase = text_at(pod, "/status/phase");
        let reason = text_at(pod, "/status/reason");
        let mains = items_at(pod, "/status/containerStatuses");
        let inits = items_at(pod, "/status/initContainerStatuses");
        let sidecars = inits.iter().filter(|s| is_sidecar(pod, text_at(s, "/name")));
        let counted: Vec<&Value> = mains.iter().chain(sidecars).collect();
        let specs = items_at(pod, "/spec/initContainers").iter();
        let sidecar_specs = specs.filter(|c| text_at(c, "/restartPolicy") == "Always").count();
        let is_ready = |s: &&&Value| s.get("ready").and_then(Value::as_bool) == Some(true);
        let finished =
            |s: &&Value| str_at(s, "/lastState/terminated/finishedAt").map(str::to_owned);
        let mut shown = Self {
            ready: counted.iter().filter(is_ready).count(),
            total: items_at(pod, "/spec/containers").len() + sidecar_specs,
            reason: if reason.is_empty() { phase.to_owned() } else { reason.to_owned() },
            restarts: counted.iter().filter_map(|s| int_at(s, "/restartCount")).sum(),
            last_restart: counted.iter().filter_map(finished).max(),
        };
        let is_gated =
            |c: &Value| text_at(c, "/type") == "PodScheduled" && text_at(c, "/reason") == GATED.0;
        if items_at(pod, "/status/conditions").iter().any(is_gated) {
            GATED.0.clone_into(&mut shown.reason);
        }
        let is_true = |wanted: &str| {
            let mut conditions = items_at(pod, "/status/conditions").iter();
            conditions.any(|c| text_at(c, "/type") == wanted && text_at(c, "/status") == "True")
        };
        if shown.init_reason(pod, inits) && !is_true("Initialized") {
            shown.restarts = inits.iter().filter_map(|s| int_at(s, "/restartCount")).sum();
            shown.last_restart = inits.iter().filter_map(|s| finished(&s)).max();
        } else {
            shown.main_reason(mains, is_true("Ready"));
        }
        if meta::deletion_timestamp(pod).is_some() && !matches!(phase, "Succeeded" | "Failed") {
            shown.reason =
                if reason == "NodeLost" { "Unknown".to_owned() } else { "Terminating".to_owned() };
        }
        shown
    }

    /// Says why the pod is not initialised; `false` when it is.
    fn init_reason(&mut self, pod: &Value, inits: &[Value]) -> bool {
        let count = items_at(pod, "/spec/initContainers").len();
        for (at, status) in inits.iter().enumerate() {
            let name = text_at(status, "/name");
            let is_started = status.get("started").and_then(Value::as_bool) == Some(true);
            if is_sidecar(pod, name) && is_started {
                continue;
            }
            if let Some(code) = int_at(status, "/state/terminated/exitCode") {
                if code == 0 {
                    continue;
                }
                self.reason = format!("Init:{}", ended(status, code));
                return true;
            }
            let waiting = text_at(status, "/state/waiting/reason");
            self.reason = if waiting.is_empty() || waiting == "PodInitializing" {
                format!("Init:{at}/{count}")
            } else {
                format!("Init:{waiting}")
            };
            return true;
        }
        false
    }

    fn main_reason(&mut self, mains: &[Value], is_pod_ready: bool) {
        let mut is_running = false;
        for status in mains.iter().rev() {
            let waiting = text_at(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if let Some(code) = int_at(status, "/state/terminated/exitCode") {
                self.reason = ended(status, code);
            } else if status.pointer("/state/running").is_some_and(|s| !s.is_null()) {
                is_running |= status.get("ready").and_then(Value::as_bool) == Some(true);
            }
        }
        if self.reason == "Completed" && is_running {
            let reason = if is_pod_ready { "Running" } else { "NotReady" };
            reason.clone_into(&mut self.reason);
        }
    }
}

/// Why a container ended.
fn ended(status: &Value, code: i64) -> String {
    let reason = text_at(status, "/state/terminated/reason");
    if reason.is_empty() { format!("ExitCode:{code}") } else { reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pod: &Value) -> String {
        let cells = cells(pod, "2026-01-01T00:01:00Z".parse().unwrap());
        let text = |cell: &Value| cell.as_str().unwrap_or_default().to_owned();
        cells[1..4].iter().map(text).collect::<Vec<_>>().join(" ")
    }

    fn pod(status: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}, "status": status})
    }

    #[test]
    fn a_pods_line_reads_as_in_kubernetes() {
        let container = |state: Value, ready: bool, restarts: u32| json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": ready, "restartCount": restarts, "state": state}]});
        let cases = [
            (json!({"phase": "Pending"}), "0/1 Pending 0"),
            (container(json!({"running": {}}), true, 0), "1/1 Running 0"),
            (
                container(json!({"waiting": {"reason": "CrashLoopBackOff"}}), false, 3),
                "0/1 CrashLoopBackOff 3",
            ),
            (
                container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), false, 0),
                "0/1 Completed 0",
            ),
            (container(json!({"terminated": {"exitCode": 2}}), false, 0), "0/1 ExitCode:2 0"),
        ];
        for (status, wanted) in cases {
            assert_eq!(line(&pod(status)), wanted);
        }
        let mut leaving = pod(container(json!({"running": {}}), true, 0));
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(line(&leaving), "1/1 Terminating 0");
    }

    #[test]
    fn a_sidecar_counts_as_a_container() {
        let pod = json!({"metadata": {}, "spec": {
            "containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        }, "status": {"phase": "Running",
            "initContainerStatuses": [{"name": "s", "ready": true, "started": true, "state": {"running": {}}}],
            "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}],
        }});
        assert_eq!(line(&pod), "2/2 Running 0");
    }

    #[test]
    fn a_pod_that_is_initialized_is_shown_by_its_mains_and_one_that_is_not_by_its_inits() {
        let of = |initialized: &str, init: Value, mains: Value| {
            line(&json!({"metadata": {}, "spec": {
                "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}],
            }, "status": {"phase": "Running", "initContainerStatuses": [init], "containerStatuses": mains,
                "conditions": [{"type": "Initialized", "status": initialized}, {"type": "Ready", "status": "False"}]}}))
        };
        let ended =
            |code: i64, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
        let stopped =
            json!({"name": "s", "started": false, "restartCount": 4, "state": ended(137, "Error")});
        let done = json!({"name": "a", "state": ended(0, "Completed")});
        assert_eq!(of("True", stopped.clone(), json!([done, done])), "0/3 Completed 4");
        assert_eq!(of("False", stopped, json!([])), "0/3 Init:Error 4");
        let sidecar =
            json!({"name": "s", "started": true, "ready": true, "state": {"running": {}}});
        let runs = json!({"name": "b", "ready": true, "state": {"running": {}}});
        assert_eq!(of("True", sidecar, json!([done, runs])), "2/3 NotReady 0");
    }

    #[test]
    fn a_new_pod_has_its_class_and_waits_behind_its_gates() {
        let mut pod = json!({"metadata": {}, "spec": {"schedulingGates": [{"name": "g"}],
            "containers": [{"name": "a", "image": "x",
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}});
        prepare_create(&mut pod);
        assert_eq!(pod.pointer("/status/qosClass"), Some(&json!("Guaranteed")));
        assert_eq!(pod.pointer("/status/phase"), Some(&json!("Pending")));
        let condition = &pod["status"]["conditions"][0];
        for (key, wanted) in [
            ("type", "PodScheduled"),
            ("status", "False"),
            ("reason", "SchedulingGated"),
            ("message", "Scheduling is blocked due to non-empty scheduling gates"),
        ] {
            assert_eq!(condition[key], wanted, "{key}");
        }
        assert_eq!(line(&pod), "0/1 SchedulingGated 0");
        let texts = |pod: &Value| {
            let mut errors = Errors::default();
            validate_create(pod, &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(&pod), Vec::<String>::new());
        pod["spec"]["nodeName"] = json!("n");
        assert_eq!(
            texts(&pod),
            [
                "spec.nodeName: Forbidden: nodeName cannot be set until all schedulingGates have been cleared"
            ]
        );
        let mut plain = json!({"spec": {"containers": [{"name": "a", "image": "x"}]}});
        prepare_create(&mut plain);
        assert_eq!(plain["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    }

    #[test]
    fn open_readiness_gates_are_counted() {
        let gates = |conditions: Value| {
            readiness_gates(&json!({"spec": {"readinessGates": [
                {"conditionType": "a/b"}, {"conditionType": "c"}]},
                "status": {"conditions": conditions}}))
        };
        assert_eq!(gates(json!([])), "0/2");
        assert_eq!(
            gates(json!([{"type": "c", "status": "True"}, {"type": "a/b", "status": "False"}])),
            "1/2"
        );
        assert_eq!(readiness_gates(&json!({})), NONE);
    }
}
