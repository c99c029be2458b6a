//! Keeps the files of running pods' volumes up to date: one task for the whole node.
//!
//! Data in: the pods of this node, and a watch for each ConfigMap and Secret that their volumes
//! name (one stream per object, as the kubelet has it: a node sees only what its pods need). Data
//! out: volumes swapped whole, copies for a start without the API, renewed tokens.
//!
//! # Invariants
//!
//! - Level-triggered: an update is computed from the newest that is known, never from an event.
//! - An object that went away, or cannot be read, leaves the files as they are.
//! - What is marked `immutable` is not watched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agent::backlog::Backlog;
use crate::agent::dirs::PodDir;
use crate::agent::pod::api::PodApi;
use crate::agent::pod::env::Sources;
use crate::agent::pod::objects::{NodeSources, named_by_volumes};
use crate::agent::pod::plan::is_terminal;
use crate::agent::pod::volumes::{is_filled, token, update_volumes, volumes_of};
use crate::client::{Informer, informer, revision_of};
use crate::rt::TaskGroup;

/// Changes within this time become one update of a volume.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Longest pause between two looks at tokens: the wall clock may have been set meanwhile.
const TOKEN_LOOK_MAX: Duration = Duration::from_secs(60);
/// Pause before a token that could not be renewed is tried again.
const TOKEN_RETRY: Duration = Duration::from_secs(5);

/// Namespace and name.
type Name = (String, String);

/// When something is to be done, by both clocks: the one stands still while the machine sleeps, the other
/// may be set. The first of them counts.
#[derive(Debug, Clone, Copy)]
struct Due {
    passed: Instant,
    time: Timestamp,
}

impl Due {
    fn after(wait: Duration, now: Timestamp) -> Option<Self> {
        Some(Self { passed: Instant::now().checked_add(wait)?, time: now.checked_add(wait).ok()? })
    }

    /// Whether so much time has gone by, and whether that or the time of day says that it is due.
    fn is_now(self, now: Timestamp) -> (bool, bool) {
        let is_over = Instant::now() >= self.passed;
        (is_over, is_over || now >= self.time)
    }
}

/// What the task works with.
pub(crate) struct Live {
    pub(crate) api: Arc<dyn PodApi>,
    pub(crate) client: kube::Client,
    pub(crate) node: Arc<NodeSources>,
    pub(crate) pods: Informer<Pod>,
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) allocatable: (u64, u64),
    pub(crate) tasks: TaskGroup,
}

/// The watches of one kind.
struct Watches<K> {
    open: BTreeMap<Name, (Informer<K>, TaskGroup)>,
    /// Seen to be immutable: not watched while a pod names it.
    frozen: BTreeSet<Name>,
}

impl<K> Default for Watches<K> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), frozen: BTreeSet::new() }
    }
}

/// What is looked at of an object beside its content.
trait Watched:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + PartialEq
    + Serialize
    + DeserializeOwned
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// As in the names of the copies.
    const KIND: &'static str;
    fn is_immutable(&self) -> bool;
}

impl Watched for ConfigMap {
    const KIND: &'static str = "configmap";
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl Watched for Secret {
    const KIND: &'static str = "secret";
    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl<K: Watched> Watches<K> {
    /// Watches what is wanted and nothing else.
    fn want(
        &mut self,
        wanted: &BTreeSet<Name>,
        client: &kube::Client,
        tasks: &TaskGroup,
        wake: &Arc<Notify>,
    ) {
        self.frozen.retain(|name| wanted.contains(name));
        let frozen: Vec<Name> = self
            .open
            .iter()
            .filter(|(_, (informer, _))| {
                informer.store.state().iter().any(|object| object.is_immutable())
            })
            .map(|(name, _)| name.clone())
            .collect();
        self.frozen.extend(frozen);
        self.open.retain(|name, (_, tasks)| {
            let is_kept = wanted.contains(name) && !self.frozen.contains(name);
            if !is_kept {
                tasks.token().cancel();
            }
            is_kept
        });
        for name in wanted {
            if self.open.contains_key(name) || self.frozen.contains(name) {
                continue;
            }
            let tasks = tasks.child();
            let api: Api<K> = Api::namespaced(client.clone(), &name.0);
            let config = watcher::Config::default().fields(&format!("metadata.name={}", name.1));
            let informer = informer(api, config, &tasks);
            let wake = Arc::downgrade(wake);
            let wake_of_first = std::sync::Weak::clone(&wake);
            informer.subscribe(Box::new(move |_| {
                let wake = wake.upgrade();
                wake.iter().for_each(|wake| wake.notify_one());
                wake.is_some()
            }));
            // That there is nothing is news, too.
            let (first, wake) = (informer.store.clone(), wake_of_first);
            tasks.spawn_until_cancelled("first-list", async move {
                first.wait_until_ready().await;
                wake.upgrade().iter().for_each(|wake| wake.notify_one());
            });
            self.open.insert(name.clone(), (informer, tasks));
        }
    }

    fn sight(&self, name: &Name) -> Sight<K> {
        let Some((informer, _)) = self.open.get(name) else { return Sight::Unknown };
        match informer.store.state().pop() {
            Some(object) => Sight::There(object),
            None if informer.store.is_ready() => Sight::Gone,
            None => Sight::Unknown,
        }
    }

    fn version(&self, name: &Name) -> Sight<String> {
        match self.sight(name) {
            Sight::There(object) => {
                let version = object.meta().resource_version.clone();
                Sight::There(Arc::new(version.unwrap_or_default()))
            }
            Sight::Gone => Sight::Gone,
            Sight::Unknown => Sight::Unknown,
        }
    }

    /// The objects of these names, as watched.
    fn seen(&self, names: &[Name]) -> Vec<(String, Sight<K>)> {
        names.iter().map(|name| (name.1.clone(), self.sight(name))).collect()
    }
}

/// What a watch says of an object.
#[derive(Debug, PartialEq)]
enum Sight<T> {
    There(Arc<T>),
    /// It was removed, or was never there.
    Gone,
    /// The watch has not begun, or there is none.
    Unknown,
}

/// The newest of an object that is known: as watched, or as the pod's start read it. Blocks on the
/// disk.
fn newest_of<K: Watched>(name: &str, seen: Sight<K>, dir: &PodDir) -> Option<K> {
    let copy: Option<K> = dir.kept(K::KIND, name);
    match (seen, copy) {
        (Sight::There(seen), Some(copy)) if !is_newer(&*seen, &copy) => Some(copy),
        (Sight::There(seen), _) => {
            // The copy is for a start without the API; without it the pod has an older one.
            if let Err(err) = dir.keep(K::KIND, name, &*seen) {
                debug!(%err, "an object's copy was not written");
            }
            Some(K::clone(&seen))
        }
        // The copy stays: a pod that needs the object starts from it while nobody can be asked.
        (Sight::Gone, _) => None,
        (Sight::Unknown, copy) => copy,
    }
}

fn is_newer<K: Resource>(one: &K, than: &K) -> bool {
    one.meta().uid != than.meta().uid || revision_of(one) > revision_of(than)
}

/// What is known of one pod's files.
struct Seen {
    maps: Vec<Name>,
    secrets: Vec<Name>,
    /// What the files were made of; `None`: to be looked at.
    made_of: Option<Stamp>,
    /// The pod's start has written its volumes.
    is_written: bool,
    renew_at: Option<Due>,
}

/// Everything that can change in a pod's files, but for its tokens.
#[derive(PartialEq)]
struct Stamp {
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    versions: Vec<Sight<String>>,
}

impl Seen {
    fn new(pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let full = |names: BTreeSet<String>| {
            names.into_iter().map(|name| (namespace.clone(), name)).collect()
        };
        let (maps, secrets) = named_by_volumes(pod);
        Self {
            maps: full(maps),
            secrets: full(secrets),
            made_of: None,
            is_written: false,
            renew_at: None,
        }
    }

    fn stamp(&self, pod: &Pod, watches: &(Watches<ConfigMap>, Watches<Secret>)) -> Stamp {
        let maps = self.maps.iter().map(|name| watches.0.version(name));
        let secrets = self.secrets.iter().map(|name| watches.1.version(name));
        Stamp {
            labels: pod.metadata.labels.clone(),
            annotations: pod.metadata.annotations.clone(),
            versions: maps.chain(secrets).collect(),
        }
    }
}

impl Live {
    /// Follows the pods of this node until `cancel`.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let wake = Arc::clone(&self.node.written.wake);
        let mut watches: (Watches<ConfigMap>, Watches<Secret>) = Default::default();
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        let mut pods_changed = self.pods.changed();
        if cancel.run_until_cancelled(self.pods.ready()).await != Some(true) {
            return;
        }
        loop {
            pods_changed.borrow_and_update();
            let state = self.pods.store.state().into_iter();
            let pods: BTreeMap<String, Arc<Pod>> =
                state.filter_map(|pod| Some((pod.metadata.uid.clone()?, pod))).collect();
            let started = self.look(&pods, &mut seen);
            self.sync(started).await;
            self.watch(&seen, &mut watches, &wake);
            for (uid, pod) in &pods {
                if let Some(seen) = seen.get_mut(uid) {
                    self.catch_up(uid, pod, seen, &watches).await;
                }
            }
            let pause = self.pause(&seen);
            tokio::select! {
                () = cancel.cancelled() => return,
                more = pods_changed.changed() => if more.is_err() { return },
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            tokio::time::sleep(DEBOUNCE).await;
        }
    }

    /// Takes note of pods that came, went, or were started (again); returns the latter.
    fn look(
        &self,
        pods: &BTreeMap<String, Arc<Pod>>,
        seen: &mut BTreeMap<String, Seen>,
    ) -> Vec<String> {
        seen.retain(|uid, _| pods.get(uid).is_some_and(|pod| has_live(pod)));
        for (uid, pod) in pods.iter().filter(|(_, pod)| has_live(pod)) {
            seen.entry(uid.clone()).or_insert_with(|| Seen::new(pod));
        }
        let mut written = self.node.written.pods.lock();
        let (known, unknown): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *written).into_iter().partition(|uid| pods.contains_key(uid));
        // Started from disk, and not yet in the cache: later.
        written.extend(unknown.into_iter().filter(|uid| self.node.dirs.pod(uid).path().is_dir()));
        drop(written);
        for uid in &known {
            if let Some(seen) = seen.get_mut(uid) {
                (seen.is_written, seen.made_of, seen.renew_at) = (true, None, None);
            }
        }
        known
    }

    /// Brings what a start has written to the disk: the start itself did not wait.
    async fn sync(&self, started: Vec<String>) {
        let dirs = self.node.dirs.clone();
        let sync = move || {
            for uid in started {
                // The pod may be gone by now, and its next start makes new copies.
                let _ = dirs.pod(&uid).sync();
            }
        };
        let _ = self.tasks.block("copies-sync", sync).await;
    }

    fn watch(
        &self,
        seen: &BTreeMap<String, Seen>,
        watches: &mut (Watches<ConfigMap>, Watches<Secret>),
        wake: &Arc<Notify>,
    ) {
        let all = |names: fn(&Seen) -> &Vec<Name>| -> BTreeSet<Name> {
            seen.values().filter(|pod| pod.is_written).flat_map(names).cloned().collect()
        };
        watches.0.want(&all(|pod| &pod.maps), &self.client, &self.tasks, wake);
        watches.1.want(&all(|pod| &pod.secrets), &self.client, &self.tasks, wake);
    }

    /// Brings the volumes of one pod up to date, if anything they are made of has changed.
    async fn catch_up(
        &self,
        uid: &str,
        pod: &Arc<Pod>,
        seen: &mut Seen,
        watches: &(Watches<ConfigMap>, Watches<Secret>),
    ) {
        let now = self.node.clock.now();
        let stamp = seen.stamp(pod, watches);
        let (is_over, is_due) = seen.renew_at.map_or((false, false), |due| due.is_now(now));
        if !seen.is_written || (!is_due && seen.made_of.as_ref() == Some(&stamp)) {
            return;
        }
        let dir = self.node.dirs.pod(uid);
        let backlog = Backlog::default();
        let tokens = match token::collect(&*self.api, pod, (&dir, &backlog), now, is_over).await {
            Ok(tokens) => tokens,
            Err(err) => {
                debug!(%err, k8s.pod.name = pod.metadata.name, "a token was not renewed");
                seen.renew_at = Due::after(TOKEN_RETRY, now);
                return;
            }
        };
        let (maps, secrets) = (watches.0.seen(&seen.maps), watches.1.seen(&seen.secrets));
        let mut sources = Sources {
            tokens,
            host_ips: self.host_ips.clone(),
            allocatable: self.allocatable,
            ephemeral_bytes: self.node.ephemeral_bytes,
            ..Sources::default()
        };
        let (of, at) = (Arc::clone(pod), dir.clone());
        let write = move || {
            sources.config_maps = newest(maps, &at);
            sources.secrets = newest(secrets, &at);
            sources.ips = at.read_addresses();
            at.write_down(backlog)?;
            Ok::<_, std::io::Error>(update_volumes(&of, &at, &sources))
        };
        match self.tasks.block("volumes-update", write).await {
            Some(Ok((changed, failed))) => {
                // An object that a running pod needs was removed: its files stay as they are.
                if let Some(err) = failed {
                    debug!(%err, k8s.pod.name = pod.metadata.name, "volume not updated");
                }
                for volume in changed {
                    info!(
                        k8s.namespace.name = pod.metadata.namespace,
                        k8s.pod.name = pod.metadata.name,
                        volume,
                        "volume updated"
                    );
                }
            }
            Some(Err(err)) => debug!(%err, k8s.pod.name = pod.metadata.name, "tokens not kept"),
            None => {}
        }
        seen.made_of = Some(stamp);
        // A token that is still the old one could not be renewed: again soon.
        let next = token::next_renewal(pod, &dir, now).map(|at| {
            Duration::try_from(at.duration_since(now)).unwrap_or_default().max(TOKEN_RETRY)
        });
        seen.renew_at = next.and_then(|wait| Due::after(wait, now));
    }

    /// Until when there is nothing to do for tokens.
    fn pause(&self, seen: &BTreeMap<String, Seen>) -> Duration {
        let next = seen.values().filter_map(|pod| pod.renew_at).map(|due| due.passed).min();
        next.map_or(Duration::MAX, |next| {
            next.saturating_duration_since(Instant::now()).min(TOKEN_LOOK_MAX)
        })
    }
}

fn newest<K: Watched>(seen: Vec<(String, Sight<K>)>, dir: &PodDir) -> BTreeMap<String, Option<K>> {
    let known = |(name, seen): (String, Sight<K>)| {
        let newest = newest_of(&name, seen, dir);
        (name, newest)
    };
    seen.into_iter().map(known).collect()
}

/// Whether the pod runs and has a volume that the agent fills.
fn has_live(pod: &Pod) -> bool {
    !is_terminal(pod) && volumes_of(pod).any(is_filled)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    fn map(uid: &str, version: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"uid": uid, "resourceVersion": version}}))
            .unwrap()
    }

    #[test]
    fn the_newer_of_two_versions_counts_and_another_object_always() {
        assert!(is_newer(&map("a", "10"), &map("a", "9")));
        assert!(!is_newer(&map("a", "9"), &map("a", "10")));
        assert!(!is_newer(&map("a", "10"), &map("a", "10")));
        assert!(is_newer(&map("b", "1"), &map("a", "10")));
    }

    /// An API with one object, which notes what it is asked for.
    fn client(object: serde_json::Value, asked: Arc<Mutex<Vec<String>>>) -> kube::Client {
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let uri = request.uri().to_string();
            let is_watch = uri.contains("watch=");
            asked.lock().push(uri);
            let list = json!({"metadata": {"resourceVersion": "5"}, "items": [object]});
            async move {
                if is_watch {
                    std::future::pending::<()>().await;
                }
                let body = http_body_util::Full::new(bytes::Bytes::from(list.to_string()));
                Ok::<_, std::convert::Infallible>(http::Response::new(body))
            }
        });
        kube::Client::new(service, "default")
    }

    #[tokio::test]
    async fn an_object_is_watched_by_its_name_until_it_is_seen_to_be_immutable() {
        for is_immutable in [false, true] {
            let asked = Arc::new(Mutex::new(Vec::new()));
            let object = json!({"metadata": {"namespace": "n", "name": "c", "uid": "u",
                "resourceVersion": "5"}, "immutable": is_immutable});
            let client = client(object, Arc::clone(&asked));
            let tasks = TaskGroup::new(&CancellationToken::new());
            let wake = Arc::new(Notify::new());
            let name = ("n".to_owned(), "c".to_owned());
            let wanted = BTreeSet::from([name.clone()]);
            let mut watches = Watches::<ConfigMap>::default();
            watches.want(&wanted, &client, &tasks, &wake);
            // What is seen first wakes the task.
            wake.notified().await;
            assert_eq!(watches.version(&name), Sight::There(Arc::new("5".to_owned())));
            watches.want(&wanted, &client, &tasks, &wake);
            assert_eq!(watches.open.contains_key(&name), !is_immutable);
            assert!(asked.lock().iter().all(|uri| uri.contains("metadata.name%3Dc")));
            watches.want(&BTreeSet::new(), &client, &tasks, &wake);
            assert!(watches.open.is_empty() && watches.frozen.is_empty());
        }
    }

    #[test]
    fn a_pod_without_filled_volumes_or_that_has_ended_is_left_alone() {
        let pod = |volume: serde_json::Value, phase: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "volumes": [volume]},
                "status": {"phase": phase}}))
            .unwrap()
        };
        let filled = json!({"name": "v", "configMap": {"name": "c"}});
        assert!(has_live(&pod(filled.clone(), "Running")));
        assert!(!has_live(&pod(filled, "Succeeded")));
        assert!(!has_live(&pod(json!({"name": "v", "emptyDir": {}}), "Running")));
    }

    #[test]
    fn a_pod_that_was_removed_gets_no_secrets_any_more() {
        let root = tempfile::tempdir().unwrap();
        let dirs = crate::agent::dirs::Dirs::create(root.path().to_owned()).unwrap();
        let (dir, seen) = (dirs.pod("u"), || Sight::There(Arc::new(map("a", "2"))));
        dir.create().unwrap();
        assert_eq!(newest_of("c", seen(), &dir), Some(map("a", "2")));
        assert_eq!(newest_of::<ConfigMap>("c", Sight::Unknown, &dir), Some(map("a", "2")), "kept");
        assert_eq!(newest_of::<ConfigMap>("c", Sight::Gone, &dir), None, "but not for ever");
        dir.remove().unwrap();
        assert_eq!(newest_of("c", seen(), &dir), Some(map("a", "2")));
        assert!(dirs.all_pods().unwrap().is_empty(), "it came back");
    }
}
