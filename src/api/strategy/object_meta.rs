//! Rules for `metadata` that hold for every kind.

use serde_json::Value;

use crate::api::field_error::Errors;
use crate::api::json::{entries_at, is_unset, items_at};
use crate::api::meta;
use crate::api::names;
use crate::api::resource::Resource;

/// Bytes of all annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Drops empty maps, empty lists and nulls, so that "not set" has one form.
pub(super) fn tidy(object: &mut Value) {
    let Some(Value::Object(metadata)) = object.get_mut("metadata") else { return };
    metadata.retain(|_, value| !is_unset(Some(value)));
    for key in ["labels", "annotations"] {
        if metadata.get(key).and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
            metadata.shift_remove(key);
        }
    }
    for key in ["finalizers", "ownerReferences"] {
        if metadata.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty) {
            metadata.shift_remove(key);
        }
    }
}

pub(super) fn validate(res: &Resource, object: &Value, errors: &mut Errors) {
    let name = meta::name(object);
    if name.is_empty() {
        if meta::generate_name(object).is_empty() {
            errors.push(crate::api::FieldError::required(
                "metadata.name",
                "name or generateName is required",
            ));
        }
    } else if let Err(rule) = (res.strategy.check_name)(name) {
        errors.invalid("metadata.name", &name.into(), rule);
    }
    validate_namespace(res, object, errors);
    validate_labels(object, "/metadata/labels", "metadata.labels", errors);
    validate_annotations(object, errors);
    for (index, finalizer) in items_at(object, "/metadata/finalizers").iter().enumerate() {
        let text = finalizer.as_str().unwrap_or("");
        if let Err(rule) = names::check_qualified_name(text) {
            errors.invalid(format!("metadata.finalizers[{index}]"), finalizer, rule);
        }
    }
    validate_owners(object, errors);
}

fn validate_namespace(res: &Resource, object: &Value, errors: &mut Errors) {
    let namespace = meta::namespace(object);
    if res.is_namespaced {
        if namespace.is_empty() {
            errors.required("metadata.namespace");
        } else if let Err(rule) = names::check_dns1123_label(namespace) {
            errors.invalid("metadata.namespace", &namespace.into(), rule);
        }
    } else if !namespace.is_empty() {
        errors.forbidden("metadata.namespace", "not allowed on this type");
    }
}

/// Checks the labels at `pointer`; `path` names them.
pub(crate) fn validate_labels(object: &Value, pointer: &str, path: &str, errors: &mut Errors) {
    for (key, value) in entries_at(object, pointer) {
        if let Err(rule) = names::check_qualified_name(key) {
            errors.invalid(path, &key.as_str().into(), rule);
        }
        if let Err(rule) = names::check_label_value(value.as_str().unwrap_or("")) {
            errors.invalid(path, value, rule);
        }
    }
}

fn validate_annotations(object: &Value, errors: &mut Errors) {
    let mut bytes = 0_usize;
    for (key, value) in entries_at(object, "/metadata/annotations") {
        // Annotation keys may have upper case; the rule is otherwise that of labels.
        if let Err(rule) = names::check_qualified_name(&key.to_lowercase()) {
            errors.invalid("metadata.annotations", &key.as_str().into(), rule);
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors
            .push(crate::api::FieldError::too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
}

fn validate_owners(object: &Value, errors: &mut Errors) {
    let mut controllers = 0;
    for (index, owner) in meta::owner_references(object).iter().enumerate() {
        let path = format!("metadata.ownerReferences[{index}]");
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                errors.invalid(format!("{path}.{key}"), &"".into(), "must not be empty");
            }
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            controllers += 1;
        }
    }
    if controllers > 1 {
        errors.invalid(
            "metadata.ownerReferences",
            &controllers.into(),
            "Only one reference can have Controller set to true",
        );
    }
}

pub(super) fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    for key in ["name", "namespace"] {
        let (before, after) =
            (old.pointer(&format!("/metadata/{key}")), new.pointer(&format!("/metadata/{key}")));
        if before != after {
            let value = after.cloned().unwrap_or(Value::Null);
            errors.invalid(format!("metadata.{key}"), &value, "field is immutable");
        }
    }
    if meta::deletion_timestamp(old).is_some() {
        let before = meta::finalizers(old);
        let added: Vec<&str> =
            meta::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new \
                 finalizers {added:?}"
            );
            errors.forbidden("metadata.finalizers", &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_has_one_controller_at_most() {
        let texts = |controllers: [bool; 2]| {
            let owners = controllers.map(|is_controller| {
                json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u",
                    "controller": is_controller})
            });
            let mut errors = Errors::default();
            validate_owners(&json!({"metadata": {"ownerReferences": owners}}), &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts([true, false]), Vec::<String>::new());
        let two = texts([true, true]);
        assert!(two.len() == 1 && two[0].contains("Only one reference can have Controller"));
    }
}
