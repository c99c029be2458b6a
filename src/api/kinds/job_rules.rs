//! What a Job's spec must hold to: of a Job, and of the template of a CronJob.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::job_indexes::Indexes;
use crate::api::json::{int_at, is_true, is_unset, items_at, text_at};
use crate::api::kinds::{job, pod_spec};
use crate::api::selector::LabelSelector;
use crate::api::{meta, names};

/// Pods of an Indexed Job at once.
const INDEXED_PARALLELISM_MAX: i64 = 100_000;
/// From so many completions on an Indexed Job that counts failures by index has tighter limits.
const MANY_COMPLETIONS: i64 = 100_000;
const MANY_COMPLETIONS_PARALLELISM_MAX: i64 = 10_000;
/// Rules of a failure policy or a success policy.
const RULES_MAX: usize = 20;
/// Exit codes of one rule.
const EXIT_CODES_MAX: usize = 255;
/// Patterns of conditions of one rule.
const PATTERNS_MAX: usize = 20;
/// Bytes of `managedBy`.
const MANAGED_BY_BYTES_MAX: usize = 63;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Checks a Job.
pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    validate_spec(spec, "spec", errors);
    let completions = int_at(spec, "/completions").unwrap_or(0);
    if is_indexed(spec) && completions > 0 {
        let last = format!("{}-{}", meta::name(object), completions - 1);
        if let Err(rule) = names::check_dns1123_label(&last) {
            let detail =
                format!("will not able to create pod with invalid DNS label: {last}: {rule}");
            errors.invalid("metadata.name", &json!(meta::name(object)), &detail);
        }
    }
    validate_selector(spec, errors);
}

/// Checks that nobody but the author of a manual selector chose a new Job's labels.
pub(super) fn validate_create(object: &Value, errors: &mut Errors) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if is_true(spec, "/manualSelector") {
        return;
    }
    let template = spec.get("template").unwrap_or(&Value::Null);
    let identity = job::identity(object);
    for (key, wanted) in identity {
        let found = meta::label(template, key).unwrap_or_default();
        if found != wanted {
            let detail = format!("expected {wanted:?}");
            errors.invalid(format!("spec.template.metadata.labels[{key}]"), &json!(found), &detail);
        }
    }
    let labels: BTreeMap<String, String> =
        identity.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let selector = spec.get("selector").unwrap_or(&Value::Null);
    let is_ours = LabelSelector::from_json(selector).is_ok_and(|s| s.matches_labels(&labels));
    if !is_ours {
        errors.invalid("spec.selector", selector, "`selector` not auto-generated");
    }
}

fn validate_selector(spec: &Value, errors: &mut Errors) {
    let template = spec.get("template").unwrap_or(&Value::Null);
    let Some(selector) = spec.get("selector").filter(|selector| !selector.is_null()) else {
        return errors.required("spec.selector");
    };
    match LabelSelector::from_json(selector) {
        Err(cause) => errors.invalid("spec.selector", selector, &cause.to_string()),
        Ok(parsed) if !parsed.matches(template) => {
            let labels = template.pointer("/metadata/labels").unwrap_or(&Value::Null);
            let detail = "`selector` does not match template `labels`";
            errors.invalid("spec.template.metadata.labels", labels, detail);
        }
        Ok(_) => {}
    }
}

pub(super) fn is_indexed(spec: &Value) -> bool {
    text_at(spec, "/completionMode") == "Indexed"
}

/// Checks a Job's spec at `path`, but for its selector.
pub(super) fn validate_spec(spec: &Value, path: &str, errors: &mut Errors) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ] {
        if let Some(value) = spec.get(key).filter(|value| value.as_i64().is_some_and(|n| n < 0)) {
            errors.invalid(format!("{path}.{key}"), value, NOT_NEGATIVE);
        }
    }
    let mode = spec.get("completionMode").unwrap_or(&Value::Null);
    if !mode.is_null() {
        errors.one_of(format!("{path}.completionMode"), mode, &["NonIndexed", "Indexed"]);
    }
    validate_mode(spec, path, errors);
    validate_template(spec, path, errors);
    validate_replacement(spec, path, errors);
    if !is_unset(spec.get("podFailurePolicy")) {
        validate_failure_policy(spec, path, errors);
    }
    if !is_unset(spec.get("successPolicy")) {
        validate_success_policy(spec, path, errors);
    }
    let manager = text_at(spec, "/managedBy");
    if !manager.is_empty() {
        if manager.len() > MANAGED_BY_BYTES_MAX {
            errors.push(FieldError::too_long(format!("{path}.managedBy"), MANAGED_BY_BYTES_MAX));
        }
        if !manager.contains('/') || names::check_qualified_name(manager).is_err() {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.invalid(format!("{path}.managedBy"), &json!(manager), detail);
        }
    }
}

fn validate_mode(spec: &Value, path: &str, errors: &mut Errors) {
    let number = |key: &str| spec.get(key).and_then(Value::as_i64);
    let (per_index, failed_max) = (number("backoffLimitPerIndex"), number("maxFailedIndexes"));
    let value = |n: i64| json!(n);
    if failed_max.is_some() && per_index.is_none() {
        let detail = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(format!("{path}.backoffLimitPerIndex"), detail));
    }
    if !is_indexed(spec) {
        let detail = "requires indexed completion mode";
        for (key, found) in [("backoffLimitPerIndex", per_index), ("maxFailedIndexes", failed_max)]
        {
            if let Some(found) = found {
                errors.invalid(format!("{path}.{key}"), &value(found), detail);
            }
        }
        return;
    }
    let (completions, parallelism) = (number("completions"), number("parallelism").unwrap_or(1));
    let Some(completions) = completions else {
        let detail = "when completion mode is Indexed";
        errors.push(FieldError::required(format!("{path}.completions"), detail));
        return;
    };
    if parallelism > INDEXED_PARALLELISM_MAX {
        let detail = format!(
            "must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed"
        );
        errors.invalid(format!("{path}.parallelism"), &value(parallelism), &detail);
    }
    if let Some(failed) = failed_max.filter(|failed| *failed > completions) {
        let detail = "must be less than or equal to completions";
        errors.invalid(format!("{path}.maxFailedIndexes"), &value(failed), detail);
    }
    if completions > MANY_COMPLETIONS && per_index.is_some() {
        validate_many(path, failed_max, parallelism, errors);
    }
}

fn validate_many(path: &str, failed_max: Option<i64>, parallelism: i64, errors: &mut Errors) {
    let max = MANY_COMPLETIONS_PARALLELISM_MAX;
    match failed_max {
        None => {
            let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            errors.push(FieldError::required(format!("{path}.maxFailedIndexes"), &detail));
        }
        Some(failed) if failed > max => {
            let detail = format!("must be less than or equal to {max}");
            errors.invalid(format!("{path}.maxFailedIndexes"), &json!(failed), &detail);
        }
        Some(_) => {}
    }
    if parallelism > max {
        let detail = format!(
            "must be less than or equal to {max} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
        );
        errors.invalid(format!("{path}.parallelism"), &json!(parallelism), &detail);
    }
}

fn validate_template(spec: &Value, path: &str, errors: &mut Errors) {
    let template = spec.get("template").unwrap_or(&Value::Null);
    pod_spec::validate(template, &format!("{path}.template.spec"), errors);
    let policy = text_at(template, "/spec/restartPolicy");
    let field = format!("{path}.template.spec.restartPolicy");
    match policy {
        "Always" | "" => {
            errors.push(FieldError::required(field, "valid values: \"OnFailure\", \"Never\""));
        }
        "OnFailure" if !is_unset(spec.get("podFailurePolicy")) => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.invalid(field, &json!(policy), detail);
        }
        "OnFailure" | "Never" => {}
        other => {
            errors.push(FieldError::not_supported(field, &json!(other), &["OnFailure", "Never"]));
        }
    }
}

fn validate_replacement(spec: &Value, path: &str, errors: &mut Errors) {
    let Some(policy) = spec.get("podReplacementPolicy").filter(|policy| !policy.is_null()) else {
        return;
    };
    let supported: &[&str] = if is_unset(spec.get("podFailurePolicy")) {
        &["Failed", "TerminatingOrFailed"]
    } else {
        &["Failed"]
    };
    errors.one_of(format!("{path}.podReplacementPolicy"), policy, supported);
}

fn validate_failure_policy(spec: &Value, path: &str, errors: &mut Errors) {
    let path = format!("{path}.podFailurePolicy.rules");
    let rules = items_at(spec, "/podFailurePolicy/rules");
    if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(&path, rules.len(), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let action = rule.get("action").unwrap_or(&Value::Null);
        let field = format!("{path}.action");
        if text_at(rule, "/action").is_empty() {
            let detail = "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]";
            errors.push(FieldError::required(&field, detail));
        } else if action == "FailIndex" && is_unset(spec.get("backoffLimitPerIndex")) {
            errors.invalid(&field, action, "requires the backoffLimitPerIndex to be set");
        } else {
            errors.one_of(&field, action, &["Count", "FailIndex", "FailJob", "Ignore"]);
        }
        let has_codes = !is_unset(rule.get("onExitCodes"));
        let has_patterns = !items_at(rule, "/onPodConditions").is_empty();
        if has_codes == has_patterns {
            let detail = if has_codes {
                "specifying both OnExitCodes and OnPodConditions is not supported"
            } else {
                "specifying one of OnExitCodes and OnPodConditions is required"
            };
            errors.invalid(&path, rule, detail);
        }
        if has_codes {
            validate_exit_codes(spec, rule, &format!("{path}.onExitCodes"), errors);
        }
        validate_patterns(rule, &format!("{path}.onPodConditions"), errors);
    }
}

fn validate_exit_codes(spec: &Value, rule: &Value, path: &str, errors: &mut Errors) {
    let operator = rule.pointer("/onExitCodes/operator").unwrap_or(&Value::Null);
    errors.one_of(format!("{path}.operator"), operator, &["In", "NotIn"]);
    let container = text_at(rule, "/onExitCodes/containerName");
    let is_known =
        |list: &str| items_at(spec, list).iter().any(|c| text_at(c, "/name") == container);
    if !container.is_empty()
        && !is_known("/template/spec/containers")
        && !is_known("/template/spec/initContainers")
    {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.invalid(format!("{path}.containerName"), &json!(container), detail);
    }
    let values = items_at(rule, "/onExitCodes/values");
    if values.is_empty() {
        errors.invalid(format!("{path}.values"), &json!(values), "at least one value is required");
    } else if values.len() > EXIT_CODES_MAX {
        errors.push(FieldError::too_many(format!("{path}.values"), values.len(), EXIT_CODES_MAX));
    }
    let numbers: Vec<i64> = values.iter().filter_map(Value::as_i64).collect();
    for (at, number) in numbers.iter().enumerate() {
        let field = format!("{path}.values[{at}]");
        if numbers.iter().take(at).any(|earlier| earlier == number) {
            errors.duplicate(field, &json!(number));
        } else if *number == 0 && operator == "In" {
            errors.invalid(field, &json!(0), "must not be 0 for the In operator");
        }
    }
    if !numbers.is_sorted() {
        errors.invalid(format!("{path}.values"), &json!(values), "must be ordered");
    }
}

fn validate_patterns(rule: &Value, path: &str, errors: &mut Errors) {
    let patterns = items_at(rule, "/onPodConditions");
    if patterns.len() > PATTERNS_MAX {
        errors.push(FieldError::too_many(path, patterns.len(), PATTERNS_MAX));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        let condition = text_at(pattern, "/type");
        if names::check_qualified_name(condition).is_err() {
            let detail = "must be a qualified name";
            errors.invalid(format!("{path}[{index}].type"), &json!(condition), detail);
        }
        let status = pattern.get("status").unwrap_or(&Value::Null);
        errors.one_of(format!("{path}[{index}].status"), status, &["False", "True", "Unknown"]);
    }
}

fn validate_success_policy(spec: &Value, path: &str, errors: &mut Errors) {
    let path = format!("{path}.successPolicy");
    if !is_indexed(spec) {
        let policy = spec.get("successPolicy").unwrap_or(&Value::Null);
        errors.invalid(&path, policy, "requires indexed completion mode");
        return;
    }
    let rules = items_at(spec, "/successPolicy/rules");
    if rules.is_empty() {
        errors.push(FieldError::required(
            format!("{path}.rules"),
            "at least one rules must be specified when the successPolicy is specified",
        ));
    } else if rules.len() > RULES_MAX {
        errors.push(FieldError::too_many(format!("{path}.rules"), rules.len(), RULES_MAX));
    }
    let completions = int_at(spec, "/completions").unwrap_or(0);
    for (index, rule) in rules.iter().enumerate() {
        let path = format!("{path}.rules[{index}]");
        let count = int_at(rule, "/succeededCount");
        let text = rule.get("succeededIndexes").and_then(Value::as_str);
        if count.is_none() && text.is_none() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(FieldError::required(&path, detail));
        }
        let mut most = completions;
        if let Some(text) = text {
            match Indexes::parse(text, u32::try_from(completions).unwrap_or(0)) {
                Ok(indexes) => most = i64::try_from(indexes.len()).unwrap_or(i64::MAX),
                Err(err) => {
                    let detail = format!("error parsing succeededIndexes: {err}");
                    errors.invalid(format!("{path}.succeededIndexes"), &json!(text), &detail);
                }
            }
        }
        if let Some(count) = count {
            let field = format!("{path}.succeededCount");
            if count < 0 {
                errors.invalid(field, &json!(count), NOT_NEGATIVE);
            } else if count > most {
                let detail = format!(
                    "must be less than or equal to {most} (the number of specified completions or succeededIndexes)"
                );
                errors.invalid(field, &json!(count), &detail);
            }
        }
    }
}

#[cfg(test)]
#[path = "job_rules_test.rs"]
mod tests;
