//! The scheduler's one task: it owns view and queue, and everything that wakes it is in one loop.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::{Resource, ResourceExt as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::api::device_claims;
use crate::api::node_load::{self, LEASE_NAMESPACE};
use crate::client::{Change, EventRecorder, EventType, Handler, Informer, Regarding};
use crate::scheduler::Context;
use crate::scheduler::bind::{Bound, Refusal, bind, evict, say_displaced, say_unschedulable};
use crate::scheduler::decide::choose;
use crate::scheduler::demand::{BINPACK_NAME, Demand, SCHEDULER_NAME};
use crate::scheduler::devices::{
    Assumed, Devices, ELSEWHERE, Given, Selectors, Settled, read_back, release, reserve,
};
use crate::scheduler::extension::Profiles;
use crate::scheduler::need::Resources;
use crate::scheduler::node::Facts;
use crate::scheduler::preempt::{Budget, Plan, preempt};
use crate::scheduler::queue::{Asked, Queue};
use crate::scheduler::reason::{Changes, Unschedulable};
use crate::scheduler::storage::Storage;
use crate::scheduler::view::{ClusterView, PodKey};

/// Requests under way at once; beyond it, pods wait in the queue.
const REQUESTS_MAX: usize = 128;
/// Pods tried before changes are looked at again.
const BATCH_LEN_MAX: usize = 256;
/// How long choices are made before others on the thread have their turn.
const SLICE_MAX: Duration = Duration::from_millis(5);
/// How long bindings under way are waited for at the end.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// What changed since the scheduler looked last. Bounded by the number of objects.
#[derive(Debug, Default)]
struct Dirty {
    pods: Mutex<BTreeSet<PodKey>>,
    nodes: Mutex<BTreeSet<PodKey>>,
    /// Claims, volumes and classes: what changed does not matter, that it did wakes pods.
    storage: Mutex<BTreeSet<PodKey>>,
    /// The same of claims, classes and slices of devices.
    devices: Mutex<BTreeSet<PodKey>>,
    namespaces: Mutex<BTreeSet<PodKey>>,
    budgets: Mutex<BTreeSet<PodKey>>,
    wake: Notify,
}

fn watch<K: Resource + Debug + 'static>(
    informer: &Informer<K>,
    dirty: &Arc<Dirty>,
    set: fn(&Dirty) -> &Mutex<BTreeSet<PodKey>>,
) {
    let dirty = Arc::downgrade(dirty);
    let handler: Handler<K> = Box::new(move |change| {
        let Some(dirty) = dirty.upgrade() else {
            return false;
        };
        let object = change.object();
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        set(&dirty).lock().insert(key);
        dirty.wake.notify_one();
        true
    });
    informer.subscribe(handler);
}

/// Hears of every heartbeat, and passes on those that tell of another load: `nodes` is looked at
/// again then.
fn watch_loads(leases: &Informer<Lease>, dirty: &Arc<Dirty>) {
    let dirty = Arc::downgrade(dirty);
    let mut known: BTreeMap<String, Option<Resources>> = BTreeMap::new();
    let handler: Handler<Lease> = Box::new(move |change| {
        let Some(dirty) = dirty.upgrade() else {
            return false;
        };
        let lease = change.object();
        let (name, load) = (lease.name_any(), load_of(lease));
        if let Change::Removed(_) = change {
            known.remove(&name);
        } else if known.get(&name) != Some(&load) {
            known.insert(name.clone(), load);
            dirty.nodes.lock().insert((String::new(), name));
            dirty.wake.notify_one();
        }
        true
    });
    leases.subscribe(handler);
}

/// What a node's heartbeat says is in use there.
pub(super) fn load_of(lease: &Lease) -> Option<Resources> {
    let (cpu_millis, memory_bytes) = node_load::read(lease.metadata.annotations.as_ref()?)?;
    Some(Resources { cpu_millis, memory_bytes, ..Resources::default() })
}

/// What a request under way came to.
enum Done {
    Bound {
        pod: Arc<Pod>,
        node: String,
        outcome: Bound,
        /// What its claims got.
        settled: Vec<Settled>,
    },
    Told,
    /// The pod has given its devices back, or could not.
    Released {
        key: PodKey,
    },
    /// These could not be told to leave: they count as staying again.
    Evicted {
        stay: Vec<PodKey>,
    },
}

pub(super) struct Scheduler {
    context: Context,
    events: EventRecorder,
    dirty: Arc<Dirty>,
    view: ClusterView,
    queue: Queue,
    /// Devices that claims got and the cache does not show yet.
    assumed: Assumed,
    selectors: Selectors,
    /// Pods that are giving devices back: until they have, they get no node.
    releasing: BTreeSet<PodKey>,
    requests: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Scheduler {
    pub(super) fn new(mut context: Context, events: EventRecorder) -> Self {
        let queue = Queue::new(context.rng.clone());
        let dirty = Arc::new(Dirty::default());
        watch(&context.informers.nodes, &dirty, |dirty| &dirty.nodes);
        watch(&context.informers.pods, &dirty, |dirty| &dirty.pods);
        watch_loads(&context.informers.leases, &dirty);
        watch(&context.informers.claims, &dirty, |dirty| &dirty.storage);
        watch(&context.informers.volumes, &dirty, |dirty| &dirty.storage);
        watch(&context.informers.storage_classes, &dirty, |dirty| &dirty.storage);
        watch(&context.informers.resource_claims, &dirty, |dirty| &dirty.devices);
        watch(&context.informers.device_classes, &dirty, |dirty| &dirty.devices);
        watch(&context.informers.resource_slices, &dirty, |dirty| &dirty.devices);
        watch(&context.informers.namespaces, &dirty, |dirty| &dirty.namespaces);
        watch(&context.informers.pod_disruption_budgets, &dirty, |dirty| &dirty.budgets);
        let mut view = ClusterView::new();
        view.set_profiles(context.profiles.borrow_and_update().clone());
        Self {
            context,
            events,
            dirty,
            view,
            queue,
            assumed: Assumed::default(),
            selectors: Selectors::default(),
            releasing: BTreeSet::new(),
            requests: FuturesUnordered::new(),
        }
    }

    pub(super) async fn run(mut self, cancel: CancellationToken) {
        loop {
            self.look();
            self.schedule();
            tokio::task::yield_now().await;
            let is_full = self.requests.len() >= REQUESTS_MAX;
            let due = if self.queue.has_ready() && !is_full {
                Some(Instant::now())
            } else {
                self.queue.next_due().filter(|_| !is_full)
            };
            let dirty = Arc::clone(&self.dirty);
            let mut profiles = self.context.profiles.clone();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(done) = self.requests.next() => self.finish(&done),
                () = dirty.wake.notified() => {}
                Ok(()) = profiles.changed() => {}
                () = sleep_until(due) => {}
            }
        }
        let drain = async { while self.requests.next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_MAX, drain).await;
    }

    /// Brings view and queue up to what the caches show.
    fn look(&mut self) {
        if self.context.profiles.has_changed().unwrap_or(false) {
            self.take_profiles();
        }
        let nodes = std::mem::take(&mut *self.dirty.nodes.lock());
        let pods = std::mem::take(&mut *self.dirty.pods.lock());
        let namespaces = std::mem::take(&mut *self.dirty.namespaces.lock());
        let mut changes = Changes::NONE;
        if !std::mem::take(&mut *self.dirty.storage.lock()).is_empty() {
            changes = changes.and(Changes::STORAGE);
        }
        if !std::mem::take(&mut *self.dirty.devices.lock()).is_empty() {
            self.assumed.prune(&self.context.informers);
            changes = changes.and(Changes::DEVICES);
        }
        for (_, name) in nodes {
            let node = self.context.informers.nodes.store.named("", &name);
            if self.view.set_node(&name, node.as_deref().map(Facts::of)) {
                changes = changes.and(Changes::NODE);
            }
            let lease = self.context.informers.leases.store.named(LEASE_NAMESPACE, &name);
            self.view.set_measured(&name, lease.as_deref().and_then(load_of));
        }
        for (_, name) in namespaces {
            let namespace = self.context.informers.namespaces.store.named("", &name);
            let labels = namespace.map(|found| found.metadata.labels.clone().unwrap_or_default());
            self.view.set_namespace(&name, labels);
            changes = changes.and(Changes::NAMESPACE);
        }
        if !std::mem::take(&mut *self.dirty.budgets.lock()).is_empty() {
            let budgets = self.context.informers.pod_disruption_budgets.store.state();
            self.view.set_budgets(budgets.iter().filter_map(|b| Budget::of(b)).collect());
        }
        for key in pods {
            let pod = self.context.informers.pods.store.named(&key.0, &key.1);
            changes = changes.and(self.see_pod(&key, pod.as_deref()));
        }
        self.queue.wake(changes);
    }

    /// Other plugins, maybe of other schedulers: pods may be ours that were not, and the other way
    /// round.
    fn take_profiles(&mut self) {
        self.view.set_profiles(self.context.profiles.borrow_and_update().clone());
        let waiting = self.context.informers.pods.store.select(|pod| node_name(pod).is_none());
        let keys = waiting.iter().map(|pod| (pod.namespace().unwrap_or_default(), pod.name_any()));
        self.dirty.pods.lock().extend(keys);
        self.queue.wake(Changes::EXTENSION);
    }

    /// Takes note of a pod as the cache shows it: what changed for others.
    fn see_pod(&mut self, key: &PodKey, pod: Option<&Pod>) -> Changes {
        let left = |is_gone: bool| if is_gone { Changes::POD_LEFT } else { Changes::NONE };
        let Some(pod) = pod.filter(|pod| !has_ended(pod)) else {
            self.queue.remove(key);
            let was_awaited = self.view.denominate(key);
            return left(self.view.remove(key) || was_awaited);
        };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(node) = node_name(pod) {
            self.queue.remove(key);
            let is_new = self.view.place(pod, node);
            return if is_new { Changes::POD_CAME.and(Changes::POD_LEFT) } else { Changes::NONE };
        }
        if self.view.is_assumed(key, uid) {
            return Changes::NONE;
        }
        let room = self.view.remove(key);
        if self.is_ours(pod) {
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            let status = pod.status.as_ref();
            let nominated = status.and_then(|status| status.nominated_node_name.as_deref());
            if self.queue.add(key, priority) {
                // Later it is this scheduler who knows best.
                if let Some(node) = nominated {
                    self.view.nominate(pod, node);
                }
            } else if self.queue.asked(key).is_some_and(|asked| is_changed(asked, pod)) {
                self.queue.wake_one(key);
            }
        } else {
            self.queue.remove(key);
            self.view.denominate(key);
        }
        left(room)
    }

    /// Decides for as many pods as there may be requests.
    fn schedule(&mut self) {
        let began = Instant::now();
        for _ in 0..BATCH_LEN_MAX {
            if self.requests.len() >= REQUESTS_MAX || began.elapsed() >= SLICE_MAX {
                return;
            }
            let Some(key) = self.queue.pop(Instant::now()) else {
                return;
            };
            match self.context.informers.pods.store.named(&key.0, &key.1) {
                Some(pod) if node_name(&pod).is_none() && self.is_ours(&pod) => {
                    self.place(&key, pod);
                }
                _ => self.queue.remove(&key),
            }
        }
    }

    fn place(&mut self, key: &PodKey, pod: Arc<Pod>) {
        if self.releasing.contains(key) {
            return self.queue.retry(key, Instant::now());
        }
        let seed = self.context.rng.below(u64::MAX);
        let informers = &self.context.informers;
        let devices = Devices::of(&pod, informers, &self.assumed, &mut self.selectors);
        let storage = Storage::of(&pod, informers).with(devices);
        let class = self.view.enter_class(Demand::of(&pod));
        self.view.refresh_class(class);
        match choose(&self.view, class, Some(key), &storage, seed) {
            Ok(id) => {
                let node = self.view.node_name(id).to_owned();
                let Some(given) = self.devices_on(id, &storage.devices) else {
                    debug_assert!(false, "a node that takes the pod has its devices");
                    return self.queue.retry(key, Instant::now());
                };
                self.view.assume_class(&pod, &node, class);
                self.queue.wake(Changes::POD_CAME);
                self.bind(pod, node, given, storage.devices.held().to_vec());
            }
            Err(mut refusal) => {
                if let Some(class) = self.view.class(class) {
                    let demand = Arc::clone(&class.demand);
                    self.queue.note(key, Asked { demand, unmade: unmade(&pod) });
                }
                match preempt(&self.view, class, key, &storage, seed) {
                    Ok(plan) => self.make_room(&pod, &plan, &mut refusal),
                    Err(text) => refusal.preemption = text,
                }
                if refusal.reasons.contains_key(ELSEWHERE) {
                    self.give_back(key, &pod, &storage.devices);
                }
                self.refuse(key, pod, &refusal);
            }
        }
    }

    /// What the pod's claims get on the node.
    fn devices_on(&self, id: u32, devices: &Devices) -> Option<Vec<Given>> {
        let node = self.view.nodes.get(id)?;
        devices.allocate(&node.name, node.facts.as_ref()?).ok()
    }

    /// Gives the pod's claims their devices, and the pod its node.
    fn bind(
        &mut self,
        pod: Arc<Pod>,
        node: String,
        given: Vec<Given>,
        held: Vec<Arc<ResourceClaim>>,
    ) {
        self.assumed.add(&given);
        let (client, rng) = (self.context.client.clone(), self.context.rng.clone());
        let now = self.context.clock.now();
        let request = async move {
            let (outcome, settled) = match reserve(&client, &pod, &given, &held, (now, &rng)).await
            {
                Ok(settled) => (bind(&client, &pod, &node, &rng).await, settled),
                Err(err) => {
                    debug!(%err, "devices not given, the next try does it");
                    (Bound::No, read_back(&client, &given, &rng).await)
                }
            };
            Done::Bound { pod, node, outcome, settled }
        };
        self.requests.push(request.boxed());
    }

    /// Devices that the pod got for a node which it cannot have any more are given back: others may be
    /// free elsewhere.
    fn give_back(&mut self, key: &PodKey, pod: &Arc<Pod>, devices: &Devices) {
        let own = devices.own(pod);
        if own.is_empty() {
            return;
        }
        self.releasing.insert(key.clone());
        let (client, pod, key) = (self.context.client.clone(), Arc::clone(pod), key.clone());
        let request = async move {
            if let Err(err) = release(&client, &pod, &own).await {
                debug!(%err, "devices not given back, the next try does it");
            }
            Done::Released { key }
        };
        self.requests.push(request.boxed());
    }

    /// Tells pods of lower priority to leave for `pod`, and keeps their place for it.
    fn make_room(&mut self, pod: &Arc<Pod>, plan: &Plan, refusal: &mut Unschedulable) {
        let name = scheduler_name(pod);
        refusal.helped_by = refusal.helped_by.and(Changes::POD_LEFT);
        for key in &plan.displaced {
            self.displace(key);
        }
        self.view.nominate(pod, &plan.node);
        let uid = pod.uid().unwrap_or_default();
        info!(
            k8s.pod.name = pod.name_any(),
            k8s.node.name = plan.node,
            victims = plan.victims.len(),
            "pods of lower priority leave for the pod"
        );
        let mut victims = Vec::new();
        for victim in &plan.victims {
            let found = self.context.informers.pods.store.named(&victim.key.0, &victim.key.1);
            let Some(found) = found.filter(|found| found.uid().as_ref() == Some(&victim.uid))
            else {
                continue;
            };
            self.view.set_ending(&victim.key);
            let message = format!("Preempted by pod {uid} on node {}", plan.node);
            self.tell(&found, EventType::Normal, "Preempted", message);
            victims.push(found);
        }
        let (client, now) = (self.context.client.clone(), self.context.clock.now());
        let request = async move {
            let mut stay = Vec::new();
            for victim in victims {
                if let Err(err) = evict(&client, &victim, &name, now).await {
                    debug!(%err, "a pod was not told to leave, the next try tells it");
                    stay.push((victim.namespace().unwrap_or_default(), victim.name_any()));
                }
            }
            Done::Evicted { stay }
        };
        self.requests.push(request.boxed());
    }

    /// The pod does not get the place that it waited for: its status says so, and it looks for another.
    fn displace(&mut self, key: &PodKey) {
        self.view.denominate(key);
        self.queue.wake_one(key);
        let Some(pod) = self.context.informers.pods.store.named(&key.0, &key.1) else { return };
        let client = self.context.client.clone();
        let request = async move {
            if let Err(err) = say_displaced(&client, &pod).await {
                debug!(%err, "nomination not taken back, the next try does it");
            }
            Done::Told
        };
        self.requests.push(request.boxed());
    }

    /// The pod waits, and its status says for what.
    fn refuse(&mut self, key: &PodKey, pod: Arc<Pod>, refusal: &Unschedulable) {
        let message = refusal.to_string();
        debug!(k8s.pod.name = key.1, message, "no node takes the pod");
        if refusal.is_passing {
            self.queue.retry(key, Instant::now());
        } else {
            self.queue.refuse(key, Instant::now(), refusal.helped_by);
        }
        self.tell(&pod, EventType::Warning, "FailedScheduling", message.clone());
        let nominated = self.view.nomination_name(key).map(str::to_owned);
        let (client, now) = (self.context.client.clone(), self.context.clock.now());
        let refusal = Refusal { message, nominated };
        let request = async move {
            if let Err(err) = say_unschedulable(&client, &pod, &refusal, now).await {
                debug!(%err, "condition not written, the next try writes it");
            }
            Done::Told
        };
        self.requests.push(request.boxed());
    }

    fn finish(&mut self, done: &Done) {
        let (pod, node, outcome, settled) = match done {
            Done::Bound { pod, node, outcome, settled } => (pod, node, outcome, settled),
            Done::Told => return,
            Done::Released { key } => {
                self.releasing.remove(key);
                return;
            }
            Done::Evicted { stay } => {
                self.dirty.pods.lock().extend(stay.iter().cloned());
                return;
            }
        };
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let uid = pod.uid().unwrap_or_default();
        self.assumed.settle(settled, &self.context.informers);
        if settled.iter().any(|settled| settled.revision.is_none()) {
            // What was not given after all is free for others.
            self.queue.wake(Changes::DEVICES);
        }
        match outcome {
            Bound::Yes => {
                let (namespace, name) = (&key.0, &key.1);
                info!(
                    k8s.namespace.name = namespace,
                    k8s.pod.name = name,
                    k8s.node.name = node,
                    "pod bound"
                );
                let message = format!("Successfully assigned {namespace}/{name} to {node}");
                self.tell(pod, EventType::Normal, "Scheduled", message);
                self.queue.remove(&key);
            }
            // Bound elsewhere or gone: the cache shows it soon and the queue drops the pod.
            Bound::No => {
                self.view.forget(&key, &uid);
                self.queue.retry(&key, Instant::now());
            }
        }
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        is_ours(pod, &self.view.extensions.profiles)
    }

    fn tell(&self, pod: &Pod, event_type: EventType, reason: &'static str, message: String) {
        self.events.record(Regarding::of(pod), event_type, reason, message);
    }
}

/// Whether the pod asks for something else than when it was tried, or has claims that it waited for.
fn is_changed(asked: &Asked, pod: &Pod) -> bool {
    *asked.demand != Demand::of(pod) || asked.unmade != unmade(pod)
}

/// How many of the pod's claims of devices are still to be made from their templates.
fn unmade(pod: &Pod) -> usize {
    device_claims::of_pod(pod).filter(|named| named.claim.is_none()).count()
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The scheduler that the pod asks for.
pub(super) fn scheduler_name(pod: &Pod) -> String {
    let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.clone());
    name.unwrap_or_else(|| SCHEDULER_NAME.to_owned())
}

/// Whether pods that ask for the scheduler of this name are placed here.
pub(super) fn is_served(name: &str, profiles: &Profiles) -> bool {
    matches!(name, SCHEDULER_NAME | BINPACK_NAME) || profiles.contains_key(name)
}

/// Whether this scheduler is to find a node for the pod.
fn is_ours(pod: &Pod, profiles: &Profiles) -> bool {
    let spec = pod.spec.as_ref();
    let is_gated =
        spec.and_then(|spec| spec.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty());
    is_served(&scheduler_name(pod), profiles)
        && !is_gated
        && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
#[path = "run_test.rs"]
mod run_test;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_behind_gates_or_of_another_scheduler_is_left_alone() {
        let is_ours = |spec: Value, meta: Value| {
            let mut pod = json!({"metadata": meta, "spec": {"containers": []}});
            json_patch::merge(&mut pod["spec"], &spec);
            let profiles = [("own".to_owned(), Arc::default())].into();
            is_ours(&serde_json::from_value(pod).unwrap(), &profiles)
        };
        let ours = json!({"schedulerName": "default-scheduler", "schedulingGates": []});
        assert!(is_ours(ours.clone(), json!({})));
        assert!(is_ours(json!({"schedulerName": "binpack"}), json!({})));
        assert!(!is_ours(json!({"schedulingGates": [{"name": "wait"}]}), json!({})));
        assert!(!is_ours(json!({"schedulerName": "other"}), json!({})));
        assert!(is_ours(json!({"schedulerName": "own"}), json!({})));
        assert!(!is_ours(ours, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})));
    }
}
