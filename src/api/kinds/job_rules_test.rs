use serde_json::{Value, json};

use super::*;
use crate::api::kinds::job::created;

fn refusals(spec: &Value) -> Vec<String> {
    let object = created(spec);
    let mut errors = Errors::default();
    validate(&object, &mut errors);
    validate_create(&object, &mut errors);
    errors.into_vec().iter().map(ToString::to_string).collect()
}

#[test]
fn jobs_that_are_right_are_taken() {
    for spec in [
        json!({}),
        json!({"parallelism": 3, "template": {"spec": {"restartPolicy": "OnFailure"}}}),
        json!({"completions": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
            "maxFailedIndexes": 2, "managedBy": "example.com/other"}),
        json!({"completions": 3, "completionMode": "Indexed", "successPolicy": {"rules": [
            {"succeededIndexes": "0,2", "succeededCount": 1}, {"succeededCount": 2}]}}),
        json!({"podFailurePolicy": {"rules": [
            {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [1, 42]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}}),
    ] {
        assert_eq!(refusals(&spec), Vec::<String>::new(), "{spec}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn what_is_wrong_is_named_by_its_path() {
    let indexed = |more: Value| {
        let mut spec = json!({"completions": 3, "completionMode": "Indexed"});
        json_patch::merge(&mut spec, &more);
        spec
    };
    let rule = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let codes = |codes: Value| rule(json!({"action": "FailJob", "onExitCodes": codes}));
    for (spec, part) in [
        (json!({"backoffLimit": -1}), "spec.backoffLimit: Invalid value: -1: must be greater"),
        (
            json!({"template": {"spec": {"restartPolicy": "Always"}}}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (json!({"completionMode": "Some"}), "spec.completionMode: Unsupported value"),
        (
            json!({"completionMode": "Indexed", "completions": null, "parallelism": 2}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            json!({"backoffLimitPerIndex": 1}),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed",
        ),
        (indexed(json!({"maxFailedIndexes": 1})), "spec.backoffLimitPerIndex: Required value"),
        (
            indexed(json!({"maxFailedIndexes": 4, "backoffLimitPerIndex": 1})),
            "must be less than or equal to completions",
        ),
        (indexed(json!({"parallelism": 100_001})), "spec.parallelism: Invalid value"),
        (
            indexed(json!({"completions": 100_001, "backoffLimitPerIndex": 1})),
            "spec.maxFailedIndexes: Required value",
        ),
        (json!({"podReplacementPolicy": "Never"}), "spec.podReplacementPolicy: Unsupported value"),
        (
            json!({"podReplacementPolicy": "TerminatingOrFailed", "podFailurePolicy": {"rules": []}}),
            "supported values: \"Failed\"",
        ),
        (
            json!({"podFailurePolicy": {"rules": []}, "template": {"spec": {"restartPolicy": "OnFailure"}}}),
            "only \"Never\" is supported",
        ),
        (rule(json!({"action": "FailJob"})), "specifying one of"),
        (
            rule(json!({"action": "FailIndex", "onPodConditions": [{"type": "A"}]})),
            "requires the backoffLimitPerIndex",
        ),
        (codes(json!({"operator": "In", "values": [0]})), "must not be 0"),
        (codes(json!({"operator": "In", "values": [2, 1]})), "must be ordered"),
        (codes(json!({"operator": "Is", "values": [1]})), "operator: Unsupported value"),
        (
            codes(json!({"operator": "In", "values": [1], "containerName": "x"})),
            "containerName: Invalid value",
        ),
        (
            json!({"successPolicy": {"rules": [{"succeededCount": 1}]}}),
            "spec.successPolicy: Invalid value",
        ),
        (indexed(json!({"successPolicy": {"rules": []}})), "at least one rules must be specified"),
        (indexed(json!({"successPolicy": {"rules": [{}]}})), "at least one of succeededCount"),
        (
            indexed(json!({"successPolicy": {"rules": [{"succeededIndexes": "3"}]}})),
            "error parsing succeededIndexes",
        ),
        (
            indexed(
                json!({"successPolicy": {"rules": [{"succeededIndexes": "0,1", "succeededCount": 3}]}}),
            ),
            "less than or equal to 2",
        ),
        (json!({"managedBy": "plain"}), "domain-prefixed path"),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}}}),
            "`selector` not auto-generated",
        ),
        (json!({"manualSelector": true}), "spec.selector: Required value"),
        (
            json!({"template": {"metadata": {"labels": {"job-name": "other"}}}}),
            "spec.template.metadata.labels[job-name]",
        ),
    ] {
        let found = refusals(&spec).join("\n");
        assert!(found.contains(part), "{part:?} not in {found:?}");
    }
}

#[test]
fn the_pods_of_an_indexed_job_have_host_names() {
    let mut job = created(&json!({"completions": 10, "completionMode": "Indexed"}));
    meta::set_name(&mut job, &"x".repeat(62));
    let mut errors = Errors::default();
    validate(&job, &mut errors);
    assert!(errors.into_vec()[0].to_string().starts_with("metadata.name: Invalid value"));
}
