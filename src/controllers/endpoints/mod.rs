//! Keeps one `Endpoints` for each service with a selector, for clients that know no
//! `EndpointSlice`.
//!
//! Data in: services, and the slices of the endpoint slice controller. Data out: `Endpoints`.
//!
//! # Invariants
//!
//! - The content is a function of service and slices: what did not change is not written.
//! - The `Endpoints` of services without a selector are left alone.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;

use crate::client::{Change, Store, revision_of};
use crate::controllers::Context;
use crate::controllers::endpoint_slice::{is_kept_for, service_of, takes_pods};
use crate::controllers::endpoints::plan::{MANAGED_BY, MANAGER, is_same, plan};
use crate::controllers::object::{Key, delete_as_read, key};
use crate::controllers::queue::{Next, Queue, Workers};

mod plan;

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
    informers.endpoint_slices.subscribe(queue.feed(|change: &Change<'_, EndpointSlice>, keys| {
        keys.extend(service_of(change.object()));
    }));
    informers.endpoints.subscribe(queue.feed(|change: &Change<'_, Endpoints>, keys| {
        keys.push(key(change.object().as_ref()));
    }));
    let workers = Workers { controller: "endpoints", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers.run(queue, cancel, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, (namespace, name): Key) -> Result<Next, kube::Error> {
    let informers = &context.informers;
    let api: Api<Endpoints> = Api::namespaced(context.client.clone(), &namespace);
    let stored = informers.endpoints.store.named(&namespace, &name);
    let Some(service) = informers.services.store.named(&namespace, &name) else {
        let is_ours =
            |one: &Endpoints| one.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER);
        if let Some(stored) = stored.filter(|stored| is_ours(stored)) {
            remove(context, &api, &stored).await?;
        }
        return Ok(Next::Wait);
    };
    if !takes_pods(&service) {
        return Ok(Next::Wait);
    }
    let mut slices = informers.endpoint_slices.store.in_namespace(&namespace);
    slices.retain(|slice| is_kept_for(slice, &name));
    let mut wanted = plan(&service, &slices);
    let params = PostParams::default();
    let written = match stored {
        Some(stored) if is_same(&stored, &wanted) => return Ok(Next::Wait),
        Some(stored) => {
            wanted.metadata.uid = stored.uid();
            wanted.metadata.resource_version = stored.resource_version();
            api.replace(&name, &params, &wanted).await?
        }
        None => api.create(&params, &wanted).await?,
    };
    informers.endpoints.catch_up(revision_of(&written).unwrap_or(0), CATCH_UP_MAX).await;
    Ok(Next::Wait)
}

async fn remove(
    context: &Context,
    api: &Api<Endpoints>,
    stored: &Endpoints,
) -> Result<(), kube::Error> {
    delete_as_read(api, stored).await?;
    let namespace = stored.namespace().unwrap_or_default();
    let is_gone = |store: &Store<Endpoints>| {
        let found = store.named(&namespace, &stored.name_any());
        found.is_none_or(|found| found.uid() != stored.uid())
    };
    context.informers.endpoints.settled(CATCH_UP_MAX, is_gone).await;
    Ok(())
}
