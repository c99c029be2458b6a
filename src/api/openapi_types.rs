//! The types of fields as OpenAPI schemas.

use serde_json::{Map, Value, json};

use crate::api::meta;
use crate::api::schema::{Field, ListType, Message, SCHEMA, Shape, Type};

/// The properties of a type, by name; the types they refer to go into `others`. `None` for a type that
/// the table knows in part only.
pub(super) fn fields(
    message: usize,
    others: &mut Map<String, Value>,
) -> Option<Map<String, Value>> {
    let message = SCHEMA.message(message)?;
    let is_whole = message.fields.iter().all(|field| field.number > 0);
    is_whole.then(|| properties(message, others))
}

fn properties(message: &Message, others: &mut Map<String, Value>) -> Map<String, Value> {
    let mut properties = Map::new();
    for field in &message.fields {
        let inlined = field.kind.message().filter(|_| field.is_inline);
        if let Some(inlined) = inlined.and_then(|number| SCHEMA.message(number)) {
            properties.extend(self::properties(inlined, others));
        } else {
            properties.insert(field.name.to_owned(), property(field, others));
        }
    }
    properties
}

fn property(field: &Field, others: &mut Map<String, Value>) -> Value {
    let one = of(field.kind, others);
    let mut schema = match &field.shape {
        Shape::One => one,
        Shape::Map => json!({ "type": "object", "additionalProperties": one }),
        Shape::List(kind) => {
            let mut list = json!({ "type": "array", "items": one });
            let kind = match kind {
                ListType::Atomic => json!({ "x-kubernetes-list-type": "atomic" }),
                ListType::Set => json!({ "x-kubernetes-list-type": "set" }),
                ListType::Map(keys) => json!({
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": keys,
                }),
            };
            extend(&mut list, kind);
            list
        }
    };
    if field.is_atomic == Some(true) {
        extend(&mut schema, json!({ "x-kubernetes-map-type": "atomic" }));
    }
    match field.merge_key {
        None => {}
        Some("") => extend(&mut schema, json!({ "x-kubernetes-patch-strategy": "merge" })),
        Some(key) => extend(
            &mut schema,
            json!({
                "x-kubernetes-patch-strategy": "merge",
                "x-kubernetes-patch-merge-key": key,
            }),
        ),
    }
    schema
}

fn extend(schema: &mut Value, with: Value) {
    if let (Value::Object(schema), Value::Object(with)) = (schema, with) {
        schema.extend(with);
    }
}

fn of(kind: Type, others: &mut Map<String, Value>) -> Value {
    match kind {
        Type::Text | Type::Quantity => json!({ "type": "string" }),
        Type::Whole => json!({ "type": "integer", "format": "int64" }),
        Type::Flag => json!({ "type": "boolean" }),
        Type::Bytes => json!({ "type": "string", "format": "byte" }),
        Type::IntOrString => json!({ "type": "string", "format": "int-or-string" }),
        Type::Time | Type::MicroTime => json!({ "type": "string", "format": "date-time" }),
        Type::Raw => json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
        Type::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Type::Message(number) => {
            let Some(message) = SCHEMA.message(number) else { return json!({ "type": "object" }) };
            let (group, version) = meta::split_api_version(message.api_version);
            let group = if group.is_empty() { "core" } else { group };
            let name = format!("io.edgeorc.{group}.{version}.{}", message.name);
            if !others.contains_key(&name) {
                // Held before it is made, should a type ever hold itself.
                others.insert(name.clone(), Value::Null);
                let mut schema =
                    json!({ "type": "object", "properties": properties(message, others) });
                if message.is_atomic {
                    extend(&mut schema, json!({ "x-kubernetes-map-type": "atomic" }));
                }
                others.insert(name.clone(), schema);
            }
            json!({ "$ref": format!("#/components/schemas/{name}") })
        }
    }
}
