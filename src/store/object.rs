//! Objects as they go in and come out.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use edgeorc_raft::Entry;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value};

use crate::api::meta;
use crate::store::{StoreError, packed};

/// Largest object, in bytes of JSON: what fits a transaction with room to spare.
pub const OBJECT_BYTES_MAX: usize = 1_572_864;

/// An object with the revision of its last write, which is its `resourceVersion`.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The object, `metadata.resourceVersion` included.
    pub object: Value,
    /// Revision of its last write.
    pub revision: u64,
}

impl Stored {
    /// Puts the revision into the object.
    #[must_use]
    pub fn new(mut object: Value, revision: u64) -> Self {
        meta::set_resource_version(&mut object, revision);
        Self { object, revision }
    }

    /// Reads an entry of the log's state.
    pub(super) fn read(entry: &Entry) -> Result<Self, StoreError> {
        let object = serde_json::from_slice(&packed::unpack(&entry.value)?)
            .map_err(|cause| StoreError::Damaged(cause.to_string()))?;
        Ok(Self::new(object, entry.mod_revision))
    }

    /// The bytes to store: the revision is the entry's own and is left out.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`].
    pub(super) fn bytes(object: &Value) -> Result<Vec<u8>, StoreError> {
        let bytes = serde_json::to_vec(&Unversioned(object))
            .map_err(|cause| StoreError::Damaged(cause.to_string()))?;
        check_size(bytes.len())?;
        Ok(bytes)
    }

    /// The same for the log, where it rests.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`].
    pub(super) fn packed(object: &Value) -> Result<Vec<u8>, StoreError> {
        Self::bytes(object).map(packed::pack)
    }
}

/// Refuses objects that would not fit.
fn check_size(bytes: usize) -> Result<(), StoreError> {
    if bytes > OBJECT_BYTES_MAX {
        let text = format!("the object has {bytes} bytes, the limit is {OBJECT_BYTES_MAX}");
        return Err(StoreError::TooLarge(text));
    }
    Ok(())
}

/// Says whether `object` would be too large to store, for writes that are not made.
///
/// # Errors
///
/// [`StoreError::TooLarge`].
pub fn check_fits(object: &Value) -> Result<(), StoreError> {
    Stored::bytes(object).map(drop)
}

/// Writes an object without its `metadata.resourceVersion`, and without a copy of it.
struct Unversioned<'a>(&'a Value);

/// Writes its `metadata`.
struct UnversionedMetadata<'a>(&'a Map<String, Value>);

impl Serialize for Unversioned<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(fields) = self.0 else { return self.0.serialize(serializer) };
        let mut map = serializer.serialize_map(Some(fields.len()))?;
        for (key, value) in fields {
            match value {
                Value::Object(metadata) if key == "metadata" => {
                    map.serialize_entry(key, &UnversionedMetadata(metadata))?;
                }
                _ => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

impl Serialize for UnversionedMetadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(key, _)| *key != "resourceVersion"))
    }
}

/// Which part of a collection to read.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Most objects; 0 is all.
    pub limit: usize,
    /// Only keys after this one.
    pub after: Option<Vec<u8>>,
    /// At this revision; `None` is the newest.
    pub at: Option<u64>,
    /// Whether the objects after the page must be counted: that takes a look at every one.
    pub counts_remaining: bool,
}

/// A collection, or a page of it, all at one revision.
#[derive(Debug, Clone)]
pub struct Listed {
    /// In key order.
    pub items: Vec<Stored>,
    /// Revision of the whole.
    pub revision: u64,
    /// Objects after the last one; 1 stands for any number if they were not to be counted.
    pub remaining: u64,
    /// Key of the last object.
    pub last_key: Option<Vec<u8>>,
}

/// An object that many watchers look at: parsed once, written as JSON at most once.
#[derive(Debug)]
pub struct Shown {
    object: Value,
    json: OnceLock<Bytes>,
    part: OnceLock<Box<Self>>,
}

impl Shown {
    /// For an object with its `resourceVersion`.
    #[must_use]
    pub fn new(object: Value) -> Self {
        Self { object, json: OnceLock::new(), part: OnceLock::new() }
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// The object as JSON.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.json.get_or_init(|| self.object.to_string().into()).clone()
    }

    /// What `cut` leaves of it, for watchers that are told a part only. Made once: it must be the same
    /// function for all of an object's watchers.
    #[must_use]
    pub fn part(&self, cut: fn(&Value) -> Value) -> &Self {
        self.part.get_or_init(|| Box::new(Self::new(cut(&self.object))))
    }
}

/// One change of one object. Cheap to clone: all watchers share it.
#[derive(Debug, Clone)]
pub struct Change {
    /// Revision of the change.
    pub revision: u64,
    /// The object now; `None` is deleted.
    pub current: Option<Arc<Shown>>,
    /// The object before, with the change's revision as its `resourceVersion`; `None` is created.
    pub previous: Option<Arc<Shown>>,
}

/// What is written beside an object in the same transaction: a key that keeps something unique, or
/// another object that takes note of this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// Must be free; belongs to the object from now on.
    Claim(String),
    /// Is free again.
    Release(String),
    /// Another object, last written at `revision`, becomes `object`.
    Change {
        /// What [`StoreError::SideTaken`] calls it.
        name: String,
        /// Its key's bytes.
        key: Vec<u8>,
        /// Revision of its last write.
        revision: u64,
        /// What it becomes.
        object: Value,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_stored_has_no_version_and_keeps_its_order() {
        let object =
            json!({"kind": "X", "metadata": {"resourceVersion": "7", "name": "a"}, "a": 1});
        let bytes = Stored::bytes(&object).unwrap();
        assert_eq!(bytes, br#"{"kind":"X","metadata":{"name":"a"},"a":1}"#);
    }

    #[test]
    fn an_object_over_the_limit_is_too_large() {
        let object = json!({"data": "x".repeat(OBJECT_BYTES_MAX)});
        assert!(matches!(Stored::bytes(&object), Err(StoreError::TooLarge(_))));
    }
}
