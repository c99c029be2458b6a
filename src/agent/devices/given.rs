//! The devices that a pod's claims have on this node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use serde::{Deserialize, Serialize};

use crate::agent::devices::DRIVER;
use crate::agent::dirs::{PodDir, read_json};
use crate::agent::pod::api::PodApi;
use crate::agent::pod::env::ConfigError;
use crate::api::device_claims;

/// A device of this node that a claim has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GivenDevice {
    /// The request that it is for, or `request/alternative`.
    pub(crate) request: String,
    /// Its name on this node.
    pub(crate) device: String,
}

/// By the name that the pod's containers use.
pub(crate) type Given = BTreeMap<String, Vec<GivenDevice>>;

/// Finds what the pod's claims have.
///
/// # Errors
///
/// When a claim is not there, or has no devices for this pod yet: the pod waits.
pub(crate) async fn collect(
    api: &dyn PodApi,
    node: &str,
    pod: &Pod,
    dir: &PodDir,
) -> Result<Given, ConfigError> {
    let mut given = Given::new();
    for named in device_claims::of_pod(pod) {
        // What a pod was given stays as long as the pod does.
        let kept = read_json::<Vec<GivenDevice>>(&dir.object_file("devices", named.entry));
        let devices = match kept {
            Some(kept) => kept,
            None => {
                let devices = read(api, node, pod, &named).await?;
                dir.keep_aside("devices", named.entry, &devices).await?;
                devices
            }
        };
        given.insert(named.entry.to_owned(), devices);
    }
    Ok(given)
}

async fn read(
    api: &dyn PodApi,
    node: &str,
    pod: &Pod,
    named: &device_claims::Named<'_>,
) -> Result<Vec<GivenDevice>, ConfigError> {
    let Some(name) = named.claim else {
        return Err(ConfigError::Unavailable(format!(
            "the resourceclaim for {:?} has not been made yet",
            named.entry
        )));
    };
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let found = api.resource_claim(namespace, name).await;
    let found = found.map_err(|err| ConfigError::Unread {
        kind: "resourceclaim",
        name: name.to_owned(),
        reason: err.to_string(),
    })?;
    let claim = found
        .ok_or_else(|| ConfigError::NoObject { kind: "resourceclaim", name: name.to_owned() })?;
    let pod_uid = pod.metadata.uid.as_deref().unwrap_or_default();
    devices(&claim, node, pod_uid)
        .map_err(|why| ConfigError::Unavailable(format!("resourceclaim \"{name}\" {why}")))
}

/// The claim's devices that are this agent's to give, or why the pod has none.
fn devices(
    claim: &ResourceClaim,
    node: &str,
    pod_uid: &str,
) -> Result<Vec<GivenDevice>, &'static str> {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let allocation = allocation.ok_or("has no devices for the pod yet")?;
    if !device_claims::is_reserved_for(claim, pod_uid) {
        return Err("has no devices for the pod yet");
    }
    let results = allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten());
    let own = results.filter(|result| result.driver == DRIVER);
    if own.clone().any(|result| result.pool != node) {
        return Err("has devices of another node");
    }
    let given = own.map(|result| GivenDevice {
        request: result.request.clone(),
        device: result.device.clone(),
    });
    Ok(given.collect())
}

/// Names of the devices that the container has.
pub(crate) fn of_container<'a>(container: &'a Container, given: &'a Given) -> Vec<&'a str> {
    let used = container.resources.iter().flat_map(|resources| resources.claims.iter().flatten());
    let mut names: Vec<&str> = used
        .flat_map(|used| {
            let devices = given.get(&used.name).into_iter().flatten();
            devices.filter(|given| device_claims::covers(used, &given.request))
        })
        .map(|given| given.device.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_counts_once_it_has_devices_for_this_pod() {
        let claim = |status: serde_json::Value| -> ResourceClaim {
            let claim = json!({"metadata": {"name": "c"}, "spec": {}, "status": status});
            serde_json::from_value(claim).unwrap()
        };
        let result = |driver: &str, pool: &str, device: &str| json!({"request": "r", "driver": driver, "pool": pool, "device": device});
        let allocation = json!({"devices": {"results": [result(DRIVER, "n", "a"),
            result("acme.com", "n", "b")]}});
        let consumers = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
        let ready = claim(json!({"allocation": allocation, "reservedFor": consumers}));
        let given = devices(&ready, "n", "u").unwrap();
        assert_eq!(given, [GivenDevice { request: "r".into(), device: "a".into() }]);
        assert!(devices(&ready, "n", "another pod").is_err());
        assert!(devices(&claim(json!({})), "n", "u").is_err());
        assert_eq!(devices(&ready, "other", "u"), Err("has devices of another node"));
    }

    #[test]
    fn a_container_has_the_devices_of_claims_that_it_names() {
        let device = |request: &str, device: &str| GivenDevice {
            request: request.to_owned(),
            device: device.to_owned(),
        };
        let given: Given = [
            ("a".to_owned(), vec![device("r", "one"), device("s/small", "two")]),
            ("b".to_owned(), vec![device("r", "three")]),
        ]
        .into();
        let names = |claims: serde_json::Value| -> Vec<String> {
            let container = json!({"name": "c", "resources": {"claims": claims}});
            let container: Container = serde_json::from_value(container).unwrap();
            of_container(&container, &given).into_iter().map(str::to_owned).collect()
        };
        assert_eq!(names(json!([{"name": "a"}])), ["one", "two"]);
        assert_eq!(names(json!([{"name": "a", "request": "s"}])), ["two"]);
        assert_eq!(names(json!([])), Vec::<String>::new());
    }
}
