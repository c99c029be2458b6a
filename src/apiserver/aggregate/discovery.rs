//! What aggregated servers add to the discovery documents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};

use crate::api;
use crate::api::discovery;
use crate::api::json::{int_at, is_unset, items_at, set, text_at};
use crate::api::user::UserInfo;
use crate::apiserver::aggregate::{ask, introduce};
use crate::apiserver::context::Context;
use crate::apiserver::forward;
use crate::store::{Freshness, Page, Scope};

/// APIServices that are asked for one document.
const SERVICES_MAX: usize = 64;
/// Who asks for what is served.
const OWN_USER: &str = "system:kube-aggregator";
/// How long each may take to say what it serves.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Rows of such an answer that are looked at.
const ROWS_MAX: usize = 1024;
/// Bytes of such an answer.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// The APIServices of groups that are not served here, the most important first.
async fn foreign(context: &Context) -> Vec<Value> {
    let Some(resource) = api::find("apiregistration.k8s.io", "v1", "apiservices") else {
        return Vec::new();
    };
    let scope = Scope::new(resource, None);
    let listed = context.store.list(&scope, &Page::default(), Freshness::Any).await;
    let Ok(listed) = listed else { return Vec::new() };
    let mut services: Vec<Value> = listed
        .items
        .into_iter()
        .map(|stored| stored.object)
        .filter(|it| !is_unset(it.pointer("/spec/service")))
        .filter(|it| {
            !discovery::is_served(text_at(it, "/spec/group"), text_at(it, "/spec/version"))
        })
        .collect();
    let priority = |it: &Value, field: &str| -int_at(it, field).unwrap_or(0);
    services.sort_by_key(|it| {
        (
            priority(it, "/spec/groupPriorityMinimum"),
            text_at(it, "/spec/group").to_owned(),
            priority(it, "/spec/versionPriority"),
        )
    });
    services.truncate(SERVICES_MAX);
    services
}

/// Groups with their versions, in order.
fn grouped(services: &[Value]) -> Vec<(&str, Vec<&Value>)> {
    let mut groups: Vec<(&str, Vec<&Value>)> = Vec::new();
    for service in services {
        let group = text_at(service, "/spec/group");
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, versions)) => versions.push(service),
            None => groups.push((group, vec![service])),
        }
    }
    groups
}

/// Adds the groups to the document of `/apis`, in the older form or in the aggregated one.
pub(in crate::apiserver) async fn add_to_root(context: &Context, document: &mut Value) {
    let services = foreign(context).await;
    if services.is_empty() {
        return;
    }
    let is_aggregated = document["kind"] == "APIGroupDiscoveryList";
    let groups: Vec<Value> = if is_aggregated {
        let lists = join_all(services.iter().map(|service| resources(context, service))).await;
        let lists: BTreeMap<&str, Option<Vec<Value>>> =
            services.iter().map(api::meta::name).zip(lists).collect();
        let of_version = |service: &&Value| {
            let list = lists.get(api::meta::name(service)).cloned().flatten();
            json!({
                "version": text_at(service, "/spec/version"),
                "freshness": if list.is_some() { "Current" } else { "Stale" },
                "resources": list.unwrap_or_default(),
            })
        };
        let of_group = |(group, versions): (&str, Vec<&Value>)| {
            let versions: Vec<Value> = versions.iter().map(of_version).collect();
            json!({ "metadata": { "name": group }, "versions": versions })
        };
        grouped(&services).into_iter().map(of_group).collect()
    } else {
        grouped(&services).into_iter().map(|(group, versions)| of_group(group, &versions)).collect()
    };
    let (key, name) = if is_aggregated { ("items", "/metadata/name") } else { ("groups", "/name") };
    let Some(list) = document.get_mut(key).and_then(Value::as_array_mut) else { return };
    for group in groups {
        match list.iter_mut().find(|own| text_at(own, name) == text_at(&group, name)) {
            Some(own) => add_versions(own, &group),
            None => list.push(group),
        }
    }
}

/// Adds the versions that another server answers to those of a group that is served here.
fn add_versions(own: &mut Value, other: &Value) {
    if let Some(versions) = own.get_mut("versions").and_then(Value::as_array_mut) {
        versions.extend(items_at(other, "/versions").iter().cloned());
    }
}

fn of_group(group: &str, services: &[&Value]) -> Value {
    let versions: Vec<&str> =
        services.iter().map(|service| text_at(service, "/spec/version")).collect();
    discovery::group_of(group, &versions)
}

/// `/apis/<group>`, with the versions that are served elsewhere; `own`: what is served here.
pub(in crate::apiserver) async fn group_document(
    context: &Context,
    group: &str,
    own: Option<Value>,
) -> Option<Value> {
    let services = foreign(context).await;
    let other = grouped(&services).into_iter().find(|(name, _)| *name == group);
    let other = other.map(|(name, versions)| of_group(name, &versions));
    let mut document = match (own, other) {
        (Some(mut own), Some(other)) => {
            add_versions(&mut own, &other);
            return Some(own);
        }
        (own @ Some(_), None) => return own,
        (None, other) => other?,
    };
    set(&mut document, "kind", "APIGroup");
    set(&mut document, "apiVersion", "v1");
    Some(document)
}

/// The resources of a version in the aggregated form; `None`: its server does not say.
async fn resources(context: &Context, service: &Value) -> Option<Vec<Value>> {
    let (group, version) = (text_at(service, "/spec/group"), text_at(service, "/spec/version"));
    let mut request =
        forward::get(&format!("/apis/{group}/{version}")).map(|_: Body| Body::empty());
    introduce(request.headers_mut(), &UserInfo::new(OWN_USER, &["system:masters"])).ok()?;
    let asked = async {
        let answer = ask(context, service, request).await.ok()?;
        let body = Limited::new(answer.into_body(), DOCUMENT_BYTES_MAX).collect().await.ok()?;
        serde_json::from_slice::<Value>(&body.to_bytes()).ok()
    };
    let list = tokio::time::timeout(ANSWER_MAX, asked).await.ok()??;
    Some(aggregated(&list, group, version))
}

/// The rows of an `APIResourceList` in the aggregated form.
fn aggregated(list: &Value, group: &str, version: &str) -> Vec<Value> {
    let rows = items_at(list, "/resources");
    let kind = |row: &Value| {
        let own = |key: &str, default: &str| match text_at(row, key) {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        json!({ "group": own("/group", group), "version": own("/version", version),
            "kind": text_at(row, "/kind") })
    };
    let mut parts: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for row in rows.iter().take(ROWS_MAX) {
        if let Some((of, part)) = text_at(row, "/name").split_once('/') {
            parts.entry(of).or_default().push(json!({ "subresource": part,
                "responseKind": kind(row), "verbs": items_at(row, "/verbs") }));
        }
    }
    let mut seen = BTreeSet::new();
    let is_main = |row: &&Value| !text_at(row, "/name").contains('/');
    let mains = rows.iter().take(ROWS_MAX).filter(is_main);
    mains
        .filter(|row| seen.insert(text_at(row, "/name")))
        .map(|row| {
            let name = text_at(row, "/name");
            json!({
                "resource": name,
                "responseKind": kind(row),
                "scope": if row["namespaced"] == true { "Namespaced" } else { "Cluster" },
                "singularResource": text_at(row, "/singularName"),
                "verbs": items_at(row, "/verbs"),
                "shortNames": items_at(row, "/shortNames"),
                "categories": items_at(row, "/categories"),
                "subresources": parts.get(name).cloned().unwrap_or_default(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_resources_is_put_into_the_other_form() {
        let list = json!({"resources": [
            {"name": "jobs", "namespaced": true, "kind": "Job", "verbs": ["get"], "shortNames": ["j"]},
            {"name": "jobs/status", "namespaced": true, "kind": "Job", "verbs": ["get", "patch"]},
        ]});
        let rows = aggregated(&list, "acme.com", "v1");
        assert_eq!(rows.len(), 1);
        assert_eq!(
            rows[0]["responseKind"],
            json!({"group": "acme.com", "version": "v1", "kind": "Job"})
        );
        assert_eq!(
            (&rows[0]["scope"], &rows[0]["shortNames"]),
            (&json!("Namespaced"), &json!(["j"]))
        );
        assert_eq!(rows[0]["subresources"][0]["subresource"], "status");
        let twice = json!({"resources": vec![json!({"name": "a"}); 3000]});
        assert_eq!(aggregated(&twice, "acme.com", "v1").len(), 1);
    }
}
