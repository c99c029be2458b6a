//! What Kubernetes refuses in a pod's placement, in its words.

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
        (json!({}), format!("{path}: Required value: must have at least one node selector term")),
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
            format!("{first}.operator: Invalid value: \"Equals\": not a valid selector operator"),
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
}

#[test]
fn mistakes_in_node_fields_and_weights_are_told_in_kubernetes_words() {
    let path = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
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
        [format!("{first}.key: Invalid value: \"metadata.uid\": not a valid field selector key")]
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
        assert_eq!(found, [format!("{path}: Invalid value: {weight}: must be in the range 1-100")]);
    }
}

#[test]
fn mistakes_in_pod_affinity_are_told_in_kubernetes_words() {
    let required =
        |term: &Value| errors(&json!({ "affinity": { "podAntiAffinity": { REQUIRED: [term] } } }));
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
        [none("matchLabelKeys: Forbidden: must not be specified when labelSelector is not set")]
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
    let good = json!({ "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule" });
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
