//! StorageClass.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{is_true, is_unset, set_default_text, text_at};
use crate::api::local_volume::IS_DEFAULT_CLASS;
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "storage.k8s.io",
    version: "v1",
    plural: "storageclasses",
    singular: "storageclass",
    kind: "StorageClass",
    list_kind: "StorageClassList",
    description: "A way in which storage is made.",
    short_names: &["sc"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Provisioner"),
        Column::text("ReclaimPolicy"),
        Column::text("VolumeBindingMode"),
        Column::text("AllowVolumeExpansion"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy {
        default: |object| {
            set_default_text(object, "reclaimPolicy", "Delete");
            set_default_text(object, "volumeBindingMode", "Immediate");
        },
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<StorageClass>)
    },
};

fn validate(object: &Value, errors: &mut Errors) {
    if text_at(object, "/provisioner").is_empty() {
        errors.required("provisioner");
    }
    let at = |key: &str| object.get(key).cloned().unwrap_or_default();
    errors.one_of("reclaimPolicy", &at("reclaimPolicy"), &["Delete", "Retain"]);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    errors.one_of("volumeBindingMode", &at("volumeBindingMode"), &modes);
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    for key in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        let is_same =
            old.get(key) == new.get(key) || (is_unset(old.get(key)) && is_unset(new.get(key)));
        if !is_same {
            errors.forbidden(key, "updates to this field are forbidden.");
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let is_default = meta::annotation(object, IS_DEFAULT_CLASS) == Some("true");
    let name = meta::name(object);
    let name = if is_default { format!("{name} (default)") } else { name.to_owned() };
    vec![
        json!(name),
        json!(text_at(object, "/provisioner")),
        json!(text_at(object, "/reclaimPolicy")),
        json!(text_at(object, "/volumeBindingMode")),
        json!(is_true(object, "/allowVolumeExpansion")),
        json!(age(object, now)),
    ]
}
