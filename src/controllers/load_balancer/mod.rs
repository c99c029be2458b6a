//! Tells clients outside where a Service of type `LoadBalancer` is: at the nodes themselves.
//!
//! Data in: services, nodes, and slices for services whose traffic stays on its node. Data out:
//! `status.loadBalancer` of services.
//!
//! # Invariants
//!
//! - Services of another load balancer's class are left alone.
//! - The status is a function of service, nodes and slices: what did not change is not written.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::client::{Change, revision_of};
use crate::controllers::Context;
use crate::controllers::endpoint_slice::service_of;
use crate::controllers::load_balancer::plan::{addresses, facts_of, is_balanced, is_local, plan};
use crate::controllers::object::{Key, key};
use crate::controllers::queue::{Next, Queue, Workers};

mod plan;

/// Services reconciled at once.
const RUNS_MAX: usize = 4;
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
    informers.nodes.subscribe(queue.feed(move |change: &Change<'_, Node>, keys| {
        let facts = match change {
            Change::Applied { old, new } => (old.map(|old| facts_of(old)), Some(facts_of(new))),
            Change::Removed(old) => (Some(facts_of(old)), None),
        };
        if facts.0 != facts.1 {
            let all = services.select(is_balanced);
            keys.extend(all.iter().map(|service| key(service.as_ref())));
        }
    }));
    let services = informers.services.store.clone();
    informers.endpoint_slices.subscribe(queue.feed(
        move |change: &Change<'_, EndpointSlice>, keys| {
            let Some((namespace, name)) = service_of(change.object()) else { return };
            if services.named(&namespace, &name).is_some_and(|service| is_local(&service)) {
                keys.push((namespace, name));
            }
        },
    ));
    let workers =
        Workers { controller: "load-balancer", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers.run(queue, cancel, |key| reconcile(&context, key)).await;
}

async fn reconcile(context: &Context, (namespace, name): Key) -> Result<Next, kube::Error> {
    let informers = &context.informers;
    let Some(service) = informers.services.store.named(&namespace, &name) else {
        return Ok(Next::Wait);
    };
    let nodes = informers.nodes.store.state();
    let mut slices = informers.endpoint_slices.store.in_namespace(&namespace);
    let of_this = Some((namespace.clone(), name.clone()));
    slices.retain(|slice| service_of(slice) == of_this);
    let Some(wanted) = plan(&service, &nodes, &slices) else { return Ok(Next::Wait) };
    if wanted == addresses(&service) {
        return Ok(Next::Wait);
    }
    let api: Api<Service> = Api::namespaced(context.client.clone(), &namespace);
    let ingress: Vec<_> = wanted.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let change = json!({
        "metadata": {"resourceVersion": service.resource_version()},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    let written = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(change)).await?;
    informers.services.catch_up(revision_of(&written).unwrap_or(0), CATCH_UP_MAX).await;
    Ok(Next::Wait)
}
