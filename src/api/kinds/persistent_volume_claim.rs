//! PersistentVolumeClaim.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{child, is_unset, remove, set, set_default_text, text_at};
use crate::api::kinds::persistent_volume::{protect, short_modes, validate_amount, validate_modes};
use crate::api::local_volume::CLAIM_FINALIZER;
use crate::api::meta;
use crate::api::quantity;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    kind: "PersistentVolumeClaim",
    list_kind: "PersistentVolumeClaimList",
    description: "A wish for storage that outlives pods.",
    short_names: &["pvc"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Volume"),
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::AGE,
        Column::wide("VolumeMode"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        prepare_create: |object| {
            protect(object, CLAIM_FINALIZER);
            set(object, "status", json!({ "phase": "Pending" }));
        },
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<PersistentVolumeClaim>)
    },
};

/// Shown where nothing is set.
const UNSET: &str = "<unset>";
/// Where the amount asked for stands.
const AMOUNT: &str = "/spec/resources/requests/storage";

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default_text(spec, "volumeMode", "Filesystem");
}

fn validate(object: &Value, errors: &mut Errors) {
    validate_modes(object, errors);
    validate_amount(object, AMOUNT, "spec.resources[storage]", errors);
}

/// The spec stays, but for the binding itself, a class that was left open, and, once there is a volume
/// that can grow, a larger size.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let is_bound = text_at(new, "/status/phase") == "Bound";
    let fixed = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        for open in ["volumeName", "storageClassName"] {
            if is_unset(old.pointer(&format!("/spec/{open}"))) {
                remove(&mut spec, open);
            }
        }
        let requests = spec.pointer_mut("/resources/requests").filter(|_| is_bound);
        if let Some(requests) = requests {
            remove(requests, "storage");
        }
        spec
    };
    if fixed(old) != fixed(new) {
        errors.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let amount = |object: &Value| quantity::parse_bytes(text_at(object, AMOUNT)).unwrap_or(0);
    if is_bound && amount(new) < amount(old) {
        errors.forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        );
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let phase = if meta::deletion_timestamp(object).is_some() {
        "Terminating"
    } else {
        text_at(object, "/status/phase")
    };
    let volume = text_at(object, "/spec/volumeName");
    let (capacity, modes) = if volume.is_empty() {
        (String::new(), String::new())
    } else {
        let capacity = text_at(object, "/status/capacity/storage").to_owned();
        (capacity, short_modes(object, "/status/accessModes"))
    };
    let or_unset = |text: &str| if text.is_empty() { UNSET.to_owned() } else { text.to_owned() };
    vec![
        json!(meta::name(object)),
        json!(phase),
        json!(volume),
        json!(capacity),
        json!(modes),
        json!(text_at(object, "/spec/storageClassName")),
        json!(or_unset(text_at(object, "/spec/volumeAttributesClassName"))),
        json!(age(object, now)),
        json!(or_unset(text_at(object, "/spec/volumeMode"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(more: Value) -> Value {
        let mut claim = json!({"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": "1Gi"}}}});
        if let (Some(spec), Some(more)) = (claim["spec"].as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        claim
    }

    fn refused(old: &Value, new: &Value) -> usize {
        let mut errors = Errors::default();
        validate_update(old, new, &mut errors);
        errors.into_vec().len()
    }

    #[test]
    fn only_the_binding_an_open_class_and_a_larger_size_may_come_later() {
        let open = claim(json!({}));
        let bound = claim(json!({"volumeName": "pv", "storageClassName": "fast"}));
        assert_eq!(refused(&open, &bound), 0);
        assert_eq!(
            refused(&bound, &claim(json!({"volumeName": "other", "storageClassName": "fast"}))),
            1
        );
        assert_eq!(refused(&open, &claim(json!({"accessModes": ["ReadOnlyMany"]}))), 1);
        let sized = |size: &str| claim(json!({"resources": {"requests": {"storage": size}}}));
        assert_eq!(refused(&open, &sized("2Gi")), 1, "there is no volume yet that could grow");
        assert_eq!(refused(&open, &sized("1Mi")), 1);
        let bound = |size: &str| {
            let mut claim = sized(size);
            claim["status"] = json!({"phase": "Bound"});
            claim
        };
        assert_eq!(refused(&bound("1Gi"), &bound("2Gi")), 0);
        assert_eq!(refused(&bound("1Gi"), &bound("1Mi")), 1);
    }

    #[test]
    fn a_claim_without_size_or_modes_is_refused_and_an_unbound_one_shows_none() {
        let mut errors = Errors::default();
        validate(&json!({"spec": {}}), &mut errors);
        assert_eq!(errors.into_vec().len(), 2);
        let mut pending = claim(json!({"storageClassName": "local-path"}));
        pending["status"] = json!({"phase": "Pending"});
        let row = cells(&pending, Timestamp::UNIX_EPOCH);
        assert_eq!(row[..7], ["data", "Pending", "", "", "", "local-path", "<unset>"]);
    }
}
