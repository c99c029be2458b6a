//! Devices that a pod claims: which nodes have them free, and which of them it gets. Kubernetes' plugin
//! `DynamicResources` with structured parameters (KEP-4381).
//!
//! Data in: claims, classes and slices. Data out: refusals of nodes, and allocations for the claims of a
//! pod that has a node.
//!
//! # Invariants
//!
//! - A pod without claims costs nothing.
//! - A device is given once: what was decided and not yet seen in the cache counts as given, until the
//!   API itself says that it was not written.
//! - Devices are given out whole: of partitionable ones the parts, and of shared ones the shares, are
//!   not looked at, nor are devices that have to be made ready before a pod is bound.

mod allocate;
#[cfg(test)]
mod devices_test;
mod inventory;
mod request;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, Pod};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use kube::ResourceExt as _;

use crate::api::device_claims::{self, CONSUMERS_MAX};
use crate::api::selector::node_term_matches;
use crate::client::{Informers, revision_of};
use crate::scheduler::devices::allocate::Search;
use crate::scheduler::devices::inventory::{DeviceId, Inventory, ids};
use crate::scheduler::devices::request::Open;
use crate::scheduler::node::Facts;
use crate::scheduler::view::PodKey;

pub(super) use request::Selectors;
pub(super) use write::{Settled, read_back, release, reserve};

/// The claim's devices are on other nodes.
pub(super) const ELSEWHERE: &str = "resourceclaim not available on the node";
/// No devices that fit are free there.
pub(super) const NONE_FREE: &str = "cannot allocate all claims";

/// Where the objects about devices are found.
pub(super) trait DeviceShelf {
    /// A claim by namespace and name.
    fn resource_claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>>;
    /// All claims.
    fn resource_claims(&self) -> Vec<Arc<ResourceClaim>>;
    /// A class by name.
    fn device_class(&self, name: &str) -> Option<Arc<DeviceClass>>;
    /// All slices.
    fn resource_slices(&self) -> Vec<Arc<ResourceSlice>>;
}

impl DeviceShelf for Informers {
    fn resource_claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        self.resource_claims.store.named(namespace, name)
    }

    fn resource_claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.resource_claims.store.state()
    }

    fn device_class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.device_classes.store.named("", name)
    }

    fn resource_slices(&self) -> Vec<Arc<ResourceSlice>> {
        self.resource_slices.store.state()
    }
}

/// Devices that were given to claims, which the cache does not show yet. Bounded by the bindings under
/// way.
#[derive(Debug, Default)]
pub(super) struct Assumed {
    claims: BTreeMap<PodKey, Assumption>,
}

#[derive(Debug)]
struct Assumption {
    /// Of the claim.
    uid: String,
    devices: Vec<DeviceId>,
    /// When the claim got them, if that is known already.
    revision: Option<u64>,
}

impl Assumed {
    /// Takes note of what a pod gets.
    pub(super) fn add(&mut self, given: &[Given]) {
        for given in given {
            let uid = given.claim.uid().unwrap_or_default();
            let devices = ids(&given.allocation).collect();
            self.claims.insert(key(&given.claim), Assumption { uid, devices, revision: None });
        }
    }

    /// Takes note of what was written, and forgets what was not.
    pub(super) fn settle(&mut self, settled: &[Settled], shelf: &impl DeviceShelf) {
        for settled in settled {
            if settled.revision.is_none() {
                self.claims.remove(&settled.claim);
            } else if let Some(assumed) = self.claims.get_mut(&settled.claim) {
                assumed.revision = settled.revision;
            }
        }
        self.prune(shelf);
    }

    /// Forgets what the cache shows by now, or has shown, and claims that are gone.
    pub(super) fn prune(&mut self, shelf: &impl DeviceShelf) {
        self.claims.retain(|(namespace, name), assumed| {
            let shown = shelf.resource_claim(namespace, name);
            shown.is_some_and(|claim| {
                let is_past = assumed.revision.is_some_and(|it| revision_of(&*claim) >= Some(it));
                claim.uid().as_deref() == Some(assumed.uid.as_str())
                    && allocation(&claim).is_none()
                    && !is_past
            })
        });
    }
}

/// What a claim of a pod gets.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) claim: Arc<ResourceClaim>,
    pub(super) allocation: AllocationResult,
}

/// What a pod's claims of devices ask of a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Devices {
    /// Why no node will do.
    pub(super) missing: Option<String>,
    /// Claims that have their devices.
    held: Vec<Arc<ResourceClaim>>,
    /// Claims that are to get some.
    open: Vec<Open>,
    inventory: Arc<Inventory>,
}

impl Devices {
    /// Of `pod`, as the shelf shows it.
    pub(super) fn of(
        pod: &Pod,
        shelf: &impl DeviceShelf,
        assumed: &Assumed,
        known: &mut Selectors,
    ) -> Self {
        let mut devices = Self::default();
        if !device_claims::has_any(pod) {
            return devices;
        }
        for named in device_claims::of_pod(pod) {
            if let Err(reason) = devices.add(pod, &named, shelf, assumed, known) {
                return Self { missing: Some(reason), ..Self::default() };
            }
        }
        if !devices.open.is_empty() {
            let claims = shelf.resource_claims();
            let taken = claims.iter().filter_map(|claim| allocation(claim)).flat_map(ids);
            let assumed =
                assumed.claims.values().flat_map(|assumed| assumed.devices.iter().cloned());
            devices.inventory =
                Arc::new(Inventory::of(&shelf.resource_slices(), taken.chain(assumed).collect()));
        }
        devices
    }

    fn add(
        &mut self,
        pod: &Pod,
        named: &device_claims::Named<'_>,
        shelf: &impl DeviceShelf,
        assumed: &Assumed,
        known: &mut Selectors,
    ) -> Result<(), String> {
        let namespace = pod.namespace().unwrap_or_default();
        let Some(name) = named.claim else {
            return Err(format!(
                "waiting for dynamic resource controller to create the resourceclaim {:?}",
                named.entry
            ));
        };
        let claim = shelf.resource_claim(&namespace, name);
        let claim = claim.ok_or_else(|| format!("resourceclaim {name:?} not found"))?;
        let is_it = |other: &Arc<ResourceClaim>| other.uid() == claim.uid();
        if self.held.iter().chain(self.open.iter().map(|open| &open.claim)).any(is_it) {
            // Another entry of the pod names the same claim.
            return Ok(());
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("resourceclaim {name:?} is being deleted"));
        }
        let uid = pod.uid().unwrap_or_default();
        if named.template.is_some() && !claim.owner_references().iter().any(|o| o.uid == uid) {
            return Err(format!("resourceclaim {name:?} was not created for the pod"));
        }
        if allocation(&claim).is_some() {
            let status = claim.status.as_ref();
            let consumers =
                status.and_then(|status| status.reserved_for.as_ref()).map_or(0, Vec::len);
            if consumers >= CONSUMERS_MAX && !device_claims::is_reserved_for(&claim, &uid) {
                return Err(format!("resourceclaim {name:?} is in use by {CONSUMERS_MAX} pods"));
            }
            self.held.push(claim);
            return Ok(());
        }
        if assumed.claims.get(&key(&claim)).is_some_and(|it| Some(&it.uid) == claim.uid().as_ref())
        {
            return Err(format!("resourceclaim {name:?} is being allocated"));
        }
        self.open.push(Open::of(claim, shelf, known)?);
        Ok(())
    }

    /// Why the node cannot have the pod, if its devices speak against it.
    pub(super) fn refusal(&self, node: &str, facts: &Facts) -> Option<Cow<'static, str>> {
        if self.held.is_empty() && self.open.is_empty() {
            return None;
        }
        self.allocate(node, facts).err()
    }

    /// What the open claims get on the node.
    pub(super) fn allocate(
        &self,
        node: &str,
        facts: &Facts,
    ) -> Result<Vec<Given>, Cow<'static, str>> {
        let is_here = |claim: &Arc<ResourceClaim>| {
            let selector = allocation(claim).and_then(|given| given.node_selector.as_ref());
            selector.is_none_or(|selector| selects(selector, node, facts))
        };
        if !self.held.iter().all(is_here) {
            return Err(Cow::Borrowed(ELSEWHERE));
        }
        Search::new(&self.open, &self.inventory, node, facts).run()
    }

    /// The classes that the node has no device of which is free, and would do.
    pub(super) fn lacking(&self, node: &str, facts: &Facts) -> Vec<String> {
        let lacking = Search::new(&self.open, &self.inventory, node, facts).lacking();
        lacking.into_iter().map(str::to_owned).collect()
    }

    /// Claims that have devices already.
    pub(super) fn held(&self) -> &[Arc<ResourceClaim>] {
        &self.held
    }

    /// Claims that have devices for this pod and no other: they can be given back.
    pub(super) fn own(&self, pod: &Pod) -> Vec<Arc<ResourceClaim>> {
        let uid = pod.uid().unwrap_or_default();
        let is_own = |claim: &&Arc<ResourceClaim>| {
            let consumers = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
            consumers.into_iter().all(|consumer| consumer.uid == uid)
        };
        self.held.iter().filter(is_own).cloned().collect()
    }
}

/// The devices that the claim has.
fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

fn key(claim: &ResourceClaim) -> PodKey {
    (claim.namespace().unwrap_or_default(), claim.name_any())
}

/// Whether the node is one that is selected.
fn selects(selector: &NodeSelector, node: &str, facts: &Facts) -> bool {
    selector.node_selector_terms.iter().any(|term| node_term_matches(term, node, &facts.labels))
}
