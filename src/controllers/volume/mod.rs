//! Persistent volumes: binds claims to volumes, makes volumes where pods are, and lets go of what
//! is no longer used.
//!
//! ```text
//! claim   Pending ──bind──► Bound ──volume gone──► Lost
//! volume  Available ──bind──► Bound ──claim gone──► Released ──(Delete)──► deleted by its node
//! ```
//!
//! A volume of the class `local-path` is a folder on the node of the first pod that uses the claim:
//! here only its object is made. The folder is made, and removed, by that node's agent.
//!
//! # Invariants
//!
//! - A volume has one claim: its `claimRef` is written first, with the version that was read.
//! - A volume is deleted only after the API itself has said that its claim is gone.

mod plan;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::api::local_volume::{self, CLAIM_FINALIZER, VOLUMES_PATH};
use crate::client::{Change, EventRecorder, EventType, Informer, Regarding, is_already_exists};
use crate::controllers::Context;
use crate::controllers::object::{patch_as_read, patch_status_as_read};
use crate::controllers::queue::{Next, Queue, Workers};
use plan::{Consumer, Step};

/// Claims and volumes looked after at once.
const RUNS_MAX: usize = 8;
/// How long the cache may take to show what there is.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
/// Folder of a node's volumes when the node has not said where it is.
const FOLDER_DEFAULT: &str = "/var/lib/edgeorc/agent/volumes";

/// What is reconciled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// Namespace and name.
    Claim(String, String),
    Volume(String),
}

impl Target {
    fn claim(claim: &PersistentVolumeClaim) -> Self {
        Self::Claim(claim.namespace().unwrap_or_default(), claim.name_any())
    }
}

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    feed(&context, &queue);
    let workers =
        Workers { controller: "persistent-volume", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers
        .run(queue, cancel, |target| {
            let (context, events) = (&context, &events);
            async move {
                match target {
                    Target::Claim(namespace, name) => {
                        reconcile_claim(context, events, &namespace, &name).await
                    }
                    Target::Volume(name) => volumes::reconcile(context, &name).await,
                }
            }
        })
        .await;
}

fn feed(context: &Context, queue: &Queue<Target>) {
    let informers = &context.informers;
    informers.claims.subscribe(queue.feed(|change: &Change<'_, PersistentVolumeClaim>, keys| {
        let claim = change.object();
        keys.push(Target::claim(claim));
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        keys.extend(volume.map(Target::Volume));
    }));
    let claims = informers.claims.clone();
    informers.volumes.subscribe(queue.feed(move |change: &Change<'_, PersistentVolume>, keys| {
        let volume = change.object();
        keys.push(Target::Volume(volume.name_any()));
        match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            Some(taken) => keys.push(Target::Claim(
                taken.namespace.clone().unwrap_or_default(),
                taken.name.clone().unwrap_or_default(),
            )),
            None => keys.extend(unbound(&claims)),
        }
    }));
    informers.pods.subscribe(queue.feed(|change: &Change<'_, Pod>, keys| {
        let pod = change.object();
        let namespace = pod.namespace().unwrap_or_default();
        let names = local_volume::claims_of(pod);
        keys.extend(names.map(|name| Target::Claim(namespace.clone(), name.to_owned())));
    }));
    let claims = informers.claims.clone();
    informers.storage_classes.subscribe(
        queue.feed(move |_: &Change<'_, StorageClass>, keys| keys.extend(unbound(&claims))),
    );
    let volumes = informers.volumes.clone();
    informers.nodes.subscribe(queue.feed(move |change: &Change<'_, Node>, keys| {
        if let Change::Removed(node) = change {
            let name = node.name_any();
            let state = volumes.store.state();
            let of_node = state.iter().filter(|v| local_volume::node_of(v) == Some(&name));
            keys.extend(of_node.map(|volume| Target::Volume(volume.name_any())));
        }
    }));
}

fn unbound(claims: &Informer<PersistentVolumeClaim>) -> Vec<Target> {
    let state = claims.store.state();
    state.iter().filter(|claim| plan::phase(claim) == "Pending").map(|c| Target::claim(c)).collect()
}

async fn reconcile_claim(
    context: &Context,
    events: &EventRecorder,
    namespace: &str,
    name: &str,
) -> Result<Next, kube::Error> {
    let informers = &context.informers;
    let Some(claim) = informers.claims.store.named(namespace, name) else { return Ok(Next::Wait) };
    let pods = informers.pods.store.in_namespace(namespace);
    let is_used = plan::consumers(&pods, name).next().is_some();
    let consumer = plan::consumer_node(&pods, name).map(|node| {
        let found = informers.nodes.store.named("", &node);
        let labels = found.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
        Consumer { node, labels }
    });
    let (volumes, classes) =
        (informers.volumes.store.state(), informers.storage_classes.store.state());
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    match plan::plan(&claim, &volumes, &classes, consumer.as_ref(), is_used) {
        Step::Wait => {}
        Step::WaitForConsumer => {
            let message = "waiting for first consumer to be created before binding".to_owned();
            let about = Regarding::of(claim.as_ref());
            events.record(about, EventType::Normal, "WaitForFirstConsumer", message);
        }
        Step::SetClass(class) => {
            patch_as_read(&api, &claim, json!({"spec": {"storageClassName": class}})).await?;
        }
        Step::Bind(volume) => bind(context, &api, &claim, &volume).await?,
        Step::Provision(node) => provision(context, events, &claim, &classes, &node).await?,
        Step::Lose => {
            patch_status_as_read(&api, &claim, json!({"phase": "Lost"})).await?;
        }
        Step::Release => return release(context, &api, &claim).await,
    }
    Ok(Next::Wait)
}

/// Lets a claim go that no pod uses, by a cache that is not late.
async fn release(
    context: &Context,
    api: &Api<PersistentVolumeClaim>,
    claim: &PersistentVolumeClaim,
) -> Result<Next, kube::Error> {
    let namespace = claim.namespace().unwrap_or_default();
    let newest: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    let newest = newest.list(&ListParams::default().limit(1)).await?.metadata.resource_version;
    let newest = newest.and_then(|revision| revision.parse().ok()).unwrap_or(u64::MAX);
    let pods = &context.informers.pods;
    if !pods.catch_up(newest, CATCH_UP_MAX).await {
        return Ok(Next::After(CATCH_UP_MAX));
    }
    let pods = pods.store.in_namespace(&namespace);
    if plan::consumers(&pods, &claim.name_any()).next().is_none() {
        let kept: Vec<_> = claim.finalizers().iter().filter(|f| *f != CLAIM_FINALIZER).collect();
        patch_as_read(api, claim, json!({"metadata": {"finalizers": kept}})).await?;
    }
    Ok(Next::Wait)
}

/// Makes the volume's object; the cache shows it and the claim is bound then.
async fn provision(
    context: &Context,
    events: &EventRecorder,
    claim: &PersistentVolumeClaim,
    classes: &[Arc<StorageClass>],
    node: &str,
) -> Result<(), kube::Error> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    let class = classes.iter().find(|class| Some(class.name_any().as_str()) == wanted);
    let found = context.informers.nodes.store.named("", node);
    let folder = found.as_ref().and_then(|node| node.annotations().get(VOLUMES_PATH).cloned());
    let folder = folder.unwrap_or_else(|| FOLDER_DEFAULT.to_owned());
    let volume = plan::volume_for(claim, class.map(AsRef::as_ref), node, &folder);
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    match api.create(&PostParams::default(), &volume).await {
        Err(err) if !is_already_exists(&err) => return Err(err),
        Err(_) => return Ok(()),
        Ok(_) => {}
    }
    let name = plan::volume_name(claim);
    info!(volume = name, k8s.node.name = node, "volume provisioned");
    let message = format!("Successfully provisioned volume {name}");
    events.record(Regarding::of(claim), EventType::Normal, "ProvisioningSucceeded", message);
    Ok(())
}

/// Binds the two: the volume's reference, its phase, the claim's volume, its phase. Each is written
/// only where it differs, so that a run that was cut short is gone on with.
async fn bind(
    context: &Context,
    api: &Api<PersistentVolumeClaim>,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<(), kube::Error> {
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let mut volume = volume.clone();
    if !plan::is_of(&volume, claim) {
        let reference = json!({"spec": {"claimRef": plan::reference(claim)}});
        volume = patch_as_read(&volumes, &volume, reference).await?;
    }
    // A folder has no size of its own: a larger wish is granted by writing it down.
    if local_volume::is_provisioned(&volume)
        && local_volume::request(claim) > local_volume::capacity(&volume)
    {
        let wanted = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
        let capacity = wanted.and_then(|resources| resources.requests.clone());
        volume = patch_as_read(&volumes, &volume, json!({"spec": {"capacity": capacity}})).await?;
    }
    if volume.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
        volume = patch_status_as_read(&volumes, &volume, json!({"phase": "Bound"})).await?;
    }
    let name = volume.name_any();
    let mut claim = claim.clone();
    if claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()) != Some(&name) {
        let bound = json!({
            "metadata": {"annotations": {
                "pv.kubernetes.io/bind-completed": "yes",
                "pv.kubernetes.io/bound-by-controller": "yes",
            }},
            "spec": {"volumeName": name},
        });
        claim = patch_as_read(api, &claim, bound).await?;
    }
    let spec = volume.spec.unwrap_or_default();
    let status = json!({
        "phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity,
    });
    let had = serde_json::to_value(claim.status.clone().unwrap_or_default()).unwrap_or_default();
    let differs = status.as_object().into_iter().flatten().any(|(key, v)| had.get(key) != Some(v));
    if differs {
        patch_status_as_read(api, &claim, status).await?;
    }
    Ok(())
}
