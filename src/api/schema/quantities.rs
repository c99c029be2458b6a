//! Quantities in the one form that Kubernetes stores them in, so that `1000m` and `1` are no difference.

use std::sync::LazyLock;

use serde_json::Value;

use crate::api::quantity::canonical;
use crate::api::resource::Resource;
use crate::api::schema::{Field, Message, SCHEMA, Schema, Shape, Type};

/// The fields that are, or hold, quantities, by the number of their type.
static HOLDERS: LazyLock<Vec<Vec<&'static Field>>> = LazyLock::new(|| holders(&SCHEMA));

/// What a quantity looks like, in Kubernetes' words.
const WORDS: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// Writes all quantities of an object of `resource` in canonical form.
///
/// # Errors
///
/// Where something else is in the place of one, in words.
pub(crate) fn canonicalize(resource: &Resource, object: &mut Value) -> Result<(), String> {
    canonicalize_type(&resource.api_version(), resource.kind, object)
}

/// The same for a part of an object that has a type of its own, such as `PodSpec` of `v1`.
pub(crate) fn canonicalize_type(
    api_version: &str,
    name: &str,
    value: &mut Value,
) -> Result<(), String> {
    let Some(message) = SCHEMA.kind(api_version, name) else { return Ok(()) };
    of_message(message, value).map_err(|path| format!("{}: {WORDS}", path.trim_start_matches('.')))
}

/// The error is the path to what is no quantity.
fn of_message(message: usize, object: &mut Value) -> Result<(), String> {
    for field in HOLDERS.get(message).into_iter().flatten() {
        match (field.kind, field.is_inline) {
            (Type::Message(inlined), true) => of_message(inlined, object)?,
            _ => {
                if let Some(value) = object.get_mut(field.name) {
                    of_field(field, value).map_err(|path| format!(".{}{path}", field.name))?;
                }
            }
        }
    }
    Ok(())
}

/// A value of the field's type, or a list or map of them.
fn of_field(field: &Field, value: &mut Value) -> Result<(), String> {
    match (&field.shape, value) {
        (Shape::List(_), Value::Array(items)) => {
            for (at, item) in items.iter_mut().enumerate() {
                of_value(field.kind, item).map_err(|path| format!("[{at}]{path}"))?;
            }
            Ok(())
        }
        (Shape::Map, Value::Object(map)) => {
            for (key, item) in map.iter_mut() {
                of_value(field.kind, item).map_err(|path| format!("[{key}]{path}"))?;
            }
            Ok(())
        }
        (Shape::One, value) => of_value(field.kind, value),
        // Of another shape: the decoder says so.
        _ => Ok(()),
    }
}

fn of_value(kind: Type, value: &mut Value) -> Result<(), String> {
    match kind {
        Type::Quantity => of_quantity(value).map_err(|()| String::new()),
        Type::Message(message) => of_message(message, value),
        _ => Ok(()),
    }
}

fn of_quantity(value: &mut Value) -> Result<(), ()> {
    let written = match value {
        Value::String(text) => canonical(text),
        Value::Number(number) => canonical(&number.to_string()),
        // Not set.
        Value::Null => return Ok(()),
        _ => return Err(()),
    };
    *value = Value::String(written.map_err(|_| ())?);
    Ok(())
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
        let resources = |cpu: Value, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": "0.5"}});
        let mut object = json!({"spec": {"template": {
            "metadata": {"labels": {"cpu": "1000m"}},
            "spec": {
                "containers": [{"name": "1000m", "resources": resources(json!("1000m"), "1024Mi")}],
                "initContainers": [{"resources": resources(json!(2), "1.5Gi")}],
                "volumes": [{"emptyDir": {"sizeLimit": "2048Ki"}}],
            },
        }}});
        canonicalize_type("apps/v1", "Deployment", &mut object).unwrap();
        let spec = &object["spec"]["template"]["spec"];
        let of = |cpu: &str, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": "500m"}});
        assert_eq!(spec["containers"][0], json!({"name": "1000m", "resources": of("1", "1Gi")}));
        assert_eq!(spec["initContainers"][0]["resources"], of("2", "1536Mi"));
        assert_eq!(spec["volumes"][0]["emptyDir"]["sizeLimit"], "2Mi");
        assert_eq!(object["spec"]["template"]["metadata"]["labels"]["cpu"], "1000m", "a text");
    }

    #[test]
    fn what_is_no_quantity_is_told_with_its_path() {
        let told = |pod: Value| canonicalize_type("v1", "Pod", &mut pod.clone()).unwrap_err();
        let volume = json!({"spec": {"volumes": [{}, {"emptyDir": {"sizeLimit": "1Gb"}}]}});
        assert_eq!(told(volume), format!("spec.volumes[1].emptyDir.sizeLimit: {WORDS}"));
        let limits = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": true}}}]}});
        assert_eq!(told(limits), format!("spec.containers[0].resources.limits[cpu]: {WORDS}"));
    }
}
