//! Strategic merge: Kubernetes' patch for its own types, with its directives.

use serde_json::{Map, Value};

use crate::api::patch::PatchError;
use crate::api::patch::merge_keys::{ListRule, Place};
use crate::api::resource::Resource;

/// What to do with the map or list it stands in.
const DIRECTIVE: &str = "$patch";
/// Keys that stay; all others go.
const RETAIN_KEYS: &str = "$retainKeys";
/// Prefix of the order of a list's elements.
const ORDER: &str = "$setElementOrder/";
/// Prefix of the elements to take out of a list of scalars.
const DELETE: &str = "$deleteFromPrimitiveList/";

pub(super) fn apply(res: &Resource, object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed(
            "the strategic merge patch must be a JSON object".to_owned(),
        ));
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Value::Object(target) = object else { return Ok(()) };
    merge_map(Place::root(res), target, patch)
}

/// Merges `patch` into `target`, which stands at `place`.
fn merge_map(
    place: Place,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), PatchError> {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(unknown(other)),
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        merge_field(place, key, target, value)?;
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE) {
            delete_scalars(target.get_mut(field), value);
        } else if let Some(field) = key.strip_prefix(ORDER) {
            let rule = place.list_rule(field);
            order(target.get_mut(field), value, rule);
        }
    }
    if let Some(Value::Array(keys)) = patch.get(RETAIN_KEYS) {
        target.retain(|key, _| keys.iter().any(|kept| kept.as_str() == Some(key)));
    }
    Ok(())
}

fn merge_field(
    place: Place,
    key: &str,
    target: &mut Map<String, Value>,
    value: &Value,
) -> Result<(), PatchError> {
    match value {
        Value::Null => {
            target.shift_remove(key);
        }
        Value::Object(patch) => {
            if patch.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                target.shift_remove(key);
                return Ok(());
            }
            let slot = target.entry(key.to_owned()).or_insert(Value::Null);
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            if let Value::Object(inner) = slot {
                merge_map(place.field(key), inner, patch)?;
            }
        }
        Value::Array(patch) => {
            let slot = target.entry(key.to_owned()).or_insert(Value::Null);
            if !slot.is_array() {
                *slot = Value::Array(Vec::new());
            }
            if let Value::Array(items) = slot {
                merge_list(place, key, items, patch)?;
            }
        }
        scalar => {
            target.insert(key.to_owned(), scalar.clone());
        }
    }
    Ok(())
}

fn merge_list(
    place: Place,
    field: &str,
    items: &mut Vec<Value>,
    patch: &[Value],
) -> Result<(), PatchError> {
    let directive = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    let is_replaced = patch.iter().any(|item| directive(item).as_deref() == Some("replace"));
    let rule = if is_replaced { ListRule::Replace } else { place.list_rule(field) };
    match rule {
        ListRule::Replace => {
            let kept = patch.iter().filter(|item| directive(item).as_deref() != Some("replace"));
            *items = kept.cloned().map(clean).collect();
            Ok(())
        }
        ListRule::Union => {
            for item in patch {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
            Ok(())
        }
        ListRule::MergeBy(key) => {
            for item in patch {
                merge_element(place.field(field), key, items, item)?;
            }
            Ok(())
        }
    }
}

fn merge_element(
    place: Place,
    key: &str,
    items: &mut Vec<Value>,
    item: &Value,
) -> Result<(), PatchError> {
    let missing =
        || PatchError::Malformed(format!("map: {item} does not contain declared merge key: {key}"));
    let Value::Object(patch) = item else { return Err(missing()) };
    let wanted = patch.get(key).ok_or_else(missing)?;
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("delete") => {
            items.retain(|item| item.get(key) != Some(wanted));
            return Ok(());
        }
        None | Some("merge") => {}
        Some(other) => return Err(unknown(other)),
    }
    match items.iter_mut().find(|item| item.get(key) == Some(wanted)) {
        Some(Value::Object(target)) => merge_map(place, target, patch),
        Some(_) => Ok(()),
        None => {
            let mut made = Map::new();
            merge_map(place, &mut made, patch)?;
            items.push(Value::Object(made));
            Ok(())
        }
    }
}

fn unknown(directive: &str) -> PatchError {
    PatchError::Malformed(format!("unrecognized directive {DIRECTIVE}: {directive}"))
}

/// The map as data: its own directives are not.
fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    let data = patch.iter().filter(|(key, _)| !key.starts_with('$'));
    data.map(|(key, value)| (key.clone(), clean(value.clone()))).collect()
}

fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(&map)),
        other => other,
    }
}

fn delete_scalars(list: Option<&mut Value>, gone: &Value) {
    if let (Some(Value::Array(items)), Value::Array(gone)) = (list, gone) {
        items.retain(|item| !gone.contains(item));
    }
}

/// Puts the elements that `wanted` names into its order; the others follow as they were.
fn order(list: Option<&mut Value>, wanted: &Value, rule: ListRule) {
    let (Some(Value::Array(items)), Value::Array(wanted)) = (list, wanted) else { return };
    let place = |item: &Value| {
        let is_same = |other: &Value| match rule {
            ListRule::MergeBy(key) => other.get(key).is_some() && other.get(key) == item.get(key),
            ListRule::Union | ListRule::Replace => other == item,
        };
        wanted.iter().position(is_same).unwrap_or(wanted.len())
    };
    items.sort_by_key(place);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;

    fn patched(object: Value, patch: Value) -> Value {
        let mut object = object;
        apply(api::find("apps", "v1", "deployments").unwrap(), &mut object, &patch).unwrap();
        object
    }

    /// The fields of these tests where a Deployment has them.
    fn deployment(mut fields: Value) -> Value {
        let mut take = |key: &str| fields.as_object_mut().unwrap().shift_remove_entry(key);
        let at: Vec<_> =
            ["containers", "$setElementOrder/containers"].iter().filter_map(|k| take(k)).collect();
        let finalizers: Vec<_> = ["finalizers", "$deleteFromPrimitiveList/finalizers"]
            .iter()
            .filter_map(|k| take(k))
            .collect();
        if !at.is_empty() {
            fields["spec"] = json!({"template": {"spec": Map::from_iter(at)}});
        }
        if !finalizers.is_empty() {
            fields["metadata"] = Value::Object(Map::from_iter(finalizers));
        }
        fields
    }

    #[test]
    fn lists_merge_by_their_key_or_are_replaced() {
        let cases = [
            (
                json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}]}),
                json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}, {"name": "b", "image": "2"}]}),
                json!({"containers": [
                    {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]},
                    {"name": "b", "image": "2"},
                ]}),
            ),
            (json!({"args": [1, 2]}), json!({"args": [3]}), json!({"args": [3]})),
            (
                json!({"finalizers": ["a"]}),
                json!({"finalizers": ["b", "a"]}),
                json!({"finalizers": ["a", "b"]}),
            ),
            (
                json!({"a": 1, "b": {"c": 2}}),
                json!({"a": null, "b": {"d": 3}}),
                json!({"b": {"c": 2, "d": 3}}),
            ),
        ];
        for (object, patch, wanted) in cases {
            let made = patched(deployment(object), deployment(patch.clone()));
            assert_eq!(made, deployment(wanted), "{patch}");
        }
    }

    #[test]
    fn directives_replace_delete_retain_and_order() {
        let cases = [
            (
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b"}]}),
            ),
            (
                json!({"containers": [{"name": "a"}]}),
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
                json!({"containers": [{"name": "z"}]}),
            ),
            (
                json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {}}}),
                json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
                json!({"strategy": {"type": "Recreate"}}),
            ),
            (
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "2"}]}),
                json!({"containers": [{"name": "b", "image": "2"}, {"name": "a"}]}),
            ),
            (
                json!({"finalizers": ["a", "b"]}),
                json!({"$deleteFromPrimitiveList/finalizers": ["a"]}),
                json!({"finalizers": ["b"]}),
            ),
            (
                json!({"a": {"b": 1}}),
                json!({"a": {"$patch": "replace", "c": 2}}),
                json!({"a": {"c": 2}}),
            ),
            (json!({"a": {"b": 1}}), json!({"a": {"$patch": "delete"}}), json!({})),
        ];
        for (object, patch, wanted) in cases {
            let made = patched(deployment(object), deployment(patch.clone()));
            assert_eq!(made, deployment(wanted), "{patch}");
        }
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let deployments = api::find("apps", "v1", "deployments").unwrap();
        let mut object = json!({});
        let refused =
            apply(deployments, &mut object, &deployment(json!({"containers": [{"image": "x"}]})));
        assert!(matches!(refused, Err(PatchError::Malformed(_))), "{refused:?}");
    }
}
