//! The devices that there are, and which of them are given to somebody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{AllocationResult, Device, ResourceSlice};

use crate::scheduler::devices::selects;
use crate::scheduler::node::Facts;

/// Driver, pool and name of a device.
pub(super) type DeviceId = (String, String, String);

/// The devices of an allocation.
pub(super) fn ids(allocation: &AllocationResult) -> impl Iterator<Item = DeviceId> + '_ {
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    // Who only looks takes nothing away.
    let takes = results.filter(|result| result.admin_access != Some(true));
    takes.map(|result| (result.driver.clone(), result.pool.clone(), result.device.clone()))
}

/// Who can reach a device.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    Node(&'a str),
    Nodes(&'a NodeSelector),
    Everywhere,
}

impl Place<'_> {
    fn includes(self, node: &str, facts: &Facts) -> bool {
        match self {
            Self::Node(name) => name == node,
            Self::Nodes(selector) => selects(selector, node, facts),
            Self::Everywhere => true,
        }
    }
}

/// A device of a slice.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    slice: Arc<ResourceSlice>,
    at: usize,
    /// Given to a claim.
    pub(super) is_taken: bool,
    /// All slices of its pool are known.
    pub(super) is_certain: bool,
}

impl Slot {
    pub(super) fn device(&self) -> Option<&Device> {
        self.slice.spec.devices.as_ref()?.get(self.at)
    }

    pub(super) fn driver(&self) -> &str {
        &self.slice.spec.driver
    }

    pub(super) fn pool(&self) -> &str {
        &self.slice.spec.pool.name
    }

    pub(super) fn place(&self) -> Option<Place<'_>> {
        let spec = &self.slice.spec;
        let (node, nodes, all) = if spec.per_device_node_selection == Some(true) {
            let device = self.device()?;
            (&device.node_name, &device.node_selector, device.all_nodes)
        } else {
            (&spec.node_name, &spec.node_selector, spec.all_nodes)
        };
        match (node, nodes) {
            (Some(node), _) if !node.is_empty() => Some(Place::Node(node)),
            (_, Some(nodes)) => Some(Place::Nodes(nodes)),
            _ => (all == Some(true)).then_some(Place::Everywhere),
        }
    }
}

/// All devices of the newest generation of each pool: those of one node by its name, the others apart.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    of_nodes: BTreeMap<String, Vec<Slot>>,
    shared: Vec<Slot>,
}

impl Inventory {
    /// Of all slices, with the devices that are given.
    pub(super) fn of(slices: &[Arc<ResourceSlice>], taken: BTreeSet<DeviceId>) -> Self {
        let mut pools: BTreeMap<(&str, &str), Vec<&Arc<ResourceSlice>>> = BTreeMap::new();
        for slice in slices {
            let pool = (slice.spec.driver.as_str(), slice.spec.pool.name.as_str());
            pools.entry(pool).or_default().push(slice);
        }
        let mut inventory = Self::default();
        for slices in pools.values_mut() {
            let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
            slices.retain(|slice| Some(slice.spec.pool.generation) == newest);
            slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            let told = slices.first().map_or(0, |slice| slice.spec.pool.resource_slice_count);
            // A name that stands twice makes the whole pool doubtful.
            let mut names = BTreeSet::new();
            let mut all = slices.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
            let is_certain = i64::try_from(slices.len()) == Ok(told)
                && all.all(|device| names.insert(device.name.as_str()));
            for slice in slices {
                inventory.add(slice, is_certain, &taken);
            }
        }
        inventory
    }

    fn add(&mut self, slice: &Arc<ResourceSlice>, is_certain: bool, taken: &BTreeSet<DeviceId>) {
        let spec = &slice.spec;
        for (at, device) in spec.devices.iter().flatten().enumerate() {
            let id = (spec.driver.clone(), spec.pool.name.clone(), device.name.clone());
            let is_taken = taken.contains(&id);
            let slot = Slot { slice: Arc::clone(slice), at, is_taken, is_certain };
            match slot.place() {
                Some(Place::Node(node)) => {
                    self.of_nodes.entry(node.to_owned()).or_default().push(slot.clone());
                }
                Some(_) => self.shared.push(slot),
                None => {}
            }
        }
    }

    /// The devices that can be reached on the node.
    pub(super) fn on(&self, node: &str, facts: &Facts) -> Vec<&Slot> {
        let own = self.of_nodes.get(node).into_iter().flatten();
        let is_here = |slot: &&Slot| slot.place().is_some_and(|place| place.includes(node, facts));
        own.chain(self.shared.iter().filter(is_here)).collect()
    }
}
