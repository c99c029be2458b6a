//! Kubernetes' class of service of a pod.

use serde_json::Value;

use crate::api::json::{items_at, text_at};
use crate::api::quantity;

/// Guaranteed, Burstable or BestEffort, by what all containers ask for together; an amount of 0
/// counts as none. The pod's defaults must be filled in: a limit stands in for a request.
pub(crate) fn qos_class(pod: &Value) -> &'static str {
    let lists = ["/spec/containers", "/spec/initContainers"];
    let containers = lists.into_iter().flat_map(|list| items_at(pod, list));
    let mut is_guaranteed = true;
    let mut is_best_effort = true;
    for container in containers {
        for name in ["cpu", "memory"] {
            let request = amount(container, "requests", name);
            let limit = amount(container, "limits", name);
            is_best_effort &= request.is_none() && limit.is_none();
            is_guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (is_best_effort, is_guaranteed) {
        (true, _) => "BestEffort",
        (_, true) => "Guaranteed",
        _ => "Burstable",
    }
}

/// Thousandths of a core, or bytes.
fn amount(container: &Value, list: &str, name: &str) -> Option<i64> {
    let value = container.pointer(&format!("/resources/{list}/{name}"))?;
    let number = value.is_number().then(|| value.to_string());
    let text = number.as_deref().unwrap_or_else(|| text_at(value, ""));
    let parsed = match name {
        "cpu" => quantity::parse_cpu_millis(text),
        _ => quantity::parse_bytes(text),
    };
    parsed.ok().filter(|amount| *amount != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_class_follows_from_requests_and_limits_of_all_containers() {
        let full = |cpu: &str, memory: &str| json!({"cpu": cpu, "memory": memory});
        let both = |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
        let equal = both(full("1", "1Gi"), full("1000m", "1024Mi"));
        let nothing = json!({});
        let cases = [
            (vec![nothing.clone()], vec![], "BestEffort"),
            (vec![both(json!({"cpu": "0"}), json!({"memory": 0}))], vec![], "BestEffort"),
            (vec![both(json!({"ephemeral-storage": "1Gi"}), json!({}))], vec![], "BestEffort"),
            (vec![equal.clone()], vec![], "Guaranteed"),
            (vec![equal.clone(), equal.clone()], vec![equal.clone()], "Guaranteed"),
            (vec![equal.clone()], vec![nothing.clone()], "Burstable"),
            (vec![equal.clone(), nothing.clone()], vec![], "Burstable"),
            (vec![nothing], vec![equal], "Burstable"),
            (vec![both(full("1", "1Gi"), full("2", "1Gi"))], vec![], "Burstable"),
            (vec![both(json!({"cpu": "1"}), json!({"cpu": "1"}))], vec![], "Burstable"),
            (vec![both(json!({"memory": "1"}), json!({}))], vec![], "Burstable"),
        ];
        for (mains, inits, class) in cases {
            let pod = json!({"spec": {"containers": mains, "initContainers": inits}});
            assert_eq!(qos_class(&pod), class, "{pod}");
        }
    }
}
