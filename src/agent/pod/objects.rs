//! The `ConfigMap`s and `Secret`s a pod names: from the API, or the copy of the last start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::dirs::{PodDir, read_json, write_json};
use crate::agent::pod::api::{PodApi, PodApiError};
use crate::agent::pod::env::{ConfigError, Sources};
use crate::agent::pod::plan::config_name;

/// How long the API may take when a copy is on this node.
const PATIENCE_WITH_COPY: Duration = Duration::from_millis(500);

/// Names of the objects that any container or volume of `pod` refers to.
fn named(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    maps.extend(config_name(pod).map(str::to_owned));
    let Some(spec) = &pod.spec else { return (maps, secrets) };
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for from in container.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|v| v.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|v| v.secret_name.clone()));
    }
    (maps, secrets)
}

/// Reads everything `pod` names into `sources`, and keeps a copy in `dir`.
pub(crate) async fn collect(
    api: &dyn PodApi,
    pod: &Pod,
    dir: &PodDir,
    sources: &mut Sources,
) -> Result<(), ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let (maps, secrets) = named(pod);
    sources.config_maps =
        read_all(
            maps,
            "configmap",
            dir,
            |name| async move { api.config_map(namespace, &name).await },
        )
        .await?;
    sources.secrets =
        read_all(secrets, "secret", dir, |name| async move { api.secret(namespace, &name).await })
            .await?;
    Ok(())
}

async fn read_all<T, F>(
    names: BTreeSet<String>,
    kind: &'static str,
    dir: &PodDir,
    read: impl Fn(String) -> F,
) -> Result<BTreeMap<String, Option<T>>, ConfigError>
where
    T: Serialize + DeserializeOwned + PartialEq,
    F: Future<Output = Result<Option<T>, PodApiError>>,
{
    let mut found = BTreeMap::new();
    for name in names {
        let file = dir.object_file(kind, &name);
        let copy: Option<T> = read_json(&file);
        let answer = if copy.is_some() {
            tokio::time::timeout(PATIENCE_WITH_COPY, read(name.clone()))
                .await
                .unwrap_or_else(|_| Err(PodApiError::Unavailable("no answer in time".to_owned())))
        } else {
            read(name.clone()).await
        };
        let object = match (answer, copy) {
            (Ok(Some(object)), copy) => {
                if copy.as_ref() != Some(&object) {
                    write_json(&file, &object)?;
                }
                Some(object)
            }
            (Ok(None), _) => None,
            (Err(_), Some(copy)) => Some(copy),
            (Err(err), None) => {
                return Err(ConfigError::Unread { kind, name, reason: err.to_string() });
            }
        };
        found.insert(name, object);
    }
    Ok(found)
}
