//! Secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{child, len_at, remove, set, set_default_text, text_at};
use crate::api::kinds::config_map;
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "secrets",
    singular: "secret",
    kind: "Secret",
    list_kind: "SecretList",
    description: "Secrets that pods read.",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Type"), Column::integer("Data"), Column::AGE],
    field_selectors: &["type"],
    strategy: Strategy {
        default,
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<Secret>)
    },
};

/// Type Opaque; `stringData` goes into `data`.
fn default(object: &mut Value) {
    set_default_text(object, "type", "Opaque");
    let Some(Value::Object(plain)) = remove(object, "stringData") else { return };
    let Some(data) = child(object, "data") else { return };
    for (key, value) in plain {
        set(data, &key, STANDARD.encode(value.as_str().unwrap_or_default()));
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let entries = config_map::entries(object, "data");
    config_map::check_entries("data", entries.clone(), errors);
    config_map::check_size(entries.map(|(_, value)| config_map::decoded_len(value)).sum(), errors);
    let has = |key: &str| object.pointer("/data").is_some_and(|data| data.get(key).is_some());
    let mut need = |key: &str| {
        if !has(key) {
            errors.required(format!("data[{key}]"));
        }
    };
    match text_at(object, "/type") {
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(need),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            ["username", "password"].into_iter().for_each(need);
        }
        "kubernetes.io/dockerconfigjson" => validate_json(object, ".dockerconfigjson", errors),
        "kubernetes.io/dockercfg" => validate_json(object, ".dockercfg", errors),
        "kubernetes.io/service-account-token" => {
            let annotations = object.pointer("/metadata/annotations");
            let named = annotations.and_then(|all| all.get(SERVICE_ACCOUNT)?.as_str());
            if named.is_none_or(str::is_empty) {
                errors.required(format!("metadata.annotations[{SERVICE_ACCOUNT}]"));
            }
        }
        _ => {}
    }
}

/// The annotation that ties a token to its service account.
const SERVICE_ACCOUNT: &str = "kubernetes.io/service-account.name";

/// The entry is there, and is JSON; what it says is not repeated.
fn validate_json(object: &Value, key: &str, errors: &mut Errors) {
    let field = format!("data[{key}]");
    let Some(text) = object.pointer("/data").and_then(|data| data.get(key)?.as_str()) else {
        return errors.required(field);
    };
    let is_json = STANDARD
        .decode(text)
        .is_ok_and(|bytes| serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
    if !is_json {
        errors.invalid(field, &json!("<secret contents redacted>"), "must be JSON");
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    config_map::immutable(old, new, errors);
    if old.get("type") != new.get("type") {
        errors.invalid("type", new.get("type").unwrap_or(&Value::Null), "field is immutable");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/type")),
        json!(len_at(object, "/data")),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_what_its_type_says() {
        let refusals = |kind: &str, data: Value, annotations: Value| {
            let mut errors = Errors::default();
            let metadata = json!({"annotations": annotations});
            validate(&json!({"type": kind, "data": data, "metadata": metadata}), &mut errors);
            let texts = errors.into_vec().into_iter().map(|error| error.to_string());
            texts.collect::<Vec<_>>()
        };
        let config = STANDARD.encode(r#"{"auths": {}}"#);
        for (kind, good, bad, fields) in [
            ("Opaque", json!({"a": "AA=="}), json!({"a/b": "AA=="}), vec!["data[a/b]"]),
            ("own.example/type", json!({}), json!({"ä": ""}), vec!["data[ä]"]),
            (
                "kubernetes.io/tls",
                json!({"tls.crt": "", "tls.key": ""}),
                json!({"tls.crt": ""}),
                vec!["data[tls.key]"],
            ),
            (
                "kubernetes.io/ssh-auth",
                json!({"ssh-privatekey": ""}),
                json!({}),
                vec!["data[ssh-privatekey]"],
            ),
            (
                "kubernetes.io/basic-auth",
                json!({"password": ""}),
                json!({}),
                vec!["data[username]", "data[password]"],
            ),
            (
                "kubernetes.io/dockerconfigjson",
                json!({".dockerconfigjson": config}),
                json!({".dockerconfigjson": STANDARD.encode("{")}),
                vec!["data[.dockerconfigjson]"],
            ),
            (
                "kubernetes.io/dockercfg",
                json!({".dockercfg": config}),
                json!({}),
                vec!["data[.dockercfg]"],
            ),
        ] {
            assert_eq!(refusals(kind, good, json!({})), [""; 0], "{kind}");
            let found = refusals(kind, bad, json!({}));
            assert_eq!(found.len(), fields.len(), "{kind}: {found:?}");
            for (text, field) in found.iter().zip(fields) {
                assert!(text.starts_with(field), "{text}");
            }
        }
        let token = "kubernetes.io/service-account-token";
        assert_eq!(refusals(token, json!({}), json!({SERVICE_ACCOUNT: "a"})), [""; 0]);
        assert_eq!(refusals(token, json!({}), json!({})).len(), 1);
        let large = json!({"a": "AAAA".repeat(349_526)});
        assert!(refusals("Opaque", large, json!({}))[0].contains("1048576"));
    }

    #[test]
    fn the_type_stays() {
        let of = |kind: &str| json!({"type": kind, "data": {"a": "AA=="}});
        let mut errors = Errors::default();
        validate_update(&of("a"), &of("a"), &mut errors);
        validate_update(&of("a"), &of("b"), &mut errors);
        let texts: Vec<_> = errors.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1);
        assert!(texts[0].starts_with("type: Invalid value"), "{texts:?}");
    }

    #[test]
    fn plain_values_are_encoded() {
        let mut secret = json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}});
        default(&mut secret);
        assert_eq!(secret, json!({"data": {"c": "ZA==", "a": "Yg=="}, "type": "Opaque"}));
    }
}
