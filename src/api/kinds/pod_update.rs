//! What of a pod may change once it is there.

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{copy_key, int_at, is_empty, items_at, remove, set, text_at};
use crate::api::kinds::pod_spec;

const GATES: &str = "/spec/schedulingGates";
const REQUIRED_TERMS: &str =
    "/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";

/// Checks that nothing else changes than what may: images, a deadline that comes sooner, more
/// tolerations, fewer gates, and while there are gates, fewer nodes.
pub(super) fn validate(old: &Value, new: &Value, errors: &mut Errors) {
    // One that was stored by an older server may lack what is filled in today.
    let (mut old, mut new) = (old.clone(), new.clone());
    pod_spec::default(&mut old);
    pod_spec::default(&mut new);
    let (old, new) = (&old, &new);
    validate_deadline(old, new, errors);
    validate_tolerations(old, new, errors);
    validate_gates(old, new, errors);
    let Some(before) = old.get("spec") else { return };
    let mut comparable = new.get("spec").cloned().unwrap_or_default();
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy_key(before, &mut comparable, key);
    }
    let grace = "/spec/terminationGracePeriodSeconds";
    if int_at(old, grace).is_some_and(|seconds| seconds < 0) && int_at(new, grace) == Some(1) {
        copy_key(before, &mut comparable, "terminationGracePeriodSeconds");
    }
    if !items_at(old, GATES).is_empty() {
        validate_directives(old, new, errors);
        copy_key(before, &mut comparable, "nodeSelector");
        copy_node_affinity(before, &mut comparable);
    }
    for list in ["containers", "initContainers"] {
        copy_images(before, &mut comparable, list);
    }
    if without_empty(&comparable) != without_empty(before) {
        let detail = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        errors.forbidden("spec", detail);
    }
}

/// The spec without keys that say nothing: removing the last of a list may leave an empty one.
fn without_empty(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !is_empty(Some(value)));
    }
    spec
}

fn copy_images(before: &Value, comparable: &mut Value, list: &str) {
    let images: Vec<Option<Value>> =
        items_at(before, &format!("/{list}")).iter().map(|c| c.get("image").cloned()).collect();
    let containers = comparable.get_mut(list).and_then(Value::as_array_mut);
    for (container, image) in containers.into_iter().flatten().zip(images) {
        match image {
            Some(image) => set(container, "image", image),
            None => drop(remove(container, "image")),
        }
    }
}

fn copy_node_affinity(before: &Value, comparable: &mut Value) {
    let had = before.pointer("/affinity/nodeAffinity");
    let has = comparable.pointer("/affinity/nodeAffinity").is_some();
    if let Some(affinity) = comparable.get_mut("affinity").filter(|a| a.is_object()) {
        match had {
            Some(had) => set(affinity, "nodeAffinity", had.clone()),
            None => drop(remove(affinity, "nodeAffinity")),
        }
    }
    if has && before.get("affinity").is_none() {
        let rest = comparable.get("affinity");
        if is_empty(rest) {
            remove(comparable, "affinity");
        }
    }
}

fn validate_deadline(old: &Value, new: &Value, errors: &mut Errors) {
    let (path, field) = ("/spec/activeDeadlineSeconds", "spec.activeDeadlineSeconds");
    match (int_at(old, path), int_at(new, path)) {
        (Some(_), None) => {
            let detail = "must not update from a positive integer to nil value";
            errors.invalid(field, &Value::Null, detail);
        }
        (Some(before), Some(now)) if now > before => {
            errors.invalid(field, &json!(now), "must be less than or equal to previous value");
        }
        _ => {}
    }
}

fn validate_tolerations(old: &Value, new: &Value, errors: &mut Errors) {
    let rest = |toleration: &Value| {
        let mut rest = toleration.clone();
        remove(&mut rest, "tolerationSeconds");
        without_empty(&rest)
    };
    let kept: Vec<Value> = items_at(new, "/spec/tolerations").iter().map(rest).collect();
    if items_at(old, "/spec/tolerations").iter().any(|had| !kept.contains(&rest(had))) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden("spec.tolerations", detail);
    }
}

fn validate_gates(old: &Value, new: &Value, errors: &mut Errors) {
    let had: Vec<&str> = items_at(old, GATES).iter().map(|gate| text_at(gate, "/name")).collect();
    for gate in items_at(new, GATES).iter().map(|gate| text_at(gate, "/name")) {
        if !had.contains(&gate) {
            let detail =
                format!("only deletion is allowed, but found new scheduling gate '{gate}'");
            errors.forbidden("spec.schedulingGates", &detail);
        }
    }
}

/// While a pod is gated, what it says of nodes may get narrower.
fn validate_directives(old: &Value, new: &Value, errors: &mut Errors) {
    let selector = |pod: &Value| pod.pointer("/spec/nodeSelector").cloned().unwrap_or_default();
    let (had, has) = (selector(old), selector(new));
    let mut had = had.as_object().into_iter().flatten();
    if had.any(|(key, value)| has.get(key) != Some(value)) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid("spec.nodeSelector", &has, detail);
    }
    let terms = |pod: &Value| pod.pointer(&format!("/spec/affinity{REQUIRED_TERMS}")).cloned();
    let Some(had) = terms(old) else { return };
    let has = terms(new).unwrap_or_default();
    let field = format!("spec.affinity{}", REQUIRED_TERMS.replace('/', "."));
    let (had, now) = (items_at(&had, ""), items_at(&has, ""));
    let is_narrower = |(had, now): (&Value, &Value)| {
        ["/matchExpressions", "/matchFields"].into_iter().all(|list| {
            let now = items_at(now, list);
            items_at(had, list).iter().all(|one| now.contains(one))
        })
    };
    if had.len() != now.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid(field, &has, detail);
    } else if !had.iter().zip(now).all(is_narrower) {
        let detail = "only additions are allowed (no mutations or deletions)";
        errors.invalid(field, &has, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a change of a pod's spec; the old one is merged with `had`, the new with
    /// `had` and `change`.
    fn texts(had: &Value, change: &Value) -> Vec<String> {
        let mut old = json!({"containers": [{"name": "a", "image": "x"}],
            "initContainers": [{"name": "i", "image": "x"}], "nodeName": "n",
            "terminationGracePeriodSeconds": 30});
        json_patch::merge(&mut old, had);
        let mut new = old.clone();
        json_patch::merge(&mut new, change);
        let mut errors = Errors::default();
        validate(&json!({"spec": old}), &json!({"spec": new}), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    fn is_refused(change: &Value) -> bool {
        let found = texts(&json!({}), change);
        found.first().is_some_and(|text| {
            text.starts_with("spec: Forbidden: pod updates may not change fields other than")
        })
    }

    #[test]
    fn images_may_change_and_other_fields_may_not() {
        let allowed = [
            json!({"containers": [{"name": "a", "image": "y"}]}),
            json!({"initContainers": [{"name": "i", "image": "y"}]}),
            json!({"volumes": []}),
            json!({"dnsPolicy": "ClusterFirst"}),
        ];
        for change in allowed {
            assert_eq!(texts(&json!({}), &change), Vec::<String>::new(), "{change}");
        }
        for change in [
            json!({"nodeName": "m"}),
            json!({"containers": [{"name": "b", "image": "x"}]}),
            json!({"containers": [{"name": "a", "image": "x", "args": ["z"]}]}),
            json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}),
            json!({"restartPolicy": "Never"}),
            json!({"nodeSelector": {"a": "b"}}),
            json!({"affinity": {"nodeAffinity": {}, "podAffinity": {"x": 1}}}),
            json!({"hostname": "h"}),
            json!({"terminationGracePeriodSeconds": 1}),
        ] {
            assert!(is_refused(&change), "{change}");
        }
        let negative = json!({"terminationGracePeriodSeconds": -1});
        let one = json!({"terminationGracePeriodSeconds": 1});
        assert_eq!(texts(&negative, &one), Vec::<String>::new());
        assert_eq!(texts(&negative, &json!({"terminationGracePeriodSeconds": 2})).len(), 1);
    }

    #[test]
    fn a_deadline_is_set_or_comes_sooner() {
        let deadline = |seconds: Value| json!({"activeDeadlineSeconds": seconds});
        assert_eq!(texts(&json!({}), &deadline(json!(5))), Vec::<String>::new());
        assert_eq!(texts(&deadline(json!(5)), &deadline(json!(4))), Vec::<String>::new());
        let field = "spec.activeDeadlineSeconds: Invalid value:";
        assert_eq!(
            texts(&deadline(json!(5)), &deadline(json!(6))),
            [format!("{field} 6: must be less than or equal to previous value")]
        );
        assert_eq!(
            texts(&deadline(json!(5)), &deadline(Value::Null)),
            [format!("{field} null: must not update from a positive integer to nil value")]
        );
    }

    #[test]
    fn tolerations_are_only_added_and_their_seconds_changed() {
        let of = |list: Value| json!({"tolerations": list});
        let had = of(json!([{"key": "a", "effect": "NoExecute", "tolerationSeconds": 3}]));
        let longer = json!({"key": "a", "effect": "NoExecute", "tolerationSeconds": 9});
        let more = of(json!([{"operator": "Exists"}, longer]));
        assert_eq!(texts(&had, &more), Vec::<String>::new());
        assert_eq!(texts(&json!({}), &more), Vec::<String>::new());
        for change in [json!([]), json!([{"key": "b", "effect": "NoExecute"}])] {
            assert_eq!(
                texts(&had, &of(change)),
                [
                    "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
                ]
            );
        }
    }

    #[test]
    fn gates_are_only_taken_away_and_while_there_are_some_the_choice_gets_narrower() {
        let gates = |names: &[&str]| {
            let gates: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
            json!({"schedulingGates": gates, "nodeSelector": {"a": "b"}})
        };
        let had = gates(&["x", "y"]);
        for names in [&["x"][..], &[]] {
            assert_eq!(texts(&had, &gates(names)), Vec::<String>::new());
        }
        assert_eq!(
            texts(&had, &gates(&["x", "z"])),
            [
                "spec.schedulingGates: Forbidden: only deletion is allowed, but found new scheduling gate 'z'"
            ]
        );
        assert_eq!(texts(&had, &json!({"nodeSelector": {"c": "d"}})), Vec::<String>::new());
        let other = texts(&had, &json!({"nodeSelector": {"a": "c"}}));
        assert!(other[0].contains("only additions to spec.nodeSelector are allowed"), "{other:?}");
        let affinity = |names: &[&str]| {
            let all: Vec<_> =
                names.iter().map(|n| json!({"key": n, "operator": "Exists"})).collect();
            json!({"schedulingGates": [{"name": "x"}], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": all}]}}}})
        };
        assert_eq!(texts(&had, &affinity(&["k"])), Vec::<String>::new());
        assert_eq!(texts(&affinity(&["k"]), &affinity(&["k", "l"])), Vec::<String>::new());
        let fewer = texts(&affinity(&["k", "l"]), &affinity(&["k"]));
        assert!(fewer[0].contains("only additions are allowed"), "{fewer:?}");
        // Other parts of the affinity may not change.
        let pods = json!({"affinity": {"podAffinity": {"x": 1}}});
        assert_eq!(texts(&had, &pods).len(), 1);
    }
}
