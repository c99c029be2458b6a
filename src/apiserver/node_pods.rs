//! Changes of pods, sorted by node.
//!
//! Every agent watches the pods of its node, and of all changes of pods hardly any is its own. Were each
//! watcher woken for each change, a change would cost as many looks as there are nodes. Here one
//! task looks at every change once, and puts it into the boxes of the node that the pod is on, or was.
//!
//! ```text
//! store ─ one watch of all pods ─► sorter ─ by spec.nodeName ─► box ─► watcher
//! ```
//!
//! A box holds all changes of its node after a revision, its *floor*. Who wants older ones, or let
//! his box run over, reads the store himself until he is above the floor.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use crate::api::Resource;
use crate::apiserver::context::{Context, ContextInner};
use crate::store::{Batch, Change, Scope, Shown, StoreError, StoreWatch};

/// Changes that wait in a box; with more its watcher reads the store instead.
const BOX_CHANGES_MAX: usize = 16;
/// Pause before the sorter begins again after its watch broke.
const RETRY: Duration = Duration::from_millis(100);

/// The boxes of all nodes that somebody watches. Bounded by the watches.
#[derive(Debug, Default)]
pub(super) struct NodePods(Mutex<Sorter>);

#[derive(Debug, Default)]
struct Sorter {
    is_running: bool,
    /// Everything up to here is sorted; `None` before the sorter has begun.
    revision: Option<u64>,
    boxes: BTreeMap<String, Vec<Weak<Held>>>,
}

#[derive(Debug)]
struct Held {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    changes: VecDeque<Change>,
    /// All changes of the node after this revision are here, or were taken.
    floor: u64,
}

/// The box of one watcher.
#[derive(Debug)]
pub(super) struct NodeBox {
    hub: Arc<NodePods>,
    held: Arc<Held>,
}

fn node_of(pod: &Shown) -> Option<&str> {
    pod.object().pointer("/spec/nodeName").and_then(Value::as_str)
}

impl NodePods {
    /// A box for the pods of `node`. The first one starts the sorter.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        context: &Context,
        pods: &'static Resource,
        node: &str,
    ) -> NodeBox {
        let mut sorter = self.0.lock();
        if !sorter.is_running {
            sorter.is_running = true;
            let (hub, server) = (Arc::downgrade(self), Arc::downgrade(context));
            context.sessions.spawn_until_cancelled("pods-by-node", sort(hub, server, pods));
        }
        let state =
            Mutex::new(State { floor: sorter.revision.unwrap_or(u64::MAX), ..State::default() });
        let held = Arc::new(Held { state, wake: Notify::new() });
        let boxes = sorter.boxes.entry(node.to_owned()).or_default();
        boxes.retain(|held| held.strong_count() > 0);
        boxes.push(Arc::downgrade(&held));
        NodeBox { hub: Arc::clone(self), held }
    }

    /// From here on everything is sorted, and nothing before.
    fn begin(&self, revision: u64) {
        let mut sorter = self.0.lock();
        sorter.revision = Some(revision);
        sorter.boxes.retain(|_, boxes| {
            boxes.retain(|held| held.strong_count() > 0);
            !boxes.is_empty()
        });
        for held in sorter.boxes.values().flatten().filter_map(Weak::upgrade) {
            let mut state = held.state.lock();
            state.changes.clear();
            state.floor = revision;
            held.wake.notify_one();
        }
    }

    fn put(&self, batch: &Batch) {
        let mut sorter = self.0.lock();
        for change in &batch.changes {
            let now = change.current.as_deref().and_then(node_of);
            let before = change.previous.as_deref().and_then(node_of);
            for node in now.into_iter().chain(before.filter(|before| Some(*before) != now)) {
                sorter.tell(node, change);
            }
        }
        sorter.revision = Some(batch.revision);
    }
}

impl Sorter {
    fn tell(&mut self, node: &str, change: &Change) {
        let Some(boxes) = self.boxes.get_mut(node) else { return };
        boxes.retain(|held| {
            let Some(held) = held.upgrade() else { return false };
            held.put(change);
            true
        });
        if boxes.is_empty() {
            self.boxes.remove(node);
        }
    }
}

impl Held {
    fn put(&self, change: &Change) {
        let mut state = self.state.lock();
        if state.changes.len() >= BOX_CHANGES_MAX {
            state.changes.clear();
            state.floor = change.revision;
        } else {
            state.changes.push_back(change.clone());
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl NodeBox {
    /// The changes after `cursor`, and how far they reach; `None` when some of them are not here.
    pub(super) fn take(&self, cursor: u64) -> Option<Batch> {
        // Read first: what is sorted by now is in the box.
        let revision = self.hub.0.lock().revision.unwrap_or(0);
        let mut state = self.held.state.lock();
        if state.floor > cursor {
            return None;
        }
        let mut changes: Vec<Change> = state.changes.drain(..).collect();
        changes.retain(|change| change.revision > cursor);
        let last = changes.last().map_or(0, |change| change.revision);
        Some(Batch { changes, revision: revision.max(last).max(cursor) })
    }

    /// Whether all changes after `cursor` are here, or will be.
    pub(super) fn reaches(&self, cursor: u64) -> bool {
        self.held.state.lock().floor <= cursor
    }

    /// Waits until there may be something to take.
    ///
    /// # Cancel safety
    ///
    /// Safe: what has come is told the next time.
    pub(super) async fn changed(&self) {
        self.held.wake.notified().await;
    }
}

/// Sorts until the API server is gone.
async fn sort(hub: Weak<NodePods>, context: Weak<ContextInner>, pods: &'static Resource) {
    loop {
        let (Some(sorter), Some(server)) = (hub.upgrade(), context.upgrade()) else { return };
        let (scope, store) = (Scope::new(pods, None), &server.store);
        let revision = store.revision(&scope);
        let watch = store.watch(&scope, revision);
        drop(server);
        match watch {
            Ok(mut watch) => {
                sorter.begin(revision);
                drop(sorter);
                loop {
                    match watch.next().await {
                        Ok(batch) => match hub.upgrade() {
                            Some(sorter) => sorter.put(&batch),
                            None => return,
                        },
                        Err(err) => {
                            tracing::debug!(%err, "the watch of all pods broke");
                            break;
                        }
                    }
                }
            }
            Err(err) => tracing::debug!(%err, "cannot watch all pods"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What a watch follows: the store, or, once that has all that comes, a box.
#[derive(Debug)]
pub(super) struct Follow {
    context: Context,
    scope: Scope,
    /// `None`: the box is followed.
    watch: Option<StoreWatch>,
    node_box: Option<NodeBox>,
    /// Everything up to here was told.
    revision: u64,
}

impl Follow {
    /// All changes of `scope` after `revision`; those of pods on `node` at least, if one is named.
    ///
    /// # Errors
    ///
    /// See [`crate::store::Store::watch`].
    pub(super) fn new(
        context: Context,
        scope: Scope,
        node: Option<&str>,
        revision: u64,
    ) -> Result<Self, StoreError> {
        let watch = Some(context.store.watch(&scope, revision)?);
        let is_all_pods = scope.resource.plural == "pods" && scope.namespace.is_none();
        let node = node.filter(|node| is_all_pods && !node.is_empty());
        let node_box = node.map(|node| context.node_pods.subscribe(&context, scope.resource, node));
        Ok(Self { context, scope, watch, node_box, revision }.settled())
    }

    fn settled(mut self) -> Self {
        self.settle();
        self
    }

    /// Leaves the store for the box, if that has all that comes.
    fn settle(&mut self) {
        if self.node_box.as_ref().is_some_and(|node_box| node_box.reaches(self.revision)) {
            self.watch = None;
        }
    }

    /// Waits for changes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    ///
    /// As [`StoreWatch::next`].
    pub(super) async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            if let Some(watch) = &mut self.watch {
                let batch = watch.next().await?;
                self.revision = batch.revision;
                self.settle();
                return Ok(batch);
            }
            match self.taken() {
                Some(batch) if !batch.changes.is_empty() => return Ok(batch),
                Some(_) => {}
                None => self.watch = Some(self.context.store.watch(&self.scope, self.revision)?),
            }
            if let (None, Some(node_box)) = (&self.watch, &self.node_box) {
                node_box.changed().await;
            }
        }
    }

    /// What is there without waiting, if the box is followed: how far it reaches is news as well.
    pub(super) fn taken(&mut self) -> Option<Batch> {
        let node_box = self.node_box.as_ref().filter(|_| self.watch.is_none())?;
        let batch = node_box.take(self.revision)?;
        self.revision = batch.revision;
        Some(batch)
    }
}
