//! Discovery documents, all made from the table of resources.

use serde_json::{Value, json};

use crate::api::resource::Resource;
use crate::api::versions;
use crate::api::{custom_metrics, metrics, reviews};

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

/// Every group but the core one, in the order of the table, with its versions, the preferred first.
fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for res in served().filter(|res| !res.group.is_empty()) {
        match found.iter_mut().find(|(group, _)| *group == res.group) {
            Some((_, versions)) if versions.contains(&res.version) => {}
            Some((_, versions)) => versions.push(res.version),
            None => found.push((res.group, vec![res.version])),
        }
    }
    found
}

/// What is stored, what is measured, and what is asked: the core's pods and nodes come first.
fn served() -> impl Iterator<Item = &'static Resource> {
    versions::served()
        .chain(&metrics::RESOURCES)
        .chain(&custom_metrics::RESOURCES)
        .chain(&reviews::RESOURCES)
}

fn of_version(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    served().filter(move |res| res.group == group && res.version == version)
}

/// Whether this server answers for the version of the group by itself.
#[must_use]
pub fn is_served(group: &str, version: &str) -> bool {
    of_version(group, version).next().is_some()
}

/// `/api` for clients that ask for an `APIGroupDiscoveryList`.
#[must_use]
pub fn aggregated_core(version: AggregatedVersion) -> Value {
    aggregated(version, vec![aggregated_group("", &["v1"])])
}

/// `/apis` for clients that ask for an `APIGroupDiscoveryList`.
#[must_use]
pub fn aggregated_groups(version: AggregatedVersion) -> Value {
    let items = groups().into_iter().map(|(group, versions)| aggregated_group(group, &versions));
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

fn aggregated_group(group: &str, versions: &[&str]) -> Value {
    let of_one = |version: &&str| {
        let resources: Vec<Value> = of_version(group, version).map(aggregated_resource).collect();
        json!({ "version": version, "freshness": "Current", "resources": resources })
    };
    let metadata = if group.is_empty() { json!({}) } else { json!({ "name": group }) };
    let versions: Vec<Value> = versions.iter().map(of_one).collect();
    json!({ "metadata": metadata, "versions": versions })
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
        groups().into_iter().map(|(group, versions)| group_of(group, &versions)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": list })
}

/// A group of `/apis` with its versions, the preferred first.
#[must_use]
pub fn group_of(group: &str, versions: &[&str]) -> Value {
    let of_one = |version: &&str| json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    let versions: Vec<Value> = versions.iter().map(of_one).collect();
    json!({ "name": group, "preferredVersion": versions.first(), "versions": versions })
}

/// `/apis/<group>`: `APIGroup`, if the group is served.
#[must_use]
pub fn api_group(group: &str) -> Option<Value> {
    let (group, versions) = groups().into_iter().find(|(name, _)| *name == group)?;
    let mut document = group_of(group, &versions);
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

    /// The rows of the aggregated form, with the group they stand in.
    fn aggregated_rows(version: AggregatedVersion) -> Vec<(String, Value)> {
        let mut rows = Vec::new();
        for list in [aggregated_core(version), aggregated_groups(version)] {
            for item in list["items"].as_array().unwrap() {
                let group = item["metadata"]["name"].as_str().unwrap_or_default();
                for version in item["versions"].as_array().unwrap() {
                    let found = version["resources"].as_array().unwrap().iter();
                    rows.extend(found.map(|row| (group.to_owned(), row.clone())));
                }
            }
        }
        rows
    }

    fn entry(group: &str, version: &str, name: &str) -> Value {
        let list = api_resource_list(group, version).unwrap();
        let entries = list["resources"].as_array().unwrap();
        entries.iter().find(|entry| entry["name"] == name).unwrap().clone()
    }

    #[test]
    fn every_resource_is_in_all_forms_of_discovery() {
        for version in [AggregatedVersion::V2, AggregatedVersion::V2beta1] {
            let rows = aggregated_rows(version);
            for res in served() {
                let found = |(group, row): &(String, Value)| {
                    group == res.group
                        && row["resource"] == res.plural
                        && row["responseKind"]["version"] == res.version
                };
                assert_eq!(rows.iter().filter(|row| found(row)).count(), 1, "{}", res.plural);
            }
            assert_eq!(rows.len(), served().count());
        }
        for res in served() {
            assert_eq!(entry(res.group, res.version, res.plural)["kind"], res.kind);
            assert_eq!(api_group(res.group).is_some(), !res.group.is_empty(), "{}", res.group);
        }
        assert!(api_group("nonsense").is_none() && api_resource_list("", "v2").is_none());
    }

    #[test]
    fn each_aggregated_version_names_itself() {
        let api_version = |version| aggregated_groups(version)["apiVersion"].clone();
        assert_eq!(api_version(AggregatedVersion::V2), "apidiscovery.k8s.io/v2");
        assert_eq!(api_version(AggregatedVersion::V2beta1), "apidiscovery.k8s.io/v2beta1");
        let core = aggregated_core(AggregatedVersion::V2);
        assert_eq!(core["items"][0]["versions"][0]["freshness"], "Current");
    }

    #[test]
    fn a_group_is_listed_once() {
        let list = api_group_list();
        let names: Vec<&str> = list["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| group["name"].as_str().unwrap())
            .collect();
        let unique: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), unique.len(), "{names:?}");
        let gateway = api_group("gateway.networking.k8s.io").unwrap();
        assert_eq!(gateway["preferredVersion"]["version"], "v1", "{gateway}");
        assert!(gateway["versions"].as_array().unwrap().len() > 1, "{gateway}");
    }

    #[test]
    fn pods_are_listed_with_their_status() {
        let pods = entry("", "v1", "pods");
        assert_eq!(pods["singularName"], "pod");
        assert_eq!(pods["namespaced"], true);
        assert_eq!(pods["shortNames"], json!(["po"]));
        let status = entry("", "v1", "pods/status");
        assert_eq!(status["kind"], "Pod");
        assert_eq!(status["verbs"], json!(PART_VERBS));
        let rows = aggregated_rows(AggregatedVersion::V2);
        let (_, pods) = rows.iter().find(|(_, row)| row["resource"] == "pods").unwrap();
        assert_eq!(pods["responseKind"], json!({ "group": "", "version": "v1", "kind": "Pod" }));
        assert_eq!(pods["scope"], "Namespaced");
        assert_eq!(pods["subresources"][0]["subresource"], "status");
        let (_, nodes) = rows.iter().find(|(_, row)| row["resource"] == "nodes").unwrap();
        assert_eq!(nodes["scope"], "Cluster");
    }

    #[test]
    fn all_of_a_kind_are_deleted_at_once_but_for_namespaces() {
        for res in versions::served() {
            let verbs = entry(res.group, res.version, res.plural)["verbs"].clone();
            let has = verbs.as_array().unwrap().contains(&json!("deletecollection"));
            assert_eq!(has, res.plural != "namespaces", "{}", res.plural);
        }
    }

    #[test]
    fn the_scale_of_deployments_is_of_another_group() {
        let scale = entry("apps", "v1", "deployments/scale");
        assert_eq!(scale["kind"], "Scale");
        assert_eq!((&scale["group"], &scale["version"]), (&json!("autoscaling"), &json!("v1")));
        let rows = aggregated_rows(AggregatedVersion::V2);
        let (group, row) = rows.iter().find(|(_, row)| row["resource"] == "deployments").unwrap();
        assert_eq!(group, "apps");
        let parts = row["subresources"].as_array().unwrap();
        let scale = parts.iter().find(|part| part["subresource"] == "scale").unwrap();
        let kind = json!({ "group": "autoscaling", "version": "v1", "kind": "Scale" });
        assert_eq!(scale["responseKind"], kind);
        assert_eq!(scale["verbs"], json!(PART_VERBS));
    }
}
