//! Counts what namespaces use of their quotas.
//!
//! Admission adds to `status.used` in the transaction that makes an object; here it is taken back when
//! objects go, and put right. A count starts from the quota as it is stored, lists what it is about
//! after that, and is written only if the quota is still that version: an object made meanwhile has
//! changed it, and is in no count that is written.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use kube::ResourceExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::json::{entries_at, items_at};
use crate::api::quantity::Quantity;
use crate::api::quota::{self, Amounts};
use crate::api::{Resource, resources};
use crate::client::{Change, Informer, Store, is_not_found};
use crate::controllers::Context;
use crate::controllers::object::{Key, is_terminal, key};
use crate::controllers::queue::{Next, Queue, Workers};

/// Quotas counted at once.
const RUNS_MAX: usize = 4;
/// When a quota is counted again although nothing was seen that concerns it.
const RESYNC: Duration = Duration::from_secs(300);
/// The same for quotas of kinds that nobody watches here.
const RESYNC_UNWATCHED: Duration = Duration::from_secs(10);
/// Kinds whose going is heard of.
const WATCHED: [&str; 5] =
    ["pods", "services", "persistentvolumeclaims", "deployments", "replicasets"];

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.resource_quotas.subscribe(queue.feed(|change: &Change<'_, ResourceQuota>, keys| {
        let is_ours = |old: &ResourceQuota, new: &ResourceQuota| {
            old.spec == new.spec
                && old.status.as_ref().map(|status| &status.hard)
                    == new.status.as_ref().map(|status| &status.hard)
        };
        match change {
            // What was used has changed: by admission, or here.
            Change::Applied { old: Some(old), new } if is_ours(old, new) => {}
            Change::Applied { new, .. } => keys.push(key(new.as_ref())),
            Change::Removed(_) => {}
        }
    }));
    let quotas = informers.resource_quotas.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        let is_over = match change {
            Change::Applied { old, new } => {
                is_terminal(new) && !old.is_some_and(|old| is_terminal(old))
            }
            Change::Removed(_) => true,
        };
        if is_over {
            add_all(&quotas, change.object().namespace(), keys);
        }
    }));
    let claims = informers.resource_quotas.store.clone();
    informers.claims.subscribe(queue.feed(
        move |change: &Change<'_, PersistentVolumeClaim>, keys| {
            let size = |claim: &PersistentVolumeClaim| {
                claim.spec.as_ref().and_then(|spec| spec.resources.clone())
            };
            let is_over = match change {
                Change::Applied { old, new } => old.is_some_and(|old| size(old) != size(new)),
                Change::Removed(_) => true,
            };
            if is_over {
                add_all(&claims, change.object().namespace(), keys);
            }
        },
    ));
    let services = informers.resource_quotas.store.clone();
    informers.services.subscribe(queue.feed(move |change: &Change<'_, Service>, keys| {
        if !matches!(change, Change::Applied { old: None, .. }) {
            add_all(&services, change.object().namespace(), keys);
        }
    }));
    hear_of_the_end(
        &informers.deployments,
        &informers.resource_quotas.store,
        &queue,
        Deployment::namespace,
    );
    hear_of_the_end(
        &informers.replica_sets,
        &informers.resource_quotas.store,
        &queue,
        ReplicaSet::namespace,
    );
    let workers =
        Workers { controller: "resource-quota", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers.run(queue, cancel, |key| reconcile(&context, key)).await;
}

fn hear_of_the_end<K>(
    informer: &Informer<K>,
    quotas: &Store<ResourceQuota>,
    queue: &Queue<Key>,
    namespace: fn(&K) -> Option<String>,
) where
    K: kube::Resource + 'static,
{
    let quotas = quotas.clone();
    informer.subscribe(queue.feed(move |change: &Change<'_, K>, keys| {
        if let Change::Removed(object) = change {
            add_all(&quotas, namespace(object.as_ref()), keys);
        }
    }));
}

fn add_all(quotas: &Store<ResourceQuota>, namespace: Option<String>, keys: &mut Vec<Key>) {
    if quotas.is_empty() {
        return;
    }
    let of_namespace = quotas.in_namespace(&namespace.unwrap_or_default());
    keys.extend(of_namespace.iter().map(|quota| key(quota.as_ref())));
}

async fn reconcile(context: &Context, (namespace, name): Key) -> Result<Next, kube::Error> {
    let path = format!("/api/v1/namespaces/{namespace}/resourcequotas/{name}");
    let stored = match get(context, &path).await {
        Ok(stored) => stored,
        Err(err) if is_not_found(&err) => return Ok(Next::Wait),
        Err(err) => return Err(err),
    };
    let hard = quota::amounts(&stored, "/spec/hard");
    let (used, is_watched) = count(context, &namespace, &stored).await?;
    let next = Next::After(if is_watched { RESYNC } else { RESYNC_UNWATCHED });
    if quota::amounts(&stored, "/status/hard") == hard
        && quota::amounts(&stored, "/status/used") == used
    {
        return Ok(next);
    }
    let mut counted = quota::with_used(&stored, &used);
    if let Some(status) = counted.pointer_mut("/status").and_then(Value::as_object_mut) {
        status.insert("hard".to_owned(), quota::shown(&hard));
    }
    let request = Request::put(format!("{path}/status"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(counted.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    match context.client.request::<Value>(request).await {
        Ok(_) => Ok(next),
        Err(err) if is_not_found(&err) => Ok(Next::Wait),
        Err(err) => Err(err),
    }
}

/// What the namespace uses of what the quota limits, and whether all of it is watched here.
async fn count(
    context: &Context,
    namespace: &str,
    stored: &Value,
) -> Result<(Amounts, bool), kube::Error> {
    let names: BTreeSet<&str> =
        entries_at(stored, "/spec/hard").map(|(name, _)| name.as_str()).collect();
    let mut used: Amounts = names.iter().map(|name| ((*name).to_owned(), Quantity::ZERO)).collect();
    let mut is_watched = true;
    for resource in resources().iter().filter(|resource| resource.is_namespaced) {
        let of_this: Vec<&str> =
            names.iter().filter(|name| quota::tracks(resource, name)).copied().collect();
        if of_this.is_empty() {
            continue;
        }
        is_watched &= WATCHED.contains(&resource.plural);
        let is_plain = of_this.iter().all(|name| quota::is_countable(resource, name));
        let has_scopes = !items_at(stored, "/spec/scopes").is_empty()
            || stored.pointer("/spec/scopeSelector").is_some();
        if is_plain && !has_scopes {
            let number = Quantity::of_count(number_of(context, resource, namespace).await?);
            for name in of_this {
                used.insert(name.to_owned(), number);
            }
            continue;
        }
        let list = get(context, &list_path(resource, namespace)).await?;
        for object in items_at(&list, "/items") {
            if quota::matches(stored, resource, object) {
                let mut more = quota::usage(resource, object);
                more.retain(|name, _| names.contains(name.as_str()));
                quota::add(&mut used, &more);
            }
        }
    }
    Ok((used, is_watched))
}

fn list_path(resource: &Resource, namespace: &str) -> String {
    format!("{}/namespaces/{namespace}/{}", resource.version_path(), resource.plural)
}

/// How many objects there are, without reading them.
async fn number_of(
    context: &Context,
    resource: &Resource,
    namespace: &str,
) -> Result<u32, kube::Error> {
    let list = get(context, &format!("{}?limit=1", list_path(resource, namespace))).await?;
    let rest = list.pointer("/metadata/remainingItemCount").and_then(Value::as_u64).unwrap_or(0);
    let shown = items_at(&list, "/items").len();
    Ok(u32::try_from(rest).unwrap_or(u32::MAX).saturating_add(u32::from(shown > 0)))
}

async fn get(context: &Context, path: &str) -> Result<Value, kube::Error> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    context.client.request::<Value>(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_in_the_table() {
        for plural in WATCHED {
            assert!(resources().iter().any(|resource| resource.plural == plural), "{plural}");
        }
        let pods = resources().iter().find(|resource| resource.plural == "pods").unwrap();
        assert_eq!(list_path(pods, "n"), "/api/v1/namespaces/n/pods");
    }
}
