//! `apiVersion`, `kind` and `metadata` of an object.

use serde_json::{Map, Value, json};

use crate::api::json::{child, items_at, remove, set, str_at};
use crate::api::resource::Resource;

/// Finalizer of an object that goes after all that it owns.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object that goes and leaves behind all that it owns.
pub const ORPHAN: &str = "orphan";

/// `metadata.name`, or "".
#[must_use]
pub fn name(object: &Value) -> &str {
    str_at(object, "/metadata/name").unwrap_or("")
}

/// `metadata.generateName`, or "".
#[must_use]
pub fn generate_name(object: &Value) -> &str {
    str_at(object, "/metadata/generateName").unwrap_or("")
}

/// `metadata.namespace`, or "".
#[must_use]
pub fn namespace(object: &Value) -> &str {
    str_at(object, "/metadata/namespace").unwrap_or("")
}

/// `metadata.uid`, or "".
#[must_use]
pub fn uid(object: &Value) -> &str {
    str_at(object, "/metadata/uid").unwrap_or("")
}

/// `metadata.resourceVersion`, or "".
#[must_use]
pub fn resource_version(object: &Value) -> &str {
    str_at(object, "/metadata/resourceVersion").unwrap_or("")
}

/// `metadata.generation`, or 0.
#[must_use]
pub fn generation(object: &Value) -> i64 {
    object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0)
}

/// `metadata.creationTimestamp` as written.
#[must_use]
pub fn creation_timestamp(object: &Value) -> Option<&str> {
    str_at(object, "/metadata/creationTimestamp")
}

/// `metadata.deletionTimestamp` as written; set while the object is on its way out.
#[must_use]
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    str_at(object, "/metadata/deletionTimestamp")
}

/// A label's value.
#[must_use]
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/labels")?.get(key)?.as_str()
}

/// All labels.
#[must_use]
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object.pointer("/metadata/labels")?.as_object()
}

/// An annotation's value.
#[must_use]
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// Finalizers that still hold the object.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    items_at(object, "/metadata/finalizers").iter().filter_map(Value::as_str).collect()
}

/// `metadata.ownerReferences`.
#[must_use]
pub fn owner_references(object: &Value) -> &[Value] {
    items_at(object, "/metadata/ownerReferences")
}

/// The owner reference that says `controller: true`.
#[must_use]
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object)
        .iter()
        .find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))
}

/// Sets `metadata.name`.
pub fn set_name(object: &mut Value, name: &str) {
    set_field(object, "name", name);
}

/// Sets `metadata.namespace`.
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_field(object, "namespace", namespace);
}

/// Sets `metadata.resourceVersion`.
pub fn set_resource_version(object: &mut Value, revision: u64) {
    set_field(object, "resourceVersion", revision.to_string());
}

/// Removes `metadata.resourceVersion`: the store keeps it beside the bytes.
pub fn clear_resource_version(object: &mut Value) {
    remove_field(object, "resourceVersion");
}

/// Sets what the server gives every new object.
pub fn set_created(object: &mut Value, uid: &str, now_rfc3339: &str) {
    set_field(object, "uid", uid);
    set_field(object, "creationTimestamp", now_rfc3339);
}

/// Marks the object as on its way out, unless it is already; never lengthens its time.
pub fn set_deleted(object: &mut Value, at_rfc3339: &str, grace_seconds: i64) {
    set_field(object, "deletionTimestamp", at_rfc3339);
    set_field(object, "deletionGracePeriodSeconds", grace_seconds);
}

/// Sets `metadata.generation`.
pub fn set_generation(object: &mut Value, generation: i64) {
    set_field(object, "generation", generation);
}

/// Sets a field of `metadata`.
pub fn set_field(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(metadata) = child(object, "metadata") {
        set(metadata, key, value);
    }
}

/// Removes a field of `metadata`.
pub fn remove_field(object: &mut Value, key: &str) {
    if let Some(metadata) = object.get_mut("metadata") {
        remove(metadata, key);
    }
}

/// Sets `apiVersion` and `kind`, first in order as everybody prints them.
pub fn set_type(object: &mut Value, res: &Resource) {
    let Value::Object(map) = object else { return };
    let rest = std::mem::take(map);
    map.insert("apiVersion".to_owned(), json!(res.api_version()));
    map.insert("kind".to_owned(), json!(res.kind));
    map.extend(rest.into_iter().filter(|(key, _)| key != "apiVersion" && key != "kind"));
}

/// `(group, version)` of an `apiVersion`.
#[must_use]
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The object without all but type and metadata: what `PartialObjectMetadata` carries.
#[must_use]
pub fn partial_object_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}
