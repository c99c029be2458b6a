//! What a claim asks for, read once for all nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    DeviceAllocationConfiguration, DeviceClass, DeviceSelector as Selector, DeviceToleration,
    ResourceClaim,
};

use crate::api::device_selector::DeviceSelector;
use crate::scheduler::devices::DeviceShelf;
use crate::scheduler::devices::inventory::Slot;

/// Expressions that are kept parsed: those of the claims of a large cluster, which are made from few
/// templates.
const SELECTORS_MAX: usize = 1_024;

/// Selectors by their text, since pods of one template ask for the same again and again.
#[derive(Debug, Default)]
pub(in crate::scheduler) struct Selectors {
    known: BTreeMap<String, Result<DeviceSelector, String>>,
}

impl Selectors {
    fn get(&mut self, expression: &str) -> Result<DeviceSelector, String> {
        if let Some(known) = self.known.get(expression) {
            return known.clone();
        }
        if self.known.len() >= SELECTORS_MAX {
            self.known.clear();
        }
        let compiled = DeviceSelector::compile(expression);
        self.known.insert(expression.to_owned(), compiled.clone());
        compiled
    }
}

/// A claim without devices.
#[derive(Debug, Clone)]
pub(super) struct Open {
    pub(super) claim: Arc<ResourceClaim>,
    pub(super) requests: Vec<Request>,
    pub(super) constraints: Vec<Constraint>,
}

/// A request: the first of these that can be had.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) alternatives: Vec<Want>,
}

/// What one request, or one alternative of it, asks for.
#[derive(Debug, Clone)]
pub(super) struct Want {
    /// `request`, or `request/alternative`.
    pub(super) name: String,
    /// The name of its class.
    pub(super) class: String,
    /// Selectors with where they stand, for messages.
    selectors: Vec<(String, DeviceSelector)>,
    /// How many; `None`: all that there are.
    pub(super) count: Option<usize>,
    pub(super) tolerations: Vec<DeviceToleration>,
    /// How the class has its devices set up.
    pub(super) config: Vec<DeviceAllocationConfiguration>,
}

/// What the devices of several requests have in common, or have not.
#[derive(Debug, Clone)]
pub(super) struct Constraint {
    requests: Vec<String>,
    attribute: String,
    is_distinct: bool,
}

impl Open {
    /// Of a claim, with its classes.
    pub(super) fn of(
        claim: Arc<ResourceClaim>,
        shelf: &impl DeviceShelf,
        known: &mut Selectors,
    ) -> Result<Self, String> {
        let devices = claim.spec.devices.clone().unwrap_or_default();
        let mut requests = Vec::new();
        for request in devices.requests.iter().flatten() {
            let mut alternatives = Vec::new();
            if let Some(exactly) = &request.exactly {
                let class = class(shelf, &exactly.device_class_name)?;
                alternatives.push(Want::new(
                    request.name.clone(),
                    &class,
                    exactly.selectors.as_deref().unwrap_or_default(),
                    (exactly.allocation_mode.as_deref(), exactly.count),
                    exactly.tolerations.clone().unwrap_or_default(),
                    known,
                )?);
            }
            for alternative in request.first_available.iter().flatten() {
                let class = class(shelf, &alternative.device_class_name)?;
                alternatives.push(Want::new(
                    format!("{}/{}", request.name, alternative.name),
                    &class,
                    alternative.selectors.as_deref().unwrap_or_default(),
                    (alternative.allocation_mode.as_deref(), alternative.count),
                    alternative.tolerations.clone().unwrap_or_default(),
                    known,
                )?);
            }
            requests.push(Request { alternatives });
        }
        let constraints = devices.constraints.into_iter().flatten().filter_map(|constraint| {
            let is_distinct = constraint.match_attribute.is_none();
            let attribute = constraint.match_attribute.or(constraint.distinct_attribute)?;
            let requests = constraint.requests.unwrap_or_default();
            Some(Constraint { requests, attribute, is_distinct })
        });
        let constraints = constraints.collect();
        Ok(Self { claim, requests, constraints })
    }
}

fn class(shelf: &impl DeviceShelf, name: &str) -> Result<Arc<DeviceClass>, String> {
    shelf.device_class(name).ok_or_else(|| format!("device class {name} does not exist"))
}

impl Want {
    fn new(
        name: String,
        class: &DeviceClass,
        own: &[Selector],
        (mode, count): (Option<&str>, Option<i64>),
        tolerations: Vec<DeviceToleration>,
        known: &mut Selectors,
    ) -> Result<Self, String> {
        let class_name = class.metadata.name.clone().unwrap_or_default();
        let of_class = class.spec.selectors.as_deref().unwrap_or_default();
        let mut selectors = Vec::new();
        for (holder, all) in
            [(format!("class {class_name}"), of_class), (format!("request {name}"), own)]
        {
            for (at, selector) in all.iter().enumerate() {
                let expression = selector.cel.as_ref().map(|cel| cel.expression.as_str());
                let place = format!("{holder}: selector #{at}");
                let compiled = known.get(expression.unwrap_or_default());
                let compiled = compiled.map_err(|error| format!("{place}: {error}"))?;
                selectors.push((place, compiled));
            }
        }
        let config = class.spec.config.iter().flatten();
        let config = config.map(|config| DeviceAllocationConfiguration {
            opaque: config.opaque.clone(),
            requests: Some(vec![name.clone()]),
            source: "FromClass".to_owned(),
        });
        let count = (mode != Some("All"))
            .then(|| usize::try_from(count.unwrap_or(1).max(1)).unwrap_or(usize::MAX));
        let config = config.collect();
        Ok(Self { name, class: class_name, selectors, count, tolerations, config })
    }

    /// Whether the device is of the kind that is asked for, given or not.
    pub(super) fn selects(&self, slot: &Slot) -> Result<bool, String> {
        let Some(device) = slot.device() else { return Ok(false) };
        for (place, selector) in &self.selectors {
            let is_match = selector.matches(slot.driver(), device);
            let is_match =
                is_match.map_err(|error| format!("{place}: device {}: {error}", device.name))?;
            if !is_match {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the device may be given: its taints are tolerated, and nothing is asked for that is not
    /// done here (parts of devices, and devices that have to be made ready first).
    pub(super) fn may_have(&self, slot: &Slot) -> bool {
        let Some(device) = slot.device() else { return false };
        let is_empty = |list: Option<usize>| list.unwrap_or(0) == 0;
        let mut taints = device.taints.iter().flatten();
        is_empty(device.consumes_counters.as_ref().map(Vec::len))
            && is_empty(device.binding_conditions.as_ref().map(Vec::len))
            && taints.all(|taint| {
                taint.effect == "None"
                    || self.tolerations.iter().any(|toleration| tolerates(toleration, taint))
            })
    }
}

fn tolerates(
    toleration: &DeviceToleration,
    taint: &k8s_openapi::api::resource::v1::DeviceTaint,
) -> bool {
    let is_any = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let effect = is_any(&toleration.effect) || toleration.effect.as_deref() == Some(&taint.effect);
    let key = is_any(&toleration.key) || toleration.key.as_deref() == Some(&taint.key);
    let value = toleration.operator.as_deref() == Some("Exists")
        || toleration.value.as_deref().unwrap_or_default()
            == taint.value.as_deref().unwrap_or_default();
    effect && key && value
}

impl Constraint {
    /// Whether it is about what `want` gets.
    fn is_about(&self, want: &str) -> bool {
        let main = want.split_once('/').map_or(want, |(main, _)| main);
        self.requests.is_empty() || self.requests.iter().any(|name| name == want || name == main)
    }

    /// Whether it holds with `slot` for `want` beside what was chosen already.
    pub(super) fn allows(&self, want: &str, slot: &Slot, chosen: &[(&Want, &Slot)]) -> bool {
        if !self.is_about(want) {
            return true;
        }
        let Some(value) = attribute(slot, &self.attribute) else { return false };
        let others = chosen.iter().filter(|(want, _)| self.is_about(&want.name));
        let mut others = others.map(|(_, slot)| attribute(slot, &self.attribute));
        others.all(|other| (other == Some(value)) != self.is_distinct)
    }
}

/// The device's attribute of that full name; its driver's need no domain.
fn attribute<'a>(
    slot: &'a Slot,
    name: &str,
) -> Option<&'a k8s_openapi::api::resource::v1::DeviceAttribute> {
    let attributes = slot.device()?.attributes.as_ref()?;
    let own = name.split_once('/').filter(|(domain, _)| *domain == slot.driver());
    attributes.get(name).or_else(|| attributes.get(own?.1))
}
