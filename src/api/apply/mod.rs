//! Who owns which field: server-side apply, and `metadata.managedFields` of every other write.
//!
//! Data in: the stored object, and the object that a manager applies or has made of it. Data out: the
//! merged object with its `managedFields`, or who stands against it. The rules are those of
//! KEP-555; which lists are told apart by keys stands in [`crate::api::schema`].
//!
//! ```text
//! applied ──► fields it sets ─────────────────┐
//! stored ───► merge(stored, applied) ──► take away what only it had set before ──► compare with stored
//!                                                                                    │
//!             others lose what changed (force, or a write that is no apply) ◄────────┴─► conflicts
//! ```
//!
//! # Invariants
//!
//! - A field that another manager owns changes only by force or by a write that is no apply.
//! - What only one manager set goes away when it applies without it; what another one owns stays.
//! - To apply the same again changes nothing, not even a time stamp.

use serde_json::Value;

use crate::api::json::str_at;
use crate::api::meta;
use crate::api::resource::Resource;

mod compare;
mod fields;
mod managers;
mod merge;
mod place;
mod set;

use compare::Changes;
use managers::{Entry, Operation};
use place::Place;

/// Who kubectl is when it applies; an object that it has applied in its own way before is its own.
const KUBECTL: &str = "kubectl";
/// What kubectl's own way of applying leaves on an object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Owns what stood in an object before anybody was written down.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Who writes, and to what.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// `fieldManager`, or the beginning of the user agent.
    pub manager: &'a str,
    /// `status`, `scale`, ...; empty for the object itself.
    pub subresource: &'a str,
    /// For the time stamp, RFC 3339.
    pub now: &'a str,
}

/// Why an object cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The applied object is not one: answer 400.
    #[error("{0}")]
    Malformed(String),
    /// Others own what would change: answer 409 with a cause for each.
    #[error("{}", managers::conflict_text(.0))]
    Conflicts(Vec<Conflict>),
}

/// A field that another manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The manager as people read it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// Path of the field: `.spec.replicas`.
    pub field: String,
}

/// The object that `applied` makes of `stored`, with its managers.
///
/// Without a stored object this is `applied` itself. Defaults are the caller's to fill in: nobody owns
/// them.
///
/// # Errors
///
/// See [`ApplyError`].
pub fn apply(
    resource: &Resource,
    stored: Option<&Value>,
    applied: &Value,
    writer: &Writer<'_>,
    is_forced: bool,
) -> Result<Value, ApplyError> {
    let root = Place::root(resource);
    let applied = &part_of(resource, writer, applied);
    merge::check(root, applied)?;
    let set = fields::own(fields::of(root, applied));
    let Some(stored) = stored else {
        let mut made = without_nulls(applied.clone());
        let entry = Entry::new(resource, writer, Operation::Apply, set);
        managers::write(&mut made, vec![entry]);
        return Ok(made);
    };
    let mut entries = managers::read(stored);
    if entries.is_empty() {
        let before = fields::own(fields::of(root, &part_of(resource, writer, stored)));
        let writer = Writer { manager: BEFORE_FIRST_APPLY, ..*writer };
        entries.push(Entry::new(resource, &writer, Operation::Update, before));
    }
    let (mine, mut others): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.is_of(writer, Operation::Apply));
    let last = mine.into_iter().next();
    let mut merged = merge::merged(root, stored, applied);
    if let Some(last) = &last {
        let mut owned = set.clone();
        for other in &others {
            owned.add(&other.fields);
        }
        fields::prune(root, &mut merged, &last.fields, &owned);
    }
    let changes = compare::changes(root, stored, &merged);
    if !is_forced {
        refuse(resource, stored, &others, &changes, writer)?;
    }
    take_away(&mut others, &changes);
    let mut entry = Entry::new(resource, writer, Operation::Apply, set);
    if let Some(last) = last.filter(|last| changes.is_none() && last.fields == entry.fields) {
        entry.time = last.time;
    }
    others.push(entry);
    renew_last_applied(stored, applied, &mut merged, writer);
    managers::write(&mut merged, others);
    Ok(merged)
}

/// Notes in `new` who owns what, after a write that is no apply.
pub fn track(resource: &Resource, stored: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    if managers::is_reset(new) {
        managers::write(new, Vec::new());
        return;
    }
    let mut entries = managers::read(new);
    if entries.is_empty() {
        entries = stored.map(managers::read).unwrap_or_default();
    }
    let root = Place::root(resource);
    let nothing = Value::Object(serde_json::Map::new());
    let changes = compare::changes(root, stored.unwrap_or(&nothing), new);
    if changes.is_none() {
        managers::write(new, entries);
        return;
    }
    let (mine, mut others): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.is_of(writer, Operation::Update));
    let mut set = mine.into_iter().next().map(|last| last.fields).unwrap_or_default();
    set.take_below(&changes.removed);
    set.add(&changes.modified);
    set.add(&changes.added);
    take_away(&mut others, &changes);
    others.push(Entry::new(resource, writer, Operation::Update, set));
    managers::cap(&mut others);
    managers::write(new, others);
}

/// Keeps the managers of `stored` when `new` names none.
pub fn keep(stored: &Value, new: &mut Value) {
    if new.pointer("/metadata/managedFields").is_none()
        && let Some(list) = stored.pointer("/metadata/managedFields")
    {
        meta::set_field(new, "managedFields", list.clone());
    }
}

/// Whether anybody is written down as an owner, and of status if `of_status`.
#[must_use]
pub fn is_tracked(object: &Value, of_status: bool) -> bool {
    let entries = crate::api::json::items_at(object, "/metadata/managedFields");
    entries.iter().any(|entry| !of_status || entry.pointer("/fieldsV1/f:status").is_some())
}

/// What a write to this part of the object says of it: status and the rest are never one write.
fn part_of(resource: &Resource, writer: &Writer<'_>, object: &Value) -> Value {
    let is_status = writer.subresource == "status";
    let keeps = |key: &str| match key {
        "apiVersion" | "kind" => true,
        "metadata" => !is_status,
        "status" => is_status || !resource.has_status,
        _ => !is_status,
    };
    let fields = object.as_object().into_iter().flatten().filter(|(key, _)| keeps(key));
    Value::Object(fields.map(|(key, value)| (key.clone(), value.clone())).collect())
}

fn refuse(
    resource: &Resource,
    stored: &Value,
    others: &[Entry],
    changes: &Changes,
    writer: &Writer<'_>,
) -> Result<(), ApplyError> {
    let changed = changes.written();
    let mut against = Vec::new();
    for other in others {
        let set = other.fields.both(&changed);
        if !set.is_empty() {
            against.push((other, set));
        }
    }
    // What kubectl has applied in its own way before is not somebody else's.
    if writer.manager == KUBECTL
        && let Some(text) = meta::annotation(stored, LAST_APPLIED)
        && let Ok(before) = serde_json::from_str::<Value>(text)
    {
        let before = fields::of(Place::root(resource), &before);
        for (_, set) in &mut against {
            set.take(&before);
        }
        against.retain(|(_, set)| !set.is_empty());
    }
    if against.is_empty() {
        return Ok(());
    }
    let conflicts = against.iter().flat_map(|(entry, set)| {
        let manager = entry.to_string();
        set.paths().into_iter().map(move |field| Conflict { manager: manager.clone(), field })
    });
    Err(ApplyError::Conflicts(conflicts.collect()))
}

fn take_away(others: &mut Vec<Entry>, changes: &Changes) {
    let changed = changes.written();
    for other in others.iter_mut() {
        other.fields.take(&changed);
        other.fields.take_below(&changes.removed);
    }
    others.retain(|other| !other.fields.is_empty());
}

/// An object that kubectl has applied in its own way, and applies in this one, is kept fit for both.
fn renew_last_applied(stored: &Value, applied: &Value, merged: &mut Value, writer: &Writer<'_>) {
    let is_kubectl = writer.manager == KUBECTL && writer.subresource.is_empty();
    if !is_kubectl || meta::annotation(stored, LAST_APPLIED).is_none() {
        return;
    }
    let mut last = applied.clone();
    if let Some(annotations) = last.pointer_mut("/metadata/annotations") {
        crate::api::json::remove(annotations, LAST_APPLIED);
    }
    let text = format!("{last}\n");
    if let Some(annotations) =
        merged.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    {
        annotations.insert(LAST_APPLIED.to_owned(), text.into());
    }
}

/// A null says that a field is not to be there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let set = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(set.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        other => other,
    }
}

/// The text under a key; absent is "".
fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    str_at(value, pointer).unwrap_or("")
}

#[cfg(test)]
mod apply_test;
