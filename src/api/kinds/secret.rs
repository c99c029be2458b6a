//! Secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::api::decode::typed;
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
        validate_update: config_map::immutable,
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
    fn plain_values_are_encoded() {
        let mut secret = json!({"stringData": {"a": "b"}, "data": {"c": "ZA=="}});
        default(&mut secret);
        assert_eq!(secret, json!({"data": {"c": "ZA==", "a": "Yg=="}, "type": "Opaque"}));
    }
}
