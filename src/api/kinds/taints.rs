//! Checks of the taints of Nodes, and of what tolerates them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::FieldError;
use crate::api::field_error::Errors;
use crate::api::json::{is_unset, items_at, text_at};
use crate::api::names;

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Checks the tolerations in the spec of `holder`; `path` is `spec` or `spec.template.spec`.
pub(super) fn validate_tolerations(holder: &Value, path: &str, errors: &mut Errors) {
    for (at, toleration) in items_at(holder, "/spec/tolerations").iter().enumerate() {
        check_toleration(toleration, &format!("{path}.tolerations[{at}]"), errors);
    }
}

fn check_toleration(toleration: &Value, path: &str, errors: &mut Errors) {
    let (key, operator) = (text_at(toleration, "/key"), text_at(toleration, "/operator"));
    let (value, effect) = (text_at(toleration, "/value"), text_at(toleration, "/effect"));
    let operator_path = format!("{path}.operator");
    if key.is_empty() && operator != "Exists" {
        let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.invalid(&operator_path, &json!(operator), detail);
    }
    if let Err(rule) = names::check_qualified_name(key)
        && !key.is_empty()
    {
        errors.invalid(format!("{path}.key"), &json!(key), rule);
    }
    if !is_unset(toleration.get("tolerationSeconds")) && effect != "NoExecute" {
        let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        errors.invalid(format!("{path}.effect"), &json!(effect), detail);
    }
    match operator {
        "" | "Equal" => {
            if let Err(rule) = names::check_label_value(value) {
                errors.invalid(operator_path, &json!(value), rule);
            }
        }
        "Exists" if !value.is_empty() => {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.invalid(operator_path, toleration, detail);
        }
        _ => errors.one_of(operator_path, &json!(operator), &["Equal", "Exists"]),
    }
    if !effect.is_empty() {
        errors.one_of(format!("{path}.effect"), &json!(effect), EFFECTS);
    }
}

/// Checks the taints of a Node; those that it `had` may stay, wherever in the list they are now.
pub(super) fn validate_taints(node: &Value, had: &[Value], errors: &mut Errors) {
    let mut before: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for taint in had {
        *before.entry(pair(taint)).or_default() += 1;
    }
    let mut now: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (at, taint) in items_at(node, "/spec/taints").iter().enumerate() {
        // So Kubernetes calls it.
        let path = format!("metadata.taints[{at}]");
        if !had.contains(taint) {
            check_taint(taint, &path, errors);
        }
        let count = now.entry(pair(taint)).or_default();
        *count += 1;
        if *count > before.get(&pair(taint)).copied().unwrap_or(0).max(1) {
            let mut error = FieldError::duplicate(path, taint);
            error.message.push_str(": taints must be unique by key and effect pair");
            errors.push(error);
        }
    }
}

/// What tells taints apart.
fn pair(taint: &Value) -> (&str, &str) {
    (text_at(taint, "/key"), text_at(taint, "/effect"))
}

fn check_taint(taint: &Value, path: &str, errors: &mut Errors) {
    let ((key, effect), value) = (pair(taint), text_at(taint, "/value"));
    if let Err(rule) = names::check_qualified_name(key) {
        errors.invalid(format!("{path}.key"), &json!(key), rule);
    }
    if let Err(rule) = names::check_label_value(value) {
        errors.invalid(format!("{path}.value"), &json!(value), rule);
    }
    if effect.is_empty() {
        errors.required(format!("{path}.effect"));
    } else {
        errors.one_of(format!("{path}.effect"), &json!(effect), EFFECTS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{self, strategy};

    fn tolerations(list: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate_tolerations(&json!({"spec": {"tolerations": list}}), "spec", &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    fn taints(list: &Value, had: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate_taints(&json!({"spec": {"taints": list}}), items_at(had, ""), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tolerations_that_kubernetes_takes_are_taken() {
        let fine = json!([
            {"operator": "Exists"},
            {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0},
            {"key": "example.com/Key", "operator": "Exists", "effect": "PreferNoSchedule"},
            {"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"},
            {"key": "a", "value": "", "tolerationSeconds": null},
        ]);
        assert_eq!(tolerations(&fine), Vec::<String>::new());
    }

    #[test]
    fn tolerations_that_match_nothing_are_refused_in_kubernetes_words() {
        for (toleration, said) in [
            (
                json!({"value": "a"}),
                "operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ),
            (
                json!({"key": "a", "operator": "In"}),
                "operator: Unsupported value: \"In\": supported values: \"Equal\", \"Exists\"",
            ),
            (
                json!({"key": "a", "effect": "noschedule"}),
                "effect: Unsupported value: \"noschedule\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            ),
            (
                json!({"key": "a", "effect": "NoSchedule", "tolerationSeconds": 3}),
                "effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            ),
            (
                json!({"key": "a", "operator": "Exists", "value": "b"}),
                "operator: Invalid value: {\"key\":\"a\",\"operator\":\"Exists\",\"value\":\"b\"}: value must be empty when `operator` is 'Exists'",
            ),
        ] {
            assert_eq!(tolerations(&json!([toleration])), [format!("spec.tolerations[0].{said}")]);
        }
        for (toleration, field) in [
            (json!({"key": "a b", "operator": "Exists"}), "key: Invalid value: \"a b\": "),
            (json!({"key": "a", "value": "b c"}), "operator: Invalid value: \"b c\": "),
        ] {
            let found = tolerations(&json!([toleration]));
            let field = format!("spec.tolerations[0].{field}");
            assert!(found.len() == 1 && found[0].starts_with(&field), "{found:?}");
        }
    }

    #[test]
    fn pods_and_templates_are_checked() {
        let spec = json!({"containers": [{"name": "a", "image": "x"}],
            "tolerations": [{"key": "a", "operator": "In"}]});
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        let set = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec}}});
        for (group, plural, mut object, field) in [
            ("", "pods", pod, "spec.tolerations[0].operator"),
            ("apps", "daemonsets", set, "spec.template.spec.tolerations[0].operator"),
        ] {
            let resource = api::find(group, "v1", plural).unwrap();
            strategy::prepare_create(resource, &mut object);
            let errors = strategy::validate_create(resource, &object);
            let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(fields, [field]);
        }
    }

    #[test]
    fn taints_have_a_key_and_an_effect_and_are_there_once() {
        let fine = json!([
            {"key": "a", "effect": "NoSchedule"},
            {"key": "a", "effect": "NoExecute", "value": "b"},
        ]);
        assert_eq!(taints(&fine, &json!([])), Vec::<String>::new());
        let bad = json!([
            {"key": "", "effect": "NoSchedule"},
            {"key": "a", "value": "b c", "effect": "NoSchedule"},
            {"key": "b"},
            {"key": "c", "effect": "Never"},
        ]);
        let found = taints(&bad, &json!([]));
        for (at, said) in [
            "metadata.taints[0].key: Invalid value: \"\": ",
            "metadata.taints[1].value: Invalid value: \"b c\": ",
            "metadata.taints[2].effect: Required value",
            "metadata.taints[3].effect: Unsupported value: \"Never\": supported values: ",
        ]
        .iter()
        .enumerate()
        {
            assert!(found[at].starts_with(said), "{found:?}");
        }
        assert_eq!(found.len(), 4, "{found:?}");
        let twice = json!([fine[0], {"key": "a", "value": "x", "effect": "NoSchedule"}]);
        assert_eq!(
            taints(&twice, &json!([])),
            [
                "metadata.taints[1]: Duplicate value: {\"key\":\"a\",\"value\":\"x\",\"effect\":\"NoSchedule\"}: taints must be unique by key and effect pair"
            ]
        );
    }

    #[test]
    fn bad_taints_of_before_may_stay_when_others_go() {
        let (bad, good) = (json!({"key": "a b"}), json!({"key": "a", "effect": "NoSchedule"}));
        let had = json!([good, bad, good]);
        assert_eq!(taints(&json!([bad, good, good]), &had), Vec::<String>::new());
        assert_eq!(taints(&json!([good, good, good]), &had).len(), 1);
        assert_eq!(taints(&json!([{"key": "c d"}, bad]), &had).len(), 2, "key and effect");
    }
}
