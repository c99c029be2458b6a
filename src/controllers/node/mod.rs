//! Watches over nodes: gives each its pod CIDR, notices when one falls silent, and moves its pods.
//!
//! Data in: nodes, their Leases and renewals, pods. Data out: pod CIDRs, conditions, taints, evictions.
//!
//! # Invariants
//!
//! - Silence is measured by this leader's own clock: from when the last heartbeat came.
//! - No evictions while the leader itself may be the one cut off.
//! - A pod CIDR belongs to one node: it is entered in one book before the node hears of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::node_load::LEASE_NAMESPACE;
use crate::api::unique_pod::must_be_unique;
use crate::client::{EventRecorder, EventType, Regarding, is_conflict, is_not_found, revision_of};
use crate::controllers::Context;
use crate::controllers::node::health::Hearing;
use crate::controllers::node::ipam::{Book, allocate};
use crate::controllers::node::plan::{Heard, Step, View, is_in_doubt, plan, troubled};
use crate::controllers::object::{disrupted, node_name};

mod health;
mod ipam;
mod plan;
pub(super) use plan::tolerates;
#[cfg(test)]
mod plan_test;

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(500);
/// How often while a node is [`URGENT`]: what waits for two deadlines in a row is late by two of these.
const TICK_URGENT: Duration = Duration::from_millis(100);
/// Silence of nodes about which something has to be decided: from one missed heartbeat on, until all that
/// ran there may have been replaced.
const URGENT: std::ops::Range<Duration> = Duration::from_millis(1_500)..Duration::from_secs(20);
/// Writes under way at once.
const WRITES_MAX: usize = 32;
/// How long the cache may take to show a write.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
/// Where the book of pod CIDRs is.
const BOOK_NAMESPACE: &str = "kube-system";
const BOOK_NAME: &str = "edgeorc-pod-cidrs";

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let hearing = Hearing::after(context.predecessor.clone(), Instant::now());
    let mut controller = Controller {
        context,
        events,
        hearing,
        taints: BTreeMap::new(),
        is_cut_off: false,
        settled: None,
    };
    let _ = cancel.run_until_cancelled(controller.run()).await;
}

struct Controller {
    context: Context,
    events: EventRecorder,
    hearing: Hearing,
    /// Since when this leader sees each taint, by node and key.
    taints: BTreeMap<(String, String), Instant>,
    /// The store did not answer last time: that is told once, not with every try.
    is_cut_off: bool,
    /// The nodes and their CIDRs when last there was nothing to do for them.
    settled: Option<BTreeMap<String, Vec<String>>>,
}

impl Controller {
    async fn run(&mut self) {
        let mut nodes_changed = self.context.informers.nodes.changed();
        nodes_changed.mark_changed();
        let mut pause = Duration::ZERO;
        loop {
            let waits_since = Instant::now();
            tokio::select! {
                biased;
                Ok(()) = nodes_changed.changed() => {
                    if let Err(err) = self.allocate_cidrs().await {
                        self.report("pod CIDRs not allocated", &err);
                        nodes_changed.mark_changed();
                        tokio::time::sleep(TICK).await;
                    }
                }
                () = tokio::time::sleep(pause) => {
                    // Whoever stood still has not listened: all nodes get the same start again.
                    let now = Instant::now();
                    if now - waits_since >= self.context.settings.node_silent_after {
                        self.hearing = Hearing::new(now);
                    }
                }
            }
            pause = self.look_after_nodes().await;
        }
    }

    /// Does what is to be done now. Returns for how long nothing else is.
    async fn look_after_nodes(&mut self) -> Duration {
        let now = Instant::now();
        let mut nodes = self.listen(now);
        let context = &self.context;
        let is_doubted =
            !nodes.is_empty() && is_in_doubt(&context.settings, &context.node_name, &nodes);
        if self.hearing.doubt(is_doubted, now) {
            info!("enough nodes are heard again, the others get their time");
            nodes = self.listen(now);
        }
        let tainted_for: BTreeMap<_, _> =
            self.taints.iter().map(|(key, since)| (key.clone(), now - *since)).collect();
        let steps = plan(&View {
            settings: &self.context.settings,
            me: &self.context.node_name,
            nodes: &nodes,
            pods: &self.pods_on(&troubled(&self.context.settings, &nodes)),
            listening_for: self.hearing.listening_for(now),
            tainted_for: &tainted_for,
            now: self.context.clock.now(),
        });
        let this = &*self;
        let writes = steps.into_iter().map(|step| async move {
            let outcome = this.act(&step).await;
            (step, outcome)
        });
        let outcomes: Vec<_> = stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
        let mut revision = 0;
        for (step, outcome) in outcomes {
            match outcome {
                Ok(of_node) => {
                    revision = revision.max(of_node);
                    self.is_cut_off = false;
                }
                Err(err) => {
                    debug!(?step, "step of the node controller failed");
                    self.report("node controller met an error", &err);
                }
            }
        }
        if revision > 0 {
            self.context.informers.nodes.catch_up(revision, CATCH_UP_MAX).await;
        }
        let is_urgent = nodes.iter().any(|heard| URGENT.contains(&heard.silent_for));
        if is_urgent { TICK_URGENT } else { TICK }
    }

    /// The pods that have something to fear: none while all nodes are well.
    fn pods_on(&self, nodes: &BTreeSet<String>) -> Vec<Arc<Pod>> {
        if nodes.is_empty() {
            return Vec::new();
        }
        let is_there = |pod: &Pod| node_name(pod).is_some_and(|node| nodes.contains(node));
        self.context.informers.pods.store.select(is_there)
    }

    /// Reads nodes and Leases, and notes since when things are as they are.
    fn listen(&mut self, now: Instant) -> Vec<Heard> {
        let informers = &self.context.informers;
        let nodes = informers.nodes.store.state();
        let mut taints = BTreeMap::new();
        let mut all = Vec::with_capacity(nodes.len());
        for node in nodes {
            let name = node.name_any();
            let lease = informers.leases.store.named(LEASE_NAMESPACE, &name);
            let beat = (lease.as_deref(), (self.context.last_heartbeat)(&name));
            self.hearing.listen(&name, beat, health::word(&node), now);
            for taint in node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()) {
                let key = (name.clone(), taint.key.clone());
                let since = self.taints.get(&key).copied().unwrap_or(now);
                taints.insert(key, since);
            }
            all.push(Heard { silent_for: self.hearing.silent_for(&name, now), node });
        }
        self.taints = taints;
        self.hearing.retain(|name| informers.nodes.store.named("", name).is_some());
        let lateness = health::lateness(all.iter().map(|heard| heard.silent_for));
        for heard in &mut all {
            heard.silent_for = heard.silent_for.div_f64(lateness);
        }
        all
    }

    /// Makes one write. Returns the revision of a node's change, 0 for others.
    async fn act(&self, step: &Step) -> Result<u64, kube::Error> {
        match step {
            Step::SetUnknown { node, conditions } => {
                self.set_unknown(node, json!(conditions)).await
            }
            Step::SetTaints { node, taints } => {
                // None is no field, not an empty list.
                let taints = (!taints.is_empty()).then_some(taints);
                let patch = json!({ "spec": { "taints": taints } });
                self.patch_node(node, patch, false).await
            }
            Step::SetNotReady(pod) => self.set_not_ready(pod).await.map(|()| 0),
            Step::Evict { pod, is_forced } => self.evict(pod, *is_forced).await.map(|()| 0),
        }
    }

    async fn set_unknown(&self, node: &Arc<Node>, conditions: Value) -> Result<u64, kube::Error> {
        let patch = json!({ "status": { "conditions": conditions } });
        let revision = self.patch_node(node, patch, true).await?;
        let name = node.name_any();
        info!(k8s.node.name = name, "node is silent");
        let message = format!("Node {name} status is now: NodeNotReady");
        let regarding = Regarding::of(node.as_ref());
        self.events.record(regarding, EventType::Normal, "NodeNotReady", message);
        Ok(revision)
    }

    async fn patch_node(
        &self,
        node: &Node,
        mut patch: Value,
        is_status: bool,
    ) -> Result<u64, kube::Error> {
        let identity = json!({ "metadata": {
            "uid": node.uid(), "resourceVersion": node.resource_version(),
        }});
        json_patch::merge(&mut patch, &identity);
        let api: Api<Node> = Api::all(self.context.client.clone());
        let (name, params, patch) = (node.name_any(), PatchParams::default(), Patch::Merge(patch));
        let patched = if is_status {
            api.patch_status(&name, &params, &patch).await?
        } else {
            api.patch(&name, &params, &patch).await?
        };
        Ok(revision_of(&patched).unwrap_or(0))
    }

    /// Takes the pod out of the endpoints of its services. Its agent says otherwise when it is
    /// back.
    async fn set_not_ready(&self, pod: &Pod) -> Result<(), kube::Error> {
        let status = pod.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default();
        for condition in conditions.iter_mut().filter(|condition| condition.type_ == "Ready") {
            condition.status = "False".to_owned();
            condition.reason = Some("NodeNotReady".to_owned());
            condition.last_transition_time = Some(Time(self.context.clock.now()));
        }
        let patch = json!({
            "metadata": { "uid": pod.uid(), "resourceVersion": pod.resource_version() },
            "status": { "conditions": conditions },
        });
        let pods = self.pods_of(pod);
        let patch = Patch::Merge(patch);
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await?;
        let regarding = Regarding::of(pod);
        self.events.record(regarding, EventType::Warning, "NodeNotReady", "Node is not ready");
        Ok(())
    }

    /// Asks the leader's own memory, not the cache, whether the node is still silent.
    async fn has_beaten(&self, node: &str) -> Result<bool, kube::Error> {
        if (self.context.last_heartbeat)(node) != self.hearing.last_heartbeat(node) {
            return Ok(true);
        }
        let client = self.context.client.clone();
        let leases: Api<Lease> = Api::namespaced(client, LEASE_NAMESPACE);
        let beat = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        let known = self.context.informers.leases.store.named(LEASE_NAMESPACE, node);
        let fresh = leases.get_opt(node).await?;
        Ok(fresh.as_ref().and_then(beat) != known.as_deref().and_then(beat))
    }

    async fn evict(&self, pod: &Pod, is_forced: bool) -> Result<(), kube::Error> {
        let node = node_name(pod).unwrap_or_default();
        if is_forced && must_be_unique(pod) && self.has_beaten(node).await? {
            return Ok(());
        }
        let message = "Taint manager: deleting due to NoExecute taint";
        let now = self.context.clock.now();
        if let Some(conditions) = disrupted(pod, "DeletionByTaintManager", message, now) {
            let patch = json!({
                "metadata": { "uid": pod.uid(), "resourceVersion": pod.resource_version() },
                "status": { "conditions": conditions },
            });
            let (name, params) = (pod.name_any(), PatchParams::default());
            let told = self.pods_of(pod).patch_status(&name, &params, &Patch::Merge(patch)).await;
            if let Err(err) = told {
                // That it goes matters more than that this is told.
                debug!(%err, "condition of an eviction not written");
            }
        }
        let params = DeleteParams {
            grace_period_seconds: is_forced.then_some(0),
            preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match self.pods_of(pod).delete(&pod.name_any(), &params).await {
            Ok(_) => {}
            Err(err) if is_not_found(&err) => return Ok(()),
            Err(err) => return Err(err),
        }
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        info!(k8s.namespace.name = namespace, k8s.pod.name = name, is_forced, "pod evicted");
        let message = format!("Marking for deletion Pod {namespace}/{name}");
        self.events.record(Regarding::of(pod), EventType::Normal, "TaintManagerEviction", message);
        Ok(())
    }

    fn pods_of(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &pod.namespace().unwrap_or_default())
    }

    /// A conflict is daily work, and a store without a quorum is told by others in full.
    fn report(&mut self, message: &'static str, err: &kube::Error) {
        if is_conflict(err) || is_not_found(err) || (is_unavailable(err) && self.is_cut_off) {
            debug!(%err, "{message}");
        } else {
            warn!(%err, "{message}");
        }
        self.is_cut_off |= is_unavailable(err);
    }

    /// Enters new nodes into the book, then tells them; strikes out those that are gone.
    async fn allocate_cidrs(&mut self) -> Result<(), kube::Error> {
        let nodes = self.context.informers.nodes.store.state();
        let mut has: BTreeMap<_, _> =
            nodes.iter().map(|node| (node.name_any(), pod_cidrs(node))).collect();
        if self.settled.as_ref() == Some(&has) {
            return Ok(());
        }
        let books: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), BOOK_NAMESPACE);
        let written = books.get_opt(BOOK_NAME).await?;
        let book = written.as_ref().map(read_book).unwrap_or_default();
        // A node may be newer than this cache: its entry goes only when the server says it is gone.
        let api: Api<Node> = Api::all(self.context.client.clone());
        let known = has.clone();
        for missing in book.values().filter(|name| !known.contains_key(*name)) {
            if let Some(node) = api.get_opt(missing).await? {
                has.insert(missing.clone(), pod_cidrs(&node));
            }
        }
        let first =
            has.iter().map(|(node, cidrs)| (node.clone(), cidrs.first().cloned())).collect();
        let allocation = allocate(&book, &first, self.context.settings.pod_cidrs);
        let settings = self.context.settings.pod_cidrs;
        let is_complete = |node: &str| {
            has.get(node).is_some_and(|cidrs| {
                cidrs.len() >= if settings.cidr_v6(0).is_some() { 2 } else { 1 }
            })
        };
        if allocation.book != book {
            write_book(&books, written, &allocation.book).await?;
        }
        let mut revision = 0;
        for node in &nodes {
            let name = node.name_any();
            let cidrs =
                allocation.cidrs(&name, has.get(&name).and_then(|has| has.first()), settings);
            if let Some(cidr) = cidrs.first().filter(|_| !is_complete(&name)) {
                let patch = json!({ "spec": { "podCIDR": cidr, "podCIDRs": cidrs } });
                revision = revision.max(self.patch_node(node, patch, false).await?);
                info!(k8s.node.name = name, ?cidrs, "pod CIDRs assigned");
            }
            if allocation.starved.contains(&node.name_any()) {
                let message = format!("Node {} status is now: CIDRNotAvailable", node.name_any());
                let regarding = Regarding::of(node.as_ref());
                self.events.record(regarding, EventType::Warning, "CIDRNotAvailable", message);
            }
        }
        self.context.informers.nodes.catch_up(revision, CATCH_UP_MAX).await;
        let is_settled =
            known.keys().all(|node| is_complete(node) || allocation.starved.contains(node));
        self.settled = is_settled.then_some(known);
        Ok(())
    }
}

/// Its ranges, that of IPv4 first.
fn pod_cidrs(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let first = spec.pod_cidr.iter().filter(|cidr| !cidr.is_empty());
    let mut found: Vec<String> = Vec::new();
    for cidr in first.chain(spec.pod_cidrs.iter().flatten()) {
        if !found.contains(cidr) {
            found.push(cidr.clone());
        }
    }
    found
}

fn read_book(written: &ConfigMap) -> Book {
    let entries = written.data.iter().flatten();
    entries.filter_map(|(number, node)| Some((number.parse().ok()?, node.clone()))).collect()
}

async fn write_book(
    books: &Api<ConfigMap>,
    written: Option<ConfigMap>,
    book: &Book,
) -> Result<(), kube::Error> {
    let data = book.iter().map(|(number, node)| (number.to_string(), node.clone())).collect();
    let params = PostParams::default();
    match written {
        Some(mut written) => {
            written.data = Some(data);
            books.replace(BOOK_NAME, &params, &written).await?;
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(BOOK_NAME.to_owned()),
                namespace: Some(BOOK_NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            };
            let first = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            books.create(&params, &first).await?;
        }
    }
    Ok(())
}

/// Whether the store cannot serve now, or is stopping.
fn is_unavailable(err: &kube::Error) -> bool {
    matches!(err, kube::Error::Api(status) if matches!(status.code, 503 | 504))
}
