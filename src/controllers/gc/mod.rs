//! Collects what its owners left behind.
//!
//! Data in: the metadata of every durable kind. Data out: deletions, and owner references and
//! finalizers taken away.
//!
//! # Invariants
//!
//! - An owner counts as gone only when the server says so, by uid; a late cache deletes nothing.
//! - A kind this version does not know is never taken for gone.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource as _;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::runtime::watcher;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::api::resources;
use crate::client::{Change, Informer, informer, is_not_found};
use crate::controllers::Context;
use crate::controllers::dynamic::{self, AnyObject};
use crate::controllers::gc::graph::{Entry, Graph, ObjectKey, Verdict, judge};
use crate::controllers::queue::{Next, Queue, Workers};
use crate::rt::TaskGroup;

mod graph;

/// Objects looked at at once.
const RUNS_MAX: usize = 16;

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let tasks = TaskGroup::new(&cancel);
    let queue = Queue::new();
    let graph = Arc::new(Mutex::new(Graph::default()));
    let informers = &context.informers;
    follow(&informers.pods, &graph, &queue);
    follow(&informers.nodes, &graph, &queue);
    follow(&informers.namespaces, &graph, &queue);
    follow(&informers.services, &graph, &queue);
    follow(&informers.endpoint_slices, &graph, &queue);
    follow(&informers.service_accounts, &graph, &queue);
    follow(&informers.deployments, &graph, &queue);
    follow(&informers.replica_sets, &graph, &queue);
    follow(&informers.stateful_sets, &graph, &queue);
    follow(&informers.daemon_sets, &graph, &queue);
    follow(&informers.replication_controllers, &graph, &queue);
    follow(&informers.controller_revisions, &graph, &queue);
    follow(&informers.claims, &graph, &queue);
    follow(&informers.jobs, &graph, &queue);
    follow(&informers.cron_jobs, &graph, &queue);
    follow(&informers.autoscalers, &graph, &queue);
    let followed = [
        "Pod",
        "Node",
        "Namespace",
        "Service",
        "EndpointSlice",
        "ServiceAccount",
        "Deployment",
        "ReplicaSet",
        "StatefulSet",
        "DaemonSet",
        "ReplicationController",
        "ControllerRevision",
        "PersistentVolumeClaim",
        "Job",
        "CronJob",
        "HorizontalPodAutoscaler",
    ];
    for resource in resources() {
        // Leases and Events come and go by the second and are owned by nothing that goes first.
        if followed.contains(&resource.kind) || matches!(resource.kind, "Lease" | "Event") {
            continue;
        }
        let api = dynamic::api(&context.client, resource, "");
        let rest: Informer<AnyObject> = informer(api, watcher::Config::default(), &tasks);
        follow_as(&rest, resource.api_version(), resource.kind.to_owned(), &graph, &queue);
    }
    let workers =
        Workers { controller: "garbage-collector", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let collector = Collector { client: context.client.clone(), graph };
    workers.run(queue, cancel, |key| collector.reconcile(key)).await;
}

fn follow<K>(informer: &Informer<K>, graph: &Arc<Mutex<Graph>>, queue: &Queue<ObjectKey>)
where
    K: kube::Resource<DynamicType = ()> + Debug + 'static,
{
    let (api_version, kind) = (K::api_version(&()).into_owned(), K::kind(&()).into_owned());
    follow_as(informer, api_version, kind, graph, queue);
}

fn follow_as<K>(
    informer: &Informer<K>,
    api_version: String,
    kind: String,
    graph: &Arc<Mutex<Graph>>,
    queue: &Queue<ObjectKey>,
) where
    K: kube::Resource + 'static,
{
    let graph = Arc::clone(graph);
    informer.subscribe(queue.feed(move |change: &Change<'_, K>, keys| {
        let meta = change.object().meta();
        let key = ObjectKey {
            api_version: api_version.clone(),
            kind: kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let mut graph = graph.lock();
        keys.extend(match change {
            Change::Applied { .. } => graph.put(&key, Entry::of(meta)),
            Change::Removed(_) => graph.remove(&key),
        });
    }));
}

struct Collector {
    client: kube::Client,
    graph: Arc<Mutex<Graph>>,
}

impl Collector {
    async fn reconcile(&self, key: ObjectKey) -> Result<Next, kube::Error> {
        let Some(entry) = self.graph.lock().get(&key).cloned() else {
            return Ok(Next::Wait);
        };
        let gone = self.gone_owners(&key, &entry).await?;
        let verdict = judge(&self.graph.lock(), &key, |owner| gone.contains(&owner.uid));
        match verdict {
            Verdict::Keep => {}
            Verdict::Delete { in_foreground } => self.delete(&key, &entry, in_foreground).await?,
            Verdict::DropOwners(left) => self.patch_owners(&key, &entry, &left).await?,
            Verdict::DeleteDependents(dependents) => {
                for dependent in dependents {
                    if let Some(entry) = self.entry(&dependent) {
                        self.delete(&dependent, &entry, true).await?;
                    }
                }
            }
            Verdict::OrphanDependents(dependents) => {
                for dependent in dependents {
                    if let Some(mut found) = self.entry(&dependent) {
                        found.owners.retain(|owner| owner.uid != entry.uid);
                        let left = found.owners.clone();
                        self.patch_owners(&dependent, &found, &left).await?;
                    }
                }
            }
            Verdict::RemoveFinalizer(finalizer) => {
                let left: Vec<_> =
                    entry.finalizers.iter().filter(|one| *one != finalizer).collect();
                self.patch(&key, &entry, json!({ "finalizers": left })).await?;
            }
        }
        Ok(Next::Wait)
    }

    fn entry(&self, key: &ObjectKey) -> Option<Entry> {
        self.graph.lock().get(key).cloned()
    }

    /// The uids of owners that do not exist. Those the caches know are not asked for.
    async fn gone_owners(
        &self,
        key: &ObjectKey,
        entry: &Entry,
    ) -> Result<BTreeSet<String>, kube::Error> {
        let is_known = |owner: &&OwnerReference| self.graph.lock().owner(key, &owner.uid).is_some();
        let unknown: Vec<_> = entry.owners.iter().filter(|owner| !is_known(owner)).collect();
        let mut gone = BTreeSet::new();
        for owner in unknown {
            let Some(resource) = dynamic::find(&owner.api_version, &owner.kind) else {
                debug!(owner.kind, "owner of an unknown kind, its dependents stay");
                continue;
            };
            if resource.is_namespaced && key.namespace.is_empty() {
                // Not a valid owner: namespaced objects cannot own cluster-scoped ones.
                continue;
            }
            let found =
                dynamic::api(&self.client, resource, &key.namespace).get_opt(&owner.name).await?;
            if found.is_none_or(|found| found.meta().uid.as_ref() != Some(&owner.uid)) {
                if self.graph.lock().is_elsewhere(key, &owner.uid) {
                    let (kind, name) = (&key.kind, &key.name);
                    warn!(
                        object.kind = kind,
                        object.name = name,
                        owner.name,
                        "its owner is in another namespace and does not count"
                    );
                }
                gone.insert(owner.uid.clone());
            }
        }
        Ok(gone)
    }

    async fn delete(
        &self,
        key: &ObjectKey,
        entry: &Entry,
        in_foreground: bool,
    ) -> Result<(), kube::Error> {
        let Some(resource) = dynamic::find(&key.api_version, &key.kind) else {
            return Ok(());
        };
        let policy = if in_foreground {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(entry.uid.clone()),
                resource_version: entry.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let api = dynamic::api(&self.client, resource, &key.namespace);
        match api.delete(&key.name, &params).await {
            Err(err) if !is_not_found(&err) => Err(err),
            _ => {
                debug!(object.kind = key.kind, object.name = key.name, "object collected");
                Ok(())
            }
        }
    }

    async fn patch_owners(
        &self,
        key: &ObjectKey,
        entry: &Entry,
        left: &[OwnerReference],
    ) -> Result<(), kube::Error> {
        self.patch(key, entry, json!({ "ownerReferences": left })).await
    }

    async fn patch(
        &self,
        key: &ObjectKey,
        entry: &Entry,
        mut metadata: serde_json::Value,
    ) -> Result<(), kube::Error> {
        let Some(resource) = dynamic::find(&key.api_version, &key.kind) else {
            return Ok(());
        };
        let identity = json!({ "uid": entry.uid, "resourceVersion": entry.resource_version });
        json_patch::merge(&mut metadata, &identity);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        let api = dynamic::api(&self.client, resource, &key.namespace);
        match api.patch(&key.name, &PatchParams::default(), &patch).await {
            Err(err) if !is_not_found(&err) => Err(err),
            _ => Ok(()),
        }
    }
}
