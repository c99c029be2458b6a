//! Objects of any kind in the table of resources, as far as their metadata.

use kube::Api;
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};

use crate::api::{Resource, resources};

/// An object of any kind, without spec and status.
pub(super) type AnyObject = PartialObjectMeta<DynamicObject>;

/// The row of the table for `api_version` (`v1`, `apps/v1`) and `kind`.
pub(super) fn find(api_version: &str, kind: &str) -> Option<&'static Resource> {
    resources()
        .iter()
        .find(|resource| resource.kind == kind && resource.api_version() == api_version)
}

/// The door to the objects of `resource`; `namespace` counts for namespaced kinds only, and empty
/// means all of them.
pub(super) fn api(client: &kube::Client, resource: &Resource, namespace: &str) -> Api<AnyObject> {
    let row = ApiResource {
        group: resource.group.to_owned(),
        version: resource.version.to_owned(),
        api_version: resource.api_version(),
        kind: resource.kind.to_owned(),
        plural: resource.plural.to_owned(),
    };
    if resource.is_namespaced && !namespace.is_empty() {
        Api::namespaced_with(client.clone(), namespace, &row)
    } else {
        Api::all_with(client.clone(), &row)
    }
}
