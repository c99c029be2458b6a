//! Which objects a quota is about.

use serde_json::Value;

use crate::api::json::{int_at, items_at, str_at, text_at};
use crate::api::kinds::qos_class;
use crate::api::resource::Resource;

/// Whether `object` is among those that `quota` counts. A quota with scopes counts pods only.
#[must_use]
pub fn matches(quota: &Value, resource: &Resource, object: &Value) -> bool {
    let scopes = items_at(quota, "/spec/scopes");
    let terms = items_at(quota, "/spec/scopeSelector/matchExpressions");
    if scopes.is_empty() && terms.is_empty() {
        return true;
    }
    if resource.plural != "pods" || !resource.group.is_empty() {
        return false;
    }
    let exists = scopes.iter().filter_map(Value::as_str).all(|scope| is_in(scope, object));
    exists && terms.iter().all(|term| term_matches(term, object))
}

fn is_in(scope: &str, pod: &Value) -> bool {
    let ends = int_at(pod, "/spec/activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => !text_at(pod, "/spec/priorityClassName").is_empty(),
        "CrossNamespacePodAffinity" => looks_into_others(pod),
        _ => false,
    }
}

fn term_matches(term: &Value, pod: &Value) -> bool {
    let scope = text_at(term, "/scopeName");
    if scope != "PriorityClass" {
        return is_in(scope, pod);
    }
    let class = str_at(pod, "/spec/priorityClassName").filter(|class| !class.is_empty());
    let is_named = || {
        class.is_some_and(|class| {
            items_at(term, "/values").iter().any(|value| value.as_str() == Some(class))
        })
    };
    match text_at(term, "/operator") {
        "Exists" => class.is_some(),
        "DoesNotExist" => class.is_none(),
        "In" => is_named(),
        "NotIn" => !is_named(),
        _ => false,
    }
}

/// Whether the pod's affinity names pods of other namespaces.
fn looks_into_others(pod: &Value) -> bool {
    let parts = ["podAffinity", "podAntiAffinity"];
    parts.iter().any(|part| {
        let required =
            format!("/spec/affinity/{part}/requiredDuringSchedulingIgnoredDuringExecution");
        let preferred =
            format!("/spec/affinity/{part}/preferredDuringSchedulingIgnoredDuringExecution");
        let term = |term: &Value, at: &str| {
            !items_at(term, &format!("{at}/namespaces")).is_empty()
                || term.pointer(&format!("{at}/namespaceSelector")).is_some_and(Value::is_object)
        };
        items_at(pod, &required).iter().any(|one| term(one, ""))
            || items_at(pod, &preferred).iter().any(|one| term(one, "/podAffinityTerm"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;

    fn is_counted(spec: &Value, pod: &Value) -> bool {
        let pods = api::find("", "v1", "pods").unwrap();
        matches(&json!({"spec": spec}), pods, &json!({"spec": pod}))
    }

    #[test]
    fn each_scope_counts_its_pods() {
        let ends = json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]});
        let stays = json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]});
        let ranked = json!({"priorityClassName": "high", "containers": []});
        let nosy = json!({"affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["other"]}]}}});
        for (scope, [a, b, c, d]) in [
            ("Terminating", [true, false, false, false]),
            ("NotTerminating", [false, true, true, true]),
            ("BestEffort", [true, false, true, true]),
            ("NotBestEffort", [false, true, false, false]),
            ("PriorityClass", [false, false, true, false]),
            ("CrossNamespacePodAffinity", [false, false, false, true]),
            ("Unheard", [false, false, false, false]),
        ] {
            let spec = json!({"scopes": [scope]});
            let got = [&ends, &stays, &ranked, &nosy].map(|pod| is_counted(&spec, pod));
            assert_eq!(got, [a, b, c, d], "{scope}");
        }
    }

    #[test]
    fn a_scope_selector_names_priority_classes() {
        let pod = |class: &str| json!({"priorityClassName": class, "containers": []});
        for (operator, values, [high, none]) in [
            ("In", json!(["high"]), [true, false]),
            ("In", json!(["low"]), [false, false]),
            ("NotIn", json!(["low"]), [true, true]),
            ("Exists", json!([]), [true, false]),
            ("DoesNotExist", json!([]), [false, true]),
        ] {
            let spec = json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}});
            assert_eq!(
                [is_counted(&spec, &pod("high")), is_counted(&spec, &pod(""))],
                [high, none]
            );
        }
        let maps = api::find("", "v1", "configmaps").unwrap();
        let scoped = json!({"spec": {"scopes": ["BestEffort"]}});
        assert!(!matches(&scoped, maps, &json!({})), "only pods have scopes");
    }
}
