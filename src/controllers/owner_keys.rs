//! Which owners a change of what they own concerns.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{Selector, SelectorExt as _};

use crate::client::{Change, Store};
use crate::controllers::object::{Key, controller_of, key};

/// The key of the object's controller, if that one is of kind `O`.
pub(super) fn owner_key<O: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<Key> {
    let owner = controller_of(meta).filter(|owner| owner.kind == O::kind(&()))?;
    Some((meta.namespace.clone().unwrap_or_default(), owner.name.clone()))
}

/// The keys of those that may want an object without a controller: their `selector` matches it.
pub(super) fn adopter_keys<O: Resource>(
    owners: &Store<O>,
    meta: &ObjectMeta,
    selector: impl Fn(&O) -> Option<Selector>,
) -> Vec<Key> {
    if controller_of(meta).is_some() {
        return Vec::new();
    }
    let (none, namespace) = (BTreeMap::new(), meta.namespace.clone().unwrap_or_default());
    let labels = meta.labels.as_ref().unwrap_or(&none);
    let matches = |owner: &O| selector(owner).is_some_and(|selector| selector.matches(labels));
    let owners = owners.in_namespace(&namespace);
    owners.iter().filter(|owner| matches(owner)).map(|owner| key(owner.as_ref())).collect()
}

/// The keys that a change of a pod concerns: its controller's, that of the one it had, and those of
/// all that may want it.
pub(super) fn keys_of_pod_change<O: Resource<DynamicType = ()>>(
    owners: &Store<O>,
    change: &Change<'_, Pod>,
    selector: impl Fn(&O) -> Option<Selector>,
) -> Vec<Key> {
    let mut keys = Vec::new();
    if let Change::Applied { old: Some(old), .. } = change {
        keys.extend(owner_key::<O>(&old.metadata));
    }
    let meta = &change.object().metadata;
    keys.extend(owner_key::<O>(meta));
    if matches!(change, Change::Applied { .. }) {
        keys.extend(adopter_keys(owners, meta, selector));
    }
    keys
}
