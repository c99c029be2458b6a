//! The objects that every cluster has.

use serde_json::{Value, json};

use crate::api::{self, gateway, local_volume, meta, priority, strategy};
use crate::rt::{Rng, WallClock};
use crate::store::{Key, Store, StoreError};

/// Namespaces of the system.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
/// Where clients find the cluster's CA, under Kubernetes' name.
const ROOT_CA: &str = "kube-root-ca.crt";

/// Writes what is missing: the system's namespaces, the CA's certificate in `kube-system`, the
/// storage class that claims get when they name none, the system's classes of priority, and the classes of Ingresses and Gateways.
///
/// # Errors
///
/// [`StoreError`] when the store does not take writes; call again later.
pub async fn bootstrap(
    store: &Store,
    clock: &WallClock,
    rng: &Rng,
    ca_pem: &str,
) -> Result<(), StoreError> {
    for name in NAMESPACES {
        let namespace = json!({"metadata": {"name": name}});
        ensure(store, clock, rng, ("", "namespaces"), None, namespace).await?;
    }
    let map = json!({
        "metadata": {"name": ROOT_CA, "namespace": "kube-system"},
        "data": {"ca.crt": ca_pem},
    });
    ensure(store, clock, rng, ("", "configmaps"), Some("kube-system"), map).await?;
    let class = json!({
        "metadata": {
            "name": local_volume::CLASS_DEFAULT,
            "annotations": { local_volume::IS_DEFAULT_CLASS: "true" },
        },
        "provisioner": local_volume::PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    ensure(store, clock, rng, ("storage.k8s.io", "storageclasses"), None, class).await?;
    for (name, value, description) in priority::SYSTEM {
        let class = json!({
            "metadata": {"name": name}, "value": value, "description": description,
        });
        let resource = (priority::GROUP, "priorityclasses");
        ensure(store, clock, rng, resource, None, class).await?;
    }
    let class = json!({
        "metadata": {
            "name": gateway::CLASS_DEFAULT,
            "annotations": { gateway::IS_DEFAULT_CLASS: "true" },
        },
        "spec": { "controller": gateway::INGRESS_CONTROLLER },
    });
    ensure(store, clock, rng, ("networking.k8s.io", "ingressclasses"), None, class).await?;
    let class = json!({
        "metadata": { "name": gateway::CLASS_DEFAULT },
        "spec": {
            "controllerName": gateway::CONTROLLER,
            "description": "Served by every node of this cluster",
        },
    });
    ensure(store, clock, rng, (gateway::GROUP, "gatewayclasses"), None, class).await
}

async fn ensure(
    store: &Store,
    clock: &WallClock,
    rng: &Rng,
    (group, plural): (&str, &str),
    namespace: Option<&str>,
    mut object: Value,
) -> Result<(), StoreError> {
    let Some(resource) = api::find(group, "v1", plural) else { return Ok(()) };
    strategy::prepare_create(resource, &mut object);
    meta::set_created(&mut object, &rng.uuid().to_string(), &clock.now_rfc3339());
    let key = Key::new(resource, namespace, meta::name(&object));
    match store.create(&key, &object, &[]).await {
        Ok(_) | Err(StoreError::Exists) => Ok(()),
        Err(error) => Err(error),
    }
}
