//! Copies the `Endpoints` that users keep into `EndpointSlice`s, which everyone routes by.
//!
//! Data in: services without a selector, and their `Endpoints`. Data out: `EndpointSlice`s that
//! belong to the `Endpoints`.
//!
//! # Invariants
//!
//! - The content of a slice is a function of the `Endpoints`: what did not change is not written.
//! - Slices of other managers are left alone; `Endpoints` that say so are not mirrored.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use crate::client::{Change, Store, revision_of};
use crate::controllers::Context;
use crate::controllers::endpoint_slice::service_of;
use crate::controllers::endpoint_slice_mirroring::plan::{is_mirrored, is_ours, plan};
use crate::controllers::object::{Key, delete_as_read, is_deleting, key};
use crate::controllers::queue::{Next, Queue, Workers};

mod plan;

/// `Endpoints` reconciled at once.
const RUNS_MAX: usize = 8;
/// How long a run waits for the cache to show its writes.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.services.subscribe(queue.feed(|change: &Change<'_, Service>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    informers.endpoints.subscribe(queue.feed(|change: &Change<'_, Endpoints>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    informers.endpoint_slices.subscribe(queue.feed(|change: &Change<'_, EndpointSlice>, keys| {
        keys.extend(
            Some(change.object()).filter(|slice| is_ours(slice)).and_then(|s| service_of(s)),
        );
    }));
    let workers = Workers {
        controller: "endpoint-slice-mirroring",
        runs_max: RUNS_MAX,
        rng: context.rng.clone(),
    };
    workers.run(queue, cancel, |key| reconcile(&context, key)).await;
}

/// Whether users say where the service leads.
fn is_without_selector(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(|selector| selector.is_empty()) && !is_deleting(&service.metadata)
}

async fn reconcile(context: &Context, (namespace, name): Key) -> Result<Next, kube::Error> {
    let informers = &context.informers;
    let service = informers.services.store.named(&namespace, &name);
    let endpoints = informers.endpoints.store.named(&namespace, &name);
    let is_wanted = service.is_some_and(|service| is_without_selector(&service));
    let endpoints = endpoints.filter(|one| is_wanted && is_mirrored(one));
    let mut slices = informers.endpoint_slices.store.in_namespace(&namespace);
    let of_this = Some((namespace.clone(), name));
    slices.retain(|slice| is_ours(slice) && service_of(slice) == of_this);
    let plan = plan(endpoints.as_deref(), &slices);
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
    informers
        .endpoint_slices
        .settled(CATCH_UP_MAX, |store| plan.delete.iter().all(|slice| is_gone(store, slice)))
        .await;
    Ok(Next::Wait)
}

fn is_gone(store: &Store<EndpointSlice>, slice: &Arc<EndpointSlice>) -> bool {
    let found = store.named(&slice.namespace().unwrap_or_default(), &slice.name_any());
    found.is_none_or(|found| found.uid() != slice.uid())
}
