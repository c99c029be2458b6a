//! Checks of what a pod says about its place: node selector, affinity, topology spread constraints.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{items_at, text_at};
use crate::api::names;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NO_OPERATOR: &str = "not a valid selector operator";
const NOT_POSITIVE: &str = "must be greater than zero";

/// Checks the placement in the spec of `holder`; `path` is `spec` or `spec.template.spec`.
pub(super) fn validate(holder: &Value, path: &str, errors: &mut Errors) {
    if let Some(labels) = holder.pointer("/spec/nodeSelector") {
        check_labels(labels, &format!("{path}.nodeSelector"), errors);
    }
    if let Some(affinity) = holder.pointer("/spec/affinity") {
        let path = format!("{path}.affinity");
        check_node_affinity(affinity, &format!("{path}.nodeAffinity"), errors);
        for kind in ["podAffinity", "podAntiAffinity"] {
            check_pod_affinity(affinity, kind, &format!("{path}.{kind}"), errors);
        }
    }
    let constraints = items_at(holder, "/spec/topologySpreadConstraints");
    for (at, constraint) in constraints.iter().enumerate() {
        let field = format!("{path}.topologySpreadConstraints[{at}]");
        check_constraint(constraint, &field, errors);
        let pair = |it: &Value| {
            let (key, action) = (text_at(it, "/topologyKey"), text_at(it, "/whenUnsatisfiable"));
            format!("{{{key}, {action}}}")
        };
        let after = constraints.get(at + 1..).unwrap_or_default();
        if after.iter().any(|other| pair(other) == pair(constraint)) {
            let field = format!("{field}.{{topologyKey, whenUnsatisfiable}}");
            errors.duplicate(field, &json!(pair(constraint)));
        }
    }
}

fn check_node_affinity(affinity: &Value, path: &str, errors: &mut Errors) {
    let required = affinity.pointer(&format!("/nodeAffinity/{REQUIRED}"));
    if let Some(required) = required.filter(|it| !it.is_null()) {
        let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
        let terms = items_at(required, "/nodeSelectorTerms");
        if terms.is_empty() {
            errors.required_because(&path, "must have at least one node selector term");
        }
        for (at, term) in terms.iter().enumerate() {
            check_node_term(term, true, &format!("{path}[{at}]"), errors);
        }
    }
    let preferred = items_at(affinity, &format!("/nodeAffinity/{PREFERRED}"));
    for (at, wish) in preferred.iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{at}]");
        check_weight(wish, &path, errors);
        if let Some(term) = wish.get("preference") {
            check_node_term(term, false, &format!("{path}.preference"), errors);
        }
    }
}

fn check_weight(wish: &Value, path: &str, errors: &mut Errors) {
    let weight = wish.get("weight").unwrap_or(&Value::Null);
    if !weight.as_i64().is_some_and(|weight| (1..=100).contains(&weight)) {
        let weight = if weight.is_null() { &json!(0) } else { weight };
        errors.invalid(format!("{path}.weight"), weight, "must be in the range 1-100");
    }
}

fn check_node_term(term: &Value, has_strict_values: bool, path: &str, errors: &mut Errors) {
    for (at, requirement) in items_at(term, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let values = items_at(requirement, "/values");
        match text_at(requirement, "/operator") {
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required_because(format!("{path}.values"), detail);
            }
            "Gt" | "Lt" => {}
            operator => check_set(operator, values, &path, errors),
        }
        check_key(requirement, &path, errors);
        if has_strict_values {
            check_values(values, &path, errors);
        }
    }
    for (at, requirement) in items_at(term, "/matchFields").iter().enumerate() {
        check_node_field(requirement, &format!("{path}.matchFields[{at}]"), errors);
    }
}

fn check_node_field(requirement: &Value, path: &str, errors: &mut Errors) {
    let (operator, values) = (text_at(requirement, "/operator"), items_at(requirement, "/values"));
    match operator {
        "In" | "NotIn" if values.len() != 1 => {
            let detail =
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required_because(format!("{path}.values"), detail);
        }
        "In" | "NotIn" => {}
        other => errors.invalid(format!("{path}.operator"), &json!(other), NO_OPERATOR),
    }
    let key = text_at(requirement, "/key");
    if key != "metadata.name" {
        errors.invalid(format!("{path}.key"), &json!(key), "not a valid field selector key");
        return;
    }
    for (at, value) in values.iter().enumerate() {
        let name = value.as_str().unwrap_or_default();
        if let Err(detail) = names::check_dns1123_subdomain(name) {
            errors.invalid(format!("{path}.values[{at}]"), value, detail);
        }
    }
}

/// The operators that all selectors have, with the values that they want.
fn check_set(operator: &str, values: &[Value], path: &str, errors: &mut Errors) {
    match operator {
        "In" | "NotIn" if values.is_empty() => {
            let detail = "must be specified when `operator` is 'In' or 'NotIn'";
            errors.required_because(format!("{path}.values"), detail);
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.forbidden(format!("{path}.values"), detail);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.invalid(format!("{path}.operator"), &json!(other), NO_OPERATOR),
    }
}

fn check_key(requirement: &Value, path: &str, errors: &mut Errors) {
    let key = text_at(requirement, "/key");
    if let Err(detail) = names::check_qualified_name(key) {
        errors.invalid(format!("{path}.key"), &json!(key), detail);
    }
}

fn check_values(values: &[Value], path: &str, errors: &mut Errors) {
    for (at, value) in values.iter().enumerate() {
        if let Err(detail) = names::check_label_value(value.as_str().unwrap_or_default()) {
            errors.invalid(format!("{path}.values[{at}]"), value, detail);
        }
    }
}

fn check_labels(labels: &Value, path: &str, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Err(detail) = names::check_qualified_name(key) {
            errors.invalid(path, &json!(key), detail);
        }
        if let Err(detail) = names::check_label_value(value.as_str().unwrap_or_default()) {
            errors.invalid(path, value, detail);
        }
    }
}

fn check_selector(selector: Option<&Value>, path: &str, errors: &mut Errors) {
    let Some(selector) = selector else { return };
    if let Some(labels) = selector.get("matchLabels") {
        check_labels(labels, &format!("{path}.matchLabels"), errors);
    }
    for (at, requirement) in items_at(selector, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let values = items_at(requirement, "/values");
        check_set(text_at(requirement, "/operator"), values, &path, errors);
        check_key(requirement, &path, errors);
        check_values(values, &path, errors);
    }
}

fn check_pod_affinity(affinity: &Value, kind: &str, path: &str, errors: &mut Errors) {
    for (at, term) in items_at(affinity, &format!("/{kind}/{REQUIRED}")).iter().enumerate() {
        check_pod_term(term, &format!("{path}.{REQUIRED}[{at}]"), errors);
    }
    for (at, wish) in items_at(affinity, &format!("/{kind}/{PREFERRED}")).iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{at}]");
        check_weight(wish, &path, errors);
        let term = wish.get("podAffinityTerm").unwrap_or(&Value::Null);
        check_pod_term(term, &format!("{path}.podAffinityTerm"), errors);
    }
}

fn check_pod_term(term: &Value, path: &str, errors: &mut Errors) {
    for field in ["labelSelector", "namespaceSelector"] {
        check_selector(term.get(field), &format!("{path}.{field}"), errors);
    }
    for name in items_at(term, "/namespaces") {
        if let Err(detail) = names::check_dns1123_label(name.as_str().unwrap_or_default()) {
            errors.invalid(format!("{path}.namespace"), name, detail);
        }
    }
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        check_label_keys(term, field, path, errors);
    }
    let mismatched = items_at(term, "/mismatchLabelKeys");
    for (at, key) in items_at(term, "/matchLabelKeys").iter().enumerate() {
        if mismatched.contains(key) {
            let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
            errors.invalid(format!("{path}.matchLabelKeys[{at}]"), key, detail);
        }
    }
    check_topology_key(term, path, errors);
}

fn check_topology_key(term: &Value, path: &str, errors: &mut Errors) {
    let (field, key) = (format!("{path}.topologyKey"), text_at(term, "/topologyKey"));
    if key.is_empty() {
        errors.required_because(field, "can not be empty");
    } else if let Err(detail) = names::check_qualified_name(key) {
        errors.invalid(field, &json!(key), detail);
    }
}

/// Keys whose values are the pod's own.
fn check_label_keys(term: &Value, field: &str, path: &str, errors: &mut Errors) {
    let keys = items_at(term, &format!("/{field}"));
    if !keys.is_empty() && term.get("labelSelector").is_none_or(Value::is_null) {
        let detail = "must not be specified when labelSelector is not set";
        errors.forbidden(format!("{path}.{field}"), detail);
        return;
    }
    for (at, key) in keys.iter().enumerate() {
        if let Err(detail) = names::check_qualified_name(key.as_str().unwrap_or_default()) {
            errors.invalid(format!("{path}.{field}[{at}]"), key, detail);
        }
    }
}

fn check_constraint(constraint: &Value, path: &str, errors: &mut Errors) {
    let is_positive = |value: &Value| value.as_i64().is_some_and(|value| value > 0);
    let skew = constraint.get("maxSkew").unwrap_or(&Value::Null);
    if !is_positive(skew) {
        let skew = if skew.is_null() { &json!(0) } else { skew };
        errors.invalid(format!("{path}.maxSkew"), skew, NOT_POSITIVE);
    }
    if text_at(constraint, "/topologyKey").is_empty() {
        errors.required_because(format!("{path}.topologyKey"), "can not be empty");
    }
    let action = text_at(constraint, "/whenUnsatisfiable");
    errors.one_of(
        format!("{path}.whenUnsatisfiable"),
        &json!(action),
        &["DoNotSchedule", "ScheduleAnyway"],
    );
    if let Some(domains) = constraint.get("minDomains").filter(|it| !it.is_null()) {
        let field = format!("{path}.minDomains");
        if !is_positive(domains) {
            errors.invalid(&field, domains, NOT_POSITIVE);
        }
        if action != "DoNotSchedule" {
            let detail =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
            errors.invalid(&field, domains, &detail);
        }
    }
    for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        if let Some(policy) = constraint.get(field).filter(|it| !it.is_null()) {
            errors.one_of(format!("{path}.{field}"), policy, &["Honor", "Ignore"]);
        }
    }
    check_label_keys(constraint, "matchLabelKeys", path, errors);
    let selector = constraint.get("labelSelector");
    check_selector(selector, &format!("{path}.labelSelector"), errors);
    let selected = selected_keys(selector.unwrap_or(&Value::Null));
    for (at, key) in items_at(constraint, "/matchLabelKeys").iter().enumerate() {
        if key.as_str().is_some_and(|key| selected.contains(key)) {
            let detail = "exists in both matchLabelKeys and labelSelector";
            errors.invalid(format!("{path}.matchLabelKeys[{at}]"), key, detail);
        }
    }
}

fn selected_keys(selector: &Value) -> BTreeSet<&str> {
    let labels = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let expressions = items_at(selector, "/matchExpressions").iter();
    labels
        .map(|(key, _)| key.as_str())
        .chain(expressions.map(|requirement| text_at(requirement, "/key")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::strategy;

    fn errors(spec: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(&json!({ "spec": spec }), "spec", &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    fn node(required: &Value, preferred: &Value) -> Vec<String> {
        let affinity = json!({ "nodeAffinity": { REQUIRED: required, PREFERRED: preferred } });
        errors(&json!({ "affinity": affinity }))
    }

    fn requirement(key: &str, operator: &str, values: &[&str]) -> Value {
        json!({ "nodeSelectorTerms": [{ "matchExpressions": [
            { "key": key, "operator": operator, "values": values }] }] })
    }

    #[test]
    fn what_kubernetes_takes_is_taken() {
        let selector = json!({ "matchLabels": { "app": "web" }, "matchExpressions": [
            { "key": "v", "operator": "Exists" }, { "key": "t", "operator": "NotIn", "values": ["a"] }] });
        let term = json!({ "topologyKey": "kubernetes.io/hostname", "labelSelector": selector,
            "namespaces": ["a"], "namespaceSelector": {}, "matchLabelKeys": ["x"] });
        let spread = |action: &str| {
            json!({ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": action,
                "labelSelector": selector, "matchLabelKeys": ["hash"], "nodeAffinityPolicy": "Ignore" })
        };
        let mut hard = spread("DoNotSchedule");
        hard["minDomains"] = json!(2);
        let found = errors(&json!({
            "nodeSelector": { "kubernetes.io/os": "linux", "empty": "" },
            "affinity": {
                "nodeAffinity": {
                    REQUIRED: { "nodeSelectorTerms": [
                        { "matchExpressions": [{ "key": "n", "operator": "Gt", "values": ["3"] }],
                          "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n-1"] }] },
                        {},
                    ]},
                    PREFERRED: [{ "weight": 100, "preference": {} }],
                },
                "podAffinity": { REQUIRED: [term], PREFERRED: [{ "weight": 1, "podAffinityTerm": term }] },
                "podAntiAffinity": { REQUIRED: [term] },
            },
            "topologySpreadConstraints": [hard, spread("ScheduleAnyway")],
        }));
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn mistakes_in_node_affinity_are_told_in_kubernetes_words() {
        let path = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
        let first = format!("{path}[0].matchExpressions[0]");
        for (required, expected) in [
            (
                json!({}),
                format!("{path}: Required value: must have at least one node selector term"),
            ),
            (
                requirement("k", "In", &[]),
                format!(
                    "{first}.values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
            ),
            (
                requirement("k", "Exists", &["v"]),
                format!(
                    "{first}.values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                ),
            ),
            (
                requirement("k", "Gt", &["1", "2"]),
                format!(
                    "{first}.values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"
                ),
            ),
            (
                requirement("k", "Equals", &["v"]),
                format!(
                    "{first}.operator: Invalid value: \"Equals\": not a valid selector operator"
                ),
            ),
        ] {
            assert_eq!(node(&required, &json!([])), [expected]);
        }
        assert!(
            node(&requirement("a b", "Exists", &[]), &json!([]))[0]
                .starts_with(&format!("{first}.key: Invalid value: \"a b\": "))
        );
        assert!(
            node(&requirement("k", "In", &["a b"]), &json!([]))[0]
                .starts_with(&format!("{first}.values[0]: Invalid value"))
        );
        let fields = |key: &str, operator: &str, values: &[&str]| {
            node(
                &json!({ "nodeSelectorTerms": [{ "matchFields": [
                    { "key": key, "operator": operator, "values": values }] }] }),
                &json!([]),
            )
        };
        let first = format!("{path}[0].matchFields[0]");
        assert_eq!(
            fields("metadata.uid", "In", &["x"]),
            [format!(
                "{first}.key: Invalid value: \"metadata.uid\": not a valid field selector key"
            )]
        );
        assert_eq!(
            fields("metadata.name", "In", &[]),
            [format!(
                "{first}.values: Required value: must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
            )]
        );
        assert_eq!(
            fields("metadata.name", "Exists", &["x"]),
            [format!("{first}.operator: Invalid value: \"Exists\": not a valid selector operator")]
        );
        for weight in [0, 101] {
            let path = format!("spec.affinity.nodeAffinity.{PREFERRED}[0].weight");
            let found = node(&Value::Null, &json!([{ "weight": weight, "preference": {} }]));
            assert_eq!(
                found,
                [format!("{path}: Invalid value: {weight}: must be in the range 1-100")]
            );
        }
    }

    #[test]
    fn mistakes_in_pod_affinity_are_told_in_kubernetes_words() {
        let required = |term: &Value| {
            errors(&json!({ "affinity": { "podAntiAffinity": { REQUIRED: [term] } } }))
        };
        let path = format!("spec.affinity.podAntiAffinity.{REQUIRED}[0]");
        let none = |more: &str| format!("{path}.{more}");
        assert_eq!(required(&json!({})), [none("topologyKey: Required value: can not be empty")]);
        let found = required(&json!({ "topologyKey": "-" }));
        assert!(found[0].starts_with(&none("topologyKey: Invalid value: \"-\": ")), "{found:?}");
        let found = required(&json!({ "topologyKey": "z", "namespaces": ["A"] }));
        assert!(found[0].starts_with(&none("namespace: Invalid value: \"A\": ")), "{found:?}");
        let found = required(&json!({ "topologyKey": "z", "matchLabelKeys": ["x"] }));
        assert_eq!(
            found,
            [none(
                "matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"
            )]
        );
        let both = json!({ "topologyKey": "z", "labelSelector": {}, "matchLabelKeys": ["x"], "mismatchLabelKeys": ["x"] });
        assert_eq!(
            required(&both),
            [none(
                "matchLabelKeys[0]: Invalid value: \"x\": exists in both matchLabelKeys and mismatchLabelKeys"
            )]
        );
        let selector =
            json!({ "matchExpressions": [{ "key": "a", "operator": "Gt", "values": ["1"] }] });
        let found = required(&json!({ "topologyKey": "z", "labelSelector": selector }));
        assert_eq!(
            found,
            [none(
                "labelSelector.matchExpressions[0].operator: Invalid value: \"Gt\": not a valid selector operator"
            )]
        );
        let wish = json!({ "podAffinity": { PREFERRED: [{ "weight": -1, "podAffinityTerm": { "topologyKey": "z" } }] } });
        let found = errors(&json!({ "affinity": wish }));
        assert_eq!(
            found,
            [format!(
                "spec.affinity.podAffinity.{PREFERRED}[0].weight: Invalid value: -1: must be in the range 1-100"
            )]
        );
    }

    #[test]
    fn mistakes_in_spread_constraints_are_told_in_kubernetes_words() {
        let good =
            json!({ "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule" });
        let with = |changes: Value| {
            let mut constraint = good.clone();
            json_patch::merge(&mut constraint, &changes);
            errors(&json!({ "topologySpreadConstraints": [constraint] }))
        };
        let path = "spec.topologySpreadConstraints[0]";
        for (changes, expected) in [
            (json!({ "maxSkew": 0 }), "maxSkew: Invalid value: 0: must be greater than zero"),
            (json!({ "topologyKey": null }), "topologyKey: Required value: can not be empty"),
            (
                json!({ "whenUnsatisfiable": "Wait" }),
                "whenUnsatisfiable: Unsupported value: \"Wait\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
            ),
            (json!({ "minDomains": 0 }), "minDomains: Invalid value: 0: must be greater than zero"),
            (
                json!({ "minDomains": 2, "whenUnsatisfiable": "ScheduleAnyway" }),
                "minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
            ),
            (
                json!({ "nodeTaintsPolicy": "No" }),
                "nodeTaintsPolicy: Unsupported value: \"No\": supported values: \"Honor\", \"Ignore\"",
            ),
            (
                json!({ "matchLabelKeys": ["a"], "labelSelector": { "matchLabels": { "a": "b" } } }),
                "matchLabelKeys[0]: Invalid value: \"a\": exists in both matchLabelKeys and labelSelector",
            ),
        ] {
            assert_eq!(with(changes), [format!("{path}.{expected}")]);
        }
        let twice = errors(&json!({ "topologySpreadConstraints": [good, good] }));
        assert_eq!(
            twice,
            [format!(
                "{path}.{{topologyKey, whenUnsatisfiable}}: Duplicate value: \"{{z, DoNotSchedule}}\""
            )]
        );
    }

    #[test]
    fn what_an_older_version_took_stays_changeable_and_does_not_get_worse() {
        let pods = crate::api::find("", "v1", "pods").unwrap();
        let old = json!({
            "metadata": { "name": "p", "namespace": "default" },
            "spec": { "containers": [{ "name": "c", "image": "x" }],
                "topologySpreadConstraints": [{ "maxSkew": 0 }] },
        });
        let count = |errors: Vec<crate::api::field_error::FieldError>| {
            errors.iter().filter(|error| error.field.contains("topologySpread")).count()
        };
        assert_eq!(count(strategy::validate_create(pods, &old)), 3);
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({ "a": "b" });
        assert_eq!(count(strategy::validate_update(pods, &old, &new)), 0);
        new["spec"]["topologySpreadConstraints"][0]["minDomains"] = json!(0);
        assert_eq!(count(strategy::validate_update(pods, &old, &new)), 2);
    }

    #[test]
    fn labels_of_the_node_selector_are_labels() {
        let found = errors(&json!({ "nodeSelector": { "a b": "c d" } }));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|error| error.starts_with("spec.nodeSelector: Invalid value: ")));
    }
}
