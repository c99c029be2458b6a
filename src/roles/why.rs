//! Why a pod waits, asked of the API and answered by the scheduler's own function.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::node_load::LEASE_NAMESPACE;
use crate::config::Proxies;
use crate::roles::plugins;
use crate::scheduler::{
    CONFIG_KEY, CONFIG_NAME, CONFIG_NAMESPACE, Configuration, Extension, ProfileConfig, Profiles,
    SCHEDULER_NAME, Snapshot,
};

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
pub async fn why(
    client: &Client,
    proxies: &Proxies,
    namespace: &str,
    name: &str,
) -> Result<Value, WhyError> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), LEASE_NAMESPACE);
    let pods: Vec<Pod> = all(client).await?;
    let plugins = Plugins::of(client, proxies, &pods, (namespace, name)).await?;
    let snapshot = Snapshot {
        nodes: all(client).await?,
        pods,
        leases: leases.list(&ListParams::default()).await?.items,
        namespaces: all(client).await?,
        claims: all(client).await?,
        volumes: all(client).await?,
        classes: all(client).await?,
        resource_claims: all(client).await?,
        device_classes: all(client).await?,
        resource_slices: all(client).await?,
        budgets: all(client).await?,
        profiles: plugins.profiles,
    };
    let mut told = snapshot.explain(namespace, name).ok_or_else(|| WhyError::NoPod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })?;
    for note in plugins.notes {
        told.message.push_str(&format!("\n{note}"));
    }
    Ok(serde_json::to_value(told)?)
}

/// The plugins that have a say about the pod, loaded into this process.
#[derive(Default)]
struct Plugins {
    profiles: Profiles,
    /// What could not be asked, and why.
    notes: Vec<String>,
}

impl Plugins {
    async fn of(
        client: &Client,
        proxies: &Proxies,
        pods: &[Pod],
        (namespace, name): (&str, &str),
    ) -> Result<Self, WhyError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), CONFIG_NAMESPACE);
        let map = maps.get_opt(CONFIG_NAME).await?;
        let text = map.and_then(|map| map.data?.remove(CONFIG_KEY));
        let Some(text) = text else { return Ok(Self::default()) };
        let config = match Configuration::parse(&text) {
            Ok(config) => config,
            Err(why) => {
                let note =
                    format!("plugins were not asked: the configuration is not understood: {why}");
                return Ok(Self { notes: vec![note], ..Self::default() });
            }
        };
        let is_it = |pod: &&Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.metadata.name.as_deref() == Some(name)
        };
        let pod = pods.iter().find(is_it).and_then(|pod| pod.spec.as_ref());
        let asks = pod.and_then(|spec| spec.scheduler_name.as_deref());
        let asks = asks.unwrap_or(SCHEDULER_NAME);
        let names: Vec<_> = config.profiles.iter().map(|it| it.scheduler_name.clone()).collect();
        let profile = config.profiles.into_iter().find(|it| it.scheduler_name == asks);
        let mut found = Self::default();
        if let Some(profile) = profile.filter(|profile| !profile.plugins.is_empty()) {
            let folder = std::env::temp_dir().join(format!("edgeorc-why-{}", std::process::id()));
            found = Self::load(client, proxies, profile, &folder).await;
            let _ = tokio::fs::remove_dir_all(&folder).await;
        }
        // Those without plugins have a name that pods can ask for, too.
        for name in names {
            found.profiles.entry(name).or_default();
        }
        Ok(found)
    }

    async fn load(
        client: &Client,
        proxies: &Proxies,
        mut config: ProfileConfig,
        folder: &Path,
    ) -> Self {
        let mut notes = Vec::new();
        let mut loaded: BTreeMap<String, Arc<dyn Extension>> = BTreeMap::new();
        for args in &config.plugins {
            match plugins::load_here(client, proxies, args, folder).await {
                Ok(extension) => drop(loaded.insert(args.name.clone(), extension)),
                Err(why) => notes.push(format!("plugin {} was not asked: {why}", args.name)),
            }
        }
        let has = |at: &usize| {
            config.plugins.get(*at).is_some_and(|args| loaded.contains_key(&args.name))
        };
        config.filters.retain(has);
        config.scores.retain(|(at, _)| has(at));
        let name = config.scheduler_name.clone();
        let profile = plugins::profile(&config, |args| {
            loaded.get(&args.name).map_or_else(plugins::nobody, Arc::clone)
        });
        Self { profiles: [(name, Arc::new(profile))].into(), notes }
    }
}

async fn all<K>(client: &Client) -> Result<Vec<K>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    Ok(Api::<K>::all(client.clone()).list(&ListParams::default()).await?.items)
}
