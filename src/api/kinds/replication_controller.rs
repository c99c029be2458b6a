//! ReplicationController: what ReplicaSet was before it had a selector with operators.

use k8s_openapi::api::core::v1::ReplicationController;
use serde_json::Value;

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{entries_at, is_empty, set, set_default};
use crate::api::kinds::{pod_spec, replica_set, workload};
use crate::api::resource::{Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    kind: "ReplicationController",
    list_kind: "ReplicationControllerList",
    description: "Keeps a number of equal pods; ReplicaSet and Deployment are its successors.",
    short_names: &["rc"],
    strategy: Strategy {
        default,
        validate,
        validate_update: |_, _, _| {},
        decode: typed::<ReplicationController>,
        ..replica_set::RESOURCE.strategy
    },
    ..replica_set::RESOURCE
};

fn default(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_default();
    let is_unlabeled = is_empty(object.pointer("/metadata/labels"));
    if let (true, true, Some(meta)) = (is_unlabeled, labels.is_object(), object.get_mut("metadata"))
    {
        set(meta, "labels", labels.clone());
    }
    let Some(spec) = object.get_mut("spec") else { return };
    set_default(spec, "replicas", 1);
    if is_empty(spec.get("selector")) && labels.is_object() {
        set(spec, "selector", labels);
    }
    if let Some(template) = spec.get_mut("template").filter(|template| template.is_object()) {
        pod_spec::default(template);
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let labels = object.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
    if is_empty(object.pointer("/spec/selector")) {
        errors.required("spec.selector");
    }
    let mut wanted = entries_at(object, "/spec/selector");
    if wanted.any(|(key, value)| labels.get(key) != Some(value)) {
        let detail = "`selector` does not match template `labels`";
        errors.invalid("spec.template.metadata.labels", labels, detail);
    }
    if object.pointer("/spec/template").is_none_or(Value::is_null) {
        return errors.required("spec.template");
    }
    workload::validate_template(object, errors);
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn controller(selector: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "web"}, "spec": {
            "selector": selector,
            "template": {"metadata": {"labels": {"a": "b", "c": "d"}},
                "spec": {"containers": [{"name": "x", "image": "y"}]}},
        }});
        default(&mut object);
        object
    }

    #[test]
    fn selector_and_labels_are_the_templates_unless_given() {
        let object = controller(&Value::Null);
        let labels = json!({"a": "b", "c": "d"});
        assert_eq!(object.pointer("/spec/selector"), Some(&labels));
        assert_eq!(object.pointer("/metadata/labels"), Some(&labels));
        assert_eq!(object.pointer("/spec/replicas"), Some(&json!(1)));
        let given = controller(&json!({"a": "b"}));
        assert_eq!(given.pointer("/spec/selector"), Some(&json!({"a": "b"})));
    }

    #[test]
    fn the_selector_must_match_the_template_and_is_shown_as_text() {
        let texts = |object: &Value| {
            let mut errors = Errors::default();
            validate(object, &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(&controller(&json!({"a": "b"}))), Vec::<String>::new());
        assert!(texts(&controller(&json!({"a": "x"})))[0].contains("does not match template"));
        assert!(!texts(&json!({"spec": {}})).is_empty());
        let row = (RESOURCE.strategy.cells)(&controller(&Value::Null), Timestamp::UNIX_EPOCH);
        assert_eq!(row[5..], [json!("x"), json!("y"), json!("a=b,c=d")]);
        let scale = crate::api::scale::get(&RESOURCE, &controller(&json!({"a": "b"})));
        assert_eq!(scale.pointer("/status/selector"), Some(&json!("a=b")));
    }
}
