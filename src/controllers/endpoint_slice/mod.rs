//! Lists the pods behind each service, for everyone who routes to it.
//!
//! Data in: services with a selector, pods, and the zones of nodes. Data out: `EndpointSlice`s.
//!
//! # Invariants
//!
//! - The content of a slice is a function of service and pods: what did not change is not written.
//! - Slices of other managers are left alone.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use crate::api::node_place::ZONE;
use crate::client::{Change, Store, revision_of};
use crate::controllers::Context;
use crate::controllers::endpoint_slice::plan::{
    MANAGED_BY, MANAGER, SERVICE_NAME, View, Zones, is_backend, plan,
};
use crate::controllers::object::{Key, delete_as_read, is_deleting, key};
use crate::controllers::queue::{Next, Queue, Workers};

mod plan;
#[cfg(test)]
mod plan_test;

/// Services reconciled at once.
const RUNS_MAX: usize = 16;
/// How long a run waits for the cache to show its writes.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.services.subscribe(queue.feed(|change: &Change<'_, Service>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    let services = informers.services.store.clone();
    informers.pods.subscribe(queue.feed(move |change: &Change<'_, Pod>, keys| {
        keys_of_pod(&services, change.object(), keys);
        if let Change::Applied { old: Some(old), new } = change
            && old.metadata.labels != new.metadata.labels
        {
            keys_of_pod(&services, old, keys);
        }
    }));
    informers.endpoint_slices.subscribe(queue.feed(|change: &Change<'_, EndpointSlice>, keys| {
        keys.extend(service_of(change.object()));
    }));
    let services = informers.services.store.clone();
    informers.nodes.subscribe(queue.feed(move |change: &Change<'_, Node>, keys| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old.map(|old| zone_of(old)), Some(zone_of(new))),
            Change::Removed(old) => (Some(zone_of(old)), None),
        };
        // Zones are seldom given and hardly ever changed; services are few beside heartbeats.
        if old.flatten() != new.flatten() {
            keys.extend(services.state().iter().map(|service| key(service.as_ref())));
        }
    }));
    let workers =
        Workers { controller: "endpoint-slice", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers.run(queue, cancel, |key| reconcile(&context, key)).await;
}

/// The zone that the node is in.
fn zone_of(node: &Node) -> Option<&String> {
    node.labels().get(ZONE)
}

/// The service that the slice says it belongs to.
pub(super) fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let service = slice.labels().get(SERVICE_NAME)?;
    Some((slice.namespace().unwrap_or_default(), service.clone()))
}

/// Whether this controller keeps the slice for `service`.
pub(super) fn is_kept_for(slice: &EndpointSlice, service: &str) -> bool {
    let label = |key: &str| slice.labels().get(key).map(String::as_str);
    label(SERVICE_NAME) == Some(service) && label(MANAGED_BY) == Some(MANAGER)
}

fn keys_of_pod(services: &Store<Service>, pod: &Pod, keys: &mut Vec<Key>) {
    let all = services.in_namespace(&pod.namespace().unwrap_or_default());
    let mut ended = pod.clone();
    // Whether it has ended is the plan's business: its service must hear of the end.
    ended.status = None;
    keys.extend(all.iter().filter(|one| is_backend(one, &ended)).map(|one| key(one.as_ref())));
}

/// Whether the service's endpoints are pods that these controllers find: others are their users'.
pub(super) fn takes_pods(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let has_selector =
        spec.and_then(|spec| spec.selector.as_ref()).is_some_and(|selector| !selector.is_empty());
    let is_external = spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    has_selector && !is_external && !is_deleting(&service.metadata)
}

async fn reconcile(context: &Context, (namespace, name): Key) -> Result<Next, kube::Error> {
    let informers = &context.informers;
    let Some(service) = informers.services.store.named(&namespace, &name) else {
        // Its slices go by their owner reference.
        return Ok(Next::Wait);
    };
    if !takes_pods(&service) {
        return Ok(Next::Wait);
    }
    let mut slices = informers.endpoint_slices.store.in_namespace(&namespace);
    slices.retain(|slice| is_kept_for(slice, &name));
    let pods = informers.pods.store.in_namespace(&namespace);
    let nodes = informers.nodes.store.state();
    let zones: Zones =
        nodes.iter().filter_map(|node| Some((node.name_any(), zone_of(node)?.clone()))).collect();
    let plan = plan(&View { service: &service, pods: &pods, slices: &slices, zones: &zones });
    let api: Api<EndpointSlice> = Api::namespaced(context.client.clone(), &namespace);
    let (params, mut revision) = (PostParams::default(), 0);
    for slice in &plan.update {
        let written = api.replace(&slice.name_any(), &params, slice).await?;
        revision = revision.max(revision_of(&written).unwrap_or(0));
    }
    for slice in &plan.create {
        let written = api.create(&params, slice).await?;
        revision = revision.max(revision_of(&written).unwrap_or(0));
    }
    for slice in &plan.delete {
        delete_as_read(&api, slice.as_ref()).await?;
    }
    informers.endpoint_slices.catch_up(revision, CATCH_UP_MAX).await;
    let is_settled = |store: &Store<EndpointSlice>| {
        plan.delete.iter().all(|gone| {
            let found = store.named(&namespace, &gone.name_any());
            found.is_none_or(|found| found.uid() != gone.uid())
        })
    };
    informers.endpoint_slices.settled(CATCH_UP_MAX, is_settled).await;
    Ok(Next::Wait)
}
