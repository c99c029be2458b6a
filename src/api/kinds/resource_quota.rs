//! ResourceQuota.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{entries_at, items_at, text_at};
use crate::api::quota::{COMPUTE, amount, amounts};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;
use crate::api::{meta, resource_names};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "resourcequotas",
    singular: "resourcequota",
    kind: "ResourceQuota",
    list_kind: "ResourceQuotaList",
    description: "How much a namespace may use in all.",
    short_names: &["quota"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE, Column::text("Request"), Column::text("Limit")],
    field_selectors: &[],
    strategy: Strategy {
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<ResourceQuota>)
    },
};

const SCOPES: [&str; 6] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];
const OPERATORS: [&str; 4] = ["DoesNotExist", "Exists", "In", "NotIn"];

fn validate(object: &Value, errors: &mut Errors) {
    for (path, at) in [
        ("spec.hard", "/spec/hard"),
        ("status.hard", "/status/hard"),
        ("status.used", "/status/used"),
    ] {
        for (name, value) in entries_at(object, at) {
            validate_amount(&format!("{path}[{name}]"), name, value, errors);
        }
    }
    let scopes = items_at(object, "/spec/scopes");
    for (at, scope) in scopes.iter().enumerate() {
        let path = format!("spec.scopes[{at}]");
        errors.one_of(path.clone(), scope, &SCOPES);
        validate_scope(&path, scope.as_str().unwrap_or_default(), object, errors);
    }
    let has = |scope: &str| scopes.iter().any(|one| one.as_str() == Some(scope));
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(one) && has(other) {
            let given = object.pointer("/spec/scopes").cloned().unwrap_or_default();
            errors.invalid("spec.scopes", &given, "conflicting scopes");
        }
    }
    for (at, term) in items_at(object, "/spec/scopeSelector/matchExpressions").iter().enumerate() {
        validate_term(&format!("spec.scopeSelector.matchExpressions[{at}]"), term, object, errors);
    }
}

fn validate_amount(path: &str, name: &str, value: &Value, errors: &mut Errors) {
    if let Err(rule) = resource_names::check_of_quota(name) {
        errors.invalid(path, &json!(name), rule);
    }
    let is_whole = |nanos: i128| nanos % 1_000_000_000 == 0;
    match amount(value) {
        None => errors.invalid(path, value, "must be a quantity"),
        Some(amount) if amount.nanos() < 0 => {
            errors.invalid(path, value, "must be greater than or equal to 0");
        }
        Some(amount) if is_counted(name) && !is_whole(amount.nanos()) => {
            errors.invalid(path, value, "must be an integer");
        }
        Some(_) => {}
    }
}

/// Whether it is a number of things.
fn is_counted(name: &str) -> bool {
    name.starts_with("count/")
        || name.starts_with("services.")
        || name.ends_with("persistentvolumeclaims")
        || matches!(
            name,
            "pods"
                | "services"
                | "configmaps"
                | "secrets"
                | "replicationcontrollers"
                | "resourcequotas"
        )
}

/// What a scope leaves nothing to count of must not be limited.
fn validate_scope(path: &str, scope: &str, object: &Value, errors: &mut Errors) {
    let is_allowed = |name: &str| match scope {
        "BestEffort" => matches!(name, "pods" | "count/pods"),
        _ => {
            matches!(name, "pods" | "count/pods")
                || COMPUTE.contains(&name)
                || name.contains("ephemeral-storage")
                || name.starts_with("requests.")
                || name.starts_with("limits.")
                || name.starts_with("hugepages-")
        }
    };
    for (name, _) in entries_at(object, "/spec/hard") {
        if !is_allowed(name) {
            errors.invalid(path, &json!(scope), "unsupported scope applied to resource");
            return;
        }
    }
}

fn validate_term(path: &str, term: &Value, object: &Value, errors: &mut Errors) {
    let at = |key: &str| term.get(key).cloned().unwrap_or_default();
    let (scope, operator) = (text_at(term, "/scopeName"), text_at(term, "/operator"));
    errors.one_of(format!("{path}.scopeName"), &at("scopeName"), &SCOPES);
    errors.one_of(format!("{path}.operator"), &at("operator"), &OPERATORS);
    validate_scope(&format!("{path}.scopeName"), scope, object, errors);
    if scope != "PriorityClass" && operator != "Exists" {
        let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        errors.invalid(format!("{path}.operator"), &at("operator"), detail);
    }
    let has_values = !items_at(term, "/values").is_empty();
    match operator {
        "In" | "NotIn" if !has_values => errors.push(crate::api::FieldError::required(
            format!("{path}.values"),
            "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
        )),
        "Exists" | "DoesNotExist" if has_values => {
            let detail =
                "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector";
            errors.invalid(format!("{path}.values"), &at("values"), detail);
        }
        _ => {}
    }
}

/// Which objects a quota is about never changes.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let scopes = |object: &Value| {
        let mut all: Vec<String> = items_at(object, "/spec/scopes")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        all.sort();
        all
    };
    if scopes(old) != scopes(new) {
        let given = new.pointer("/spec/scopes").cloned().unwrap_or_default();
        errors.invalid("spec.scopes", &given, "field is immutable");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let used = amounts(object, "/status/used");
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in amounts(object, "/status/hard") {
        let used = used.get(&name).map_or_else(|| "0".to_owned(), ToString::to_string);
        let column = if name.starts_with("limits.") { &mut limits } else { &mut requests };
        column.push(format!("{name}: {used}/{hard}"));
    }
    vec![
        json!(meta::name(object)),
        json!(age(object, now)),
        json!(requests.join(", ")),
        json!(limits.join(", ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(spec: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(&json!({"spec": spec}), &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn amounts_and_scopes_must_go_together() {
        for fine in [
            json!({"hard": {"pods": "10", "requests.cpu": "1500m", "count/jobs.batch": "3"}}),
            json!({"hard": {"pods": "10"}, "scopes": ["BestEffort"]}),
            json!({"hard": {"cpu": "1"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
        ] {
            assert_eq!(refused(&fine), Vec::<String>::new(), "{fine}");
        }
        for (spec, said) in [
            (json!({"hard": {"pods": "1.5"}}), "must be an integer"),
            (json!({"hard": {"cpu": "-1"}}), "greater than or equal to 0"),
            (json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort"]}), "unsupported scope"),
            (json!({"hard": {"services": "1"}, "scopes": ["Terminating"]}), "unsupported scope"),
            (json!({"scopes": ["Sometimes"]}), "supported values"),
            (json!({"scopes": ["Terminating", "NotTerminating"]}), "conflicting scopes"),
            (
                json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In"}]}}),
                "at least one value",
            ),
            (
                json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "Terminating", "operator": "DoesNotExist"}]}}),
                "must be 'Exist'",
            ),
        ] {
            let errors = refused(&spec);
            assert!(errors.len() == 1 && errors[0].contains(said), "{spec}: {errors:?}");
        }
    }

    #[test]
    fn a_row_shows_what_is_used_of_what() {
        let quota = json!({"metadata": {"name": "q"}, "status": {
            "hard": {"pods": "10", "limits.cpu": "2"}, "used": {"pods": "3", "limits.cpu": "500m"}}});
        let row = cells(&quota, Timestamp::UNIX_EPOCH);
        assert_eq!([&row[2], &row[3]], ["pods: 3/10", "limits.cpu: 500m/2"]);
    }
}
