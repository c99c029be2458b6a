//! `edgeorc describe`: an object's fields and its events, for reading.

use serde_json::Value;

use super::api::{ACCEPT_JSON, Session};
use super::args::{Describe, Global};
use super::exit::Failure;
use super::{get, output, target};
use crate::config::Environment;

/// Metadata that says nothing to a reader.
const HIDDEN: &[&str] = &["managedFields", "uid", "generation", "ownerReferences"];

/// Shows one object.
pub(super) async fn run(
    describe: Describe,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let target = target::parse_one(&describe.what)?;
    let session = Session::open(global, environment).await?;
    let object = session.get(&target.path(Some(&session.namespace)), ACCEPT_JSON).await?;
    let mut text = String::new();
    fields(&object, 0, &mut text);
    let uid = object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    text.push_str(&events(&session, uid).await?);
    output::data(&text)
}

/// Writes a JSON object as indented `Key: value` lines.
fn fields(value: &Value, depth: usize, text: &mut String) {
    let Some(map) = value.as_object() else { return };
    let indent = "  ".repeat(depth);
    for (key, value) in map {
        if HIDDEN.contains(&key.as_str()) {
            continue;
        }
        match value {
            Value::Object(inner) if inner.is_empty() => {}
            Value::Object(_) => {
                text.push_str(&format!("{indent}{key}:\n"));
                fields(value, depth + 1, text);
            }
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) => {
                text.push_str(&format!("{indent}{key}:\n"));
                for item in items {
                    list_item(item, depth + 1, text);
                }
            }
            other => text.push_str(&format!("{indent}{key}: {}\n", scalar(other))),
        }
    }
}

fn list_item(item: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    if !item.is_object() {
        text.push_str(&format!("{indent}- {}\n", scalar(item)));
        return;
    }
    let mut inner = String::new();
    fields(item, depth + 1, &mut inner);
    // The first line of the item carries the dash in place of its indent.
    let rest = inner.trim_start();
    text.push_str(&format!("{indent}- {rest}"));
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The events about the object, oldest first, as kubectl lays them out.
async fn events(session: &Session, uid: &str) -> Result<String, Failure> {
    let selector = get::escape(&format!("involvedObject.uid={uid}"));
    let path = format!("/api/v1/events?fieldSelector={selector}");
    let list = session.get(&path, ACCEPT_JSON).await?;
    let items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    if items.is_empty() {
        return Ok("Events: <none>\n".to_owned());
    }
    let field = |item: &Value, path: &str| item.pointer(path).map(scalar).unwrap_or_default();
    let mut rows =
        vec![["Type", "Reason", "Last seen", "From", "Message"].map(str::to_owned).to_vec()];
    for item in &items {
        rows.push(
            ["/type", "/reason", "/lastTimestamp", "/source/component", "/message"]
                .map(|path| field(item, path))
                .to_vec(),
        );
    }
    let table = output::columns(&rows);
    let indented: String = table.lines().map(|line| format!("  {line}\n")).collect();
    Ok(format!("Events:\n{indented}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_lists_and_objects_are_indented() {
        let mut text = String::new();
        fields(&json!({"a": {"b": [{"c": 1, "d": "x"}, 2]}, "e": {}, "uid": "u"}), 0, &mut text);
        assert_eq!(text, "a:\n  b:\n    - c: 1\n      d: x\n    - 2\n");
    }
}
