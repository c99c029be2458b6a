//! Discovery documents, all made from the table of resources.

use serde_json::{Value, json};

use crate::api::resource::{Resource, resources};

/// Verbs of `/status` and `/scale`.
const PART_VERBS: [&str; 3] = ["get", "patch", "update"];

/// Version of the aggregated discovery format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AggregatedVersion {
    /// `apidiscovery.k8s.io/v2`.
    V2,
    /// `apidiscovery.k8s.io/v2beta1`.
    V2beta1,
}

/// A subresource with the kind it exchanges.
struct Part {
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: Vec<&'static str>,
}

/// Everything below one object of `res`.
fn parts(res: &Resource) -> Vec<Part> {
    let mut parts = Vec::new();
    let own = |name, kind| Part {
        name,
        group: res.group,
        version: res.version,
        kind,
        verbs: PART_VERBS.to_vec(),
    };
    if res.has_status {
        parts.push(own("status", res.kind));
    }
    if res.has_scale {
        parts.push(Part { group: "autoscaling", version: "v1", ..own("scale", "Scale") });
    }
    for sub in res.subresources.iter().filter(|sub| !matches!(sub.name, "status" | "scale")) {
        let is_own = sub.version.is_empty();
        parts.push(Part {
            name: sub.name,
            group: if is_own { res.group } else { sub.group },
            version: if is_own { res.version } else { sub.version },
            kind: sub.kind,
            verbs: sub.verbs.to_vec(),
        });
    }
    parts
}

/// Group and version of every group but the core one, in the order of the table.
fn groups() -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for res in resources().iter().filter(|res| !res.group.is_empty()) {
        if !found.contains(&(res.group, res.version)) {
            found.push((res.group, res.version));
        }
    }
    found
}

fn of_version(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    resources().iter().filter(move |res| res.group == group && res.version == version)
}

/// `/api` for clients that ask for an `APIGroupDiscoveryList`.
#[must_use]
pub fn aggregated_core(version: AggregatedVersion) -> Value {
    aggregated(version, vec![aggregated_group("", "v1")])
}

/// `/apis` for clients that ask for an `APIGroupDiscoveryList`.
#[must_use]
pub fn aggregated_groups(version: AggregatedVersion) -> Value {
    let items = groups().into_iter().map(|(group, version)| aggregated_group(group, version));
    aggregated(version, items.collect())
}

fn aggregated(version: AggregatedVersion, items: Vec<Value>) -> Value {
    let version = match version {
        AggregatedVersion::V2 => "v2",
        AggregatedVersion::V2beta1 => "v2beta1",
    };
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &str, version: &str) -> Value {
    let resources: Vec<Value> = of_version(group, version).map(aggregated_resource).collect();
    let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
    json!({
        "metadata": metadata,
        "versions": [{ "version": version, "freshness": "Current", "resources": resources }],
    })
}

fn aggregated_resource(res: &'static Resource) -> Value {
    let kind = |group, version, kind| json!({ "group": group, "version": version, "kind": kind });
    let subresources: Vec<Value> = parts(res)
        .iter()
        .map(|part| {
            json!({
                "subresource": part.name,
                "responseKind": kind(part.group, part.version, part.kind),
                "verbs": part.verbs,
            })
        })
        .collect();
    json!({
        "resource": res.plural,
        "responseKind": kind(res.group, res.version, res.kind),
        "scope": if res.is_namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": res.singular,
        "verbs": res.verbs,
        "shortNames": res.short_names,
        "categories": res.categories,
        "subresources": subresources,
    })
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
    let list: Vec<Value> =
        groups().into_iter().map(|(group, version)| group_of(group, version)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": list })
}

fn group_of(group: &str, version: &str) -> Value {
    let version = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    json!({ "name": group, "versions": [version], "preferredVersion": version })
}

/// `/apis/<group>`: `APIGroup`, if the group is served.
#[must_use]
pub fn api_group(group: &str) -> Option<Value> {
    let (group, version) = groups().into_iter().find(|(name, _)| *name == group)?;
    let mut document = group_of(group, version);
    if let Some(fields) = document.as_object_mut() {
        fields.insert("kind".to_owned(), json!("APIGroup"));
        fields.insert("apiVersion".to_owned(), json!("v1"));
    }
    Some(document)
}

/// `/api/v1` or `/apis/<group>/<version>`: `APIResourceList`, if it is served. The core group is "".
#[must_use]
pub fn api_resource_list(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for res in of_version(group, version) {
        list.push(json!({
            "name": res.plural,
            "singularName": res.singular,
            "namespaced": res.is_namespaced,
            "kind": res.kind,
            "verbs": res.verbs,
            "shortNames": res.short_names,
            "categories": res.categories,
            "storageVersionHash": format!("{}-{}", res.plural, res.version),
        }));
        for part in parts(res) {
            let mut entry = json!({
                "name": format!("{}/{}", res.plural, part.name),
                "singularName": "",
                "namespaced": res.is_namespaced,
                "kind": part.kind,
                "verbs": part.verbs,
            });
            if let (true, Some(fields)) =
                ((part.group, part.version) != (res.group, res.version), entry.as_object_mut())
            {
                fields.insert("group".to_owned(), json!(part.group));
                fields.insert("version".to_owned(), json!(part.version));
            }
            list.push(entry);
        }
    }
    let group_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!list.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version,
            "resources": list,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_in_both_forms_of_discovery() {
        let aggregated = format!(
            "{}{}",
            aggregated_core(AggregatedVersion::V2),
            aggregated_groups(AggregatedVersion::V2)
        );
        for res in resources() {
            assert!(
                aggregated.contains(&format!("\"resource\":\"{}\"", res.plural)),
                "{}",
                res.plural
            );
            let list = api_resource_list(res.group, res.version).unwrap();
            let found =
                list["resources"].as_array().unwrap().iter().any(|r| r["name"] == res.plural);
            assert!(found, "{}", res.plural);
        }
        assert!(api_group("apps").is_some());
        assert!(api_group("nonsense").is_none() && api_resource_list("", "v2").is_none());
    }
}
