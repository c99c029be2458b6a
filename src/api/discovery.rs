//! Discovery documents, all made from the table of resources.

use serde_json::{Value, json};

/// Version of the aggregated discovery format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregatedVersion {
    /// `apidiscovery.k8s.io/v2`.
    V2,
    /// `apidiscovery.k8s.io/v2beta1`.
    V2beta1,
}

/// `/api` for clients that ask for an `APIGroupDiscoveryList`.
#[must_use]
pub fn aggregated_core(version: AggregatedVersion) -> Value {
    aggregated(version, true)
}

/// `/apis` for clients that ask for an `APIGroupDiscoveryList`.
#[must_use]
pub fn aggregated_groups(version: AggregatedVersion) -> Value {
    aggregated(version, false)
}

fn aggregated(_version: AggregatedVersion, _is_core: bool) -> Value {
    json!({})
}

/// `/api`: `APIVersions`. `server_address` is the `host:port` the client reached.
#[must_use]
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [
            { "clientCIDR": "0.0.0.0/0", "serverAddress": server_address }
        ],
    })
}

/// `/apis`: `APIGroupList`.
#[must_use]
pub fn api_group_list() -> Value {
    json!({})
}

/// `/apis/<group>`: `APIGroup`, if the group is served.
#[must_use]
pub fn api_group(_group: &str) -> Option<Value> {
    None
}

/// `/api/v1` or `/apis/<group>/<version>`: `APIResourceList`, if it is served. The core group is "".
#[must_use]
pub fn api_resource_list(_group: &str, _version: &str) -> Option<Value> {
    None
}
