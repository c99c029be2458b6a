//! Which fields an object sets, and taking fields away.

use serde_json::{Map, Value};

use crate::api::apply::place::Place;
use crate::api::apply::set::{FieldSet, Node};

/// Nobody owns what says which object it is, and what the server alone writes.
const NOT_OWNED: [&str; 2] = ["f:apiVersion", "f:kind"];
/// The same of `metadata`.
const METADATA_NOT_OWNED: [&str; 10] = [
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:deletionTimestamp",
    "f:deletionGracePeriodSeconds",
    "f:selfLink",
    "f:uid",
    "f:generation",
    "f:resourceVersion",
    "f:managedFields",
];

/// The set without what nobody owns.
pub(super) fn own(mut set: FieldSet) -> FieldSet {
    set.entries.retain(|key, _| !NOT_OWNED.contains(&key.as_str()));
    if let Some(mut node) = set.entries.remove("f:metadata") {
        node.is_member = false;
        node.below.entries.retain(|key, _| !METADATA_NOT_OWNED.contains(&key.as_str()));
        set.put("f:metadata", node);
    }
    set
}

/// The fields that `value` sets.
pub(super) fn of(place: Place, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match value {
        Value::Object(map) if place.is_map(value) => {
            for (name, value) in map {
                let (at, is_declared) = place.field(name);
                set.put(&format!("f:{name}"), node(at, is_declared, value));
            }
        }
        Value::Array(items) if place.is_list(value) => {
            for item in items {
                if let Some(step) = place.step(item) {
                    set.put(&step, Node { is_member: true, below: of(place.element(), item) });
                }
            }
        }
        _ => {}
    }
    set
}

/// What a field with this value puts into the set: itself, if it is owned whole, or empty, or a key
/// that somebody chose; what is below it otherwise.
pub(super) fn node(at: Place, is_declared: bool, value: &Value) -> Node {
    let is_parted = at.is_list(value) || (at.is_map(value) && value != &Value::Object(Map::new()));
    Node { is_member: !is_parted || !is_declared, below: of(at, value) }
}

/// Takes away what is in `last` and not in `owned`. A place that a type declares counts as owned as
/// long as anything below it is.
pub(super) fn prune(place: Place, value: &mut Value, last: &FieldSet, owned: &FieldSet) {
    let nothing = FieldSet::default();
    let goes = |key: &str, node: &Node, is_declared: bool| {
        let is_there = |node: &Node| node.is_member || (is_declared && !node.below.is_empty());
        is_there(node) && !owned.entries.get(key).is_some_and(is_there)
    };
    if place.is_map(value) {
        let Value::Object(map) = value else { return };
        for (key, node) in &last.entries {
            let Some(name) = key.strip_prefix("f:") else { continue };
            let (at, is_declared) = place.field(name);
            if goes(key, node, is_declared) {
                map.shift_remove(name);
                continue;
            }
            let Some(inner) = map.get_mut(name) else { continue };
            let was_empty = is_bare(inner);
            let theirs = owned.entries.get(key);
            prune(at, inner, &node.below, theirs.map_or(&nothing, |node| &node.below));
            if is_bare(inner) && !was_empty && theirs.is_none() {
                map.shift_remove(name);
            }
        }
    } else if place.is_list(value) {
        let Value::Array(items) = value else { return };
        items.retain_mut(|item| {
            let Some(key) = place.step(item) else { return true };
            let Some(node) = last.entries.get(&key) else { return true };
            if goes(&key, node, false) {
                return false;
            }
            let owned = owned.entries.get(&key).map_or(&nothing, |node| &node.below);
            prune(place.element(), item, &node.below, owned);
            true
        });
    }
}

fn is_bare(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
