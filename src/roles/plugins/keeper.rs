//! Follows the configuration, and has its plugins loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::PluginEngine;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::runtime::watcher;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::{CodeCompiler, ImageReader, SignatureVerifier};
use crate::api::image_policy::{Demand, Mode};
use crate::client::{Backoff, EventRecorder, EventType, Regarding, RetryLimits, informer};
use crate::config::{Proxies, Sandboxes};
use crate::roles::module::machine;
use crate::roles::plugins::guard::{Absent, Guarded, Tell};
use crate::roles::plugins::{Fetcher, PluginMetrics, load, profile};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::scheduler::{
    CONFIG_KEY, CONFIG_NAME, CONFIG_NAMESPACE, Configuration, Extension, PluginArgs, Profiles,
};

/// Pauses between tries to load what could not be loaded.
const RETRY: RetryLimits =
    RetryLimits { delay_min: Duration::from_secs(2), delay_max: Duration::from_secs(300) };
/// How long the last events may take at the end.
const GRACE: Duration = Duration::from_secs(1);

/// What a server's plugins need; the same in every term.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) registries_file: PathBuf,
    pub(crate) proxies: Proxies,
    pub(crate) compiler: CodeCompiler,
    /// Where compiled plugins are.
    pub(crate) folder: PathBuf,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) metrics: PluginMetrics,
    pub(crate) clock: WallClock,
    pub(crate) rng: Rng,
}

/// What tells one loaded plugin from another; what its failures mean does not.
type Key = (String, String, u64);

struct Loaded {
    extension: Arc<dyn Extension>,
    layer: String,
}

/// Keeps the scheduler's profiles as the configuration says, while this server leads.
pub(crate) struct Keeper {
    client: kube::Client,
    told: watch::Sender<Profiles>,
    tools: Tools,
    fetcher: Fetcher,
    verifier: SignatureVerifier,
    /// Made when there is a plugin.
    engine: Option<PluginEngine>,
    config: Configuration,
    /// The text that `config` was read from.
    text: Option<String>,
    loaded: BTreeMap<Key, Loaded>,
}

impl Keeper {
    pub(crate) fn new(client: kube::Client, told: watch::Sender<Profiles>, tools: Tools) -> Self {
        let file = Some(tools.registries_file.clone());
        let reader = ImageReader::open(Some(client.clone()), file.clone(), None, &tools.proxies);
        let fetcher = Fetcher {
            reader,
            compiler: tools.compiler.clone(),
            folder: tools.folder.clone(),
            engine: edgeorc_runtime::compatibility_hash_for(machine(tools.sandboxes)),
        };
        let verifier = SignatureVerifier::open(client.clone(), file, &tools.proxies);
        Self {
            client,
            told,
            tools,
            fetcher,
            verifier,
            engine: None,
            config: Configuration::default(),
            text: None,
            loaded: BTreeMap::new(),
        }
    }

    /// Follows the configuration until `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let tasks = TaskGroup::new(&cancel);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), CONFIG_NAMESPACE);
        let only = watcher::Config::default().fields(&format!("metadata.name={CONFIG_NAME}"));
        let maps = informer(api, only, &tasks);
        let events = EventRecorder::new(
            self.client.clone(),
            "default-scheduler",
            self.tools.clock.clone(),
            self.tools.rng.clone(),
            &tasks,
        );
        let mut changed = maps.changed();
        if cancel.run_until_cancelled(maps.ready()).await == Some(true) {
            loop {
                changed.borrow_and_update();
                let map = maps.store.named(CONFIG_NAMESPACE, CONFIG_NAME);
                let about = About { events: events.clone(), map };
                self.read(&about);
                tokio::select! {
                    () = cancel.cancelled() => break,
                    more = changed.changed() => if more.is_err() { break },
                    () = self.bring(&about) => {}
                }
            }
        }
        tasks.shutdown(GRACE).await;
    }

    /// Takes the configuration over, if it is another one and can be understood.
    fn read(&mut self, about: &About) {
        let data = about.map.as_ref().and_then(|map| map.data.as_ref());
        let text = data.and_then(|data| data.get(CONFIG_KEY)).cloned();
        if text == self.text {
            return;
        }
        match text.as_deref().map_or(Ok(Configuration::default()), Configuration::parse) {
            Ok(config) => {
                let profiles = config.profiles.len();
                tracing::info!(profiles, "the scheduler's configuration was read");
                self.config = config;
            }
            Err(why) => {
                tracing::warn!(err = why, "the scheduler's configuration is not understood");
                about.warn("InvalidConfiguration", &format!("the last good one counts: {why}"));
            }
        }
        self.text = text;
        let wanted: BTreeSet<_> = self.wanted().iter().map(key).collect();
        self.loaded.retain(|key, _| wanted.contains(key));
        self.publish();
    }

    fn wanted(&self) -> Vec<PluginArgs> {
        self.config.profiles.iter().flat_map(|profile| profile.plugins.clone()).collect()
    }

    fn publish(&self) {
        let extension = |args: &PluginArgs| match self.loaded.get(&key(args)) {
            Some(loaded) => Arc::clone(&loaded.extension),
            None => Arc::new(Absent("it is not loaded yet".to_owned())) as Arc<dyn Extension>,
        };
        let profiles =
            self.config.profiles.iter().map(|config| {
                (config.scheduler_name.clone(), Arc::new(profile(config, extension)))
            });
        self.told.send_replace(profiles.collect());
    }

    /// Loads what is not loaded, and tries again what could not be. Never ends: something else has to
    /// change first.
    async fn bring(&mut self, about: &About) {
        let mut backoff = Backoff::new(RETRY, self.tools.rng.clone());
        loop {
            let mut is_complete = true;
            for args in self.wanted() {
                if self.loaded.contains_key(&key(&args)) {
                    continue;
                }
                match self.load(&args, about).await {
                    Ok(loaded) => {
                        tracing::info!(plugin = args.name, args.image, "scheduler plugin loaded");
                        about.tell("PluginLoaded", &format!("{}: {}", args.name, args.image));
                        self.loaded.insert(key(&args), loaded);
                        self.publish();
                    }
                    Err(why) => {
                        is_complete = false;
                        let (name, image) = (&args.name, &args.image);
                        tracing::warn!(
                            plugin = name,
                            err = why,
                            "a scheduler plugin is not loaded"
                        );
                        about.warn("PluginNotLoaded", &format!("{name}: {image}: {why}"));
                    }
                }
            }
            if is_complete {
                let layers = self.loaded.values().map(|loaded| loaded.layer.clone()).collect();
                self.fetcher.keep_only(&layers).await;
                return std::future::pending().await;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn load(&mut self, args: &PluginArgs, about: &About) -> Result<Loaded, String> {
        let found = self.fetcher.find(&args.image).await?;
        self.check_policy(&found.image).await?;
        let code = self.fetcher.fetch(&found).await?;
        let engine = match &self.engine {
            Some(engine) => engine.clone(),
            None => {
                let made = PluginEngine::new(machine(self.tools.sandboxes));
                self.engine.insert(made.map_err(|why| why.to_string())?).clone()
            }
        };
        let plugin = load(engine, &code, args.memory_bytes).await?;
        let metrics = self.tools.metrics.clone();
        let guarded = Guarded::new(&args.name, plugin, metrics, about.failures_of(&args.name));
        Ok(Loaded { extension: Arc::new(guarded), layer: found.layer })
    }

    /// Whether the image policy of the configuration's namespace lets the image pass.
    async fn check_policy(&self, image: &str) -> Result<(), String> {
        let unread = |cause: kube::Error| format!("the image policy cannot be read: {cause}");
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = namespaces.get(CONFIG_NAMESPACE).await.map_err(unread)?;
        let namespace = serde_json::to_value(namespace).map_err(|cause| cause.to_string())?;
        let Some(demand) = Demand::of(&namespace) else { return Ok(()) };
        let (of, name) = demand.keys();
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), of);
        let keys: Option<Value> = match maps.get_opt(name).await.map_err(unread)? {
            Some(map) => Some(serde_json::to_value(map).map_err(|cause| cause.to_string())?),
            None => None,
        };
        let rules = demand.with_keys(keys.as_ref());
        let pod = json!({
            "metadata": {"name": CONFIG_NAME, "namespace": CONFIG_NAMESPACE},
            "spec": {"containers": [{"name": "plugin", "image": image}]},
        });
        match self.verifier.verify(&rules, &pod, image).await {
            Err(why) if rules.mode() == Mode::Enforce => {
                Err(format!("the image policy of namespace {CONFIG_NAMESPACE} refuses it: {why}"))
            }
            Err(why) => {
                tracing::warn!(image, err = why, "a scheduler plugin is not signed as wanted");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn key(args: &PluginArgs) -> Key {
    (args.name.clone(), args.image.clone(), args.memory_bytes)
}

/// The ConfigMap, and the way to its events.
struct About {
    events: EventRecorder,
    map: Option<Arc<ConfigMap>>,
}

impl About {
    fn record(&self, event_type: EventType, reason: &'static str, message: &str) {
        if let Some(map) = &self.map {
            self.events.record(Regarding::of(map.as_ref()), event_type, reason, message);
        }
    }

    fn tell(&self, reason: &'static str, message: &str) {
        self.record(EventType::Normal, reason, message);
    }

    fn warn(&self, reason: &'static str, message: &str) {
        self.record(EventType::Warning, reason, message);
    }

    /// Tells of failures of a plugin, for as long as it lives.
    fn failures_of(&self, name: &str) -> Tell {
        let (name, about) =
            (name.to_owned(), Self { events: self.events.clone(), map: self.map.clone() });
        Arc::new(move |why| about.warn("PluginFailed", &format!("{name}: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use kube::api::{DeleteParams, Patch, PatchParams, PostParams};

    use super::*;
    use crate::agent::{CodeMetrics, Compiler};
    use crate::roles::testing::Cluster;
    use crate::scheduler::{Facts, NodeFacts, PodFacts};

    const GOOD: &str = "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: cool
  plugins: {filter: {enabled: [{name: thermal}]}}
  pluginConfig: [{name: thermal, args: {image: 'infra/nothing:1', failurePolicy: Fail}}]
";

    fn map(text: &str) -> ConfigMap {
        let map = json!({"metadata": {"name": CONFIG_NAME}, "data": {CONFIG_KEY: text}});
        serde_json::from_value(map).unwrap()
    }

    fn ask(profiles: &Profiles) -> String {
        let plugin = &profiles["cool"].plugins[0];
        assert!(plugin.is_required);
        let (labels, facts) = (BTreeMap::new(), Facts::default());
        let (requests, images) = (Vec::new(), &[][..]);
        let pod = PodFacts { namespace: "default", labels: &labels, priority: 0, images, requests };
        let node = NodeFacts { name: "n", facts: &facts };
        plugin.extension.filter(&pod, node, plugin.time_max).unwrap_err().to_string()
    }

    /// Goal: profiles follow the ConfigMap; what is not understood, or cannot be loaded, is no hole.
    #[tokio::test]
    async fn profiles_follow_the_config_map_and_a_broken_one_changes_nothing() {
        let cluster = Cluster::start().await;
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler { is_here: false, ..Compiler::new("/nowhere".into()) };
        let tools = Tools {
            registries_file: folder.path().join("registries.yaml"),
            proxies: Proxies::default(),
            compiler: CodeCompiler::new(compiler, CodeMetrics::default()),
            folder: folder.path().join("plugins"),
            sandboxes: Sandboxes::default(),
            metrics: PluginMetrics::default(),
            clock: cluster.clock.clone(),
            rng: Rng::seeded(3),
        };
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), CONFIG_NAMESPACE);
        let (told, mut profiles) = watch::channel(Profiles::new());
        let tasks = TaskGroup::new(&CancellationToken::new());
        let keeper = Keeper::new(cluster.client.clone(), told, tools);
        tasks.spawn("plugins", |cancel| keeper.run(cancel));
        maps.create(&PostParams::default(), &map(GOOD)).await.unwrap();
        let now =
            profiles.wait_for(|profiles| profiles.contains_key("cool")).await.unwrap().clone();
        assert_eq!(ask(&now), "it is not loaded yet");
        let params = PatchParams::default();
        for (text, count) in [("profiles: x", 1), (GOOD, 1), (&GOOD.replace("cool", "warm"), 1)] {
            let patch = Patch::Merge(map(text));
            maps.patch(CONFIG_NAME, &params, &patch).await.unwrap();
            assert_eq!(profiles.borrow().len(), count, "{text}");
        }
        profiles.wait_for(|profiles| profiles.contains_key("warm")).await.unwrap();
        maps.delete(CONFIG_NAME, &DeleteParams::default()).await.unwrap();
        profiles.wait_for(Profiles::is_empty).await.unwrap();
        tasks.shutdown(GRACE).await;
    }
}
