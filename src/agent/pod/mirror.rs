//! Mirrors: what the API shows of the pods that are in a folder of this node. They are no wish but
//! a picture; one that is deleted is painted again.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::agent::pod::api::{PodApiError, call};

/// Where the node has a pod from; kubelet's names.
pub(crate) const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// Value of [`SOURCE_ANNOTATION`] of a static pod.
pub(crate) const SOURCE_FILE: &str = "file";
/// What tells one content of a static pod from another.
pub(crate) const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// A mirror's copy of [`HASH_ANNOTATION`].
pub(crate) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The hash of a pod that mirrors a static one.
pub(crate) fn mirrored(pod: &Pod) -> Option<&str> {
    annotation(pod, MIRROR_ANNOTATION)
}

/// Whether the pod is one from a folder of this node, not its mirror.
pub(crate) fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE_ANNOTATION) == Some(SOURCE_FILE) && mirrored(pod).is_none()
}

/// The version that the API has told of the pod; none of a static one, which is not from there.
pub(crate) fn version(pod: &Pod) -> Option<&str> {
    pod.metadata.resource_version.as_deref().filter(|_| !is_static(pod))
}

/// The pod as the API gave it. Only the folder makes a pod static, whatever it says of itself.
pub(crate) fn from_api(pod: Arc<Pod>) -> Arc<Pod> {
    if !is_static(&pod) {
        return pod;
    }
    let mut pod = Arc::unwrap_or_clone(pod);
    if let Some(annotations) = &mut pod.metadata.annotations {
        annotations.remove(SOURCE_ANNOTATION);
    }
    Arc::new(pod)
}

/// The mirror of a static pod, as it is created.
fn mirror_of(pod: &Pod) -> Pod {
    let mut mirror = pod.clone();
    let hash = annotation(pod, HASH_ANNOTATION).unwrap_or_default().to_owned();
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    annotations.insert(MIRROR_ANNOTATION.to_owned(), hash);
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    mirror.status = None;
    mirror
}

/// Shows `status` of the static pod `pod`; makes its mirror first where there is none, or another's.
pub(super) async fn show(api: &Api<Pod>, pod: &Pod, status: Value) -> Result<(), PodApiError> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    match call(api.get_opt(name)).await? {
        Some(had) if mirrored(&had) == annotation(pod, HASH_ANNOTATION) => {}
        Some(had) if mirrored(&had).is_some() => {
            remove(api, &had).await?;
            create(api, pod).await?;
        }
        Some(_) => {
            return Err(PodApiError::Refused(format!("another pod has the name {name}")));
        }
        None => create(api, pod).await?,
    }
    let patch = Patch::Merge(json!({ "status": status }));
    match call(api.patch_status(name, &PatchParams::default(), &patch)).await {
        // The picture went meanwhile, not the pod.
        Err(PodApiError::Gone) => {
            Err(PodApiError::Unavailable("the mirror was removed meanwhile".to_owned()))
        }
        done => done.map(drop),
    }
}

async fn create(api: &Api<Pod>, pod: &Pod) -> Result<(), PodApiError> {
    call(api.create(&PostParams::default(), &mirror_of(pod))).await.map(drop)
}

/// Removes a mirror for good.
pub(super) async fn remove(api: &Api<Pod>, mirror: &Pod) -> Result<(), PodApiError> {
    let name = mirror.metadata.name.as_deref().unwrap_or_default();
    let params = DeleteParams::default().grace_period(0);
    match call(api.delete(name, &params)).await {
        Ok(_) | Err(PodApiError::Gone) => Ok(()),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_the_api_that_calls_itself_static_is_not() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "a",
            "annotations": {SOURCE_ANNOTATION: SOURCE_FILE, "other": "kept"}}}))
        .unwrap();
        assert!(is_static(&pod));
        let pod = from_api(Arc::new(pod));
        assert!(!is_static(&pod));
        assert_eq!(annotation(&pod, "other"), Some("kept"));
    }
}
