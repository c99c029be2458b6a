//! Which replica set belongs to a pod template, and what a deployment's numbers mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::api::schema::canonicalize_type;
use crate::controllers::template::{Rounding, share};

/// Tells the replica sets of a deployment, and their pods, apart.
pub(super) const HASH_LABEL: &str = "pod-template-hash";
/// Counts the rollouts of a deployment, on it and on its replica sets.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions a replica set had before it was rolled back to.
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// `spec.replicas` of the deployment when the replica set was last scaled.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods the rollout allowed at that time.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// On a deployment, `true`: a rollout that misses its deadline is taken back.
pub(super) const ROLLBACK: &str = "edgeorc.io/rollback-on-failure";
/// On a replica set, `true`: its rollout was taken back. Nothing is taken back to it.
pub(super) const FAILED: &str = "edgeorc.io/rollout-failed";

/// Annotations of a deployment that are not copied to its replica sets.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    ROLLBACK,
    "deprecated.deployment.rollback.to",
];

/// Fields whose keys are the user's: an empty text among their values says something.
const MAPS: &[&str] =
    &["annotations", "labels", "limits", "matchLabels", "nodeSelector", "requests"];
/// Objects that say nothing when they are empty. Others do: a `labelSelector` without labels is all pods.
const SILENT_WHEN_EMPTY: &[&str] =
    &["annotations", "labels", "limits", "metadata", "nodeSelector", "requests", "resources"];
/// Fields whose `false` or `0` is what they are without a word. Others are not: without
/// `automountServiceAccountToken` the service account decides.
const SILENT_WHEN_ZERO: &[&str] = &[
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostPort",
    "initialDelaySeconds",
    "readOnly",
    "stdin",
    "stdinOnce",
    "tty",
];

/// Whether two templates make the same pods; the hash label does not count.
///
/// What a client leaves out and what it sends as empty are the same, as in Kubernetes: `kubectl rollout
/// undo` reads a template and sends it back without what was empty in it.
pub(in crate::controllers) fn is_same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let meta = |template: &PodTemplateSpec| {
        let meta = template.metadata.clone().unwrap_or_default();
        (meta.labels.unwrap_or_default(), meta.annotations.unwrap_or_default())
    };
    let (a, b) = (without_hash(a), without_hash(b));
    meta(&a) == meta(&b) && (a.spec == b.spec || said(&a) == said(&b))
}

/// The spec of a template without what says nothing, and with quantities in one form.
fn said(template: &PodTemplateSpec) -> Option<Value> {
    let mut spec = serde_json::to_value(template.spec.as_ref()?).ok()?;
    // What is no quantity was stored by a version that did not look, and stays as it is.
    let _ = canonicalize_type("v1", "PodSpec", &mut spec);
    drop_silent(&mut spec, false);
    Some(spec)
}

/// Drops what says nothing from all of `value`; `is_map` is whether its keys are the user's.
fn drop_silent(value: &mut Value, is_map: bool) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| drop_silent(item, false)),
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                drop_silent(field, !is_map && MAPS.contains(&key.as_str()));
            }
            fields.retain(|key, field| is_map || !is_silent(key, field));
        }
        _ => {}
    }
}

fn is_silent(key: &str, field: &Value) -> bool {
    match field {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty() && SILENT_WHEN_EMPTY.contains(&key),
        Value::Bool(is_set) => !is_set && SILENT_WHEN_ZERO.contains(&key),
        Value::Number(number) => number.as_i64() == Some(0) && SILENT_WHEN_ZERO.contains(&key),
    }
}

/// The template as the deployment had it.
pub(super) fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    template
}

/// The replica set of the deployment's present template: the oldest, should there be several.
pub(super) fn find_new(
    deployment: &Deployment,
    replica_sets: &[Arc<ReplicaSet>],
) -> Option<Arc<ReplicaSet>> {
    let template = &deployment.spec.as_ref()?.template;
    let matching = replica_sets.iter().filter(|replica_set| {
        let found = replica_set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        found.is_some_and(|found| is_same(found, template))
    });
    matching.min_by_key(|replica_set| age_key(replica_set)).cloned()
}

/// Sorts oldest first, by name where the second is the same.
pub(super) fn age_key(replica_set: &ReplicaSet) -> (Option<jiff::Timestamp>, Option<String>) {
    let meta = &replica_set.metadata;
    (meta.creation_timestamp.as_ref().map(|time| time.0), meta.name.clone())
}

/// The annotations a deployment hands down to its replica set.
pub(super) fn annotations_to_copy(deployment: &Deployment) -> BTreeMap<String, String> {
    let mut copied = deployment.metadata.annotations.clone().unwrap_or_default();
    copied.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    copied
}

/// The revision a replica set says it is; 0 when it says none.
pub(super) fn revision(replica_set: &ReplicaSet) -> u64 {
    annotation(replica_set, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// An annotation of a replica set.
pub(super) fn annotation<'a>(replica_set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    replica_set.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// What a deployment asks for, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// `spec.replicas`.
    pub(super) replicas: i32,
    /// How many pods more than that a rollout may run.
    pub(super) max_surge: i32,
    /// How many pods less than that may be available during a rollout.
    pub(super) max_unavailable: i32,
    /// Whether all old pods go before the first new one comes.
    pub(super) is_recreate: bool,
    /// Whether rollouts are on hold.
    pub(super) is_paused: bool,
}

impl Wish {
    /// Reads `deployment`; a percentage of surge rounds up, one of unavailability down, and at
    /// least one of the two is one, or nothing could move.
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        let is_recreate =
            strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate");
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let (max_surge, max_unavailable) = if is_recreate {
            (0, 0)
        } else {
            let quarter = IntOrString::String("25%".to_owned());
            let surge = share(surge.unwrap_or(&quarter), replicas, Rounding::Up);
            let unavailable = unavailable.unwrap_or(&quarter);
            let unavailable = share(unavailable, replicas, Rounding::Down).min(replicas);
            if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
        };
        let is_paused = spec.and_then(|spec| spec.paused) == Some(true);
        Self { replicas, max_surge, max_unavailable, is_recreate, is_paused }
    }

    /// The most pods there may be.
    pub(super) fn total_max(self) -> i32 {
        self.replicas.saturating_add(self.max_surge)
    }

    /// The fewest pods that must be available.
    pub(super) fn available_min(self) -> i32 {
        (self.replicas - self.max_unavailable).max(0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(container: Value, spec: &Value) -> PodTemplateSpec {
        let mut container = container;
        json_patch::merge(&mut container, &json!({"name": "a", "image": "x"}));
        let mut all = json!({"containers": [container]});
        json_patch::merge(&mut all, spec);
        let metadata = json!({"labels": {"app": "web", HASH_LABEL: "h"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": all})).unwrap()
    }

    #[test]
    fn what_is_left_out_and_what_is_empty_are_the_same() {
        let plain = template(json!({}), &json!({}));
        for (container, spec) in [
            (json!({"env": [], "command": [], "workingDir": ""}), json!({})),
            (json!({"resources": {}}), json!({})),
            (json!({"resources": {"limits": {}}, "stdin": false, "tty": false}), json!({})),
            (json!({}), json!({"initContainers": [], "nodeSelector": {}, "hostNetwork": false})),
            (json!({}), json!({"volumes": [], "tolerations": [], "hostname": ""})),
        ] {
            let empty = template(container, &spec);
            assert!(is_same(&plain, &empty) && is_same(&empty, &plain), "{empty:?}");
        }
        let with = |cpu: &str| template(json!({"resources": {"limits": {"cpu": cpu}}}), &json!({}));
        assert!(is_same(&with("0.5"), &with("500m")), "what older versions stored");
        assert!(!is_same(&with("0.5"), &with("5")));
    }

    #[test]
    fn what_says_something_is_not_the_same() {
        let plain = template(json!({}), &json!({}));
        let term = |selector: Value| {
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [{"topologyKey": "zone", "labelSelector": selector}]}}})
        };
        for (container, spec) in [
            (json!({"env": [{"name": "A"}]}), json!({})),
            (json!({"securityContext": {"privileged": false}}), json!({})),
            (json!({}), json!({"automountServiceAccountToken": false})),
            (json!({}), json!({"nodeSelector": {"gpu": ""}})),
            (json!({}), json!({"terminationGracePeriodSeconds": 0})),
        ] {
            let other = template(container, &spec);
            assert!(!is_same(&plain, &other) && !is_same(&other, &plain), "{other:?}");
        }
        let all = template(json!({}), &term(json!({})));
        assert!(!is_same(&all, &template(json!({}), &term(Value::Null))));
        let labeled = |value: &str| {
            let mut one = plain.clone();
            let labels = one.metadata.as_mut().unwrap().labels.as_mut().unwrap();
            labels.insert("tier".into(), value.into());
            one
        };
        assert!(!is_same(&plain, &labeled("")) && !is_same(&labeled("a"), &labeled("b")));
    }
}
