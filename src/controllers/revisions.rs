//! The templates a stateful set or daemon set had, as ControllerRevisions: numbered, named by their
//! hash, and taken up again when the template comes back.
//!
//! # Invariants
//!
//! - A template has one revision; going back to it gives it the highest number, not a second name.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt as _};
use serde_json::{Value, json};

use crate::client::{is_already_exists, is_not_found, revision_of};
use crate::controllers::deployment::template::is_same;
use crate::controllers::object::{controller_reference, delete_as_read, is_controlled_by};
use crate::controllers::template::hash;

/// Says of a pod which revision it is of: a stateful set's by the name, a daemon set's by the hash.
pub(super) const POD_LABEL: &str = "controller-revision-hash";
/// The hash, on the revision itself.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// Old revisions kept for undo when their owner does not say.
const HISTORY_LEN_DEFAULT: usize = 10;
/// Annotations of the owner that say nothing of a revision.
const NOT_COPIED: &[&str] = &["kubectl.kubernetes.io/last-applied-configuration"];

/// Where an owner's present template stands among those it had.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Present {
    /// The name of its revision.
    pub(super) name: String,
    /// The hash in that name.
    pub(super) hash: String,
    /// What has to be written for it to be the newest.
    pub(super) write: Option<Write>,
}

/// A write that makes the present template the newest revision.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    /// The template was not there before.
    Create(Box<ControllerRevision>),
    /// It was, and comes back.
    Renumber { of: Arc<ControllerRevision>, to: i64 },
}

/// Finds or makes the revision of `template`. `owned` are the owner's, in any order.
pub(super) fn present<O>(
    owner: &O,
    template: &PodTemplateSpec,
    collisions: i32,
    owned: &[Arc<ControllerRevision>],
) -> Present
where
    O: Resource<DynamicType = ()>,
{
    // Nearly always the newest is the one: the others need not be read.
    let mut newest_first: Vec<_> = owned.iter().collect();
    newest_first.sort_by(|a, b| age(b).cmp(&age(a)));
    let newest = newest_first.first();
    let next = newest.map_or(1, |newest| newest.revision.saturating_add(1));
    if let Some(equal) = newest_first.iter().find(|revision| keeps(revision, template)) {
        let is_newest = newest.is_some_and(|newest| newest.uid() == equal.uid());
        let write = (!is_newest).then(|| Write::Renumber { of: Arc::clone(equal), to: next });
        return Present { name: equal.name_any(), hash: hash_of(owner, equal), write };
    }
    let hash = hash(template, collisions);
    let name = format!("{}-{hash}", owner.name_any());
    let mut annotations = owner.annotations().clone();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    let mut labels = labels.unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    labels.insert(POD_LABEL.to_owned(), hash.clone());
    let made = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: owner.namespace(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data_of(template))),
        revision: next,
    };
    Present { name, hash, write: Some(Write::Create(Box::new(made))) }
}

/// Oldest first; the name decides between those of one number.
fn age(revision: &ControllerRevision) -> (i64, Option<jiff::Timestamp>, Option<&str>) {
    let meta = &revision.metadata;
    (revision.revision, meta.creation_timestamp.as_ref().map(|at| at.0), meta.name.as_deref())
}

/// The patch that brings the template back: what `kubectl rollout undo` sends.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Some(fields) = template.as_object_mut() {
        fields.insert("$patch".to_owned(), "replace".into());
    }
    json!({ "spec": { "template": template } })
}

/// The template a revision keeps; `None` when it is somebody else's and keeps none.
pub(super) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// Whether the template that a revision keeps says the same as `template`.
fn keeps(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|kept| is_same(&kept, template))
}

/// The hash of a revision, which is in its label or in its name.
pub(super) fn hash_of<O: Resource>(owner: &O, revision: &ControllerRevision) -> String {
    if let Some(hash) = revision.labels().get(HASH_LABEL) {
        return hash.clone();
    }
    let (name, owner) = (revision.name_any(), owner.name_any());
    name.strip_prefix(&format!("{owner}-")).unwrap_or(&name).to_owned()
}

/// Revisions past the number kept for undo, the oldest first. One that is in use stays, whatever the
/// number.
pub(super) fn beyond_limit(
    limit: Option<i32>,
    owned: &[Arc<ControllerRevision>],
    is_in_use: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(HISTORY_LEN_DEFAULT);
    let mut old: Vec<_> = owned.iter().filter(|revision| !is_in_use(revision)).cloned().collect();
    old.sort_by(|a, b| age(a).cmp(&age(b)));
    old.truncate(old.len().saturating_sub(limit));
    old
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// The template has its revision, at this revision of the store.
    At(u64),
    /// Its name is another template's: the hash has to be another one.
    NameTaken,
}

/// Makes the present template the newest revision.
pub(super) async fn write<O>(
    api: &Api<ControllerRevision>,
    owner: &O,
    write: &Write,
) -> Result<Written, kube::Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match write {
        Write::Renumber { of, to } => {
            let patch = json!({
                "metadata": { "uid": of.uid(), "resourceVersion": of.resource_version() },
                "revision": to,
            });
            let (name, params) = (of.name_any(), PatchParams::default());
            let patched = api.patch(&name, &params, &Patch::Merge(patch)).await?;
            Ok(Written::At(revision_of(&patched).unwrap_or(0)))
        }
        Write::Create(made) => match api.create(&PostParams::default(), made).await {
            Ok(created) => Ok(Written::At(revision_of(&created).unwrap_or(0))),
            Err(err) if is_already_exists(&err) => {
                let found = api.get_opt(&made.name_any()).await?;
                let is_it = found.as_ref().is_some_and(|found| {
                    is_controlled_by(&found.metadata, owner)
                        && template_of(made).is_some_and(|template| keeps(found, &template))
                });
                match found.filter(|_| is_it) {
                    Some(found) => Ok(Written::At(revision_of(&found).unwrap_or(0))),
                    None => Ok(Written::NameTaken),
                }
            }
            Err(err) => Err(err),
        },
    }
}

/// Forgets revisions that nobody can want back.
pub(super) async fn forget(
    api: &Api<ControllerRevision>,
    doomed: &[Arc<ControllerRevision>],
) -> Result<(), kube::Error> {
    for revision in doomed {
        match delete_as_read(api, revision.as_ref()).await {
            Err(err) if !is_not_found(&err) => return Err(err),
            _ => {}
        }
    }
    Ok(())
}

/// What the store has after `write`.
#[cfg(test)]
pub(super) fn stored(write: &Write, uid: &str) -> Arc<ControllerRevision> {
    let mut revision = match write {
        Write::Create(made) => made.as_ref().clone(),
        Write::Renumber { of, to } => ControllerRevision { revision: *to, ..of.as_ref().clone() },
    };
    revision.metadata.uid = Some(uid.to_owned());
    Arc::new(revision)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DaemonSet;

    use super::*;

    fn owner() -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default",
            "uid": "me", "annotations": {"kubernetes.io/change-cause": "why",
            "kubectl.kubernetes.io/last-applied-configuration": "{}"}}}))
        .unwrap()
    }

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "a", "image": image}]}}))
        .unwrap()
    }

    fn made(image: &str, owned: &[Arc<ControllerRevision>]) -> Arc<ControllerRevision> {
        let present = present(&owner(), &template(image), 0, owned);
        stored(&present.write.unwrap(), image)
    }

    #[test]
    fn a_template_gets_the_next_number_and_what_undo_needs() {
        let first = made("v1", &[]);
        assert_eq!(first.revision, 1);
        let second = made("v2", &[Arc::clone(&first)]);
        assert_eq!(second.revision, 2);
        assert_ne!(first.name_any(), second.name_any());
        let labels = second.labels();
        assert_eq!(labels["app"], "web", "found by the owner's selector");
        assert!(second.name_any().ends_with(labels[HASH_LABEL].as_str()));
        let annotations = second.annotations();
        assert_eq!(annotations.len(), 1, "{annotations:?}");
        let data = &second.data.as_ref().unwrap().0;
        assert_eq!(data.pointer("/spec/template/$patch"), Some(&json!("replace")));
        assert_eq!(data.pointer("/spec/template/spec/containers/0/image"), Some(&json!("v2")));
        assert_eq!(template_of(&second), Some(template("v2")));
    }

    #[test]
    fn a_template_that_comes_back_keeps_its_name_and_gets_the_highest_number() {
        let first = made("v1", &[]);
        let second = made("v2", &[Arc::clone(&first)]);
        let owned = [second, Arc::clone(&first)];
        let back = present(&owner(), &template("v1"), 0, &owned);
        assert_eq!(back.name, first.name_any());
        assert_eq!(back.write, Some(Write::Renumber { of: Arc::clone(&first), to: 3 }));
        let settled = present(&owner(), &template("v2"), 0, &owned);
        assert_eq!(settled.write, None);
    }

    #[test]
    fn a_template_that_says_the_same_in_other_words_has_no_revision_of_its_own() {
        let first = made("v1", &[]);
        let of = |container: Value| -> Present {
            let mut object = serde_json::to_value(template("v1")).unwrap();
            json_patch::merge(&mut object["spec"]["containers"][0], &container);
            let template = serde_json::from_value(object).unwrap();
            present(&owner(), &template, 0, &[Arc::clone(&first)])
        };
        let same = of(json!({"env": [], "resources": {}}));
        assert_eq!((same.name, same.write), (first.name_any(), None));
        let other = of(json!({"env": [{"name": "A"}]}));
        assert_ne!(other.name, first.name_any());
    }

    #[test]
    fn a_collision_gives_another_name() {
        let names = [0, 1].map(|n| present(&owner(), &template("v1"), n, &[]).name);
        assert_ne!(names[0], names[1]);
    }

    #[test]
    fn the_oldest_go_and_what_is_in_use_stays() {
        let mut owned: Vec<Arc<ControllerRevision>> = Vec::new();
        for image in ["v1", "v2", "v3", "v4", "v5"] {
            owned.insert(0, made(image, &owned));
        }
        let gone = |limit, used: &[&str]| -> Vec<String> {
            let is_in_use = |revision: &ControllerRevision| {
                used.contains(&revision.metadata.uid.as_deref().unwrap())
            };
            let gone = beyond_limit(limit, &owned, is_in_use);
            gone.iter().map(|revision| revision.uid().unwrap()).collect()
        };
        assert_eq!(gone(Some(2), &["v5"]), ["v1", "v2"]);
        assert_eq!(gone(Some(2), &["v1", "v5"]), ["v2"]);
        assert_eq!(gone(Some(0), &["v5"]), ["v1", "v2", "v3", "v4"]);
        assert_eq!(gone(None, &["v5"]), Vec::<String>::new());
    }
}
