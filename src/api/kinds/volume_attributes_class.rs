//! VolumeAttributesClass.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{entries_at, len_at, text_at};
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "storage.k8s.io",
    version: "v1",
    plural: "volumeattributesclasses",
    singular: "volumeattributesclass",
    kind: "VolumeAttributesClass",
    list_kind: "VolumeAttributesClassList",
    description: "What a volume can be changed to while it is there.",
    short_names: &["vac"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("DriverName"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<VolumeAttributesClass>)
    },
};

/// Parameters of a class, and bytes of all of them.
const PARAMETERS_MAX: usize = 512;
const PARAMETERS_BYTES_MAX: usize = 256 * 1024;

fn validate(object: &Value, errors: &mut Errors) {
    let driver = text_at(object, "/driverName");
    if driver.is_empty() {
        errors.required("driverName");
    } else if let Err(rule) = names::check_qualified_name(&driver.to_lowercase()) {
        errors.invalid("driverName", &json!(driver), rule);
    }
    let count = len_at(object, "/parameters");
    if count > PARAMETERS_MAX {
        errors.push(FieldError::too_many("parameters", count, PARAMETERS_MAX));
        return;
    }
    let mut bytes = 0_usize;
    for (key, value) in entries_at(object, "/parameters") {
        if key.is_empty() {
            errors.invalid("parameters", &json!(key), "field can not be empty.");
        }
        bytes += key.len() + text_at(value, "").len();
    }
    if bytes > PARAMETERS_BYTES_MAX {
        errors.push(FieldError::too_long("parameters", PARAMETERS_BYTES_MAX));
    }
    if count == 0 {
        errors.required_because("parameters", "must contain at least one key/value pair");
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    for key in ["driverName", "parameters"] {
        if old.get(key) != new.get(key) {
            errors.forbidden(key, &format!("updates to {key} are forbidden."));
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(meta::name(object)), json!(text_at(object, "/driverName")), json!(age(object, now))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_class_of_attributes_has_a_driver_and_parameters_that_stay() {
        let class = |driver: &str, parameters: Value| json!({"driverName": driver, "parameters": parameters});
        let good = class("Disk.example.com", json!({"iops": "100"}));
        assert_eq!(texts(|errors| validate(&good, errors)), Vec::<String>::new());
        let many: serde_json::Map<String, Value> =
            (0..513).map(|number| (format!("k{number}"), json!("v"))).collect();
        for (class, wanted) in [
            (class("", json!({"k": "v"})), "driverName: Required value"),
            (class("a b", json!({"k": "v"})), "driverName: Invalid value: \"a b\""),
            (class("d", json!({})), "parameters: Required value: must contain at least one"),
            (class("d", json!({"": "v"})), "parameters: Invalid value: \"\""),
            (class("d", json!({"k": "x".repeat(256 * 1024)})), "parameters: Too long"),
            (class("d", json!(many)), "parameters: Too many: 513"),
        ] {
            let found = texts(|errors| validate(&class, errors));
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{wanted} in {found:?}");
        }
        let other = class("other", json!({"iops": "200"}));
        assert_eq!(
            texts(|errors| validate_update(&good, &other, errors)),
            [
                "driverName: Forbidden: updates to driverName are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden.",
            ]
        );
    }
}
