//! Image policies at admission: a namespace with one takes no pod whose images are not signed.
//!
//! The verdict is about what the registry says now. Nothing is pinned: the node that runs the pod
//! resolves the image for itself and judges again.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde_json::Value;

use crate::api::image_policy::{Demand, MODE_LABEL, Mode, Rules};
use crate::api::meta;
use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::apiserver::{access, service_account};

/// How long one request waits for registries; Kubernetes gives its webhooks as long.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// Images of one pod that are looked at at a time.
const AT_ONCE: usize = 4;
/// Marks the picture of a pod that a node runs by itself.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Looks for signatures where images are.
pub trait ImageVerifier: std::fmt::Debug + Send + Sync + 'static {
    /// Whether `image`, as `pod` names it and with the pod's credentials, is signed as `rules` want.
    ///
    /// # Errors
    ///
    /// Why not, for the client. Registries that do not answer are an error, too.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the registry is too slow.
    fn verify<'a>(
        &'a self,
        rules: &'a Rules,
        pod: &'a Value,
        image: &'a str,
    ) -> BoxFuture<'a, Result<(), String>>;
}

/// Refuses a pod with images that its namespace does not take; of a pod that was there before, only
/// the images that are not in `old` are judged.
pub(super) async fn admit(call: &Call, old: Option<&Value>, pod: &Value) -> Result<(), ApiError> {
    let resource = call.info.resource;
    if resource.plural != "pods" || !resource.group.is_empty() {
        return Ok(());
    }
    let mut images = images_of(pod);
    let known = old.map(images_of).unwrap_or_default();
    images.retain(|image| !known.contains(image));
    if images.is_empty() {
        return Ok(());
    }
    // It runs already, or its node refused it: the node's own door is the one that counts there.
    if meta::annotation(pod, MIRROR_ANNOTATION).is_some() && access::is_node(&call.user) {
        return Ok(());
    }
    let name = call.info.namespace.as_deref().unwrap_or_default();
    let Some(rules) = rules(call, name).await? else { return Ok(()) };
    let refused = verify(call, &rules, pod, &images).await;
    if refused.is_empty() {
        return Ok(());
    }
    let detail = words(name, &rules, &refused);
    match rules.mode() {
        Mode::Warn => {
            call.warn(detail);
            Ok(())
        }
        Mode::Enforce => Err(Status::forbidden(resource, meta::name(pod), &detail).into()),
    }
}

/// The rules of a namespace, if it has any.
async fn rules(call: &Call, namespace: &str) -> Result<Option<Rules>, ApiError> {
    let context = &call.context;
    let found = service_account::find(context, "namespaces", None, namespace).await?;
    let Some(demand) = found.as_ref().and_then(Demand::of) else { return Ok(None) };
    let (keys_namespace, keys_name) = demand.keys();
    let keys =
        service_account::find(context, "configmaps", Some(keys_namespace), keys_name).await?;
    Ok(Some(demand.with_keys(keys.as_ref())))
}

/// The images that do not pass, each with the reason.
async fn verify(
    call: &Call,
    rules: &Rules,
    pod: &Value,
    images: &BTreeSet<&str>,
) -> Vec<(String, String)> {
    let Some(verifier) = call.context.image_verifier.get() else {
        let why = "this server cannot verify signatures".to_owned();
        return images.iter().map(|image| ((*image).to_owned(), why.clone())).collect();
    };
    let until = tokio::time::Instant::now() + VERIFY_TIMEOUT;
    let judge = |image: String| -> BoxFuture<'_, Option<(String, String)>> {
        async move {
            let verdict = tokio::time::timeout_at(until, verifier.verify(rules, pod, &image)).await;
            let seconds = VERIFY_TIMEOUT.as_secs();
            let late = || Err(format!("its registry did not answer within {seconds} s, try again"));
            verdict.unwrap_or_else(|_| late()).err().map(|why| (image, why))
        }
        .boxed()
    };
    let all: Vec<_> = images.iter().map(|image| judge((*image).to_owned())).collect();
    let mut verdicts = stream::iter(all).buffered(AT_ONCE);
    let mut refused = Vec::new();
    while let Some(verdict) = verdicts.next().await {
        refused.extend(verdict);
    }
    refused
}

fn words(namespace: &str, rules: &Rules, refused: &[(String, String)]) -> String {
    let all: Vec<_> =
        refused.iter().map(|(image, why)| format!("image {image:?}: {why}")).collect();
    format!(
        "the image policy of namespace {namespace:?} refuses {}; sign with a key of ConfigMap {} \
         (cosign sign --key), or change the label {MODE_LABEL} of the namespace",
        all.join("; "),
        rules.keys_from()
    )
}

/// All images that a pod names.
fn images_of(pod: &Value) -> BTreeSet<&str> {
    let list = |path: &str| pod.pointer(path).and_then(Value::as_array).into_iter().flatten();
    let of_containers = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"]
        .into_iter()
        .flat_map(list)
        .filter_map(|container| container.get("image"));
    let of_volumes = list("/spec/volumes").filter_map(|volume| volume.pointer("/image/reference"));
    let all = of_containers.chain(of_volumes).filter_map(Value::as_str);
    all.filter(|image| !image.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_place_of_an_image_in_a_pod_is_looked_at() {
        let pod = json!({"spec": {
            "containers": [{"image": "a"}, {"image": "b"}, {"image": ""}, {"name": "none"}],
            "initContainers": [{"image": "c"}, {"image": "a"}],
            "ephemeralContainers": [{"image": "d"}],
            "volumes": [{"emptyDir": {}}, {"image": {"reference": "e"}}],
        }});
        assert_eq!(images_of(&pod).into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
        assert!(images_of(&json!({"spec": {"containers": "x"}})).is_empty());
    }
}
