//! Reading and changing JSON by path without indexing.

use serde_json::{Map, Value};

/// The text at a JSON pointer.
pub(crate) fn str_at<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}

/// The text at a JSON pointer, or "".
pub(crate) fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    str_at(value, pointer).unwrap_or("")
}

/// The number at a JSON pointer.
pub(crate) fn int_at(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer)?.as_i64()
}

/// The flag at a JSON pointer; absent is false.
pub(crate) fn is_true(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool) == Some(true)
}

/// The items at a JSON pointer; absent is empty.
pub(crate) fn items_at<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries at a JSON pointer; absent is empty.
pub(crate) fn entries_at<'a>(
    value: &'a Value,
    pointer: &str,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}

/// The number of entries at a JSON pointer.
pub(crate) fn len_at(value: &Value, pointer: &str) -> usize {
    value.pointer(pointer).and_then(Value::as_object).map_or(0, Map::len)
}

/// Whether a value counts as unset: absent, null.
pub(crate) fn is_unset(value: Option<&Value>) -> bool {
    value.is_none_or(Value::is_null)
}

/// Whether a value counts as empty for Go's `omitempty`.
pub(crate) fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Bool(b)) => !b,
        Some(Value::Number(n)) => n.as_f64() == Some(0.0),
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Array(a)) => a.is_empty(),
        Some(Value::Object(o)) => o.is_empty(),
    }
}

/// Sets `key` when it is absent or null.
pub(crate) fn set_default(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object
        && is_unset(map.get(key))
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets `key` when it is absent, null or the empty string.
pub(crate) fn set_default_text(object: &mut Value, key: &str, value: &str) {
    if let Value::Object(map) = object
        && (is_unset(map.get(key)) || map.get(key).and_then(Value::as_str) == Some(""))
    {
        map.insert(key.to_owned(), value.into());
    }
}

/// Sets `key`, if `object` is an object.
pub(crate) fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object {
        map.insert(key.to_owned(), value.into());
    }
}

/// Removes `key` and keeps the order of the others.
pub(crate) fn remove(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut()?.shift_remove(key)
}

/// Sets or removes `key` so that it is as in `from`.
pub(crate) fn copy_key(from: &Value, to: &mut Value, key: &str) {
    match from.get(key) {
        Some(value) => set(to, key, value.clone()),
        None => {
            remove(to, key);
        }
    }
}

/// The object under `key`, made when absent or null. `None` when `object` or what stands there is
/// something else.
pub(crate) fn child<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let map = object.as_object_mut()?;
    let slot = map.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.is_object().then_some(slot)
}

/// How deep arrays and objects are nested; a scalar has depth 0.
pub(crate) fn is_deeper_than(value: &Value, depth_max: usize) -> bool {
    match value {
        Value::Array(items) => {
            depth_max == 0 || items.iter().any(|item| is_deeper_than(item, depth_max - 1))
        }
        Value::Object(map) => {
            depth_max == 0 || map.values().any(|item| is_deeper_than(item, depth_max - 1))
        }
        _ => false,
    }
}
