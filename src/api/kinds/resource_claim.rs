//! ResourceClaim.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{is_unset, items_at, text_at};
use crate::api::kinds::{device_allocation, device_requests};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "resource.k8s.io",
    version: "v1",
    plural: "resourceclaims",
    singular: "resourceclaim",
    kind: "ResourceClaim",
    list_kind: "ResourceClaimList",
    description: "Devices that pods ask for, and those that were given to them.",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("State"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<ResourceClaim>)
    },
};

/// Pods that may use one claim.
pub(crate) const CONSUMERS_MAX: usize = 256;

const ALLOCATION: &str = "/status/allocation";
const CONSUMERS: &str = "/status/reservedFor";

fn default(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec") {
        device_requests::default(spec);
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    device_requests::validate(object.get("spec").unwrap_or(&Value::Null), "spec", errors);
    let consumers = items_at(object, CONSUMERS);
    if consumers.len() > CONSUMERS_MAX {
        let field = "status.reservedFor";
        errors.push(FieldError::too_many(field, consumers.len(), CONSUMERS_MAX));
    }
    let mut known = BTreeSet::new();
    for (at, consumer) in consumers.iter().enumerate() {
        let path = format!("status.reservedFor[{at}]");
        for field in ["resource", "name", "uid"] {
            if text_at(consumer, &format!("/{field}")).is_empty() {
                errors.required(format!("{path}.{field}"));
            }
        }
        let uid = text_at(consumer, "/uid");
        if !known.insert(uid) {
            errors.duplicate(format!("{path}.uid"), &json!(uid));
        }
    }
    device_allocation::validate(object, errors);
}

/// What is asked for stays; what was given stays while somebody uses it.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let field = |object: &Value, pointer: &str| object.pointer(pointer).cloned();
    let mut before = old.clone();
    // One that was stored by an older server may lack what is filled in today.
    default(&mut before);
    if before.get("spec") != new.get("spec") {
        errors.invalid("spec", new.get("spec").unwrap_or(&Value::Null), "field is immutable");
    }
    let (had, has) = (field(old, ALLOCATION), field(new, ALLOCATION));
    if !is_unset(had.as_ref()) && !is_unset(has.as_ref()) && had != has {
        let value = has.clone().unwrap_or_default();
        errors.invalid("status.allocation", &value, "field is immutable");
    }
    let is_free = is_unset(has.as_ref());
    if is_free && !items_at(new, CONSUMERS).is_empty() {
        let detail = "may not be specified when `allocated` is not set";
        errors.forbidden("status.reservedFor", detail);
    }
    let is_known = |consumer: &Value| {
        let uid = text_at(consumer, "/uid");
        items_at(old, CONSUMERS).iter().any(|had| text_at(had, "/uid") == uid)
    };
    let is_going = !is_unset(new.pointer("/metadata/deletionTimestamp"));
    if is_going && items_at(new, CONSUMERS).iter().any(|consumer| !is_known(consumer)) {
        let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.forbidden("status.reservedFor", detail);
    }
    if is_going && !is_free && is_unset(had.as_ref()) {
        let detail = "new claims may not be allocated while the claim is being deleted";
        errors.forbidden("status.allocation", detail);
    }
}

fn state(claim: &Value) -> String {
    let mut states = Vec::new();
    if !is_unset(claim.pointer("/metadata/deletionTimestamp")) {
        states.push("deleted");
    }
    if is_unset(claim.pointer(ALLOCATION)) {
        if states.is_empty() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !items_at(claim, CONSUMERS).is_empty() {
            states.push("reserved");
        }
    }
    states.join(",")
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(meta::name(object)), json!(state(object)), json!(age(object, now))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(status: Value) -> Value {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {"devices":
            {"requests": [{"name": "a", "exactly": {"deviceClassName": "x"}}]}}, "status": status});
        default(&mut claim);
        claim
    }

    fn given(consumers: Value) -> Value {
        claim(json!({"allocation": {"devices": {"results": [
            {"request": "a", "driver": "edgeorc.io", "pool": "one", "device": "d"}]}},
            "reservedFor": consumers}))
    }

    fn pod(uid: &str) -> Value {
        json!({"resource": "pods", "name": "p", "uid": uid})
    }

    fn texts(old: &Value, new: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(new, &mut errors);
        validate_update(old, new, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_state_is_what_kubectl_shows() {
        assert_eq!(state(&claim(json!({}))), "pending");
        assert_eq!(state(&given(json!([]))), "allocated");
        let mut used = given(json!([pod("1")]));
        assert_eq!(state(&used), "allocated,reserved");
        used["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(state(&used), "deleted,allocated,reserved");
    }

    #[test]
    fn what_was_given_stays_while_it_is_used() {
        let (free, used) = (claim(json!({})), given(json!([pod("1")])));
        let none = Vec::<String>::new();
        assert_eq!(texts(&free, &used), none);
        assert_eq!(texts(&used, &given(json!([pod("1"), pod("2")]))), none);
        assert_eq!(texts(&given(json!([])), &free), none);
        assert_eq!(texts(&used, &free), none, "who clears one clears the other");
        let mut other = used.clone();
        other["status"]["allocation"]["devices"]["results"][0]["device"] = json!("e");
        let found = texts(&used, &other);
        assert!(found.len() == 1 && found[0].ends_with("field is immutable"), "{found:?}");
        let found = texts(&free, &claim(json!({"reservedFor": [pod("1")]})));
        assert!(
            found.len() == 1 && found[0].starts_with("status.reservedFor: Forbidden"),
            "{found:?}"
        );
        let found = texts(&used, &given(json!([pod("1"), pod("1")])));
        assert!(found.len() == 1 && found[0].contains("Duplicate value"), "{found:?}");
        let mut going = given(json!([pod("1"), pod("2")]));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let found = texts(&used, &going);
        assert!(found.len() == 1 && found[0].contains("new entries may not"), "{found:?}");
        let mut asks = used.clone();
        asks["spec"]["devices"]["requests"][0]["exactly"]["count"] = json!(2);
        let found = texts(&used, &asks);
        assert!(found.len() == 1 && found[0].starts_with("spec: Invalid value"), "{found:?}");
    }
}
