//! ResourceClaimTemplate.

use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use serde_json::Value;

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::kinds::{device_requests, pod_placement};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "resource.k8s.io",
    version: "v1",
    plural: "resourceclaimtemplates",
    singular: "resourceclaimtemplate",
    kind: "ResourceClaimTemplate",
    list_kind: "ResourceClaimTemplateList",
    description: "What claims of devices are made from: one for each pod that names the template.",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        validate_update,
        ..Strategy::plain(typed::<ResourceClaimTemplate>)
    },
};

fn default(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").and_then(|spec| spec.get_mut("spec")) {
        device_requests::default(spec);
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let spec = object.pointer("/spec/spec").unwrap_or(&Value::Null);
    device_requests::validate(spec, "spec.spec", errors);
    if let Some(labels) = object.pointer("/spec/metadata/labels") {
        pod_placement::check_labels(labels, "spec.metadata.labels", errors);
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let mut before = old.clone();
    default(&mut before);
    if before.get("spec") != new.get("spec") {
        errors.invalid("spec", new.get("spec").unwrap_or(&Value::Null), "field is immutable");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_claims_are_made_from_is_checked_and_stays() {
        let fields = |old: &Value, new: &Value| {
            let mut errors = Errors::default();
            validate(new, &mut errors);
            validate_update(old, new, &mut errors);
            errors.into_vec().into_iter().map(|error| error.field).collect::<Vec<_>>()
        };
        let old = json!({"spec": {"metadata": {"labels": {"a": "b"}}, "spec": {"devices":
            {"requests": [{"name": "a", "exactly": {"deviceClassName": "x"}}]}}}});
        let mut good = old.clone();
        default(&mut good);
        assert_eq!(good["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"], 1);
        assert_eq!(fields(&old, &good), Vec::<String>::new());
        let mut bad = good.clone();
        bad["spec"]["metadata"]["labels"]["a"] = json!("b c");
        bad["spec"]["spec"]["devices"]["requests"][0]["name"] = json!("A");
        let wanted = ["spec.spec.devices.requests[0].name", "spec.metadata.labels", "spec"];
        assert_eq!(fields(&good, &bad), wanted);
    }
}
