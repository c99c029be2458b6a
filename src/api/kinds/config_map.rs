//! ConfigMap.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{is_true, len_at};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;
use crate::api::{meta, names};

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
    strategy: Strategy {
        validate,
        validate_update: immutable,
        cells,
        ..Strategy::plain(typed::<ConfigMap>)
    },
};

/// Most bytes of all values together, in a ConfigMap or Secret.
const VALUES_BYTES_MAX: usize = 1 << 20;

fn validate(object: &Value, errors: &mut Errors) {
    let (plain, binary) = (entries(object, "data"), entries(object, "binaryData"));
    for (key, _) in plain.clone() {
        if binary.clone().any(|(other, _)| other == key) {
            let detail = "duplicate of key present in binaryData";
            errors.invalid(format!("data[{key}]"), &json!(key), detail);
        }
    }
    let bytes = plain.clone().map(|(_, value)| value.len());
    let decoded = binary.clone().map(|(_, value)| decoded_len(value));
    check_entries("data", plain.clone(), errors);
    check_entries("binaryData", binary.clone(), errors);
    check_size(bytes.chain(decoded).sum(), errors);
}

/// Names and texts of the entries under `field`.
pub(super) fn entries<'a>(
    object: &'a Value,
    field: &str,
) -> impl Iterator<Item = (&'a str, &'a str)> + Clone {
    let entries = object.get(field).and_then(Value::as_object).into_iter().flatten();
    entries.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

/// Each entry can be a file, and a variable's source.
pub(super) fn check_entries<'a>(
    field: &str,
    entries: impl Iterator<Item = (&'a str, &'a str)>,
    errors: &mut Errors,
) {
    for (key, _) in entries {
        if let Err(rule) = names::check_config_key(key) {
            errors.invalid(format!("{field}[{key}]"), &json!(key), rule);
        }
    }
}

/// All values together are no larger than may be.
pub(super) fn check_size(bytes: usize, errors: &mut Errors) {
    if bytes > VALUES_BYTES_MAX {
        errors.push(FieldError::too_long("", VALUES_BYTES_MAX));
    }
}

/// Bytes that a text in base64 stands for.
pub(super) fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(check: impl FnOnce(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn keys_can_be_files_and_are_there_once_and_a_mebibyte_is_enough() {
        let refusals = |object: Value| texts(|errors| validate(&object, errors));
        let good = json!({"data": {"key.name": "a", "KEY_NAME": "", ".hidden": "b"},
            "binaryData": {"key-name": "AAAA"}});
        assert_eq!(refusals(good), [""; 0]);
        for bad in ["", "a/b", "ä", ".", "..", "..data", &"x".repeat(254)] {
            let found = refusals(json!({"data": {bad: "v"}}));
            assert!(found.len() == 1 && found[0].starts_with("data["), "{bad:?}: {found:?}");
            let found = refusals(json!({"binaryData": {bad: "AA=="}}));
            assert!(found.len() == 1 && found[0].starts_with("binaryData["), "{bad:?}: {found:?}");
        }
        let twice = refusals(json!({"data": {"a": "b"}, "binaryData": {"a": "AA=="}}));
        assert!(twice[0].contains("duplicate of key present in binaryData"), "{twice:?}");
        // 349,525 times three bytes, and one more.
        let full = "AAAA".repeat(349_525);
        assert_eq!(refusals(json!({"data": {"a": "b"}, "binaryData": {"b": full}})), [""; 0]);
        let over = refusals(json!({"data": {"a": "bc"}, "binaryData": {"b": full}}));
        assert!(over.len() == 1 && over[0].contains("1048576"), "{over:?}");
    }

    #[test]
    fn what_is_immutable_stays_so_and_keeps_its_values() {
        let changed = |old: Value, new: Value| texts(|errors| immutable(&old, &new, errors)).len();
        let (open, sealed) =
            (json!({"data": {"a": "b"}}), json!({"data": {"a": "b"}, "immutable": true}));
        assert_eq!(changed(open.clone(), sealed.clone()), 0);
        assert_eq!(changed(sealed.clone(), sealed.clone()), 0);
        assert_eq!(changed(sealed.clone(), open), 1);
        assert_eq!(changed(sealed.clone(), json!({"data": {"a": "c"}, "immutable": true})), 1);
        let more = json!({"data": {"a": "b"}, "binaryData": {"c": "AA=="}, "immutable": true});
        assert_eq!(changed(sealed, more), 1);
        assert_eq!(["", "AA==", "AAA=", "AAAA"].map(decoded_len), [0, 1, 2, 3]);
    }
}
