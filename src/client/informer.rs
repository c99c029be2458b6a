//! List, then watch, for ever: a cache of one kind, and word of every change in it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::client::retry::{Backoff, RetryLimits};
use crate::client::store::{Key, Store, key_of};
use crate::rt::{Rng, TaskGroup};

/// Waits between attempts to list or watch: short, since a leader is replaced within two seconds.
const WATCH_RETRY: RetryLimits =
    RetryLimits { delay_min: Duration::from_millis(50), delay_max: Duration::from_secs(2) };
/// A failure is worth a warning when this many came in a row; one is an ordinary reconnect.
const FAILURES_BEFORE_WARNING: u32 = 5;

/// What happened to one object, told after the cache holds it.
#[derive(Debug)]
pub enum Change<'a, K> {
    /// The object is new (`old` is `None`) or differs from `old`.
    Applied {
        /// What the cache held before.
        old: Option<&'a Arc<K>>,
        /// What it holds now.
        new: &'a Arc<K>,
    },
    /// The object is gone; this is how it was last seen.
    Removed(&'a Arc<K>),
}

impl<K> Change<'_, K> {
    /// The object as it is now, or was last.
    #[must_use]
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Applied { new, .. } => new,
            Self::Removed(object) => object,
        }
    }
}

/// Hears of every change, in order, until it returns `false`.
///
/// Must return at once: it runs on the informer's task.
pub type Handler<K> = Box<dyn FnMut(&Change<'_, K>) -> bool + Send>;

/// A cache of one kind that follows the server's watch. Cheap to clone; all clones are one.
pub struct Informer<K> {
    /// The cache.
    pub store: Store<K>,
    shared: Arc<Shared<K>>,
    changes: watch::Receiver<u64>,
}

struct Shared<K> {
    /// Held while a handler runs, so that a new subscriber misses nothing and hears nothing twice.
    handlers: Mutex<Vec<Handler<K>>>,
    /// The highest resourceVersion seen on any object.
    revision: AtomicU64,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            shared: Arc::clone(&self.shared),
            changes: self.changes.clone(),
        }
    }
}

impl<K> fmt::Debug for Informer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Informer").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Starts to follow what `api` lists under `config`. Ends with `tasks`.
///
/// Failures are retried for ever, with back-off and jitter; the cache keeps what it has meanwhile.
#[must_use]
pub fn informer<K>(api: Api<K>, config: watcher::Config, tasks: &TaskGroup) -> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    let (ready_tx, ready_rx) = watch::channel(false);
    let (changes_tx, changes_rx) = watch::channel(0);
    let store = Store::new(ready_rx);
    let shared = Arc::new(Shared { handlers: Mutex::new(Vec::new()), revision: AtomicU64::new(0) });
    let feed = Feed {
        store: store.clone(),
        shared: Arc::clone(&shared),
        listed: BTreeMap::new(),
        ready: ready_tx,
        changes: changes_tx,
    };
    tasks.spawn_until_cancelled("informer", follow(api, config, feed));
    Informer { store, shared, changes: changes_rx }
}

impl<K> Informer<K>
where
    K: Resource + 'static,
{
    /// Waits for the first complete list. Returns `false` when the informer ended before it.
    pub async fn ready(&self) -> bool {
        self.store.wait_until_ready().await
    }

    /// Counts the changes seen; wakes a loop that works from the state, not from events.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Counts the changes of what `facts` says of each object, and objects that come and go: for a
    /// loop that works from a part of each, and need not hear of the rest. `facts` must return at once.
    #[must_use]
    pub fn changed_in<F>(&self, facts: impl Fn(&K) -> F + Send + 'static) -> watch::Receiver<u64>
    where
        F: PartialEq,
    {
        let (changes, changed) = watch::channel(0_u64);
        self.subscribe(Box::new(move |change| {
            let is_news = match change {
                Change::Applied { old: Some(old), new } => facts(old) != facts(new),
                Change::Applied { old: None, .. } | Change::Removed(_) => true,
            };
            if is_news {
                changes.send_modify(|count| *count = count.wrapping_add(1));
            }
            changes.receiver_count() > 0
        }));
        changed
    }

    /// Tells `handler` of every object there is, then of every change, until it returns `false`
    /// or the informer ends.
    pub fn subscribe(&self, mut handler: Handler<K>) {
        let mut handlers = self.shared.handlers.lock();
        let state = self.store.state();
        let wants_more = state.iter().all(|new| handler(&Change::Applied { old: None, new }));
        if wants_more {
            handlers.push(handler);
        }
    }

    /// Waits until the cache shows the write that was answered with `resource_version`, so that
    /// what is read next holds one's own writes. Returns `false` after `patience`.
    ///
    /// Only for durable kinds: they share one counter, and a later write of the kind does as well.
    pub async fn catch_up(&self, resource_version: u64, patience: Duration) -> bool {
        self.settled(patience, |_| self.revision() >= resource_version).await
    }

    /// Waits until the cache is as `is_settled` wants it. Returns `false` after `patience`.
    pub async fn settled(
        &self,
        patience: Duration,
        is_settled: impl Fn(&Store<K>) -> bool,
    ) -> bool {
        let mut changes = self.changes.clone();
        let seen = changes.wait_for(|_| is_settled(&self.store));
        matches!(tokio::time::timeout(patience, seen).await, Ok(Ok(_)))
    }

    /// The highest resourceVersion seen on any object; 0 before the first.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared.revision.load(Ordering::Acquire)
    }
}

/// The one writer of a store.
struct Feed<K> {
    store: Store<K>,
    shared: Arc<Shared<K>>,
    listed: BTreeMap<Key, Arc<K>>,
    ready: watch::Sender<bool>,
    changes: watch::Sender<u64>,
}

async fn follow<K>(api: Api<K>, config: watcher::Config, mut feed: Feed<K>)
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    let url = api.resource_url().to_owned();
    let mut backoff = Backoff::new(WATCH_RETRY, Rng::from_os());
    let start = || watcher::watcher(api.clone(), config.clone()).boxed();
    let mut events = start();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // That a list was begun proves nothing.
                if !matches!(event, Event::Init | Event::InitApply(_)) {
                    backoff.reset();
                }
                feed.apply(event);
            }
            Err(err) => {
                // The watcher itself lists again for an event of that kind, but not for an answer.
                if is_gone(&err) {
                    events = start();
                }
                let delay = backoff.next_delay();
                if backoff.attempts() == FAILURES_BEFORE_WARNING {
                    warn!(url, %err, attempt = backoff.attempts(), "watch keeps failing");
                } else {
                    debug!(url, %err, attempt = backoff.attempts(), "watch interrupted");
                }
                tokio::time::sleep(delay).await;
            }
        }
    }
}

/// Whether the revision that the watch was to go on from is no longer in the history.
fn is_gone(err: &watcher::Error) -> bool {
    matches!(err, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// As large as what is in it: what was decoded has room for more in each of its lists, which is some KiB
/// of a Pod.
fn packed<K: Clone>(object: &K) -> Arc<K> {
    Arc::new(object.clone())
}

impl<K: Resource + Clone> Feed<K> {
    fn apply(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                self.listed.insert(key_of(&object), packed(&object));
            }
            Event::InitDone => self.replace(),
            Event::Apply(object) => self.put(&object),
            Event::Delete(object) => self.remove(object),
        }
    }

    fn put(&self, object: &K) {
        let object = packed(object);
        let mut handlers = self.shared.handlers.lock();
        let old = self.store.insert(&object);
        self.saw(&object);
        tell(&mut handlers, &Change::Applied { old: old.as_ref(), new: &object });
        drop(handlers);
        self.announce();
    }

    fn remove(&self, object: K) {
        let object = Arc::new(object);
        let mut handlers = self.shared.handlers.lock();
        self.store.remove(&key_of(object.as_ref()));
        self.saw(&object);
        tell(&mut handlers, &Change::Removed(&object));
        drop(handlers);
        self.announce();
    }

    /// Swaps a complete list in, and tells what differs from the one before.
    fn replace(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let mut handlers = self.shared.handlers.lock();
        let mut before = self.store.swap(listed.clone());
        for (key, object) in &listed {
            self.saw(object);
            let old = before.remove(key);
            let is_same = old.as_ref().is_some_and(|old| {
                old.meta().resource_version.is_some()
                    && old.meta().resource_version == object.meta().resource_version
                    && old.meta().uid == object.meta().uid
            });
            if !is_same {
                tell(&mut handlers, &Change::Applied { old: old.as_ref(), new: object });
            }
        }
        for object in before.values() {
            tell(&mut handlers, &Change::Removed(object));
        }
        drop(handlers);
        self.ready.send_replace(true);
        self.announce();
    }

    fn saw(&self, object: &Arc<K>) {
        if let Some(revision) = revision_of(object.as_ref()) {
            self.shared.revision.fetch_max(revision, Ordering::AcqRel);
        }
    }

    fn announce(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

fn tell<K>(handlers: &mut Vec<Handler<K>>, change: &Change<'_, K>) {
    handlers.retain_mut(|handler| handler(change));
}

/// An object's resourceVersion as the number our own server writes; `None` when it has none.
#[must_use]
pub fn revision_of<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use kube::ResourceExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn object(name: &str, revision: u64) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.into()),
            namespace: Some("default".into()),
            uid: Some(name.into()),
            resource_version: Some(revision.to_string()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    fn feed() -> (Feed<ConfigMap>, Informer<ConfigMap>) {
        let (ready, ready_rx) = watch::channel(false);
        let (changes, changes_rx) = watch::channel(0);
        let store = Store::new(ready_rx);
        let shared =
            Arc::new(Shared { handlers: Mutex::new(Vec::new()), revision: AtomicU64::new(0) });
        let informer =
            Informer { store: store.clone(), shared: Arc::clone(&shared), changes: changes_rx };
        (Feed { store, shared, listed: BTreeMap::new(), ready, changes }, informer)
    }

    fn list(feed: &mut Feed<ConfigMap>, objects: &[(&str, u64)]) {
        feed.apply(Event::Init);
        for (name, revision) in objects {
            feed.apply(Event::InitApply(object(name, *revision)));
        }
        feed.apply(Event::InitDone);
    }

    /// A handler that writes down what it hears, such as `+a` and `-a`.
    fn listen(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&heard);
        informer.subscribe(Box::new(move |change| {
            let sign = match change {
                Change::Applied { old: None, .. } => '+',
                Change::Applied { old: Some(_), .. } => '~',
                Change::Removed(_) => '-',
            };
            notes.lock().push(format!("{sign}{}", change.object().name_any()));
            true
        }));
        heard
    }

    /// A server with one empty list, which it counts. The first watch gets `answer`, the others
    /// hang.
    fn scripted(code: u16, answer: &'static str) -> (Api<ConfigMap>, Arc<AtomicU64>) {
        let (lists, watches) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&lists);
        let router = axum::Router::new().fallback(move |uri: http::Uri| {
            let (lists, watches) = (Arc::clone(&counted), Arc::clone(&watches));
            async move {
                let ok = http::StatusCode::OK;
                if !uri.query().unwrap_or_default().contains("watch=") {
                    lists.fetch_add(1, Ordering::Relaxed);
                    return (ok, EMPTY);
                }
                if watches.fetch_add(1, Ordering::Relaxed) > 0 {
                    std::future::pending::<()>().await;
                }
                (http::StatusCode::from_u16(code).unwrap(), answer)
            }
        });
        let client = crate::client::in_process(router, "system:kube-test", &[]);
        (Api::namespaced(client, "default"), lists)
    }

    const EMPTY: &str = r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
    const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}"#;
    const GONE_EVENT: &str = concat!(
        r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#,
        "\n"
    );

    #[tokio::test(start_paused = true)]
    async fn a_revision_that_is_gone_leads_to_a_new_list_however_it_is_told() {
        for (code, answer) in [(410, GONE), (200, GONE_EVENT)] {
            let (api, lists) = scripted(code, answer);
            let tasks = TaskGroup::new(&CancellationToken::new());
            let informer = informer(api, watcher::Config::default(), &tasks);
            assert!(informer.ready().await);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(lists.load(Ordering::Relaxed), 2, "{code}");
            tasks.shutdown(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_keeps_failing_is_asked_for_less_and_less() {
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let router = axum::Router::new().fallback(move || {
            count.fetch_add(1, Ordering::Relaxed);
            async { http::StatusCode::SERVICE_UNAVAILABLE }
        });
        let client = crate::client::in_process(router, "system:kube-test", &[]);
        let api: Api<ConfigMap> = Api::namespaced(client, "default");
        let tasks = TaskGroup::new(&CancellationToken::new());
        let _informer = informer(api, watcher::Config::default(), &tasks);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let asked = asked.load(Ordering::Relaxed);
        assert!((10..40).contains(&asked), "{asked}");
        tasks.shutdown(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn a_second_list_tells_only_what_differs() {
        let (mut feed, informer) = feed();
        let heard = listen(&informer);
        list(&mut feed, &[("a", 1), ("b", 2), ("c", 3)]);
        assert!(informer.ready().await);
        heard.lock().clear();
        list(&mut feed, &[("a", 1), ("b", 7), ("d", 8)]);
        assert_eq!(*heard.lock(), ["~b", "+d", "-c"]);
        assert_eq!(informer.store.len(), 3);
    }

    #[tokio::test]
    async fn a_late_subscriber_hears_of_what_is_there_and_of_what_comes() {
        let (mut feed, informer) = feed();
        list(&mut feed, &[("b", 2), ("a", 1)]);
        let heard = listen(&informer);
        feed.apply(Event::Apply(object("a", 3)));
        feed.apply(Event::Delete(object("b", 4)));
        assert_eq!(*heard.lock(), ["+a", "+b", "~a", "-b"]);
    }

    #[tokio::test]
    async fn who_looks_at_a_part_of_each_object_does_not_hear_of_the_rest() {
        let (mut feed, informer) = feed();
        list(&mut feed, &[("a", 1)]);
        let labelled = |name: &str, revision, label: &str| {
            let mut object = object(name, revision);
            object.metadata.labels = Some([("l".to_owned(), label.to_owned())].into());
            object
        };
        let mut changed = informer.changed_in(|one| one.metadata.labels.clone());
        changed.borrow_and_update();
        feed.apply(Event::Apply(object("a", 2)));
        assert!(!changed.has_changed().unwrap());
        for event in [
            Event::Apply(labelled("a", 3, "x")),
            Event::Apply(object("b", 4)),
            Event::Delete(object("b", 5)),
        ] {
            feed.apply(event);
            assert!(changed.has_changed().unwrap());
            changed.borrow_and_update();
        }
        feed.apply(Event::Apply(labelled("a", 6, "x")));
        assert!(!changed.has_changed().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_waits_until_it_sees_its_own_write() {
        let (mut feed, informer) = feed();
        list(&mut feed, &[("a", 1)]);
        assert!(!informer.catch_up(5, Duration::from_secs(1)).await);
        let write = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            feed.apply(Event::Apply(object("a", 5)));
        };
        let (seen, ()) = tokio::join!(informer.catch_up(5, Duration::from_secs(1)), write);
        assert!(seen);
    }

    #[tokio::test]
    async fn a_namespace_is_listed_in_order_and_alone() {
        let (mut feed, informer) = feed();
        list(&mut feed, &[("b", 1), ("a", 2)]);
        let mut other = object("x", 3);
        other.metadata.namespace = Some("default2".into());
        feed.apply(Event::Apply(other));
        let names: Vec<_> =
            informer.store.in_namespace("default").iter().map(|one| one.name_any()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
