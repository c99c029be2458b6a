//! Namespace.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{child, copy_key, items_at, set, text_at};
use crate::api::resource::{Column, Resource, Strategy, Subresource};
use crate::api::table::age;
use crate::api::{meta, names};

/// Nobody deletes all namespaces at once.
const VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
/// The label by which selectors name a namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// What keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";
/// Finalizers whose names need no domain.
const STANDARD_FINALIZERS: [&str; 3] = [FINALIZER, meta::ORPHAN, meta::FOREGROUND];

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    list_kind: "NamespaceList",
    description: "A scope for names.",
    short_names: &["ns"],
    categories: &[],
    is_namespaced: false,
    verbs: VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[Subresource {
        name: "finalize",
        kind: "Namespace",
        group: "",
        version: "",
        verbs: &["update"],
    }],
    columns: &[Column::NAME, Column::text("Status"), Column::AGE],
    field_selectors: &["status.phase"],
    strategy: Strategy {
        default: set_name_label,
        identify: set_name_label,
        prepare_create,
        prepare_update: |old, new| copy_key(old, new, "spec"),
        validate,
        check_name: names::check_dns1123_label,
        cells,
        ..Strategy::plain(typed::<Namespace>)
    },
};

/// Whatever a client says of it; one whose name is yet to be generated has it from `identify`.
fn set_name_label(namespace: &mut Value) {
    let name = meta::name(namespace).to_owned();
    if name.is_empty() {
        return;
    }
    let labels = child(namespace, "metadata").and_then(|metadata| child(metadata, "labels"));
    if let Some(labels) = labels {
        set(labels, NAME_LABEL, name);
    }
}

fn prepare_create(namespace: &mut Value) {
    if let Some(spec) = child(namespace, "spec") {
        let mut finalizers = items_at(spec, "/finalizers").to_vec();
        if !finalizers.contains(&json!(FINALIZER)) {
            finalizers.push(json!(FINALIZER));
        }
        set(spec, "finalizers", finalizers);
    }
    set(namespace, "status", json!({ "phase": "Active" }));
}

fn validate(namespace: &Value, errors: &mut Errors) {
    const FIELD: &str = "spec.finalizers";
    for finalizer in items_at(namespace, "/spec/finalizers") {
        let name = finalizer.as_str().unwrap_or_default();
        if let Err(rule) = names::check_qualified_name(name) {
            errors.invalid(FIELD, finalizer, rule);
        } else if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let rule = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(FIELD, finalizer, rule);
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(meta::name(object)),
        json!(text_at(object, "/status/phase")),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{self, strategy};

    fn namespaces() -> &'static Resource {
        api::find("", "v1", "namespaces").unwrap()
    }

    #[test]
    fn a_namespace_bears_its_name_as_a_label_whatever_is_said_of_it() {
        let named = json!({ NAME_LABEL: "a", "x": "y" });
        let mut old = json!({"metadata": {"name": "a", "labels": {NAME_LABEL: "b", "x": "y"}}});
        strategy::prepare_create(namespaces(), &mut old);
        assert_eq!(old["metadata"]["labels"], named);
        for labels in [json!({"x": "y"}), json!({"x": "y", NAME_LABEL: "b"})] {
            let mut new = json!({"metadata": {"name": "a", "labels": labels}});
            strategy::prepare_update(namespaces(), &old, &mut new);
            assert_eq!(new["metadata"]["labels"], named);
        }
        let mut generated = json!({"metadata": {"generateName": "a-"}});
        strategy::prepare_create(namespaces(), &mut generated);
        meta::set_name(&mut generated, "a-1");
        strategy::identify(namespaces(), &mut generated);
        assert_eq!(generated["metadata"]["labels"], json!({ NAME_LABEL: "a-1" }));
    }

    #[test]
    fn a_namespace_has_its_finalizer_beside_those_it_was_made_with() {
        let made = |finalizers: Value| {
            let mut object = json!({"metadata": {"name": "a"}, "spec": {"finalizers": finalizers}});
            strategy::prepare_create(namespaces(), &mut object);
            object
        };
        let had = made(json!(["example.com/hold"]));
        assert_eq!(had["spec"]["finalizers"], json!(["example.com/hold", FINALIZER]));
        assert_eq!(had["status"]["phase"], "Active");
        assert_eq!(made(json!([FINALIZER]))["spec"]["finalizers"], json!([FINALIZER]));
        assert_eq!(made(Value::Null)["spec"]["finalizers"], json!([FINALIZER]));
        let errors = |object: &Value| strategy::validate_create(namespaces(), object).len();
        assert_eq!(errors(&had), 0);
        assert_eq!(errors(&made(json!(["hold", "a b"]))), 2);
    }
}
