//! `pods/ephemeralcontainers`: what these containers may say, and that they are only ever added.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{copy_key, is_empty, items_at, text_at};
use crate::api::kinds::validate_container;
use crate::api::resource::Resource;
use crate::api::{meta, strategy};

const LIST: &str = "/spec/ephemeralContainers";
const PATH: &str = "spec.ephemeralContainers";
/// What a container may have and an ephemeral one may not: nothing may depend on it.
const REFUSED: [&str; 8] = [
    "lifecycle",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicy",
    "startupProbe",
];
/// Said of each of them.
const CANNOT_BE_SET: &str = "cannot be set for an Ephemeral Container";
/// Annotation of pods that a node shows and nobody can change.
const MIRROR_ANNOTATION: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

/// Completes a write to the subresource: all is old but these containers, and
/// `metadata.resourceVersion` as sent.
pub fn prepare_update(res: &Resource, old: &Value, new: &mut Value) {
    let mut result = old.clone();
    if let Some(version) = new.pointer("/metadata/resourceVersion") {
        meta::set_field(&mut result, "resourceVersion", version.clone());
    }
    if let (Some(sent), Some(spec)) = (new.get("spec"), result.get_mut("spec")) {
        copy_key(sent, spec, "ephemeralContainers");
    }
    *new = result;
    (res.strategy.default)(new);
    if strategy::is_spec_changed(old, new) {
        meta::set_generation(new, meta::generation(old).saturating_add(1));
    }
}

/// Checks a write to the subresource. Empty: it may be stored.
#[must_use]
pub fn validate_update(res: &Resource, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    strategy::new_faults(res, old, new).into_iter().for_each(|error| errors.push(error));
    validate_change(old, new, &mut errors);
    errors.into_vec()
}

/// Checks the ephemeral containers of a pod.
pub(super) fn validate(pod: &Value, errors: &mut Errors) {
    let lists = ["/spec/containers", "/spec/initContainers"];
    let others: BTreeSet<&str> = lists
        .iter()
        .flat_map(|list| items_at(pod, list))
        .map(|container| text_at(container, "/name"))
        .collect();
    let mut seen = others.clone();
    for (at, container) in items_at(pod, LIST).iter().enumerate() {
        let field = format!("{PATH}[{at}]");
        let name = text_at(container, "/name");
        validate_container(container, &field, errors);
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(format!("{field}.name"), &json!(name));
        }
        let target = text_at(container, "/targetContainerName");
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(format!("{field}.targetContainerName"), &json!(target));
        }
        for key in REFUSED.into_iter().filter(|key| !is_empty(container.get(key))) {
            errors.forbidden(format!("{field}.{key}"), CANNOT_BE_SET);
        }
        for (at, mount) in items_at(container, "/volumeMounts").iter().enumerate() {
            for key in ["subPath", "subPathExpr"] {
                if !is_empty(mount.get(key)) {
                    errors.forbidden(format!("{field}.volumeMounts[{at}].{key}"), CANNOT_BE_SET);
                }
            }
        }
    }
}

/// A pod is made without them.
pub(super) fn validate_create(pod: &Value, errors: &mut Errors) {
    if !items_at(pod, LIST).is_empty() {
        errors.forbidden(PATH, "cannot be set on create");
    }
}

/// Those that are there stay as they are.
fn validate_change(old: &Value, new: &Value, errors: &mut Errors) {
    if old.pointer(MIRROR_ANNOTATION).is_some() {
        errors.forbidden("", "static pods do not support ephemeral containers");
        return;
    }
    for had in items_at(old, LIST) {
        let name = text_at(had, "/name");
        match items_at(new, LIST).iter().find(|c| text_at(c, "/name") == name) {
            Some(kept) if kept == had => {}
            Some(_) => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.forbidden(PATH, &detail);
            }
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.forbidden(PATH, &detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ephemeral: &Value) -> Value {
        json!({"spec": {"containers": [{"name": "app"}], "ephemeralContainers": ephemeral}})
    }

    fn texts(check: impl Fn(&mut Errors)) -> Vec<String> {
        let mut errors = Errors::default();
        check(&mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_others_would_depend_on_is_refused() {
        let debug = |more: &Value| {
            let mut one = json!({"name": "debug", "image": "busybox", "imagePullPolicy": "Always",
                "resources": {}, "stdin": true, "tty": true, "targetContainerName": "app"});
            json_patch::merge(&mut one, more);
            texts(|errors| validate(&pod(&json!([one])), errors))
        };
        assert_eq!(debug(&json!({})), Vec::<String>::new());
        let cannot = "Forbidden: cannot be set for an Ephemeral Container";
        for (more, path) in [
            (json!({"ports": [{"containerPort": 80, "protocol": "TCP"}]}), "ports"),
            (json!({"resources": {"limits": {"cpu": "1"}}}), "resources"),
            (json!({"livenessProbe": {"tcpSocket": {"port": 80}}}), "livenessProbe"),
            (json!({"lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}), "lifecycle"),
            (
                json!({"volumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "b"}]}),
                "volumeMounts[0].subPath",
            ),
        ] {
            assert_eq!(debug(&more), [format!("spec.ephemeralContainers[0].{path}: {cannot}")]);
        }
        assert_eq!(
            debug(&json!({"targetContainerName": "nobody"})),
            ["spec.ephemeralContainers[0].targetContainerName: Not found: \"nobody\""]
        );
        assert_eq!(
            debug(&json!({"name": "app"})),
            ["spec.ephemeralContainers[0].name: Duplicate value: \"app\""]
        );
    }

    #[test]
    fn they_are_only_added() {
        let (a, b) = (json!({"name": "a", "image": "x"}), json!({"name": "b", "image": "x"}));
        let old = pod(&json!([a]));
        let change = |new: Value| texts(|errors| validate_change(&old, &pod(&new), errors));
        assert_eq!(change(json!([b, a])), Vec::<String>::new());
        assert_eq!(
            change(json!([b])),
            [
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be removed\n"
            ]
        );
        assert_eq!(
            change(json!([{"name": "a", "image": "y"}])),
            [
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be changed\n"
            ]
        );
        assert_eq!(
            texts(|errors| validate_create(&old, errors)),
            ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
        );
    }
}
