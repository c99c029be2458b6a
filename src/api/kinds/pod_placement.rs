//! Checks of what a pod says about its place: node selector, affinity, tolerations, topology spread
//! constraints.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{items_at, text_at};
use crate::api::kinds::taints;
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
    taints::validate_tolerations(holder, path, errors);
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
        validate_node_selector(required, &format!("{path}.{REQUIRED}"), errors);
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

/// Checks a selector of nodes; `path` is its path.
pub(super) fn validate_node_selector(selector: &Value, path: &str, errors: &mut Errors) {
    let path = format!("{path}.nodeSelectorTerms");
    let terms = items_at(selector, "/nodeSelectorTerms");
    if terms.is_empty() {
        errors.required_because(&path, "must have at least one node selector term");
    }
    for (at, term) in terms.iter().enumerate() {
        check_node_term(term, true, &format!("{path}[{at}]"), errors);
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

/// Checks labels; `path` is theirs.
pub(super) fn check_labels(labels: &Value, path: &str, errors: &mut Errors) {
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
#[path = "pod_placement_test.rs"]
mod tests;
