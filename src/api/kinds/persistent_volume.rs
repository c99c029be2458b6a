//! PersistentVolume.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{child, items_at, set, set_default, set_default_text, text_at};
use crate::api::local_volume::VOLUME_FINALIZER;
use crate::api::meta;
use crate::api::quantity;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    kind: "PersistentVolume",
    list_kind: "PersistentVolumeList",
    description: "Storage that outlives pods.",
    short_names: &["pv"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("Reclaim Policy"),
        Column::text("Status"),
        Column::text("Claim"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::text("Reason"),
        Column::AGE,
        Column::wide("VolumeMode"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        prepare_create: |object| {
            protect(object, VOLUME_FINALIZER);
            set(object, "status", json!({ "phase": "Pending" }));
        },
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<PersistentVolume>)
    },
};

/// Shown where nothing is set.
const UNSET: &str = "<unset>";
/// Fields of the spec that are no source of the volume.
const NO_SOURCE: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// Adds a finalizer at creation, as Kubernetes' admission does.
pub(super) fn protect(object: &mut Value, finalizer: &str) {
    let mut list: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
    if !list.iter().any(|had| had == finalizer) {
        list.push(finalizer.to_owned());
        meta::set_field(object, "finalizers", json!(list));
    }
}

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    set_default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
    set_default_text(spec, "volumeMode", "Filesystem");
    if let Some(host) = spec.get_mut("hostPath").filter(|host| host.is_object()) {
        set_default(host, "type", "");
    }
}

fn sources(object: &Value) -> Vec<(&String, &Value)> {
    let spec = object.get("spec").and_then(Value::as_object);
    let fields = spec.into_iter().flatten();
    fields.filter(|(key, value)| !NO_SOURCE.contains(&key.as_str()) && !value.is_null()).collect()
}

fn validate(object: &Value, errors: &mut Errors) {
    validate_modes(object, errors);
    validate_amount(object, "/spec/capacity/storage", "spec.capacity[storage]", errors);
    match sources(object).len() {
        0 => errors.required("spec"),
        1 => {}
        _ => errors.forbidden("spec", "may not specify more than 1 volume type"),
    }
    let policy = object.pointer("/spec/persistentVolumeReclaimPolicy").unwrap_or(&Value::Null);
    let field = "spec.persistentVolumeReclaimPolicy";
    errors.one_of(field, policy, &["Delete", "Recycle", "Retain"]);
    if object.pointer("/spec/local").is_some_and(Value::is_object)
        && items_at(object, "/spec/nodeAffinity/required/nodeSelectorTerms").is_empty()
    {
        errors.required("spec.nodeAffinity");
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if sources(old) != sources(new) {
        errors.forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        );
    }
}

/// Checks `spec.accessModes` of a volume or claim.
pub(super) fn validate_modes(object: &Value, errors: &mut Errors) {
    let modes = items_at(object, "/spec/accessModes");
    if modes.is_empty() {
        errors.required("spec.accessModes");
    }
    for (at, mode) in modes.iter().enumerate() {
        let known = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
        errors.one_of(format!("spec.accessModes[{at}]"), mode, &known);
    }
}

/// Checks an amount of storage.
pub(super) fn validate_amount(object: &Value, pointer: &str, field: &str, errors: &mut Errors) {
    let amount = object.pointer(pointer).unwrap_or(&Value::Null);
    let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
    match (amount.is_null(), quantity::parse_bytes(&text)) {
        (true, _) => errors.required(field),
        (false, Ok(bytes)) if bytes > 0 => {}
        (false, _) => errors.invalid(field, amount, "must be greater than zero"),
    }
}

/// `RWO,ROX`: access modes as kubectl shows them.
pub(super) fn short_modes(object: &Value, pointer: &str) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let modes: Vec<&str> =
        items_at(object, pointer).iter().filter_map(Value::as_str).map(short).collect();
    modes.join(",")
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match text_at(object, "/spec/claimRef/name") {
        "" => String::new(),
        name => format!("{}/{name}", text_at(object, "/spec/claimRef/namespace")),
    };
    let or_unset = |text: &str| if text.is_empty() { UNSET.to_owned() } else { text.to_owned() };
    let status = if meta::deletion_timestamp(object).is_some() {
        "Terminating"
    } else {
        text_at(object, "/status/phase")
    };
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/capacity/storage")),
        json!(short_modes(object, "/spec/accessModes")),
        json!(text_at(object, "/spec/persistentVolumeReclaimPolicy")),
        json!(status),
        json!(claim),
        json!(text_at(object, "/spec/storageClassName")),
        json!(or_unset(text_at(object, "/spec/volumeAttributesClassName"))),
        json!(text_at(object, "/status/reason")),
        json!(age(object, now)),
        json!(or_unset(text_at(object, "/spec/volumeMode"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(volume: &Value) -> String {
        let mut errors = Errors::default();
        validate(volume, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_volume_has_one_source_a_size_and_a_place() {
        let good = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/srv"}}});
        assert_eq!(errors(&good), "");
        let mut two = good.clone();
        two["spec"]["local"] = json!({"path": "/x"});
        let found = errors(&two);
        assert!(found.contains("may not specify more than 1 volume type"), "{found}");
        assert!(found.contains("spec.nodeAffinity: Required value"), "{found}");
        let none = json!({"spec": {"accessModes": ["Any"], "capacity": {"storage": "0"},
            "persistentVolumeReclaimPolicy": "Keep"}});
        for part in [
            "accessModes[0]: Unsupported value",
            "capacity[storage]: Invalid",
            "spec: Required",
            "ReclaimPolicy: Unsupported",
        ] {
            assert!(errors(&none).contains(part), "{part} in {}", errors(&none));
        }
    }

    #[test]
    fn a_row_is_as_kubectl_prints_it() {
        let volume = json!({"metadata": {"name": "v"}, "status": {"phase": "Bound"}, "spec": {
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "local-path",
            "claimRef": {"namespace": "shop", "name": "data"}, "volumeMode": "Filesystem"}});
        let row = cells(&volume, Timestamp::UNIX_EPOCH);
        assert_eq!(
            row[..9],
            ["v", "1Gi", "RWO,ROX", "Delete", "Bound", "shop/data", "local-path", "<unset>", ""]
        );
    }
}
