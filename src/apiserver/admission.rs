//! Built-in admission: what Kubernetes' default plugins do for the kinds served here.

use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{self, Resource, meta};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Key};

/// Seconds a pod stays on a node that is not ready: failover in seconds, not in minutes.
const TOLERATION_SECONDS: i64 = 2;
/// Taints every pod tolerates for that long.
const NODE_TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

/// Taint of a node until the node controller finds it ready.
const NOT_READY: &str = NODE_TAINTS[0];
/// Taint of a node that is short of memory.
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

/// NamespaceLifecycle: objects are made only in namespaces that exist and are not ending.
pub(super) async fn namespace(call: &Call) -> Result<(), ApiError> {
    let (Some(name), Some(resource)) = (&call.info.namespace, api::find("", "v1", "namespaces"))
    else {
        return Ok(());
    };
    let key = Key::new(resource, None, name);
    // The local copy is nearly always enough; only its "no" is checked with the leader.
    for freshness in [Freshness::Any, Freshness::Latest] {
        let found = call.context.store.get(&key, freshness).await;
        let Some(stored) = found.map_err(|error| ApiError::store(error, &key))? else { continue };
        if meta::deletion_timestamp(&stored.object).is_some() {
            let detail = format!(
                "unable to create new content in namespace {name} because it is being terminated"
            );
            return Err(Status::forbidden(call.info.resource, "", &detail)
                .with_cause(
                    "NamespaceTerminating",
                    &format!("namespace {name} is being terminated"),
                    "metadata.namespace",
                )
                .into());
        }
        return Ok(());
    }
    Err(Status::not_found(resource, name).into())
}

/// DefaultTolerationSeconds, and what PodTolerationRestriction adds, of a new or changed pod: a list that
/// somebody replaced has them again.
pub(super) fn default(resource: &Resource, object: &mut Value) {
    if resource.plural == "pods" {
        tolerate_lost_nodes(object);
        tolerate_memory_pressure(object);
    }
}

/// TaintNodesByCondition: nothing is put on a new node before it is found ready.
pub(super) fn default_new(resource: &Resource, object: &mut Value) {
    if resource.group.is_empty() && resource.plural == "nodes" {
        taint_until_ready(object);
    }
}

fn taint_until_ready(node: &mut Value) {
    let Some(node) = node.as_object_mut() else { return };
    let spec = node.entry("spec").or_insert_with(|| json!({}));
    let Some(spec) = spec.as_object_mut() else { return };
    let taints = spec.entry("taints").or_insert_with(|| json!([]));
    let Some(list) = taints.as_array_mut() else { return };
    let is_it = |taint: &Value| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule";
    if !list.iter().any(is_it) {
        list.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
}

fn tolerate_lost_nodes(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(list) = tolerations.as_array_mut() else { return };
    for taint in NODE_TAINTS {
        let is_tolerated = list.iter().any(|toleration| {
            let text = |key: &str| toleration.get(key).and_then(Value::as_str).unwrap_or_default();
            let is_key = text("key") == taint || text("key").is_empty();
            is_key && matches!(text("effect"), "NoExecute" | "")
        });
        if !is_tolerated {
            list.push(json!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

/// A pod that has said how much it needs may go where memory is short: it is not the first to leave.
fn tolerate_memory_pressure(pod: &mut Value) {
    let class = pod.pointer("/status/qosClass").and_then(Value::as_str);
    if !matches!(class, Some("Burstable" | "Guaranteed")) {
        return;
    }
    let list = pod.pointer_mut("/spec/tolerations").and_then(Value::as_array_mut);
    let Some(list) = list else { return };
    let is_tolerated = list.iter().any(|toleration| {
        let text = |key: &str| toleration.get(key).and_then(Value::as_str).unwrap_or_default();
        let is_key = text("key") == MEMORY_PRESSURE || text("key").is_empty();
        is_key && text("operator") == "Exists" && matches!(text("effect"), "NoSchedule" | "")
    });
    if !is_tolerated {
        list.push(json!({"key": MEMORY_PRESSURE, "operator": "Exists", "effect": "NoSchedule"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_leaves_a_lost_node_after_seconds_unless_it_says_otherwise() {
        let pods = api::find("", "v1", "pods").unwrap();
        let mut pod = json!({"spec": {"tolerations": [
            {"key": NODE_TAINTS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        ]}});
        default(pods, &mut pod);
        let tolerations = pod.pointer("/spec/tolerations").and_then(Value::as_array).unwrap();
        let seconds: Vec<_> = tolerations.iter().map(|t| t["tolerationSeconds"].as_i64()).collect();
        assert_eq!(seconds, [Some(300), Some(TOLERATION_SECONDS)]);
    }

    #[test]
    fn a_new_node_takes_no_pods_until_it_is_found_ready() {
        let nodes = api::find("", "v1", "nodes").unwrap();
        let own = json!({"key": "a", "effect": "NoExecute"});
        let not_ready = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        for (had, has) in [
            (json!({}), json!([not_ready])),
            (json!({"spec": {"taints": [own]}}), json!([own, not_ready])),
            (json!({"spec": {"taints": [not_ready]}}), json!([not_ready])),
        ] {
            let mut node = had;
            default_new(nodes, &mut node);
            assert_eq!(node["spec"]["taints"], has);
        }
    }

    #[test]
    fn only_a_pod_with_requests_tolerates_memory_pressure() {
        let pods = api::find("", "v1", "pods").unwrap();
        let keys = |class: &str, had: Value| {
            let mut pod = json!({"spec": {"tolerations": had}, "status": {"qosClass": class}});
            default(pods, &mut pod);
            let tolerations = pod.pointer("/spec/tolerations").and_then(Value::as_array).unwrap();
            let is_it = |t: &&Value| t["key"] == MEMORY_PRESSURE && t["effect"] == "NoSchedule";
            tolerations.iter().filter(is_it).count()
        };
        assert_eq!(keys("BestEffort", json!([])), 0);
        assert_eq!(keys("Burstable", json!([])), 1);
        assert_eq!(keys("Guaranteed", json!([{"operator": "Exists"}])), 0);
        let own = json!([
            {"key": MEMORY_PRESSURE, "operator": "Exists", "effect": "NoSchedule"}
        ]);
        assert_eq!(keys("Guaranteed", own), 1);
    }
}
