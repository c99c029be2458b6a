//! ControllerRevision.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ControllerRevision;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{int_at, is_true, is_unset, items_at, text_at};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    kind: "ControllerRevision",
    list_kind: "ControllerRevisionList",
    description: "A pod template that a StatefulSet or DaemonSet had, kept to go back to.",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Controller"), Column::integer("Revision"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        validate,
        validate_update,
        cells,
        ..Strategy::plain(typed::<ControllerRevision>)
    },
};

fn validate(object: &Value, errors: &mut Errors) {
    match object.get("data") {
        data if is_unset(data) => errors.required("data"),
        Some(data) if !data.is_object() => {
            errors.invalid("data", data, "must be a valid JSON object");
        }
        _ => {}
    }
    if let Some(revision) = object.get("revision")
        && revision.as_i64().is_some_and(|number| number < 0)
    {
        errors.invalid("revision", revision, "must be greater than or equal to 0");
    }
}

/// What was is not rewritten; its place among the others may change.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    if old.get("data") != new.get("data") {
        errors.invalid("data", new.get("data").unwrap_or(&Value::Null), "field is immutable");
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let owners = items_at(object, "/metadata/ownerReferences");
    let controller = owners.iter().find(|owner| is_true(owner, "/controller")).map(|owner| {
        let group = text_at(owner, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
        let kind = text_at(owner, "/kind").to_lowercase();
        let dot = if group.is_empty() { "" } else { "." };
        format!("{kind}{dot}{group}/{}", text_at(owner, "/name"))
    });
    vec![
        json!(meta::name(object)),
        json!(controller.unwrap_or_else(|| "<none>".to_owned())),
        json!(int_at(object, "/revision").unwrap_or(0)),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_revision_has_data_that_never_change() {
        let good = json!({"data": {"spec": {}}, "revision": 1});
        assert_eq!(texts(|errors| validate(&good, errors)), Vec::<String>::new());
        assert_eq!(texts(|errors| validate(&json!({"revision": -1}), errors)).len(), 2);
        let bumped = json!({"data": {"spec": {}}, "revision": 7});
        assert_eq!(texts(|errors| validate_update(&good, &bumped, errors)), Vec::<String>::new());
        let other = json!({"data": {"spec": {"a": 1}}, "revision": 1});
        assert!(texts(|errors| validate_update(&good, &other, errors))[0].contains("immutable"));
    }

    #[test]
    fn a_row_names_the_controller_with_its_group() {
        let object = json!({"metadata": {"name": "web-1", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true},
        ]}, "revision": 3});
        let row = cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(row[..3], [json!("web-1"), json!("statefulset.apps/web"), json!(3)]);
        assert_eq!(cells(&json!({}), Timestamp::UNIX_EPOCH)[1], json!("<none>"));
    }
}
