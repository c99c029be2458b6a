//! The entries of `metadata.managedFields`.

use std::fmt;

use serde_json::{Value, json};

use crate::api::apply::set::FieldSet;
use crate::api::apply::{Conflict, Writer, text};
use crate::api::json::items_at;
use crate::api::meta;
use crate::api::resource::Resource;

/// Entries of writes that are no apply; the oldest beyond become one. Kubernetes' figure.
const UPDATES_MAX: usize = 10;
/// Who owns what the oldest owned.
const ANCIENT: &str = "ancient-changes";

/// How a manager writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What one manager owns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    pub(super) time: String,
    pub(super) fields: FieldSet,
}

impl Entry {
    pub(super) fn new(
        resource: &Resource,
        writer: &Writer<'_>,
        operation: Operation,
        fields: FieldSet,
    ) -> Self {
        Self {
            manager: writer.manager.to_owned(),
            operation,
            api_version: resource.api_version(),
            subresource: writer.subresource.to_owned(),
            time: writer.now.to_owned(),
            fields,
        }
    }

    /// Whether it is what `writer` owns by `operation`.
    pub(super) fn is_of(&self, writer: &Writer<'_>, operation: Operation) -> bool {
        self.manager == writer.manager
            && self.subresource == writer.subresource
            && self.operation == operation
    }

    fn read(value: &Value) -> Option<Self> {
        let operation = match text(value, "/operation") {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let owned = |pointer: &str| text(value, pointer).to_owned();
        Some(Self {
            manager: owned("/manager"),
            operation,
            api_version: owned("/apiVersion"),
            subresource: owned("/subresource"),
            time: owned("/time"),
            fields: FieldSet::read(value.get("fieldsV1").unwrap_or(&Value::Null)),
        })
    }

    fn write(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager,
            "operation": self.operation.as_str(),
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.write(),
        });
        if let Some(map) = entry.as_object_mut() {
            for key in ["manager", "apiVersion", "time"] {
                if map.get(key).and_then(Value::as_str) == Some("") {
                    map.shift_remove(key);
                }
            }
            if !self.subresource.is_empty() {
                map.insert("subresource".to_owned(), json!(self.subresource));
            }
        }
        entry
    }
}

/// As Kubernetes names it in a conflict.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.manager)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
            if !self.time.is_empty() {
                write!(f, " at {}", self.time)?;
            }
        }
        Ok(())
    }
}

/// The entries of an object.
pub(super) fn read(object: &Value) -> Vec<Entry> {
    items_at(object, "/metadata/managedFields").iter().filter_map(Entry::read).collect()
}

/// Whether the client asks that all managers be forgotten: one entry that says nothing.
pub(super) fn is_reset(object: &Value) -> bool {
    matches!(items_at(object, "/metadata/managedFields"), [one] if one == &json!({}))
}

/// Puts entries into an object, in Kubernetes' order.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    if entries.is_empty() {
        meta::remove_field(object, "managedFields");
        return;
    }
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| {
            let Entry { operation, time, manager, api_version, subresource, .. } = entry.clone();
            (operation, time, manager, api_version, subresource)
        };
        key(a).cmp(&key(b))
    });
    let list: Vec<Value> = entries.iter().map(Entry::write).collect();
    meta::set_field(object, "managedFields", list);
}

/// Makes one of the oldest when there are too many.
pub(super) fn cap(entries: &mut Vec<Entry>) {
    loop {
        let mut updates: Vec<(String, usize)> = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.operation == Operation::Update)
            .map(|(at, entry)| (entry.time.clone(), at))
            .collect();
        if updates.len() <= UPDATES_MAX {
            return;
        }
        updates.sort();
        let mut oldest: Vec<usize> = updates.iter().take(2).map(|(_, at)| *at).collect();
        oldest.sort_unstable_by(|a, b| b.cmp(a));
        let mut taken = oldest.into_iter().map(|at| entries.remove(at));
        let Some(mut one) = taken.next() else { return };
        for other in taken {
            one.fields.add(&other.fields);
            one.time = one.time.max(other.time);
        }
        one.manager = ANCIENT.to_owned();
        one.subresource = String::new();
        entries.push(one);
    }
}

/// Kubernetes' text.
pub(super) fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [Conflict { manager, field }] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {manager}: {field}");
    }
    let mut managers: Vec<&str> = conflicts.iter().map(|one| one.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        let fields = conflicts.iter().filter(|one| one.manager == manager);
        lines.extend(fields.map(|one| format!("- {}", one.field)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}
