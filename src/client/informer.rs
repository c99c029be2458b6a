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

use crate::client::interned::Interned;
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
    start(api, config, None, tasks)
}

/// As [`informer`], for a kind that others in this process follow as well: they keep in `interned` what
/// they hold, and each version is there once.
#[must_use]
pub fn informer_among<K>(
    api: Api<K>,
    config: watcher::Config,
    interned: Interned<K>,
    tasks: &TaskGroup,
) -> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    start(api, config, Some(interned), tasks)
}

fn start<K>(
    api: Api<K>,
    config: watcher::Config,
    interned: Option<Interned<K>>,
    tasks: &TaskGroup,
) -> Informer<K>
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
        interned,
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
    /// What other informers of this process hold of the same kind.
    interned: Option<Interned<K>>,
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

impl<K: Resource + Clone> Feed<K> {
    fn apply(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                self.listed.insert(key_of(&object), self.packed(&object));
            }
            Event::InitDone => {
                self.replace();
                self.interned.iter().for_each(Interned::sweep);
            }
            Event::Apply(object) => self.put(&object),
            Event::Delete(object) => self.remove(object),
        }
    }

    /// As large as what is in it, see [`Interned::keep`].
    fn packed(&self, object: &K) -> Arc<K> {
        match &self.interned {
            Some(interned) => interned.keep(object),
            None => Arc::new(object.clone()),
        }
    }

    fn put(&self, object: &K) {
        let object = self.packed(object);
        let mut handlers = self.shared.handlers.lock();
        let old = self.store.insert(&object);
        self.saw(&object);
        tell(&mut handlers, &Change::Applied { old: old.as_ref(), new: &object });
        drop(handlers);
        self.announce();
    }

    fn remove(&self, object: K) {
        self.interned.iter().for_each(|interned| interned.forget(&object));
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
#[path = "informer_test.rs"]
mod informer_test;
