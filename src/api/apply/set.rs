//! A set of fields, in the form of `FieldsV1`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Fields below one place. The key of an entry is a step as `FieldsV1` writes it: `f:name`,
/// `k:{"name":"a"}`, `v:"a"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    pub(super) entries: BTreeMap<String, Node>,
}

/// One step of a [`FieldSet`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Node {
    /// The place itself is in the set, not only what is below it.
    pub(super) is_member: bool,
    pub(super) below: FieldSet,
}

/// What stands beside a place's own fields to say that it is in the set itself.
const ITSELF: &str = ".";

impl FieldSet {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reads `FieldsV1`; what is no set there is left out.
    pub(super) fn read(value: &Value) -> Self {
        let mut set = Self::default();
        for (key, value) in value.as_object().into_iter().flatten() {
            let Some(inner) = value.as_object().filter(|_| key != ITSELF) else { continue };
            let is_member = inner.is_empty() || inner.contains_key(ITSELF);
            set.put(key, Node { is_member, below: Self::read(value) });
        }
        set
    }

    /// Writes `FieldsV1`.
    pub(super) fn write(&self) -> Value {
        let mut map = Map::new();
        for (key, node) in &self.entries {
            let mut inner = match node.below.write() {
                Value::Object(inner) => inner,
                _ => Map::new(),
            };
            if node.is_member && !inner.is_empty() {
                inner.insert(ITSELF.to_owned(), Value::Object(Map::new()));
            }
            map.insert(key.clone(), Value::Object(inner));
        }
        Value::Object(map)
    }

    /// Adds a node, unless nothing is in it.
    pub(super) fn put(&mut self, key: &str, node: Node) {
        if node.is_member || !node.below.is_empty() {
            self.entries.insert(key.to_owned(), node);
        }
    }

    /// Adds what is in `other`.
    pub(super) fn add(&mut self, other: &Self) {
        for (key, node) in &other.entries {
            let mine = self.entries.entry(key.clone()).or_default();
            mine.is_member |= node.is_member;
            mine.below.add(&node.below);
        }
    }

    /// Takes out what is in `other`, and leaves what is below.
    pub(super) fn take(&mut self, other: &Self) {
        self.subtract(other, false);
    }

    /// Takes out what is in `other`, with all that is below.
    pub(super) fn take_below(&mut self, other: &Self) {
        self.subtract(other, true);
    }

    fn subtract(&mut self, other: &Self, with_below: bool) {
        for (key, theirs) in &other.entries {
            let Some(mine) = self.entries.get_mut(key) else { continue };
            if theirs.is_member {
                mine.is_member = false;
                if with_below {
                    mine.below = Self::default();
                }
            }
            mine.below.subtract(&theirs.below, with_below);
            if !mine.is_member && mine.below.is_empty() {
                self.entries.remove(key);
            }
        }
    }

    /// What is in both.
    pub(super) fn both(&self, other: &Self) -> Self {
        let mut set = Self::default();
        for (key, mine) in &self.entries {
            if let Some(theirs) = other.entries.get(key) {
                let is_member = mine.is_member && theirs.is_member;
                set.put(key, Node { is_member, below: mine.below.both(&theirs.below) });
            }
        }
        set
    }

    /// Every place in the set as people read it: `.spec.containers[name="a"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, before: &str, paths: &mut Vec<String>) {
        for (key, node) in &self.entries {
            let path = format!("{before}{}", step(key));
            if node.is_member {
                paths.push(path.clone());
            }
            node.below.collect(&path, paths);
        }
    }
}

/// A step as people read it.
fn step(key: &str) -> String {
    let keys = key.strip_prefix("k:").and_then(|json| serde_json::from_str::<Value>(json).ok());
    if let Some(Value::Object(keys)) = keys {
        let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        return format!("[{}]", keys.join(","));
    }
    match key.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("v", value)) => format!("[={value}]"),
        Some(("i", index)) => format!("[{index}]"),
        _ => format!(".{key}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sets_are_read_and_written_as_fields_v1() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}},
            "f:finalizers": {"v:\"x\"": {}}});
        let set = FieldSet::read(&text);
        assert_eq!(set.write(), text);
        assert_eq!(
            set.paths(),
            [
                ".finalizers[=\"x\"]",
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"a\"]",
                ".spec.containers[name=\"a\"].image",
            ]
        );
    }

    #[test]
    fn sets_are_added_taken_and_compared() {
        let set = |value: Value| FieldSet::read(&value);
        let mut all = set(json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}}));
        all.add(&set(json!({"f:b": {"f:d": {}}})));
        assert_eq!(all, set(json!({"f:a": {}, "f:b": {".": {}, "f:c": {}, "f:d": {}}})));
        let some = set(json!({"f:b": {".": {}, "f:d": {}}, "f:z": {}}));
        assert_eq!(all.both(&some), set(json!({"f:b": {".": {}, "f:d": {}}})));
        let mut rest = all.clone();
        rest.take(&some);
        assert_eq!(rest, set(json!({"f:a": {}, "f:b": {"f:c": {}}})));
        all.take_below(&some);
        assert_eq!(all, set(json!({"f:a": {}})));
    }
}
