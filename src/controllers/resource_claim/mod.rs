//! Claims of devices: made for pods that name a template, and free again once nobody uses them.
//!
//! ```text
//! pod with a template ──► claim, pending ──(scheduler)──► allocated, reserved ──(pod over)──► pending, or gone
//! ```
//!
//! # Invariants
//!
//! - One claim for each pod and entry: its name follows from the pod's uid.
//! - A claim is let go of only after the API itself has said that its pod is gone.

mod plan;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api::device_claims;
use crate::client::{
    Change, EventRecorder, EventType, Informers, Regarding, is_already_exists, is_not_found,
};
use crate::controllers::Context;
use crate::controllers::object::{
    Key, delete_as_read, is_active, key, patch_as_read, patch_status_as_read,
};
use crate::controllers::queue::{Next, Queue, Workers};

/// Pods and claims looked after at once.
const RUNS_MAX: usize = 8;

/// What is reconciled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Pod(Key),
    Claim(Key),
}

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    feed(&context.informers, &queue);
    let workers =
        Workers { controller: "resource-claim", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers
        .run(queue, cancel, |target| {
            let (context, events) = (&context, &events);
            async move {
                match target {
                    Target::Pod(key) => reconcile_pod(context, events, key).await,
                    Target::Claim(key) => reconcile_claim(context, key).await,
                }
            }
        })
        .await;
}

fn feed(informers: &Informers, queue: &Queue<Target>) {
    informers.pods.subscribe(queue.feed(|change: &Change<'_, Pod>, keys| {
        let pod = change.object();
        if !device_claims::has_any(pod) {
            return;
        }
        let namespace = pod.namespace().unwrap_or_default();
        if matches!(change, Change::Removed(_)) || !is_active(pod) {
            let claims = device_claims::of_pod(pod).filter_map(|named| named.claim);
            keys.extend(claims.map(|name| Target::Claim((namespace.clone(), name.to_owned()))));
        } else if device_claims::of_pod(pod).any(|named| named.claim.is_none()) {
            keys.push(Target::Pod(key(pod.as_ref())));
        }
    }));
    informers.resource_claims.subscribe(queue.feed(|change: &Change<'_, ResourceClaim>, keys| {
        if let Change::Applied { new, .. } = change {
            keys.push(Target::Claim(key(new.as_ref())));
        }
    }));
    let pods = informers.pods.store.clone();
    informers.resource_claim_templates.subscribe(queue.feed(
        move |change: &Change<'_, ResourceClaimTemplate>, keys| {
            let template = change.object();
            let (namespace, name) = key(template.as_ref());
            let waits = |pod: &&Arc<Pod>| {
                device_claims::of_pod(pod)
                    .any(|named| named.claim.is_none() && named.template == Some(name.as_str()))
            };
            let of_namespace = pods.in_namespace(&namespace);
            keys.extend(of_namespace.iter().filter(waits).map(|p| Target::Pod(key(p.as_ref()))));
        },
    ));
}

/// Makes the claims that the pod waits for, and tells it their names.
async fn reconcile_pod(
    context: &Context,
    events: &EventRecorder,
    (namespace, name): Key,
) -> Result<Next, kube::Error> {
    let informers = &context.informers;
    let Some(pod) = informers.pods.store.named(&namespace, &name) else { return Ok(Next::Wait) };
    let wanted = plan::wanted(&pod);
    if wanted.is_empty() || !is_active(&pod) {
        return Ok(Next::Wait);
    }
    let claims: Api<ResourceClaim> = Api::namespaced(context.client.clone(), &namespace);
    let mut made = plan::statuses(&pod);
    for wanted in wanted {
        let Some(template) =
            informers.resource_claim_templates.store.named(&namespace, wanted.template)
        else {
            let message = format!(
                "PodResourceClaim {}: resourceclaimtemplate \"{}\" not found",
                wanted.entry, wanted.template
            );
            let reason = "FailedResourceClaimCreation";
            events.record(Regarding::of(pod.as_ref()), EventType::Warning, reason, message);
            // The pod is looked at again when the template comes.
            continue;
        };
        let claim = plan::claim(&pod, &wanted, &template);
        let own = claim.name_any();
        match claims.create(&PostParams::default(), &claim).await {
            Ok(_) => {}
            Err(err) if is_already_exists(&err) => {
                let there = claims.get(&own).await?;
                if !plan::is_for(&there, &pod, wanted.entry) {
                    // Somebody else's by chance: it may go.
                    return Err(err);
                }
            }
            Err(err) => return Err(err),
        }
        made.push(json!({ "name": wanted.entry, "resourceClaimName": own }));
    }
    if made.len() > plan::statuses(&pod).len() {
        let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
        let status = json!({ "resourceClaimStatuses": made });
        patch_status_as_read(&pods, pod.as_ref(), status).await?;
    }
    Ok(Next::Wait)
}

/// Lets go of what no pod uses any more.
async fn reconcile_claim(context: &Context, (namespace, name): Key) -> Result<Next, kube::Error> {
    let found = context.informers.resource_claims.store.named(&namespace, &name);
    let Some(mut claim) = found else { return Ok(Next::Wait) };
    let claims: Api<ResourceClaim> = Api::namespaced(context.client.clone(), &namespace);
    let mut gone = Vec::new();
    for (pod, uid) in plan::consumers(&claim) {
        if is_over(context, &namespace, pod, uid).await? {
            gone.push(uid.to_owned());
        }
    }
    if let Some(status) = plan::released(&claim, &gone) {
        claim = Arc::new(patch_status_as_read(&claims, claim.as_ref(), status).await?);
    }
    if let Some(finalizers) = plan::finalizers(&claim) {
        let patch = json!({ "metadata": { "finalizers": finalizers } });
        match patch_as_read(&claims, claim.as_ref(), patch).await {
            // It was all that it waited for.
            Err(err) if is_not_found(&err) => return Ok(Next::Wait),
            other => claim = Arc::new(other?),
        }
    }
    let owner = plan::owner(&claim);
    if let Some((pod, uid)) = owner
        && plan::is_unused(&claim)
        && is_over(context, &namespace, pod, uid).await?
    {
        delete_as_read(&claims, claim.as_ref()).await?;
    }
    Ok(Next::Wait)
}

/// Whether the pod will not run any more, as the API itself says.
async fn is_over(
    context: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<bool, kube::Error> {
    let cached = context.informers.pods.store.named(namespace, name);
    if cached.is_some_and(|pod| pod.uid().as_deref() == Some(uid) && !plan::is_over(&pod)) {
        return Ok(false);
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let live = pods.get_opt(name).await?;
    Ok(live.is_none_or(|pod| pod.uid().as_deref() != Some(uid) || plan::is_over(&pod)))
}
