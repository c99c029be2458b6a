//! Quantities in the one form that Kubernetes stores them in, so that `1000m` and `1` are no difference.

use std::sync::LazyLock;

use serde_json::Value;

use crate::api::quantity::canonical;
use crate::api::resource::Resource;
use crate::api::schema::{Field, Message, SCHEMA, Schema, Type};

/// The fields that are, or hold, quantities, by the number of their type.
static HOLDERS: LazyLock<Vec<Vec<&'static Field>>> = LazyLock::new(|| holders(&SCHEMA));

/// Writes all quantities of an object of `resource` in canonical form. What is no quantity stays as it is, for
/// whoever checks it.
pub(crate) fn canonicalize(resource: &Resource, object: &mut Value) {
    canonicalize_type(&resource.api_version(), resource.kind, object);
}

/// The same for a part of an object that has a type of its own, such as `PodTemplateSpec` of `v1`.
pub(crate) fn canonicalize_type(api_version: &str, name: &str, value: &mut Value) {
    if let Some(message) = SCHEMA.kind(api_version, name) {
        of_message(message, value);
    }
}

fn of_message(message: usize, object: &mut Value) {
    for field in HOLDERS.get(message).into_iter().flatten() {
        match (field.kind, field.is_inline) {
            (Type::Message(inlined), true) => of_message(inlined, object),
            (kind, _) => {
                if let Some(value) = object.get_mut(field.name) {
                    of_field(kind, value);
                }
            }
        }
    }
}

/// A value of this type, or a list or map of them.
fn of_field(kind: Type, value: &mut Value) {
    match (kind, value) {
        (_, Value::Array(items)) => items.iter_mut().for_each(|item| of_field(kind, item)),
        (Type::Quantity, Value::Object(map)) => {
            map.values_mut().for_each(|value| of_field(kind, value));
        }
        (Type::Quantity, value) => of_quantity(value),
        (Type::Message(message), value) => of_message(message, value),
        _ => {}
    }
}

fn of_quantity(value: &mut Value) {
    let written = match value {
        Value::String(text) => canonical(text),
        Value::Number(number) => canonical(&number.to_string()),
        _ => return,
    };
    if let Ok(written) = written {
        *value = Value::String(written);
    }
}

fn holders(schema: &'static Schema) -> Vec<Vec<&'static Field>> {
    let mut holders: Vec<Vec<&Field>> = vec![Vec::new(); schema.messages.len()];
    // A type may hold another that comes later in the table, and itself: until nothing is new.
    loop {
        let holds = |field: &&Field| match field.kind {
            Type::Quantity => true,
            Type::Message(number) => holders.get(number).is_some_and(|found| !found.is_empty()),
            _ => false,
        };
        let of = |message: &'static Message| message.fields.iter().filter(holds).collect();
        let found: Vec<Vec<&Field>> = schema.messages.iter().map(of).collect();
        let count = |all: &[Vec<&Field>]| all.iter().map(Vec::len).sum::<usize>();
        if count(&found) == count(&holders) {
            return found;
        }
        holders = found;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_quantities_of_an_object_get_the_one_form() {
        let resources = |cpu: Value, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": "0.5", "x": "no"}});
        let mut object = json!({"spec": {"template": {
            "metadata": {"labels": {"cpu": "1000m"}},
            "spec": {
                "containers": [{"name": "1000m", "resources": resources(json!("1000m"), "1024Mi")}],
                "initContainers": [{"resources": resources(json!(2), "1.5Gi")}],
                "volumes": [{"emptyDir": {"sizeLimit": "2048Ki"}}],
            },
        }}});
        canonicalize_type("apps/v1", "Deployment", &mut object);
        let spec = &object["spec"]["template"]["spec"];
        let of = |cpu: &str, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": "500m", "x": "no"}});
        assert_eq!(spec["containers"][0], json!({"name": "1000m", "resources": of("1", "1Gi")}));
        assert_eq!(spec["initContainers"][0]["resources"], of("2", "1536Mi"));
        assert_eq!(spec["volumes"][0]["emptyDir"]["sizeLimit"], "2Mi");
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["cpu"], "1000m", "a text");
    }
}
