//! VolumeAttachment.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{entries_at, is_empty, is_true, items_at, set, str_at, text_at};
use crate::api::kinds::csi_driver::validate_name;
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "storage.k8s.io",
    version: "v1",
    plural: "volumeattachments",
    singular: "volumeattachment",
    kind: "VolumeAttachment",
    list_kind: "VolumeAttachmentList",
    description: "The wish to attach a volume to a node.",
    short_names: &[],
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
        Column::text("Attacher"),
        Column::text("PV"),
        Column::text("Node"),
        Column::boolean("Attached"),
        Column::AGE,
    ],
    field_selectors: &[],
    strategy: Strategy {
        prepare_create: |object| set(object, "status", json!({ "attached": false })),
        validate,
        validate_create,
        validate_update,
        cells,
        ..Strategy::plain(typed::<VolumeAttachment>)
    },
};

/// Bytes of what an attacher tells of the attached volume.
const METADATA_BYTES_MAX: usize = 256 * 1024;
/// Bytes of the message of an error.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Where the name of the volume stands.
const VOLUME_NAME: &str = "/spec/source/persistentVolumeName";

fn validate(object: &Value, errors: &mut Errors) {
    if text_at(object, "/spec/attacher").is_empty() {
        errors.required("spec.attacher");
    }
    validate_source(object.pointer("/spec/source").unwrap_or(&Value::Null), errors);
    let node = text_at(object, "/spec/nodeName");
    if let Err(rule) = names::check_dns1123_subdomain(node) {
        errors.invalid("spec.nodeName", &json!(node), rule);
    }
    validate_status(object, errors);
}

fn validate_source(source: &Value, errors: &mut Errors) {
    let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let given = |key: &str| source.get(key).filter(|value| !value.is_null());
    match (given("persistentVolumeName"), given("inlineVolumeSpec")) {
        (None, None) => errors.required_because("spec.source", detail),
        (Some(_), Some(_)) => errors.forbidden("spec.source", detail),
        (Some(name), None) if is_empty(Some(name)) => errors.required_because(
            "spec.source.persistentVolumeName",
            "must specify non empty persistentVolumeName",
        ),
        (Some(_), None) => {}
        (None, Some(volume)) => validate_inline(volume, errors),
    }
}

/// Checks a volume that has no object of its own.
fn validate_inline(volume: &Value, errors: &mut Errors) {
    let path = "spec.source.inlineVolumeSpec";
    for key in ["claimRef", "capacity"] {
        if !is_empty(volume.get(key)) {
            let detail = "may not be specified in the context of inline volumes";
            errors.forbidden(format!("{path}.{key}"), detail);
        }
    }
    if items_at(volume, "/accessModes").is_empty() {
        errors.required(format!("{path}.accessModes"));
    }
    let Some(csi) = volume.get("csi").filter(|csi| csi.is_object()) else {
        let detail = "has to be specified in the context of inline volumes";
        return errors.required_because(format!("{path}.csi"), detail);
    };
    validate_name(text_at(csi, "/driver"), &format!("{path}.csi.driver"), errors);
    if text_at(csi, "/volumeHandle").is_empty() {
        errors.required(format!("{path}.csi.volumeHandle"));
    }
}

fn validate_status(object: &Value, errors: &mut Errors) {
    let told = entries_at(object, "/status/attachmentMetadata");
    let bytes: usize = told.map(|(key, value)| key.len() + text_at(value, "").len()).sum();
    if bytes > METADATA_BYTES_MAX {
        errors.push(FieldError::too_long("status.attachmentMetadata", METADATA_BYTES_MAX));
    }
    for key in ["attachError", "detachError"] {
        let Some(error) = object.pointer(&format!("/status/{key}")) else { continue };
        if text_at(error, "/message").len() > MESSAGE_BYTES_MAX {
            let field = format!("status.{key}.message");
            errors.push(FieldError::too_long(field, MESSAGE_BYTES_MAX));
        }
        let code = error.get("errorCode").unwrap_or(&Value::Null);
        if code.as_i64().is_some_and(|code| code < 0) {
            let detail = "must be between 0 and 2147483647, inclusive";
            errors.invalid(format!("status.{key}.errorCode"), code, detail);
        }
    }
}

/// Names that an earlier version took may stay.
fn validate_create(object: &Value, errors: &mut Errors) {
    let attacher = text_at(object, "/spec/attacher");
    if !attacher.is_empty() {
        validate_name(attacher, "spec.attacher", errors);
    }
    if let Some(name) = str_at(object, VOLUME_NAME).filter(|name| !name.is_empty())
        && let Err(rule) = names::check_dns1123_subdomain(name)
    {
        errors.invalid("spec.source.persistentVolumeName", &json!(name), rule);
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if old.get("spec") != new.get("spec") {
        errors.invalid("spec", new.get("spec").unwrap_or(&Value::Null), "field is immutable");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/attacher")),
        json!(text_at(object, VOLUME_NAME)),
        json!(text_at(object, "/spec/nodeName")),
        json!(is_true(object, "/status/attached")),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(source: Value) -> Value {
        json!({"metadata": {"name": "a"},
            "spec": {"attacher": "d.example.com", "nodeName": "n", "source": source}})
    }

    fn texts(object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(object, &mut errors);
        validate_create(object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_attachment_is_of_one_volume_to_one_node_by_one_driver() {
        assert_eq!(texts(&attachment(json!({"persistentVolumeName": "v"}))), Vec::<String>::new());
        let inline = json!({"accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "d.example.com", "volumeHandle": "h"}});
        assert_eq!(texts(&attachment(json!({"inlineVolumeSpec": inline}))), Vec::<String>::new());
        for (source, wanted) in [
            (json!({}), "spec.source: Required value: must specify exactly one"),
            (
                json!({"persistentVolumeName": "v", "inlineVolumeSpec": inline}),
                "spec.source: Forbidden: must specify exactly one",
            ),
            (
                json!({"persistentVolumeName": ""}),
                "spec.source.persistentVolumeName: Required value: must specify non empty",
            ),
            (
                json!({"persistentVolumeName": "V!"}),
                "spec.source.persistentVolumeName: Invalid value: \"V!\"",
            ),
        ] {
            let found = texts(&attachment(source));
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{wanted} in {found:?}");
        }
        let nothing =
            texts(&json!({"spec": {"source": {"inlineVolumeSpec": {"claimRef": {"name": "c"}}}}}));
        let fields: Vec<_> = nothing.iter().filter_map(|text| text.split(':').next()).collect();
        assert_eq!(
            fields,
            [
                "spec.attacher",
                "spec.source.inlineVolumeSpec.claimRef",
                "spec.source.inlineVolumeSpec.accessModes",
                "spec.source.inlineVolumeSpec.csi",
                "spec.nodeName",
            ]
        );
    }

    #[test]
    fn what_an_attacher_tells_has_bounds() {
        let mut told = attachment(json!({"persistentVolumeName": "v"}));
        told["status"] = json!({"attached": true, "attachmentMetadata": {"k": "x".repeat(1000)},
            "attachError": {"message": "x".repeat(1024), "errorCode": 0}});
        assert_eq!(texts(&told), Vec::<String>::new());
        assert_eq!(cells(&told, Timestamp::UNIX_EPOCH)[4], true);
        told["status"] = json!({"attachmentMetadata": {"k": "x".repeat(METADATA_BYTES_MAX)},
            "detachError": {"message": "x".repeat(1025), "errorCode": -1}});
        let found = texts(&told);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("status.attachmentMetadata: Too long"), "{found:?}");
        assert!(found[1].starts_with("status.detachError.message: Too long"), "{found:?}");
        assert!(found[2].starts_with("status.detachError.errorCode: Invalid"), "{found:?}");
    }
}
