//! Volumes of Pods and pod templates: defaults and checks.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{is_unset, items_at, set, set_default, set_default_text, text_at};
use crate::api::kinds::pod_env;
use crate::api::kinds::pod_spec::{items_of, pull_policy};
use crate::api::names;

/// Mode of files in volumes.
const FILE_MODE: i64 = 0o644;
const MODES: std::ops::RangeInclusive<i64> = 0..=0o777;
const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
/// Life of a token that names none, in seconds, and the shortest one.
const TOKEN_SECONDS: i64 = 3600;
const TOKEN_SECONDS_MIN: i64 = 600;

/// Fills in what a volume may leave out.
pub(super) fn default(volume: &mut Value) {
    let has_source =
        volume.as_object().is_some_and(|v| v.iter().any(|(k, s)| k != "name" && !s.is_null()));
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["configMap", "secret", "projected", "downwardAPI"] {
        if let Some(source) = volume.get_mut(source).filter(|source| source.is_object()) {
            set_default(source, "defaultMode", FILE_MODE);
            default_fields(source);
        }
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_of(projected, "sources") {
            if let Some(fields) = source.get_mut("downwardAPI") {
                default_fields(fields);
            }
            if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_object()) {
                set_default(token, "expirationSeconds", TOKEN_SECONDS);
            }
        }
    }
    if let Some(host) = volume.get_mut("hostPath").filter(|host| host.is_object()) {
        set_default(host, "type", "");
    }
    if let Some(image) = volume.get_mut("image").filter(|image| image.is_object()) {
        let policy = pull_policy(text_at(image, "/reference"));
        set_default_text(image, "pullPolicy", policy);
    }
}

fn default_fields(downward: &mut Value) {
    for item in items_of(downward, "items") {
        if let Some(field) = item.get_mut("fieldRef").filter(|field| field.is_object()) {
            set_default_text(field, "apiVersion", "v1");
        }
    }
}

/// Checks the volumes of a pod's spec and the mounts of its containers; `path` is that of the spec.
pub(super) fn validate(holder: &Value, path: &str, errors: &mut Errors) {
    let mut volumes = BTreeSet::new();
    for (at, volume) in items_at(holder, "/spec/volumes").iter().enumerate() {
        let name = text_at(volume, "/name");
        let field = format!("{path}.volumes[{at}]");
        if name.is_empty() {
            errors.required(format!("{field}.name"));
        } else if let Err(rule) = names::check_dns1123_label(name) {
            errors.invalid(format!("{field}.name"), &json!(name), rule);
        }
        if !name.is_empty() && !volumes.insert(name) {
            errors.duplicate(format!("{field}.name"), &json!(name));
        }
        validate_volume(volume, &field, errors);
    }
    let lists = [("initContainers", "/spec/initContainers"), ("containers", "/spec/containers")];
    for (list, pointer) in lists {
        for (at, container) in items_at(holder, pointer).iter().enumerate() {
            validate_mounts(container, &format!("{path}.{list}[{at}]"), &volumes, errors);
        }
    }
}

fn validate_volume(volume: &Value, field: &str, errors: &mut Errors) {
    let sources = volume.as_object().into_iter().flatten();
    if sources.filter(|(key, value)| *key != "name" && !value.is_null()).count() > 1 {
        errors.forbidden(field, "may not specify more than 1 volume type");
    }
    if text_at(volume, "/emptyDir/sizeLimit").starts_with('-') {
        let detail = "SizeLimit field must be a valid resource quantity";
        errors.forbidden(format!("{field}.emptyDir.sizeLimit"), detail);
    }
    for (key, name) in [("configMap", "name"), ("secret", "secretName"), ("downwardAPI", "")] {
        let Some(source) = volume.get(key).filter(|source| source.is_object()) else { continue };
        let field = format!("{field}.{key}");
        if !name.is_empty() && text_at(source, &format!("/{name}")).is_empty() {
            errors.required(format!("{field}.{name}"));
        }
        validate_mode(source.get("defaultMode"), format!("{field}.defaultMode"), errors);
        validate_items(key, source, &field, errors);
    }
    validate_projected(volume, &format!("{field}.projected"), errors);
    if volume.get("persistentVolumeClaim").is_some_and(Value::is_object)
        && text_at(volume, "/persistentVolumeClaim/claimName").is_empty()
    {
        errors.required(format!("{field}.persistentVolumeClaim.claimName"));
    }
    if volume.get("image").is_some_and(Value::is_object) {
        let reference = text_at(volume, "/image/reference");
        if reference.is_empty() {
            errors.required(format!("{field}.image.reference"));
        } else if reference.trim() != reference {
            let field = format!("{field}.image.reference");
            errors.invalid(
                field,
                &json!(reference),
                "must not have leading or trailing whitespace",
            );
        }
        let policy = volume.pointer("/image/pullPolicy").unwrap_or(&Value::Null);
        let supported = ["Always", "IfNotPresent", "Never"];
        errors.one_of(format!("{field}.image.pullPolicy"), policy, &supported);
    }
    if volume.get("hostPath").is_some_and(Value::is_object) {
        let path = text_at(volume, "/hostPath/path");
        if path.is_empty() {
            errors.required(format!("{field}.hostPath.path"));
        } else if path.split('/').any(|name| name == "..") {
            let field = format!("{field}.hostPath.path");
            errors.invalid(field, &json!(path), "must not contain '..'");
        }
        let kind = volume.pointer("/hostPath/type").filter(|kind| !kind.is_null());
        if let Some(kind) = kind {
            errors.one_of(format!("{field}.hostPath.type"), kind, HOST_PATH_TYPES);
        }
    }
}

fn validate_projected(volume: &Value, field: &str, errors: &mut Errors) {
    let mut paths = BTreeSet::new();
    let mode = volume.pointer("/projected/defaultMode");
    validate_mode(mode, format!("{field}.defaultMode"), errors);
    for (at, source) in items_at(volume, "/projected/sources").iter().enumerate() {
        let field = format!("{field}.sources[{at}]");
        let named = source.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        if named.count() > 1 {
            errors.forbidden(&field, "may not specify more than 1 volume type");
        }
        for key in ["configMap", "secret", "downwardAPI"] {
            let Some(part) = source.get(key).filter(|part| part.is_object()) else { continue };
            let field = format!("{field}.{key}");
            let name = text_at(part, "/name");
            if key != "downwardAPI" && name.is_empty() {
                errors.required(format!("{field}.name"));
            }
            validate_items(key, part, &field, errors);
            for path in items_at(part, "/items").iter().map(|item| text_at(item, "/path")) {
                if !path.is_empty() && !paths.insert(path) {
                    errors.invalid(&field, &json!(name), "conflicting duplicate paths");
                }
            }
        }
        let Some(token) = source.get("serviceAccountToken").filter(|t| t.is_object()) else {
            continue;
        };
        let path = text_at(token, "/path");
        validate_path(path, &format!("{field}.path"), errors);
        if !path.is_empty() && !paths.insert(path) {
            errors.invalid(&field, &json!(path), "conflicting duplicate paths");
        }
        let seconds = token.get("expirationSeconds").unwrap_or(&Value::Null);
        if seconds.as_i64().is_some_and(|seconds| seconds < TOKEN_SECONDS_MIN) {
            let field = format!("{field}.expirationSeconds");
            errors.invalid(field, seconds, "may not specify a duration less than 10 minutes");
        }
    }
}

/// Checks the files of a source by the name `key`; `field` is the source's path.
fn validate_items(key: &str, source: &Value, field: &str, errors: &mut Errors) {
    for (at, item) in items_at(source, "/items").iter().enumerate() {
        let field = format!("{field}.items[{at}]");
        if key == "downwardAPI" {
            pod_env::validate_file(item, &field, errors);
        } else if text_at(item, "/key").is_empty() {
            errors.required(format!("{field}.key"));
        }
        validate_path(text_at(item, "/path"), &format!("{field}.path"), errors);
        validate_mode(item.get("mode"), format!("{field}.mode"), errors);
    }
}

fn validate_mode(mode: Option<&Value>, field: String, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| mode.as_i64().is_some_and(|mode| !MODES.contains(&mode)))
    {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.invalid(field, mode, detail);
    }
}

/// A path within a volume: the names that start with `..` are the node's own.
fn validate_path(path: &str, field: &str, errors: &mut Errors) {
    if path.is_empty() {
        errors.required(field);
        return;
    }
    let value = json!(path);
    if path.starts_with('/') {
        errors.invalid(field, &value, "must be a relative path");
    }
    if path.split('/').any(|name| name == "..") {
        errors.invalid(field, &value, "must not contain '..'");
    } else if path.starts_with("..") {
        errors.invalid(field, &value, "must not start with '..'");
    }
}

fn validate_mounts(container: &Value, path: &str, volumes: &BTreeSet<&str>, errors: &mut Errors) {
    let mut places = BTreeSet::new();
    for (at, mount) in items_at(container, "/volumeMounts").iter().enumerate() {
        let field = format!("{path}.volumeMounts[{at}]");
        let name = text_at(mount, "/name");
        if !volumes.contains(name) {
            errors.not_found(format!("{field}.name"), &json!(name));
        }
        let place = text_at(mount, "/mountPath");
        if is_unset(mount.get("mountPath")) || place.is_empty() {
            errors.required(format!("{field}.mountPath"));
        } else if !places.insert(place) {
            errors.invalid(format!("{field}.mountPath"), &json!(place), "must be unique");
        }
        for key in ["subPath", "subPathExpr"] {
            let text = text_at(mount, &format!("/{key}"));
            let field = format!("{field}.{key}");
            if text.starts_with('/') {
                errors.invalid(field, &json!(text), "must be a relative path");
            } else if text.split('/').any(|name| name == "..") {
                errors.invalid(field, &json!(text), "must not contain '..'");
            }
        }
        let is_set = |key: &str| !text_at(mount, &format!("/{key}")).is_empty();
        if is_set("subPath") && is_set("subPathExpr") {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(format!("{field}.subPathExpr"), &json!(""), detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(volume: Value, mounts: Value) -> String {
        let pod = json!({"spec": {"volumes": [volume],
            "containers": [{"name": "a", "volumeMounts": mounts}]}});
        let mut errors = Errors::default();
        validate(&pod, "spec", &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn volumes_are_completed_like_kubernetes_does() {
        let mut volume = json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "t"}},
            {"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}});
        default(&mut volume);
        for (path, wanted) in [
            ("/projected/defaultMode", json!(420)),
            ("/projected/sources/0/serviceAccountToken/expirationSeconds", json!(3600)),
            ("/projected/sources/1/downwardAPI/items/0/fieldRef/apiVersion", json!("v1")),
        ] {
            assert_eq!(volume.pointer(path), Some(&wanted), "{path}");
        }
        let mut host = json!({"name": "h", "hostPath": {"path": "/x"}});
        default(&mut host);
        assert_eq!(host["hostPath"]["type"], "");
        assert!(host.get("emptyDir").is_none());
    }

    #[test]
    fn an_image_is_named_and_pulled_as_containers_are() {
        for (reference, policy) in [("r/app", "Always"), ("r/app:v1", "IfNotPresent")] {
            let mut volume = json!({"name": "v", "image": {"reference": reference}});
            default(&mut volume);
            assert_eq!(volume["image"]["pullPolicy"], policy);
            assert_eq!(errors(volume, json!([])), "");
        }
        let none = errors(json!({"name": "v", "image": {}}), json!([]));
        assert!(none.contains("volumes[0].image.reference: Required"), "{none}");
        let wrong = json!({"name": "v", "image": {"reference": " r", "pullPolicy": "Sometimes"}});
        let wrong = errors(wrong, json!([]));
        assert!(wrong.contains("image.reference: Invalid"), "{wrong}");
        assert!(wrong.contains("image.pullPolicy: Unsupported"), "{wrong}");
    }

    #[test]
    fn paths_that_lead_out_and_mounts_at_one_place_are_refused() {
        let volume = json!({"name": "v", "configMap": {"name": "c",
            "items": [{"key": "a", "path": "../a"}, {"key": "a", "path": "..data"}]}});
        let mounts = json!([
            {"name": "v", "mountPath": "/d", "subPath": "a/../../b"},
            {"name": "v", "mountPath": "/d", "subPath": "/a"},
            {"name": "w", "mountPath": "/e", "subPath": "a", "subPathExpr": "b"},
        ]);
        let found = errors(volume, mounts);
        for part in [
            "items[0].path: Invalid value: \"../a\": must not contain '..'",
            "items[1].path: Invalid value: \"..data\": must not start with '..'",
            "volumeMounts[0].subPath: Invalid value: \"a/../../b\": must not contain '..'",
            "volumeMounts[1].mountPath: Invalid value: \"/d\": must be unique",
            "volumeMounts[1].subPath: Invalid value: \"/a\": must be a relative path",
            "volumeMounts[2].name: Not found: \"w\"",
            "mutually exclusive",
        ] {
            assert!(found.contains(part), "{part} in {found}");
        }
    }

    #[test]
    fn sources_have_names_modes_and_paths_of_their_own() {
        let field = json!({"path": "x", "fieldRef": {"fieldPath": "metadata.uid"}});
        let item = |path: &str| json!([{"key": "k", "path": path}]);
        let projected = |sources: Value| json!({"projected": {"sources": sources}});
        for (volume, said) in [
            (json!({"configMap": {}}), "volumes[0].configMap.name: Required value"),
            (json!({"secret": {}}), "volumes[0].secret.secretName: Required value"),
            (
                json!({"configMap": {"name": "c", "defaultMode": 1000}}),
                "volumes[0].configMap.defaultMode: Invalid value: 1000: must be a number between 0 \
                 and 0777 (octal), both inclusive",
            ),
            (
                json!({"secret": {"secretName": "s", "items": [{"path": "a", "mode": -1}]}}),
                "volumes[0].secret.items[0].key: Required value\nspec.volumes[0].secret.items[0].mode: \
                 Invalid value: -1",
            ),
            (
                json!({"downwardAPI": {"items": [field, {"path": "y"}]}}),
                "volumes[0].downwardAPI.items[1]: Required value",
            ),
            (
                json!({"hostPath": {"path": "/a/../b"}}),
                "volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            ),
            (
                json!({"hostPath": {"path": "/a", "type": "Foo"}}),
                "volumes[0].hostPath.type: Unsupported value: \"Foo\"",
            ),
            (
                projected(json!([{"configMap": {}}])),
                "volumes[0].projected.sources[0].configMap.name: Required value",
            ),
            (
                projected(json!([
                    {"configMap": {"name": "a", "items": item("x")}},
                    {"secret": {"name": "b", "items": item("x")}},
                ])),
                "volumes[0].projected.sources[1].secret: Invalid value: \"b\": conflicting duplicate \
                 paths",
            ),
            (
                projected(json!([{"configMap": {"name": "a"}, "secret": {"name": "b"}}])),
                "volumes[0].projected.sources[0]: Forbidden: may not specify more than 1 volume type",
            ),
        ] {
            let mut volume = volume;
            volume["name"] = json!("v");
            let found = errors(volume, json!([]));
            assert!(found.starts_with(&format!("spec.{said}")), "{said} in {found}");
        }
    }

    #[test]
    fn a_volume_has_one_source_and_a_token_lives_ten_minutes() {
        let negative = json!({"name": "v", "emptyDir": {"sizeLimit": "-1"}});
        assert!(errors(negative, json!([])).contains("emptyDir.sizeLimit: Forbidden"));
        let two = json!({"name": "v", "emptyDir": {}, "hostPath": {}});
        let found = errors(two, json!([]));
        assert!(found.contains("more than 1 volume type"), "{found}");
        assert!(found.contains("hostPath.path: Required"), "{found}");
        let token = json!({"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]}});
        assert!(errors(token, json!([])).contains("less than 10 minutes"));
    }
}
