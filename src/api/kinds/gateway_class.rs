//! GatewayClass and ReferenceGrant.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::gateway::{GROUP, GatewayClass, ReferenceGrant};
use crate::api::json::{items_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

/// Entries of `from` and of `to` of a grant: the spec's bound.
const GRANT_ITEMS_MAX: usize = 16;

pub(super) const RESOURCE: Resource = Resource {
    group: GROUP,
    version: "v1",
    plural: "gatewayclasses",
    singular: "gatewayclass",
    kind: "GatewayClass",
    list_kind: "GatewayClassList",
    description: "Classes of gateways, and who looks after them.",
    short_names: &["gc"],
    categories: &["gateway-api"],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Controller"),
        Column::text("Accepted"),
        Column::AGE,
        Column::wide("Description"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        validate: validate_class,
        validate_update: update_class,
        cells: class_cells,
        ..Strategy::plain(typed::<GatewayClass>)
    },
};

pub(super) const REFERENCE_GRANT: Resource = Resource {
    group: GROUP,
    version: "v1beta1",
    plural: "referencegrants",
    singular: "referencegrant",
    kind: "ReferenceGrant",
    list_kind: "ReferenceGrantList",
    description: "References from other namespaces that this one allows.",
    short_names: &["refgrant"],
    categories: &["gateway-api"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::AGE],
    field_selectors: &[],
    strategy: Strategy { validate: validate_grant, ..Strategy::plain(typed::<ReferenceGrant>) },
};

fn validate_class(object: &Value, errors: &mut Errors) {
    let name = text_at(object, "/spec/controllerName");
    let is_path = name.split_once('/').is_some_and(|(domain, path)| {
        crate::api::names::check_dns1123_subdomain(domain).is_ok() && !path.is_empty()
    });
    if !is_path {
        let detail = "must be a domain-prefixed path, for example example.com/controller";
        errors.invalid("spec.controllerName", &json!(name), detail);
    }
}

fn update_class(old: &Value, new: &Value, errors: &mut Errors) {
    let name = text_at(new, "/spec/controllerName");
    if text_at(old, "/spec/controllerName") != name {
        errors.invalid("spec.controllerName", &json!(name), "Value is immutable");
    }
}

fn class_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/controllerName")),
        json!(condition(object, "Accepted")),
        json!(age(object, now)),
        json!(text_at(object, "/spec/description")),
    ]
}

/// The status of a condition, or "".
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = items_at(object, "/status/conditions");
    let found = conditions.iter().find(|condition| text_at(condition, "/type") == kind);
    found.map_or("", |condition| text_at(condition, "/status"))
}

fn validate_grant(object: &Value, errors: &mut Errors) {
    for (list, needed) in [("from", &["kind", "namespace"][..]), ("to", &["kind"][..])] {
        let items = items_at(object, &format!("/spec/{list}"));
        if items.is_empty() {
            errors.required(format!("spec.{list}"));
        }
        if items.len() > GRANT_ITEMS_MAX {
            errors.push(FieldError::too_many(format!("spec.{list}"), items.len(), GRANT_ITEMS_MAX));
        }
        for (at, item) in items.iter().enumerate() {
            for field in needed {
                if text_at(item, &format!("/{field}")).is_empty() {
                    errors.required(format!("spec.{list}[{at}].{field}"));
                }
            }
        }
    }
}
