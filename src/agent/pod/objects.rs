//! What a pod names and the agent must find: `ConfigMap`s, `Secret`s, tokens, claims, Services;
//! from the API and the node's caches, or the copies of the last start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::agent::backlog::Backlog;
use crate::agent::devices;
use crate::agent::dirs::{Dirs, PodDir, read_json};
use crate::agent::pod::api::{PodApi, PodApiError};
use crate::agent::pod::env::{ConfigError, Sources};
use crate::agent::pod::mirror;
use crate::agent::pod::plan::config_name;
use crate::agent::pod::service_env::service_env;
use crate::agent::pod::volumes::{claim, token, volumes_of};
use crate::client::Informer;
use crate::config::{DeviceSettings, HostPath};
use crate::rt::WallClock;

/// How long the API may take when a copy is on this node.
pub(crate) const PATIENCE_WITH_COPY: Duration = Duration::from_millis(500);
/// How long the first list of Services may take when there is no copy of what it gave before.
const PATIENCE_WITH_SERVICES: Duration = Duration::from_secs(5);

/// What the node knows without asking the API for each pod.
#[derive(Debug)]
pub(crate) struct NodeSources {
    pub(crate) node_name: String,
    pub(crate) dirs: Dirs,
    pub(crate) clock: WallClock,
    /// The cache that the node's routes are made from.
    pub(crate) services: Informer<Service>,
    /// What pods may mount of the host.
    pub(crate) host_paths: Arc<[HostPath]>,
    /// Devices of this machine.
    pub(crate) devices: Arc<[DeviceSettings]>,
    /// Bytes of disk that a container without limits may use.
    pub(crate) ephemeral_bytes: u64,
    /// Told of every pod whose volumes were written for a start.
    pub(crate) written: Written,
}

/// Pods, by uid, whose volumes were written since somebody looked. Bounded by the node's pods.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) pods: Mutex<BTreeSet<String>>,
    pub(crate) wake: Arc<Notify>,
}

impl Written {
    /// Tells whoever keeps volumes up to date that these are to be looked at.
    pub(crate) fn tell(&self, uid: &str) {
        self.pods.lock().insert(uid.to_owned());
        self.wake.notify_one();
    }
}

/// Names of the `ConfigMap`s and `Secret`s that the files of the pod's volumes come from.
pub(crate) fn named_by_volumes(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for volume in volumes_of(pod) {
        maps.extend(volume.config_map.iter().map(|v| v.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|v| v.secret_name.clone()));
        let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        for source in projected {
            maps.extend(source.config_map.iter().map(|s| s.name.clone()));
            secrets.extend(source.secret.iter().map(|s| s.name.clone()));
        }
    }
    (maps, secrets)
}

/// Names of all that any container or volume of `pod` refers to.
fn named(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = named_by_volumes(pod);
    maps.extend(config_name(pod).map(str::to_owned));
    let Some(spec) = &pod.spec else { return (maps, secrets) };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let containers = containers.map(|c| (&c.env, &c.env_from));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.env, &c.env_from));
    for (env, env_from) in containers.chain(ephemeral) {
        for from in env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
        }
        for source in env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        }
    }
    (maps, secrets)
}

/// Reads everything `pod` names into `sources`, and puts copies for `dir` into `backlog`.
pub(crate) async fn collect(
    api: &dyn PodApi,
    node: &NodeSources,
    pod: &Pod,
    dir: &PodDir,
    backlog: &Backlog,
    sources: &mut Sources,
) -> Result<(), ConfigError> {
    let (maps, secrets) = named(pod);
    let read_map = |name: String| async move { api.config_map(pod, &name).await };
    let read_secret = |name: String| async move { api.secret(pod, &name).await };
    (sources.config_maps, sources.secrets, sources.tokens, sources.claims, sources.service_env) = tokio::try_join!(
        read_all(maps, "configmap", (dir, backlog), read_map),
        read_all(secrets, "secret", (dir, backlog), read_secret),
        token::collect(api, pod, (dir, backlog), node.clock.now(), false),
        claim::collect(api, node, pod, dir),
        services(node, pod, (dir, backlog)),
    )?;
    sources.given = devices::collect(api, &node.node_name, pod, dir).await?;
    sources.devices = Arc::clone(&node.devices);
    sources.host_paths = Arc::clone(&node.host_paths);
    sources.ephemeral_bytes = node.ephemeral_bytes;
    Ok(())
}

/// The variables of the pod's Services, from the cache that the node's routes are made from.
async fn services(
    node: &NodeSources,
    pod: &Pod,
    (dir, backlog): (&PodDir, &Backlog),
) -> Result<Vec<(String, String)>, ConfigError> {
    let file = dir.object_file("services", "env");
    let copy: Option<Vec<(String, String)>> = read_json(&file);
    let patience = if copy.is_some() { PATIENCE_WITH_COPY } else { PATIENCE_WITH_SERVICES };
    let is_ready = tokio::time::timeout(patience, node.services.ready()).await == Ok(true);
    if !is_ready {
        if mirror::is_static(pod) {
            // It must run where no API has ever answered.
            return Ok(copy.unwrap_or_default());
        }
        return copy.ok_or_else(|| ConfigError::Unread {
            kind: "services",
            name: pod.metadata.namespace.clone().unwrap_or_default(),
            reason: "they have not been read since this node started".to_owned(),
        });
    }
    let services = node.services.store.state();
    let env = service_env(pod, services.iter().map(AsRef::as_ref));
    if copy.as_ref() != Some(&env) {
        dir.keep_later(("services", "env"), &env, backlog)?;
    }
    Ok(env)
}

async fn read_all<T, F>(
    names: BTreeSet<String>,
    kind: &'static str,
    (dir, backlog): (&PodDir, &Backlog),
    read: impl Fn(String) -> F,
) -> Result<BTreeMap<String, Option<T>>, ConfigError>
where
    T: Serialize + DeserializeOwned + PartialEq,
    F: Future<Output = Result<Option<T>, PodApiError>>,
{
    let mut found = BTreeMap::new();
    for name in names {
        let copy: Option<T> = dir.kept(kind, &name);
        let answer = within_patience(copy.is_some(), read(name.clone())).await;
        let object = match (answer, copy) {
            (Ok(Some(object)), copy) => {
                if copy.as_ref() != Some(&object) {
                    dir.keep_later((kind, &name), &object, backlog)?;
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

/// Waits for the API as long as it takes, or not for long when there is a copy.
pub(crate) async fn within_patience<T>(
    has_copy: bool,
    read: impl Future<Output = Result<T, PodApiError>>,
) -> Result<T, PodApiError> {
    if !has_copy {
        return read.await;
    }
    tokio::time::timeout(PATIENCE_WITH_COPY, read)
        .await
        .unwrap_or_else(|_| Err(PodApiError::Unavailable("no answer in time".to_owned())))
}
