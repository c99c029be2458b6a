//! Where objects live in the key space: `/registry/<group>/<plural>/<namespace>/<name>`.

use crate::api::node_load::LEASE_NAMESPACE;
use crate::api::{self, Resource};

/// Root of all objects.
const ROOT: &str = "/registry";
/// What stands for the core group, which has no name.
const CORE: &str = "core";

/// Place of one object.
#[derive(Debug, Clone)]
pub struct Key {
    /// Kind of the object.
    pub resource: &'static Resource,
    /// Its namespace; `None` for cluster-wide kinds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Of an object.
    #[must_use]
    pub fn new(resource: &'static Resource, namespace: Option<&str>, name: &str) -> Self {
        let namespace = namespace.filter(|_| resource.is_namespaced).map(str::to_owned);
        Self { resource, namespace, name: name.to_owned() }
    }

    /// The key's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut key = prefix(self.resource, self.namespace.as_deref());
        key.push_str(&self.name);
        key.into_bytes()
    }

    /// Whether the object lives in the leader's memory only.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        api::is_volatile(self.resource, self.namespace.as_deref())
    }
}

/// Of the Lease that is a node's heartbeat.
pub(super) fn of_lease(node: &str) -> Option<Key> {
    let resource = api::find("coordination.k8s.io", "v1", "leases")?;
    Some(Key::new(resource, Some(LEASE_NAMESPACE), node))
}

/// A collection: a kind in one namespace, or in all.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Kind of the objects.
    pub resource: &'static Resource,
    /// Only this namespace; `None` is all, or a cluster-wide kind.
    pub namespace: Option<String>,
}

impl Scope {
    /// Of a collection.
    #[must_use]
    pub fn new(resource: &'static Resource, namespace: Option<&str>) -> Self {
        let namespace = namespace.filter(|_| resource.is_namespaced).map(str::to_owned);
        Self { resource, namespace }
    }

    /// First key of the collection.
    #[must_use]
    pub fn start(&self) -> Vec<u8> {
        prefix(self.resource, self.namespace.as_deref()).into_bytes()
    }

    /// First key after the collection.
    #[must_use]
    pub fn end(&self) -> Vec<u8> {
        let mut end = self.start();
        // Prefixes end in '/', so raising the last byte by one is the next prefix.
        if let Some(last) = end.last_mut() {
            *last = last.saturating_add(1);
        }
        end
    }

    /// Whether the collection lives in the leader's memory only. All namespaces of a kind that is
    /// volatile in one of them count as durable.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        api::is_volatile(self.resource, self.namespace.as_deref())
    }
}

fn prefix(resource: &Resource, namespace: Option<&str>) -> String {
    let group = if resource.group.is_empty() { CORE } else { resource.group };
    let mut key = format!("{ROOT}/{group}/{}/", resource.plural);
    if let Some(namespace) = namespace {
        key.push_str(namespace);
        key.push('/');
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_lies_within_its_collections_and_no_other() {
        let pods = api::find("", "v1", "pods").unwrap();
        let key = Key::new(pods, Some("a"), "x").bytes();
        assert_eq!(key, b"/registry/core/pods/a/x");
        for namespace in [None, Some("a")] {
            let scope = Scope::new(pods, namespace);
            assert!(scope.start() <= key && key < scope.end());
        }
        for namespace in ["", "aa", "b"] {
            let scope = Scope::new(pods, Some(namespace));
            assert!(!(scope.start() <= key && key < scope.end()), "{namespace:?}");
        }
        let nodes = api::find("", "v1", "nodes").unwrap();
        assert_eq!(Key::new(nodes, Some("ignored"), "n").bytes(), b"/registry/core/nodes/n");
    }
}
