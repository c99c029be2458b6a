//! Why a pod waits, asked of the API and answered by the scheduler's own function.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::node_load::LEASE_NAMESPACE;
use crate::scheduler::Snapshot;

/// Why the question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// The API did not answer a list, or refused it. Try again, or ask as somebody who may list.
    #[error("the cluster cannot be read")]
    Api(#[from] kube::Error),
    /// There is no such pod.
    #[error("there is no pod {namespace}/{name}")]
    NoPod {
        /// Namespace asked for.
        namespace: String,
        /// Name asked for.
        name: String,
    },
    /// The answer cannot be written as JSON.
    #[error("the answer cannot be written")]
    Json(#[from] serde_json::Error),
}

/// What each node says to the pod, as JSON.
///
/// # Errors
///
/// [`WhyError`].
pub async fn why(client: &Client, namespace: &str, name: &str) -> Result<Value, WhyError> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let snapshot = Snapshot {
        nodes: all(client).await?,
        pods: all(client).await?,
        leases: leases.list(&ListParams::default()).await?.items,
        namespaces: all(client).await?,
        claims: all(client).await?,
        volumes: all(client).await?,
        classes: all(client).await?,
    };
    let told = snapshot.explain(namespace, name).ok_or_else(|| WhyError::NoPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })?;
    Ok(serde_json::to_value(told)?)
}

async fn all<K>(client: &Client) -> Result<Vec<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    Ok(Api::<K>::all(client.clone()).list(&ListParams::default()).await?.items)
}
