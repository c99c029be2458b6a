//! Status of GatewayClasses, Gateways, HTTPRoutes and Ingresses: what the nodes make of them.
//!
//! Data in: those objects, and the Services, Secrets, grants, namespaces and nodes that they depend
//! on. Data out: their status. The nodes route by the same functions of `api::gateway`, so that the
//! status says what they do.
//!
//! # Invariants
//!
//! - Status is a function of the objects: what did not change is not written.
//! - Entries of other controllers in a route's status are left as they are.

mod conditions;
mod plan;

#[cfg(test)]
mod plan_test;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Secret, Service};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api::gateway::{
    CLOSED_PORTS, Gateway, GatewayClass, GatewayObjects, HTTPRoute, ReferenceGrant,
};
use crate::client::{Change, Informer, informer};
use crate::controllers::Context;
use crate::controllers::queue::{Next, Queue, Workers};
use crate::rt::TaskGroup;
use plan::{Kind, Nodes, View, Write};

/// Changes within this time become one run.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// Secrets that hold certificates.
const TLS_SECRETS: &str = "type=kubernetes.io/tls";

/// The caches that only this controller needs.
struct Caches {
    ingresses: Informer<Ingress>,
    ingress_classes: Informer<IngressClass>,
    classes: Informer<GatewayClass>,
    gateways: Informer<Gateway>,
    routes: Informer<HTTPRoute>,
    grants: Informer<ReferenceGrant>,
    secrets: Informer<Secret>,
}

impl Caches {
    fn start(client: &kube::Client, tasks: &TaskGroup) -> Self {
        Self {
            ingresses: everywhere(client, tasks),
            ingress_classes: everywhere(client, tasks),
            classes: everywhere(client, tasks),
            gateways: everywhere(client, tasks),
            routes: everywhere(client, tasks),
            grants: everywhere(client, tasks),
            secrets: informer(
                Api::all(client.clone()),
                watcher::Config::default().fields(TLS_SECRETS),
                tasks,
            ),
        }
    }

    async fn ready(&self) -> bool {
        self.ingresses.ready().await
            && self.ingress_classes.ready().await
            && self.classes.ready().await
            && self.gateways.ready().await
            && self.routes.ready().await
            && self.grants.ready().await
            && self.secrets.ready().await
    }
}

fn everywhere<K>(client: &kube::Client, tasks: &TaskGroup) -> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    informer(Api::all(client.clone()), watcher::Config::default(), tasks)
}

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let tasks = TaskGroup::new(&cancel);
    let caches = Caches::start(&context.client, &tasks);
    if cancel.run_until_cancelled(caches.ready()).await != Some(true) {
        return;
    }
    let queue = Queue::new();
    feed(&caches.ingresses, &queue);
    feed(&caches.ingress_classes, &queue);
    feed(&caches.classes, &queue);
    feed(&caches.gateways, &queue);
    feed(&caches.routes, &queue);
    feed(&caches.grants, &queue);
    feed(&caches.secrets, &queue);
    feed(&context.informers.services, &queue);
    feed(&context.informers.namespaces, &queue);
    context.informers.nodes.subscribe(queue.feed(|change: &Change<'_, Node>, keys| {
        let is_same = match change {
            Change::Applied { old: Some(old), new } => node_facts(old) == node_facts(new),
            _ => false,
        };
        if !is_same {
            keys.push(());
        }
    }));
    // All of them hang together, so they are one key.
    let workers = Workers { controller: "gateway", runs_max: 1, rng: context.rng.clone() };
    workers.run(queue, cancel, |()| reconcile(&context, &caches)).await;
}

fn feed<K: Resource + 'static>(informer: &Informer<K>, queue: &Queue<()>) {
    informer.subscribe(queue.feed(|_: &Change<'_, K>, keys| keys.push(())));
}

/// What is looked at of a node: whether it is ready, its address, its ports that are closed.
fn node_facts(node: &Node) -> (bool, Option<String>, String) {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let is_ready = conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True");
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let address = addresses.iter().find(|one| one.type_ == "InternalIP");
    let closed = node.annotations().get(CLOSED_PORTS).cloned().unwrap_or_default();
    (is_ready, address.map(|one| one.address.clone()), closed)
}

fn nodes(nodes: &[Arc<Node>]) -> Nodes {
    let mut all = Nodes::default();
    for node in nodes {
        let (is_ready, address, closed) = node_facts(node);
        if !is_ready {
            continue;
        }
        all.count += 1;
        all.addresses.extend(address);
        for one in closed.split("; ").filter(|one| !one.is_empty()) {
            let Some((port, why)) = one.split_once(": ") else { continue };
            let Ok(port) = port.parse() else { continue };
            let text = format!("{}: {why}", node.name_any());
            all.closed.entry(port).or_default().push(text);
        }
    }
    all
}

async fn reconcile(context: &Context, caches: &Caches) -> Result<Next, kube::Error> {
    tokio::time::sleep(DEBOUNCE).await;
    let informers = &context.informers;
    let labels = |namespace: &Arc<Namespace>| (namespace.name_any(), namespace.labels().clone());
    let ports = |service: &Arc<Service>| {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
        let numbers = ports.into_iter().filter_map(|port| u16::try_from(port.port).ok());
        ((namespace, name), numbers.collect::<BTreeSet<u16>>())
    };
    let view = View {
        objects: GatewayObjects {
            classes: caches.classes.store.state(),
            gateways: caches.gateways.store.state(),
            routes: caches.routes.store.state(),
            grants: caches.grants.store.state(),
            namespaces: informers.namespaces.store.state().iter().map(labels).collect(),
        },
        ingresses: caches.ingresses.store.state(),
        ingress_classes: caches.ingress_classes.store.state(),
        services: informers.services.store.state().iter().map(ports).collect::<BTreeMap<_, _>>(),
        secrets: caches.secrets.store.state(),
        nodes: nodes(&informers.nodes.store.state()),
        now: context.clock.now_rfc3339(),
    };
    for write in plan::plan(&view) {
        apply(&context.client, write).await?;
    }
    Ok(Next::Wait)
}

async fn apply(client: &kube::Client, write: Write) -> Result<(), kube::Error> {
    let client = client.clone();
    let namespace = write.namespace.clone();
    match write.kind {
        Kind::GatewayClass => patch(Api::<GatewayClass>::all(client), write).await,
        Kind::Gateway => patch(Api::<Gateway>::namespaced(client, &namespace), write).await,
        Kind::HttpRoute => patch(Api::<HTTPRoute>::namespaced(client, &namespace), write).await,
        Kind::Ingress => patch(Api::<Ingress>::namespaced(client, &namespace), write).await,
    }
}

async fn patch<K>(api: Api<K>, write: Write) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    let body = json!({
        "metadata": {"resourceVersion": write.resource_version},
        "status": write.status,
    });
    api.patch_status(&write.name, &PatchParams::default(), &Patch::Merge(&body)).await?;
    Ok(())
}
