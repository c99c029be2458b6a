//! What an informer has seen, in order of namespace and name.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt as _};
use parking_lot::RwLock;
use tokio::sync::watch;

/// Namespace (empty for cluster-scoped objects) and name.
pub(crate) type Key = (String, String);

/// The objects of one kind, as last announced by the server. Cheap to clone; all clones are one.
///
/// Reads never wait for the network. Unlike kube's own store, objects come in order of namespace
/// and name, so that nothing downstream depends on the order of a hash table, and the objects of
/// one namespace are a range, not a scan.
pub struct Store<K> {
    objects: Arc<RwLock<BTreeMap<Key, Arc<K>>>>,
    ready: watch::Receiver<bool>,
}

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self { objects: Arc::clone(&self.objects), ready: self.ready.clone() }
    }
}

impl<K> fmt::Debug for Store<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("len", &self.objects.read().len())
            .field("is_ready", &*self.ready.borrow())
            .finish()
    }
}

impl<K: Resource> Store<K> {
    /// An empty store that becomes ready when `ready` turns true.
    pub(crate) fn new(ready: watch::Receiver<bool>) -> Self {
        Self { objects: Arc::default(), ready }
    }

    /// Every object, by namespace and name.
    #[must_use]
    pub fn state(&self) -> Vec<Arc<K>> {
        self.objects.read().values().cloned().collect()
    }

    /// The object `name` in `namespace` (empty for cluster-scoped kinds).
    #[must_use]
    pub fn named(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.objects.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The object `key` refers to.
    #[must_use]
    pub fn get(&self, key: &ObjectRef<K>) -> Option<Arc<K>>
    where
        K::DynamicType: Clone,
    {
        self.named(key.namespace.as_deref().unwrap_or_default(), &key.name)
    }

    /// The objects of one namespace, by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Bound::Included((namespace.to_owned(), String::new()));
        self.objects
            .read()
            .range((from, Bound::Unbounded))
            .take_while(|((found, _), _)| found == namespace)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// The first object `predicate` accepts.
    #[must_use]
    pub fn find(&self, predicate: impl Fn(&K) -> bool) -> Option<Arc<K>> {
        self.objects.read().values().find(|object| predicate(object)).cloned()
    }

    /// The objects `predicate` accepts, by namespace and name.
    #[must_use]
    pub fn select(&self, predicate: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.objects.read().values().filter(|object| predicate(object)).cloned().collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.read().len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.read().is_empty()
    }

    /// Whether the first complete list has arrived.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Waits for the first complete list. Returns `false` when the informer ended before it.
    pub async fn wait_until_ready(&self) -> bool {
        self.ready.clone().wait_for(|is_ready| *is_ready).await.is_ok()
    }

    /// Puts `object` in; returns what it replaced.
    pub(crate) fn insert(&self, object: &Arc<K>) -> Option<Arc<K>> {
        self.objects.write().insert(key_of(object.as_ref()), Arc::clone(object))
    }

    /// Takes the object of that key out.
    pub(crate) fn remove(&self, key: &Key) -> Option<Arc<K>> {
        self.objects.write().remove(key)
    }

    /// Replaces everything; returns what was there.
    pub(crate) fn swap(&self, objects: BTreeMap<Key, Arc<K>>) -> BTreeMap<Key, Arc<K>> {
        std::mem::replace(&mut *self.objects.write(), objects)
    }
}

/// The key an object is kept under.
pub(crate) fn key_of<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}
