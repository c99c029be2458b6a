//! Kinds without a layout of their own: all fields, in words.

use serde_json::Value;

use crate::api::meta;
use crate::cli::describe::sheet::{Sheet, metadata, scalar};

/// Metadata that says nothing to a reader, or was said already.
const HIDDEN: &[&str] = &[
    "managedFields",
    "ownerReferences",
    "labels",
    "annotations",
    "name",
    "namespace",
    "uid",
    "generation",
    "resourceVersion",
];

/// Describes any object.
pub(super) fn write(sheet: &mut Sheet, object: &Value) {
    metadata(sheet, object);
    let Some(map) = object.as_object() else { return };
    let is_secret = map.get("kind").and_then(Value::as_str) == Some("Secret");
    for (key, value) in map {
        match (key.as_str(), value) {
            ("apiVersion" | "kind", value) => sheet.pair(0, &title(key), scalar(value)),
            ("metadata", value) => {
                sheet.known(
                    0,
                    "Creation Timestamp",
                    meta::creation_timestamp(object).unwrap_or_default(),
                );
                if let Some(at) = value.get("deletionTimestamp") {
                    sheet.pair(0, "Deletion Timestamp", scalar(at));
                }
            }
            ("data", Value::Object(data)) if is_secret => {
                sheet.head(0, "Data");
                for (name, value) in data {
                    let bytes = value.as_str().map_or(0, decoded_bytes);
                    sheet.pair(1, name, format!("{bytes} bytes"));
                }
            }
            _ => field(sheet, 0, key, value),
        }
    }
}

/// How many bytes a base64 text holds.
fn decoded_bytes(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn field(sheet: &mut Sheet, level: usize, key: &str, value: &Value) {
    if HIDDEN.contains(&key) && level == 0 {
        return;
    }
    match value {
        Value::Object(map) if map.is_empty() => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Object(map) => {
            sheet.head(level, &title(key));
            for (key, value) in map {
                field(sheet, level + 1, key, value);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            sheet.head(level, &title(key));
            for item in items {
                for (key, value) in item.as_object().into_iter().flatten() {
                    field(sheet, level + 1, key, value);
                }
            }
        }
        Value::Array(items) => {
            sheet.pairs(level, &title(key), items.iter().map(scalar).collect());
        }
        Value::String(text) if text.contains('\n') => {
            sheet.pairs(level, &title(key), text.lines().map(str::to_owned).collect());
        }
        other => sheet.pair(level, &title(key), scalar(other)),
    }
}

/// `creationTimestamp` as `Creation Timestamp`. Keys that are no field names stay as they are.
fn title(key: &str) -> String {
    if !key.chars().all(char::is_alphanumeric) {
        return key.to_owned();
    }
    let mut words = String::new();
    let mut was_lower = false;
    for (at, c) in key.chars().enumerate() {
        if at == 0 {
            words.extend(c.to_uppercase());
        } else {
            if c.is_uppercase() && was_lower {
                words.push(' ');
            }
            words.push(c);
        }
        was_lower = c.is_lowercase();
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn any_object_is_told_without_what_no_reader_wants() {
        let mut sheet = Sheet::default();
        let object = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {
                "name": "s", "uid": "u", "managedFields": [{"manager": "m"}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"a\":1}"},
            },
            "type": "Opaque", "data": {"password": "c2VjcmV0"}, "spec": {"podCIDR": "10.0.0.0/8"},
        });
        write(&mut sheet, &object);
        let text = sheet.render();
        assert!(text.contains("password:  6 bytes") && !text.contains("c2VjcmV0"), "{text}");
        assert!(!text.contains("last-applied") && !text.contains("manager"), "{text}");
        assert!(text.contains("Api Version:") && text.contains("Pod CIDR:"), "{text}");
    }
}
