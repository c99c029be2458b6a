//! DeviceClass.

use k8s_openapi::api::resource::v1::DeviceClass;
use serde_json::Value;

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{items_at, text_at};
use crate::api::kinds::device_requests::{CONFIG_MAX, validate_driver_config, validate_selectors};
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};

pub(super) const RESOURCE: Resource = Resource {
    group: "resource.k8s.io",
    version: "v1",
    plural: "deviceclasses",
    singular: "deviceclass",
    kind: "DeviceClass",
    list_kind: "DeviceClassList",
    description: "A kind of device that can be claimed: which devices belong to it, and how they are set up.",
    short_names: &[],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy { validate, ..Strategy::plain(typed::<DeviceClass>) },
};

fn validate(object: &Value, errors: &mut Errors) {
    validate_selectors(object, "/spec/selectors", "spec.selectors", errors);
    let configs = items_at(object, "/spec/config");
    if configs.len() > CONFIG_MAX {
        errors.push(FieldError::too_many("spec.config", configs.len(), CONFIG_MAX));
    }
    for (at, config) in configs.iter().enumerate() {
        validate_driver_config(config, &format!("spec.config[{at}]"), errors);
    }
    let name = text_at(object, "/spec/extendedResourceName");
    if !name.is_empty()
        && let Err(rule) = names::check_qualified_name(name)
    {
        errors.invalid("spec.extendedResourceName", &name.into(), rule);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_selects_by_expressions_that_can_be_read() {
        let mut errors = Errors::default();
        let good = json!({"spec": {
            "selectors": [{"cel": {"expression": "device.driver == 'edgeorc.io'"}}],
            "config": [{"opaque": {"driver": "edgeorc.io", "parameters": {"mode": 1}}}],
        }});
        validate(&good, &mut errors);
        assert!(errors.into_vec().is_empty());
        let mut errors = Errors::default();
        let bad = json!({"spec": {
            "selectors": [{"cel": {"expression": "device."}}, {}],
            "config": [{"opaque": {"driver": "Not A Driver", "parameters": 1}}, {}],
            "extendedResourceName": "a/b/c",
        }});
        validate(&bad, &mut errors);
        let fields: Vec<_> = errors.into_vec().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "spec.selectors[0].cel.expression",
                "spec.selectors[1].cel",
                "spec.config[0].opaque.driver",
                "spec.config[0].opaque.parameters",
                "spec.config[1].opaque",
                "spec.extendedResourceName",
            ]
        );
    }
}
