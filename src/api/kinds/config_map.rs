//! ConfigMap.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{is_true, len_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "configmaps",
    singular: "configmap",
    kind: "ConfigMap",
    list_kind: "ConfigMapList",
    description: "Configuration that pods read.",
    short_names: &["cm"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::integer("Data"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy { validate_update: immutable, cells, ..Strategy::plain(typed::<ConfigMap>) },
};

/// What is marked as immutable stays as it is.
pub(super) fn immutable(old: &Value, new: &Value, errors: &mut Errors) {
    if !is_true(old, "/immutable") {
        return;
    }
    for key in ["data", "binaryData", "immutable"] {
        if old.get(key) != new.get(key) {
            errors.forbidden(key, "field is immutable when `immutable` is set");
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = len_at(object, "/data") + len_at(object, "/binaryData");
    vec![json!(meta::name(object)), json!(count), json!(age(object, now))]
}
