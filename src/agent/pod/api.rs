//! What a worker asks of the API: its own pod's status and end, and the objects its pod names.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::agent::pod::mirror;
use crate::client::{EventRecorder, EventType, Regarding};

use crate::agent::pod::env;
use crate::agent::pod::volumes::TokenKey;
use crate::agent::pod::volumes::token::Token;

/// Deadline of one call to the API.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Manager name in `metadata.managedFields`, and in the API server's audit.
const FIELD_MANAGER: &str = "edgeorc-agent";

/// Why a call of a worker did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PodApiError {
    /// The object changed since it was read. Retry: read again, compute again.
    #[error("the pod changed meanwhile")]
    Conflict,
    /// The pod does not exist any more, or another one has its name. Give up.
    #[error("the pod is gone")]
    Gone,
    /// The server cannot be reached or cannot answer now. Retry with back-off.
    #[error("the API does not answer: {0}")]
    Unavailable(String),
    /// The server refused. Retry rarely: something has to change first.
    #[error("the API refused: {0}")]
    Refused(String),
}

/// Type, reason and message of an event.
pub(crate) type Happening = (EventType, &'static str, String);

/// The seam between workers and the API: kube's client in production.
#[async_trait]
pub(crate) trait PodApi: Send + Sync + 'static {
    /// Applies a merge patch to the status of the pod `base` is a version of.
    async fn patch_status(&self, base: &Pod, patch: Value) -> Result<Pod, PodApiError>;
    /// Reads the pod again.
    async fn get(&self, base: &Pod) -> Result<Pod, PodApiError>;
    /// Removes the pod for good, if it is still this one.
    async fn delete(&self, base: &Pod) -> Result<(), PodApiError>;
    /// Tells people what happened to the pod, or to one of its containers. Never waits or fails.
    fn event(&self, pod: &Pod, container: Option<&str>, what: Happening);
    /// Reads a ConfigMap beside the pod, not older than `pod` is; `None` is "there is none".
    async fn config_map(&self, pod: &Pod, name: &str) -> Result<Option<ConfigMap>, PodApiError>;
    /// Reads a Secret beside the pod, not older than `pod` is; `None` is "there is none".
    async fn secret(&self, pod: &Pod, name: &str) -> Result<Option<Secret>, PodApiError>;
    /// Asks for a token of the pod's service account, bound to the pod.
    async fn token(
        &self,
        _pod: &Pod,
        _key: &TokenKey,
        _now: Timestamp,
    ) -> Result<Token, PodApiError> {
        Err(PodApiError::Refused("there are no tokens here".to_owned()))
    }
    /// Reads a claim; `None` is "there is none".
    async fn claim(
        &self,
        _ns: &str,
        _name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, PodApiError> {
        Ok(None)
    }
    /// Reads a claim of devices; `None` is "there is none".
    async fn resource_claim(
        &self,
        _ns: &str,
        _name: &str,
    ) -> Result<Option<ResourceClaim>, PodApiError> {
        Ok(None)
    }
    /// Reads a persistent volume; `None` is "there is none".
    async fn volume(&self, _name: &str) -> Result<Option<PersistentVolume>, PodApiError> {
        Ok(None)
    }
}

/// [`PodApi`] over kube's client.
pub(crate) struct KubePodApi {
    client: kube::Client,
    events: EventRecorder,
}

impl KubePodApi {
    pub(crate) fn new(client: kube::Client, events: EventRecorder) -> Self {
        Self { client, events }
    }

    fn pods(&self, base: &Pod) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace(base))
    }
}

#[async_trait]
impl PodApi for KubePodApi {
    async fn patch_status(&self, base: &Pod, patch: Value) -> Result<Pod, PodApiError> {
        if mirror::is_static(base) {
            let mut pod = serde_json::to_value(base).map_err(refused)?;
            json_patch::merge(&mut pod, &json!({ "status": patch.get("status") }));
            let status = pod.get("status").cloned().unwrap_or_default();
            mirror::show(&self.pods(base), base, status).await?;
            return serde_json::from_value(pod).map_err(refused);
        }
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let api = self.pods(base);
        let patched = call(api.patch_status(name(base), &params, &Patch::Merge(&patch))).await?;
        same(base, patched)
    }

    async fn get(&self, base: &Pod) -> Result<Pod, PodApiError> {
        if mirror::is_static(base) {
            return Ok(base.clone());
        }
        same(base, call(self.pods(base).get(name(base))).await?)
    }

    async fn delete(&self, base: &Pod) -> Result<(), PodApiError> {
        if mirror::is_static(base) {
            return mirror::remove(&self.pods(base), base).await;
        }
        let params = DeleteParams::default().grace_period(0).preconditions(Preconditions {
            uid: base.metadata.uid.clone(),
            resource_version: None,
        });
        match call(self.pods(base).delete(name(base), &params)).await {
            Ok(_) | Err(PodApiError::Gone) => Ok(()),
            // The only precondition is the uid: another pod has the name now.
            Err(PodApiError::Conflict) => Ok(()),
            Err(err) => Err(err),
        }
    }

    fn event(&self, pod: &Pod, container: Option<&str>, (kind, reason, message): Happening) {
        let regarding = Regarding::of(pod);
        let regarding = match container {
            Some(name) => {
                let spec = || pod.spec.iter();
                let mut inits = spec().flat_map(|s| s.init_containers.iter().flatten());
                let mut ephemeral = spec().flat_map(|s| s.ephemeral_containers.iter().flatten());
                let list = if inits.any(|init| init.name == name) {
                    "initContainers"
                } else if ephemeral.any(|one| one.name == name) {
                    "ephemeralContainers"
                } else {
                    "containers"
                };
                regarding.field(&format!("spec.{list}{{{name}}}"))
            }
            None => regarding,
        };
        self.events.record(regarding, kind, reason, message);
    }

    async fn config_map(&self, pod: &Pod, name: &str) -> Result<Option<ConfigMap>, PodApiError> {
        read_beside(Api::namespaced(self.client.clone(), namespace(pod)), pod, name).await
    }

    async fn secret(&self, pod: &Pod, name: &str) -> Result<Option<Secret>, PodApiError> {
        read_beside(Api::namespaced(self.client.clone(), namespace(pod)), pod, name).await
    }

    async fn token(&self, pod: &Pod, key: &TokenKey, now: Timestamp) -> Result<Token, PodApiError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace(pod));
        let audience = Some(&key.audience).filter(|audience| !audience.is_empty());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|audience| vec![audience.clone()]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(key.expiration_seconds),
            }),
            ..TokenRequest::default()
        };
        let (account, params) = (env::service_account(pod), PostParams::default());
        let asking = api.create_subresource::<_, TokenRequest>("token", account, &params, &request);
        Token::of(call(asking).await?, key, now)
            .ok_or_else(|| PodApiError::Refused("the answer has no token".to_owned()))
    }

    async fn claim(
        &self,
        ns: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, PodApiError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), ns);
        call(api.get_opt(name)).await
    }

    async fn resource_claim(
        &self,
        ns: &str,
        name: &str,
    ) -> Result<Option<ResourceClaim>, PodApiError> {
        let api: Api<ResourceClaim> = Api::namespaced(self.client.clone(), ns);
        call(api.get_opt(name)).await
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, PodApiError> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        call(api.get_opt(name)).await
    }
}

/// Reads what is at least as new as the pod: the server that has told of the pod has that, and need not ask
/// the others what is newest.
async fn read_beside<K>(api: Api<K>, pod: &Pod, name: &str) -> Result<Option<K>, PodApiError>
where
    K: Clone + DeserializeOwned + Debug,
{
    if let Some(version) = mirror::version(pod) {
        let found = call(api.get_with(name, &GetParams::at(version))).await;
        if let Ok(found) = found {
            return Ok(Some(found));
        }
    }
    // It came later, or the cluster was restored and has not come so far again.
    call(api.get_opt(name)).await
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn same(base: &Pod, answer: Pod) -> Result<Pod, PodApiError> {
    if answer.metadata.uid == base.metadata.uid { Ok(answer) } else { Err(PodApiError::Gone) }
}

fn refused(cause: serde_json::Error) -> PodApiError {
    PodApiError::Refused(cause.to_string())
}

/// One call to the API with its deadline and its errors in a worker's words.
pub(super) async fn call<T>(
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, PodApiError> {
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(match status.code {
            404 | 410 => PodApiError::Gone,
            409 => PodApiError::Conflict,
            408 | 429 | 500.. => PodApiError::Unavailable(status.message.clone()),
            _ => PodApiError::Refused(status.message.clone()),
        }),
        Ok(Err(err)) => Err(PodApiError::Unavailable(err.to_string())),
        Err(_) => Err(PodApiError::Unavailable("no answer in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    /// An API that answers `code` where a version is asked for, and gives the object otherwise.
    fn client(code: u16, asked: Arc<Mutex<Vec<String>>>) -> kube::Client {
        let router = axum::Router::new().fallback(move |uri: http::Uri| {
            let is_old_enough = uri.query().unwrap_or_default().contains("resourceVersion=");
            asked.lock().push(uri.to_string());
            let code = if is_old_enough { code } else { 200 };
            let answer = if code == 200 {
                json!({"metadata": {"name": "c"}})
            } else {
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "no", "reason": "NotFound", "code": code})
            };
            async move { (http::StatusCode::from_u16(code).unwrap(), answer.to_string()) }
        });
        crate::client::in_process(router, "system:kube-test", &[])
    }

    #[tokio::test]
    async fn what_is_beside_a_pod_is_asked_for_at_its_version_and_then_at_the_newest() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "resourceVersion": "7"},
        }))
        .unwrap();
        let path = "/api/v1/namespaces/n/configmaps/c?";
        // It is there; it is not there yet; the cluster was restored and is far behind.
        for (code, asks) in [(200, 1), (404, 2), (504, 2)] {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let api = Api::<ConfigMap>::namespaced(client(code, Arc::clone(&asked)), "n");
            assert!(read_beside(api, &pod, "c").await.unwrap().is_some());
            let asked = asked.lock().clone();
            assert!(asked[0].starts_with(path) && asked[0].contains("resourceVersion=7"));
            assert_eq!(asked.len(), asks, "{code}: {asked:?}");
        }
    }
}
