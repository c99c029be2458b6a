//! Classes of how pods run: what a pod gets of the one that it names.

use serde_json::{Map, Value};

use crate::api::json::{entries_at, is_empty, items_at, text_at};

/// API group of RuntimeClass.
pub const GROUP: &str = "node.k8s.io";

/// Gives a new pod what its class says: overhead, labels of nodes, tolerations. `None`: it names no
/// class.
///
/// # Errors
///
/// Kubernetes' sentence when the pod itself says something else, or says an overhead without a class
/// that has one.
pub fn apply(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let fixed = class.and_then(|class| class.pointer("/overhead/podFixed"));
    let fixed = fixed.filter(|fixed| !is_empty(Some(fixed)));
    let own = pod.pointer("/spec/overhead").filter(|own| !is_empty(Some(own)));
    match (fixed, own) {
        (None, Some(_)) => {
            let text = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(text.to_owned());
        }
        (Some(fixed), Some(own)) if fixed != own => {
            let text = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(text.to_owned());
        }
        _ => {}
    }
    let (Some(class), Some(spec)) = (class, pod.get_mut("spec").and_then(Value::as_object_mut))
    else {
        return Ok(());
    };
    if let Some(fixed) = fixed {
        spec.insert("overhead".to_owned(), fixed.clone());
    }
    select_nodes(spec, class)?;
    let wanted = items_at(class, "/scheduling/tolerations");
    if !wanted.is_empty() {
        let list = spec.entry("tolerations").or_insert_with(|| Value::Array(Vec::new()));
        let Some(list) = list.as_array_mut() else { return Ok(()) };
        for toleration in wanted {
            if !list.contains(toleration) {
                list.push(toleration.clone());
            }
        }
    }
    Ok(())
}

fn select_nodes(spec: &mut Map<String, Value>, class: &Value) -> Result<(), String> {
    for (key, value) in entries_at(class, "/scheduling/nodeSelector") {
        let selector = spec.entry("nodeSelector").or_insert_with(|| Value::Object(Map::new()));
        let Some(selector) = selector.as_object_mut() else { return Ok(()) };
        match selector.get(key) {
            Some(own) if own != value => {
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; \
                     pod.spec.nodeSelector[{key}] = {}",
                    text_at(value, ""),
                    text_at(own, "")
                ));
            }
            _ => selector.insert(key.clone(), value.clone()),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_gets_overhead_labels_and_tolerations_of_its_class() {
        let toleration = json!({"key": "wasm", "operator": "Exists"});
        let class = json!({"handler": "wasm", "overhead": {"podFixed": {"memory": "4Mi"}},
            "scheduling": {"nodeSelector": {"arch": "wasm"}, "tolerations": [toleration]}});
        let mut pod =
            json!({"spec": {"nodeSelector": {"zone": "a"}, "tolerations": [{"key": "k"}]}});
        apply(&mut pod, Some(&class)).unwrap();
        let complete = json!({"spec": {"overhead": {"memory": "4Mi"},
            "nodeSelector": {"zone": "a", "arch": "wasm"},
            "tolerations": [{"key": "k"}, toleration]}});
        assert_eq!(pod, complete);
        apply(&mut pod, Some(&class)).unwrap();
        assert_eq!(pod, complete, "a second time");
        let mut plain = json!({"spec": {}});
        apply(&mut plain, Some(&json!({"handler": "wasm"}))).unwrap();
        apply(&mut plain, None).unwrap();
        assert_eq!(plain, json!({"spec": {}}));
    }

    #[test]
    fn what_a_pod_says_otherwise_is_refused() {
        let class = json!({"overhead": {"podFixed": {"memory": "4Mi"}},
            "scheduling": {"nodeSelector": {"arch": "wasm"}}});
        let refused = |spec: Value, class: Option<&Value>| {
            apply(&mut json!({ "spec": spec }), class).unwrap_err()
        };
        let own = json!({"overhead": {"memory": "8Mi"}});
        assert_eq!(
            refused(own.clone(), None),
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
        );
        assert_eq!(
            refused(own, Some(&class)),
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"
        );
        assert_eq!(
            refused(json!({"nodeSelector": {"arch": "arm64"}}), Some(&class)),
            "conflict: runtimeClass.scheduling.nodeSelector[arch] = wasm; \
             pod.spec.nodeSelector[arch] = arm64"
        );
    }
}
