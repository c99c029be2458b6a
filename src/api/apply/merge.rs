//! An applied object laid over a stored one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::api::apply::ApplyError;
use crate::api::apply::place::Place;

/// Elements of an applied list must be told apart.
pub(super) fn check(place: Place, value: &Value) -> Result<(), ApplyError> {
    match value {
        Value::Object(map) if place.is_map(value) => map.iter().try_for_each(|(name, value)| {
            check(place.field(name).0, value).map_err(|error| within(error, name))
        }),
        Value::Array(items) if place.is_list(value) => {
            let mut seen = BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                let malformed = |what: &str| ApplyError::Malformed(format!("[{index}]: {what}"));
                let step = place.step(item).ok_or_else(|| {
                    malformed("element lacks a field that tells it apart from others")
                })?;
                if !seen.insert(step) {
                    return Err(malformed("duplicate entries for a key"));
                }
                check(place.element(), item)
                    .map_err(|error| within(error, &format!("[{index}]")))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn within(error: ApplyError, name: &str) -> ApplyError {
    match error {
        ApplyError::Malformed(text) => ApplyError::Malformed(format!(".{name}{text}")),
        other => other,
    }
}

/// `stored` with what `applied` sets.
pub(super) fn merged(place: Place, stored: &Value, applied: &Value) -> Value {
    match (stored, applied) {
        (Value::Object(old), Value::Object(new)) if place.is_map(applied) => {
            let mut map = old.clone();
            for (name, value) in new {
                let at = place.field(name).0;
                if value.is_null() {
                    map.shift_remove(name);
                } else if let Some(slot) = map.get_mut(name) {
                    *slot = merged(at, slot, value);
                } else {
                    map.insert(name.clone(), merged(at, &Value::Null, value));
                }
            }
            Value::Object(map)
        }
        (Value::Array(old), Value::Array(new)) if place.is_list(applied) => {
            Value::Array(lists(place, old, new))
        }
        (_, Value::Object(_)) if place.is_map(applied) => {
            merged(place, &Value::Object(Map::new()), applied)
        }
        (_, other) => other.clone(),
    }
}

/// Elements keep the order of `new`; those that only `old` has stay behind the ones they followed.
fn lists(place: Place, old: &[Value], new: &[Value]) -> Vec<Value> {
    let steps: Vec<Option<String>> = new.iter().map(|item| place.step(item)).collect();
    let at: BTreeMap<&str, usize> =
        steps.iter().enumerate().filter_map(|(at, step)| Some((step.as_deref()?, at))).collect();
    // Of elements that are the same, the first is merged; the others stay as they are.
    let mut before: BTreeMap<usize, &Value> = BTreeMap::new();
    let (mut list, mut next) = (Vec::with_capacity(old.len().max(new.len())), 0);
    let mut places = Vec::with_capacity(old.len());
    for item in old {
        let place_in_new = place.step(item).and_then(|step| at.get(step.as_str()).copied());
        places.push(place_in_new.filter(|at| !before.contains_key(at)));
        if let Some(at) = place_in_new {
            before.entry(at).or_insert(item);
        }
    }
    let one = |at: usize| {
        let item = new.get(at)?;
        Some(before.get(&at).map_or_else(
            || merged(place.element(), &Value::Null, item),
            |old| merged(place.element(), old, item),
        ))
    };
    for (item, place_in_new) in old.iter().zip(places) {
        let Some(at) = place_in_new else {
            list.push(item.clone());
            continue;
        };
        while next <= at {
            list.extend(one(next));
            next += 1;
        }
    }
    list.extend((next..new.len()).filter_map(one));
    list
}
