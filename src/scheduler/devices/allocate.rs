//! The search for devices on one node: in order, with steps back where a choice leads nowhere.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult,
    DeviceRequestAllocationResult,
};

use crate::scheduler::devices::inventory::{Inventory, Place, Slot};
use crate::scheduler::devices::request::{Constraint, Open, Request, Want};
use crate::scheduler::devices::{Given, NONE_FREE};
use crate::scheduler::node::Facts;

/// Devices that are looked at for one pod on one node, those that are looked at again included.
/// Kubernetes gives up after ten seconds; here nobody else is placed meanwhile.
const STEPS_MAX: usize = 4_096;
/// Devices of one claim.
const RESULTS_MAX: usize = 32;

/// One pod, one node.
pub(super) struct Search<'a> {
    open: &'a [Open],
    slots: Vec<&'a Slot>,
    node: &'a str,
    /// The requests of all claims in order, with the number of their claim.
    requests: Vec<(usize, &'a Request)>,
    /// What each chosen device is for, and which it is.
    chosen: Vec<Chosen<'a>>,
    steps: usize,
    /// Whether a want selects a slot: expressions are evaluated once.
    selected: RefCell<BTreeMap<(*const Want, usize), bool>>,
    /// The first expression that could not be evaluated.
    error: RefCell<Option<String>>,
}

#[derive(Clone, Copy)]
struct Chosen<'a> {
    claim: usize,
    want: &'a Want,
    slot: usize,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        open: &'a [Open],
        inventory: &'a Inventory,
        node: &'a str,
        facts: &Facts,
    ) -> Self {
        let requests = open.iter().enumerate();
        let requests =
            requests.flat_map(|(claim, open)| open.requests.iter().map(move |it| (claim, it)));
        Self {
            open,
            slots: if open.is_empty() { Vec::new() } else { inventory.on(node, facts) },
            node,
            requests: requests.collect(),
            chosen: Vec::new(),
            steps: 0,
            selected: RefCell::default(),
            error: RefCell::default(),
        }
    }

    /// What each claim gets. An expression that has no value for a device it was asked about speaks
    /// against the node, even if other devices would do: as in Kubernetes, mistakes are not hidden.
    pub(super) fn run(mut self) -> Result<Vec<Given>, Cow<'static, str>> {
        let is_filled = self.fill(0);
        match self.error.take() {
            Some(error) => Err(Cow::Owned(error)),
            None if is_filled => {
                Ok((0..self.open.len()).filter_map(|claim| self.given(claim)).collect())
            }
            None => Err(Cow::Borrowed(NONE_FREE)),
        }
    }

    /// The classes of requests that no device here would do for, however few are asked for.
    pub(super) fn lacking(mut self) -> BTreeSet<&'a str> {
        let mut lacking = BTreeSet::new();
        for (claim, request) in std::mem::take(&mut self.requests) {
            let has_one = |want: &Want| {
                (0..self.slots.len()).any(|slot| self.is_free(slot) && self.fits(claim, want, slot))
            };
            if !request.alternatives.iter().any(has_one) {
                lacking.extend(request.alternatives.iter().map(|want| want.class.as_str()));
            }
        }
        lacking
    }

    /// Whether the requests from number `at` on get their devices.
    fn fill(&mut self, at: usize) -> bool {
        let Some(&(claim, request)) = self.requests.get(at) else { return true };
        request.alternatives.iter().any(|want| match want.count {
            Some(count) => self.take(at, claim, want, count, 0),
            None => self.take_all(at, claim, want),
        })
    }

    /// Takes `left` more devices, none in front of number `from`.
    fn take(&mut self, at: usize, claim: usize, want: &'a Want, left: usize, from: usize) -> bool {
        if left == 0 {
            return self.fill(at + 1);
        }
        if self.chosen.iter().filter(|chosen| chosen.claim == claim).count() >= RESULTS_MAX {
            return false;
        }
        for slot in from..self.slots.len() {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return false;
            }
            if !self.is_free(slot) || !self.fits(claim, want, slot) {
                continue;
            }
            self.chosen.push(Chosen { claim, want, slot });
            if self.take(at, claim, want, left - 1, slot + 1) {
                return true;
            }
            self.chosen.pop();
        }
        false
    }

    /// Takes every device that is selected, or none: at least one, and none may be another's. As long
    /// as not all devices here are known, nobody can have them all.
    fn take_all(&mut self, at: usize, claim: usize, want: &'a Want) -> bool {
        if self.slots.iter().any(|slot| !slot.is_certain) {
            return false;
        }
        let before = self.chosen.len();
        for slot in 0..self.slots.len() {
            self.steps += 1;
            if self.steps <= STEPS_MAX && !self.selects(want, slot) {
                continue;
            }
            let held = self.chosen.iter().filter(|chosen| chosen.claim == claim).count();
            let is_over = self.steps > STEPS_MAX || held >= RESULTS_MAX;
            if is_over || !self.is_free(slot) || !self.fits(claim, want, slot) {
                self.chosen.truncate(before);
                return false;
            }
            self.chosen.push(Chosen { claim, want, slot });
        }
        if self.chosen.len() > before && self.fill(at + 1) {
            return true;
        }
        self.chosen.truncate(before);
        false
    }

    fn is_free(&self, slot: usize) -> bool {
        let known = self.slots.get(slot);
        known.is_some_and(|slot| !slot.is_taken && slot.is_certain)
            && !self.chosen.iter().any(|chosen| chosen.slot == slot)
    }

    fn fits(&self, claim: usize, want: &Want, slot: usize) -> bool {
        let Some(known) = self.slots.get(slot) else { return false };
        let of_claim = self.chosen.iter().filter(|chosen| chosen.claim == claim);
        let chosen: Vec<(&Want, &Slot)> = of_claim
            .filter_map(|chosen| Some((chosen.want, *self.slots.get(chosen.slot)?)))
            .collect();
        let allows = |constraint: &Constraint| constraint.allows(&want.name, known, &chosen);
        want.may_have(known)
            && self.open.get(claim).is_some_and(|open| open.constraints.iter().all(allows))
            && self.selects(want, slot)
    }

    fn selects(&self, want: &Want, slot: usize) -> bool {
        let key = (std::ptr::from_ref(want), slot);
        if let Some(is_selected) = self.selected.borrow().get(&key) {
            return *is_selected;
        }
        let is_selected = self.slots.get(slot).is_some_and(|known| match want.selects(known) {
            Ok(is_selected) => is_selected,
            Err(error) => {
                self.error.borrow_mut().get_or_insert(error);
                false
            }
        });
        self.selected.borrow_mut().insert(key, is_selected);
        is_selected
    }

    fn given(&self, claim: usize) -> Option<Given> {
        let open = self.open.get(claim)?;
        let chosen: Vec<(&Want, &Slot)> = self
            .chosen
            .iter()
            .filter(|chosen| chosen.claim == claim)
            .filter_map(|chosen| Some((chosen.want, *self.slots.get(chosen.slot)?)))
            .collect();
        let results = chosen.iter().filter_map(|(want, slot)| {
            Some(DeviceRequestAllocationResult {
                request: want.name.clone(),
                driver: slot.driver().to_owned(),
                pool: slot.pool().to_owned(),
                device: slot.device()?.name.clone(),
                tolerations: (!want.tolerations.is_empty()).then(|| want.tolerations.clone()),
                ..DeviceRequestAllocationResult::default()
            })
        });
        let results: Vec<_> = results.collect();
        let config = config(open, &chosen);
        let allocation = AllocationResult {
            devices: Some(DeviceAllocationResult {
                config: (!config.is_empty()).then_some(config),
                results: Some(results),
            }),
            node_selector: node_selector(self.node, &chosen),
            ..AllocationResult::default()
        };
        Some(Given { claim: Arc::clone(&open.claim), allocation })
    }
}

/// What the classes and the claim say of how the devices are set up, classes first.
fn config(open: &Open, chosen: &[(&Want, &Slot)]) -> Vec<DeviceAllocationConfiguration> {
    let mut config: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (want, _) in chosen {
        if !seen.contains(&want.name.as_str()) {
            seen.push(&want.name);
            config.extend(want.config.iter().cloned());
        }
    }
    let own = open.claim.spec.devices.iter().flat_map(|devices| devices.config.iter().flatten());
    let is_used = |name: &String| {
        seen.iter().any(|want| want == name || want.split_once('/').is_some_and(|(m, _)| m == name))
    };
    config.extend(own.filter_map(|own| {
        let requests = own.requests.clone().unwrap_or_default();
        let applies = requests.is_empty() || requests.iter().any(is_used);
        applies.then(|| DeviceAllocationConfiguration {
            opaque: own.opaque.clone(),
            requests: (!requests.is_empty()).then_some(requests),
            source: "FromClaim".to_owned(),
        })
    }));
    config
}

/// The nodes on which these devices can be used; `None`: all.
fn node_selector(node: &str, chosen: &[(&Want, &Slot)]) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for place in chosen.iter().filter_map(|(_, slot)| slot.place()) {
        match place {
            Place::Everywhere => {}
            Place::Node(_) => {
                let field = NodeSelectorRequirement {
                    key: "metadata.name".to_owned(),
                    operator: "In".to_owned(),
                    values: Some(vec![node.to_owned()]),
                };
                let term = NodeSelectorTerm {
                    match_fields: Some(vec![field]),
                    ..NodeSelectorTerm::default()
                };
                return Some(NodeSelector { node_selector_terms: vec![term] });
            }
            // A slice has one term.
            Place::Nodes(selector) => {
                for other in selector.node_selector_terms.iter().take(1) {
                    merge(&mut term.match_expressions, other.match_expressions.as_deref());
                    merge(&mut term.match_fields, other.match_fields.as_deref());
                }
            }
        }
    }
    let is_empty = term.match_expressions.is_none() && term.match_fields.is_none();
    (!is_empty).then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn merge(
    into: &mut Option<Vec<NodeSelectorRequirement>>,
    others: Option<&[NodeSelectorRequirement]>,
) {
    for other in others.unwrap_or_default() {
        let known = into.get_or_insert_default();
        if !known.contains(other) {
            known.push(other.clone());
        }
    }
}
