//! What the node's HTTP routes are made of: Ingresses, the Gateway API, and the Secrets with their
//! certificates.
//!
//! The node watches each Secret that its routes name, and no other. Routes, grants and namespaces
//! are watched once there is a Gateway.

use std::collections::BTreeMap;
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
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::api::gateway::{
    CLOSED_PORTS, Gateway, GatewayClass, GatewayObjects, HTTPRoute, ReferenceGrant,
};
use crate::client::{Informer, informer};
use crate::mesh::{CertificatePem, HttpObjects, HttpRoutes, Mesh, SecretName};
use crate::rt::TaskGroup;

/// Secrets that routes may name; more are left out.
const SECRETS_MAX: usize = 1024;
/// Pause before the Node's annotation is tried again.
const TELL_RETRY: Duration = Duration::from_secs(5);

/// The objects, as they are now.
pub(super) struct HttpSources {
    client: kube::Client,
    tasks: TaskGroup,
    changed: Arc<Notify>,
    ingresses: Informer<Ingress>,
    ingress_classes: Informer<IngressClass>,
    classes: Informer<GatewayClass>,
    gateways: Informer<Gateway>,
    attached: Option<Attached>,
    secrets: BTreeMap<SecretName, (Informer<Secret>, TaskGroup)>,
    closed: watch::Sender<String>,
}

/// What is only looked at when there are Gateways.
struct Attached {
    routes: Informer<HTTPRoute>,
    grants: Informer<ReferenceGrant>,
    namespaces: Informer<Namespace>,
}

impl HttpSources {
    /// Starts to watch.
    pub(super) fn start(
        client: kube::Client,
        node: String,
        nodes: Informer<Node>,
        tasks: &TaskGroup,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let (closed, told) = watch::channel(String::new());
        let api = Api::all(client.clone());
        tasks.spawn("gateway-ports", |cancel| tell(api, node, nodes, told, cancel));
        Self {
            ingresses: follow(&client, tasks, &changed),
            ingress_classes: follow(&client, tasks, &changed),
            classes: follow(&client, tasks, &changed),
            gateways: follow(&client, tasks, &changed),
            attached: None,
            secrets: BTreeMap::new(),
            client,
            tasks: tasks.child(),
            changed,
            closed,
        }
    }

    /// Waits for the first lists.
    pub(super) async fn ready(&self) -> bool {
        self.ingresses.ready().await
            && self.ingress_classes.ready().await
            && self.classes.ready().await
            && self.gateways.ready().await
    }

    /// Waits for the next change.
    ///
    /// # Cancel safety
    ///
    /// Safe: a change that was not heard is heard the next time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is known now.
    pub(super) fn objects(&mut self, services: &[Arc<Service>]) -> HttpObjects {
        let gateways = self.gateways.store.state();
        if self.attached.is_none() && !gateways.is_empty() {
            self.attached = Some(Attached {
                routes: follow(&self.client, &self.tasks, &self.changed),
                grants: follow(&self.client, &self.tasks, &self.changed),
                namespaces: follow(&self.client, &self.tasks, &self.changed),
            });
        }
        let mut gateway = GatewayObjects {
            classes: self.classes.store.state(),
            gateways,
            ..GatewayObjects::default()
        };
        if let Some(attached) = &self.attached {
            gateway.routes = attached.routes.store.state();
            gateway.grants = attached.grants.store.state();
            let namespaces = attached.namespaces.store.state();
            let labels = |one: &Arc<Namespace>| (one.name_any(), one.labels().clone());
            gateway.namespaces = namespaces.iter().map(labels).collect();
        }
        HttpObjects {
            ingresses: self.ingresses.store.state(),
            ingress_classes: self.ingress_classes.store.state(),
            gateway,
            services: services.to_vec(),
        }
    }

    /// Watches the Secrets that the routes name and no others; those that are known.
    pub(super) fn certificates(
        &mut self,
        routes: &HttpRoutes,
    ) -> BTreeMap<SecretName, CertificatePem> {
        let wanted = routes.secrets();
        self.secrets.retain(|name, (_, tasks)| {
            let is_kept = wanted.contains(name);
            if !is_kept {
                tasks.token().cancel();
            }
            is_kept
        });
        for name in wanted.into_iter().take(SECRETS_MAX) {
            self.secrets.entry(name).or_insert_with_key(|(namespace, name)| {
                let tasks = self.tasks.child();
                let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
                let api = Api::namespaced(self.client.clone(), namespace);
                let informer = informer(api, config, &tasks);
                wake(&informer, &self.changed);
                (informer, tasks)
            });
        }
        let known = self.secrets.iter().filter_map(|(name, (informer, _))| {
            let secret = informer.store.state().pop()?;
            let data = secret.data.as_ref()?;
            let entry = |key: &str| data.get(key).map(|bytes| bytes.0.clone());
            let pem = CertificatePem { chain: entry("tls.crt")?, key: entry("tls.key")? };
            Some((name.clone(), pem))
        });
        known.collect()
    }

    /// Tells by the Node which ports of Gateways could not be opened.
    pub(super) fn tell_closed(&self, mesh: &Mesh) {
        let closed = mesh.closed_gateway_ports();
        let texts = closed.iter().map(|(port, why)| format!("{port}: {}", why.replace(';', ",")));
        let text = texts.collect::<Vec<_>>().join("; ");
        self.closed.send_if_modified(|told| {
            let is_other = *told != text;
            *told = text;
            is_other
        });
    }
}

fn follow<K>(client: &kube::Client, tasks: &TaskGroup, changed: &Arc<Notify>) -> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let informer = informer(Api::all(client.clone()), watcher::Config::default(), tasks);
    wake(&informer, changed);
    informer
}

fn wake<K: Resource + 'static>(informer: &Informer<K>, changed: &Arc<Notify>) {
    let changed = Arc::downgrade(changed);
    informer.subscribe(Box::new(move |_| {
        let changed = changed.upgrade();
        changed.iter().for_each(|changed| changed.notify_one());
        changed.is_some()
    }));
}

/// Keeps the Node's annotation as `told` says.
async fn tell(
    api: Api<Node>,
    name: String,
    nodes: Informer<Node>,
    mut told: watch::Receiver<String>,
    cancel: CancellationToken,
) {
    let telling = async {
        if !nodes.ready().await {
            return;
        }
        loop {
            let wanted = told.borrow_and_update().clone();
            let node = nodes.store.named("", &name);
            let has = node.and_then(|node| node.annotations().get(CLOSED_PORTS).cloned());
            if has.unwrap_or_default() != wanted {
                let value = if wanted.is_empty() { json!(null) } else { json!(wanted) };
                let patch =
                    Patch::Merge(json!({"metadata": {"annotations": {CLOSED_PORTS: value}}}));
                if let Err(err) = api.patch(&name, &PatchParams::default(), &patch).await {
                    debug!(%err, "cannot tell which gateway ports are closed");
                    tokio::time::sleep(TELL_RETRY).await;
                    continue;
                }
            }
            if told.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = cancel.run_until_cancelled(telling).await;
}
