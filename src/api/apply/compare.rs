//! What differs between two objects.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::api::apply::fields;
use crate::api::apply::place::Place;
use crate::api::apply::set::{FieldSet, Node};

/// The fields that differ.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Gone, with all that was below.
    pub(super) removed: FieldSet,
    /// There before, with another value.
    pub(super) modified: FieldSet,
    /// Not there before.
    pub(super) added: FieldSet,
}

impl Changes {
    pub(super) fn is_none(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// The fields that have a new value.
    pub(super) fn written(&self) -> FieldSet {
        let mut written = self.modified.clone();
        written.add(&self.added);
        written
    }

    fn put(&mut self, key: &str, below: Self) {
        let node = |below| Node { is_member: false, below };
        self.removed.put(key, node(below.removed));
        self.modified.put(key, node(below.modified));
        self.added.put(key, node(below.added));
    }
}

/// What differs in what can be owned.
pub(super) fn changes(place: Place, old: &Value, new: &Value) -> Changes {
    let Changes { removed, modified, added } = between(place, old, new);
    Changes {
        removed: fields::own(removed),
        modified: fields::own(modified),
        added: fields::own(added),
    }
}

fn between(place: Place, old: &Value, new: &Value) -> Changes {
    let mut changes = Changes::default();
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => maps(place, old, new, &mut changes),
        (Value::Array(old), Value::Array(new)) => lists(place, old, new, &mut changes),
        _ => {}
    }
    changes
}

fn maps(place: Place, old: &Map<String, Value>, new: &Map<String, Value>, out: &mut Changes) {
    let itself = || Node { is_member: true, below: FieldSet::default() };
    let set = |value: Option<&Value>| value.is_some_and(|value| !value.is_null());
    for name in old.keys().filter(|name| set(old.get(*name)) && !set(new.get(*name))) {
        out.removed.put(&format!("f:{name}"), itself());
    }
    for (name, value) in new.iter().filter(|(_, value)| !value.is_null()) {
        let key = format!("f:{name}");
        let (at, is_declared) = place.field(name);
        match old.get(name).filter(|before| !before.is_null()) {
            None => {
                out.added.put(&key, new_node(at, is_declared, value));
            }
            Some(before) if before == value => {}
            Some(before) => {
                let is_parted = (at.is_map(before) && at.is_map(value))
                    || (at.is_list(before) && at.is_list(value));
                if is_parted {
                    out.put(&key, between(at, before, value));
                } else {
                    let mut node = fields::node(at, is_declared, value);
                    node.is_member = true;
                    out.modified.put(&key, node);
                }
            }
        }
    }
}

/// What is added with a value that was not there. A map of somebody's keys is there because of whoever
/// put the first one in.
fn new_node(at: Place, is_declared: bool, value: &Value) -> Node {
    let nothing =
        if value.is_array() { Value::Array(Vec::new()) } else { Value::Object(Map::new()) };
    let node = fields::node(at, is_declared, value);
    Node {
        is_member: node.is_member || matches!(at, Place::Map(_)),
        below: if node.below.is_empty() { node.below } else { between(at, &nothing, value).added },
    }
}

fn lists(place: Place, old: &[Value], new: &[Value], out: &mut Changes) {
    let by_step = |items: &[Value]| -> BTreeMap<String, usize> {
        let steps = items.iter().enumerate().rev();
        steps.filter_map(|(at, item)| Some((place.step(item)?, at))).collect()
    };
    let (before, after) = (by_step(old), by_step(new));
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        out.removed.put(key, Node { is_member: true, below: FieldSet::default() });
    }
    for (key, at) in &after {
        let Some(item) = new.get(*at) else { continue };
        match before.get(key).and_then(|at| old.get(*at)) {
            None => {
                let below = between(place.element(), &Value::Object(Map::new()), item).added;
                out.added.put(key, Node { is_member: true, below });
            }
            Some(before) if before == item => {}
            Some(before) => out.put(key, between(place.element(), before, item)),
        }
    }
}
