//! Whether the servers behind APIServices answer: the condition `Available`. Kubernetes' availability
//! controller.
//!
//! # Invariants
//!
//! - It is asked for on the way that clients take: through the API server, which passes it on.
//! - A condition is written only when it says something else.

mod plan;

use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Patch, PatchParams};
use kube::client::Body;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api::discovery;
use crate::client::{Change, Store};
use crate::controllers::Context;
use crate::controllers::endpoint_slice::service_of;
use crate::controllers::object::{Key, key};
use crate::controllers::queue::{Next, Queue, Workers};
use plan::{Found, condition};

/// APIServices looked after at once.
const RUNS_MAX: usize = 4;
/// Pause between two looks at a server.
const LOOK: Duration = Duration::from_secs(30);
/// The same while it does not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long it may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.api_services.subscribe(queue.feed(|change: &Change<'_, APIService>, keys| {
        let is_news = match change {
            Change::Applied { old: Some(old), new } => old.spec != new.spec,
            _ => true,
        };
        if is_news {
            keys.push(change.object().name_any());
        }
    }));
    let known = informers.api_services.store.clone();
    informers.services.subscribe(queue.feed(move |change: &Change<'_, Service>, keys| {
        keys.extend(behind(&known, &key(change.object().as_ref())));
    }));
    let known = informers.api_services.store.clone();
    informers.endpoint_slices.subscribe(queue.feed(
        move |change: &Change<'_, EndpointSlice>, keys| {
            if !known.is_empty() {
                let service = service_of(change.object());
                keys.extend(service.into_iter().flat_map(|service| behind(&known, &service)));
            }
        },
    ));
    let workers =
        Workers { controller: "api-service", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers.run(queue, cancel, |name| reconcile(&context, name)).await;
}

/// Names of the APIServices with that Service.
fn behind(known: &Store<APIService>, (namespace, name): &Key) -> Vec<String> {
    if known.is_empty() {
        return Vec::new();
    }
    let is_it = |it: &APIService| {
        let service = it.spec.as_ref().and_then(|spec| spec.service.as_ref());
        service.is_some_and(|service| {
            service.namespace.as_ref() == Some(namespace) && service.name.as_ref() == Some(name)
        })
    };
    known.select(is_it).iter().map(|found| found.name_any()).collect()
}

async fn reconcile(context: &Context, name: String) -> Result<Next, kube::Error> {
    let Some(api_service) = context.informers.api_services.store.named("", &name) else {
        return Ok(Next::Wait);
    };
    let found = look(context, &api_service).await;
    let next = match &found {
        Found::Local => Next::Wait,
        Found::Answer => Next::After(LOOK),
        _ => Next::After(LOOK_AGAIN),
    };
    let Some(condition) = condition(&api_service, &found, context.clock.now()) else {
        return Ok(next);
    };
    let api: Api<APIService> = Api::all(context.client.clone());
    let patch = json!({
        "metadata": { "resourceVersion": api_service.resource_version() },
        "status": { "conditions": [condition] },
    });
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(next)
}

async fn look(context: &Context, api_service: &APIService) -> Found {
    let spec = api_service.spec.clone().unwrap_or_default();
    let (group, version) = (spec.group.unwrap_or_default(), spec.version.unwrap_or_default());
    let Some(service) = spec.service else { return Found::Local };
    let key = (service.namespace.unwrap_or_default(), service.name.unwrap_or_default());
    let Some(stored) = context.informers.services.store.named(&key.0, &key.1) else {
        return Found::NoService(key);
    };
    let kind = stored.spec.as_ref().and_then(|spec| spec.type_.clone()).unwrap_or_default();
    let is_of = |slice: &EndpointSlice| service_of(slice).as_ref() == Some(&key);
    if kind != "ExternalName" {
        let slices = context.informers.endpoint_slices.store.select(is_of);
        let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let is_ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint.conditions.as_ref().and_then(|it| it.ready) != Some(false)
        };
        match (slices.is_empty(), endpoints.clone().any(is_ready)) {
            (true, _) => return Found::NoEndpoints(key),
            (_, false) => return Found::NoneReady(key),
            _ => {}
        }
    }
    // What this server answers itself says nothing of the other one.
    if discovery::is_served(&group, &version) {
        return Found::Answer;
    }
    let request = Request::get(format!("/apis/{group}/{version}")).body(Body::empty());
    let Ok(request) = request else { return Found::Silent("its name is no path".to_owned()) };
    // What it says is for its clients: here the status is enough, and no more is read.
    match tokio::time::timeout(ANSWER_MAX, context.client.send(request)).await {
        Ok(Ok(answer)) if answer.status().is_success() => Found::Answer,
        Ok(Ok(answer)) => Found::Silent(format!("status {}", answer.status().as_u16())),
        Ok(Err(_)) => Found::Silent("it cannot be asked".to_owned()),
        Err(_) => Found::Silent("it does not answer in time".to_owned()),
    }
}
