//! Objects that several informers of one process keep, each version once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};

use kube::Resource;
use parking_lot::Mutex;

/// The objects of one kind that informers of this process hold. Cheap to clone; all clones are one.
///
/// A server's controllers and its own agent follow the same pods, each by a watch of its own: with one of
/// these between them, a version is in memory once. Holds nothing itself, and as many names as there are
/// objects.
pub struct Interned<K>(Arc<Mutex<BTreeMap<String, Weak<K>>>>);

impl<K> Clone for Interned<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for Interned<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> fmt::Debug for Interned<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interned").field("len", &self.0.lock().len()).finish()
    }
}

impl<K: Resource + Clone> Interned<K> {
    /// The version that `object` is, as another informer holds it, or a copy that is as large as what is in
    /// it: what was decoded has room for more in each of its lists, which is some KiB of a Pod.
    pub(crate) fn keep(&self, object: &K) -> Arc<K> {
        let meta = object.meta();
        let (Some(uid), Some(version)) = (&meta.uid, &meta.resource_version) else {
            return Arc::new(object.clone());
        };
        let mut known = self.0.lock();
        let had = known.get(uid).and_then(Weak::upgrade);
        if let Some(had) = had.filter(|had| had.meta().resource_version.as_ref() == Some(version)) {
            return had;
        }
        let kept = Arc::new(object.clone());
        match known.get_mut(uid) {
            Some(entry) => *entry = Arc::downgrade(&kept),
            None => drop(known.insert(uid.clone(), Arc::downgrade(&kept))),
        }
        kept
    }

    /// The object is gone.
    pub(crate) fn forget(&self, object: &K) {
        if let Some(uid) = &object.meta().uid {
            self.0.lock().remove(uid);
        }
    }

    /// A list has come, and with it word of objects that are gone.
    pub(crate) fn sweep(&self) {
        self.0.lock().retain(|_, object| object.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn object(uid: &str, version: &str) -> ConfigMap {
        let meta = json!({"name": "a", "uid": uid, "resourceVersion": version});
        serde_json::from_value(json!({ "metadata": meta })).unwrap()
    }

    #[test]
    fn a_version_is_kept_once_and_another_one_for_itself() {
        let interned = Interned::default();
        let first = interned.keep(&object("u", "1"));
        assert!(Arc::ptr_eq(&first, &interned.clone().keep(&object("u", "1"))));
        let second = interned.keep(&object("u", "2"));
        assert_eq!(second.metadata.resource_version.as_deref(), Some("2"));
        // One informer is behind the other.
        assert_eq!(*interned.keep(&object("u", "1")), *first);
        assert!(!Arc::ptr_eq(&first, &interned.keep(&object("v", "1"))));
    }

    #[test]
    fn what_nobody_holds_is_forgotten() {
        let interned = Interned::default();
        let held = interned.keep(&object("held", "1"));
        drop(interned.keep(&object("gone", "1")));
        interned.sweep();
        assert_eq!(interned.0.lock().keys().collect::<Vec<_>>(), ["held"]);
        interned.forget(&held);
        assert!(interned.0.lock().is_empty());
    }
}
