//! Objects as they go in and come out.

use std::sync::Arc;

use edgeorc_raft::Entry;
use serde_json::Value;

use crate::api::meta;
use crate::store::StoreError;

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
        let object = serde_json::from_slice(&entry.value)
            .map_err(|cause| StoreError::Damaged(cause.to_string()))?;
        Ok(Self::new(object, entry.mod_revision))
    }

    /// The bytes to store: the revision is the entry's own and is left out.
    pub(super) fn bytes(object: &Value) -> Vec<u8> {
        let mut object = object.clone();
        meta::clear_resource_version(&mut object);
        object.to_string().into_bytes()
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
}

/// A collection, or a page of it, all at one revision.
#[derive(Debug, Clone)]
pub struct Listed {
    /// In key order.
    pub items: Vec<Stored>,
    /// Revision of the whole.
    pub revision: u64,
    /// Objects after the last one.
    pub remaining: u64,
    /// Key of the last object.
    pub last_key: Option<Vec<u8>>,
}

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Change {
    /// Revision of the change.
    pub revision: u64,
    /// The object now; `None` is deleted.
    pub current: Option<Arc<Value>>,
    /// The object before, with the change's revision as its `resourceVersion`; `None` is created.
    pub previous: Option<Arc<Value>>,
}

/// A key written beside an object in the same transaction, to keep something unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// Must be free; belongs to the object from now on.
    Claim(String),
    /// Is free again.
    Release(String),
}
