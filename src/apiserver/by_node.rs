//! Changes of pods and of Nodes, sorted by the node they concern.
//!
//! Every agent watches the pods of its node, and of all changes of pods hardly any is its own. It watches all
//! Nodes, and of most of their changes nothing is told to others. Were each watcher woken for each change,
//! a change would cost as many looks as there are nodes. Here one task looks at every change once, and
//! puts it into the boxes of the nodes that it concerns.
//!
//! ```text
//! store ─ one watch of all ─► sorter ─ by node ─► box ─► watcher
//! ```
//!
//! A box holds what changed for its node after a revision, its *floor*: of each object what it was and what
//! it is, so that a watcher that is late skips what was in between. Who wants older changes, or let his
//! box run over, reads the store himself until he is above the floor: when a server is lost, all its
//! watchers do so at others, at once. An index of the last changes tells them which they need to look at.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use crate::api::{Resource, meta};
use crate::apiserver::context::{Context, ContextInner};
use crate::apiserver::neighbours;
use crate::store::{Batch, Change, Scope, Shown, StoreError, StoreWatch};

/// Objects in a box; with more its watcher reads the store instead.
const BOX_OBJECTS_MAX: usize = 4096;
/// Changes in the index: those of a minute or so of a fleet that has much to do, in a few MiB.
const INDEX_MAX: usize = 32_768;
/// Pause before the sorter begins again after its watch broke.
const RETRY: Duration = Duration::from_millis(100);

/// The sorted collections of a server.
#[derive(Debug)]
pub(super) struct ByNode {
    pods: Arc<Hub>,
    nodes: Arc<Hub>,
}

impl Default for ByNode {
    fn default() -> Self {
        let hub = |concerned| Arc::new(Hub { concerned, sorter: Mutex::default() });
        Self { pods: hub(of_pod), nodes: hub(of_node) }
    }
}

impl ByNode {
    /// The one that has what a watch of `scope` on behalf of a node needs.
    fn of(&self, scope: &Scope) -> Option<&Arc<Hub>> {
        if !scope.resource.group.is_empty() || scope.namespace.is_some() {
            return None;
        }
        match scope.resource.plural {
            "pods" => Some(&self.pods),
            "nodes" => Some(&self.nodes),
            _ => None,
        }
    }
}

/// Whom a change concerns.
#[derive(Debug, Clone, Copy)]
enum Concerned<'a> {
    /// The node that the object was of, and the one that it is of.
    Nodes(Option<&'a str>, Option<&'a str>),
    All,
}

/// A pod concerns the node it is on.
fn of_pod(change: &Change) -> Concerned<'_> {
    fn node(pod: Option<&Arc<Shown>>) -> Option<&str> {
        pod?.object().pointer("/spec/nodeName").and_then(Value::as_str)
    }
    Concerned::Nodes(node(change.previous.as_ref()), node(change.current.as_ref()))
}

/// A Node concerns the node itself, and all if others are told of the change.
fn of_node(change: &Change) -> Concerned<'_> {
    if neighbours::are_told(change) {
        return Concerned::All;
    }
    let shown = change.current.as_ref().or(change.previous.as_ref());
    Concerned::Nodes(None, shown.map(|node| meta::name(node.object())))
}

/// The boxes of all nodes that somebody watches for. Bounded by the watches.
#[derive(Debug)]
struct Hub {
    concerned: fn(&Change) -> Concerned<'_>,
    sorter: Mutex<Sorter>,
}

#[derive(Debug, Default)]
struct Sorter {
    is_running: bool,
    /// Everything up to here is sorted; `None` before the sorter has begun.
    revision: Option<u64>,
    boxes: BTreeMap<String, Vec<Weak<Held>>>,
    index: Index,
}

/// The nodes that a change concerned; `None` is all.
type Named = Option<[Option<Box<str>>; 2]>;

/// Whom the last changes concerned.
#[derive(Debug, Default)]
struct Index {
    /// By revision.
    changes: VecDeque<(u64, Named)>,
    /// All changes after this one are here.
    floor: u64,
}

impl Index {
    fn put(&mut self, revision: u64, concerned: Concerned<'_>) {
        let nodes = match concerned {
            Concerned::All => None,
            Concerned::Nodes(before, now) => Some([before.filter(|_| before != now), now]),
        };
        self.changes
            .push_back((revision, nodes.map(|nodes| nodes.map(|name| name.map(Box::from)))));
        if self.changes.len() > INDEX_MAX
            && let Some((oldest, _)) = self.changes.pop_front()
        {
            self.floor = oldest;
        }
    }

    /// Whether a change at `revision` may concern `node`, where all up to `sorted` are here.
    fn may_concern(&self, node: &str, revision: u64, sorted: u64) -> bool {
        if revision <= self.floor || revision > sorted {
            return true;
        }
        let from = self.changes.partition_point(|(at, _)| *at < revision);
        let at_revision = self.changes.range(from..).take_while(|(at, _)| *at == revision);
        at_revision.into_iter().any(|(_, nodes)| {
            let is_named =
                |nodes: &[Option<Box<str>>; 2]| nodes.iter().flatten().any(|name| **name == *node);
            nodes.as_ref().is_none_or(is_named)
        })
    }
}

#[derive(Debug)]
struct Held {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By uid: another object of the same name is another one.
    changes: BTreeMap<String, Change>,
    /// No change for the node after this revision is missing.
    floor: u64,
    /// The watcher takes its changes from here, after this revision; `None` while it reads the store. What it
    /// reads there must not become one with what is put here: it would be told twice, or never that it
    /// is gone.
    followed_after: Option<u64>,
}

/// The box of one watcher.
#[derive(Debug)]
struct NodeBox {
    hub: Arc<Hub>,
    node: String,
    held: Arc<Held>,
}

impl Hub {
    /// A box for `node`. The first one starts the sorter.
    fn subscribe(
        self: &Arc<Self>,
        context: &Context,
        resource: &'static Resource,
        node: &str,
    ) -> NodeBox {
        let mut sorter = self.sorter.lock();
        if !sorter.is_running {
            sorter.is_running = true;
            let (hub, server) = (Arc::downgrade(self), Arc::downgrade(context));
            let sorting = sort(hub, server, resource);
            context.sessions.spawn_until_cancelled("changes-by-node", sorting);
        }
        let state =
            Mutex::new(State { floor: sorter.revision.unwrap_or(u64::MAX), ..State::default() });
        let held = Arc::new(Held { state, wake: Notify::new() });
        let boxes = sorter.boxes.entry(node.to_owned()).or_default();
        boxes.retain(|held| held.strong_count() > 0);
        boxes.push(Arc::downgrade(&held));
        NodeBox { hub: Arc::clone(self), node: node.to_owned(), held }
    }

    /// From here on everything is sorted, and nothing before.
    fn begin(&self, revision: u64) {
        let mut sorter = self.sorter.lock();
        sorter.revision = Some(revision);
        sorter.index = Index { floor: revision, ..Index::default() };
        sorter.boxes.retain(|_, boxes| {
            boxes.retain(|held| held.strong_count() > 0);
            !boxes.is_empty()
        });
        for held in sorter.boxes.values().flatten().filter_map(Weak::upgrade) {
            held.state.lock().leave(revision);
            held.wake.notify_one();
        }
    }

    fn put(&self, batch: &Batch) {
        let mut sorter = self.sorter.lock();
        for change in &batch.changes {
            let concerned = (self.concerned)(change);
            sorter.index.put(change.revision, concerned);
            match concerned {
                Concerned::All => sorter.boxes.retain(|_, boxes| put(boxes, change)),
                Concerned::Nodes(before, now) => {
                    let other = before.filter(|before| Some(*before) != now);
                    for node in now.into_iter().chain(other) {
                        sorter.tell(node, change);
                    }
                }
            }
        }
        sorter.revision = Some(batch.revision);
    }
}

impl Sorter {
    fn tell(&mut self, node: &str, change: &Change) {
        let Some(boxes) = self.boxes.get_mut(node) else { return };
        if !put(boxes, change) {
            self.boxes.remove(node);
        }
    }
}

/// Puts a change into the boxes of a node; whether there are any.
fn put(boxes: &mut Vec<Weak<Held>>, change: &Change) -> bool {
    boxes.retain(|held| {
        let Some(held) = held.upgrade() else { return false };
        held.put(change);
        true
    });
    !boxes.is_empty()
}

impl Held {
    fn put(&self, change: &Change) {
        let mut state = self.state.lock();
        state.put(change);
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    /// The watcher is to read the store up to `floor`.
    fn leave(&mut self, floor: u64) {
        *self = Self { floor, ..Self::default() };
    }

    fn put(&mut self, change: &Change) {
        let Some(after) = self.followed_after else {
            self.floor = self.floor.max(change.revision);
            return;
        };
        if change.revision <= after {
            return;
        }
        let Some(shown) = change.current.as_ref().or(change.previous.as_ref()) else { return };
        let uid = meta::uid(shown.object()).to_owned();
        let mut change = change.clone();
        if let Some(before) = self.changes.remove(&uid) {
            // What is gone is told as it was last, with the revision of its end.
            if change.current.is_some() || before.previous.is_none() {
                change.previous = before.previous;
            }
        }
        if change.current.is_none() && change.previous.is_none() {
            return;
        }
        if self.changes.len() >= BOX_OBJECTS_MAX {
            self.leave(change.revision);
        } else {
            self.changes.insert(uid, change);
        }
    }
}

impl NodeBox {
    /// What changed after `cursor`, and how far that reaches; `None` when some of it is not here.
    fn take(&self, cursor: u64) -> Option<Batch> {
        // Read first: what is sorted by now is in the box.
        let revision = self.hub.sorter.lock().revision.unwrap_or(0);
        let mut state = self.held.state.lock();
        state.followed_after?;
        let mut changes: Vec<Change> = std::mem::take(&mut state.changes).into_values().collect();
        drop(state);
        changes.sort_unstable_by_key(|change| change.revision);
        let last = changes.last().map_or(0, |change| change.revision);
        Some(Batch { changes, revision: revision.max(last).max(cursor) })
    }

    /// Whether the node may have to be told of a change at `revision`.
    fn may_want(&self, revision: u64) -> bool {
        let sorter = self.hub.sorter.lock();
        let sorted = sorter.revision.unwrap_or(0);
        sorter.index.may_concern(&self.node, revision, sorted)
    }

    /// Follows the box from `cursor` on, if no change after it is missing; whether it does.
    fn follow(&self, cursor: u64) -> bool {
        let mut state = self.held.state.lock();
        if state.floor <= cursor {
            state.followed_after = Some(cursor);
        }
        state.followed_after.is_some()
    }

    /// Waits until there may be something to take.
    ///
    /// # Cancel safety
    ///
    /// Safe: what has come is told the next time.
    async fn changed(&self) {
        self.held.wake.notified().await;
    }
}

/// Sorts until the API server is gone.
async fn sort(hub: Weak<Hub>, context: Weak<ContextInner>, resource: &'static Resource) {
    loop {
        let (Some(sorter), Some(server)) = (hub.upgrade(), context.upgrade()) else { return };
        let (scope, store) = (Scope::new(resource, None), &server.store);
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
                            tracing::debug!(%err, "a watch of a whole collection broke");
                            break;
                        }
                    }
                }
            }
            Err(err) => tracing::debug!(%err, "cannot watch a whole collection"),
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
    /// All changes of `scope` after `revision`; those that concern `node` at least, if one is named.
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
        let node = node.filter(|node| !node.is_empty());
        let node_box = node.zip(context.by_node.of(&scope));
        let node_box = node_box.map(|(node, hub)| hub.subscribe(&context, scope.resource, node));
        Ok(Self { context, scope, watch, node_box, revision }.settled())
    }

    fn settled(mut self) -> Self {
        self.settle();
        self
    }

    /// Leaves the store for the box, if that has all that comes.
    fn settle(&mut self) {
        if self.node_box.as_ref().is_some_and(|node_box| node_box.follow(self.revision)) {
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
                let node_box = self.node_box.as_ref();
                let wanted = |revision| node_box.is_none_or(|held| held.may_want(revision));
                let batch = watch.next_of(&wanted).await?;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a box holds after these changes of one pod, as it was and as it is: `[before, now, revision]`.
    fn boxed(changes: &[[Option<&str>; 2]]) -> Vec<(Option<String>, Option<String>, u64)> {
        let shown = |phase: Option<&str>| {
            let pod =
                |phase| json!({"metadata": {"name": "p", "uid": "u"}, "status": {"phase": phase}});
            phase.map(|phase| Arc::new(Shown::new(pod(phase))))
        };
        let phase = |shown: &Option<Arc<Shown>>| {
            let phase = shown.as_ref()?.object().pointer("/status/phase")?;
            Some(phase.as_str()?.to_owned())
        };
        let mut state = State { followed_after: Some(0), ..State::default() };
        for (revision, [previous, current]) in (1..).zip(changes) {
            let (previous, current) = (shown(*previous), shown(*current));
            state.put(&Change { revision, current, previous });
        }
        let told =
            |change: &Change| (phase(&change.previous), phase(&change.current), change.revision);
        state.changes.values().map(told).collect()
    }

    #[test]
    fn what_is_late_is_told_as_one_change() {
        let some = |text: &str| Some(text.to_owned());
        let created = [None, Some("a")];
        let changed = [Some("a"), Some("b")];
        let again = [Some("b"), Some("c")];
        let deleted = [Some("c"), None];
        assert_eq!(boxed(&[created]), [(None, some("a"), 1)]);
        assert_eq!(boxed(&[created, changed, again]), [(None, some("c"), 3)]);
        assert_eq!(boxed(&[changed, again]), [(some("a"), some("c"), 2)]);
        assert_eq!(boxed(&[again, deleted]), [(some("c"), None, 2)], "as it was last");
        assert_eq!(boxed(&[created, changed, again, deleted]), [], "it was never told");
    }

    #[test]
    fn what_was_read_in_the_store_is_not_one_with_what_comes_later() {
        let pod = || Some(Arc::new(Shown::new(json!({"metadata": {"uid": "u"}}))));
        let mut state = State { floor: 4, ..State::default() };
        state.put(&Change { revision: 5, current: pod(), previous: None });
        assert!(state.changes.is_empty() && state.floor == 5, "the store is read");
        // Up to 6 it was; the sorter comes later to some of that.
        state.followed_after = Some(6);
        state.put(&Change { revision: 6, current: pod(), previous: pod() });
        assert!(state.changes.is_empty());
        state.put(&Change { revision: 8, current: None, previous: pod() });
        let gone = &state.changes["u"];
        assert!(gone.previous.is_some() && gone.current.is_none(), "it is told that it is gone");
    }

    #[test]
    fn the_index_knows_whom_the_last_changes_concerned_and_nothing_of_others() {
        let mut index = Index { floor: 2, ..Index::default() };
        index.put(3, Concerned::Nodes(None, Some("a")));
        index.put(5, Concerned::Nodes(Some("a"), Some("b")));
        index.put(6, Concerned::All);
        index.put(7, Concerned::Nodes(None, None));
        index.put(7, Concerned::Nodes(Some("c"), None));
        let concerned = |node: &str| -> Vec<u64> {
            (1..10).filter(|revision| index.may_concern(node, *revision, 8)).collect()
        };
        assert_eq!(concerned("a"), [1, 2, 3, 5, 6, 9]);
        assert_eq!(concerned("b"), [1, 2, 5, 6, 9]);
        assert_eq!(concerned("c"), [1, 2, 6, 7, 9]);
        for revision in 8..8 + INDEX_MAX as u64 {
            index.put(revision, Concerned::Nodes(None, None));
        }
        assert_eq!((index.changes.len(), index.floor), (INDEX_MAX, 7));
    }

    #[test]
    fn a_box_that_runs_over_is_empty_and_says_from_where_on() {
        let mut state = State { followed_after: Some(0), ..State::default() };
        for revision in 1..=BOX_OBJECTS_MAX as u64 + 1 {
            let pod = json!({"metadata": {"uid": revision.to_string()}});
            let current = Some(Arc::new(Shown::new(pod)));
            state.put(&Change { revision, current, previous: None });
        }
        assert!(state.changes.is_empty());
        assert_eq!(state.floor, BOX_OBJECTS_MAX as u64 + 1);
    }
}
