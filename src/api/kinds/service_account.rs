//! ServiceAccount.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::json::items_at;
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy, Subresource};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    kind: "ServiceAccount",
    list_kind: "ServiceAccountList",
    description: "The identity of pods towards the API.",
    short_names: &["sa"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[Subresource {
        name: "token",
        kind: "TokenRequest",
        group: "authentication.k8s.io",
        version: "v1",
        verbs: &["create"],
    }],
    columns: &[Column::NAME, Column::integer("Secrets"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy { cells, ..Strategy::plain(typed::<ServiceAccount>) },
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(items_at(object, "/secrets").len()),
        json!(age(object, now)),
    ]
}
