//! StatefulSet.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{child, items_at, remove, set, set_default, set_default_text, text_at};
use crate::api::kinds::pod_spec::items_of;
use crate::api::kinds::workload::{self, number};
use crate::api::meta;
use crate::api::names;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "apps",
    version: "v1",
    plural: "statefulsets",
    singular: "statefulset",
    kind: "StatefulSet",
    list_kind: "StatefulSetList",
    description: "Keeps pods that each have a name, a place and storage of their own.",
    short_names: &["sts"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: true,
    has_generation: true,
    subresources: &[],
    columns: &[
        Column::NAME,
        Column::text("Ready"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
    ],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        validate_update,
        warnings: workload::warnings,
        cells,
        ..Strategy::plain(typed::<StatefulSet>)
    },
};

/// Old templates kept for `kubectl rollout undo`.
const REVISIONS: i64 = 10;
const UNAVAILABLE: &str = "/spec/updateStrategy/rollingUpdate/maxUnavailable";
/// What of the spec may change.
const OPEN: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn default(object: &mut Value) {
    workload::default(object);
    let Some(spec) = child(object, "spec") else { return };
    set_default_text(spec, "podManagementPolicy", "OrderedReady");
    set_default(spec, "revisionHistoryLimit", REVISIONS);
    if let Some(strategy) = child(spec, "updateStrategy") {
        set_default_text(strategy, "type", "RollingUpdate");
        if text_at(strategy, "/type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            set_default(rolling, "partition", 0);
        }
    }
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        set_default_text(policy, "whenDeleted", "Retain");
        set_default_text(policy, "whenScaled", "Retain");
    }
    for claim in items_of(spec, "volumeClaimTemplates") {
        set_default_text(claim, "apiVersion", "v1");
        set_default_text(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = child(claim, "spec") {
            set_default_text(spec, "volumeMode", "Filesystem");
        }
        set(claim, "status", json!({ "phase": "Pending" }));
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    workload::validate(&with_claims(object), "statefulset", errors);
    let at = |pointer| object.pointer(pointer).unwrap_or(&Value::Null);
    errors.one_of(
        "spec.podManagementPolicy",
        at("/spec/podManagementPolicy"),
        &["OrderedReady", "Parallel"],
    );
    let strategy = at("/spec/updateStrategy/type");
    errors.one_of("spec.updateStrategy.type", strategy, &["OnDelete", "RollingUpdate"]);
    for when in ["whenDeleted", "whenScaled"] {
        let policy = at("/spec/persistentVolumeClaimRetentionPolicy").get(when);
        let field = format!("spec.persistentVolumeClaimRetentionPolicy.{when}");
        errors.one_of(field, policy.unwrap_or(&Value::Null), &["Delete", "Retain"]);
    }
    workload::validate_not_negative(object, "/spec/ordinals/start", errors);
    let rolling = "/spec/updateStrategy/rollingUpdate";
    workload::validate_not_negative(object, &format!("{rolling}/partition"), errors);
    workload::validate_share(object, UNAVAILABLE, errors);
    if workload::is_no_share(object, UNAVAILABLE) {
        let field = "spec.updateStrategy.rollingUpdate.maxUnavailable";
        errors.invalid(field, at(UNAVAILABLE), "cannot be 0");
    }
    if strategy == "OnDelete" && object.pointer(rolling).is_some_and(|found| !found.is_null()) {
        let detail = "only allowed for updateStrategy 'RollingUpdate'";
        errors.invalid("spec.updateStrategy.rollingUpdate", at(rolling), detail);
    }
    let service = text_at(object, "/spec/serviceName");
    if let Err(detail) = names::check_dns1123_label(service)
        && !service.is_empty()
    {
        errors.invalid("spec.serviceName", &json!(service), detail);
    }
    for (index, claim) in items_at(object, "/spec/volumeClaimTemplates").iter().enumerate() {
        let name = text_at(claim, "/metadata/name");
        let field = format!("spec.volumeClaimTemplates[{index}].metadata.name");
        if name.is_empty() {
            errors.required(field);
        } else if let Err(detail) = names::check_dns1123_label(name) {
            errors.invalid(field, &json!(name), detail);
        }
    }
}

/// The set with the volumes that its pods will have: mounts may name the claims.
fn with_claims(object: &Value) -> Value {
    let mut object = object.clone();
    let templates = items_at(&object, "/spec/volumeClaimTemplates").iter();
    let names: Vec<String> =
        templates.map(|claim| text_at(claim, "/metadata/name").to_owned()).collect();
    if names.is_empty() {
        return object;
    }
    if let Some(Value::Object(spec)) = object.pointer_mut("/spec/template/spec") {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.retain(|volume| !names.iter().any(|name| name == text_at(volume, "/name")));
            volumes.extend(names.iter().map(
                |name| json!({ "name": name, "persistentVolumeClaim": { "claimName": name } }),
            ));
        }
    }
    object
}

/// Identity and storage of pods stay what they are.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    let fixed = |object: &Value| {
        let mut object = object.clone();
        // One that was stored by an older server may lack what is filled in today.
        default(&mut object);
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        for key in OPEN {
            remove(&mut spec, key);
        }
        spec
    };
    if fixed(old) != fixed(new) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.forbidden("spec", detail);
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let (ready, wanted) =
        (number(object, "/status/readyReplicas"), number(object, "/spec/replicas"));
    let [containers, images, _] = workload::wide_cells(object);
    vec![
        json!(meta::name(object)),
        json!(format!("{ready}/{wanted}")),
        json!(age(object, now)),
        containers,
        images,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stateful_set(more: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "db"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "serviceName": "db",
            "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "x", "image": "y"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}}],
        }});
        json_patch::merge(&mut object, more);
        default(&mut object);
        object
    }

    fn texts(object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_left_out_is_filled_in_as_kubernetes_does() {
        let object = stateful_set(&json!({}));
        assert_eq!(texts(&object), Vec::<String>::new());
        for (pointer, wanted) in [
            ("/spec/replicas", json!(1)),
            ("/spec/podManagementPolicy", json!("OrderedReady")),
            ("/spec/revisionHistoryLimit", json!(10)),
            (
                "/spec/updateStrategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
            ),
            (
                "/spec/persistentVolumeClaimRetentionPolicy",
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
            ),
            ("/spec/volumeClaimTemplates/0/spec/volumeMode", json!("Filesystem")),
            ("/spec/volumeClaimTemplates/0/kind", json!("PersistentVolumeClaim")),
            ("/spec/volumeClaimTemplates/0/status", json!({"phase": "Pending"})),
        ] {
            assert_eq!(object.pointer(pointer), Some(&wanted), "{pointer}");
        }
    }

    #[test]
    fn containers_mount_what_their_set_claims_and_nothing_else() {
        let mounting = |name: &str| {
            let container = json!({"name": "x", "image": "y",
                "volumeMounts": [{"name": name, "mountPath": "/data"}]});
            stateful_set(&json!({"spec": {"template": {"spec": {"containers": [container],
                "volumes": [{"name": "data", "emptyDir": {}}]}}}}))
        };
        assert_eq!(texts(&mounting("data")), Vec::<String>::new());
        assert!(texts(&mounting("other"))[0].contains("Not found"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let rolling =
            |rolling: Value| json!({"spec": {"updateStrategy": {"rollingUpdate": rolling}}});
        for (change, word) in [
            (json!({"spec": {"podManagementPolicy": "Random"}}), "Unsupported value"),
            (json!({"spec": {"updateStrategy": {"type": "Recreate"}}}), "Unsupported value"),
            (rolling(json!({"partition": -1})), "greater than or equal to 0"),
            (rolling(json!({"maxUnavailable": "0%"})), "cannot be 0"),
            (json!({"spec": {"ordinals": {"start": -1}}}), "greater than or equal to 0"),
            (json!({"spec": {"serviceName": "A"}}), "spec.serviceName"),
            (
                json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "x"}}}),
                "Unsupported value",
            ),
            (json!({"spec": {"volumeClaimTemplates": [{}]}}), "Required"),
            (
                json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": {}}}}),
                "only allowed for",
            ),
        ] {
            let found = texts(&stateful_set(&change));
            assert!(found.iter().any(|text| text.contains(word)), "{change}: {found:?}");
        }
    }

    #[test]
    fn only_what_leaves_identities_alone_may_change() {
        let refused = |change: Value| {
            let mut errors = Errors::default();
            validate_update(&stateful_set(&json!({})), &stateful_set(&change), &mut errors);
            !errors.into_vec().is_empty()
        };
        for allowed in [
            json!({"spec": {"replicas": 3}}),
            json!({"spec": {"ordinals": {"start": 2}}}),
            json!({"spec": {"minReadySeconds": 2}}),
            json!({"spec": {"template": {"spec": {"containers": [{"name": "x", "image": "z"}]}}}}),
            json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenScaled": "Delete"}}}),
        ] {
            assert!(!refused(allowed.clone()), "{allowed}");
        }
        for forbidden in [
            json!({"spec": {"serviceName": "other"}}),
            json!({"spec": {"podManagementPolicy": "Parallel"}}),
            json!({"spec": {"volumeClaimTemplates": []}}),
            json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}}),
        ] {
            assert!(refused(forbidden.clone()), "{forbidden}");
        }
    }
}
