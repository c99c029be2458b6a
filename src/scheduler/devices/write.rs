//! Tells the API what claims get, before their pod is bound.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    AllocationResult, ResourceClaim, ResourceClaimConsumerReference,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tracing::debug;

use crate::api::device_claims::{FINALIZER, is_reserved_for};
use crate::api::json::{child, set};
use crate::client::{Backoff, RetryLimits, retry_on_conflict, revision_of};
use crate::rt::Rng;
use crate::scheduler::devices::{Given, allocation, key};
use crate::scheduler::view::PodKey;

/// Changed in a claim so that a write of before conflicts.
const FENCE: &str = "edgeorc.io/allocation-fence";
/// How long the claims of one pod may take to be written, and how long one of them to be read.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Waits between questions whether a claim was written.
const RETRY: RetryLimits =
    RetryLimits { delay_min: Duration::from_millis(50), delay_max: Duration::from_secs(1) };

/// What became of a claim that was to get devices.
#[derive(Debug)]
pub(in crate::scheduler) struct Settled {
    pub(super) claim: PodKey,
    /// When it got them; `None`: it did not.
    pub(in crate::scheduler) revision: Option<u64>,
}

/// Why a pod's claims were not all written: the pod is looked at again.
#[derive(Debug, thiserror::Error)]
pub(in crate::scheduler) enum ReserveError {
    /// The API does not take it: a claim is another one by now, or is going.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The claim has other devices by now, or none.
    #[error("a claim has other devices now")]
    Changed,
    /// Some claims may have been written.
    #[error("the claims were not written in time")]
    Unknown,
}

/// Writes what the pod's claims get, and that it uses them and those that have devices already. A claim
/// that is another by now is left as it is: the pod is looked at again. When each of `given` was written.
///
/// # Errors
///
/// [`ReserveError`]. Claims in front of the one that failed keep what they got, for the pod.
pub(in crate::scheduler) async fn reserve(
    client: &kube::Client,
    pod: &Pod,
    given: &[Given],
    held: &[Arc<ResourceClaim>],
    (now, rng): (Timestamp, &Rng),
) -> Result<Vec<Settled>, ReserveError> {
    let uid = pod.uid().unwrap_or_default();
    let joined: Vec<_> = held.iter().filter(|claim| !is_reserved_for(claim, &uid)).collect();
    if given.is_empty() && joined.is_empty() {
        return Ok(Vec::new());
    }
    let claims: Api<ResourceClaim> =
        Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let write = async {
        let mut settled = Vec::new();
        for Given { claim, allocation } in given {
            let allocation =
                AllocationResult { allocation_timestamp: Some(Time(now)), ..allocation.clone() };
            // First what keeps it: devices are never given to what can go unnoticed.
            let kept = keep(&claims, claim).await?;
            let status = json!({ "allocation": allocation, "reservedFor": consumers(&kept, pod) });
            let written = patch_status(&claims, &kept, status).await?;
            settled.push(Settled { claim: key(claim), revision: Some(revision(&written)) });
        }
        for claim in joined {
            join(&claims, claim, pod, rng).await?;
        }
        Ok::<_, ReserveError>(settled)
    };
    tokio::time::timeout(TIMEOUT, write).await.unwrap_or(Err(ReserveError::Unknown))
}

/// What the API says of the claims after they may not have been written. Asks until it has an answer: a
/// device that may be given must not be given twice, and without the API no pod gets a node.
///
/// A claim without devices is changed before that is believed: a write of before that lands late meets a conflict.
///
/// # Cancel safety
///
/// Cancel safe: what was changed says nothing.
pub(in crate::scheduler) async fn read_back(
    client: &kube::Client,
    given: &[Given],
    rng: &Rng,
) -> Vec<Settled> {
    let mut settled = Vec::new();
    for given in given {
        let namespace = given.claim.namespace().unwrap_or_default();
        let claims: Api<ResourceClaim> = Api::namespaced(client.clone(), &namespace);
        let mut backoff = Backoff::new(RETRY, rng.clone());
        let revision = loop {
            match tokio::time::timeout(TIMEOUT, settle(&claims, &given.claim, rng)).await {
                Ok(Ok(revision)) => break revision,
                Ok(Err(err)) => debug!(%err, "claim not read"),
                Err(_) => debug!("claim not read in time"),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        };
        settled.push(Settled { claim: key(&given.claim), revision });
    }
    settled
}

/// The revision at which the claim has devices; `None` if it has none, and gets none by a write of before.
async fn settle(
    claims: &Api<ResourceClaim>,
    claim: &ResourceClaim,
    rng: &Rng,
) -> kube::Result<Option<u64>> {
    let live = claims.get_opt(&claim.name_any()).await?;
    let Some(live) = live.filter(|live| live.uid() == claim.uid()) else { return Ok(None) };
    if allocation(&live).is_some() {
        return Ok(Some(revision(&live)));
    }
    let mut fence = version(&live);
    if let Some(metadata) = child(&mut fence, "metadata") {
        set(metadata, "annotations", json!({ FENCE: rng.uuid().to_string() }));
    }
    claims.patch(&live.name_any(), &PatchParams::default(), &Patch::Merge(&fence)).await?;
    Ok(None)
}

/// Writes that the pod uses a claim that has devices already. Other pods do so at the same time.
async fn join(
    claims: &Api<ResourceClaim>,
    claim: &ResourceClaim,
    pod: &Pod,
    rng: &Rng,
) -> Result<(), ReserveError> {
    let attempt = || async {
        let live = claims.get(&claim.name_any()).await?;
        if live.uid() != claim.uid() || allocation(&live) != allocation(claim) {
            return Ok(false);
        }
        patch_status(claims, &live, json!({ "reservedFor": consumers(&live, pod) })).await?;
        Ok::<_, kube::Error>(true)
    };
    let is_joined = retry_on_conflict(rng, attempt).await?;
    if is_joined { Ok(()) } else { Err(ReserveError::Changed) }
}

/// Gives back what claims have for a pod that finds no node, if the API itself says that it has none: a
/// binding may have worked without anybody hearing of it.
///
/// # Errors
///
/// What the API answers.
pub(in crate::scheduler) async fn release(
    client: &kube::Client,
    pod: &Pod,
    held: &[Arc<ResourceClaim>],
) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let live = pods.get_opt(&pod.name_any()).await?.filter(|live| live.uid() == pod.uid());
    let is_bound = |live: &Pod| live.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    if live.as_ref().is_none_or(is_bound) {
        return Ok(());
    }
    for claim in held {
        let namespace = claim.namespace().unwrap_or_default();
        let claims: Api<ResourceClaim> = Api::namespaced(client.clone(), &namespace);
        let nothing = json!({ "allocation": null, "reservedFor": null, "devices": null });
        patch_status(&claims, claim, nothing).await?;
    }
    Ok(())
}

/// Of a claim that has devices; without a version, only the cache can tell when it shows them.
fn revision(claim: &ResourceClaim) -> u64 {
    revision_of(claim).unwrap_or(u64::MAX)
}

async fn keep(
    claims: &Api<ResourceClaim>,
    claim: &ResourceClaim,
) -> Result<ResourceClaim, kube::Error> {
    if claim.finalizers().iter().any(|name| name == FINALIZER) {
        return Ok(claim.clone());
    }
    let finalizers: Vec<&str> =
        claim.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    let mut patch = version(claim);
    if let Some(metadata) = child(&mut patch, "metadata") {
        set(metadata, "finalizers", json!(finalizers));
    }
    claims.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await
}

fn consumers(claim: &ResourceClaim, pod: &Pod) -> Vec<ResourceClaimConsumerReference> {
    let had = claim.status.as_ref().and_then(|status| status.reserved_for.clone());
    let mut consumers = had.unwrap_or_default();
    let uid = pod.uid().unwrap_or_default();
    if !consumers.iter().any(|consumer| consumer.uid == uid) {
        consumers.push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: pod.name_any(),
            uid,
        });
    }
    consumers
}

async fn patch_status(
    claims: &Api<ResourceClaim>,
    claim: &ResourceClaim,
    status: Value,
) -> Result<ResourceClaim, kube::Error> {
    let mut patch = version(claim);
    set(&mut patch, "status", status);
    let params = PatchParams::default();
    claims.patch_status(&claim.name_any(), &params, &Patch::Merge(&patch)).await
}

/// A patch of exactly the version that was read.
fn version(claim: &ResourceClaim) -> Value {
    json!({"metadata": {"uid": claim.uid(), "resourceVersion": claim.resource_version()}})
}
