//! IngressClass.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::IngressClass;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{str_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "networking.k8s.io",
    version: "v1",
    plural: "ingressclasses",
    singular: "ingressclass",
    kind: "IngressClass",
    list_kind: "IngressClassList",
    description: "Classes of ingresses, and who looks after them.",
    short_names: &[],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Controller"), Column::text("Parameters"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<IngressClass>)
    },
};

fn validate(object: &Value, errors: &mut Errors) {
    if text_at(object, "/spec/controller").is_empty() {
        errors.required("spec.controller");
    }
}

fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let controller = text_at(new, "/spec/controller");
    if text_at(old, "/spec/controller") != controller {
        errors.invalid("spec.controller", &json!(controller), "field is immutable");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = str_at(object, "/spec/parameters/name").map_or_else(
        || "<none>".to_owned(),
        |name| {
            let kind = text_at(object, "/spec/parameters/kind");
            match text_at(object, "/spec/parameters/apiGroup") {
                "" => format!("{kind}/{name}"),
                group => format!("{kind}.{group}/{name}"),
            }
        },
    );
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/spec/controller")),
        json!(parameters),
        json!(age(object, now)),
    ]
}
